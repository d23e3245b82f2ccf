//! What a generated epilogue of a Hopper gemm does with a thread's sums: see `ConfiguredEpilogue` in
//! `kernels/cuda/gemm_sm90.cuh`.

use fqc_ir::expr::Expr;
use fqc_ir::plan::{Extra, Gemm, GemmInput, GemmOutput, RowQuantize, Step};
use fqc_ir::quant::q_max;
use fqc_ir::types::Elem;

use super::epilogue::Epilogue;
use super::expr;
use super::text::{Text, divides};

/// Rows of a thread whose operands are fetched together.
const AHEAD: usize = 8;

/// Bytes of a piece of a row of codes that a thread stores.
const PIECE: i64 = 16;

/// Rows of codes that pass through shared memory at a time.
const ROWS: usize = 64;

/// How two neighbouring channels of a gemm become one code.
pub struct Pairing<'a> {
    /// Over the floats of both.
    pub expr: &'a Expr,
    pub quantize: &'a RowQuantize,
    /// Words of the tables of inverses and of what lies below a digit, by code.
    pub tables: [usize; 2],
}

/// Whether rows of codes leave through shared memory, in pieces of sixteen bytes.
pub fn staged(step: &Step, gemm: &Gemm, pairing: Option<&Pairing<'_>>) -> bool {
    let out = &step.results[0];
    let width = if pairing.is_some() { gemm.n / 2 } else { gemm.n };
    let codes = pairing.is_some() || matches!(gemm.output, GemmOutput::Codes { .. });
    let aligned = divides(PIECE, &out.strides[0]) && divides(PIECE, &out.offset);
    let by_row = gemm.extras.contains(&Extra::PerElement);
    codes && (width as i64) % PIECE == 0 && aligned && !by_row
}

/// The body of `write` for floats and sums, and for codes that are not [`staged`].
pub fn direct(step: &Step, gemm: &Gemm, result: Elem, e: &Epilogue, t: &mut Text) {
    let out = &step.results[0];
    let even = gemm.n.is_multiple_of(2) && divides(2, &out.strides[0]) && divides(2, &out.offset);
    let ty = expr::register_type(result);
    let floats = gemm.input == GemmInput::F32;
    let (sum, shift) = if floats { ("float", "") } else { ("int", " >> kShift") };
    t.line("if (first >= args.n) return;");
    t.line(e.pointers.trim());
    t.line("const int q = threadIdx.x % 4, column = first;");
    // Operands of a few rows are fetched together, so that their way here is waited for once.
    t.line(format!("constexpr int kAhead = kTokens / 4 < {AHEAD} ? kTokens / 4 : {AHEAD};"));
    t.line("#pragma unroll");
    t.line("for (int begin = 0; begin < kTokens / 4; begin += kAhead) {");
    for (name, _) in &e.rows {
        t.line(format!("    float2 {name}_of[kAhead];"));
    }
    let row = "const i64 row = token + i / 2 * 8 + 2 * q + i % 2;";
    if !e.rows.is_empty() {
        t.line("#pragma unroll");
        t.line("    for (int i = begin; i < begin + kAhead; ++i) {");
        t.line(format!("        {row}"));
        t.line("        if (row >= args.m) continue;");
        for (name, place) in &e.rows {
            match even && pairs(step, gemm) {
                true => t.line(format!(
                    "        {name}_of[i - begin] = *reinterpret_cast<const float2*>(&{place});"
                )),
                false => {
                    t.line(format!("        {name}_of[i - begin].x = {place};"));
                    let next = place.replace("column]", "min(column + 1, args.n - 1)]");
                    t.line(format!("        {name}_of[i - begin].y = {next};"));
                }
            }
        }
        t.line("    }");
    }
    t.line("#pragma unroll");
    t.line("    for (int i = begin; i < begin + kAhead; ++i) {");
    t.line(format!("    {row}"));
    t.line("    if (row >= args.m) continue;");
    t.line(format!("    {ty} results[2];"));
    for (c, lane) in ["x", "y"].into_iter().enumerate() {
        t.line("    {");
        t.line(format!("    const Column& t = columns.of[{c}];"));
        t.line(format!("    const {sum} acc = sums[i / 2 * 4 + {c} * 2 + i % 2]{shift};"));
        for (name, _) in &e.rows {
            t.line(format!("    const float {name} = {name}_of[i - begin].{lane};"));
        }
        t.line(e.apply.trim());
        t.line(format!("    results[{c}] = result;"));
        t.line("    }");
    }
    let place = &e.place;
    match (even, result) {
        (true, Elem::BF16) => t.line(format!(
            "    *reinterpret_cast<u32*>(out + {place}) = pack_bf16(results[0], results[1]);"
        )),
        (true, _) => {
            let pair = match result {
                Elem::F32 => "float2",
                Elem::I32 => "int2",
                _ => "uchar2",
            };
            t.line(format!(
                "    *reinterpret_cast<{pair}*>(out + {place}) = {{results[0], results[1]}};"
            ));
        }
        (false, _) => {
            let [x, y] = ["results[0]", "results[1]"].map(|x| expr::to_memory(result, x));
            t.line(format!("    out[{place}] = {x};"));
            t.line(format!("    if (column + 1 < args.n) out[{place} + 1] = {y};"));
        }
    }
    t.line("    }");
    t.line("}");
}

