//! Tensors of the interpreter: element type, sizes, and one vector of that type, row-major. The
//! three lanes `ints`, `floats` and `bools` widen any of them, so that each operation is written
//! once a lane and rounds or wraps to its own type at the end.

use crate::round;
use fqc_ir::{Const, Elem, Quant, Type};
use half::{bf16, f16};
use std::sync::Arc;

/// The elements; `I4` is kept in `I8`, `U4` in `U8`.
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    Bool(Vec<bool>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    I16(Vec<i16>),
    U16(Vec<u16>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    I64(Vec<i64>),
    U64(Vec<u64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// Evaluates an expression on the vector, whatever its type.
macro_rules! with_vec {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::Bool($v) => $body,
            Data::I8($v) => $body,
            Data::U8($v) => $body,
            Data::I16($v) => $body,
            Data::U16($v) => $body,
            Data::I32($v) => $body,
            Data::U32($v) => $body,
            Data::I64($v) => $body,
            Data::U64($v) => $body,
            Data::F16($v) => $body,
            Data::BF16($v) => $body,
            Data::F32($v) => $body,
            Data::F64($v) => $body,
        }
    };
}

/// Maps the vector to another of the same type.
macro_rules! map_vec {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::Bool($v) => Data::Bool($body),
            Data::I8($v) => Data::I8($body),
            Data::U8($v) => Data::U8($body),
            Data::I16($v) => Data::I16($body),
            Data::U16($v) => Data::U16($body),
            Data::I32($v) => Data::I32($body),
            Data::U32($v) => Data::U32($body),
            Data::I64($v) => Data::I64($body),
            Data::U64($v) => Data::U64($body),
            Data::F16($v) => Data::F16($body),
            Data::BF16($v) => Data::BF16($body),
            Data::F32($v) => Data::F32($body),
            Data::F64($v) => Data::F64($body),
        }
    };
}

