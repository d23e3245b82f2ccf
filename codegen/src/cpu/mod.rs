//! Code generation for the CPU: LLVM through inkwell, one flat blob of machine code a level.

mod attention;
mod attention_bf16;
mod attention_f32;
mod attention_parts;
mod attention_tile_products;
mod attention_tile_softmax;
mod attention_tiles;
pub mod build;
mod call;
pub mod ceiling;
pub mod exec;
pub mod expr;
mod flow;
mod gather;
pub mod gemm;
mod gemm_amx;
mod gemm_bf16;
mod gemm_dot;
mod gemm_epilogue;
mod gemm_packed;
mod gemm_pairs;
mod gemm_weight;
mod generate;
pub mod math;
pub mod math64;
mod matmul;
mod nibbles;
mod norm;
pub mod object;
mod pair;
mod pointwise;
mod quantize;
mod reduce;
pub mod run;
mod scatter;
mod silu;
mod softmax;
mod source;
mod spec;
pub mod target;
mod tiles;
mod transpose;
mod walk;

#[cfg(test)]
mod attention_tests;
#[cfg(test)]
mod gemm_tests;
#[cfg(test)]
mod object_tests;
#[cfg(test)]
mod tiles_emulated;

pub use fqbin::Level;
pub use generate::{SharedCode, generate};

/// Why no code could be generated.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// LLVM refused the module or the target.
    #[error("llvm: {0}")]
    Llvm(String),
    /// The object file that LLVM wrote cannot become a flat blob.
    #[error("object of module `{module}`: {reason}")]
    Object { module: String, reason: String },
    /// A kernel description is outside of what the emitters handle.
    #[error("kernel `{kernel}`: {reason}")]
    Unsupported { kernel: String, reason: String },
}
