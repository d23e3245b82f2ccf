//! Matrix products by plain arithmetic: of floats, and of codes with `dp4a`, which every
//! architecture has. A block has 64 x 64 results, a thread 4 x 4; both operands pass through shared
//! memory. Weights are read in the order that `fqc_kernels::pack` gives them for every target.

use fqc_ir::dim::{self, Dim};
use fqc_ir::plan::{Gemm, GemmInput, Step, View};
use fqc_ir::types::Elem;
use fqc_kernels::pack::{BF16_K_ALIGN, DOT, GROUP, HALVES, PAIR};

use super::epilogue::epilogue;
use super::expr::{self, from_memory, to_memory};
use super::text::{Call, Text, divides};
use crate::spec::Nest;

/// Rows and columns of a block.
const TILE: i64 = 64;
/// Words of K of a pass: floats, or four codes each.
const DEPTH: usize = 16;
const THREADS: u32 = 256;

/// A linear layer.
pub fn gemm(step: &Step, gemm: &Gemm, stored: Elem) -> Result<Call, String> {
    let x = &step.args[0];
    let codes = gemm.input != GemmInput::F32;
    let per_word = if codes { DOT } else { 1 };
    let words = gemm.depth.div_ceil(per_word);
    if codes && !(divides(4, &x.strides[0]) && divides(4, &x.offset)) {
        return Err("its rows of codes are not aligned".into());
    }
    let mut t = Text::new(step);
    let m = t.size(&x.shape[0]);
    let pitch = t.size(&x.strides[0]);
    let e = epilogue(step, gemm, stored, 0, true, &mut t)?;
    let n = gemm.n;
    let columns = n.div_ceil(TILE as usize);
    let (word, sum) = if codes { ("u32", "int") } else { ("float", "float") };
    let memory = if codes { "u8" } else { "float" };
    t.line(e.pointers.trim());
    t.line(format!("struct Column {{\n{}    }};", e.members));
    t.line(format!("const {memory}* const x = reinterpret_cast<const {memory}*>(a.w[0]);"));
    let stored_word = if gemm.weight == Elem::BF16 { "u16" } else { word };
    t.line(format!(
        "const {stored_word}* const w = reinterpret_cast<const {stored_word}*>(a.w[1]);"
    ));
    t.line(format!("__shared__ alignas(16) {word} rows[{DEPTH}][{TILE} + 4];"));
    t.line(format!("__shared__ alignas(16) {word} columns[{DEPTH}][{TILE}];"));
    t.line(format!("const i64 first_row = static_cast<i64>(blockIdx.x / {columns}u) * {TILE};"));
    t.line(format!("const int first_column = blockIdx.x % {columns}u * {TILE};"));
    t.line("const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;");
    t.line(format!("{sum} sums[4][4] = {{}};"));
    t.line(format!("for (int k = 0; k < {words}; k += {DEPTH}) {{"));
    t.line("#pragma unroll");
    t.line(format!("    for (int i = threadIdx.x; i < {TILE} * {DEPTH}; i += {THREADS}) {{"));
    t.line(format!("        const int r = i / {DEPTH}, at = k + i % {DEPTH};"));
    let read = match codes {
        true => format!("*reinterpret_cast<const u32*>(x + (first_row + r) * {pitch} + at * 4)"),
        false if gemm.weight == Elem::BF16 => {
            format!("round_bf16(x[(first_row + r) * {pitch} + at])")
        }
        false => format!("x[(first_row + r) * {pitch} + at]"),
    };
    t.line(format!(
        "        rows[i % {DEPTH}][r] = first_row + r < {m} && at < {words} ? {read} : 0;"
    ));
    t.line(format!("        const int c = first_column + i % {TILE}, depth = k + i / {TILE};"));
    t.line(format!(
        "        columns[i / {TILE}][i % {TILE}] = c < {n} && depth < {words} ? {} : 0;",
        weight(gemm)
    ));
    t.line("    }");
    t.line("    __syncthreads();");
    t.line("#pragma unroll");
    t.line(format!("    for (int d = 0; d < {DEPTH}; ++d) {{"));
    for (name, from, at) in [("p", "rows", "ty"), ("q", "columns", "tx")] {
        t.line(format!("        {word} {name}[4];"));
        t.line(format!(
            "        *reinterpret_cast<uint4*>({name}) = \
             *reinterpret_cast<const uint4*>(&{from}[d][{at} * 4]);"
        ));
    }
    let multiply = match codes {
        true => "sums[i][j] = dot(p[i], q[j], sums[i][j]);",
        false => "sums[i][j] = __fmaf_rn(p[i], q[j], sums[i][j]);",
    };
    t.line(format!("        for (int i = 0; i < 4; ++i) for (int j = 0; j < 4; ++j) {multiply}"));
    t.line("    }");
    t.line("    __syncthreads();");
    t.line("}");
    t.line("for (int j = 0; j < 4; ++j) {");
    t.line("    const int column = first_column + tx * 4 + j;");
    t.line(format!("    if (column >= {n}) break;"));
    t.line("    Column t;");
    t.line(e.load.trim());
    t.line("    for (int i = 0; i < 4; ++i) {");
    t.line("        const i64 row = first_row + ty * 4 + i;");
    t.line(format!("        if (row >= {m}) break;"));
    let shift = if gemm.weight == Elem::I4 { " >> 4" } else { "" };
    t.line(format!("        const {sum} acc = sums[i][j]{shift};"));
    for (name, place) in &e.rows {
        t.line(format!("        const float {name} = {place};"));
    }
    t.line(e.apply.trim());
    t.line(format!("        out[{}] = {};", e.place, to_memory(stored, "result")));
    t.line("    }");
    t.line("}");
    let rows = x.shape[0].ceil_div(TILE);
    let ops = x.shape[0].clone() * Dim::from(2 * n * gemm.depth);
    Ok(t.finish(THREADS, 1, rows * Dim::from(columns), ops))
}

