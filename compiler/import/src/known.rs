//! Arithmetic on the elements of small tensors that are known at import: integers and booleans as
//! symbolic sizes, floats as numbers. `None` means that the result cannot be decided here; the
//! operation then becomes a node of the graph.

use crate::dims;
use fqc_ir::{BinaryOp, Const, Dim, Elem, UnaryOp};

/// The elements of a tensor, row-major.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Known {
    /// Integers, or booleans as 0 and 1.
    Dims(Vec<Dim>),
    Floats(Vec<f64>),
}

impl Known {
    pub fn len(&self) -> usize {
        match self {
            Known::Dims(v) => v.len(),
            Known::Floats(v) => v.len(),
        }
    }

    /// The element at each of the given places, in order.
    pub fn pick(&self, places: impl Iterator<Item = usize>) -> Known {
        match self {
            Known::Dims(v) => Known::Dims(places.map(|i| v[i].clone()).collect()),
            Known::Floats(v) => Known::Floats(places.map(|i| v[i]).collect()),
        }
    }

    /// The elements of a constant.
    pub fn of(c: &Const) -> Option<Known> {
        if let Some(ints) = c.to_i64() {
            // An unsigned 64-bit number beyond the signed range is not a size.
            let fits = c.elem != Elem::U64 || ints.iter().all(|&v| v >= 0);
            return fits.then(|| Known::Dims(ints.into_iter().map(Dim::from).collect()));
        }
        let bytes = c.bytes.as_slice();
        let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        Some(Known::Floats(match c.elem {
            Elem::F32 => c.to_f32()?.into_iter().map(f64::from).collect(),
            Elem::F16 => pairs().map(|b| half::f16::from_bits(b).to_f64()).collect(),
            Elem::BF16 => pairs().map(|b| half::bf16::from_bits(b).to_f64()).collect(),
            _ => bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
        }))
    }

    /// The elements as bytes of a constant of the given type; `None` if one is symbolic.
    pub fn to_bytes(&self, elem: Elem) -> Option<Vec<u8>> {
        match self {
            Known::Floats(v) => Some(v.iter().flat_map(|&x| float_bytes(x, elem)).collect()),
            Known::Dims(v) => {
                let ints: Vec<i64> = v.iter().map(Dim::as_const).collect::<Option<_>>()?;
                let width = elem.bits() as usize / 8;
                if width == 0 {
                    let nibble = |v: Option<&i64>| v.map_or(0, |&v| v as u8 & 15);
                    let pair = |p: &[i64]| nibble(p.first()) | nibble(p.get(1)) << 4;
                    return Some(ints.chunks(2).map(pair).collect());
                }
                Some(ints.iter().flat_map(|v| v.to_le_bytes()[..width].to_vec()).collect())
            }
        }
    }
}

fn float_bytes(x: f64, elem: Elem) -> Vec<u8> {
    match elem {
        Elem::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
        Elem::BF16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        Elem::F32 => (x as f32).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    }
}

/// The nearest value of the type. One operation in f64 and then this rounding give the correctly
/// rounded result of that operation in the narrower type.
fn round_to(x: f64, elem: Elem) -> f64 {
    match elem {
        Elem::F16 => half::f16::from_f64(x).to_f64(),
        Elem::BF16 => half::bf16::from_f64(x).to_f64(),
        Elem::F32 => f64::from(x as f32),
        _ => x,
    }
}

fn truth(value: bool) -> Dim {
    Dim::from(i64::from(value))
}

/// Whether an integer fits the type; results that would wrap are left to the graph.
fn fits(dim: &Dim, elem: Elem) -> bool {
    let Some(v) = dim.as_const() else { return matches!(elem, Elem::I32 | Elem::I64) };
    match elem {
        Elem::Bool => (0..=1).contains(&v),
        Elem::I64 => true,
        Elem::U64 => v >= 0,
        _ if elem.is_signed() => {
            (-(1i64 << (elem.bits() - 1))..1 << (elem.bits() - 1)).contains(&v)
        }
        _ => (0..1i64 << elem.bits()).contains(&v),
    }
}

