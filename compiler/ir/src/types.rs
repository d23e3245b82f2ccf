//! Element types, shapes and the type of a value. Quantisation is part of the type.

use crate::dim::{self, Dim};
use crate::quant::Quant;
use std::fmt;
use std::sync::Arc;

/// The type of one element. `I4` and `U4` are packed two a byte, even index in the low nibble.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Elem {
    Bool,
    I4,
    U4,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F16,
    BF16,
    F32,
    F64,
}

impl Elem {
    /// All element types, in the order of their names' table.
    pub const ALL: [Elem; 15] = [
        Elem::Bool,
        Elem::I4,
        Elem::U4,
        Elem::I8,
        Elem::U8,
        Elem::I16,
        Elem::U16,
        Elem::I32,
        Elem::U32,
        Elem::I64,
        Elem::U64,
        Elem::F16,
        Elem::BF16,
        Elem::F32,
        Elem::F64,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Elem::Bool => "bool",
            Elem::I4 => "i4",
            Elem::U4 => "u4",
            Elem::I8 => "i8",
            Elem::U8 => "u8",
            Elem::I16 => "i16",
            Elem::U16 => "u16",
            Elem::I32 => "i32",
            Elem::U32 => "u32",
            Elem::I64 => "i64",
            Elem::U64 => "u64",
            Elem::F16 => "f16",
            Elem::BF16 => "bf16",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
        }
    }

    pub fn parse(name: &str) -> Option<Elem> {
        Elem::ALL.into_iter().find(|e| e.name() == name)
    }

    /// Bits of one element in memory (a bool is one byte).
    pub fn bits(self) -> u32 {
        match self {
            Elem::I4 | Elem::U4 => 4,
            Elem::Bool | Elem::I8 | Elem::U8 => 8,
            Elem::I16 | Elem::U16 | Elem::F16 | Elem::BF16 => 16,
            Elem::I32 | Elem::U32 | Elem::F32 => 32,
            Elem::I64 | Elem::U64 | Elem::F64 => 64,
        }
    }

    /// Bytes that `count` elements take.
    pub fn bytes(self, count: usize) -> usize {
        (count * self.bits() as usize).div_ceil(8)
    }

    pub fn is_float(self) -> bool {
        matches!(self, Elem::F16 | Elem::BF16 | Elem::F32 | Elem::F64)
    }

    pub fn is_int(self) -> bool {
        !self.is_float() && self != Elem::Bool
    }

    pub fn is_signed(self) -> bool {
        self.is_float() || matches!(self, Elem::I4 | Elem::I8 | Elem::I16 | Elem::I32 | Elem::I64)
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Sizes from the outermost axis to the innermost; row-major.
pub type Shape = Vec<Dim>;

/// What a value is: element type, shape, and, for a quantised value, what its codes mean.
#[derive(Clone, PartialEq, Debug)]
pub struct Type {
    pub elem: Elem,
    pub shape: Shape,
    pub quant: Option<Arc<Quant>>,
}

impl Type {
    pub fn new(elem: Elem, shape: Shape) -> Self {
        Type { elem, shape, quant: None }
    }

    /// A type with constant sizes.
    pub fn fixed(elem: Elem, shape: &[i64]) -> Self {
        Type::new(elem, shape.iter().map(|&d| Dim::from(d)).collect())
    }

    pub fn f32(shape: Shape) -> Self {
        Type::new(Elem::F32, shape)
    }

    pub fn with_quant(mut self, quant: Arc<Quant>) -> Self {
        self.quant = Some(quant);
        self
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn count(&self) -> Dim {
        dim::product(&self.shape)
    }

    /// All sizes as numbers, if none is symbolic.
    pub fn const_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(|d| d.as_const().and_then(|v| usize::try_from(v).ok())).collect()
    }

    /// The innermost size; one for a scalar.
    pub fn last(&self) -> Dim {
        self.shape.last().cloned().unwrap_or_else(Dim::one)
    }
}

impl fmt::Display for Type {
    /// Without the quantisation, which the text form prints by reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.elem)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}
