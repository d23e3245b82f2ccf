//! Kernels of whole rows: softmax, reductions, running sums.

use fqc_ir::dim::Dim;
use fqc_ir::op::ReduceOp;
use fqc_ir::plan::Step;
use fqc_ir::types::Elem;

use super::expr::{self, from_memory, to_memory};
use super::text::{Call, Text};
use crate::spec::Nest;

/// Rows of a block that has a warp a row.
const WARPS: u32 = 4;

/// Declares `row` and `lane` of a row that has a warp; gives the rows of a block.
fn row_of_warp(t: &mut Text) -> u32 {
    t.line(format!("const u32 row = blockIdx.x * {WARPS}u + threadIdx.x / 32;"));
    t.line("const int lane = threadIdx.x % 32;");
    t.line("if (row >= work) return;");
    WARPS
}

/// Softmax along the last axis, a warp a row.
pub fn softmax(step: &Step, elems: &[Elem]) -> Result<Call, String> {
    if elems[0] != Elem::F32 || elems[1] != Elem::F32 {
        return Err("softmax is of f32; cast before".into());
    }
    let (x, y) = (&step.args[0], &step.results[0]);
    let (rows, n, steps) = Nest::new(&y.shape, &[&x.strides, &y.strides]).split_last();
    let rows = rows.collapse();
    let mut t = Text::new(step);
    let items = row_of_warp(&mut t);
    t.pointer("x", 0, x, Elem::F32, false);
    t.pointer("y", 1, y, Elem::F32, true);
    t.unravel("i", "row", &rows, &["ox".into(), "oy".into()]);
    let (n, sx, sy) = (t.size(&n), t.size(&steps[0]), t.size(&steps[1]));
    t.line("float largest = -__int_as_float(0x7f800000), sum = 0.0f;");
    let each = format!("for (i64 i = lane; i < {n}; i += 32)");
    t.line(format!("{each} largest = larger(x[ox + i * {sx}], largest);"));
    t.line("for (int step = 16; step > 0; step /= 2)");
    t.line("    largest = larger(__shfl_xor_sync(0xffffffffu, largest, step), largest);");
    t.line(format!("{each} sum = add(sum, exponential(sub(x[ox + i * {sx}], largest)));"));
    t.line("const float inverse = div(1.0f, warp_sum(sum));");
    t.line(format!(
        "{each} y[oy + i * {sy}] = mul(exponential(sub(x[ox + i * {sx}], largest)), inverse);"
    ));
    Ok(t.finish(32 * WARPS, items, rows.count(), y.count() * Dim::from(5i64)))
}

/// Reduction of the trailing axes. Parts of a sum are of neighbouring threads where those read
/// neighbouring elements, otherwise neighbouring threads have neighbouring results.
pub fn reduce(step: &Step, op: ReduceOp, keep: usize, elems: &[Elem]) -> Result<Call, String> {
    let (x, y) = (&step.args[0], &step.results[0]);
    let kept = Nest::new(&y.shape, &[&x.strides[..keep], &y.strides]).collapse();
    let reduced = Nest::new(&x.shape[keep..], &[&x.strides[keep..]]).collapse();
    let elem = elems[0];
    let ty = expr::register_type(elem);
    if elem == Elem::Bool || elems[1] != elem {
        return Err("a reduction is of numbers of one type".into());
    }
    let along = reduced.strides[0].last().and_then(Dim::as_const) == Some(1);
    let (results, parts) = if along { (8, 32) } else { (32, 8) };
    let mut t = Text::new(step);
    t.line(format!("__shared__ {ty} sums[{parts}][{results}];"));
    t.line(match along {
        true => "const u32 column = threadIdx.x / 32, part = threadIdx.x % 32;",
        false => "const u32 column = threadIdx.x % 32, part = threadIdx.x / 32;",
    });
    t.line(format!("const u32 item = blockIdx.x * {results}u + column;"));
    t.pointer("x", 0, x, elem, false);
    t.pointer("y", 1, y, elem, true);
    let first = match (op, elem.is_float()) {
        (ReduceOp::Sum | ReduceOp::Mean, _) => "0".to_owned(),
        (ReduceOp::Prod, _) => "1".to_owned(),
        (ReduceOp::Max, true) => "-__int_as_float(0x7f800000)".to_owned(),
        (ReduceOp::Min, true) => "__int_as_float(0x7f800000)".to_owned(),
        (ReduceOp::Max, false) => extreme(elem, false),
        (ReduceOp::Min, false) => extreme(elem, true),
    };
    let merge = match op {
        ReduceOp::Sum | ReduceOp::Mean => "add",
        ReduceOp::Prod => "mul",
        ReduceOp::Max => "larger",
        ReduceOp::Min => "smaller",
    };
    let count = t.size(&reduced.count());
    t.line(format!("{ty} sum = static_cast<{ty}>({first});"));
    t.line("if (item < work) {");
    t.unravel("i", "item", &kept, &["ox".into(), "unused".into()]);
    t.line(format!("for (u32 r = part; r < static_cast<u32>({count}); r += {parts}u) {{"));
    t.unravel("r", "r", &reduced, &["oxr".into()]);
    let value = from_memory(elem, "x[ox + oxr]");
    t.line(format!("sum = {merge}(static_cast<{ty}>({value}), sum);"));
    t.line("}");
    t.line("}");
    t.line("sums[part][column] = sum;");
    t.line("__syncthreads();");
    t.line("if (part != 0 || item >= work) return;");
    t.line(format!("for (int p = 1; p < {parts}; ++p) sum = {merge}(sums[p][column], sum);"));
    if op == ReduceOp::Mean {
        t.line(format!("sum = div(sum, static_cast<{ty}>({count}));"));
    }
    t.unravel("k", "item", &kept, &["unused".into(), "oy".into()]);
    t.line(format!("y[oy] = {};", to_memory(elem, "sum")));
    Ok(t.finish(256, results, kept.count(), x.count()))
}

