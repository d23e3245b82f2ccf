//! CUDA kernels without a GPU: instances compile, their code is what it should be.

mod hopper;
mod portable;
mod tools;
