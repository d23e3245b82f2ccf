//! Scalar expressions as LLVM IR, over scalars or vectors alike. In registers f16 and bf16 are f32
//! values that are rounded after every operation, bools are one bit, integers have their own width or,
//! of four bits, a byte.
//! [`check`] refuses what cannot be emitted; after it, emission cannot fail.

use fqc_ir::expr::{BinaryOp, Expr, Literal, UnaryOp};
use fqc_ir::types::Elem;
use inkwell::FloatPredicate::{OEQ, OGE, OGT, OLE, OLT, UGT, UNE, UNO};
use inkwell::IntPredicate::{self, EQ, NE, SGE, SGT, SLE, SLT, UGE, ULE, ULT};

use super::build::{Builder, Ty, Val};
use super::{CpuError, math, math64, silu};

/// A value in registers and what it stands for.
#[derive(Clone, Copy, Debug)]
pub struct Typed<'c> {
    pub elem: Elem,
    pub val: Val<'c>,
}

/// The type that `elem` has in registers.
pub fn register_type<'c>(b: &Builder<'_, 'c>, elem: Elem, lanes: u32) -> Ty<'c> {
    let scalar = match elem {
        Elem::Bool => b.int(1),
        Elem::F16 | Elem::BF16 | Elem::F32 => b.f32(),
        Elem::F64 => b.f64(),
        _ => b.int(elem.bits().max(8)),
    };
    b.vec(scalar, lanes)
}

/// The type that `elem` has in memory.
pub fn memory_type<'c>(b: &Builder<'_, 'c>, elem: Elem, lanes: u32) -> Ty<'c> {
    let scalar = match elem {
        Elem::F16 => b.f16(),
        Elem::F32 => b.f32(),
        Elem::F64 => b.f64(),
        _ => b.int(elem.bits()),
    };
    b.vec(scalar, lanes)
}

/// From memory's form to registers'.
pub fn from_memory<'c>(b: &Builder<'_, 'c>, elem: Elem, x: Val<'c>) -> Val<'c> {
    let lanes = b.lanes(x);
    match elem {
        Elem::Bool => b.icmp(NE, x, b.zero(x.get_type())),
        Elem::F16 => b.fpext(x, b.f32v(lanes)),
        Elem::BF16 => {
            let int = b.i32v(lanes);
            b.bitcast(b.shl(b.zext(x, int), b.iconst(int, 16)), b.f32v(lanes))
        }
        _ => x,
    }
}

/// From registers' form to memory's.
pub fn to_memory<'c>(b: &Builder<'_, 'c>, elem: Elem, x: Val<'c>) -> Val<'c> {
    let lanes = b.lanes(x);
    match elem {
        Elem::Bool => b.zext(x, memory_type(b, elem, lanes)),
        Elem::F16 => b.fptrunc(x, memory_type(b, elem, lanes)),
        Elem::BF16 => {
            let int = b.i32v(lanes);
            let bits = b.bitcast(math::round_bf16(b, x), int);
            b.trunc(b.lshr(bits, b.iconst(int, 16)), memory_type(b, elem, lanes))
        }
        _ => x,
    }
}

/// Whether `expr` over arguments of these types can be emitted; gives the type of its result.
pub fn check(expr: &Expr, args: &[Elem]) -> Result<Elem, CpuError> {
    let unsupported =
        |reason: String| CpuError::Unsupported { kernel: "expression".to_owned(), reason };
    if let Some(elem) = args.iter().find(|e| e.bits() < 8) {
        return Err(unsupported(format!("elements of {elem} are not computed with on the CPU")));
    }
    let elem = expr.elem(args).map_err(unsupported)?;
    if computes_below_a_byte(expr, args) {
        let reason = "4-bit integers are cast but not computed with on the CPU";
        return Err(unsupported(reason.to_owned()));
    }
    Ok(elem)
}

/// Whether an operation other than a cast or a choice has operands of four bits.
fn computes_below_a_byte(expr: &Expr, args: &[Elem]) -> bool {
    let narrow = |e: &Expr| e.elem(args).is_ok_and(|elem| elem.bits() < 8);
    let within = |e: &Expr| computes_below_a_byte(e, args);
    match expr {
        Expr::Arg(_) | Expr::Literal(_) => false,
        Expr::Unary(_, a) => narrow(a) || within(a),
        Expr::Binary(_, a, b) => narrow(a) || within(a) || within(b),
        Expr::Select(c, a, b) => within(c) || within(a) || within(b),
        Expr::Cast(_, a) => within(a),
    }
}