/// The body of `write` for codes: through shared memory, so that rows are written in whole pieces.
pub fn through_shared(
    e: &Epilogue,
    pairing: Option<&Pairing<'_>>,
    t: &mut Text,
) -> Result<(), String> {
    // Bytes of a block of 64 channels, and the distance of its rows there, free of bank conflicts.
    let bytes = if pairing.is_some() { 32 } else { 64 };
    let pitch = bytes + PIECE;
    t.line("constexpr int kRows = kTokens < 64 ? kTokens : 64;");
    threads(e, t);
    let kind = if pairing.is_some() { "float" } else { "u32" };
    results_of_rows(e, kind, t);
    match pairing {
        Some(Pairing { expr, quantize, .. }) => {
            let args = ["results[0]", "results[1]"].map(|x| (x.to_owned(), Elem::F32));
            let (value, elem) = expr::print(expr, &args)?;
            if elem != Elem::F32 {
                return Err(format!("{elem} is quantised; cast to f32 before"));
            }
            let top = expr::float(q_max(quantize.bits, quantize.signed) as f32);
            t.line(format!(
                "        const u32 code = digit<{}>(mul({value}, columns.inverse), columns.below, {top});",
                quantize.signed
            ));
            t.line(format!(
                "        store_shared_1(scratch + row * {pitch} + warp * 8 + r, code);"
            ));
        }
        None => t.line(format!(
            "        store_shared_2(scratch + row * {pitch} + warp * 16 + r * 2, \
             results[0] | results[1] << 8);"
        )),
    }
    t.line("    }");
    t.line("    }");
    t.line("    named_barrier(barrier, 128);");
    let pieces = bytes / PIECE;
    let divisor = if pairing.is_some() { 2 } else { 1 };
    t.line("#pragma unroll");
    t.line(format!("    for (int i = own; i < kRows * {pieces}; i += 128) {{"));
    t.line(format!("        const int place = i / {pieces}, piece = i % {pieces} * {PIECE};"));
    t.line("        const i64 row = token + chunk + place;");
    t.line(format!("        const int column = (first - warp * 16 - r * 2) / {divisor} + piece;"));
    t.line(format!("        if (row >= args.m || column >= args.n / {divisor}) continue;"));
    t.line(format!(
        "        *reinterpret_cast<uint4*>(out + {}) = load_shared_16(scratch + place * {pitch} + piece);",
        e.place
    ));
    t.line("    }");
    t.line("}");
    debug_assert!(ROWS as i64 * pitch <= 8192, "two chunks of a staged result hold it");
    Ok(())
}

/// What a thread of a warpgroup is, where results pass through shared memory.
pub fn threads(e: &Epilogue, t: &mut Text) {
    t.line(e.pointers.trim());
    t.line("const int own = threadIdx.x % 128, q = own % 4, r = own % 32 / 4, warp = own / 32;");
    t.line("const u32 barrier = 1 + threadIdx.x / 128;");
}

/// The beginning of the loop over pieces of `kRows` tokens, and of the one over the rows of which this
/// thread has sums: their two `results` in `row`. Both loops, and a condition, are left open.
pub fn results_of_rows(e: &Epilogue, kind: &str, t: &mut Text) {
    t.line("#pragma unroll");
    t.line("for (int chunk = 0; chunk < kTokens; chunk += kRows) {");
    t.line("    named_barrier(barrier, 128);");
    t.line("    if (first < args.n) {");
    t.line("#pragma unroll");
    t.line("    for (int i = 0; i < kRows / 4; ++i) {");
    t.line(
        "        const int row = i / 2 * 8 + 2 * q + i % 2, at = (chunk / 8 + i / 2) * 4 + i % 2;",
    );
    t.line(format!("        {kind} results[2];"));
    for c in 0..2 {
        t.line("        {");
        t.line(format!("        const Column& t = columns.of[{c}];"));
        t.line(format!("        const int acc = sums[at + {c} * 2] >> kShift;"));
        t.line(e.apply.trim());
        t.line(format!("        results[{c}] = result;"));
        t.line("        }");
    }
}

/// Whether the operands that differ from row to row can be read in pairs of neighbours.
fn pairs(step: &Step, gemm: &Gemm) -> bool {
    let first = if gemm.input == GemmInput::F32 { 2 } else { 4 };
    let extras = step.args[first..].iter().zip(&gemm.extras);
    extras
        .filter(|(_, extra)| **extra == Extra::PerElement)
        .all(|(view, _)| divides(2, &view.strides[0]) && divides(2, &view.offset))
}
