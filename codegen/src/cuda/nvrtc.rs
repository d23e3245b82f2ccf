//! NVRTC as a function: source to cubin. No GPU and no driver are needed.

use super::{Arch, Error, Resources, notes};
use cudarc::nvrtc::sys;
use fqc_kernels::cuda::SOURCES;
use libloading::Library;
use std::ffi::{CString, c_char};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

/// One kernel for one architecture.
#[derive(Clone)]
pub struct Compiled {
    /// The ELF image that the driver loads.
    pub cubin: Vec<u8>,
    /// What it uses.
    pub resources: Resources,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a cubin of {} bytes, {:?}", self.cubin.len(), self.resources)
    }
}

/// The compiler, found and loaded. Its libraries stay loaded.
pub struct Nvrtc {
    folder: PathBuf,
    version: (i32, i32),
    _builtins: Library,
    _library: Library,
}

const LIBRARY: &str = "libnvrtc.so.13";

/// Options of every compilation; part of the cache's key.
pub const OPTIONS: [&str; 4] = [
    "-std=c++17",
    "-default-device",
    "--ptxas-options=-v",
    "--ptxas-options=--register-usage-level=10",
];

impl Nvrtc {
    /// Loads NVRTC from `FQC_NVRTC`, from the toolkit at its usual place, or from a Python
    /// environment that `cargo xtask fetch nvrtc` fills.
    ///
    /// # Errors
    /// [`Error::NoNvrtc`] names the folders that were searched.
    pub fn load() -> Result<Self, Error> {
        let folders = folders();
        let Some(folder) = folders.iter().find(|folder| folder.join(LIBRARY).exists()) else {
            return Err(Error::NoNvrtc(folders));
        };
        // NVRTC opens its builtins by name alone, which only finds them when they are loaded.
        let builtins = open(&builtins(folder)?)?;
        let library = open(&folder.join(LIBRARY))?;
        let mut version = (0, 0);
        // SAFETY: both pointers are to live integers.
        let status = unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) };
        check(status, folder)?;
        Ok(Self { folder: folder.clone(), version, _builtins: builtins, _library: library })
    }

    /// Where it was found.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The version, for the cache's key.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles the kernel `name` of `source`.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log; [`Error::Slow`] when the assembler's notes
    /// say that the code spills or that wgmma is serialised.
    pub fn compile(&self, name: &str, source: &str, arch: Arch) -> Result<Compiled, Error> {
        let (cubin, log) = self.compile_any(name, source, arch)?;
        let resources = notes::read(&log).map_err(|note| Error::Slow {
            kernel: name.to_owned(),
            arch,
            note,
        })?;
        Ok(Compiled { cubin, resources })
    }

    /// Compiles a source whatever the assembler notes: the cubin, or PTX that ends with a zero, and the
    /// log.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log.
    pub fn compile_any(
        &self,
        name: &str,
        source: &str,
        arch: Arch,
    ) -> Result<(Vec<u8>, String), Error> {
        let program = Program::new(name, source)?;
        let architecture = format!("--gpu-architecture={arch}");
        let options: Vec<CString> = OPTIONS
            .iter()
            .copied()
            .chain([architecture.as_str()])
            .map(|option| CString::new(option).expect("no NUL in an option"))
            .collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is live, `pointers` has as many C strings as are named.
        let status = unsafe {
            sys::nvrtcCompileProgram(program.0, pointers.len() as i32, pointers.as_ptr())
        };
        let log = program.log();
        if status != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(Error::Compile { kernel: name.to_owned(), arch, log });
        }
        let code = if arch == Arch::Ptx { program.ptx() } else { program.cubin() };
        Ok((code, log))
    }
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn new(name: &str, source: &str) -> Result<Self, Error> {
        let text = |text: &str| CString::new(text).expect("no NUL in a source");
        let source = text(source);
        let file = text(&format!("{name}.cu"));
        let names: Vec<CString> = SOURCES.iter().map(|(name, _)| text(name)).collect();
        let texts: Vec<CString> = SOURCES.iter().map(|(_, body)| text(body)).collect();
        let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let text_pointers: Vec<_> = texts.iter().map(|body| body.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: every pointer is to a C string that outlives the call; NVRTC copies them.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                file.as_ptr(),
                SOURCES.len() as i32,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        check(status, Path::new(LIBRARY))?;
        Ok(Self(program))
    }

    fn log(&self) -> String {
        // SAFETY: the program is live; the second call writes as many bytes as the first names.
        let bytes = unsafe {
            bytes(
                |size| sys::nvrtcGetProgramLogSize(self.0, size),
                |out| sys::nvrtcGetProgramLog(self.0, out),
            )
        };
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned()
    }

    fn ptx(&self) -> Vec<u8> {
        // SAFETY: as for the log.
        unsafe {
            bytes(|size| sys::nvrtcGetPTXSize(self.0, size), |out| sys::nvrtcGetPTX(self.0, out))
        }
    }

    fn cubin(&self) -> Vec<u8> {
        // SAFETY: as for the log.
        unsafe {
            bytes(
                |size| sys::nvrtcGetCUBINSize(self.0, size),
                |out| sys::nvrtcGetCUBIN(self.0, out),
            )
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is live and not used again.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// What a pair of "how long" and "write it" functions gives; empty when either fails.
///
/// # Safety
/// `write` writes as many bytes as `size` names.
unsafe fn bytes(
    size: impl Fn(*mut usize) -> sys::nvrtcResult,
    write: impl Fn(*mut c_char) -> sys::nvrtcResult,
) -> Vec<u8> {
    let mut length = 0;
    if size(&mut length) != sys::nvrtcResult::NVRTC_SUCCESS {
        return Vec::new();
    }
    let mut bytes = vec![0u8; length];
    if write(bytes.as_mut_ptr().cast()) != sys::nvrtcResult::NVRTC_SUCCESS {
        return Vec::new();
    }
    bytes
}

fn check(status: sys::nvrtcResult, path: &Path) -> Result<(), Error> {
    if status == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(Error::Library { path: path.to_owned(), reason: format!("{status:?}") })
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(std::env::var_os("FQC_NVRTC").map(PathBuf::from));
    folders.push("/usr/local/cuda/lib64".into());
    let cache = std::env::var_os("FQC_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"), PathBuf::from);
    for python in std::fs::read_dir(cache.join("venv/lib")).into_iter().flatten().flatten() {
        folders.push(python.path().join("site-packages/nvidia/cu13/lib"));
    }
    folders
}

/// The builtins beside the library; their file name carries the minor version.
fn builtins(folder: &Path) -> Result<PathBuf, Error> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libnvrtc-builtins.so.13")
        })
        .collect();
    found.sort();
    found.pop().ok_or_else(|| Error::NoNvrtc(vec![folder.to_owned()]))
}

fn open(path: &Path) -> Result<Library, Error> {
    // SAFETY: NVRTC's initialisers have no preconditions.
    unsafe { Library::new(path) }
        .map_err(|e| Error::Library { path: path.to_owned(), reason: e.to_string() })
}
