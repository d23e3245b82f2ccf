//! The three code levels of the CPU backend and the LLVM target machines for them.
//!
//! A level is a fixed list of instruction set extensions, never "the host": the same plan gives
//! the same machine code on every build machine. The runtime compares [`Level::cpuid_features`]
//! with what the processor offers before it maps a level's blob.

use inkwell::OptimizationLevel;
use inkwell::targets::{
    CodeModel, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};

use super::CpuError;

/// An instruction set level for which code is generated. Ordered from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// AVX2 with FMA: every x86-64 server since 2015.
    Avx2,
    /// AVX-512 F, BW, CD, DQ, VL and VNNI.
    Avx512Vnni,
    /// The AVX-512 level plus AMX tiles with INT8 and BF16 and AVX-512 BF16.
    AmxInt8,
}

impl Level {
    /// All levels, oldest first.
    pub const ALL: [Level; 3] = [Level::Avx2, Level::Avx512Vnni, Level::AmxInt8];

    /// The name used in files, options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Level::Avx2 => "avx2",
            Level::Avx512Vnni => "avx512-vnni",
            Level::AmxInt8 => "amx-int8",
        }
    }

    /// The level of a given name.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Lanes of a native f32 vector.
    pub fn f32_lanes(self) -> u32 {
        match self {
            Level::Avx2 => 8,
            Level::Avx512Vnni | Level::AmxInt8 => 16,
        }
    }

    /// Architectural vector registers.
    pub fn vector_registers(self) -> u32 {
        match self {
            Level::Avx2 => 16,
            Level::Avx512Vnni | Level::AmxInt8 => 32,
        }
    }

    /// Whether 512-bit vectors are native.
    pub fn has_avx512(self) -> bool {
        self >= Level::Avx512Vnni
    }

    /// Names of the CPUID features that code of this level may use.
    pub fn cpuid_features(self) -> &'static [&'static str] {
        const AVX2: &[&str] =
            &["sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "movbe"];
        const AVX512: &[&str] = &[
            "sse4.2",
            "popcnt",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "bmi1",
            "bmi2",
            "lzcnt",
            "movbe",
            "avx512f",
            "avx512bw",
            "avx512cd",
            "avx512dq",
            "avx512vl",
            "avx512vnni",
        ];
        const AMX: &[&str] = &[
            "sse4.2",
            "popcnt",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "bmi1",
            "bmi2",
            "lzcnt",
            "movbe",
            "avx512f",
            "avx512bw",
            "avx512cd",
            "avx512dq",
            "avx512vl",
            "avx512vnni",
            "avx512bf16",
            "amx-tile",
            "amx-int8",
            "amx-bf16",
        ];
        match self {
            Level::Avx2 => AVX2,
            Level::Avx512Vnni => AVX512,
            Level::AmxInt8 => AMX,
        }
    }

    /// LLVM's processor name.
    pub fn llvm_cpu(self) -> &'static str {
        match self {
            Level::Avx2 => "x86-64-v3",
            Level::Avx512Vnni | Level::AmxInt8 => "x86-64-v4",
        }
    }

    /// LLVM's feature string, on top of [`Level::llvm_cpu`].
    pub fn llvm_features(self) -> &'static str {
        match self {
            Level::Avx2 => "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe,+popcnt",
            Level::Avx512Vnni => {
                "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni,\
                 +fast-variable-perlane-shuffle"
            }
            Level::AmxInt8 => {
                "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni,\
                 +avx512bf16,+amx-tile,+amx-int8,+amx-bf16,+fast-variable-perlane-shuffle"
            }
        }
    }

    /// A machine that emits position-independent code of this level at full optimisation.
    pub fn target_machine(self) -> Result<TargetMachine, CpuError> {
        Target::initialize_x86(&InitializationConfig::default());
        let triple = triple();
        let target =
            Target::from_triple(&triple).map_err(|error| CpuError::Llvm(error.to_string()))?;
        target
            .create_target_machine(
                &triple,
                self.llvm_cpu(),
                self.llvm_features(),
                OptimizationLevel::Aggressive,
                RelocMode::PIC,
                CodeModel::Small,
            )
            .ok_or_else(|| CpuError::Llvm(format!("no target machine for level `{}`", self.name())))
    }
}

/// The one triple that code is generated for.
pub fn triple() -> TargetTriple {
    TargetTriple::create("x86_64-unknown-linux-gnu")
}
