//! Scalar expressions as CUDA C++. In registers f16 and bf16 are f32 values that are rounded after
//! every operation; the functions are those of `kernels/cuda/scalar.cuh`.

use fqc_ir::expr::{BinaryOp, Expr, Literal, UnaryOp};
use fqc_ir::types::Elem;

/// The type that `elem` has in registers.
pub fn register_type(elem: Elem) -> &'static str {
    match elem {
        Elem::Bool => "bool",
        Elem::F16 | Elem::BF16 | Elem::F32 => "float",
        Elem::F64 => "double",
        _ => memory_type(elem),
    }
}

/// The type that `elem` has in memory.
pub fn memory_type(elem: Elem) -> &'static str {
    match elem {
        Elem::Bool | Elem::U8 | Elem::U4 => "u8",
        Elem::I8 | Elem::I4 => "i8",
        Elem::I16 => "i16",
        Elem::U16 | Elem::F16 | Elem::BF16 => "u16",
        Elem::I32 => "i32",
        Elem::U32 => "u32",
        Elem::I64 => "i64",
        Elem::U64 => "u64",
        Elem::F32 => "float",
        Elem::F64 => "double",
    }
}

/// From memory's form to registers'.
pub fn from_memory(elem: Elem, x: &str) -> String {
    match elem {
        Elem::Bool => format!("({x} != 0)"),
        Elem::F16 => format!("f16_to_f32({x})"),
        Elem::BF16 => format!("bf16_to_f32({x})"),
        _ => x.to_owned(),
    }
}

/// From registers' form to memory's.
pub fn to_memory(elem: Elem, x: &str) -> String {
    match elem {
        Elem::F16 => format!("f32_to_f16({x})"),
        Elem::BF16 => format!("f32_to_bf16({x})"),
        _ => format!("static_cast<{}>({x})", memory_type(elem)),
    }
}

/// Text of `expr` over named arguments, and its type. The error is a sentence.
pub fn print(expr: &Expr, args: &[(String, Elem)]) -> Result<(String, Elem), String> {
    let elems: Vec<Elem> = args.iter().map(|(_, e)| *e).collect();
    if elems.iter().any(|e| e.bits() < 8) {
        return Err("values of four bits are not computed with on CUDA".into());
    }
    let elem = expr.elem(&elems)?;
    Ok((go(expr, args, &elems)?, elem))
}

fn go(expr: &Expr, args: &[(String, Elem)], elems: &[Elem]) -> Result<String, String> {
    Ok(match expr {
        Expr::Arg(i) => args[*i].0.clone(),
        Expr::Literal(Literal::F32(v)) => float(*v),
        Expr::Literal(Literal::I64(v)) => format!("static_cast<i64>({v}ull)", v = *v as u64),
        Expr::Literal(Literal::Bool(v)) => v.to_string(),
        Expr::Unary(op, a) => {
            let elem = a.elem(elems)?;
            unary(*op, elem, &go(a, args, elems)?)
        }
        Expr::Binary(op, x, y) => {
            let elem = x.elem(elems)?;
            let (left, right) = (go(x, args, elems)?, go(y, args, elems)?);
            match (cheap_power(*op, elem, y), elem) {
                (Some(1), _) => left,
                (Some(-1), _) => format!("reciprocal({left})"),
                (Some(2), _) => format!("square({left})"),
                (Some(_), _) => format!("cube({left})"),
                (None, _) => binary(*op, elem, &left, &right),
            }
        }
        Expr::Select(c, x, y) => {
            let elem = register_type(x.elem(elems)?);
            let (c, x, y) = (go(c, args, elems)?, go(x, args, elems)?, go(y, args, elems)?);
            format!("({c} ? static_cast<{elem}>({x}) : static_cast<{elem}>({y}))")
        }
        Expr::Cast(to, a) => cast(a.elem(elems)?, *to, &go(a, args, elems)?)?,
    })
}

/// Powers with a literal exponent that are one or two multiplications, as on the CPU.
fn cheap_power(op: BinaryOp, elem: Elem, exponent: &Expr) -> Option<i32> {
    let Expr::Literal(Literal::F32(exponent)) = exponent else { return None };
    let whole = [1, 2, 3, -1].into_iter().find(|&n| n as f32 == *exponent)?;
    (op == BinaryOp::Pow && elem == Elem::F32).then_some(whole)
}

