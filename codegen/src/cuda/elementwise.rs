//! Kernels of independent elements: expressions, quantising of rows, reads through indices, counting.
//! A thread has one element, or four where all views are contiguous and aligned along the last axis.

use fqc_ir::Expr;
use fqc_ir::dim::{self, Dim};
use fqc_ir::plan::{RowQuantize, Step, View};
use fqc_ir::quant::q_max;
use fqc_ir::types::Elem;

use super::expr::{self, from_memory, to_memory};
use super::text::{Call, THREADS, Text, divides};
use crate::spec::Nest;

/// Elements of a thread where they can be read together.
const VECTOR: i64 = 4;

/// An element-wise step.
pub fn pointwise(step: &Step, expr: &Expr, elems: &[Elem]) -> Result<Call, String> {
    let mut t = Text::new(step);
    t.line(format!("const u32 item = blockIdx.x * {THREADS}u + threadIdx.x;"));
    t.line("if (item >= work) return;");
    let at: Vec<usize> = (0..elems.len()).collect();
    let (work, ops) = body(&mut t, step, expr, elems, &at, &Dim::zero())?;
    Ok(t.finish(THREADS, THREADS, work, ops))
}

/// The body of one element-wise step, given `item`. The words of its views are named by `at`; its result
/// lies `inside` elements behind what the word of it says. Gives the number of items and of operations.
fn body(
    t: &mut Text,
    step: &Step,
    expr: &Expr,
    elems: &[Elem],
    at: &[usize],
    inside: &Dim,
) -> Result<(Dim, Dim), String> {
    let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
    let (nest, vector) = nest(&views, elems);
    for (i, view) in views.iter().enumerate() {
        t.pointer(&format!("p{i}"), at[i], view, elems[i], i + 1 == views.len());
    }
    if *inside != Dim::zero() {
        let inside = t.size(inside);
        t.line(format!("p{} += {inside};", views.len() - 1));
    }
    let names: Vec<String> = (0..views.len()).map(|i| format!("o{i}")).collect();
    let lanes = if vector { VECTOR as usize } else { 1 };
    let items = items(&nest, vector);
    t.unravel("i", "item", &items, &names);
    let args = views.len() - 1;
    let repeats = |i: usize| nest.strides[i].last().and_then(Dim::as_const) == Some(0);
    for i in 0..args {
        if vector && !repeats(i) {
            t.line(format!("const float4 v{i} = *reinterpret_cast<const float4*>(p{i} + o{i});"));
        }
    }
    let mut values = Vec::new();
    for lane in ["x", "y", "z", "w"].into_iter().take(lanes) {
        let mut named = Vec::new();
        for (i, &elem) in elems.iter().enumerate().take(args) {
            let value = match vector && !repeats(i) {
                true => format!("v{i}.{lane}"),
                false => from_memory(elem, &format!("p{i}[o{i}]")),
            };
            let name = format!("x{i}{lane}");
            t.line(format!("const {} {name} = {value};", expr::register_type(elem)));
            named.push((name, elem));
        }
        let (text, elem) = expr::print(expr, &named)?;
        if elem != elems[args] {
            return Err(format!("the expression gives {elem}, the result is {}", elems[args]));
        }
        values.push(text);
    }
    if vector {
        let four = if elems[args] == Elem::BF16 { "ushort4" } else { "float4" };
        let values: Vec<String> = values.iter().map(|v| to_memory(elems[args], v)).collect();
        t.line(format!("const {four} y = {{{}}};", values.join(", ")));
        t.line(format!("*reinterpret_cast<{four}*>(p{args} + o{args}) = y;"));
    } else {
        t.line(format!("p{args}[o{args}] = {};", to_memory(elems[args], &values[0])));
    }
    let ops = views[args].count() * Dim::from(expr.size() as i64);
    Ok((items.count(), ops))
}

/// The elements of a step over its views, and whether a thread has four.
fn nest(views: &[&View], elems: &[Elem]) -> (Nest, bool) {
    let strides: Vec<&[Dim]> = views.iter().map(|v| v.strides.as_slice()).collect();
    let nest = Nest::new(&views[views.len() - 1].shape, &strides).collapse();
    let vector = can_vectorise(&nest, views, elems);
    (nest, vector)
}

