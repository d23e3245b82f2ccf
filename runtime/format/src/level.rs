//! The CPU code levels: their names in files and flags, and the instruction sets each one may
//! use. The code generator enables [`Level::features`] and no others, and the runtime checks all of
//! them before it picks a level.

use std::fmt;
use std::str::FromStr;

/// A CPU code level, in increasing order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// AVX2 with FMA: every x86-64 server since 2015.
    Avx2,
    /// AVX-512 F, BW, CD, DQ, VL and VNNI.
    Avx512Vnni,
    /// The level before it plus AVX-512 BF16.
    Avx512Bf16,
    /// The level before it plus AMX tiles with INT8 and BF16.
    AmxInt8,
}

const AVX2: &[&str] =
    &["sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "movbe"];
#[rustfmt::skip]
const AVX512: &[&str] = &[
    "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "movbe",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni",
];
#[rustfmt::skip]
const BF16: &[&str] = &[
    "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "movbe",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16",
];
#[rustfmt::skip]
const AMX: &[&str] = &[
    "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "movbe",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni",
    "avx512bf16", "amx-tile", "amx-int8", "amx-bf16",
];

impl Level {
    pub const ALL: [Level; 4] = [Level::Avx2, Level::Avx512Vnni, Level::Avx512Bf16, Level::AmxInt8];

    /// Name of the environment variable that [`Level::from_env`] reads.
    pub const ENV: &str = "FQC_CPU_LEVEL";

    pub fn name(self) -> &'static str {
        match self {
            Level::Avx2 => "avx2",
            Level::Avx512Vnni => "avx512-vnni",
            Level::Avx512Bf16 => "avx512-bf16",
            Level::AmxInt8 => "amx-int8",
        }
    }

    /// Instruction sets that code of this level may use, by their CPUID names.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            Level::Avx2 => AVX2,
            Level::Avx512Vnni => AVX512,
            Level::Avx512Bf16 => BF16,
            Level::AmxInt8 => AMX,
        }
    }

    /// Whether 512-bit vectors are native.
    pub fn has_avx512(self) -> bool {
        self >= Level::Avx512Vnni
    }

    /// Whether pairs of bf16 are multiplied and added in one instruction.
    pub fn has_bf16(self) -> bool {
        self >= Level::Avx512Bf16
    }

    /// Lanes of a native f32 vector.
    pub fn f32_lanes(self) -> u32 {
        if self.has_avx512() { 16 } else { 8 }
    }

    /// The level that `FQC_CPU_LEVEL` forces, if it is set and not empty. Only programs and tests
    /// call this; the runtime itself reads no environment.
    pub fn from_env() -> Result<Option<Level>, String> {
        match std::env::var(Level::ENV) {
            Ok(name) if !name.is_empty() => name.parse().map(Some),
            _ => Ok(None),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(name: &str) -> Result<Level, String> {
        Level::ALL.into_iter().find(|l| l.name() == name).ok_or_else(|| {
            let names = Level::ALL.map(|level| format!("`{level}`")).join(", ");
            format!("no CPU level is named `{name}`; there are {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_features_grow() {
        for level in Level::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert!("sse2".parse::<Level>().unwrap_err().contains("avx512-vnni"));
        assert!([AVX2, AVX512, BF16, AMX].is_sorted_by(|a, b| b.starts_with(a)));
    }
}
