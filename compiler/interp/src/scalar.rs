//! Functions of scalars, one a lane. Floats come as f64 and leave as f64; the caller rounds to the
//! element type, which for `+ - * /` and the square root gives exactly the IEEE result of that type,
//! and for the others the correctly rounded value but for the last half bit of f64.

use fqc_ir::{BinaryOp, UnaryOp};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// `None` for the operations that give or take bools.
pub(crate) fn unary_float(op: UnaryOp) -> Option<fn(f64) -> f64> {
    Some(match op {
        UnaryOp::Neg => |x| -x,
        UnaryOp::Abs => f64::abs,
        UnaryOp::Sign => |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        },
        UnaryOp::Floor => f64::floor,
        UnaryOp::Ceil => f64::ceil,
        UnaryOp::Round => f64::round_ties_even,
        UnaryOp::Sqrt => f64::sqrt,
        UnaryOp::Rsqrt => |x| 1.0 / x.sqrt(),
        UnaryOp::Reciprocal => |x| 1.0 / x,
        UnaryOp::Exp => libm::exp,
        UnaryOp::Log => libm::log,
        UnaryOp::Sin => libm::sin,
        UnaryOp::Cos => libm::cos,
        UnaryOp::Tanh => libm::tanh,
        UnaryOp::Erf => libm::erf,
        UnaryOp::Sigmoid => sigmoid,
        UnaryOp::Relu => |x| if x < 0.0 { 0.0 } else { x },
        // 1 + erf(y) = erfc(-y) and 1 + tanh(y) = 2 sigmoid(2 y), without their cancellation.
        UnaryOp::Gelu => |x| 0.5 * x * libm::erfc(-x * FRAC_1_SQRT_2),
        UnaryOp::GeluTanh => |x| {
            let y = (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x);
            x * sigmoid(2.0 * y)
        },
        UnaryOp::Silu => |x| x * sigmoid(x),
        UnaryOp::Softplus => |x| x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
        UnaryOp::Not | UnaryOp::IsNan | UnaryOp::IsInf => return None,
    })
}

/// `None` for the operations that integers do not have.
pub(crate) fn unary_int(op: UnaryOp) -> Option<fn(i128) -> i128> {
    Some(match op {
        UnaryOp::Neg => |x| -x,
        UnaryOp::Abs => i128::abs,
        UnaryOp::Sign => i128::signum,
        UnaryOp::Relu => |x| x.max(0),
        _ => return None,
    })
}

/// `None` for logic and comparisons.
pub(crate) fn binary_float(op: BinaryOp) -> Option<fn(f64, f64) -> f64> {
    Some(match op {
        BinaryOp::Add => |a, b| a + b,
        BinaryOp::Sub => |a, b| a - b,
        BinaryOp::Mul => |a, b| a * b,
        BinaryOp::Div => |a, b| a / b,
        BinaryOp::Pow => libm::pow,
        BinaryOp::Min => |a, b| if a.is_nan() || a < b { a } else { b },
        BinaryOp::Max => |a, b| if a.is_nan() || a > b { a } else { b },
        BinaryOp::Mod => |a, b| {
            let r = libm::fmod(a, b);
            if r == 0.0 {
                0f64.copysign(b)
            } else if (r < 0.0) != (b < 0.0) {
                r + b
            } else {
                r
            }
        },
        BinaryOp::Rem => libm::fmod,
        _ => return None,
    })
}

/// On widened integers; the caller wraps. `None` for logic and comparisons.
pub(crate) fn binary_int(op: BinaryOp) -> Option<fn(i128, i128) -> i128> {
    Some(match op {
        BinaryOp::Add => |a, b| a + b,
        BinaryOp::Sub => |a, b| a - b,
        BinaryOp::Mul => |a, b| a.wrapping_mul(b),
        BinaryOp::Div => |a, b| if b == 0 { 0 } else { a / b },
        BinaryOp::Pow => int_pow,
        BinaryOp::Min => |a, b| a.min(b),
        BinaryOp::Max => |a, b| a.max(b),
        BinaryOp::Mod => |a, b| {
            if b == 0 {
                return 0;
            }
            let r = a % b;
            if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
        },
        BinaryOp::Rem => |a, b| if b == 0 { 0 } else { a % b },
        _ => return None,
    })
}

/// `base` to the power, wrapping; a negative power is the reciprocal, truncated.
fn int_pow(base: i128, power: i128) -> i128 {
    if power < 0 {
        return match base {
            1 => 1,
            -1 => 1 - 2 * (power & 1),
            _ => 0,
        };
    }
    let (mut result, mut square, mut left) = (1i128, base, power);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    result
}

/// A comparison of two values of any ordered type; `None` if `op` is none.
pub(crate) fn compare<T: PartialOrd>(op: BinaryOp) -> Option<fn(&T, &T) -> bool> {
    Some(match op {
        BinaryOp::Eq => |a, b| a == b,
        BinaryOp::Ne => |a, b| a != b,
        BinaryOp::Lt => |a, b| a < b,
        BinaryOp::Le => |a, b| a <= b,
        BinaryOp::Gt => |a, b| a > b,
        BinaryOp::Ge => |a, b| a >= b,
        _ => return None,
    })
}

/// `None` for others than logic.
pub(crate) fn logic(op: BinaryOp) -> Option<fn(bool, bool) -> bool> {
    Some(match op {
        BinaryOp::And => |a, b| a & b,
        BinaryOp::Or => |a, b| a | b,
        BinaryOp::Xor => |a, b| a ^ b,
        _ => return None,
    })
}