/// The largest or smallest value of an integer type.
fn extreme(elem: Elem, largest: bool) -> String {
    let bits = elem.bits();
    let ty = expr::register_type(elem);
    match (elem.is_signed(), largest) {
        (true, true) => format!("static_cast<{ty}>({}ull)", u64::MAX >> (65 - bits)),
        (true, false) => format!("static_cast<{ty}>({}ull)", 1u64 << (bits - 1)),
        (false, true) => format!("static_cast<{ty}>({}ull)", u64::MAX >> (64 - bits)),
        (false, false) => "0".into(),
    }
}

/// Index of an extreme along the last axis, a thread a row.
pub fn arg_reduce(step: &Step, largest: bool, last: bool, elems: &[Elem]) -> Result<Call, String> {
    let (x, y) = (&step.args[0], &step.results[0]);
    let keep = y.shape.len();
    let kept = Nest::new(&y.shape, &[&x.strides[..keep], &y.strides]).collapse();
    let mut t = Text::new(step);
    thread_of_row(&mut t, step, elems, Elem::I64, &kept);
    let (n, stride) = (t.size(&x.shape[keep]), t.size(&x.strides[keep]));
    let at = |i: &str| from_memory(elems[0], &format!("x[ox + {i} * {stride}]"));
    let sign = if largest { ">" } else { "<" };
    let ties = if last { " || value == best" } else { "" };
    t.line(format!("auto best = {}; i64 index = 0;", at("0")));
    t.line(format!("for (i64 i = 1; i < {n}; ++i) {{"));
    t.line(format!("    const auto value = {};", at("i")));
    t.line("    if (best != best) break;");
    t.line(format!(
        "    if (value {sign} best || value != value{ties}) {{ best = value; index = i; }}"
    ));
    t.line("}");
    t.line("y[oy] = index;");
    Ok(t.finish(64, 64, kept.count(), x.count()))
}

/// Running sums along the last axis, a thread a row.
pub fn cumsum(step: &Step, exclusive: bool, reverse: bool, elems: &[Elem]) -> Result<Call, String> {
    let (x, y) = (&step.args[0], &step.results[0]);
    let last = y.shape.len() - 1;
    let kept = Nest::new(&y.shape[..last], &[&x.strides[..last], &y.strides[..last]]).collapse();
    let mut t = Text::new(step);
    thread_of_row(&mut t, step, elems, elems[1], &kept);
    let n = t.size(&x.shape[last]);
    let (sx, sy) = (t.size(&x.strides[last]), t.size(&y.strides[last]));
    let ty = expr::register_type(elems[0]);
    t.line(format!("{ty} sum = 0;"));
    t.line(format!("for (i64 j = 0; j < {n}; ++j) {{"));
    t.line(if reverse {
        format!("    const i64 i = {n} - 1 - j;")
    } else {
        "    const i64 i = j;".into()
    });
    let value = from_memory(elems[0], &format!("x[ox + i * {sx}]"));
    let write = format!("    y[oy + i * {sy}] = {};", to_memory(elems[1], "sum"));
    let next = format!("    const {ty} next = add(sum, static_cast<{ty}>({value}));");
    t.line(next);
    if exclusive {
        t.line(write);
        t.line("    sum = next;");
    } else {
        t.line("    sum = next;");
        t.line(write);
    }
    t.line("}");
    Ok(t.finish(64, 64, kept.count(), x.count()))
}

fn thread_of_row(t: &mut Text, step: &Step, elems: &[Elem], result: Elem, kept: &Nest) {
    t.line("const u32 item = blockIdx.x * 64u + threadIdx.x;");
    t.line("if (item >= work) return;");
    t.pointer("x", 0, &step.args[0], elems[0], false);
    t.pointer("y", 1, &step.results[0], result, true);
    t.unravel("i", "item", kept, &["ox".into(), "oy".into()]);
}
