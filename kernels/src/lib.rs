//! What kernels are, apart from their code: descriptors, packing orders, work items and costs.
//!
//! Passes ask here how to pack a weight, codegen how a kernel's work is cut into items; both see
//! the same functions, so a packed weight and the kernel that reads it cannot drift apart.
//! Nothing here runs or emits code. Reading order: [`pack`], [`gemm`], [`cuda`].

#![forbid(unsafe_code)]

pub mod cuda;
pub mod gemm;
pub mod pack;

pub use gemm::{GemmDesc, Operand, Stride};
