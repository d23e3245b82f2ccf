//! What the tests share: tolerant comparison, `.npz` files, random inputs, and the runtimes that a
//! model can be run on.

#![forbid(unsafe_code)]

pub mod calibrated;
pub mod choice;
pub mod compare;
pub mod generate;
pub mod local;
pub mod nodes;
pub mod npz;
pub mod opt;
pub mod proto;
pub mod runtime;

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A path below the repository's root.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A path below the folder of what `cargo xtask` fetches and computes.
pub fn cache(path: &str) -> PathBuf {
    let cache = std::env::var_os("FQC_CACHE").map_or_else(|| repository(".cache"), PathBuf::from);
    cache.join(path)
}

/// The entries of a folder, sorted.
pub fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
