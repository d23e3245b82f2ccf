//! Launches `gemm_sm80.cuh`.

use crate::device::{Buffer, Device, address};
use crate::gemm::{Operands, RASTER, Shape};
use anyhow::Result;
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_kernels::cuda::gemm::Weights;
use fqc_kernels::cuda::gemm_sm80::GemmSm80Config;

/// `GemmSm80Arguments` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    x: u64,
    weights: u64,
    scale: u64,
    bias: u64,
    residual: u64,
    inverse: u64,
    below: u64,
    out: u64,
    m: i32,
    n: i32,
    k_blocks: i32,
    k_bytes: i32,
    x_pitch: i32,
    raster: i32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

pub struct GemmSm80 {
    kernel: CudaFunction,
    arguments: Arguments,
    grid: u32,
    threads: u32,
    shared_bytes: usize,
}

impl GemmSm80 {
    pub fn new(
        device: &Device,
        config: &GemmSm80Config,
        shape: Shape,
        operands: &Operands,
    ) -> Result<Self> {
        let shared_bytes = config.shared_bytes();
        let kernel = device.kernel(&config.to_string(), || config.source(), shared_bytes)?;
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        let bytes = if config.weights.float() { shape.k * 2 } else { shape.k };
        let packed = if config.weights == Weights::Native4 { bytes / 2 } else { bytes };
        Ok(Self {
            kernel,
            arguments: Arguments {
                x: at(operands.x),
                weights: at(operands.weights),
                scale: at(operands.scale),
                bias: at(operands.bias),
                residual: at(operands.residual),
                inverse: at(operands.inverse),
                below: at(operands.below),
                out: at(operands.out),
                m: shape.m as i32,
                n: shape.n as i32,
                k_blocks: packed.div_ceil(128) as i32,
                k_bytes: bytes as i32,
                x_pitch: bytes as i32,
                raster: RASTER,
            },
            grid: config.blocks(shape.m, shape.n) as u32,
            threads: config.threads(),
            shared_bytes,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        let Self { kernel, arguments, grid, threads, shared_bytes } = self;
        device.launch(kernel, arguments, *grid, *threads, *shared_bytes, true)
    }
}