/// What the threads have, one each.
fn items(nest: &Nest, vector: bool) -> Nest {
    let mut items = nest.clone();
    if let (true, Some(last)) = (vector, items.shape.len().checked_sub(1)) {
        items.shape[last] = items.shape[last].floor_div(&Dim::from(VECTOR));
        for view in &mut items.strides {
            view[last] = view[last].clone() * Dim::from(VECTOR);
        }
    }
    items
}

/// Element-wise steps that do not depend on each other as one launch. `step` has the arguments of all,
/// then the buffers that they write.
pub fn together(step: &Step, parts: &[(&Step, &Expr, Vec<Elem>)]) -> Result<Call, String> {
    let mut t = Text::new(step);
    let (mut ops, mut blocks) = (Dim::zero(), Dim::zero());
    let mut args = 0;
    t.line("const u32 block = blockIdx.x;");
    for (part, expr, elems) in parts {
        let views: Vec<&View> = part.args.iter().chain(&part.results).collect();
        let (nest, vector) = nest(&views, elems);
        let count = items(&nest, vector).count();
        let first = t.size(&blocks);
        blocks = blocks + count.ceil_div(i64::from(THREADS));
        let (end, count) = (t.size(&blocks), t.size(&count));
        t.line(format!("if (block < {end}) {{"));
        t.line(format!(
            "const u32 item = (block - static_cast<u32>({first})) * {THREADS}u + threadIdx.x;"
        ));
        t.line(format!("if (item >= {count}) return;"));
        let mut at: Vec<usize> = (args..args + part.args.len()).collect();
        args += part.args.len();
        let own = &part.results[0];
        let index = step.results.iter().position(|r| r.buffer == own.buffer);
        let index = index.ok_or("a part writes to no result")?;
        at.push(step.args.len() + index);
        let inside = own.offset.clone() - step.results[index].offset.clone();
        ops = ops + body(&mut t, part, expr, elems, &at, &inside)?.1;
        t.line("return;");
        t.line("}");
    }
    Ok(t.finish(THREADS, 1, blocks, ops))
}

/// Whether four neighbours along the last axis are one aligned load in every view.
fn can_vectorise(nest: &Nest, views: &[&View], elems: &[Elem]) -> bool {
    let Some(last) = nest.shape.len().checked_sub(1) else { return false };
    let even = |dim: &Dim| divides(VECTOR, dim);
    even(&nest.shape[last])
        && (0..views.len()).all(|i| {
            let (outer, step) = nest.strides[i].split_at(last);
            match step[0].as_const() {
                Some(0) => i + 1 < views.len(),
                Some(1) => {
                    let elem =
                        elems[i] == Elem::F32 || elems[i] == Elem::BF16 && i + 1 == views.len();
                    elem && even(&views[i].offset) && outer.iter().all(even)
                }
                _ => false,
            }
        })
}

