//! Launches, checks and times `attention.cuh`.

use crate::device::{Buffer, Device, address};
use crate::gemm::{TensorMap, tensor_map};
use crate::random::{self, Random};
use crate::timing::{self, Entry, ROTATION, round};
use anyhow::{Result, bail};
use cudarc::driver::sys::{CUtensorMapDataType, CUtensorMapSwizzle};
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_kernels::cuda::attention::{AttentionConfig, SUM_THREADS};
use fqc_kernels::cuda::attention_sm90::{AttentionSm90Config, KEYS, QUERIES, THREADS};
use fqc_kernels::cuda::gemm::Output;
use half::{bf16, f16};
use serde_json::{Value, json};
use std::fmt;

/// Elements from one batch, head and row to the next.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Strides {
    pub batch: i64,
    pub head: i64,
    pub row: i64,
}

/// `AttentionArguments` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    mask: u64,
    partial: u64,
    inverse: u64,
    strides: [Strides; 4],
    mask_strides: [i64; 4],
    batch: i32,
    queries: i32,
    keys: i32,
    heads: i32,
    group: i32,
    splits: i32,
    scale: f32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

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
    fn rows(&self) -> usize {
        self.queries * self.group
    }

    /// Strides of `[batch][sequence][heads][dim]`, which is how projections leave them.
    pub fn strides(&self, sequence: usize, heads: usize) -> Strides {
        let row = (heads * self.dim) as i64;
        Strides { batch: sequence as i64 * row, head: self.dim as i64, row }
    }

    fn operations(&self, causal: bool) -> f64 {
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
    /// `[batch][keys]`, the same for all heads and queries.
    pub mask: Option<&'a Buffer>,
    pub inverse: Option<&'a Buffer>,
    pub partial: &'a Buffer,
}

pub struct Attention {
    kernel: CudaFunction,
    sum: Option<CudaFunction>,
    arguments: Arguments,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: usize,
}

/// Parts of the keys of a launch.
pub fn splits(device: &Device, config: &AttentionConfig, shape: Shape) -> usize {
    let tiles = shape.rows().div_ceil(config.rows());
    let blocks = tiles * shape.heads / shape.group * shape.batch;
    config.splits(blocks, shape.keys, device.processors as usize)
}

