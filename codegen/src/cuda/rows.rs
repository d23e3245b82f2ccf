//! Kernels of whole rows: norms, softmax, reductions, running sums.

use fqc_ir::dim::Dim;
use fqc_ir::op::ReduceOp;
use fqc_ir::plan::{NormKind, RowQuantize, Step, View};
use fqc_ir::types::Elem;

use super::elementwise::{digit, source_channel};
use super::expr::{self, from_memory, to_memory};
use super::text::{Call, Text, divides};
use crate::spec::Nest;

/// Rows of a block that has a warp a row.
const WARPS: u32 = 4;

/// Longest row that one warp takes; longer ones have a block of [`WIDE`] threads.
const WARP_ROW: i64 = 1024;
const WIDE: u32 = 256;

/// Elements of a row that a thread keeps in registers, at most.
const KEPT: i64 = 32;

/// Digits of a tail that a thread prepares for while other kernels still run, at most.
const DIGITS: i64 = 4;

/// A norm as a step has it.
pub struct Norm<'a> {
    pub kind: NormKind,
    pub epsilon: f32,
    pub float: bool,
    pub quantize: Option<&'a RowQuantize>,
    /// Whether all arguments but the rows are constants.
    pub constant: bool,
}

/// Layer or root-mean-square norm, with floats, codes or both as result. Elements are read once.
pub fn norm(step: &Step, norm: &Norm<'_>, elems: &[Elem]) -> Result<Call, String> {
    let x = &step.args[0];
    let rank = x.shape.len() - 1;
    let n = x.shape[rank].as_const().ok_or("the channels of a norm are not constant")?;
    let tables = if norm.kind == NormKind::Layer { 2 } else { 1 };
    let stored = if norm.float { elems[step.args.len()] } else { Elem::F32 };
    if elems[..=tables].iter().any(|e| *e != Elem::F32) || !matches!(stored, Elem::F32 | Elem::BF16)
    {
        return Err("norms are of f32; cast before".into());
    }
    let threads = if n <= WARP_ROW { 32 } else { i64::from(WIDE) };
    let views: Vec<&View> = [x].into_iter().chain(&step.results).collect();
    let lane = |v: &View| {
        v.strides.last().and_then(Dim::as_const) == Some(1)
            && divides(4, &v.offset)
            && v.strides[..v.strides.len() - 1].iter().all(|s| divides(4, s))
    };
    let by_four = n % 4 == 0
        && views.iter().all(|v| lane(v))
        && (1..=tables).all(|i| step.args[i].is_contiguous() && divides(4, &step.args[i].offset));
    let width = if by_four { 4 } else { 1 };
    let chunks = (n / width + threads - 1) / threads;
    if chunks * width > KEPT {
        return Err(format!("rows of {n} channels are too long for a norm on CUDA"));
    }
    let tail = norm.quantize.map_or(0, |q| (q.padded - q.base) as i64);
    // Of the tail, what a thread has; too much is not kept.
    let digits = Some((tail + threads - 1) / threads).filter(|&n| n <= DIGITS).unwrap_or(0);
    let outer: Vec<&[Dim]> = views.iter().map(|v| &v.strides[..rank]).collect();
    let rows = Nest::new(&x.shape[..rank], &outer).collapse();
    let mut t = Text::new(step);
    let items = row_of_block(&mut t, threads);
    let each = format!("for (int c = 0; c < {chunks}; ++c)");
    let at = format!("const int at = (c * {threads} + lane) * {width};");
    let element = format!("for (int e = 0; e < {width}; ++e)");
    // What belongs to the channels comes while the kernels before still run.
    let mut columns = vec![];
    let tables_of = [("gamma", 1), ("beta", 2)];
    for (name, index) in tables_of.into_iter().take(tables) {
        t.pointer(name, index, &step.args[index], Elem::F32, false);
        columns.push((name, t.size(step.args[index].strides.last().unwrap_or(&Dim::one()))));
    }
    if norm.quantize.is_some() {
        let at = 1 + tables;
        t.line(format!("const float* const scales = reinterpret_cast<const float*>(a.w[{at}]);"));
        columns.push(("scales", "1".to_owned()));
    }
    for (name, _) in &columns {
        t.line(format!("alignas(16) float {name}_of[{chunks}][{width}];"));
    }
    t.line("#pragma unroll");
    t.line(format!("{each} {{"));
    t.line(format!("    {at}"));
    t.line(format!("    if (at >= {n}) continue;"));
    for (name, stride) in &columns {
        match by_four {
            true => t.line(format!(
                "    *reinterpret_cast<float4*>({name}_of[c]) = \
                 *reinterpret_cast<const float4*>({name} + at);"
            )),
            false => t.line(format!("    {name}_of[c][0] = {name}[at * {stride}];")),
        }
    }
    t.line("}");
    if let Some(q) = norm.quantize.filter(|_| digits > 0) {
        t.line(format!("int from_of[{digits}]; float below_of[{digits}];"));
        t.line("#pragma unroll");
        t.line(format!("for (int i = 0; i < {digits}; ++i) {{"));
        t.line(format!("    const u32 channel = {}u + i * {threads} + lane;", q.base));
        source_channel(&mut t, q, 1 + tables);
        t.line("    from_of[i] = from; below_of[i] = below;");
        t.line("}");
    }
    if norm.constant {
        t.so_far_is_early();
    }
    t.pointer("x", 0, x, Elem::F32, false);
    let mut names = vec!["ox".to_owned()];
    let first_table = 1 + tables;
    let results = step.args.len();
    if norm.float {
        t.pointer("y", results, &step.results[0], stored, true);
        names.push("oy".into());
    }
    if norm.quantize.is_some() {
        let at = results + usize::from(norm.float);
        t.pointer("codes", at, &step.results[usize::from(norm.float)], Elem::U8, true);
        names.push("oc".into());
    }
    t.unravel("i", "row", &rows, &names);
    let step_x = t.size(&x.strides[rank]);
    let read = |text: &mut Text, to: &str, from: &str, offset: &str, stride: &str| {
        if by_four {
            text.line(format!(
                "    *reinterpret_cast<float4*>({to}) = \
                 *reinterpret_cast<const float4*>({from} + {offset} + at);"
            ));
        } else {
            text.line(format!("    {to}[0] = {from}[{offset} + at * {stride}];"));
        }
    };
    t.line(format!("alignas(16) float v[{chunks}][{width}];"));
    t.line("float sum = 0.0f;");
    t.line("#pragma unroll");
    t.line(format!("{each} {{"));
    t.line(format!("    {at}"));
    t.line(format!("    if (at >= {n}) {{ {element} v[c][e] = 0.0f; continue; }}"));
    read(&mut t, "v[c]", "x", "ox", &step_x);
    t.line(format!("    {element} sum = add(sum, v[c][e]);"));
    t.line("}");
    if digits > 0 {
        t.line(format!("float digits_of[{digits}];"));
        t.line("#pragma unroll");
        t.line(format!(
            "for (int i = 0; i < {digits}; ++i) \
             digits_of[i] = from_of[i] >= 0 ? x[ox + from_of[i] * {step_x}] : 0.0f;"
        ));
    }
    match norm.kind {
        NormKind::Layer => {
            t.line(format!("const float mean = div(row_sum<{threads}>(sum), {n}.0f);"));
        }
        NormKind::Rms => t.line("const float mean = 0.0f;"),
    }
    t.line("float squares = 0.0f;");
    t.line("#pragma unroll");
    t.line(format!("{each} {{"));
    t.line(format!("    if ((c * {threads} + lane) * {width} >= {n}) continue;"));
    t.line(format!(
        "    {element} {{ v[c][e] = sub(v[c][e], mean); \
         squares = add(squares, mul(v[c][e], v[c][e])); }}"
    ));
    t.line("}");
    let epsilon = expr::float(norm.epsilon);
    t.line(format!(
        "const float inverse_root = div(1.0f, square_root(add(div(row_sum<{threads}>(squares), \
         {n}.0f), {epsilon})));"
    ));
    let scaled = |d: &str, table: &dyn Fn(usize) -> String| {
        let d = format!("mul({d}, inverse_root)");
        match norm.kind {
            NormKind::Layer => format!("__fmaf_rn({d}, {}, {})", table(0), table(1)),
            NormKind::Rms => format!("mul({d}, {})", table(0)),
        }
    };
    let own = |i: usize| format!("{}_of[c][e]", columns[i].0);
    let of_source = |i: usize| format!("{}[from * {}]", columns[i].0, columns[i].1);
    t.line("#pragma unroll");
    t.line(format!("{each} {{"));
    t.line(format!("    {at}"));
    t.line(format!("    if (at >= {n}) continue;"));
    t.line(format!("    {element} v[c][e] = {};", scaled("v[c][e]", &own)));
    if norm.float {
        if by_four && stored == Elem::BF16 {
            t.line(
                "    *reinterpret_cast<uint2*>(y + oy + at) = \
                 {pack_bf16(v[c][0], v[c][1]), pack_bf16(v[c][2], v[c][3])};",
            );
        } else if by_four {
            t.line(
                "    *reinterpret_cast<float4*>(y + oy + at) = *reinterpret_cast<float4*>(v[c]);",
            );
        } else {
            let stride = t.size(&step.results[0].strides[rank]);
            let value = to_memory(stored, "v[c][0]");
            t.line(format!("    y[oy + at * {stride}] = {value};"));
        }
    }
    if let Some(q) = norm.quantize {
        t.line(format!("    alignas(4) u8 bytes[{width}];"));
        let byte = digit(q, "mul(v[c][e], scales_of[c][e])", "0.0f");
        t.line(format!("    {element} bytes[e] = {byte};"));
        match by_four {
            true => t.line(
                "    *reinterpret_cast<u32*>(codes + oc + at) = bytes[0] | bytes[1] << 8 | \
                 bytes[2] << 16 | static_cast<u32>(bytes[3]) << 24;",
            ),
            false => t.line("    codes[oc + at] = bytes[0];"),
        }
    }
    t.line("}");
    if let Some(q) = norm.quantize.filter(|q| q.padded > q.base) {
        let RowQuantize { base, padded, signed, .. } = *q;
        let value = |x: &str| scaled(&format!("sub({x}, mean)"), &of_source);
        let byte = |x: &str| digit(q, &format!("mul({}, scales[from])", value(x)), "below");
        if digits > 0 {
            t.line("#pragma unroll");
            t.line(format!("for (int i = 0; i < {digits}; ++i) {{"));
            t.line(format!("    const u32 channel = {base}u + i * {threads} + lane;"));
            t.line(format!("    if (channel >= {padded}u) continue;"));
            t.line("    const int from = from_of[i];");
            t.line("    const float below = below_of[i];");
            t.line(format!("    u8 code = {};", if signed { 128 } else { 0 }));
            t.line(format!("    if (from >= 0) code = {};", byte("digits_of[i]")));
        } else {
            t.line(format!(
                "for (u32 channel = {base}u + lane; channel < {padded}u; channel += {threads}u) {{"
            ));
            source_channel(&mut t, q, first_table);
            let x = format!("x[ox + from * {step_x}]");
            t.line(format!("    if (from >= 0) code = {};", byte(&x)));
        }
        t.line("    codes[oc + channel] = code;");
        t.line("}");
    }
    let ops = x.count() * Dim::from(8i64);
    let block = if threads == 32 { 32 * WARPS } else { WIDE };
    Ok(t.finish(block, items, rows.count(), ops))
}

/// Declares `row` and `lane` of a row that has `threads` threads; gives the rows of a block.
fn row_of_block(t: &mut Text, threads: i64) -> u32 {
    if threads == 32 {
        t.line(format!("const u32 row = blockIdx.x * {WARPS}u + threadIdx.x / 32;"));
        t.line("const int lane = threadIdx.x % 32;");
    } else {
        t.line("const u32 row = blockIdx.x;");
        t.line("const int lane = threadIdx.x;");
    }
    t.line("if (row >= work) return;");
    if threads == 32 { WARPS } else { 1 }
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
    let items = row_of_block(&mut t, 32);
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
