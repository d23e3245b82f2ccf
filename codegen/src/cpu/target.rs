//! LLVM's names for the code levels of the CPU, and the target machines for them.
//!
//! A level is a fixed list of instruction set extensions, never "the host": the same plan gives
//! the same machine code on every build machine. What is enabled here is among
//! [`Level::features`], which the runtime checks before it maps a level's blob.

use fqbin::Level;
use inkwell::OptimizationLevel;
use inkwell::targets::{
    CodeModel, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};

use super::CpuError;

/// LLVM's processor name.
pub fn llvm_cpu(level: Level) -> &'static str {
    match level {
        Level::Avx2 => "x86-64-v3",
        Level::Avx512Vnni | Level::Avx512Bf16 | Level::AmxInt8 => "x86-64-v4",
    }
}

/// LLVM's feature string, on top of [`llvm_cpu`].
pub fn llvm_features(level: Level) -> &'static str {
    match level {
        Level::Avx2 => "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe,+popcnt",
        Level::Avx512Vnni => {
            "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni,\
             +fast-variable-perlane-shuffle"
        }
        Level::Avx512Bf16 => {
            "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni,\
             +avx512bf16,+fast-variable-perlane-shuffle"
        }
        Level::AmxInt8 => {
            "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni,\
             +avx512bf16,+amx-tile,+amx-int8,+amx-bf16,+fast-variable-perlane-shuffle"
        }
    }
}

/// A machine that emits position-independent code of this level at full optimisation.
pub fn target_machine(level: Level) -> Result<TargetMachine, CpuError> {
    Target::initialize_x86(&InitializationConfig::default());
    let triple = triple();
    let target = Target::from_triple(&triple).map_err(|error| CpuError::Llvm(error.to_string()))?;
    target
        .create_target_machine(
            &triple,
            llvm_cpu(level),
            llvm_features(level),
            OptimizationLevel::Aggressive,
            RelocMode::PIC,
            CodeModel::Small,
        )
        .ok_or_else(|| CpuError::Llvm(format!("no target machine for level `{level}`")))
}

/// The one triple that code is generated for.
pub fn triple() -> TargetTriple {
    TargetTriple::create("x86_64-unknown-linux-gnu")
}
