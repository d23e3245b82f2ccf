//! What the tests share: tolerant comparison, `.npz` files, random inputs, and the runtimes that a
//! model can be run on.

#![forbid(unsafe_code)]

pub mod compare;
pub mod generate;
pub mod npz;
pub mod runtime;

use std::path::PathBuf;

/// A path below the repository's root.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
