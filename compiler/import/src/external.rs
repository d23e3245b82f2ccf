//! Tensor data that lies in files beside the model. A location must stay inside the model's folder,
//! also through symbolic links; files are mapped once and shared, never copied.

use crate::error::{Fault, Res, shown};
use crate::mmap;
use fqc_ir::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tract_onnx::pb::{StringStringEntryProto, TensorProto};

/// The files that a model's tensors refer to.
pub(crate) struct External {
    /// The model's folder, canonical; `None` for a model without one (read from bytes).
    dir: Option<PathBuf>,
    maps: BTreeMap<PathBuf, Bytes>,
}

impl External {
    pub fn new(dir: Option<&Path>) -> Res<Self> {
        let dir = match dir {
            None => None,
            Some(d) => {
                let d = if d.as_os_str().is_empty() { Path::new(".") } else { d };
                let at = || shown(&d.display().to_string());
                Some(
                    d.canonicalize()
                        .map_err(|e| Fault::io(format!("cannot open folder `{}`: {e}", at())))?,
                )
            }
        };
        Ok(External { dir, maps: BTreeMap::new() })
    }

    /// The `expected` bytes that the tensor's external-data entries name.
    pub fn read(&mut self, tensor: &TensorProto, expected: usize) -> Res<Bytes> {
        let entries = Entries::parse(&tensor.external_data)?;
        let file = self.file(&entries.location)?;
        let shown = shown(&entries.location);
        let size = file.as_slice().len();
        let offset =
            usize::try_from(entries.offset).ok().filter(|&o| o <= size).ok_or_else(|| {
                Fault::invalid(format!(
                    "external data at offset {} of `{shown}`, which has {size} bytes",
                    entries.offset
                ))
            })?;
        let length = entries.length.unwrap_or(expected as u64);
        if length != expected as u64 {
            return Err(Fault::invalid(format!(
                "external data of {length} bytes in `{shown}`, the shape needs {expected}"
            )));
        }
        file.slice(offset, expected).ok_or_else(|| {
            Fault::invalid(format!(
                "external data of {expected} bytes at offset {offset} of `{shown}`, which has {size} \
                 bytes"
            ))
            .help("was the data file copied completely?")
        })
    }

    fn file(&mut self, location: &str) -> Res<Bytes> {
        let path = self.resolve(location)?;
        if let Some(bytes) = self.maps.get(&path) {
            return Ok(bytes.clone());
        }
        let shown = shown(location);
        let failed = |e| Fault::io(format!("cannot read external data `{shown}`: {e}"));
        // A FIFO or a device would block or never end: only regular files are opened.
        let regular = |meta: std::fs::Metadata| {
            if meta.is_file() {
                return Ok(meta.len());
            }
            Err(Fault::invalid(format!("external data `{shown}` is not a regular file")))
        };
        regular(std::fs::symlink_metadata(&path).map_err(failed)?)?;
        let file = File::open(&path).map_err(failed)?;
        let size = regular(file.metadata().map_err(failed)?)?;
        let bytes = if size == 0 {
            Bytes::from(Vec::new())
        } else {
            Bytes::new(Arc::new(mmap::map(&file).map_err(failed)?))
        };
        self.maps.insert(path, bytes.clone());
        Ok(bytes)
    }

    /// The canonical path of a location, proven to lie inside the model's folder.
    fn resolve(&self, location: &str) -> Res<PathBuf> {
        let shown = shown(location);
        let outside = || {
            Fault::invalid(format!(
                "external data `{shown}` is not a path inside the model's folder"
            ))
            .help("put the data file beside the model and name it without `..`")
        };
        let dir = self.dir.as_ref().ok_or_else(|| {
            Fault::invalid(format!("external data `{shown}`, but the model has no folder"))
                .help("import the model by its path, not from bytes")
        })?;
        if location.contains(['\\', '\0']) || location.contains("://") {
            return Err(outside());
        }
        let path = Path::new(location);
        let mut parts = path.components().peekable();
        let plain = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir);
        if parts.peek().is_none() || !parts.all(plain) || path.file_name().is_none() {
            return Err(outside());
        }
        let full = dir
            .join(path)
            .canonicalize()
            .map_err(|e| Fault::io(format!("cannot read external data `{shown}`: {e}")))?;
        if !full.starts_with(dir) || full == *dir {
            return Err(outside().help("a symbolic link leads out of the model's folder"));
        }
        Ok(full)
    }
}

/// The entries of a tensor's `external_data`.
struct Entries {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl Entries {
    fn parse(list: &[StringStringEntryProto]) -> Res<Self> {
        let (mut location, mut offset, mut length) = (None, None, None);
        for entry in list {
            let twice = match entry.key.as_str() {
                "location" => location.replace(entry.value.clone()).is_some(),
                "offset" => offset.replace(number(entry)?).is_some(),
                "length" => length.replace(number(entry)?).is_some(),
                // SHA-1 of the whole file: optional by the standard, and not read here.
                "checksum" => false,
                other => {
                    let key = shown(other);
                    return Err(Fault::invalid(format!("unknown external-data entry `{key}`")));
                }
            };
            if twice {
                return Err(Fault::invalid(format!("external-data entry `{}` twice", entry.key)));
            }
        }
        let location =
            location.ok_or_else(|| Fault::invalid("external data without a `location`"))?;
        Ok(Entries { location, offset: offset.unwrap_or(0), length })
    }
}

fn number(entry: &StringStringEntryProto) -> Res<u64> {
    let digits = !entry.value.is_empty() && entry.value.bytes().all(|b| b.is_ascii_digit());
    entry.value.parse().ok().filter(|_| digits).ok_or_else(|| {
        Fault::invalid(format!(
            "external-data entry `{}` is `{}`, not a number of bytes",
            entry.key,
            shown(&entry.value)
        ))
    })
}
