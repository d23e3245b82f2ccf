//! Times single kernels at every level this machine has: `cargo run --release -p fqc-codegen
//! --example kernel_bench [name part]`. One thread, data in cache where it fits; GB/s count each
//! byte that must be read or written once.

use std::time::Instant;

use fqc_codegen::cpu::run::Execution;
use fqc_codegen::cpu::{Level, generate};
use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::expr::UnaryOp;
use fqc_ir::plan::{
    Buffer, BufferId, Kernel, NormKind, Place, Plan, Port, Precision, RowQuantize, Step, View,
};
use fqc_ir::types::Elem;

/// A plan of one step and the figure it is measured by.
struct Case {
    name: &'static str,
    plan: Plan,
    /// Multiply-adds times two, if the kernel is bound by arithmetic.
    flops: Option<f64>,
}

fn fixed(shape: &[i64]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::from(d)).collect()
}

/// A plan with these inputs and outputs.
fn plan(
    kernel: Kernel,
    inputs: &[(Elem, Vec<i64>)],
    outputs: &[(Elem, Vec<i64>)],
    view: impl Fn(usize, View) -> View,
) -> Plan {
    let mut plan = Plan::default();
    let mut views = Vec::new();
    for (i, (elem, shape)) in inputs.iter().chain(outputs).enumerate() {
        let (id, shape) = (BufferId(i), fixed(shape));
        let name = format!("b{i}");
        let port = Port { name: name.clone(), elem: *elem, shape: shape.clone(), buffer: id };
        let place = if i < inputs.len() {
            plan.inputs.push(port);
            Place::Input(i)
        } else {
            plan.outputs.push(port);
            Place::Output(i - inputs.len())
        };
        plan.buffers.push(Buffer { name, elem: *elem, shape: shape.clone(), place });
        views.push(view(i, View::whole(id, &shape)));
    }
    let results = views.split_off(inputs.len());
    plan.steps.push(Step { name: "y".to_owned(), kernel, args: views, results });
    plan
}

/// Axes of a view in another order.
fn permuted(v: View, order: &[usize]) -> View {
    View {
        shape: order.iter().map(|&a| v.shape[a].clone()).collect(),
        strides: order.iter().map(|&a| v.strides[a].clone()).collect(),
        ..v
    }
}

