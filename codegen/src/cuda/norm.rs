//! Layer and root-mean-square norms with their quantisation, a warp or a block a row.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{NormKind, RowQuantize, Step, View};
use fqc_ir::types::Elem;

use super::elementwise::{digit, source_channel};
use super::expr::{self, to_memory};
use super::text::{Call, Text, divides};
use crate::spec::Nest;

/// Rows of a block that has a warp a row.
const WARPS: u32 = 4;

/// Longest row that one warp takes; longer ones have a block of [`WIDE`] threads, or of twice as many.
const WARP_ROW: i64 = 1024;
const WIDE: i64 = 256;

/// Elements of a row that a thread keeps in registers, at most.
const KEPT: i64 = 32;

/// Digits of a tail that a thread prepares for while other kernels still run, at most.
const DIGITS: i64 = 4;

/// Registers of a multiprocessor, and blocks of a norm that it has at most.
const REGISTERS: i64 = 65_536;
const MOST_RESIDENT: i64 = 8;

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
    let threads = match n {
        ..=WARP_ROW => 32,
        _ if n <= WIDE * KEPT => WIDE,
        _ => 2 * WIDE,
    };
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
    // A block that has a row stays and takes one after the other: the tables of long rows are more bytes than
    // the row, and stay in registers.
    let stays = threads != 32;
    let items = if stays { 1 } else { WARPS };
    t.line(format!("const int lane = threadIdx.x % {threads};"));
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
    let step_x = t.size(&x.strides[rank]);
    t.line(format!("alignas(16) float next[{chunks}][{width}];"));
    t.line("const auto fetch = [&](u32 row) {");
    t.unravel("f", "row", &rows, &names[..1]);
    t.line("#pragma unroll");
    t.line(format!("{each} {{"));
    t.line(format!("    {at}"));
    t.line(format!("    if (at >= {n}) {{ {element} next[c][e] = 0.0f; continue; }}"));
    match by_four {
        true => t.line(
            "    *reinterpret_cast<float4*>(next[c]) = *reinterpret_cast<const float4*>(x + ox + at);",
        ),
        false => t.line(format!("    next[c][0] = x[ox + at * {step_x}];")),
    }
    t.line("}");
    t.line("};");
    t.line(format!("u32 row = blockIdx.x * {items}u + threadIdx.x / {threads};"));
    t.line("int slot = 0;");
    t.line("if (row >= work) return;");
    t.line("fetch(row);");
    t.line(if stays { "for (; row < work; row += gridDim.x) {" } else { "{" });
    t.unravel("i", "row", &rows, &names);
    t.line(format!("alignas(16) float v[{chunks}][{width}];"));
    t.line("float sum = 0.0f;");
    t.line("#pragma unroll");
    t.line(format!("{each} {{ {element} {{ v[c][e] = next[c][e]; sum = add(sum, v[c][e]); }} }}"));
    if digits > 0 {
        t.line(format!("float digits_of[{digits}];"));
        t.line("#pragma unroll");
        t.line(format!(
            "for (int i = 0; i < {digits}; ++i) \
             digits_of[i] = from_of[i] >= 0 ? x[ox + from_of[i] * {step_x}] : 0.0f;"
        ));
    }
    if stays {
        t.line("if (row + gridDim.x < work) fetch(row + gridDim.x);");
    }
    match norm.kind {
        NormKind::Layer => {
            t.line(format!("const float mean = div(row_sum<{threads}>(sum, slot), {n}.0f);"));
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
        "const float inverse_root = div(1.0f, square_root(add(div(row_sum<{threads}>(squares, slot), \
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
    t.line("}");
    let ops = x.count() * Dim::from(8i64);
    let block = if stays { threads as u32 } else { 32 * WARPS };
    let call = t.finish(block, items, rows.count(), ops);
    // What a thread keeps of this row, the next and the tables, and what it computes with.
    let registers = chunks * width * (2 + columns.len() as i64) + 3 * digits + 40;
    let resident = (REGISTERS / (i64::from(block) * registers)).clamp(1, MOST_RESIDENT);
    Ok(if stays { call.resident(resident as u32) } else { call })
}