/// `expr` over f32 vectors of `lanes` lanes, giving f32.
pub fn emit_f32<'c>(b: &Builder<'_, 'c>, expr: &Expr, args: &[Val<'c>], lanes: u32) -> Val<'c> {
    let args: Vec<Typed<'c>> = args.iter().map(|&val| Typed { elem: Elem::F32, val }).collect();
    let result = emit(b, expr, &args, lanes);
    assert_eq!(result.elem, Elem::F32, "an epilogue computes in f32");
    result.val
}

/// `expr` over values of `lanes` lanes each.
pub fn emit<'c>(b: &Builder<'_, 'c>, expr: &Expr, args: &[Typed<'c>], lanes: u32) -> Typed<'c> {
    let go = |e: &Expr| emit(b, e, args, lanes);
    match expr {
        Expr::Arg(i) => args[*i],
        Expr::Literal(literal) => {
            let (elem, value) = match *literal {
                Literal::F32(v) => (Elem::F32, f64::from(v)),
                Literal::I64(v) => {
                    return Typed { elem: Elem::I64, val: b.iconst(b.vec(b.int(64), lanes), v) };
                }
                Literal::Bool(v) => {
                    let ty = b.vec(b.int(1), lanes);
                    return Typed { elem: Elem::Bool, val: b.iconst(ty, i64::from(v)) };
                }
            };
            Typed { elem, val: b.fconst(b.f32v(lanes), value) }
        }
        Expr::Unary(op, a) => unary(b, *op, go(a)),
        Expr::Binary(op, x, y) => {
            if let Some(cheap) = cheap_power(b, *op, go(x), y) {
                return cheap;
            }
            binary(b, *op, go(x), go(y))
        }
        Expr::Select(c, x, y) => {
            let (c, x, y) = (go(c), go(x), go(y));
            Typed { elem: x.elem, val: b.select(c.val, x.val, y.val) }
        }
        Expr::Cast(elem, a) => cast(b, go(a), *elem),
    }
}

/// Powers with a literal exponent that are one or two multiplications.
fn cheap_power<'c>(b: &Builder<'_, 'c>, op: BinaryOp, x: Typed<'c>, y: &Expr) -> Option<Typed<'c>> {
    let Expr::Literal(Literal::F32(exponent)) = y else { return None };
    if op != BinaryOp::Pow || x.elem != Elem::F32 {
        return None;
    }
    let v = x.val;
    let val = match *exponent {
        1.0 => v,
        2.0 => b.fmul(v, v),
        3.0 => b.fmul(b.fmul(v, v), v),
        -1.0 => b.fdiv(b.fconst(v.get_type(), 1.0), v),
        _ => return None,
    };
    Some(Typed { elem: Elem::F32, val })
}

/// Rounds to the type's own precision where registers hold more.
fn rounded<'c>(b: &Builder<'_, 'c>, elem: Elem, x: Val<'c>) -> Typed<'c> {
    let val = match elem {
        Elem::F16 => {
            let half = memory_type(b, Elem::F16, b.lanes(x));
            b.fpext(b.fptrunc(x, half), x.get_type())
        }
        Elem::BF16 => math::round_bf16(b, x),
        _ => x,
    };
    Typed { elem, val }
}

/// A function of one value.
pub fn unary<'c>(b: &Builder<'_, 'c>, op: UnaryOp, x: Typed<'c>) -> Typed<'c> {
    let v = x.val;
    let bool_of = |val| Typed { elem: Elem::Bool, val };
    match op {
        UnaryOp::Not => bool_of(b.not(v)),
        UnaryOp::IsNan => bool_of(b.fcmp(UNO, v, v)),
        UnaryOp::IsInf => bool_of(b.fcmp(OEQ, b.fabs(v), b.fconst(v.get_type(), f64::INFINITY))),
        _ if x.elem.is_float() => rounded(b, x.elem, unary_float(b, op, v, x.elem == Elem::F64)),
        _ => Typed { elem: x.elem, val: unary_int(b, op, v, x.elem.is_signed()) },
    }
}

