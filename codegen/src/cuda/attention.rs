//! Attention in one pass over the keys with a running softmax: on tensor cores where products may be
//! in bf16 (`kernels/cuda/attention_bf16.cuh`), else in f32 as follows. A block has sixteen queries of one
//! head; eight threads share a query, each with its own keys of a tile and its own channels of the
//! result.

use fqc_ir::dim::{self, Dim};
use fqc_ir::plan::{Kernel, Precision, RowQuantize, Step, View};
use fqc_ir::quant::q_max;
use fqc_ir::types::Elem;

use super::text::{Call, Text, divides};
use super::{Arch, attention_sm90, expr, gemm};

/// Queries of a block.
const QUERIES: i64 = 16;
/// Threads that share a query.
const SHARE: i64 = 8;

/// Largest head, in channels.
const MAX_HEAD: i64 = 256;

/// Attention as a step has it.
pub struct Attention {
    pub scale: f32,
    pub causal: bool,
    pub mask: bool,
    pub precision: Precision,
}

/// The kernel of a step, and the one beside it that an attention may have.
pub struct Forms {
    pub call: Call,
    /// The one for many queries, of the same arguments and sizes.
    pub many: Option<gemm::Instance>,
}

impl From<Call> for Forms {
    fn from(call: Call) -> Self {
        Forms { call, many: None }
    }
}

/// Queries of a block whose products are in bf16, and its threads.
const TILE: i64 = 64;
const TILE_THREADS: u32 = 128;

/// Whether the tensor cores take it: bf16 is allowed, heads are whole tiles, rows are aligned.
fn fits(spec: &Attention, views: &[&View], elem: Elem) -> bool {
    let together = if elem == Elem::F32 { 4 } else { 8 };
    let whole = |v: &View| v.shape[3].as_const().is_some_and(|n| n % 16 == 0 && n <= 128);
    let aligned =
        |v: &View, by: i64| divides(by, &v.offset) && v.strides[..3].iter().all(|s| divides(by, s));
    spec.precision == Precision::Bf16
        && views[..3].iter().all(|v| whole(v) && aligned(v, together))
        && aligned(views[views.len() - 1], 4)
}

/// Whether the tensor cores take an attention whose queries, keys and values are of `elem`.
pub fn in_tiles(step: &Step, elem: Elem) -> bool {
    let Kernel::Attention { scale, causal, mask, precision } = step.kernel else { return false };
    let spec = Attention { scale, causal, mask, precision };
    let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
    fits(&spec, &views, elem)
}

/// The kernel of an attention whose result is quantised into `codes`. Its arguments are those of both, but
/// for the floats between them.
pub fn with_codes(
    step: &Step,
    codes: &View,
    quantize: &RowQuantize,
    elem: Elem,
    arch: Arch,
) -> Result<Forms, String> {
    let Kernel::Attention { scale, causal, mask, precision } = step.kernel else {
        return Err("it is no attention".into());
    };
    let spec = &Attention { scale, causal, mask, precision };
    let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
    if !fits(spec, &views, elem) {
        return Err("its heads do not fit the tensor cores".into());
    }
    tiled(step, spec, &views, elem, Some((codes, quantize)), arch)
}

/// The kernels that multiply in bf16.
fn tiled(
    step: &Step,
    spec: &Attention,
    views: &[&View],
    elem: Elem,
    codes: Option<(&View, &RowQuantize)>,
    arch: Arch,
) -> Result<Forms, String> {
    let (q, k, v) = (views[0], views[1], views[2]);
    let (Some(depth), Some(width)) = (q.shape[3].as_const(), v.shape[3].as_const()) else {
        return Err("the size of a head is not constant".into());
    };
    let hopper = arch == Arch::Sm90a && attention_sm90::fits(spec, views, elem);
    let sizes = if hopper { attention_sm90::sizes(views) } else { vec![] };
    let words =
        step.args.len() + if codes.is_some() { 4 } else { step.results.len() } + sizes.len();
    let mut t = Text::with_arguments(words);
    let heads = t.size(&q.shape[1]);
    let s = t.size(&q.shape[2]);
    t.line(format!("const u32 blocks = (static_cast<u32>({s}) + {TILE} - 1) / {TILE};"));
    t.line(format!(
        "const u32 pair = blockIdx.x / blocks, batch = pair / static_cast<u32>({heads});"
    ));
    t.line(format!("const u32 head = pair % static_cast<u32>({heads});"));
    t.line(format!("Head<{}> h = {{}};", expr::memory_type(elem)));
    t.line("Codes codes = {};");
    let result = of_head(&mut t, step, spec, views, elem, codes);
    let (causal, scale, mask) = (spec.causal, expr::float(spec.scale), added(spec, views));
    t.line(format!(
        "attention_bf16<{depth}, {width}, {causal}, Mask::{mask}, Result::{result}>(h, codes, \
         blockIdx.x % blocks * {TILE}, {scale});"
    ));
    let blocks = q.shape[2].ceil_div(TILE);
    let work = dim::product([&q.shape[0], &q.shape[1], &blocks]);
    let mut call = t.finish(TILE_THREADS, 1, work, ops(q, k, depth + width));
    let mut many = None;
    if hopper {
        let mut t = Text::with_arguments(words);
        t.line("const u32 batch = block.batch, head = block.head;");
        let result = of_head(&mut t, step, spec, views, elem, codes);
        many = Some(attention_sm90::instance(spec, depth, mask, result, t)?);
        call.dims.splice(0..0, sizes);
    }
    Ok(Forms { call, many })
}

