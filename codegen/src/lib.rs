//! Plan to machine code; nothing here knows the graph. The CPU side goes through LLVM and gives
//! one flat, position-independent blob a level; the CUDA side goes through NVRTC and gives cubins.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "cpu", feature = "cuda"))]
mod parts;
mod program;
mod spec;