fn unary_int<'c>(b: &Builder<'_, 'c>, op: UnaryOp, x: Val<'c>, signed: bool) -> Val<'c> {
    let ty = x.get_type();
    let zero = b.zero(ty);
    match op {
        UnaryOp::Neg => b.sub(zero, x),
        UnaryOp::Abs if signed => b.select(b.icmp(SLT, x, zero), b.sub(zero, x), x),
        UnaryOp::Relu if signed => b.smax(x, zero),
        UnaryOp::Sign => {
            let positive = b.icmp(if signed { SGT } else { NE }, x, zero);
            let one = b.select(positive, b.iconst(ty, 1), zero);
            if signed { b.select(b.icmp(SLT, x, zero), b.iconst(ty, -1), one) } else { one }
        }
        // Of an unsigned number.
        _ => x,
    }
}

fn unary_float<'c>(b: &Builder<'_, 'c>, op: UnaryOp, x: Val<'c>, wide: bool) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let of = |narrow: fn(&Builder<'_, 'c>, Val<'c>) -> Val<'c>,
              double: fn(&Builder<'_, 'c>, Val<'c>) -> Val<'c>| {
        if wide { double(b, x) } else { narrow(b, x) }
    };
    match op {
        UnaryOp::Neg => b.fneg(x),
        UnaryOp::Abs => b.fabs(x),
        UnaryOp::Sign => {
            let one = b.copysign(c(1.0), x);
            b.select(b.fcmp(UNE, x, c(0.0)), b.select(b.fcmp(UNO, x, x), x, one), c(0.0))
        }
        UnaryOp::Floor => b.floor(x),
        UnaryOp::Ceil => b.ceil(x),
        UnaryOp::Round => b.roundeven(x),
        UnaryOp::Sqrt => b.sqrt(x),
        UnaryOp::Rsqrt => b.fdiv(c(1.0), b.sqrt(x)),
        UnaryOp::Reciprocal => b.fdiv(c(1.0), x),
        UnaryOp::Exp => of(math::exp, math64::exp),
        UnaryOp::Log => of(math::log, math64::log),
        UnaryOp::Sin | UnaryOp::Cos => {
            let quarter = i64::from(op == UnaryOp::Cos);
            if wide { math64::sin_cos(b, x, quarter) } else { math::sin_cos(b, x, quarter) }
        }
        UnaryOp::Tanh => of(math::tanh, math64::tanh),
        UnaryOp::Erf => of(math::erf, math64::erf),
        UnaryOp::Sigmoid => of(math::sigmoid, math64::sigmoid),
        UnaryOp::Relu => b.select(b.fcmp(UGT, x, c(0.0)), x, c(0.0)),
        UnaryOp::Gelu => of(math::gelu, math64::gelu),
        UnaryOp::GeluTanh => of(math::gelu_tanh, math64::gelu_tanh),
        UnaryOp::Silu => of(silu::silu, math64::silu),
        UnaryOp::Softplus => of(math::softplus, math64::softplus),
        UnaryOp::Not | UnaryOp::IsNan | UnaryOp::IsInf => {
            unreachable!("predicates are handled by the caller")
        }
    }
}

/// A function of two values of one type.
pub fn binary<'c>(b: &Builder<'_, 'c>, op: BinaryOp, x: Typed<'c>, y: Typed<'c>) -> Typed<'c> {
    let (elem, x, y) = (x.elem, x.val, y.val);
    if op.is_comparison() {
        return Typed { elem: Elem::Bool, val: compare(b, op, elem, x, y) };
    }
    let val = match op {
        BinaryOp::And => b.and(x, y),
        BinaryOp::Or => b.or(x, y),
        BinaryOp::Xor => b.xor(x, y),
        _ if elem.is_float() => {
            return rounded(b, elem, binary_float(b, op, x, y, elem == Elem::F64));
        }
        _ => binary_int(b, op, x, y, elem.is_signed()),
    };
    Typed { elem, val }
}

fn compare<'c>(b: &Builder<'_, 'c>, op: BinaryOp, elem: Elem, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    if elem.is_float() {
        let predicate = match op {
            BinaryOp::Eq => OEQ,
            BinaryOp::Ne => UNE,
            BinaryOp::Lt => OLT,
            BinaryOp::Le => OLE,
            BinaryOp::Gt => OGT,
            _ => OGE,
        };
        return b.fcmp(predicate, x, y);
    }
    let signed = elem.is_signed();
    let pick = |s: IntPredicate, u: IntPredicate| if signed { s } else { u };
    let predicate = match op {
        BinaryOp::Eq => EQ,
        BinaryOp::Ne => NE,
        BinaryOp::Lt => pick(SLT, ULT),
        BinaryOp::Le => pick(SLE, ULE),
        BinaryOp::Gt => pick(SGT, IntPredicate::UGT),
        _ => pick(SGE, UGE),
    };
    b.icmp(predicate, x, y)
}

