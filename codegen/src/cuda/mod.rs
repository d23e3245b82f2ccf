//! CUDA kernels to machine code: NVRTC compiles each instance for an architecture, without a
//! GPU, and what its assembler notes decides whether the instance is accepted.
//!
//! Reading order: [`nvrtc`] (the compiler), [`notes`] (what its assembler says), [`cache`]; then
//! [`generate`], which makes a target image of a plan: `halves` and `fuse` (what is
//! kept as bf16, which steps are one launch; `pair`, `rotary`), `text` (one kernel), `expr` (scalar expressions), and the
//! families `elementwise`, `norm`, `rows`, `attention` with `attention_sm90`, `products`, `gemm`, `gemm_sm80`
//! (`native`: what multiplies INT4 by INT4) with `epilogue`, `writer` and `turned`. Which tiles a gemm takes says [`tuning`];
//! [`trial`] makes programs that time one, [`exchange`] puts it into an image that is compiled already.

mod attention;
mod attention_sm90;
pub mod cache;
mod elementwise;
mod epilogue;
pub mod exchange;
mod expr;
mod fuse;
mod gemm;
mod gemm_sm80;
mod generate;
mod halves;
mod native;
mod norm;
pub mod notes;
pub mod nvrtc;
mod pair;
mod products;
mod rotary;
mod rows;
mod text;
pub mod trial;
pub mod tuning;
mod turned;
mod writer;

pub use cache::{Cache, Compiler};
pub use generate::{generate, generate_tuned, sources};
pub use notes::Resources;
pub use nvrtc::{Compiled, Nvrtc};
pub use tuning::{Layer, Tuning};

use std::fmt;
use std::path::PathBuf;

/// An architecture that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// A100.
    Sm80,
    /// A10, RTX 30.
    Sm86,
    /// L4, L40, RTX 40.
    Sm89,
    /// H100, H200, with wgmma.
    Sm90a,
    /// PTX, which the driver of any GPU since A100 compiles for itself: for those that came later.
    Ptx,
}

impl Arch {
    /// Those with machine code.
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90a];

    /// Whether its tensor cores multiply INT4 by INT4; Hopper emulates the instruction.
    pub fn multiplies_int4(self) -> bool {
        matches!(self, Self::Sm80 | Self::Sm86 | Self::Sm89)
    }
}

impl std::str::FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(|arch| arch.to_string()).join("`, `");
        let found = Self::ALL.into_iter().find(|arch| arch.to_string() == name);
        found.or((name == "ptx").then_some(Self::Ptx)).ok_or_else(|| {
            format!("no CUDA architecture `{name}`; there are `{}`, and `ptx`", known())
        })
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
            Self::Ptx => "compute_80",
        })
    }
}

/// Why a kernel could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No library of NVRTC was found.
    #[error(
        "NVRTC 13 was not found in {}; run `cargo xtask fetch nvrtc`, or name the folder of \
         libnvrtc.so.13 in FQC_NVRTC",
        shown(.0)
    )]
    NoNvrtc(Vec<PathBuf>),
    /// The library is there but does not load.
    #[error("{path} does not load: {reason}")]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// The compiler refused the source.
    #[error("{kernel} for {arch} does not compile: {log}")]
    Compile {
        /// The instance.
        kernel: String,
        /// The architecture.
        arch: Arch,
        /// What NVRTC says.
        log: String,
    },
    /// The code would be slow: registers spill, or wgmma is serialised.
    #[error("{kernel} for {arch} is refused: {note}")]
    Slow {
        /// The instance.
        kernel: String,
        /// The architecture.
        arch: Arch,
        /// What the assembler notes.
        note: String,
    },
    /// Steps of a plan that no kernel fits.
    #[error("CUDA cannot run: {}", .0.join("; "))]
    Unsupported(Vec<String>),
    /// The kernels of one program together.
    #[error("more than 4 GiB of CUDA code")]
    TooLarge,
    /// The cache cannot be read or written.
    #[error("cache of kernels at {path}: {source}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
