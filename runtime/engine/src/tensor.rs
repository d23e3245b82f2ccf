//! Tensors at the border of the runtime: dense, row-major, of one of the file format's element
//! types. Views borrow the caller's memory; [`Tensor`] owns a 64-byte aligned block.

use fqbin::Elem;

use crate::error::{Error, Result};
use crate::memory::{AlignedBytes, Plain, bytes_of, bytes_of_mut, numbers_of};

/// A number type and the element type that it is.
pub trait Number: Plain {
    const ELEM: Elem;
}

macro_rules! number {
    ($($t:ty => $e:ident),*) => { $( impl Number for $t { const ELEM: Elem = Elem::$e; } )* };
}

number!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64,
        i64 => I64, f32 => F32, f64 => F64);

/// Bytes of a dense tensor; `None` if they exceed the address space.
pub(crate) fn dense_bytes(elem: Elem, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |acc, &dim| acc.checked_mul(dim))?;
    elements.checked_mul(elem.bits() as usize).map(|bits| bits.div_ceil(8))
}

/// A tensor in the caller's memory.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub elem: Elem,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

impl<'a> TensorView<'a> {
    pub fn new(elem: Elem, shape: &'a [usize], data: &'a [u8]) -> TensorView<'a> {
        TensorView { elem, shape, data }
    }

    /// A view of a slice of numbers.
    pub fn of<T: Number>(shape: &'a [usize], values: &'a [T]) -> TensorView<'a> {
        TensorView { elem: T::ELEM, shape, data: bytes_of(values) }
    }
}

/// A tensor in the caller's memory that a run writes.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    pub elem: Elem,
    pub shape: &'a [usize],
    pub data: &'a mut [u8],
}

impl<'a> TensorViewMut<'a> {
    pub fn new(elem: Elem, shape: &'a [usize], data: &'a mut [u8]) -> TensorViewMut<'a> {
        TensorViewMut { elem, shape, data }
    }

    /// A view of a slice of numbers.
    pub fn of<T: Number>(shape: &'a [usize], values: &'a mut [T]) -> TensorViewMut<'a> {
        TensorViewMut { elem: T::ELEM, shape, data: bytes_of_mut(values) }
    }
}

/// An owned tensor.
pub struct Tensor {
    elem: Elem,
    shape: Vec<usize>,
    data: AlignedBytes,
}

impl Tensor {
    pub fn zeros(elem: Elem, shape: &[usize]) -> Result<Tensor> {
        let bytes = dense_bytes(elem, shape)
            .ok_or_else(|| Error::Limit(format!("a tensor of shape {shape:?} is too large")))?;
        Ok(Tensor { elem, shape: shape.to_vec(), data: AlignedBytes::zeroed(bytes)? })
    }

    pub fn elem(&self) -> Elem {
        self.elem
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.as_mut_slice()
    }

    /// The numbers, if `T` is the element type.
    pub fn numbers<T: Number>(&self) -> Option<&[T]> {
        (T::ELEM == self.elem).then(|| numbers_of(&self.data)).flatten()
    }

    pub fn view(&self) -> TensorView<'_> {
        TensorView { elem: self.elem, shape: &self.shape, data: &self.data }
    }

    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut { elem: self.elem, shape: &self.shape, data: self.data.as_mut_slice() }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({}{:?})", self.elem.name(), self.shape)
    }
}

/// Named tensors that a run made, in the order of the model's outputs.
#[derive(Debug)]
pub struct Outputs(pub(crate) Vec<(String, Tensor)>);

impl Outputs {
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(n, t)| (n.as_str(), t))
    }

    pub fn into_vec(self) -> Vec<(String, Tensor)> {
        self.0
    }
}
