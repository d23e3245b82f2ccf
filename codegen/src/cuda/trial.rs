//! A program that multiplies one gemm again and again, on one matrix after another, for timing a tile. Its
//! kernels are those of a model with such a gemm. Before each gemm stands a step that writes its operand, as in
//! a model: gemms that follow each other would fight for multiprocessors, which small grids win, where in a
//! model all blocks of a gemm fetch weights while that step runs.

use fqbin::TargetImage;
use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::expr::Expr;
use fqc_ir::plan::{
    Buffer, BufferId, Extra, Gemm, GemmInput, GemmOutput, Kernel, Place, Plan, Port, RowQuantize,
    Step, View,
};
use fqc_ir::types::Elem;
use fqc_kernels::cuda::choose::{BUCKETS, Tile};
use fqc_kernels::cuda::gemm::{Output, Weights};
use fqc_kernels::cuda::pack::packed_bytes;

use super::fuse::{Kind, Unit};
use super::generate::{Launches, image};
use super::{Arch, Compiler, Error, Layer, Tuning};

/// How a gemm is tried.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    pub rows: usize,
    /// Matrices of weights, which the launches take in turn.
    pub weights: usize,
    pub launches: usize,
}

/// Bytes of a gemm's packed weights.
pub fn weight_bytes(layer: &Layer) -> usize {
    let k = if layer.weights.float() { layer.k * 2 } else { layer.k };
    packed_bytes(layer.n, k, layer.weights == Weights::Int4)
}

/// The program for Hopper. Its inputs, of which any values do, are `x` in f32, the packed weights `w` and, for
/// a gemm with operands by element, `y` in f32; its output means nothing.
///
/// # Errors
/// [`Error::Unsupported`] if the gemm cannot have this tile; those of the compiler.
pub fn program(
    layer: &Layer,
    tile: Tile,
    trial: Trial,
    compiler: &Compiler,
) -> Result<TargetImage, Error> {
    let mut tuning = Tuning::default();
    for rows in BUCKETS {
        tuning.set(layer, rows, tile).map_err(|fault| Error::Unsupported(vec![fault]))?;
    }
    image(launches(layer, trial), Arch::Sm90a, &tuning, compiler)
}

fn launches(layer: &Layer, trial: Trial) -> Launches {
    let mut plan = Plan::default();
    let halves = layer.weights.float();
    let (rows, n) = (Dim::from(trial.rows), layer.n);
    let before = operand(&mut plan, layer, &rows);
    let x = before.results[0].clone();
    let (w, length) = match halves {
        true => (Elem::BF16, weight_bytes(layer) / 2),
        false => (Elem::U8, weight_bytes(layer)),
    };
    let w = input(&mut plan, "w", w, vec![Dim::from(trial.weights * length)]);
    let values = vec![0.01; n.next_multiple_of(fqc_kernels::pack::GROUP)];
    let table = Place::Const(Const::f32(vec![values.len()], &values));
    let table = buffer(&mut plan, "table", Elem::F32, vec![Dim::from(values.len())], table);
    let codes = layer.output.codes();
    let mut args = vec![x, w.clone()];
    let scale_and_start = if halves { 0 } else { 2 };
    args.extend(vec![table.clone(); scale_and_start]);
    for extra in &layer.extras {
        args.push(match extra {
            Extra::PerColumn => table.clone(),
            Extra::PerElement => element(&mut plan, &rows, n),
        });
    }
    // Of codes, their inverse scales and what lies below their digits.
    args.extend(vec![table; if codes { 2 } else { 0 }]);
    let (stored, width) = match layer.output {
        Output::Bf16 => (Elem::BF16, n),
        Output::F32 | Output::F16 => (Elem::F32, n),
        Output::S32 => (Elem::I32, n),
        _ => (Elem::U8, if layer.pair.is_some() { n / 2 } else { n }),
    };
    let out = buffer(&mut plan, "out", stored, vec![rows, Dim::from(width)], Place::Arena);
    let (gemm, kind) = kernel(layer, width);
    let mut units = Vec::new();
    for launch in 0..trial.launches {
        units.push(Unit { step: before.clone(), kind: Kind::Alone });
        let mut step = Step {
            name: format!("gemm.{launch}"),
            kernel: Kernel::Gemm(gemm.clone()),
            args: args.clone(),
            results: vec![out.clone()],
        };
        let offset = Dim::from(launch % trial.weights.max(1) * length);
        step.args[1] = View { offset, shape: vec![Dim::from(length)], ..w.clone() };
        units.push(Unit { step, kind: kind.clone() });
    }
    units.push(last(&mut plan));
    Launches { plan, units, ..Launches::default() }
}

