//! Floats that are read by nothing but products in bf16, of attention or of a layer that stays float, are
//! kept as bf16: they would be rounded on their way in, so that the numbers stay the same and half the
//! bytes move.

use fqc_ir::dim::Dim;
use fqc_ir::expr::Expr;
use fqc_ir::plan::row_major;
use fqc_ir::plan::{
    Buffer, BufferId, Gemm, GemmOutput, Kernel, Place, Plan, Precision, Step, View,
};
use fqc_ir::types::Elem;

use super::{Arch, attention, gemm};

/// Queries, keys and values of attention.
const OPERANDS: usize = 3;

/// Keeps what such products read as bf16: where it is made if nothing else reads it, in a copy otherwise.
pub fn narrow(plan: &mut Plan, arch: Arch) {
    let steps = std::mem::take(&mut plan.steps);
    let fits: Vec<bool> = (0..plan.buffers.len())
        .map(|buffer| could_be_halves(plan, &steps, BufferId(buffer), arch))
        .collect();
    let mut halves = vec![false; plan.buffers.len()];
    for step in &steps {
        let operands = step.args[..operands(step, arch)].iter().map(|arg| arg.buffer.0);
        let own: Vec<usize> = operands.clone().filter(|&buffer| fits[buffer]).collect();
        // Where most would be copied, attention rounds for itself.
        if own.len() * 2 > operands.count() {
            own.into_iter().for_each(|buffer| halves[buffer] = true);
        }
    }
    for (buffer, _) in plan.buffers.iter_mut().zip(&halves).filter(|(_, halves)| **halves) {
        buffer.elem = Elem::BF16;
    }
    let mut made = Vec::with_capacity(steps.len());
    for mut step in steps {
        let count = operands(&step, arch);
        let gemm = matches!(step.kernel, Kernel::Gemm(_));
        if gemm || step.args[..count].iter().any(|arg| halves[arg.buffer.0]) {
            for index in 0..count {
                if !halves[step.args[index].buffer.0] {
                    let copy = copy(plan, &step.name, &step.args[index]);
                    step.args[index] = copy.results[0].clone();
                    made.push(copy);
                }
            }
        }
        made.push(step);
    }
    for step in &mut made {
        if let Kernel::Pointwise(expr) = &mut step.kernel
            && plan.buffers[step.results[0].buffer.0].elem == Elem::BF16
            && !matches!(expr, Expr::Cast(Elem::BF16, _))
        {
            *expr = Expr::cast(Elem::BF16, expr.clone());
        }
    }
    plan.steps = made;
}

/// How many of a step's first arguments it could read as bf16.
fn operands(step: &Step, arch: Arch) -> usize {
    match &step.kernel {
        Kernel::Attention { precision: Precision::Bf16, .. }
            if attention::in_tiles(step, Elem::BF16) =>
        {
            OPERANDS
        }
        Kernel::Gemm(own) if arch == Arch::Sm90a && gemm::in_halves(step, own) => 1,
        _ => 0,
    }
}

/// Whether all that use a buffer could do so with bf16 in it.
fn could_be_halves(plan: &Plan, steps: &[Step], buffer: BufferId, arch: Arch) -> bool {
    let Buffer { elem, place, .. } = plan.buffer(buffer);
    let is = |view: &View| view.buffer == buffer;
    let mut read = false;
    let fit = steps.iter().all(|step| {
        let writes = step.results.iter().any(is);
        let makes = match &step.kernel {
            Kernel::Pointwise(_) => true,
            Kernel::Gemm(Gemm { output, .. }) => *output == GemmOutput::F32,
            Kernel::Norm { .. } => true,
            _ => false,
        };
        let reads = step.args.iter().any(is);
        read |= reads;
        let only_operands = step.args.iter().skip(operands(step, arch)).all(|arg| !is(arg));
        (!writes || makes) && (!reads || only_operands)
    });
    *elem == Elem::F32 && *place == Place::Arena && read && fit
}

/// A step that copies a view, rounded, to a buffer of its own.
fn copy(plan: &mut Plan, name: &str, view: &View) -> Step {
    let shape: Vec<Dim> = view.shape.clone();
    let id = BufferId(plan.buffers.len());
    plan.buffers.push(Buffer {
        name: format!("{name}.bf16"),
        elem: Elem::BF16,
        shape: shape.clone(),
        place: Place::Arena,
    });
    let to = View { buffer: id, offset: Dim::zero(), strides: row_major(&shape), shape };
    let kernel = Kernel::Pointwise(Expr::cast(Elem::BF16, Expr::arg(0)));
    Step { name: format!("{name}.bf16"), kernel, args: vec![view.clone()], results: vec![to] }
}