/// Element-wise unary operation.
pub(crate) fn unary(op: UnaryOp, a: &Known, elem: Elem) -> Option<Known> {
    match a {
        Known::Dims(v) => {
            let one = |d: &Dim| {
                let r = match op {
                    UnaryOp::Neg => -d.clone(),
                    UnaryOp::Abs if dims::nonneg(d) => d.clone(),
                    UnaryOp::Abs | UnaryOp::Sign if d.is_const() => {
                        let v = d.as_const()?;
                        Dim::from(if op == UnaryOp::Abs { v.checked_abs()? } else { v.signum() })
                    }
                    UnaryOp::Not => truth(d.as_const()? == 0),
                    UnaryOp::Relu => dims::max(d, &Dim::zero()),
                    _ => return None,
                };
                fits(&r, elem).then_some(r)
            };
            v.iter().map(one).collect::<Option<_>>().map(Known::Dims)
        }
        Known::Floats(v) => {
            let f: fn(f64) -> f64 = match op {
                UnaryOp::Neg => |x| -x,
                UnaryOp::Abs => f64::abs,
                UnaryOp::Floor => f64::floor,
                UnaryOp::Ceil => f64::ceil,
                UnaryOp::Round => f64::round_ties_even,
                UnaryOp::Sqrt => f64::sqrt,
                UnaryOp::Reciprocal => |x| 1.0 / x,
                _ => return None,
            };
            Some(Known::Floats(v.iter().map(|&x| round_to(f(x), elem)).collect()))
        }
    }
}

/// Element-wise binary operation on tensors of one length.
pub(crate) fn binary(op: BinaryOp, a: &Known, b: &Known, elem: Elem) -> Option<Known> {
    match (a, b) {
        (Known::Dims(a), Known::Dims(b)) => {
            let all = a.iter().zip(b).map(|(x, y)| {
                let r = int_binary(op, x, y)?;
                let elem = if op.is_comparison() { Elem::Bool } else { elem };
                fits(&r, elem).then_some(r)
            });
            all.collect::<Option<_>>().map(Known::Dims)
        }
        (Known::Floats(a), Known::Floats(b)) => {
            if op.is_comparison() {
                let all = a.iter().zip(b).map(|(&x, &y)| compare_floats(op, x, y).map(truth));
                return all.collect::<Option<_>>().map(Known::Dims);
            }
            let all = a.iter().zip(b).map(|(&x, &y)| {
                let r = match op {
                    BinaryOp::Add => x + y,
                    BinaryOp::Sub => x - y,
                    BinaryOp::Mul => x * y,
                    BinaryOp::Div => x / y,
                    BinaryOp::Min if !x.is_nan() && !y.is_nan() => x.min(y),
                    BinaryOp::Max if !x.is_nan() && !y.is_nan() => x.max(y),
                    _ => return None,
                };
                Some(round_to(r, elem))
            });
            all.collect::<Option<_>>().map(Known::Floats)
        }
        _ => None,
    }
}

fn compare_floats(op: BinaryOp, x: f64, y: f64) -> Option<bool> {
    Some(match op {
        BinaryOp::Eq => x == y,
        BinaryOp::Ne => x != y,
        BinaryOp::Lt => x < y,
        BinaryOp::Le => x <= y,
        BinaryOp::Gt => x > y,
        BinaryOp::Ge => x >= y,
        _ => return None,
    })
}

