//! Compiled kernels on disk, by a key of everything that decides their bytes: the instance, every
//! source, the options, the architecture and NVRTC's version.

use super::nvrtc::OPTIONS;
use super::{Arch, Error, Nvrtc};
use fqc_kernels::cuda::SOURCES;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of cubins. Several processes may share one.
pub struct Cache {
    folder: PathBuf,
    nvrtc: Nvrtc,
}

impl Cache {
    /// Opens a folder, which need not exist, with the compiler that fills it.
    pub fn new(folder: impl Into<PathBuf>, nvrtc: Nvrtc) -> Self {
        Self { folder: folder.into(), nvrtc }
    }

    /// The kernel, compiled now if it is not in the folder.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`], and [`Error::Cache`].
    pub fn get(&self, name: &str, source: &str, arch: Arch) -> Result<Vec<u8>, Error> {
        self.or_make(name, source, arch, || Ok(self.nvrtc.compile(name, source, arch)?.cubin))
    }

    fn or_make(
        &self,
        name: &str,
        source: &str,
        arch: Arch,
        make: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Vec<u8>, Error> {
        let path = self.folder.join(format!("{name}.{arch}.{}.cubin", self.key(source, arch)));
        if let Ok(cubin) = std::fs::read(&path) {
            return Ok(cubin);
        }
        let cubin = make()?;
        self.write(&path, &cubin).map_err(|source| Error::Cache { path, source })?;
        Ok(cubin)
    }

    fn key(&self, source: &str, arch: Arch) -> String {
        let mut hash = blake3::Hasher::new();
        let mut add = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        add(source);
        add(&arch.to_string());
        add(&format!("{:?}", self.nvrtc.version()));
        OPTIONS.iter().for_each(|option| add(option));
        SOURCES.iter().for_each(|(name, text)| {
            add(name);
            add(text);
        });
        hash.finalize().to_hex()[..24].to_owned()
    }

    /// Writes beside and renames, so that no reader sees half a file.
    fn write(&self, path: &PathBuf, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        // Threads of one process may make the same kernel.
        static WRITTEN: AtomicUsize = AtomicUsize::new(0);
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let beside = path.with_extension(format!("{}.{number}.part", std::process::id()));
        std::fs::File::create(&beside)?.write_all(bytes)?;
        std::fs::rename(&beside, path)
    }
}

/// NVRTC with or without a cache before it.
pub enum Compiler {
    Direct(Nvrtc),
    Cached(Cache),
}

impl Compiler {
    /// What compiles.
    pub fn nvrtc(&self) -> &Nvrtc {
        match self {
            Compiler::Direct(nvrtc) => nvrtc,
            Compiler::Cached(cache) => &cache.nvrtc,
        }
    }

    /// A hand-written kernel; slow code is refused.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`], and [`Error::Cache`].
    pub fn tuned(&self, name: &str, source: &str, arch: Arch) -> Result<Vec<u8>, Error> {
        match self {
            Compiler::Direct(nvrtc) => Ok(nvrtc.compile(name, source, arch)?.cubin),
            Compiler::Cached(cache) => cache.get(name, source, arch),
        }
    }

    /// Generated kernels, which may keep rare paths in local memory.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile_any`], and [`Error::Cache`].
    pub fn generated(&self, name: &str, source: &str, arch: Arch) -> Result<Vec<u8>, Error> {
        let make = |nvrtc: &Nvrtc| Ok(nvrtc.compile_any(name, source, arch)?.0);
        match self {
            Compiler::Direct(nvrtc) => make(nvrtc),
            Compiler::Cached(cache) => cache.or_make(name, source, arch, || make(&cache.nvrtc)),
        }
    }
}
