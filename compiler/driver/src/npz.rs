//! `.npz` files as lists of named tensors: inputs, outputs, calibration data.

use crate::exit::Failure;
use fqbin::Elem;
use fqrt::Tensor;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyError, ReadNpzError};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

/// Arrays by name, in the order of the file.
pub type Arrays = Vec<(String, Tensor)>;

/// All arrays of a file.
pub fn read(path: &Path) -> Result<Arrays, Failure> {
    let file = File::open(path).map_err(|e| Failure::io("read", path, &e))?;
    let bad = |what: String| Failure::data(format!("`{}`: {what}", path.display()));
    let mut npz = NpzReader::new(BufReader::new(file))
        .map_err(|e| bad(format!("is not an .npz file: {e}")))?;
    let names = npz.names().map_err(|e| bad(e.to_string()))?;
    let mut arrays = Vec::new();
    for name in names {
        let tensor = array(&mut npz, &name).map_err(|e| bad(format!("array `{name}`: {e}")))?;
        arrays.push((name.trim_end_matches(".npy").to_owned(), tensor));
    }
    Ok(arrays)
}

type Npz = NpzReader<BufReader<File>>;

/// One array, by trying the element types; the header decides which fits.
fn array(npz: &mut Npz, name: &str) -> Result<Tensor, String> {
    macro_rules! try_types {
        ($($t:ty),*) => {$(
            match npz.by_name::<ndarray::OwnedRepr<$t>, IxDyn>(name) {
                Ok(array) => return tensor(&array),
                Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => {}
                Err(e) => return Err(e.to_string()),
            }
        )*};
    }
    try_types!(f32, i64, i32, f64, u8, i8, i16, u16, u32, u64);
    match npz.by_name::<ndarray::OwnedRepr<bool>, IxDyn>(name) {
        Ok(array) => {
            let values: Vec<u8> = array.iter().map(|&v| u8::from(v)).collect();
            filled(Elem::Bool, array.shape(), &values)
        }
        Err(e) => Err(format!("its element type is not supported: {e}")),
    }
}

fn tensor<T: fqrt::Number + Copy>(array: &ArrayD<T>) -> Result<Tensor, String> {
    let values: Vec<T> = array.iter().copied().collect();
    let view = fqrt::TensorView::of(array.shape(), &values);
    filled(T::ELEM, array.shape(), view.data)
}

/// A tensor with these bytes.
pub fn filled(elem: Elem, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let mut tensor = Tensor::zeros(elem, shape).map_err(|e| e.to_string())?;
    if tensor.bytes().len() != bytes.len() {
        return Err(format!("has {} bytes, its shape wants {}", bytes.len(), tensor.bytes().len()));
    }
    tensor.bytes_mut().copy_from_slice(bytes);
    Ok(tensor)
}

/// Writes arrays to a file, beside it first, then in one step in its place.
pub fn write(path: &Path, arrays: &[(&str, &Tensor)]) -> Result<(), Failure> {
    let name = path.file_name().ok_or_else(|| Failure::usage("the output has no file name"))?;
    let temp = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let done = write_to(&temp, arrays)
        .and_then(|()| std::fs::rename(&temp, path).map_err(|e| Failure::io("rename", path, &e)));
    if done.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&temp);
    }
    done
}

fn write_to(path: &Path, arrays: &[(&str, &Tensor)]) -> Result<(), Failure> {
    let file = File::create(path).map_err(|e| Failure::io("create", path, &e))?;
    let mut npz = NpzWriter::new(BufWriter::new(file));
    for (name, tensor) in arrays {
        add(&mut npz, name, tensor).map_err(|what| {
            Failure::new(crate::Exit::Io, format!("cannot write `{name}` to npz: {what}"))
        })?;
    }
    let io = |e: ndarray_npy::WriteNpzError| {
        Failure::new(crate::Exit::Io, format!("cannot write `{}`: {e}", path.display()))
    };
    npz.finish().map_err(io)?;
    Ok(())
}

fn add(npz: &mut NpzWriter<BufWriter<File>>, name: &str, tensor: &Tensor) -> Result<(), String> {
    macro_rules! put {
        ($t:ty) => {{
            let values = tensor.numbers::<$t>().ok_or("has another element type")?.to_vec();
            let array = ArrayD::from_shape_vec(IxDyn(tensor.shape()), values);
            npz.add_array(name, &array.map_err(|e| e.to_string())?).map_err(|e| e.to_string())
        }};
    }
    match tensor.elem() {
        Elem::F32 => put!(f32),
        Elem::F64 => put!(f64),
        Elem::I64 => put!(i64),
        Elem::I32 => put!(i32),
        Elem::I16 => put!(i16),
        Elem::I8 => put!(i8),
        Elem::U64 => put!(u64),
        Elem::U32 => put!(u32),
        Elem::U16 => put!(u16),
        Elem::U8 => put!(u8),
        Elem::Bool => {
            let values: Vec<bool> = tensor.bytes().iter().map(|&b| b != 0).collect();
            let array = ArrayD::from_shape_vec(IxDyn(tensor.shape()), values);
            npz.add_array(name, &array.map_err(|e| e.to_string())?).map_err(|e| e.to_string())
        }
        other => Err(format!("element type `{}` has no NumPy form here", other.name())),
    }
}