/// Quantise-and-flatten: a thread has a byte or four; a tail channel computes its source again.
pub fn quantize(step: &Step, expr: &Expr, q: &RowQuantize, elems: &[Elem]) -> Result<Call, String> {
    let inputs = step.args.len().checked_sub(3).ok_or("it has no tables")?;
    let out = &step.results[0];
    let rank = out.shape.len() - 1;
    let views: Vec<&View> = step.args[..inputs].iter().chain([out]).collect();
    let outer: Vec<&[Dim]> = views.iter().map(|v| &v.strides[..rank]).collect();
    let rows = Nest::new(&out.shape[..rank], &outer).collapse();
    let together = whole_quarters(q, &views, elems, &rows);
    let mut t = Text::new(step);
    t.line(format!("const u32 item = blockIdx.x * {THREADS}u + threadIdx.x;"));
    t.line("if (item >= work) return;");
    let share = if together { VECTOR as usize } else { 1 };
    let items = q.padded / share;
    t.line(format!("const u32 first = item % {items}u * {share}u, row = item / {items}u;"));
    for (i, view) in step.args.iter().enumerate().take(inputs) {
        t.pointer(&format!("p{i}"), i, view, elems[i], false);
    }
    t.pointer("out", step.args.len(), out, Elem::U8, true);
    let mut names: Vec<String> = (0..inputs).map(|i| format!("o{i}")).collect();
    names.push("o".into());
    t.unravel("i", "row", &rows, &names);
    t.line(format!("alignas(4) u8 bytes[{share}];"));
    if together {
        // The base channels, four with one load.
        t.line(format!("if (first < {}u) {{", q.base));
        t.line(format!(
            "    const float4 scales = *reinterpret_cast<const float4*>(\
             reinterpret_cast<const float*>(a.w[{inputs}]) + first);"
        ));
        let repeats = |i: usize| step.args[i].strides[rank].as_const() == Some(0);
        for (i, &elem) in elems.iter().enumerate().take(inputs) {
            let read = match repeats(i) {
                true => {
                    let one = from_memory(elem, &format!("p{i}[o{i}]"));
                    format!("const {} v{i} = {one};", expr::register_type(elem))
                }
                false => format!(
                    "const float4 v{i} = *reinterpret_cast<const float4*>(p{i} + o{i} + first);"
                ),
            };
            t.line(format!("    {read}"));
        }
        for (at, lane) in ["x", "y", "z", "w"].into_iter().enumerate() {
            let name = |i: usize| if repeats(i) { format!("v{i}") } else { format!("v{i}.{lane}") };
            let named: Vec<_> = (0..inputs).map(|i| (name(i), elems[i])).collect();
            let (text, _) = expr::print(expr, &named)?;
            let code = digit(q, &format!("mul({text}, scales.{lane})"), "0.0f");
            t.line(format!("    bytes[{at}] = {code};"));
        }
        t.line("} else");
    }
    t.line(format!("for (u32 e = 0; e < {share}; ++e) {{"));
    t.line("const u32 channel = first + e;");
    source_channel(&mut t, q, inputs);
    t.line("if (from >= 0) {");
    let mut named = Vec::new();
    for (i, &elem) in elems.iter().enumerate().take(inputs) {
        let stride = t.size(&step.args[i].strides[rank]);
        let value = from_memory(elem, &format!("p{i}[o{i} + from * {stride}]"));
        t.line(format!("    const {} x{i} = {value};", expr::register_type(elem)));
        named.push((format!("x{i}"), elem));
    }
    let (text, elem) = expr::print(expr, &named)?;
    if elem != Elem::F32 {
        return Err(format!("{elem} is quantised; cast to f32 before"));
    }
    t.line(format!("    code = {};", digit(q, &format!("mul({text}, inverse[from])"), "below")));
    t.line("}");
    t.line("bytes[e] = code;");
    t.line("}");
    match together {
        true => {
            t.line("*reinterpret_cast<u32*>(out + o + first) = *reinterpret_cast<u32*>(bytes);")
        }
        false => t.line("out[o + first] = bytes[0];"),
    }
    let work = rows.count() * Dim::from(items);
    let ops = out.count() * Dim::from(expr.size() as i64 + 4);
    Ok(t.finish(THREADS, THREADS, work, ops))
}

/// Whether four neighbouring channels of a row are one aligned load in every view: `views` are the
/// arguments and the codes, `rows` their outer axes.
fn whole_quarters(q: &RowQuantize, views: &[&View], elems: &[Elem], rows: &Nest) -> bool {
    let even = |dim: &Dim| divides(VECTOR, dim);
    let last = views.len() - 1;
    q.base.is_multiple_of(VECTOR as usize)
        && q.padded.is_multiple_of(VECTOR as usize)
        && views.iter().enumerate().all(|(i, view)| {
            let step = view.strides.last().and_then(Dim::as_const);
            let aligned = even(&view.offset) && rows.strides[i].iter().all(even);
            match step {
                Some(0) => i < last,
                Some(1) => aligned && (i == last || elems[i] == Elem::F32),
                _ => false,
            }
        })
}

/// Declares `inverse`, the source channel `from` of `channel` (-1 in the padding), what lies
/// `below` its digit, and `code` with the code of zero. The tables are arguments `first` on.
pub fn source_channel(t: &mut Text, q: &RowQuantize, first: usize) {
    let RowQuantize { base, tail, signed, .. } = *q;
    t.line(format!("const float* const inverse = reinterpret_cast<const float*>(a.w[{first}]);"));
    t.line(format!("int from = channel < {base}u ? static_cast<int>(channel) : -1;"));
    t.line("float below = 0.0f;");
    if tail > 0 {
        t.line(format!("if (channel >= {base}u && channel < {}u) {{", base + tail));
        t.line(format!(
            "    from = reinterpret_cast<const int*>(a.w[{}])[channel - {base}u];",
            first + 1
        ));
        t.line(format!(
            "    below = reinterpret_cast<const float*>(a.w[{}])[channel - {base}u];",
            first + 2
        ));
        t.line("}");
    }
    t.line(format!("u8 code = {};", if signed { 128 } else { 0 }));
}

