//! What this processor can run. A level is available if the processor and the operating system
//! have every instruction set in [`Level::features`]; AMX also needs a permission from Linux,
//! which is asked for when the level is first looked at. The unsafe code of this file is that
//! system call.

use std::path::Path;
use std::sync::OnceLock;

use fqbin::Level;

/// Whether this process can run code of a level.
pub fn level_available(level: Level) -> bool {
    missing_features(level).is_empty()
}

/// The best level that this process can run, if any.
pub fn best_level() -> Option<Level> {
    Level::ALL.into_iter().rev().find(|&level| level_available(level))
}

/// The instruction sets that a level needs and this machine lacks.
pub fn missing_features(level: Level) -> Vec<&'static str> {
    let mut missing: Vec<_> =
        level.features().iter().copied().filter(|feature| !has(feature)).collect();
    if level == Level::AmxInt8 && missing.is_empty() && !amx_permitted() {
        missing.push("permission to use AMX from the operating system");
    }
    missing
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    use std::arch::is_x86_feature_detected as detected;
    match feature {
        "sse4.2" => detected!("sse4.2"),
        "movbe" => detected!("movbe"),
        "avx" => detected!("avx"),
        "avx2" => detected!("avx2"),
        "fma" => detected!("fma"),
        "f16c" => detected!("f16c"),
        "bmi1" => detected!("bmi1"),
        "bmi2" => detected!("bmi2"),
        "lzcnt" => detected!("lzcnt"),
        "popcnt" => detected!("popcnt"),
        "avx512f" => detected!("avx512f"),
        "avx512bw" => detected!("avx512bw"),
        "avx512cd" => detected!("avx512cd"),
        "avx512dq" => detected!("avx512dq"),
        "avx512vl" => detected!("avx512vl"),
        "avx512vnni" => detected!("avx512vnni"),
        "avx512bf16" => detected!("avx512bf16"),
        "amx-bf16" => leaf7_edx() & (1 << 22) != 0,
        "amx-tile" => leaf7_edx() & (1 << 24) != 0,
        "amx-int8" => leaf7_edx() & (1 << 25) != 0,
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(_feature: &str) -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn leaf7_edx() -> u32 {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(0).eax < 7 { 0 } else { __cpuid_count(7, 0).edx }
}

/// Bytes of a core's second-level cache, as the operating system tells; 1 MiB if it does not.
pub(crate) fn level2_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        level2_of(Path::new("/sys/devices/system/cpu/cpu0/cache")).unwrap_or(1 << 20)
    })
}

/// The size of the cache of level 2 among the folders `index0`, `index1`, … of Linux.
fn level2_of(folder: &Path) -> Option<usize> {
    (0..8).find_map(|index| {
        let read = |file: &str| {
            std::fs::read_to_string(folder.join(format!("index{index}")).join(file)).ok()
        };
        if read("level")?.trim() != "2" {
            return None;
        }
        let size = read("size")?;
        let size = size.trim();
        match size.strip_suffix('K') {
            Some(kilobytes) => kilobytes.parse::<usize>().ok()?.checked_mul(1024),
            None => size.strip_suffix('M')?.parse::<usize>().ok()?.checked_mul(1 << 20),
        }
    })
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and touches no memory of ours.
    let rc =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    rc == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn amx_permitted() -> bool {
    false
}