impl Data {
    pub fn len(&self) -> usize {
        with_vec!(self, v => v.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Integers wrapped to `elem`; floats rounded; bools by `!= 0`.
    pub(crate) fn from_ints(elem: Elem, values: impl Iterator<Item = i128>) -> Data {
        match elem {
            Elem::Bool => Data::Bool(values.map(|v| v != 0).collect()),
            Elem::I4 => Data::I8(values.map(|v| ((v as i8) << 4) >> 4).collect()),
            Elem::U4 => Data::U8(values.map(|v| v as u8 & 15).collect()),
            Elem::I8 => Data::I8(values.map(|v| v as i8).collect()),
            Elem::U8 => Data::U8(values.map(|v| v as u8).collect()),
            Elem::I16 => Data::I16(values.map(|v| v as i16).collect()),
            Elem::U16 => Data::U16(values.map(|v| v as u16).collect()),
            Elem::I32 => Data::I32(values.map(|v| v as i32).collect()),
            Elem::U32 => Data::U32(values.map(|v| v as u32).collect()),
            Elem::I64 => Data::I64(values.map(|v| v as i64).collect()),
            Elem::U64 => Data::U64(values.map(|v| v as u64).collect()),
            Elem::F32 => Data::F32(values.map(|v| v as f32).collect()),
            Elem::F16 => Data::F16(values.map(|v| round::to_f16(v as f64)).collect()),
            Elem::BF16 => Data::BF16(values.map(|v| round::to_bf16(v as f64)).collect()),
            Elem::F64 => Data::F64(values.map(|v| v as f64).collect()),
        }
    }

    /// Floats rounded to `elem`; integers truncated, held within i64 (u64), then wrapped, NaN to 0;
    /// bools by `!= 0`.
    pub(crate) fn from_floats(elem: Elem, values: impl Iterator<Item = f64>) -> Data {
        match elem {
            Elem::F16 => Data::F16(values.map(round::to_f16).collect()),
            Elem::BF16 => Data::BF16(values.map(round::to_bf16).collect()),
            Elem::F32 => Data::F32(values.map(|v| v as f32).collect()),
            Elem::F64 => Data::F64(values.collect()),
            Elem::Bool => Data::Bool(values.map(|v| v != 0.0).collect()),
            Elem::U64 => Data::U64(values.map(round::to_u64).collect()),
            _ => Data::from_ints(elem, values.map(|v| i128::from(v as i64))),
        }
    }

    /// The elements at the given positions.
    pub(crate) fn take(&self, at: impl Iterator<Item = usize>) -> Data {
        map_vec!(self, v => at.map(|i| v[i]).collect())
    }

    /// Appends `len` elements of `other`, of the same type, from `start` on.
    pub(crate) fn append(&mut self, other: &Data, start: usize, len: usize) {
        macro_rules! append {
            ($($variant:ident),*) => {
                match (self, other) {
                    $((Data::$variant(a), Data::$variant(b)) => {
                        a.extend_from_slice(&b[start..start + len]);
                    })*
                    _ => unreachable!("inference lets only equal types be joined"),
                }
            };
        }
        append!(Bool, I8, U8, I16, U16, I32, U32, I64, U64, F16, BF16, F32, F64);
    }

    /// No elements, of the type of `elem`.
    pub(crate) fn empty(elem: Elem) -> Data {
        Data::from_ints(elem, std::iter::empty())
    }

    fn ints(&self) -> Option<Vec<i128>> {
        Some(match self {
            Data::Bool(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::I8(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::U8(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::I16(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::U16(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::I32(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::U32(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::I64(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::U64(v) => v.iter().map(|&v| i128::from(v)).collect(),
            Data::F16(_) | Data::BF16(_) | Data::F32(_) | Data::F64(_) => return None,
        })
    }

    fn floats(&self) -> Option<Vec<f64>> {
        Some(match self {
            Data::F16(v) => v.iter().map(|v| v.to_f64()).collect(),
            Data::BF16(v) => v.iter().map(|v| v.to_f64()).collect(),
            Data::F32(v) => v.iter().map(|&v| f64::from(v)).collect(),
            Data::F64(v) => v.clone(),
            _ => return None,
        })
    }
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    elem: Elem,
    shape: Vec<usize>,
    quant: Option<Arc<Quant>>,
    data: Data,
}

impl Tensor {
    /// A tensor from its parts; `None` if the count or the kind of the data does not fit.
    pub fn new(elem: Elem, shape: Vec<usize>, data: Data) -> Option<Self> {
        let fits = count(&shape)? == data.len()
            && std::mem::discriminant(&data) == std::mem::discriminant(&Data::empty(elem));
        fits.then_some(Tensor { elem, shape, quant: None, data })
    }

    /// All zero (or false). Panics if the shape is larger than the memory.
    pub fn zeros(elem: Elem, shape: &[usize]) -> Self {
        let n = count(shape).expect("the shape of a tensor that is made here fits in memory");
        let data = Data::from_ints(elem, std::iter::repeat_n(0, n));
        Tensor { elem, shape: shape.to_vec(), quant: None, data }
    }

    /// Panics if the values do not fill the shape.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Tensor::new(Elem::F32, shape.to_vec(), Data::F32(values.to_vec()))
            .expect("the caller's values fill the shape")
    }

    /// Panics if the values do not fill the shape.
    pub fn i64(shape: &[usize], values: &[i64]) -> Self {
        Tensor::new(Elem::I64, shape.to_vec(), Data::I64(values.to_vec()))
            .expect("the caller's values fill the shape")
    }

    /// Panics if the values do not fill the shape.
    pub fn i8(shape: &[usize], values: &[i8]) -> Self {
        Tensor::new(Elem::I8, shape.to_vec(), Data::I8(values.to_vec()))
            .expect("the caller's values fill the shape")
    }

    /// Panics if the values do not fill the shape.
    pub fn bool(shape: &[usize], values: &[bool]) -> Self {
        Tensor::new(Elem::Bool, shape.to_vec(), Data::Bool(values.to_vec()))
            .expect("the caller's values fill the shape")
    }

    /// Any element type from integers, wrapped or rounded to it. Panics if they do not fill the
    /// shape.
    pub fn from_ints(elem: Elem, shape: &[usize], values: &[i64]) -> Self {
        let data = Data::from_ints(elem, values.iter().map(|&v| i128::from(v)));
        Tensor::new(elem, shape.to_vec(), data).expect("the caller's values fill the shape")
    }

    /// Any element type from floats, converted as by `cast`. Panics if they do not fill the shape.
    pub fn from_floats(elem: Elem, shape: &[usize], values: &[f64]) -> Self {
        let data = Data::from_floats(elem, values.iter().copied());
        Tensor::new(elem, shape.to_vec(), data).expect("the caller's values fill the shape")
    }

    /// The same with a meaning for its codes.
    pub fn with_quant(mut self, quant: Option<Arc<Quant>>) -> Self {
        self.quant = quant;
        self
    }

    pub fn elem(&self) -> Elem {
        self.elem
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn quant(&self) -> Option<&Arc<Quant>> {
        self.quant.as_ref()
    }

    pub fn data(&self) -> &Data {
        &self.data
    }

    pub fn count(&self) -> usize {
        self.data.len()
    }

    /// Bytes of the elements as held here.
    pub fn byte_count(&self) -> u64 {
        value_bytes(self.elem, self.count() as u64)
    }

    /// The innermost size; one for a scalar.
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The type with constant sizes.
    pub fn ty(&self) -> Type {
        let shape = self.shape.iter().map(|&d| d.into()).collect();
        Type { elem: self.elem, shape, quant: self.quant.clone() }
    }

    /// The elements of an f32 tensor.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements of an i64 tensor.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            Data::I64(v) => Some(v),
            _ => None,
        }
    }

    /// The elements of a bool tensor.
    pub fn as_bool(&self) -> Option<&[bool]> {
        match &self.data {
            Data::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// Integers and bools widened; `None` for floats.
    pub fn ints(&self) -> Option<Vec<i128>> {
        self.data.ints()
    }

    /// Floats widened; `None` for others.
    pub fn floats(&self) -> Option<Vec<f64>> {
        self.data.floats()
    }

    /// Every element as f64, whatever the type.
    pub fn to_f64(&self) -> Vec<f64> {
        let ints = || self.ints().unwrap_or_default().into_iter().map(|v| v as f64).collect();
        self.floats().unwrap_or_else(ints)
    }

    /// The elements of a constant. Its length was checked when it was made.
    pub fn from_const(c: &Const) -> Self {
        let b = c.bytes.as_slice();
        macro_rules! read {
            ($variant:ident, $ty:ty) => {
                Data::$variant(
                    b.chunks_exact(size_of::<$ty>())
                        .map(|c| <$ty>::from_le_bytes(c.try_into().expect("a chunk has its size")))
                        .collect(),
                )
            };
        }
        let n = c.count();
        let nibble = |i: usize| (b[i / 2] >> (4 * (i % 2))) & 15;
        let data = match c.elem {
            Elem::Bool => Data::Bool(b.iter().map(|&v| v != 0).collect()),
            Elem::I4 => Data::I8((0..n).map(|i| ((nibble(i) << 4) as i8) >> 4).collect()),
            Elem::U4 => Data::U8((0..n).map(nibble).collect()),
            Elem::I8 => Data::I8(b.iter().map(|&v| v as i8).collect()),
            Elem::U8 => Data::U8(b.to_vec()),
            Elem::I16 => read!(I16, i16),
            Elem::U16 => read!(U16, u16),
            Elem::I32 => read!(I32, i32),
            Elem::U32 => read!(U32, u32),
            Elem::I64 => read!(I64, i64),
            Elem::U64 => read!(U64, u64),
            Elem::F16 => read!(F16, f16),
            Elem::BF16 => read!(BF16, bf16),
            Elem::F32 => read!(F32, f32),
            Elem::F64 => read!(F64, f64),
        };
        Tensor { elem: c.elem, shape: c.shape.clone(), quant: c.quant.clone(), data }
    }

    /// The same as a constant.
    pub fn to_const(&self) -> Const {
        let bytes: Vec<u8> = match &self.data {
            Data::Bool(v) => v.iter().map(|&v| u8::from(v)).collect(),
            Data::I8(v) if self.elem == Elem::I4 => pack_nibbles(v.iter().map(|&v| v as u8)),
            Data::U8(v) if self.elem == Elem::U4 => pack_nibbles(v.iter().copied()),
            Data::I8(v) => v.iter().map(|&v| v as u8).collect(),
            Data::U8(v) => v.clone(),
            Data::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::U32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::I64(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::U64(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::F16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::BF16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::F64(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let c = Const::new(self.elem, self.shape.clone(), bytes).expect("the elements fill it");
        match &self.quant {
            Some(quant) => c.with_quant(quant.clone()),
            None => c,
        }
    }
}

/// Bytes that `count` elements take here, where four-bit elements are not packed.
pub(crate) fn value_bytes(elem: Elem, count: u64) -> u64 {
    count.saturating_mul(u64::from(elem.bits().max(8) / 8))
}

/// The number of elements; `None` if any part of the product leaves the address space.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    let all = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    isize::try_from(all).ok()?;
    Some(if shape.contains(&0) { 0 } else { all })
}

fn pack_nibbles(codes: impl Iterator<Item = u8>) -> Vec<u8> {
    let codes: Vec<u8> = codes.collect();
    codes.chunks(2).map(|c| (c[0] & 15) | (c.get(1).copied().unwrap_or(0) << 4)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_way_through_a_constant() {
        for elem in Elem::ALL {
            let t = Tensor::from_ints(elem, &[5], &[0, 1, 2, -3, 7]);
            let c = t.to_const();
            assert_eq!(c.bytes.as_slice().len(), elem.bytes(5), "{elem}");
            assert_eq!(Tensor::from_const(&c), t, "{elem}");
        }
    }

    #[test]
    fn a_tensor_refuses_data_that_does_not_fit() {
        assert!(Tensor::new(Elem::F32, vec![2], Data::F32(vec![1.0])).is_none());
        assert!(Tensor::new(Elem::F32, vec![1], Data::F64(vec![1.0])).is_none());
        assert!(Tensor::new(Elem::I4, vec![1], Data::I8(vec![1])).is_some());
        assert!(Tensor::new(Elem::I8, vec![usize::MAX, 2], Data::I8(vec![1])).is_none());
    }
}
