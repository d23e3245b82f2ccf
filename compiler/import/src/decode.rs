//! Bytes to protobuf messages, with a message of its own for what users take for a model.

use crate::error::{ImportError, Kind, shown};
use crate::{limits, mmap, scan};
use fqc_ir::Bytes;
use prost::Message;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tract_onnx::pb::{ModelProto, TensorProto};

/// The bytes of a model file, mapped.
pub(crate) fn read(path: &Path) -> Result<Bytes, ImportError> {
    let shown = shown(&path.display().to_string());
    let failed =
        |e| ImportError::one(Kind::Io, format!("cannot read `{shown}`: {e}"), "check the path");
    // Asked before the file is opened: opening a FIFO blocks.
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        let message = format!("`{shown}` is not a regular file");
        return Err(ImportError::one(Kind::Io, message, "give the path of an .onnx file"));
    }
    if meta.len() > limits::PROTO_BYTES {
        let message = format!("`{shown}` has {} bytes, the limit is 2 GiB", meta.len());
        let help = "save the model with external data";
        return Err(ImportError::one(Kind::Limit, message, help));
    }
    if meta.len() == 0 {
        return Err(ImportError::one(Kind::Invalid, format!("`{shown}` is empty"), ""));
    }
    let file = File::open(path).map_err(failed)?;
    Ok(Bytes::new(Arc::new(mmap::map(&file).map_err(failed)?)))
}

/// The model message in the bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<ModelProto, ImportError> {
    let invalid = |reason: String| {
        let help = guess(bytes).map_or_else(
            || "the file may be truncated or damaged".to_owned(),
            |kind| format!("it looks like {kind}"),
        );
        ImportError::one(Kind::Invalid, format!("not an ONNX model: {reason}"), help)
    };
    if let Some(kind) = guess(bytes) {
        return Err(invalid(format!("starts like {kind}")));
    }
    if let Err(refusal) = scan::check(bytes) {
        return Err(match refusal {
            scan::Refusal::Broken(reason) => invalid(reason),
            scan::Refusal::Limit(reason) => ImportError::one(Kind::Limit, reason, ""),
            scan::Refusal::Unsupported(reason) => ImportError::one(Kind::Unsupported, reason, ""),
        });
    }
    ModelProto::decode(bytes).map_err(|e| invalid(e.to_string()))
}

/// The tensor message in the bytes.
pub(crate) fn tensor(bytes: &[u8]) -> Result<TensorProto, ImportError> {
    let invalid = |e: prost::DecodeError| {
        ImportError::one(Kind::Invalid, format!("not an ONNX tensor: {e}"), "")
    };
    TensorProto::decode(bytes).map_err(invalid)
}

/// What a file is by its first bytes, if not protobuf.
fn guess(bytes: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    match () {
        () if starts(b"\x1f\x8b") => Some("gzip"),
        () if starts(b"PK\x03\x04") => Some("a zip archive or a PyTorch checkpoint"),
        () if starts(b"\x80\x02") || starts(b"\x80\x04") => Some("a Python pickle"),
        () if starts(b"GGUF") => Some("GGUF"),
        () if starts(b"FQBIN") => Some("a compiled .fqbin"),
        () if starts(b"version https://git-lfs") => Some("a git LFS pointer: run `git lfs pull`"),
        () if bytes.get(8..10) == Some(b"{\"") => Some("safetensors"),
        () => None,
    }
}
