//! Constant data: bytes that are owned or lie in somebody's file mapping, shared without copying.

use crate::dim::Dim;
use crate::quant::Quant;
use crate::types::{Elem, Type};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Who keeps the memory of [`Bytes`].
pub trait Owner: Send + Sync {
    fn bytes(&self) -> &[u8];

    /// Lets the system have the memory of a part, which stays readable: it comes back from its file.
    /// Nothing, where there is no such file.
    fn release(&self, part: Range<usize>) {
        let _ = part;
    }
}

impl Owner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Smaller parts are not worth a call of the system.
const LEAST_RELEASED: usize = 1 << 18;

/// An immutable range of bytes of a shared owner (a `Vec`, a file mapping).
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    start: usize,
    len: usize,
}

impl Bytes {
    pub fn new(owner: Arc<dyn Owner>) -> Self {
        let len = owner.bytes().len();
        Bytes { owner, start: 0, len }
    }

    /// A part of these bytes; `None` if it does not lie inside.
    pub fn slice(&self, start: usize, len: usize) -> Option<Bytes> {
        (start.checked_add(len)? <= self.len).then(|| Bytes {
            owner: self.owner.clone(),
            start: self.start + start,
            len,
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.owner.bytes()[self.start..self.start + self.len]
    }

    /// Says that the bytes are not read again soon, so that those of a mapped file need not stay in
    /// memory. Whoever has read through a large constant calls this.
    pub fn release(&self) {
        if self.len >= LEAST_RELEASED {
            self.owner.release(self.start..self.start + self.len);
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::new(Arc::new(bytes))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

/// A constant tensor: element type, sizes, little-endian row-major bytes.
#[derive(Clone, Debug)]
pub struct Const {
    pub elem: Elem,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
    /// What the values mean, if they are codes.
    pub quant: Option<Arc<Quant>>,
}

impl PartialEq for Const {
    fn eq(&self, other: &Self) -> bool {
        self.elem == other.elem
            && self.shape == other.shape
            && self.quant == other.quant
            && self.bytes.as_slice() == other.bytes.as_slice()
    }
}

impl Const {
    /// A constant from bytes; `None` if their length does not fit the shape.
    pub fn new(elem: Elem, shape: Vec<usize>, bytes: impl Into<Bytes>) -> Option<Self> {
        let bytes = bytes.into();
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let bits = count.checked_mul(elem.bits() as usize)?;
        let fits = bits.div_ceil(8) == bytes.as_slice().len();
        fits.then_some(Const { elem, shape, bytes, quant: None })
    }

    /// The same values as codes.
    pub fn with_quant(mut self, quant: Arc<Quant>) -> Self {
        self.quant = Some(quant);
        self
    }

    /// The type of the value.
    pub fn ty(&self) -> Type {
        let shape = self.shape.iter().map(|&d| Dim::from(d)).collect();
        Type { elem: self.elem, shape, quant: self.quant.clone() }
    }

    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn f32(shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Const::new(Elem::F32, shape, bytes).expect("the caller's values fill the shape")
    }

    pub fn i64(shape: Vec<usize>, values: &[i64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Const::new(Elem::I64, shape, bytes).expect("the caller's values fill the shape")
    }

    pub fn i8(shape: Vec<usize>, values: &[i8]) -> Self {
        let bytes: Vec<u8> = values.iter().map(|&v| v as u8).collect();
        Const::new(Elem::I8, shape, bytes).expect("the caller's values fill the shape")
    }

    /// A copy of the values of an `f32` constant, whose own bytes are then [released](Bytes::release);
    /// `None` for another type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.elem == Elem::F32).then(|| {
            let bytes = self.bytes.as_slice().chunks_exact(4);
            let values = bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            self.bytes.release();
            values
        })
    }

    /// The values of an integer or boolean constant, widened; `None` for a float.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let b = self.bytes.as_slice();
        let nibble = |i: usize| (b[i / 2] >> (4 * (i % 2))) & 15;
        Some(match self.elem {
            Elem::I64 | Elem::U64 => b
                .chunks_exact(8)
                .map(|c| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]))
                .collect(),
            Elem::I32 => b
                .chunks_exact(4)
                .map(|c| i64::from(i32::from_le_bytes([c[0], c[1], c[2], c[3]])))
                .collect(),
            Elem::U32 => b
                .chunks_exact(4)
                .map(|c| i64::from(u32::from_le_bytes([c[0], c[1], c[2], c[3]])))
                .collect(),
            Elem::I16 => {
                b.chunks_exact(2).map(|c| i64::from(i16::from_le_bytes([c[0], c[1]]))).collect()
            }
            Elem::U16 => {
                b.chunks_exact(2).map(|c| i64::from(u16::from_le_bytes([c[0], c[1]]))).collect()
            }
            Elem::I8 => b.iter().map(|&v| i64::from(v as i8)).collect(),
            Elem::U8 | Elem::Bool => b.iter().map(|&v| i64::from(v)).collect(),
            Elem::U4 => (0..self.count()).map(|i| i64::from(nibble(i))).collect(),
            Elem::I4 => {
                (0..self.count()).map(|i| i64::from(((nibble(i) << 4) as i8) >> 4)).collect()
            }
            Elem::F16 | Elem::BF16 | Elem::F32 | Elem::F64 => return None,
        })
    }
}
