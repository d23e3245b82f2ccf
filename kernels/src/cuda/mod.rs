//! CUDA kernels: their sources, how each instance is specialised, how its weights are packed.
//!
//! The sources under `kernels/cuda` include nothing but each other. An instance is a named
//! configuration; it prints the few lines that specialise a source, and codegen compiles them.

pub mod attention_sm90;
pub mod choose;
pub mod gemm;
pub mod gemm_sm80;
pub mod pack;
pub mod wgmma;

/// Every source by the name that `#include` gives it.
pub const SOURCES: [(&str, &str); 16] = [
    ("scalar.cuh", include_str!("../../cuda/scalar.cuh")),
    ("attention_result.cuh", include_str!("../../cuda/attention_result.cuh")),
    ("attention_bf16.cuh", include_str!("../../cuda/attention_bf16.cuh")),
    ("ptx.cuh", include_str!("../../cuda/ptx.cuh")),
    ("wgmma.cuh", include_str!("../../cuda/wgmma.cuh")),
    ("epilogue.cuh", include_str!("../../cuda/epilogue.cuh")),
    ("layout_sm90.cuh", include_str!("../../cuda/layout_sm90.cuh")),
    ("mainloop_sm90.cuh", include_str!("../../cuda/mainloop_sm90.cuh")),
    ("writeback_sm90.cuh", include_str!("../../cuda/writeback_sm90.cuh")),
    ("gemm_sm90.cuh", include_str!("../../cuda/gemm_sm90.cuh")),
    ("wgmma_half.cuh", include_str!("../../cuda/wgmma_half.cuh")),
    ("attention_sm90.cuh", include_str!("../../cuda/attention_sm90.cuh")),
    ("attention_sm90_boxes.cuh", include_str!("../../cuda/attention_sm90_boxes.cuh")),
    ("attention_sm90_rows.cuh", include_str!("../../cuda/attention_sm90_rows.cuh")),
    ("mma.cuh", include_str!("../../cuda/mma.cuh")),
    ("gemm_sm80.cuh", include_str!("../../cuda/gemm_sm80.cuh")),
];
