//! Runs a blob in this process: for tests of emitters and for timing kernels where they are made.
//! Inference goes through the runtime, never through here.

use memmap2::{Mmap, MmapMut};

use super::CpuError;
use super::object::Blob;

/// The signature of every kernel.
pub type KernelFn = unsafe extern "C" fn(
    bufs: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
    scratch: *mut u8,
) -> i32;

/// A blob mapped as executable memory.
pub struct Mapped {
    map: Mmap,
    entries: std::collections::BTreeMap<String, u32>,
}

impl Mapped {
    /// Copies `blob` into fresh pages and makes them executable.
    pub fn new(blob: &Blob) -> Result<Mapped, CpuError> {
        let failed = |error: std::io::Error| CpuError::Llvm(format!("cannot map code: {error}"));
        let mut map = MmapMut::map_anon(blob.bytes.len().max(1)).map_err(failed)?;
        map[..blob.bytes.len()].copy_from_slice(&blob.bytes);
        Ok(Mapped { map: map.make_exec().map_err(failed)?, entries: blob.entries.clone() })
    }

    /// The kernel of a given name.
    pub fn kernel(&self, name: &str) -> Option<KernelFn> {
        let offset = *self.entries.get(name)? as usize;
        let address = self.map.as_ptr().wrapping_add(offset);
        // SAFETY: entries are offsets of functions that `Builder::kernel` made with exactly this
        // signature, and the pages stay mapped and executable as long as `self` lives.
        Some(unsafe { std::mem::transmute::<*const u8, KernelFn>(address) })
    }

    /// Calls a kernel over `[begin, end)` and returns its status.
    ///
    /// # Safety
    ///
    /// The processor must have the blob's level, and `bufs`, `dims` and `scratch` must be what
    /// the kernel was emitted for.
    pub unsafe fn call(
        &self,
        name: &str,
        bufs: &[*mut u8],
        dims: &[i64],
        items: std::ops::Range<i64>,
        scratch: *mut u8,
    ) -> i32 {
        let kernel = self.kernel(name).unwrap_or_else(|| panic!("no kernel `{name}` in the blob"));
        // SAFETY: passed on to the caller of this function.
        unsafe { kernel(bufs.as_ptr(), dims.as_ptr(), items.start, items.end, scratch) }
    }
}