/// A literal with all its bits.
pub fn float(v: f32) -> String {
    if v.is_finite() { format!("{v:e}f") } else { format!("__int_as_float({:#x})", v.to_bits()) }
}

/// Rounds to the type's own precision where registers hold more.
fn rounded(elem: Elem, text: String) -> String {
    match elem {
        Elem::F16 => format!("round_f16({text})"),
        Elem::BF16 => format!("round_bf16({text})"),
        _ => text,
    }
}

fn unary(op: UnaryOp, elem: Elem, x: &str) -> String {
    let name = match op {
        UnaryOp::Neg => "negative",
        UnaryOp::Abs => "absolute",
        UnaryOp::Sign => "sign",
        UnaryOp::Floor => "floor",
        UnaryOp::Ceil => "ceil",
        UnaryOp::Round => "rint",
        UnaryOp::Sqrt => "square_root",
        UnaryOp::Rsqrt => "reciprocal_root",
        UnaryOp::Reciprocal => "reciprocal",
        UnaryOp::Exp => "exponential",
        UnaryOp::Log => "logarithm",
        UnaryOp::Sin => "sine",
        UnaryOp::Cos => "cosine",
        UnaryOp::Tanh => "hyperbolic_tangent",
        UnaryOp::Erf => "error_function",
        UnaryOp::Sigmoid => "sigmoid",
        UnaryOp::Relu => "relu",
        UnaryOp::Gelu => "gelu",
        UnaryOp::GeluTanh => "gelu_tanh",
        UnaryOp::Silu => "silu",
        UnaryOp::Softplus => "softplus",
        UnaryOp::Not => return format!("!({x})"),
        UnaryOp::IsNan => return format!("is_nan({x})"),
        UnaryOp::IsInf => return format!("is_infinite({x})"),
    };
    rounded(elem, format!("{name}({x})"))
}

fn binary(op: BinaryOp, elem: Elem, x: &str, y: &str) -> String {
    let infix = |sign: &str| format!("({x} {sign} {y})");
    let name = match op {
        BinaryOp::And => return infix("&"),
        BinaryOp::Or => return infix("|"),
        BinaryOp::Xor => return infix("^"),
        BinaryOp::Eq => return infix("=="),
        BinaryOp::Ne => return infix("!="),
        BinaryOp::Lt => return infix("<"),
        BinaryOp::Le => return infix("<="),
        BinaryOp::Gt => return infix(">"),
        BinaryOp::Ge => return infix(">="),
        BinaryOp::Add => "add",
        BinaryOp::Sub => "sub",
        BinaryOp::Mul => "mul",
        BinaryOp::Div => "div",
        BinaryOp::Pow if elem.is_float() => "power",
        BinaryOp::Pow => "integer_power",
        BinaryOp::Min => "smaller",
        BinaryOp::Max => "larger",
        BinaryOp::Mod => "mod",
        BinaryOp::Rem => "rem",
    };
    rounded(elem, format!("{name}({x}, {y})"))
}

/// Conversion: floats round to nearest even; float to integer truncates, saturates at i64 (a
/// positive one for u64 at u64), then wraps; anything to bool is `!= 0`.
fn cast(from: Elem, to: Elem, x: &str) -> Result<String, String> {
    if from == to {
        return Ok(x.to_owned());
    }
    if to.bits() < 8 {
        return Err(format!("values of {to} are not made on CUDA"));
    }
    let half = |elem: Elem| matches!(elem, Elem::F16 | Elem::BF16);
    Ok(if to == Elem::Bool {
        format!("({x} != 0)")
    } else if from.is_float() && to.is_float() {
        match (from, to) {
            (Elem::F64, Elem::F32) => format!("__double2float_rn({x})"),
            (Elem::F64, _) => rounded(to, format!("narrow_to_odd({x})")),
            (_, Elem::F64) => format!("static_cast<double>({x})"),
            _ => rounded(to, x.to_owned()),
        }
    } else if from.is_float() {
        let wide = if to == Elem::U64 { "to_u64" } else { "to_i64" };
        format!("static_cast<{}>({wide}({x}))", register_type(to))
    } else if half(to) {
        rounded(to, format!("narrow_to_odd(static_cast<double>({x}))"))
    } else {
        format!("static_cast<{}>({x})", register_type(to))
    })
}