fn int_binary(op: BinaryOp, x: &Dim, y: &Dim) -> Option<Dim> {
    let consts = x.as_const().zip(y.as_const());
    let (ge, le) = (|| dims::at_least(x, y), || dims::at_least(y, x));
    let apart = || {
        let one = Dim::one();
        dims::at_least(x, &(y.clone() + one.clone())) || dims::at_least(y, &(x.clone() + one))
    };
    let decide = |yes: bool, no: bool| if yes || no { Some(truth(yes)) } else { None };
    Some(match op {
        BinaryOp::Add => x.clone() + y.clone(),
        BinaryOp::Sub => x.clone() - y.clone(),
        BinaryOp::Mul => x.clone() * y.clone(),
        BinaryOp::Div => match consts {
            Some((a, b)) => Dim::from(a.checked_div(b)?),
            None if dims::nonneg(x) && dims::nonneg(y) && y.as_const() != Some(0) => x.floor_div(y),
            None => x.exact_div(y)?,
        },
        BinaryOp::Mod | BinaryOp::Rem => match consts {
            Some((a, b)) if op == BinaryOp::Rem => Dim::from(a.checked_rem(b)?),
            Some((a, b)) => Dim::from(a.checked_rem(b)?.checked_add(b)?.checked_rem(b)?),
            None if dims::nonneg(x) && dims::nonneg(y) && y.as_const() != Some(0) => {
                x.clone() - x.floor_div(y) * y.clone()
            }
            None => return None,
        },
        BinaryOp::Pow => {
            let (a, b) = consts?;
            Dim::from(a.checked_pow(u32::try_from(b).ok()?)?)
        }
        BinaryOp::Min => dims::min(x, y),
        BinaryOp::Max => dims::max(x, y),
        BinaryOp::Eq => decide(x == y, apart())?,
        BinaryOp::Ne => decide(apart(), x == y)?,
        BinaryOp::Ge => decide(ge(), dims::at_least(y, &(x.clone() + Dim::one())))?,
        BinaryOp::Gt => decide(dims::at_least(x, &(y.clone() + Dim::one())), le())?,
        BinaryOp::Le => decide(le(), dims::at_least(x, &(y.clone() + Dim::one())))?,
        BinaryOp::Lt => decide(dims::at_least(y, &(x.clone() + Dim::one())), ge())?,
        BinaryOp::And => truth(x.as_const()? != 0 && y.as_const()? != 0),
        BinaryOp::Or => truth(x.as_const()? != 0 || y.as_const()? != 0),
        BinaryOp::Xor => truth((x.as_const()? != 0) != (y.as_const()? != 0)),
    })
}

/// Conversion to another element type, where the value is certain to survive or the rule is simple.
pub(crate) fn cast(a: &Known, to: Elem) -> Option<Known> {
    match (a, to) {
        (Known::Dims(v), Elem::Bool) => {
            let one = |d: &Dim| match d.as_const() {
                Some(v) => Some(truth(v != 0)),
                None => dims::at_least(d, &Dim::one()).then(|| truth(true)),
            };
            v.iter().map(one).collect::<Option<_>>().map(Known::Dims)
        }
        (Known::Dims(v), to) if to.is_float() => {
            let one = |d: &Dim| Some(round_to(d.as_const()? as f64, to));
            v.iter().map(one).collect::<Option<_>>().map(Known::Floats)
        }
        (Known::Dims(v), to) => v.iter().all(|d| fits(d, to)).then(|| Known::Dims(v.clone())),
        (Known::Floats(v), Elem::Bool) => {
            Some(Known::Dims(v.iter().map(|&x| truth(x != 0.0)).collect()))
        }
        (Known::Floats(v), to) if to.is_float() => {
            Some(Known::Floats(v.iter().map(|&x| round_to(x, to)).collect()))
        }
        (Known::Floats(v), to) => {
            let one = |&x: &f64| {
                let t = x.trunc();
                let d = Dim::from(t as i64);
                (t.abs() < 9e15 && fits(&d, to)).then_some(d)
            };
            v.iter().map(one).collect::<Option<_>>().map(Known::Dims)
        }
    }
}

/// Element-wise choice by known conditions.
pub(crate) fn select(c: &Known, a: &Known, b: &Known) -> Option<Known> {
    let Known::Dims(c) = c else { return None };
    let c: Vec<bool> = c.iter().map(|d| d.as_const().map(|v| v != 0)).collect::<Option<_>>()?;
    match (a, b) {
        (Known::Dims(a), Known::Dims(b)) => {
            let all = c.iter().zip(a.iter().zip(b));
            Some(Known::Dims(all.map(|(&c, (a, b))| if c { a } else { b }.clone()).collect()))
        }
        (Known::Floats(a), Known::Floats(b)) => {
            let all = c.iter().zip(a.iter().zip(b));
            Some(Known::Floats(all.map(|(&c, (&a, &b))| if c { a } else { b }).collect()))
        }
        _ => None,
    }
}