impl Attention {
    pub fn new(
        device: &Device,
        config: &AttentionConfig,
        shape: Shape,
        operands: &Operands,
    ) -> Result<Self> {
        let shared_bytes = config.shared_bytes();
        let kernel = device.kernel(&config.to_string(), || config.source(), shared_bytes)?;
        let sum = match config.split {
            true => Some(device.kernel(&config.sum_name(), || config.sum_source(), 0)?),
            false => None,
        };
        let tiles = shape.rows().div_ceil(config.rows());
        let splits = splits(device, config, shape);
        let [q, k, v, out] = operands.addresses;
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        Ok(Self {
            kernel,
            sum,
            arguments: Arguments {
                q,
                k,
                v,
                out,
                mask: operands.mask.map_or(0, at),
                partial: at(operands.partial),
                inverse: operands.inverse.map_or(0, at),
                strides: operands.strides,
                mask_strides: [shape.keys as i64, 0, 0, 1],
                batch: shape.batch as i32,
                queries: shape.queries as i32,
                keys: shape.keys as i32,
                heads: shape.heads as i32,
                group: shape.group as i32,
                splits: splits as i32,
                scale: 1.0 / (shape.dim as f32).sqrt(),
            },
            grid: [(tiles * splits) as u32, (shape.heads / shape.group) as u32, shape.batch as u32],
            threads: config.threads(),
            shared_bytes,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        let Self { kernel, sum, arguments, grid, threads, shared_bytes } = self;
        device.launch_grid(kernel, arguments, *grid, *threads, *shared_bytes, true)?;
        let Some(sum) = sum else {
            return Ok(());
        };
        let rows = (arguments.batch * arguments.heads * arguments.queries) as u32;
        device.launch(sum, arguments, rows.div_ceil(SUM_THREADS / 32), SUM_THREADS, 0, true)
    }
}

/// `AttentionSm90Arguments` of the source.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sm90Arguments {
    maps: [TensorMap; 4],
    inverse: u64,
    queries: i32,
    keys: i32,
    group: i32,
    scale: f32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Sm90Arguments {}

pub struct AttentionSm90 {
    kernel: CudaFunction,
    arguments: Sm90Arguments,
    grid: [u32; 3],
    shared_bytes: usize,
}

impl AttentionSm90 {
    pub fn new(
        device: &Device,
        config: &AttentionSm90Config,
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
            arguments: Sm90Arguments {
                maps: [
                    map(0, shape.queries, shape.heads)?,
                    map(1, shape.keys, key_heads)?,
                    map(2, shape.keys, key_heads)?,
                    map(3, shape.queries, shape.heads)?,
                ],
                inverse: operands.inverse.map_or(0, |buffer| address(buffer, &device.stream)),
                queries: shape.queries as i32,
                keys: shape.keys as i32,
                group: shape.group as i32,
                scale: 1.0 / (shape.dim as f32).sqrt(),
            },
            grid: [shape.heads, shape.queries.div_ceil(QUERIES), shape.batch].map(|n| n as u32),
            shared_bytes,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        let Self { kernel, arguments, grid, shared_bytes } = self;
        device.launch_grid(kernel, arguments, *grid, THREADS, *shared_bytes, true)
    }
}

/// An instance of either family.
#[derive(Clone, Copy)]
enum Instance {
    Any(AttentionConfig),
    Sm90(AttentionSm90Config),
}

/// What the result of an instance is, whatever computes it.
struct Meaning {
    causal: bool,
    mask: bool,
    output: Output,
}

impl Instance {
    fn meaning(&self) -> Meaning {
        match *self {
            Self::Any(AttentionConfig { causal, mask, output, .. }) => {
                Meaning { causal, mask, output }
            }
            Self::Sm90(AttentionSm90Config { causal, output, .. }) => {
                Meaning { causal, mask: false, output }
            }
        }
    }

    fn partial_bytes(&self, device: &Device, shape: Shape) -> usize {
        match self {
            Self::Any(config) => {
                let splits = splits(device, config, shape);
                config.partial_bytes(splits, shape.batch, shape.heads, shape.queries)
            }
            Self::Sm90(_) => 16,
        }
    }

    fn prepare(&self, device: &Device, shape: Shape, operands: &Operands) -> Result<Launch> {
        Ok(match self {
            Self::Any(config) => Launch::Any(Attention::new(device, config, shape, operands)?),
            Self::Sm90(config) => {
                Launch::Sm90(AttentionSm90::new(device, config, shape, operands)?)
            }
        })
    }

    fn sources(&self) -> Vec<(String, String)> {
        match self {
            Self::Any(config) => {
                let sum = config.split.then(|| (config.sum_name(), config.sum_source()));
                [Some((config.to_string(), config.source())), sum].into_iter().flatten().collect()
            }
            Self::Sm90(config) => vec![(config.to_string(), config.source())],
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(config) => config.fmt(f),
            Self::Sm90(config) => config.fmt(f),
        }
    }
}

enum Launch {
    Any(Attention),
    Sm90(AttentionSm90),
}

impl Launch {
    fn launch(&self, device: &Device) -> Result<()> {
        match self {
            Self::Any(launch) => launch.launch(device),
            Self::Sm90(launch) => launch.launch(device),
        }
    }
}

const BASE: AttentionConfig = AttentionConfig {
    dim: 64,
    keys: 64,
    warps: 4,
    row_tiles: 1,
    causal: false,
    mask: false,
    split: false,
    output: Output::F16,
};

/// (batch, heads, group, queries, keys): square and ragged, cached keys, a single query.
const SHAPES: [(usize, usize, usize, usize, usize); 8] = [
    (1, 2, 1, 1, 1),
    (2, 3, 1, 65, 65),
    (1, 4, 4, 33, 97),
    (2, 6, 3, 128, 128),
    (1, 2, 2, 300, 300),
    (1, 8, 8, 1, 777),
    (3, 4, 1, 1, 1500),
    (1, 6, 2, 5, 2049),
];

fn checked(shape: Shape) -> Vec<Instance> {
    let base = BASE;
    let mut all = Vec::new();
    for (causal, mask) in [(false, false), (true, false), (false, true), (true, true)] {
        let config = AttentionConfig { causal, mask, ..base };
        all.push(config);
        all.push(AttentionConfig { split: true, ..config });
    }
    all.push(AttentionConfig { output: Output::Bf16, ..base });
    for split in [false, true] {
        all.push(AttentionConfig { output: Output::S8, split, ..base });
    }
    let tiled = |config: AttentionConfig| config.for_rows(shape.dim as u32, shape.rows());
    let mut all: Vec<_> = all.into_iter().map(|config| Instance::Any(tiled(config))).collect();
    if shape.dim > 32 {
        for causal in [false, true] {
            for output in [Output::F16, Output::Bf16, Output::S8] {
                all.push(Instance::Sm90(hopper(shape, causal, output)));
            }
        }
    }
    all
}

fn hopper(shape: Shape, causal: bool, output: Output) -> AttentionSm90Config {
    let stages = if shape.dim == 64 { 4 } else { 2 };
    AttentionSm90Config { dim: shape.dim as u32, stages, causal, output }
}

/// Shapes that are timed: prefill and decode.
const TIMED: [(Shape, bool); 8] = [
    (Shape { batch: 1, heads: 32, group: 1, queries: 2048, keys: 2048, dim: 128 }, true),
    (Shape { batch: 8, heads: 32, group: 1, queries: 256, keys: 256, dim: 128 }, true),
    (Shape { batch: 4, heads: 32, group: 1, queries: 2048, keys: 2048, dim: 128 }, true),
    (Shape { batch: 4, heads: 32, group: 4, queries: 2048, keys: 2048, dim: 64 }, true),
    (Shape { batch: 32, heads: 12, group: 1, queries: 128, keys: 128, dim: 32 }, false),
    (Shape { batch: 1, heads: 32, group: 1, queries: 1, keys: 4096, dim: 128 }, true),
    (Shape { batch: 16, heads: 32, group: 4, queries: 1, keys: 4096, dim: 128 }, true),
    (Shape { batch: 1, heads: 9, group: 3, queries: 1, keys: 2048, dim: 64 }, true),
];

fn timed(shape: Shape, causal: bool) -> Vec<Instance> {
    let split = shape.queries == 1;
    let config = AttentionConfig { causal, split, ..BASE };
    let mut all = vec![Instance::Any(config.for_rows(shape.dim as u32, shape.rows()))];
    if shape.dim > 32 && !split {
        all.push(Instance::Sm90(hopper(shape, causal, Output::F16)));
    }
    all
}

fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().flat_map(|(batch, heads, group, queries, keys)| {
        [32, 64, 128].map(|dim| Shape { batch, heads, group, queries, keys, dim })
    })
}

/// Every kernel that a command uses, by name.
pub fn all() -> Vec<(String, String)> {
    let timed = TIMED.into_iter().flat_map(|(shape, causal)| timed(shape, causal));
    shapes().flat_map(checked).chain(timed).flat_map(|instance| instance.sources()).collect()
}

struct Problem {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mask: Vec<f32>,
    inverse: Vec<f32>,
}

const POISON: u8 = 0xa5;

/// Checks every instance on every shape against sums of f64.
pub fn check(device: &Device, only: &str) -> Result<()> {
    let mut count = 0;
    for shape in shapes() {
        let Shape { batch, heads, group, queries, keys, dim } = shape;
        let mut random = Random::new((queries * 7 + keys * 3 + dim) as u64);
        let mut halves = |count: usize, size: f32| -> Vec<f32> {
            let values = random.floats(count, -size, size);
            // Numbers that both kinds of halves hold.
            values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
        };
        let keyed = batch * keys * heads / group * dim;
        let problem = Problem {
            shape,
            q: halves(batch * queries * heads * dim, 3.0),
            k: halves(keyed, 3.0),
            v: halves(keyed, 2.0),
            mask: halves(batch * keys, 2.0)
                .iter()
                .enumerate()
                .map(|(i, &m)| if i % 5 == 2 { f32::MIN } else { m })
                .collect(),
            inverse: random.floats(heads * dim, 50.0, 90.0),
        };
        for config in checked(shape) {
            if timing::wanted(&config.to_string(), only) {
                check_one(device, &config, &problem)?;
                count += 1;
            }
        }
    }
    println!("{count} attentions are right");
    Ok(())
}

fn check_one(device: &Device, instance: &Instance, problem: &Problem) -> Result<()> {
    let config = &instance.meaning();
    let Shape { batch, heads, group, queries, keys, dim } = problem.shape;
    let upload = |values: &[f32]| -> Result<Buffer> {
        if config.output == Output::Bf16 {
            device.upload(&values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())
        } else {
            device.upload(&values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>())
        }
    };
    let (q, k, v) = (upload(&problem.q)?, upload(&problem.k)?, upload(&problem.v)?);
    let elements = batch * queries * heads * dim;
    let bytes = elements * config.output.bytes();
    let out = device.filled(bytes + 64, POISON)?;
    let partial = instance.partial_bytes(device, problem.shape);
    let at = |buffer: &Buffer| address(buffer, &device.stream);
    let key_strides = problem.shape.strides(keys, heads / group);
    let query_strides = problem.shape.strides(queries, heads);
    let operands = Operands {
        addresses: [at(&q), at(&k), at(&v), at(&out)],
        strides: [query_strides, key_strides, key_strides, query_strides],
        mask: Some(&device.upload(&problem.mask)?),
        inverse: Some(&device.upload(&problem.inverse)?),
        partial: &device.filled(partial, POISON)?,
    };
    instance.prepare(device, problem.shape, &operands)?.launch(device)?;
    let result = device.download(&out)?;
    let place = |at: usize| format!("{instance} at {:?}, element {at}", problem.shape);
    if result[bytes..].iter().any(|&byte| byte != POISON) {
        bail!("{}: writes past its result", place(elements));
    }
    for row in 0..batch * queries * heads {
        let wanted = expected(config, problem, row);
        for (column, &wanted) in wanted.iter().enumerate() {
            let at = row * dim + column;
            let pair = || [result[at * 2], result[at * 2 + 1]];
            // Probabilities are rounded to halves, then the result.
            let (got, step, wanted) = match config.output {
                Output::Bf16 => (bf16::from_le_bytes(pair()).to_f64(), 1.0 / 128.0, wanted),
                Output::F16 => (f16::from_le_bytes(pair()).to_f64(), 1.0 / 1024.0, wanted),
                _ => {
                    let inverse = problem.inverse[row % heads * dim + column];
                    let wanted = (wanted * f64::from(inverse)).clamp(-127.0, 127.0);
                    (f64::from(result[at] as i8), 1.0 / 1024.0, wanted)
                }
            };
            let rounding = if config.output.codes() { 0.5 } else { 0.0 };
            let allowed = rounding + step * if config.output.codes() { 200.0 } else { 2.0 };
            let off = (got - wanted).abs();
            if off.is_nan() || off > allowed {
                bail!("{}: {got} instead of {wanted}", place(at));
            }
        }
    }
    Ok(())
}

/// Row `row` of `[batch][queries][heads]` by the definition.
fn expected(config: &Meaning, problem: &Problem, row: usize) -> Vec<f64> {
    let Shape { heads, group, queries, keys, dim, .. } = problem.shape;
    let (head, query, batch) = (row % heads, row / heads % queries, row / heads / queries);
    let key_heads = heads / group;
    let of_key = |values: &[f32], key: usize, i: usize| {
        f64::from(values[((batch * keys + key) * key_heads + head / group) * dim + i])
    };
    let visible = if config.causal { (keys + query + 1).saturating_sub(queries) } else { keys };
    let scores: Vec<f64> = (0..visible.min(keys))
        .map(|key| {
            let dot: f64 = (0..dim)
                .map(|i| f64::from(problem.q[row * dim + i]) * of_key(&problem.k, key, i))
                .sum();
            let mask = if config.mask { problem.mask[batch * keys + key] } else { 0.0 };
            dot / (dim as f64).sqrt() + f64::from(mask)
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|&s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..dim)
        .map(|i| {
            let sum: f64 =
                weights.iter().enumerate().map(|(key, w)| w * of_key(&problem.v, key, i)).sum();
            sum / total
        })
        .collect()
}

/// Times the shapes; `tests/cuda/torch_baseline.py` times torch's on the same.
pub fn bench(device: &Device, only: &str) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    for (shape, causal) in TIMED {
        let instances: Vec<_> = timed(shape, causal)
            .into_iter()
            .filter(|instance| timing::wanted(&instance.to_string(), only))
            .collect();
        if instances.is_empty() {
            continue;
        }
        let Shape { batch, heads, group, queries, keys, dim } = shape;
        let (query_elements, key_elements) =
            (batch * queries * heads * dim, batch * keys * heads / group * dim);
        let sets = (ROTATION / (4 * (query_elements + key_elements))).clamp(2, 24);
        let buffers = (0..sets as u64)
            .map(|i| -> Result<[Buffer; 4]> {
                let half = |elements: usize| device.filled(elements * 2, 0);
                let set = [
                    half(query_elements)?,
                    half(key_elements)?,
                    half(key_elements)?,
                    half(query_elements)?,
                ];
                for (j, buffer) in set[..3].iter().enumerate() {
                    random::fill(device, buffer, i * 3 + j as u64, true)?;
                }
                Ok(set)
            })
            .collect::<Result<Vec<_>>>()?;
        let operations = shape.operations(causal);
        let expected_ms = operations / 3e11 + 2.0 * key_elements as f64 * 2.0 / 2e9 + 0.005;
        let repeats = timing::repeats(expected_ms, sets);
        let (key, query) = (shape.strides(keys, heads / group), shape.strides(queries, heads));
        let mut entries = Vec::new();
        let mut partials = Vec::new();
        for instance in &instances {
            let partial = device.filled(instance.partial_bytes(device, shape), 0)?;
            let launches = buffers
                .iter()
                .map(|set| {
                    let operands = Operands {
                        addresses: std::array::from_fn(|i| address(&set[i], &device.stream)),
                        strides: [query, key, key, query],
                        mask: None,
                        inverse: None,
                        partial: &partial,
                    };
                    instance.prepare(device, shape, &operands)
                })
                .collect::<Result<Vec<_>>>()?;
            let work = |i: usize| launches[i % sets].launch(device);
            entries.push(Entry::new(device, instance.to_string(), repeats, work)?);
            partials.push(partial);
        }
        timing::time(device, &mut entries)?;
        for entry in &entries {
            let ms = entry.median();
            let tflops = operations / ms / 1e9;
            println!(
                "{:9.2} us {tflops:6.1} TFLOPS {:5.0} GB/s of keys  {shape:?} {}",
                ms * 1e3,
                4.0 * key_elements as f64 / ms / 1e6,
                entry.name,
            );
            records.push(json!({
                "attention": [batch, heads, group, queries, keys, dim], "causal": causal,
                "name": entry.name, "us": round(ms * 1e3, 100.0), "tflops": round(tflops, 10.0),
            }));
        }
    }
    Ok(records)
}