/// The word of the packed weight at `depth` and column `c`.
fn weight(gemm: &Gemm) -> String {
    let rows = gemm.k;
    match gemm.weight {
        Elem::F32 => {
            format!("w[(static_cast<i64>(c / {GROUP}) * {rows} + depth) * {GROUP} + c % {GROUP}]")
        }
        Elem::BF16 => {
            let pairs = rows.next_multiple_of(BF16_K_ALIGN) / PAIR;
            let word = format!(
                "(static_cast<i64>(c / {GROUP}) * {pairs} + depth / {PAIR}) * {GROUP} + c % {GROUP}"
            );
            format!("bf16_to_f32(w[({word}) * {PAIR} + depth % {PAIR}])")
        }
        Elem::I4 => {
            // A byte has the codes of two neighbouring lines; they come out times sixteen.
            let lines = rows / DOT / HALVES;
            let at = format!(
                "(static_cast<i64>(c / {GROUP}) * {lines} + depth / {HALVES}) * {GROUP} + c % {GROUP}"
            );
            format!("(w[{at}] << (depth % {HALVES} != 0 ? 0 : 4)) & 0xf0f0f0f0u")
        }
        _ => format!(
            "w[(static_cast<i64>(c / {GROUP}) * {} + depth) * {GROUP} + c % {GROUP}]",
            rows / DOT
        ),
    }
}

/// A batched product of two computed values: a block has 16 x 16 results.
pub fn matmul(step: &Step, elems: &[Elem]) -> Result<Call, String> {
    let [x, y] = step.args.as_slice() else {
        return Err("it wants two arguments".into());
    };
    let out = &step.results[0];
    let batch = out.shape.len().checked_sub(2).ok_or("its rank is below 2")?;
    if elems.iter().any(|e| *e != elems[0] || *e == Elem::Bool) {
        return Err("a product is of numbers of one type".into());
    }
    let elem = elems[0];
    let ty = expr::register_type(elem);
    let views: [&View; 3] = [x, y, out];
    let outer: Vec<&[Dim]> = views.iter().map(|v| &v.strides[..batch]).collect();
    let nest = Nest::new(&out.shape[..batch], &outer).collapse();
    let mut t = Text::new(step);
    let sizes = [&out.shape[batch], &out.shape[batch + 1], &x.shape[batch + 1]];
    let [m, n, k] = sizes.map(|d| t.size(d));
    let strides = views.map(|v| [0, 1].map(|i| t.size(&v.strides[batch + i])));
    t.pointer("x", 0, x, elem, false);
    t.pointer("y", 1, y, elem, false);
    t.pointer("out", 2, out, elem, true);
    t.line(format!("__shared__ {ty} p[16][17], q[16][17];"));
    t.line(format!("const u32 across = (static_cast<u32>({n}) + 15) / 16, down = (static_cast<u32>({m}) + 15) / 16;"));
    t.line(
        "const u32 tile = blockIdx.x % (across * down), product = blockIdx.x / (across * down);",
    );
    t.unravel("i", "product", &nest, &["ox".into(), "oy".into(), "oo".into()]);
    t.line("const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;");
    t.line("const i64 row = tile / across * 16 + ty, column = tile % across * 16 + tx;");
    t.line(format!("{ty} sum = 0;"));
    t.line(format!("for (i64 start = 0; start < {k}; start += 16) {{"));
    let (a, b) = (
        from_memory(
            elem,
            &format!("x[ox + row * {} + (start + tx) * {}]", strides[0][0], strides[0][1]),
        ),
        from_memory(
            elem,
            &format!("y[oy + (start + ty) * {} + column * {}]", strides[1][0], strides[1][1]),
        ),
    );
    t.line(format!("    p[ty][tx] = row < {m} && start + tx < {k} ? {a} : static_cast<{ty}>(0);"));
    t.line(format!(
        "    q[ty][tx] = column < {n} && start + ty < {k} ? {b} : static_cast<{ty}>(0);"
    ));
    t.line("    __syncthreads();");
    let multiply = match elem {
        Elem::F16 | Elem::BF16 | Elem::F32 => "__fmaf_rn(p[ty][d], q[d][tx], sum)",
        Elem::F64 => "fma(p[ty][d], q[d][tx], sum)",
        _ => "add(sum, mul(p[ty][d], q[d][tx]))",
    };
    t.line(format!("    for (int d = 0; d < 16; ++d) sum = {multiply};"));
    t.line("    __syncthreads();");
    t.line("}");
    t.line(format!(
        "if (row < {m} && column < {n}) out[oo + row * {} + column * {}] = {};",
        strides[2][0],
        strides[2][1],
        to_memory(elem, "sum")
    ));
    let tiles = sizes[0].ceil_div(16) * sizes[1].ceil_div(16);
    let ops = dim::product([&out.count(), sizes[2], &Dim::from(2i64)]);
    Ok(t.finish(THREADS, 1, nest.count() * tiles, ops))
}