/// What is added to the scores, as a `Mask`.
pub fn added(spec: &Attention, views: &[&View]) -> &'static str {
    match spec.mask {
        false => "kNone",
        true if views[3].strides[2] == Dim::zero() => "kByKey",
        true => "kFull",
    }
}

/// Fills `h` and `codes`, a `Head` and `Codes`, for `batch` and `head`; gives the `Result`.
fn of_head(
    t: &mut Text,
    step: &Step,
    spec: &Attention,
    views: &[&View],
    elem: Elem,
    codes: Option<(&View, &RowQuantize)>,
) -> &'static str {
    let (q, k, v, out) = (views[0], views[1], views[2], views[views.len() - 1]);
    let args = step.args.len();
    let (heads, groups) = (t.size(&q.shape[1]), t.size(&k.shape[1]));
    let (s, n) = (t.size(&q.shape[2]), t.size(&k.shape[2]));
    t.line(format!(
        "const u32 group = head / (static_cast<u32>({heads}) / static_cast<u32>({groups}));"
    ));
    let mut all = vec![("q", 0, q, "head"), ("k", 1, k, "group"), ("v", 2, v, "group")];
    all.extend(spec.mask.then(|| ("mask", 3, views[3], "head")));
    all.extend(codes.is_none().then_some(("y", args, out, "head")));
    for (name, index, view, of) in all {
        let elem = if index < 3 { elem } else { Elem::F32 };
        t.pointer(name, index, view, elem, name == "y");
        let strides: Vec<String> = view.strides.iter().map(|s| t.size(s)).collect();
        t.line(format!("h.{name} = {name} + batch * {} + {of} * {};", strides[0], strides[1]));
        t.line(format!("h.{name}_row = {};", strides[2]));
        if name == "mask" {
            t.line(format!("h.mask_key = {};", strides[3]));
        }
    }
    t.line(format!("h.queries = {s};"));
    t.line(format!("h.keys = {n};"));
    let Some((codes, q)) = codes else { return "kFloats" };
    t.pointer("bytes", args + 3, codes, Elem::U8, true);
    t.line(format!("codes.out = bytes + static_cast<i64>(batch) * {s} * {};", q.padded));
    for (i, (name, ty)) in
        [("inverse", "float"), ("source", "int"), ("below", "float")].iter().enumerate()
    {
        t.line(format!("codes.{name} = reinterpret_cast<const {ty}*>(a.w[{}]);", args + i));
    }
    t.line(format!("codes.first = head * {};", v.shape[3]));
    let (base, tail, padded) = (q.base, q.tail, q.padded);
    for (name, value) in [("base", base), ("tail", tail), ("padded", padded)] {
        let value = t.run_time_size(&Dim::from(value));
        t.line(format!("codes.{name} = {value};"));
    }
    t.line(format!("codes.top = {};", expr::float(q_max(q.bits, q.signed) as f32)));
    if q.signed { "kSigned" } else { "kUnsigned" }
}

fn ops(q: &View, k: &View, channels: i64) -> Dim {
    let pairs = dim::product([&q.shape[0], &q.shape[1], &q.shape[2], &k.shape[2]]);
    pairs * Dim::from(2 * channels)
}

