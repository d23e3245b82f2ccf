//! What follows the sums of a gemm: scale, expression, and the store as floats, codes or sums.

use fqc_ir::plan::{Extra, Gemm, GemmInput, GemmOutput, Step};
use fqc_ir::quant::q_max;
use fqc_ir::types::Elem;
use std::fmt::Write;

use super::expr;
use super::text::Text;
use super::writer::Pairing;

/// The text of an epilogue in three parts.
pub struct Epilogue {
    /// Declares the pointers, once.
    pub pointers: String,
    /// Given `column`, loads the tables of that column into a `Column`.
    pub load: String,
    /// Members of `Column`.
    pub members: String,
    /// Names and places of the operands that differ from row to row: `e0[row * d2 + column]`.
    pub rows: Vec<(String, String)>,
    /// Given `acc`, `column`, a `Column t` and the operands as `y0`, …, makes `result`.
    pub apply: String,
    /// Element offset of the result at `row` and `column`.
    pub place: String,
    /// Members of `Columns` beside its two columns, and what loads them; see [`Epilogue::pair`].
    pub pair_members: String,
    pub pair_load: String,
}

impl Epilogue {
    /// Adds what two neighbouring columns need that become one code.
    pub fn pair(&mut self, pairing: &Pairing<'_>) {
        for (name, word) in ["inverse", "below"].into_iter().zip(pairing.tables) {
            let _ = writeln!(self.pair_members, "        float {name};");
            let _ = writeln!(
                self.pair_load,
                "        columns.{name} = reinterpret_cast<const float*>(a.w[{word}])[first / 2];"
            );
        }
    }
}

/// The epilogue of a step; sizes go to `t`, pointers are read from the words `a.w`. The step stores
/// elements of `stored`, and has `more` arguments that the gemm does not know. The step's start is added to
/// sums where codes had something added.
pub fn epilogue(
    step: &Step,
    gemm: &Gemm,
    stored: Elem,
    more: usize,
    started: bool,
    t: &mut Text,
) -> Result<Epilogue, String> {
    let quantized = gemm.input != GemmInput::F32;
    let codes = matches!(gemm.output, GemmOutput::Codes { .. });
    let sums = gemm.output == GemmOutput::I32;
    let first = if quantized { 4 } else { 2 };
    let wanted = first + gemm.extras.len() + if codes { 2 } else { 0 } + more;
    if step.args.len() != wanted {
        return Err(format!("it has {} arguments, not {wanted}", step.args.len()));
    }
    let (mut pointers, mut load, mut members) = (String::new(), String::new(), String::new());
    let mut table = |name: &str, index: usize, ty: &str| {
        let _ = writeln!(
            pointers,
            "    const {ty}* const {name} = reinterpret_cast<const {ty}*>(a.w[{index}]);"
        );
    };
    let mut column = |name: &str, ty: &str| {
        let _ = writeln!(members, "    {ty} {name};");
        let _ = writeln!(load, "    t.{name} = {name}[column];");
    };
    if quantized {
        if started {
            table("start", 3, "int");
            column("start", "int");
        }
        if !sums {
            table("scale", 2, "float");
            column("scale", "float");
        }
    }
    let mut args = vec![("x0".to_owned(), Elem::F32)];
    let (mut apply, mut rows) = (String::new(), Vec::new());
    let sum = if quantized && started { "acc + t.start" } else { "acc" };
    if sums {
        let _ = writeln!(apply, "    const int result = {sum};");
    } else {
        let scaled =
            if quantized { format!("mul(__int2float_rn({sum}), t.scale)") } else { sum.to_owned() };
        let _ = writeln!(apply, "    const float x0 = {scaled};");
        for (i, extra) in gemm.extras.iter().enumerate() {
            let (name, index) = (format!("e{i}"), first + i);
            table(&name, index, "float");
            match extra {
                Extra::PerColumn => {
                    column(&name, "float");
                    args.push((format!("t.{name}"), Elem::F32));
                }
                Extra::PerElement => {
                    let stride = t.size(&step.args[index].strides[0]);
                    rows.push((format!("y{i}"), format!("{name}[row * {stride} + column]")));
                    args.push((format!("y{i}"), Elem::F32));
                }
            }
        }
        let (text, elem) = expr::print(&gemm.epilogue, &args)?;
        if elem != Elem::F32 {
            return Err(format!("its epilogue gives {elem}"));
        }
        match gemm.output {
            GemmOutput::Codes { signed, bits } => {
                let at = first + gemm.extras.len();
                table("inverse", at, "float");
                table("lo", at + 1, "float");
                column("inverse", "float");
                column("lo", "float");
                let top = expr::float(q_max(bits, signed) as f32);
                let _ = writeln!(
                    apply,
                    "    const u8 result = digit<{signed}>(mul({text}, t.inverse), t.lo, {top});"
                );
            }
            _ => {
                let _ = writeln!(apply, "    const float result = {text};");
            }
        }
    }
    let result = expr::memory_type(stored);
    let _ = writeln!(
        pointers,
        "    {result}* const out = reinterpret_cast<{result}*>(a.w[{}]);",
        step.args.len()
    );
    let place = format!("row * {} + column", t.size(&step.results[0].strides[0]));
    let (pair_members, pair_load) = (String::new(), String::new());
    Ok(Epilogue { pointers, load, members, rows, apply, place, pair_members, pair_load })
}
