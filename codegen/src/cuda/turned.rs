//! What the epilogue of a gemm that rotates queries and keys ([`super::rotary`]) does with a thread's sums.

use std::ops::Range;

use fqc_ir::dim::Dim;
use fqc_ir::plan::View;

use super::epilogue::Epilogue;
use super::text::{Text, divides};
use super::writer;

/// Cosines of both halves of a head, sines of both halves.
pub const TABLES: usize = 4;

/// Channels that a thread turns at a time, such pieces of a block of 64, and the distance in bytes of its
/// rows as floats, free of bank conflicts.
pub const PIECE: usize = 8;
const PIECES: usize = 64 / PIECE;
const PITCH: usize = 64 * 4 + 16;

/// What turns columns of a gemm's result.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// The columns that are turned, heads of `width` channels.
    pub columns: Range<usize>,
    pub width: usize,
    /// The step's arguments that are the tables, of the first and of the second half of a head.
    pub tables: [Table; TABLES],
}

/// Rows of half a head by token.
#[derive(Clone, Debug)]
pub struct Table {
    pub argument: usize,
    /// Elements from one token to the next.
    row: Dim,
    /// Tokens after which the rows begin anew, if they do.
    period: Option<Dim>,
}

impl Table {
    /// A view \[b, h, s, half\] by token, the same for all heads.
    pub fn of(argument: usize, view: &View) -> Option<Table> {
        let [_, _, tokens, _] = &view.shape[..] else { return None };
        let [batch, heads, row, last] = &view.strides[..] else { return None };
        if *heads != Dim::zero() || *last != Dim::one() {
            return None;
        }
        let period = match *batch == tokens.clone() * row.clone() {
            true => None,
            false if *batch == Dim::zero() => Some(tokens.clone()),
            false => return None,
        };
        let aligned = divides(4, &view.offset) && divides(4, row);
        aligned.then_some(Table { argument, row: row.clone(), period })
    }

    /// The elements before those of `row`.
    fn place(&self, t: &mut Text) -> String {
        let stride = t.size(&self.row);
        let Some(tokens) = &self.period else { return format!("row * {stride}") };
        let tokens = t.size(tokens);
        format!("static_cast<i64>(static_cast<u32>(row) % static_cast<u32>({tokens})) * {stride}")
    }
}

impl Rotary {
    /// The body of `write`: sums as floats through shared memory, so that a thread turns eight neighbours,
    /// reads their angles together and stores them together. The angles of the next rows are on their way
    /// while these are staged.
    pub fn write(&self, e: &Epilogue, t: &mut Text) {
        let Range { start, end } = self.columns;
        t.line(format!("constexpr int kRows = kTokens < 64 ? kTokens / 2 : 32, kPitch = {PITCH};"));
        t.line(format!("constexpr int kOwn = (kRows * {PIECES} + 127) / 128;"));
        writer::threads(e, t);
        t.line(format!("const int piece = own % {PIECES} * {PIECE};"));
        t.line("const int column = first - warp * 16 - r * 2 + piece;");
        t.line(format!("const bool turned = column >= {start} && column < {end};"));
        t.line(format!("const int angle = (column - {start}) % {} / 2;", self.width));
        t.line(format!("alignas(16) float by[kOwn][{TABLES}][4];"));
        t.line("const auto turn = [](float& x, float& y, float cos_x, float cos_y, float sin_x, float sin_y) {");
        t.line("    const float turned_x = sub(mul(x, cos_x), mul(y, sin_x));");
        t.line("    y = add(mul(y, cos_y), mul(x, sin_y));");
        t.line("    x = turned_x;");
        t.line("};");
        t.line("const auto fetch = [&](int begin) {");
        t.line("#pragma unroll");
        t.line("    for (int i = 0; i < kOwn; ++i) {");
        t.line(format!(
            "        const i64 row = token + begin + own / {PIECES} + i * {};",
            128 / PIECES
        ));
        t.line("        if (!turned || row >= args.m) continue;");
        for (i, table) in self.tables.iter().enumerate() {
            let place = table.place(t);
            t.line(format!(
                "        *reinterpret_cast<float4*>(by[i][{i}]) = *reinterpret_cast<const float4*>(\
                 reinterpret_cast<const float*>(a.w[{}]) + {place} + angle);",
                table.argument
            ));
        }
        t.line("    }");
        t.line("};");
        t.line("fetch(0);");
        writer::results_of_rows(e, "float", t);
        t.line(
            "        asm volatile(\"st.shared.v2.f32 [%0], {%1, %2};\" \
             ::\"r\"(scratch + row * kPitch + warp * 64 + r * 8), \
             \"f\"(results[0]), \"f\"(results[1]) : \"memory\");",
        );
        t.line("    }");
        t.line("    }");
        t.line("    named_barrier(barrier, 128);");
        t.line("#pragma unroll");
        t.line("    for (int i = 0; i < kOwn; ++i) {");
        t.line(format!("        const int place = own / {PIECES} + i * {};", 128 / PIECES));
        t.line("        const i64 row = token + chunk + place;");
        t.line("        if (place >= kRows || row >= args.m || column >= args.n) continue;");
        t.line("        alignas(16) u32 halves[4];");
        t.line("#pragma unroll");
        t.line("        for (int j = 0; j < 2; ++j) {");
        t.line(
            "            const uint4 bits = load_shared_16(scratch + place * kPitch + piece * 4 + j * 16);",
        );
        t.line("            float x0 = __uint_as_float(bits.x), y0 = __uint_as_float(bits.y);");
        t.line("            float x1 = __uint_as_float(bits.z), y1 = __uint_as_float(bits.w);");
        t.line("            if (turned) {");
        for pair in 0..2 {
            let of = |table: usize| format!("by[i][{table}][2 * j + {pair}]");
            t.line(format!(
                "                turn(x{pair}, y{pair}, {}, {}, {}, {});",
                of(0),
                of(1),
                of(2),
                of(3)
            ));
        }
        t.line("            }");
        t.line("            halves[2 * j] = pack_bf16(x0, y0);");
        t.line("            halves[2 * j + 1] = pack_bf16(x1, y1);");
        t.line("        }");
        t.line(format!(
            "        *reinterpret_cast<uint4*>(out + {}) = *reinterpret_cast<const uint4*>(halves);",
            e.place
        ));
        t.line("    }");
        t.line("    if (chunk + kRows < kTokens) fetch(chunk + kRows);");
        t.line("}");
    }
}