/// The step that writes a gemm's operand: the quantisation of floats, or their rounding to bf16.
fn operand(plan: &mut Plan, layer: &Layer, rows: &Dim) -> Step {
    let shape = vec![rows.clone(), Dim::from(layer.k)];
    let x = input(plan, "x", Elem::F32, shape.clone());
    let halves = layer.weights.float();
    let elem = if halves { Elem::BF16 } else { Elem::U8 };
    let out = buffer(plan, "operand", elem, shape, Place::Arena);
    let (kernel, args) = if halves {
        (Kernel::Pointwise(Expr::cast(Elem::BF16, Expr::arg(0))), vec![x])
    } else {
        // Floats up to 2 become codes up to 120.
        let inverse = Place::Const(Const::f32(vec![layer.k], &vec![60.0; layer.k]));
        let inverse = buffer(plan, "inverse", Elem::F32, vec![Dim::from(layer.k)], inverse);
        let quantize =
            RowQuantize { signed: true, bits: 8, base: layer.k, tail: 0, padded: layer.k };
        let kernel = Kernel::Quantize { expr: Expr::arg(0), quantize };
        (kernel, vec![x, inverse.clone(), inverse.clone(), inverse])
    };
    Step { name: "operand".to_owned(), kernel, args, results: vec![out] }
}

/// The gemm of a layer, and what else is in its launch.
fn kernel(layer: &Layer, width: usize) -> (Gemm, Kind) {
    let halves = layer.weights.float();
    let signed = matches!(layer.output, Output::S8 | Output::S4);
    let bits = if matches!(layer.output, Output::S4 | Output::U4) { 4 } else { 8 };
    let codes = RowQuantize { signed, bits, base: width, tail: 0, padded: width };
    let output = match layer.output {
        Output::S32 => GemmOutput::I32,
        output if output.codes() && layer.pair.is_none() => GemmOutput::Codes { signed, bits },
        _ => GemmOutput::F32,
    };
    let gemm = Gemm {
        n: layer.n,
        k: layer.k,
        depth: layer.k,
        input: if halves { GemmInput::F32 } else { GemmInput::Codes { signed: true } },
        weight: match layer.weights {
            Weights::Int4 => Elem::I4,
            Weights::Int8 => Elem::I8,
            _ => Elem::BF16,
        },
        epilogue: layer.epilogue.clone(),
        extras: layer.extras.clone(),
        output,
    };
    let kind = match &layer.pair {
        Some(expr) => Kind::Pairs { expr: expr.clone(), codes },
        None => Kind::Alone,
    };
    (gemm, kind)
}

/// A program wants an output; this one is a number, so that little is copied from the GPU.
fn last(plan: &mut Plan) -> Unit {
    let result = buffer(plan, "end", Elem::I64, vec![Dim::one()], Place::Output(0));
    plan.outputs.push(port(plan, &result));
    let (name, kernel) = ("end".to_owned(), Kernel::Iota);
    Unit { step: Step { name, kernel, args: vec![], results: vec![result] }, kind: Kind::Alone }
}

/// The operand by element: the same for all that a gemm may have.
fn element(plan: &mut Plan, rows: &Dim, n: usize) -> View {
    let shape = vec![rows.clone(), Dim::from(n)];
    match plan.buffers.iter().position(|buffer| buffer.name == "y") {
        Some(index) => View::whole(BufferId(index), &shape),
        None => input(plan, "y", Elem::F32, shape),
    }
}

fn input(plan: &mut Plan, name: &str, elem: Elem, shape: Vec<Dim>) -> View {
    let view = buffer(plan, name, elem, shape, Place::Input(plan.inputs.len()));
    plan.inputs.push(port(plan, &view));
    view
}

fn port(plan: &Plan, view: &View) -> Port {
    let Buffer { name, elem, shape, .. } = plan.buffer(view.buffer).clone();
    Port { name, elem, shape, buffer: view.buffer }
}

fn buffer(plan: &mut Plan, name: &str, elem: Elem, shape: Vec<Dim>, place: Place) -> View {
    let view = View::whole(BufferId(plan.buffers.len()), &shape);
    plan.buffers.push(Buffer { name: name.to_owned(), elem, shape, place });
    view
}