fn binary_float<'c>(
    b: &Builder<'_, 'c>,
    op: BinaryOp,
    x: Val<'c>,
    y: Val<'c>,
    wide: bool,
) -> Val<'c> {
    let rem = || if wide { math64::rem(b, x, y, 43) } else { math::rem(b, x, y) };
    match op {
        BinaryOp::Add => b.fadd(x, y),
        BinaryOp::Sub => b.fsub(x, y),
        BinaryOp::Mul => b.fmul(x, y),
        BinaryOp::Div => b.fdiv(x, y),
        BinaryOp::Min => math::extreme(b, x, y, false),
        BinaryOp::Max => math::extreme(b, x, y, true),
        BinaryOp::Pow if wide => math64::pow(b, x, y),
        BinaryOp::Pow => math::pow(b, x, y),
        BinaryOp::Rem => rem(),
        BinaryOp::Mod => {
            let r = rem();
            let zero = b.zero(x.get_type());
            let differs = b.xor(b.fcmp(OLT, r, zero), b.fcmp(OLT, y, zero));
            let wrong = b.and(differs, b.fcmp(UNE, r, zero));
            let r = b.select(wrong, b.fadd(r, y), r);
            b.select(b.fcmp(OEQ, r, zero), b.copysign(zero, y), r)
        }
        other => unreachable!("`{}` is not arithmetic", other.name()),
    }
}

fn binary_int<'c>(
    b: &Builder<'_, 'c>,
    op: BinaryOp,
    x: Val<'c>,
    y: Val<'c>,
    signed: bool,
) -> Val<'c> {
    match op {
        BinaryOp::Add => b.add(x, y),
        BinaryOp::Sub => b.sub(x, y),
        BinaryOp::Mul => b.mul(x, y),
        BinaryOp::Min if signed => b.smin(x, y),
        BinaryOp::Max if signed => b.smax(x, y),
        BinaryOp::Min => b.umin(x, y),
        BinaryOp::Max => b.umax(x, y),
        BinaryOp::Div => divide(b, x, y, signed).0,
        BinaryOp::Rem => divide(b, x, y, signed).1,
        BinaryOp::Mod => {
            let r = divide(b, x, y, signed).1;
            if !signed {
                return r;
            }
            let zero = b.zero(x.get_type());
            let wrong = b.and(b.icmp(SLT, b.xor(r, y), zero), b.icmp(NE, r, zero));
            b.select(wrong, b.add(r, y), r)
        }
        BinaryOp::Pow => int_power(b, x, y, signed),
        other => unreachable!("`{}` is not arithmetic", other.name()),
    }
}

/// Quotient and remainder that never trap: both are 0 where the divisor is 0.
fn divide<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>, signed: bool) -> (Val<'c>, Val<'c>) {
    let ty = x.get_type();
    let (zero, one) = (b.zero(ty), b.iconst(ty, 1));
    let none = b.icmp(EQ, y, zero);
    let (q, r) = if signed {
        let minus = b.icmp(EQ, y, b.iconst(ty, -1));
        let by = b.select(b.or(none, minus), one, y);
        let q = b.sdiv(x, by);
        (b.select(minus, b.sub(zero, x), q), b.sub(x, b.mul(q, by)))
    } else {
        let by = b.select(none, one, y);
        let q = b.udiv(x, by);
        (q, b.sub(x, b.mul(q, by)))
    };
    (b.select(none, zero, q), b.select(none, zero, r))
}

/// By repeated squaring, wrapping; a negative exponent gives the truncated reciprocal.
fn int_power<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>, signed: bool) -> Val<'c> {
    let ty = x.get_type();
    let (zero, one) = (b.zero(ty), b.iconst(ty, 1));
    let bits = match ty {
        Ty::VectorType(v) => v.get_element_type().into_int_type().get_bit_width(),
        scalar => scalar.into_int_type().get_bit_width(),
    };
    let powers = b.for_carried(b.i64c(0), b.i64c(bits.into()), 1, &[one, x, y], |_, carried| {
        let [result, base, left] = carried else { unreachable!("three values are carried") };
        let set = b.icmp(NE, b.and(*left, one), zero);
        let result = b.select(set, b.mul(*result, *base), *result);
        vec![result, b.mul(*base, *base), b.lshr(*left, one)]
    });
    if !signed {
        return powers[0];
    }
    let odd = b.icmp(NE, b.and(y, one), zero);
    let minus = b.iconst(ty, -1);
    let reciprocal = b.select(
        b.icmp(EQ, x, one),
        one,
        b.select(b.icmp(EQ, x, minus), b.select(odd, minus, one), zero),
    );
    b.select(b.icmp(SLT, y, zero), reciprocal, powers[0])
}

