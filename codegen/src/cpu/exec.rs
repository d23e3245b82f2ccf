//! Runs a blob in this process: for tests of emitters and for timing kernels where they are made.
//! Inference goes through the runtime, never through here.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use fqbin::Level;
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

/// Whether this machine can run code of `level`. For AMX it asks the kernel for the tile registers,
/// which the process then has for good.
pub fn available(level: Level) -> bool {
    let avx2 = std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c")
        && std::arch::is_x86_feature_detected!("bmi2");
    let avx512 = || {
        std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512cd")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512vnni")
    };
    match level {
        Level::Avx2 => avx2,
        Level::Avx512Vnni => avx2 && avx512(),
        Level::Avx512Bf16 => avx2 && avx512() && has_bf16(),
        Level::AmxInt8 => avx2 && avx512() && has_bf16() && has_amx() && tiles_permitted(),
    }
}

fn has_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

/// AMX-TILE, AMX-INT8 and AMX-BF16.
fn has_amx() -> bool {
    const TILE_INT8_BF16: u32 = 1 << 24 | 1 << 25 | 1 << 22;
    __cpuid_count(7, 0).edx & TILE_INT8_BF16 == TILE_INT8_BF16
}

/// Asks Linux for tile data (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
fn tiles_permitted() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let status: i64;
    // SAFETY: the call takes two integers, touches no memory of ours, and clobbers what is named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => status,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    status == 0
}

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
