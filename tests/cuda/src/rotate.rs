//! Launches and checks `rotate.cuh`.

use crate::device::{Buffer, Device, address};
use crate::random::Random;
use anyhow::{Result, bail};
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_kernels::cuda::quantize::Element;
use fqc_kernels::cuda::rotate::{RotateConfig, THREADS};
use half::f16;

/// `RotateArguments` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    x: u64,
    cos: u64,
    sin: u64,
    rows: i32,
    heads: i32,
    dim: i32,
    pitch: i32,
    length: i32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

pub const F16: RotateConfig = RotateConfig { element: Element::F16 };

/// What is turned: `heads` of each row, from its first element on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub heads: usize,
    pub dim: usize,
    pub pitch: usize,
    pub length: usize,
}

pub struct Rotate {
    kernel: CudaFunction,
    arguments: Arguments,
    grid: u32,
}

impl Rotate {
    pub fn new(device: &Device, x: &Buffer, table: [&Buffer; 2], shape: Shape) -> Result<Self> {
        let kernel = device.kernel(&F16.to_string(), || F16.source(), 0)?;
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        let Shape { rows, heads, dim, pitch, length } = shape;
        let blocks = (rows * heads * dim / 16).div_ceil(THREADS as usize) as u32;
        Ok(Self {
            kernel,
            arguments: Arguments {
                x: at(x),
                cos: at(table[0]),
                sin: at(table[1]),
                rows: rows as i32,
                heads: heads as i32,
                dim: dim as i32,
                pitch: pitch as i32,
                length: length as i32,
            },
            grid: blocks.min(device.processors * 8),
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        device.launch(&self.kernel, &self.arguments, self.grid, THREADS, 0, true)
    }
}

/// Compares with the definition; what lies between the rows must stay.
pub fn check(device: &Device) -> Result<()> {
    for (rows, heads, dim, length) in [(1, 1, 32, 1), (77, 3, 64, 11), (300, 5, 128, 300)] {
        let pitch = heads * dim + 24;
        let shape = Shape { rows, heads, dim, pitch, length };
        let mut random = Random::new(rows as u64);
        let x: Vec<f16> =
            random.floats(rows * pitch, -2.0, 2.0).into_iter().map(f16::from_f32).collect();
        let angles = random.floats(length * dim / 2, 0.0, 6.0);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let on_device = device.upload(&x)?;
        let table = [device.upload(&cos)?, device.upload(&sin)?];
        Rotate::new(device, &on_device, [&table[0], &table[1]], shape)?.launch(device)?;
        let result = device.download(&on_device)?;
        for (at, (got, &before)) in result.chunks_exact(2).zip(&x).enumerate() {
            let (row, column) = (at / pitch, at % pitch);
            let got = f16::from_le_bytes([got[0], got[1]]).to_f32();
            let wanted = if column >= heads * dim {
                before.to_f32()
            } else {
                let (half, within) = (dim / 2, column % dim);
                let angle = row % length * half + within % half;
                let (c, s) = (cos[angle], sin[angle]);
                if within < half {
                    before.to_f32() * c - x[at + half].to_f32() * s
                } else {
                    before.to_f32() * c + x[at - half].to_f32() * s
                }
            };
            if (got - wanted).abs() > wanted.abs() / 1024.0 + 1e-6 {
                bail!("{F16} at {shape:?}, element {at}: {got} instead of {wanted}");
            }
        }
    }
    println!("rotations are right");
    Ok(())
}