/// The byte of a digit.
pub fn digit(q: &RowQuantize, scaled: &str, below: &str) -> String {
    let top = expr::float(q_max(q.bits, q.signed) as f32);
    format!("digit<{}>({scaled}, {below}, {top})", q.signed)
}

/// Reads of whole slices through indices: one thread an element.
pub fn gather(step: &Step, axis: usize, index_rank: usize, elems: &[Elem]) -> Result<Call, String> {
    let [data, indices] = step.args.as_slice() else {
        return Err("it wants data and indices".into());
    };
    let out = &step.results[0];
    let post = data.shape.len() - axis - 1;
    let zeros = |n: usize| vec![Dim::zero(); n];
    let strides = [
        [&data.strides[..axis], &zeros(index_rank), &data.strides[axis + 1..]].concat(),
        [&zeros(axis), &indices.strides[..], &zeros(post)].concat(),
        out.strides.clone(),
    ];
    let taken = (&data.shape[axis], &data.strides[axis]);
    indexed(step, &strides, taken, elems)
}

/// Reads of single elements through indices of the result's shape.
pub fn gather_elements(step: &Step, axis: usize, elems: &[Elem]) -> Result<Call, String> {
    let [data, indices] = step.args.as_slice() else {
        return Err("it wants data and indices".into());
    };
    let mut strides = data.strides.clone();
    strides[axis] = Dim::zero();
    let strides = [strides, indices.strides.clone(), step.results[0].strides.clone()];
    indexed(step, &strides, (&data.shape[axis], &data.strides[axis]), elems)
}

/// `strides` of data, indices and result over the result's shape; `taken` is the size and the stride
/// of the axis that the index picks from.
fn indexed(
    step: &Step,
    strides: &[Vec<Dim>; 3],
    taken: (&Dim, &Dim),
    elems: &[Elem],
) -> Result<Call, String> {
    if !matches!(elems[1], Elem::I64 | Elem::I32) {
        return Err("indices are i64 or i32".into());
    }
    let out = &step.results[0];
    let views: Vec<&[Dim]> = strides.iter().map(Vec::as_slice).collect();
    let nest = Nest::new(&out.shape, &views).collapse();
    let mut t = Text::new(step);
    t.line(format!("const u32 item = blockIdx.x * {THREADS}u + threadIdx.x;"));
    t.line("if (item >= work) return;");
    t.pointer("data", 0, &step.args[0], elems[0], false);
    t.pointer("indices", 1, &step.args[1], elems[1], false);
    t.pointer("out", 2, out, elems[0], true);
    t.unravel("i", "item", &nest, &["o0".into(), "o1".into(), "o2".into()]);
    let (n, stride) = (t.size(taken.0), t.size(taken.1));
    t.line(format!("const i64 at = checked_index(indices[o1], {n}, status);"));
    t.line(format!("out[o2] = data[o0 + at * {stride}];"));
    Ok(t.finish(THREADS, THREADS, nest.count(), Dim::zero()))
}

/// 0, 1, 2, ….
pub fn iota(step: &Step) -> Call {
    let out = &step.results[0];
    let mut t = Text::new(step);
    t.line(format!("const u32 item = blockIdx.x * {THREADS}u + threadIdx.x;"));
    t.line("if (item >= work) return;");
    t.pointer("out", 0, out, Elem::I64, true);
    let stride = t.size(out.strides.last().unwrap_or(&Dim::one()));
    t.line(format!("out[item * {stride}] = item;"));
    t.finish(THREADS, THREADS, out.count(), Dim::zero())
}

/// Sizes as data.
pub fn dims(step: &Step, values: &[Dim]) -> Call {
    let out = &step.results[0];
    let mut t = Text::new(step);
    t.line("if (threadIdx.x != 0) return;");
    t.pointer("out", 0, out, Elem::I64, true);
    let stride = t.size(out.strides.last().unwrap_or(&Dim::one()));
    for (i, value) in values.iter().enumerate() {
        let value = t.size(value);
        t.line(format!("out[{i} * {stride}] = {value};"));
    }
    t.finish(32, 1, dim::product([&Dim::one()]), Dim::zero())
}
