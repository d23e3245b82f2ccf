//! BLAKE3 of files and of graphs, in hexadecimal.

use crate::exit::Failure;
use fqc_ir::{Graph, text};
use std::fs::File;
use std::path::Path;

/// Hash of a file's bytes.
pub fn file(path: &Path) -> Result<String, Failure> {
    let file = File::open(path).map_err(|e| Failure::io("read", path, &e))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(|e| Failure::io("read", path, &e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hash of some bytes.
pub fn bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Hash of a graph's text and of all its constants, wherever the model keeps them. Another version of
/// fqc may import the same model as another graph.
pub fn graph(graph: &Graph) -> String {
    let (text, blobs) = text::print_with_blobs(graph);
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(text.as_bytes());
    for (_, bytes) in blobs.iter() {
        part(bytes.as_slice());
        bytes.release();
    }
    hasher.finalize().to_hex().to_string()
}

/// Whether a text is a hash as the functions above give it.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
