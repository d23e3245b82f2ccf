//! `.npz` files as tensors by name.

use anyhow::{Context, Result, bail};
use fqc_interp::{Data, Tensor};
use fqc_ir::Elem;
use ndarray::{ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpzError, ReadableElement, WritableElement};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// All arrays of a file.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let context = || format!("cannot read `{}`", path.display());
    let mut file = NpzReader::new(File::open(path).with_context(context)?).with_context(context)?;
    let mut out = BTreeMap::new();
    for name in file.names().with_context(context)? {
        let tensor = array(&mut file, &name)
            .with_context(|| format!("array `{name}` of `{}`", path.display()))?;
        out.insert(name, tensor);
    }
    Ok(out)
}

/// Writes arrays under their names, in this order.
pub fn write(path: &Path, arrays: &[(String, Tensor)]) -> Result<()> {
    let mut file = NpzWriter::new(File::create(path)?);
    for (name, tensor) in arrays {
        let shape = tensor.shape();
        match tensor.data() {
            Data::F32(v) => add(&mut file, name, shape, v),
            Data::F64(v) => add(&mut file, name, shape, v),
            Data::I64(v) => add(&mut file, name, shape, v),
            Data::I32(v) => add(&mut file, name, shape, v),
            Data::I16(v) => add(&mut file, name, shape, v),
            Data::I8(v) => add(&mut file, name, shape, v),
            Data::U64(v) => add(&mut file, name, shape, v),
            Data::U32(v) => add(&mut file, name, shape, v),
            Data::U16(v) => add(&mut file, name, shape, v),
            Data::U8(v) => add(&mut file, name, shape, v),
            Data::Bool(v) => add(&mut file, name, shape, v),
            Data::F16(_) | Data::BF16(_) => bail!("`{name}`: an array of {}", tensor.elem()),
        }
        .with_context(|| format!("cannot write `{name}` to `{}`", path.display()))?;
    }
    file.finish()?;
    Ok(())
}

fn add<T: WritableElement + Clone>(
    file: &mut NpzWriter<File>,
    name: &str,
    shape: &[usize],
    values: &[T],
) -> Result<()> {
    let array = ArrayD::from_shape_vec(IxDyn(shape), values.to_vec())?;
    Ok(file.add_array(name, &array)?)
}

/// The array, whichever of the known element types it has.
fn array(file: &mut NpzReader<File>, name: &str) -> Result<Tensor> {
    macro_rules! attempt {
        ($($elem:ident),*) => {
            $(if let Some((shape, v)) = typed(file, name)? {
                return Tensor::new(Elem::$elem, shape, Data::$elem(v))
                    .context("its values do not fill its shape");
            })*
        };
    }
    attempt!(F32, I64, I32, F64, Bool, U8, I8, I16, U16, U32, U64);
    bail!("has an element type that is not known here")
}

/// Shape and values in row-major order; `None` if the elements are of another type.
fn typed<T: ReadableElement + Clone>(
    file: &mut NpzReader<File>,
    name: &str,
) -> Result<Option<(Vec<usize>, Vec<T>)>> {
    use ndarray_npy::ReadNpyError::WrongDescriptor;
    match file.by_name::<OwnedRepr<T>, IxDyn>(name) {
        Ok(array) => Ok(Some((array.shape().to_vec(), array.iter().cloned().collect()))),
        Err(ReadNpzError::Npy(WrongDescriptor(_))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x.npz");
        let all = [
            ("a".to_owned(), Tensor::f32(&[2, 1], &[1.5, f32::INFINITY])),
            ("b".to_owned(), Tensor::i64(&[], &[-7])),
            ("c".to_owned(), Tensor::bool(&[0, 3], &[])),
            ("d".to_owned(), Tensor::i8(&[1], &[-1])),
        ];
        write(&path, &all).expect("the folder is writable");
        let back = read(&path).expect("the file was just written");
        assert_eq!(back.into_iter().collect::<Vec<_>>(), all);
        std::fs::write(&path, b"not a zip").expect("the folder is writable");
        assert!(read(&path).is_err());
    }
}
