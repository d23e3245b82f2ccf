//! Launches `gemm_sm90.cuh`.

use crate::device::{Buffer, Device, address};
use anyhow::Result;
use cudarc::driver::sys::{self, CUtensorMap, CUtensorMapDataType, CUtensorMapSwizzle};
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_kernels::cuda::gemm::{GemmConfig, THREADS, Weights};
use fqc_kernels::cuda::pack::{
    BLOCK_CHANNELS, BLOCK_K, GROUPED_BLOCK_BYTES, block_bytes, k_blocks,
};
use std::ops::Range;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct TensorMap([u64; 16]);

/// `GemmArguments` of the source.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Arguments {
    x: TensorMap,
    y: TensorMap,
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
    pitch: i32,
    raster: i32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Buffers of one product. The activations' rows are `k` bytes, a multiple of 16.
pub struct Operands<'a> {
    pub x: &'a Buffer,
    pub weights: &'a Buffer,
    pub scale: &'a Buffer,
    pub bias: &'a Buffer,
    pub residual: &'a Buffer,
    pub inverse: &'a Buffer,
    pub below: &'a Buffer,
    pub out: &'a Buffer,
}

/// Token tiles that are walked together: enough that both operands come from L2.
pub const RASTER: i32 = 8;

pub struct Gemm {
    config: GemmConfig,
    kernel: CudaFunction,
    arguments: Arguments,
    grid: u32,
}

impl Gemm {
    pub fn new(
        device: &Device,
        config: &GemmConfig,
        shape: Shape,
        operands: &Operands,
    ) -> Result<Self> {
        Self::part(device, config, shape, operands, 0..shape.n)
    }

    /// Some channels of the product, from a multiple of 64 on.
    fn part(
        device: &Device,
        config: &GemmConfig,
        whole: Shape,
        operands: &Operands,
        channels: Range<usize>,
    ) -> Result<Self> {
        let (name, source) = (config.to_string(), || sanitised(config.source()));
        let kernel = device.kernel(&name, source, config.shared_bytes())?;
        let shape = Shape { n: channels.len(), ..whole };
        let block = match config.weights {
            Weights::Int4Grouped => GROUPED_BLOCK_BYTES,
            weights => block_bytes(weights == Weights::Int4),
        };
        let block_at = channels.start / BLOCK_CHANNELS * k_blocks(shape.k) * block;
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        // Where the vectors of these channels start, and a row of so many bytes an element.
        let vector = |buffer: &Buffer| at(buffer) + channels.start as u64 * 4;
        let row = |buffer: &Buffer, bytes: usize| at(buffer) + (channels.start * bytes) as u64;
        let x = tensor_map(
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            at(operands.x),
            &[shape.k, shape.m],
            &[shape.k],
            &[BLOCK_K as u32, config.x_box_tokens()],
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        )?;
        let y = if config.output.staged() {
            let (kind, swizzle) = match config.output {
                output if output.codes() => (
                    CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
                    CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
                ),
                _ => (
                    CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                    CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                ),
            };
            let pitch = whole.n * config.output.bytes();
            let span = [64, config.y_box_tokens()];
            tensor_map(
                kind,
                row(operands.out, config.output.bytes()),
                &[shape.n, shape.m],
                &[pitch],
                &span,
                swizzle,
            )?
        } else {
            x
        };
        let cluster = config.cluster as usize;
        let channel_tiles = shape.n.div_ceil(config.tile_channels() * cluster);
        let tiles = channel_tiles * shape.m.div_ceil(config.tokens as usize);
        let group = config.group() as usize;
        // A cluster that splits K has one tile; others stay and take one after the other.
        let clusters = if config.split > 1 {
            tiles
        } else {
            let shared = config.shared_bytes();
            tiles.min(device.active_clusters(&kernel, config.group(), THREADS, shared)?)
        };
        Ok(Self {
            config: *config,
            kernel,
            arguments: Arguments {
                x,
                y,
                weights: at(operands.weights) + block_at as u64,
                scale: vector(operands.scale),
                bias: vector(operands.bias),
                residual: row(operands.residual, 2),
                inverse: vector(operands.inverse),
                below: vector(operands.below),
                out: row(operands.out, config.output.bytes()),
                m: shape.m as i32,
                n: shape.n as i32,
                k_blocks: k_blocks(shape.k) as i32,
                pitch: whole.n as i32,
                raster: RASTER,
            },
            grid: (clusters * group) as u32,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        let shared = self.config.shared_bytes();
        device.launch(&self.kernel, &self.arguments, self.grid, THREADS, shared, true)
    }
}

/// A product whose last wave of tiles is short, in two launches.
pub struct Parts([Gemm; 2]);

impl Parts {
    /// None where one launch is as good.
    pub fn new(
        device: &Device,
        config: &GemmConfig,
        shape: Shape,
        operands: &Operands,
    ) -> Result<Option<Self>> {
        let Some(whole) = config.whole_waves(shape.m, shape.n, device.processors as usize) else {
            return Ok(None);
        };
        let main = Gemm::part(device, config, shape, operands, 0..whole)?;
        let rest = Gemm::part(device, &config.rest(), shape, operands, whole..shape.n)?;
        Ok(Some(Self([main, rest])))
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        self.0.iter().try_for_each(|part| part.launch(device))
    }
}

/// With `FQC_EVERY_LANE` set, the variant of a Hopper gemm for compute-sanitizer's racecheck.
pub fn sanitised(source: String) -> String {
    match std::env::var_os("FQC_EVERY_LANE") {
        Some(_) => format!("#define FQC_EVERY_LANE\n{source}"),
        None => source,
    }
}

/// Sizes from the innermost axis, in elements; pitches of the others, in bytes.
pub fn tensor_map(
    kind: CUtensorMapDataType,
    address: u64,
    sizes: &[usize],
    pitches: &[usize],
    span: &[u32],
    swizzle: CUtensorMapSwizzle,
) -> Result<TensorMap> {
    // SAFETY: a tensor map is plain bytes.
    let mut map: CUtensorMap = unsafe { std::mem::zeroed() };
    let sizes: Vec<u64> = sizes.iter().map(|&size| size as u64).collect();
    let pitches: Vec<u64> = pitches.iter().map(|&pitch| pitch as u64).collect();
    let steps = vec![1u32; sizes.len()];
    // SAFETY: every pointer is to live values of the stated rank.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            kind,
            sizes.len() as u32,
            address as *mut _,
            sizes.as_ptr(),
            pitches.as_ptr(),
            span.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result()?;
    // SAFETY: the map is 128 bytes.
    Ok(unsafe { std::ptr::read_unaligned((&raw const map).cast::<TensorMap>()) })
}
