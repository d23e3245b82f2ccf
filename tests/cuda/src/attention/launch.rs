//! Launches `attention_sm90_boxes.cuh`.

use crate::device::{Buffer, Device, address};
use crate::gemm::{TensorMap, tensor_map};
use anyhow::Result;
use cudarc::driver::sys::{CUtensorMapDataType, CUtensorMapSwizzle};
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_kernels::cuda::attention_sm90::{AttentionSm90Config as Config, KEYS, QUERIES, THREADS};

/// Elements from one batch, head and row to the next.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Strides {
    pub batch: i64,
    pub head: i64,
    pub row: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    /// Query heads of a key head.
    pub group: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
}

impl Shape {
    /// Strides of `[batch][sequence][heads][dim]`, which is how projections leave them.
    pub fn strides(&self, sequence: usize, heads: usize) -> Strides {
        let row = (heads * self.dim) as i64;
        Strides { batch: sequence as i64 * row, head: self.dim as i64, row }
    }

    pub fn operations(&self, causal: bool) -> f64 {
        let pairs = if causal {
            (0..self.queries).map(|q| self.keys + q + 1 - self.queries).sum()
        } else {
            self.queries * self.keys
        };
        4.0 * (self.batch * self.heads * self.dim) as f64 * pairs as f64
    }
}

/// Addresses and strides of q, k, v and the result.
pub struct Operands<'a> {
    pub addresses: [u64; 4],
    pub strides: [Strides; 4],
    pub inverse: Option<&'a Buffer>,
}

/// `AttentionSm90Arguments` of the source.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Inputs {
    maps: [TensorMap; 3],
    queries: i32,
    keys: i32,
    heads: i32,
    group: i32,
}

/// `AttentionBoxesArguments` of the source.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Arguments {
    attention: Inputs,
    out: TensorMap,
    inverse: u64,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

pub struct Attention {
    kernel: CudaFunction,
    arguments: Arguments,
    blocks: u32,
    shared_bytes: usize,
}

impl Attention {
    pub fn new(
        device: &Device,
        config: &Config,
        shape: Shape,
        operands: &Operands,
    ) -> Result<Self> {
        let shared_bytes = config.shared_bytes();
        let kernel = device.kernel(&config.to_string(), || config.source(), shared_bytes)?;
        let key_heads = shape.heads / shape.group;
        let map = |i: usize, rows: usize, heads: usize| {
            let codes = i == 3 && config.output.codes();
            let size = if codes { 1 } else { 2 };
            let Strides { batch, head, row } = operands.strides[i];
            let (columns, box_rows) = match i {
                3 => (config.out_box_columns(), QUERIES / 2),
                _ => (64, KEYS),
            };
            let (kind, swizzle) = if codes {
                (
                    CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
                    CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
                )
            } else {
                (
                    CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                    CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                )
            };
            tensor_map(
                kind,
                operands.addresses[i],
                &[shape.dim, rows, heads, shape.batch],
                &[row, head, batch].map(|stride| stride as usize * size),
                &[columns, box_rows as u32, 1, 1],
                swizzle,
            )
        };
        Ok(Self {
            kernel,
            arguments: Arguments {
                attention: Inputs {
                    maps: [
                        map(0, shape.queries, shape.heads)?,
                        map(1, shape.keys, key_heads)?,
                        map(2, shape.keys, key_heads)?,
                    ],
                    queries: shape.queries as i32,
                    keys: shape.keys as i32,
                    heads: shape.heads as i32,
                    group: shape.group as i32,
                },
                out: map(3, shape.queries, shape.heads)?,
                inverse: operands.inverse.map_or(0, |buffer| address(buffer, &device.stream)),
            },
            blocks: (shape.heads * shape.queries.div_ceil(QUERIES) * shape.batch) as u32,
            shared_bytes,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        let Self { kernel, arguments, blocks, shared_bytes } = self;
        device.launch(kernel, arguments, *blocks, THREADS, *shared_bytes, true)
    }
}
