//! Launches `quantize.cuh`.

use crate::device::{Buffer, Device, address};
use anyhow::Result;
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_kernels::cuda::quantize::QuantizeConfig;

/// `QuantizeArguments` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    x: u64,
    other: u64,
    sum: u64,
    normal: u64,
    codes: u64,
    gamma: u64,
    beta: u64,
    inverse: u64,
    tail: u64,
    rows: i32,
    width: i32,
    x_pitch: i32,
    other_pitch: i32,
    pitch: i32,
    tail_count: i32,
    epsilon: f32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

/// Buffers of one launch; those that the instance does not use may be any.
pub struct Operands<'a> {
    pub x: &'a Buffer,
    pub other: &'a Buffer,
    /// Where `other` starts, in elements of two bytes.
    pub other_at: usize,
    pub sum: &'a Buffer,
    pub normal: &'a Buffer,
    pub codes: &'a Buffer,
    pub gamma: &'a Buffer,
    pub beta: &'a Buffer,
    pub inverse: &'a Buffer,
    pub tail: &'a Buffer,
}

/// Sizes of one launch.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub rows: usize,
    pub width: usize,
    /// Elements from one row of `x` to the next, and of `other`.
    pub pitch: usize,
    /// Columns after flattening.
    pub padded: usize,
}

pub struct Quantize {
    kernel: CudaFunction,
    arguments: Arguments,
    grid: u32,
    threads: u32,
}

pub const EPSILON: f32 = 1e-5;

impl Quantize {
    pub fn new(
        device: &Device,
        config: &QuantizeConfig,
        rows: Rows,
        operands: &Operands,
    ) -> Result<Self> {
        let kernel = device.kernel(&config.to_string(), || config.source(), 0)?;
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        let resident =
            kernel.occupancy_max_active_blocks_per_multiprocessor(config.threads, 0, None)?;
        let codes_a_byte = if config.codes.packed { 2 } else { 1 };
        Ok(Self {
            kernel,
            arguments: Arguments {
                x: at(operands.x),
                other: at(operands.other) + operands.other_at as u64 * 2,
                sum: at(operands.sum),
                normal: at(operands.normal),
                codes: at(operands.codes),
                gamma: at(operands.gamma),
                beta: at(operands.beta),
                inverse: at(operands.inverse),
                tail: at(operands.tail),
                rows: rows.rows as i32,
                width: rows.width as i32,
                x_pitch: rows.pitch as i32,
                other_pitch: rows.pitch as i32,
                pitch: (rows.padded / codes_a_byte) as i32,
                tail_count: (rows.padded - rows.width) as i32,
                epsilon: EPSILON,
            },
            grid: (rows.rows as u32).min(resident * device.processors),
            threads: config.threads,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        device.launch(&self.kernel, &self.arguments, self.grid, self.threads, 0, true)
    }
}