/// Conversion: floats round to nearest even; float to integer truncates, saturates at i64 (a
/// positive one for u64 at u64), then wraps; anything to bool is `!= 0`.
pub fn cast<'c>(b: &Builder<'_, 'c>, x: Typed<'c>, to: Elem) -> Typed<'c> {
    let lanes = b.lanes(x.val);
    let ty = register_type(b, to, lanes);
    let v = x.val;
    if x.elem == to {
        return x;
    }
    if to.bits() < 8 {
        return cast_to_four_bits(b, x, to);
    }
    let x = Typed { elem: byte_of(x.elem), ..x };
    let val = if to == Elem::Bool {
        match x.elem.is_float() {
            true => b.fcmp(UNE, v, b.zero(v.get_type())),
            false => b.icmp(NE, v, b.zero(v.get_type())),
        }
    } else if x.elem.is_float() && to.is_float() {
        float_to_float(b, x, to)
    } else if x.elem.is_float() {
        float_to_int(b, v, to)
    } else if to.is_float() {
        int_to_float(b, x, to)
    } else if to.bits() < x.elem.bits() {
        b.trunc(v, ty)
    } else if to.bits() == x.elem.bits() && x.elem != Elem::Bool {
        v
    } else if x.elem.is_signed() {
        b.sext(v, ty)
    } else {
        b.zext(v, ty)
    };
    Typed { elem: to, val }
}

/// The type that four bits are held as in registers.
fn byte_of(elem: Elem) -> Elem {
    match elem {
        Elem::I4 => Elem::I8,
        Elem::U4 => Elem::U8,
        other => other,
    }
}

/// The lowest four bits of an integer, sign or zeros above.
fn cast_to_four_bits<'c>(b: &Builder<'_, 'c>, x: Typed<'c>, to: Elem) -> Typed<'c> {
    let byte = cast(b, x, byte_of(to)).val;
    let four = b.iconst(byte.get_type(), 4);
    let high = b.shl(byte, four);
    let val = if to.is_signed() { b.ashr(high, four) } else { b.lshr(high, four) };
    Typed { elem: to, val }
}

fn float_to_float<'c>(b: &Builder<'_, 'c>, x: Typed<'c>, to: Elem) -> Val<'c> {
    let ty = register_type(b, to, b.lanes(x.val));
    match (x.elem, to) {
        (_, Elem::F64) => b.fpext(x.val, ty),
        (Elem::F64, Elem::F32) => b.fptrunc(x.val, ty),
        (Elem::F64, _) => rounded(b, to, math::narrow_to_odd(b, x.val)).val,
        _ => rounded(b, to, x.val).val,
    }
}

fn float_to_int<'c>(b: &Builder<'_, 'c>, x: Val<'c>, to: Elem) -> Val<'c> {
    let lanes = b.lanes(x);
    let long = b.vec(b.int(64), lanes);
    let convert = |name: &str| b.call(name, &[long, x.get_type()], &[x]);
    let signed = convert("llvm.fptosi.sat");
    if to == Elem::U64 {
        let positive = b.fcmp(OGE, x, b.zero(x.get_type()));
        return b.select(positive, convert("llvm.fptoui.sat"), signed);
    }
    if to.bits() == 64 { signed } else { b.trunc(signed, register_type(b, to, lanes)) }
}

fn int_to_float<'c>(b: &Builder<'_, 'c>, x: Typed<'c>, to: Elem) -> Val<'c> {
    let lanes = b.lanes(x.val);
    let convert = |ty| if x.elem.is_signed() { b.sitofp(x.val, ty) } else { b.uitofp(x.val, ty) };
    match to {
        Elem::F64 => convert(b.vec(b.f64(), lanes)),
        Elem::F32 => convert(b.f32v(lanes)),
        _ => {
            let wide = convert(b.vec(b.f64(), lanes));
            rounded(b, to, math::narrow_to_odd(b, wide)).val
        }
    }
}