fn cases() -> Vec<Case> {
    let f = Elem::F32;
    let whole = |_: usize, v: View| v;
    let mut cases = Vec::new();
    let mut add = |name, plan, flops| cases.push(Case { name, plan, flops });
    let rows = vec![4096, 384];
    for (name, shape) in
        [("softmax 49152x128", vec![49152, 128]), ("softmax 4096x1024", vec![4096, 1024])]
    {
        add(name, plan(Kernel::Softmax, &[(f, shape.clone())], &[(f, shape)], whole), None);
    }
    let norm =
        |float, quantize| Kernel::Norm { kind: NormKind::Layer, epsilon: 1e-5, float, quantize };
    let quantize = RowQuantize { signed: true, bits: 8, base: 384, tail: 20, padded: 448 };
    // All of a batch, and a slice of it that stays in the second-level cache.
    for (rows, names) in [
        (4096, ["layer_norm 4096x384", "layer_norm+quantize 4096x384", "quantize 4096x384"]),
        (128, ["layer_norm 128x384", "layer_norm+quantize 128x384", "quantize 128x384"]),
    ] {
        let (floats, codes) = ((f, vec![rows, 384]), (Elem::U8, vec![rows, 448]));
        let affine = [floats.clone(), (f, vec![384]), (f, vec![384])];
        let tables = [(f, vec![384]), (Elem::I32, vec![20]), (f, vec![20])];
        let all: Vec<_> = affine.iter().chain(&tables).cloned().collect();
        add(names[0], plan(norm(true, None), &affine, std::slice::from_ref(&floats), whole), None);
        let both = [floats.clone(), codes.clone()];
        let kernel = norm(true, Some(quantize.clone()));
        add(names[1], plan(kernel, &all, &both, whole), None);
        let quantizer: Vec<_> = [floats].iter().chain(&tables).cloned().collect();
        let kernel = Kernel::Quantize { expr: Expr::arg(0), quantize: quantize.clone() };
        add(names[2], plan(kernel, &quantizer, &[codes], whole), None);
    }
    for (name, op) in [
        ("gelu 4096x1536", UnaryOp::Gelu),
        ("gelu_tanh 4096x1536", UnaryOp::GeluTanh),
        ("silu 4096x1536", UnaryOp::Silu),
        ("exp 4096x1536", UnaryOp::Exp),
    ] {
        let wide = (f, vec![4096, 1536]);
        let kernel = Kernel::Pointwise(Expr::unary(op, Expr::arg(0)));
        let one = [wide];
        add(name, plan(kernel, &one, &one, whole), None);
    }
    let copy = || Kernel::Pointwise(Expr::arg(0));
    let swap = |order: &'static [usize]| {
        move |i: usize, v: View| if i == 0 { permuted(v, order) } else { v }
    };
    let heads = [(f, vec![32, 128, 12, 32])];
    add(
        "copy bshd->bhsd",
        plan(copy(), &heads, &[(f, vec![32, 12, 128, 32])], swap(&[0, 2, 1, 3])),
        None,
    );
    add(
        "copy bshd->bhds",
        plan(copy(), &heads, &[(f, vec![32, 12, 32, 128])], swap(&[0, 2, 3, 1])),
        None,
    );
    add(
        "transpose 2048x2048",
        plan(copy(), &[(f, vec![2048, 2048])], &[(f, vec![2048, 2048])], swap(&[1, 0])),
        None,
    );
    for (name, b, s, h, d, causal) in [
        ("attention 32,12,128,32", 32, 128, 12, 32, false),
        ("attention 8,12,512,64", 8, 512, 12, 64, false),
        ("attention causal 1,9,256,64", 1, 256, 9, 64, true),
        ("attention 32,12,16,32", 32, 16, 12, 32, false),
    ] {
        let qkv = (f, vec![b, s, h, d]);
        let precision = Precision::Bf16;
        let kernel = Kernel::Attention { scale: 0.2, causal, mask: true, precision };
        let mut inputs = vec![qkv.clone(); 3];
        inputs.push((f, vec![b, 1, 1, s]));
        let view = move |i: usize, v: View| {
            if i != 3 {
                return permuted(v, &[0, 2, 1, 3]);
            }
            let strides = vec![Dim::from(s), Dim::zero(), Dim::zero(), Dim::one()];
            View { shape: fixed(&[b, h, s, s]), strides, ..v }
        };
        add(name, plan(kernel, &inputs, &[qkv], view), Some((4 * b * h * s * s * d) as f64));
    }
    let matmul = |m: i64, n: i64, k: i64, flip: bool| {
        let b = if flip { vec![32, n, k] } else { vec![32, k, n] };
        let view =
            move |i: usize, v: View| if i == 1 && flip { permuted(v, &[0, 2, 1]) } else { v };
        let inputs = [(f, vec![32, m, k]), (f, b)];
        plan(Kernel::MatMul, &inputs, &[(f, vec![32, m, n])], view)
    };
    let flops = |m: i64, n: i64, k: i64| Some((64 * m * n * k) as f64);
    add("matmul 128x128x64", matmul(128, 128, 64, false), flops(128, 128, 64));
    add("matmul transposed 128x128x64", matmul(128, 128, 64, true), flops(128, 128, 64));
    add("matmul 512x512x512", matmul(512, 512, 512, false), flops(512, 512, 512));
    let gather = Kernel::Gather { axis: 0, index_rank: 1 };
    let inputs = [(f, vec![30522, 384]), (Elem::I64, vec![4096])];
    add("gather 4096 rows of 384", plan(gather, &inputs, &[(f, rows)], whole), None);
    cases
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let mut levels = vec![Level::Avx2];
    if std::arch::is_x86_feature_detected!("avx512vnni") {
        levels.push(Level::Avx512Vnni);
    }
    if std::arch::is_x86_feature_detected!("avx512bf16") {
        levels.push(Level::Avx512Bf16);
    }
    for case in cases().iter().filter(|c| c.name.contains(&wanted)) {
        let image = generate(&case.plan, &levels).expect("the plan compiles");
        for &level in &levels {
            let shapes: Vec<Vec<usize>> = case
                .plan
                .inputs
                .iter()
                .map(|p| p.shape.iter().map(|d| d.as_const().unwrap_or(0) as usize).collect())
                .collect();
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            let mut run = Execution::new(&image, level, &shapes).expect("it binds");
            fill(&case.plan, &mut run);
            let seconds = seconds(&mut run, case.name);
            let rate = match case.flops {
                Some(flops) => format!("{:8.1} GFLOP/s", flops / seconds / 1e9),
                None => format!("{:8.1} GB/s", run.figures(0).1 as f64 / seconds / 1e9),
            };
            println!("{:32} {:12} {:9.1} us {rate}", case.name, level.name(), seconds * 1e6);
        }
    }
}

/// Time of the whole step: its work in 16 portions, of each the best of many runs, so that what
/// else the machine does is left out.
fn seconds(run: &mut Execution, name: &str) -> f64 {
    let work = run.work(0);
    let portion = (work / 16).max(1);
    let mut best = vec![f64::INFINITY; (work / portion + 1) as usize];
    for _ in 0..20 {
        for (k, best) in best.iter_mut().enumerate() {
            let begin = (k as i64 * portion).min(work);
            let start = Instant::now();
            let status = run.run_step(0, begin..(begin + portion).min(work));
            assert_eq!(status, 0, "{name}");
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best.iter().sum()
}

/// Small numbers everywhere; indices in range.
fn fill(plan: &Plan, run: &mut Execution) {
    for (i, port) in plan.inputs.iter().enumerate() {
        let count: i64 = port.shape.iter().map(|d| d.as_const().unwrap_or(0)).product();
        let noise = |k: i64| ((k * 2_654_435_761) >> 7) % 1009;
        let bytes: Vec<u8> = match port.elem {
            Elem::F32 => {
                (0..count).flat_map(|k| (noise(k) as f32 / 300.0 - 1.7).to_le_bytes()).collect()
            }
            Elem::I32 => (0..count).flat_map(|k| ((noise(k) % 300) as i32).to_le_bytes()).collect(),
            _ => (0..count).flat_map(|k| noise(k).to_le_bytes()).collect(),
        };
        run.set_input(i, &bytes);
    }
}