/// The kernel of a step.
pub fn attention(
    step: &Step,
    spec: &Attention,
    elems: &[Elem],
    arch: Arch,
) -> Result<Forms, String> {
    let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
    let whole = elems[3..].iter().all(|e| *e == Elem::F32);
    let alike = elems[..3].iter().all(|e| *e == elems[0]);
    if !whole || !alike || views.iter().any(|v| v.shape.len() != 4) {
        return Err("attention is of f32 and rank 4; cast before".into());
    }
    if fits(spec, &views, elems[0]) {
        return tiled(step, spec, &views, elems[0], None, arch);
    }
    if elems[0] != Elem::F32 {
        return Err("attention by plain arithmetic is of f32; cast before".into());
    }
    plain(step, spec, &views).map(Forms::from)
}

/// The kernel that multiplies in f32.
fn plain(step: &Step, spec: &Attention, views: &[&View]) -> Result<Call, String> {
    let (q, k, v, out) = (views[0], views[1], views[2], views[views.len() - 1]);
    let (Some(depth), Some(width)) = (q.shape[3].as_const(), v.shape[3].as_const()) else {
        return Err("the size of a head is not constant".into());
    };
    if depth.max(width) > MAX_HEAD {
        return Err(format!("heads of {} channels, at most {MAX_HEAD}", depth.max(width)));
    }
    let keys = if depth + width > 256 { 16 } else { 32 };
    let (own_keys, own_channels) = (keys / SHARE, (width + SHARE - 1) / SHARE);
    let mut t = Text::new(step);
    let heads = t.size(&q.shape[1]);
    let groups = t.size(&k.shape[1]);
    let (s, n) = (t.size(&q.shape[2]), t.size(&k.shape[2]));
    for (name, index, view, writes) in [
        ("q", 0, q, false),
        ("k", 1, k, false),
        ("v", 2, v, false),
        ("y", views.len() - 1, out, true),
    ] {
        t.pointer(name, index, view, Elem::F32, writes);
    }
    t.line(format!("__shared__ float queries[{QUERIES}][{}];", depth + 1));
    t.line(format!("__shared__ float keys[{keys}][{}];", depth + 1));
    t.line(format!("__shared__ float values[{keys}][{width}];"));
    t.line(format!("__shared__ float weights[{QUERIES}][{}];", keys + 1));
    t.line(format!("const u32 blocks = (static_cast<u32>({s}) + {QUERIES} - 1) / {QUERIES};"));
    t.line(format!(
        "const u32 pair = blockIdx.x / blocks, batch = pair / static_cast<u32>({heads});"
    ));
    t.line(format!("const u32 head = pair % static_cast<u32>({heads});"));
    t.line(format!(
        "const u32 group = head / (static_cast<u32>({heads}) / static_cast<u32>({groups}));"
    ));
    t.line(format!("const int first = blockIdx.x % blocks * {QUERIES};"));
    let strides = |t: &mut Text, v: &View| -> Vec<String> {
        v.strides[..3].iter().map(|s| t.size(s)).collect()
    };
    let (sq, sk, sv, sy) =
        (strides(&mut t, q), strides(&mut t, k), strides(&mut t, v), strides(&mut t, out));
    t.line(format!("q += batch * {} + head * {};", sq[0], sq[1]));
    t.line(format!("k += batch * {} + group * {};", sk[0], sk[1]));
    t.line(format!("v += batch * {} + group * {};", sv[0], sv[1]));
    t.line(format!("y += batch * {} + head * {};", sy[0], sy[1]));
    if spec.mask {
        t.pointer("mask", 3, views[3], Elem::F32, false);
        let sm: Vec<String> = views[3].strides.iter().map(|s| t.size(s)).collect();
        t.line(format!("mask += batch * {} + head * {};", sm[0], sm[1]));
    }
    let threads = QUERIES * SHARE;
    let scale = expr::float(spec.scale);
    t.line(format!("for (int i = threadIdx.x; i < {}; i += {threads}) {{", QUERIES * depth));
    t.line(format!("    const int row = i / {depth}, c = i % {depth};"));
    t.line(format!(
        "    queries[row][c] = first + row < {s} ? mul(q[(first + row) * {} + c], {scale}) : 0.0f;",
        sq[2]
    ));
    t.line("}");
    t.line(format!("const int own = threadIdx.x / {SHARE}, part = threadIdx.x % {SHARE};"));
    t.line("const int query = first + own;");
    t.line(format!("i64 visible = {n};"));
    if spec.causal {
        // Query i sees keys up to i + keys - queries.
        t.line(format!("const i64 shift = {n} - {s};"));
        t.line(format!("const i64 last = first + {QUERIES} + shift;"));
        t.line("visible = last < visible ? last : visible;");
    }
    t.line(format!("float sums[{own_channels}] = {{}};"));
    t.line("float largest = -__int_as_float(0x7f800000), total = 0.0f;");
    t.line(format!("for (i64 start = 0; start < visible; start += {keys}) {{"));
    t.line("    __syncthreads();");
    for (name, from, channels, stride) in
        [("keys", "k", depth, &sk[2]), ("values", "v", width, &sv[2])]
    {
        t.line(format!(
            "    for (int i = threadIdx.x; i < {}; i += {threads}) {{",
            keys * channels
        ));
        t.line(format!("        const int row = i / {channels}, c = i % {channels};"));
        t.line(format!(
            "        {name}[row][c] = start + row < {n} ? {from}[(start + row) * {stride} + c] : 0.0f;"
        ));
        t.line("    }");
    }
    t.line("    __syncthreads();");
    t.line(format!("    float scores[{own_keys}] = {{}};"));
    t.line(format!("    for (int c = 0; c < {depth}; ++c) {{"));
    t.line("        const float x = queries[own][c];");
    t.line("#pragma unroll");
    t.line(format!(
        "        for (int j = 0; j < {own_keys}; ++j) \
         scores[j] = __fmaf_rn(x, keys[part + {SHARE} * j][c], scores[j]);"
    ));
    t.line("    }");
    t.line("    float best = largest;");
    t.line("#pragma unroll");
    t.line(format!("    for (int j = 0; j < {own_keys}; ++j) {{"));
    t.line(format!("        const i64 key = start + part + {SHARE} * j;"));
    let seen = match spec.causal {
        true => format!("key < {n} && key <= query + shift"),
        false => format!("key < {n}"),
    };
    if spec.mask {
        let sm: Vec<String> = views[3].strides.iter().map(|s| t.size(s)).collect();
        t.line(format!(
            "        if ({seen} && query < {s}) \
             scores[j] = add(scores[j], mask[query * {} + key * {}]);",
            sm[2], sm[3]
        ));
    }
    t.line(format!("        if (!({seen})) scores[j] = -__int_as_float(0x7f800000);"));
    t.line("        best = fmaxf(best, scores[j]);");
    t.line("    }");
    t.line(format!("    for (int step = {SHARE} / 2; step > 0; step /= 2)"));
    t.line("        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));");
    t.line("    const bool none = best == -__int_as_float(0x7f800000);");
    t.line("    const float keep = none ? 1.0f : exponential(sub(largest, best));");
    t.line("    float added = 0.0f;");
    t.line("#pragma unroll");
    t.line(format!("    for (int j = 0; j < {own_keys}; ++j) {{"));
    t.line("        const float w = none ? 0.0f : exponential(sub(scores[j], best));");
    t.line(format!("        weights[own][part + {SHARE} * j] = w;"));
    t.line("        added = add(added, w);");
    t.line("    }");
    t.line("    largest = best;");
    t.line("    total = __fmaf_rn(total, keep, added);");
    t.line("    __syncwarp();");
    t.line("#pragma unroll");
    t.line(format!("    for (int e = 0; e < {own_channels}; ++e) sums[e] = mul(sums[e], keep);"));
    t.line(format!("    for (int j = 0; j < {keys}; ++j) {{"));
    t.line("        const float w = weights[own][j];");
    t.line("#pragma unroll");
    t.line(format!("        for (int e = 0; e < {own_channels}; ++e) {{"));
    t.line(format!("            const int c = part + {SHARE} * e;"));
    let inside = if width % SHARE == 0 { String::new() } else { format!("if (c < {width}) ") };
    t.line(format!("            {inside}sums[e] = __fmaf_rn(w, values[j][c], sums[e]);"));
    t.line("        }");
    t.line("    }");
    t.line("}");
    t.line(format!("for (int step = {SHARE} / 2; step > 0; step /= 2)"));
    t.line("    total = add(total, __shfl_xor_sync(0xffffffffu, total, step));");
    t.line(format!("if (query >= {s}) return;"));
    t.line("const float inverse = div(1.0f, total);");
    t.line("#pragma unroll");
    t.line(format!("for (int e = 0; e < {own_channels}; ++e) {{"));
    t.line(format!("    const int c = part + {SHARE} * e;"));
    t.line(format!("    {inside}y[query * {} + c] = mul(sums[e], inverse);", sy[2]));
    t.line("}");
    let blocks = q.shape[2].ceil_div(QUERIES);
    let work = dim::product([&q.shape[0], &q.shape[1], &blocks]);
    Ok(t.finish(threads as u32, 1, work, ops(q, k, depth + width)))
}
