//! The attentions that are checked and timed.

use super::launch::{Attention, AttentionSm90, Operands, Shape, splits};
use crate::device::Device;
use anyhow::Result;
use fqc_kernels::cuda::attention::AttentionConfig;
use fqc_kernels::cuda::attention_sm90::AttentionSm90Config;
use fqc_kernels::cuda::gemm::Output;
use std::fmt;

/// An instance of either family.
#[derive(Clone, Copy)]
pub enum Instance {
    Any(AttentionConfig),
    Sm90(AttentionSm90Config),
}

/// What the result of an instance is, whatever computes it.
pub struct Meaning {
    pub causal: bool,
    pub mask: bool,
    pub output: Output,
}

impl Instance {
    pub fn meaning(&self) -> Meaning {
        match *self {
            Self::Any(AttentionConfig { causal, mask, output, .. }) => {
                Meaning { causal, mask, output }
            }
            Self::Sm90(AttentionSm90Config { causal, output, .. }) => {
                Meaning { causal, mask: false, output }
            }
        }
    }

    pub fn partial_bytes(&self, device: &Device, shape: Shape) -> usize {
        match self {
            Self::Any(config) => {
                let splits = splits(device, config, shape);
                config.partial_bytes(splits, shape.batch, shape.heads, shape.queries)
            }
            Self::Sm90(_) => 16,
        }
    }

    pub fn prepare(&self, device: &Device, shape: Shape, operands: &Operands) -> Result<Launch> {
        Ok(match self {
            Self::Any(config) => {
                Launch::Any(Box::new(Attention::new(device, config, shape, operands)?))
            }
            Self::Sm90(config) => {
                Launch::Sm90(Box::new(AttentionSm90::new(device, config, shape, operands)?))
            }
        })
    }

    pub fn sources(&self) -> Vec<(String, String)> {
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

pub enum Launch {
    Any(Box<Attention>),
    Sm90(Box<AttentionSm90>),
}

impl Launch {
    pub fn launch(&self, device: &Device) -> Result<()> {
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

pub fn checked(shape: Shape) -> Vec<Instance> {
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
pub const TIMED: [(Shape, bool); 8] = [
    (Shape { batch: 1, heads: 32, group: 1, queries: 2048, keys: 2048, dim: 128 }, true),
    (Shape { batch: 8, heads: 32, group: 1, queries: 256, keys: 256, dim: 128 }, true),
    (Shape { batch: 4, heads: 32, group: 1, queries: 2048, keys: 2048, dim: 128 }, true),
    (Shape { batch: 4, heads: 32, group: 4, queries: 2048, keys: 2048, dim: 64 }, true),
    (Shape { batch: 32, heads: 12, group: 1, queries: 128, keys: 128, dim: 32 }, false),
    (Shape { batch: 1, heads: 32, group: 1, queries: 1, keys: 4096, dim: 128 }, true),
    (Shape { batch: 16, heads: 32, group: 4, queries: 1, keys: 4096, dim: 128 }, true),
    (Shape { batch: 1, heads: 9, group: 3, queries: 1, keys: 2048, dim: 64 }, true),
];

pub fn timed(shape: Shape, causal: bool) -> Vec<Instance> {
    let split = shape.queries == 1;
    let config = AttentionConfig { causal, split, ..BASE };
    let mut all = vec![Instance::Any(config.for_rows(shape.dim as u32, shape.rows()))];
    if shape.dim > 32 && !split {
        all.push(Instance::Sm90(hopper(shape, causal, Output::F16)));
    }
    all
}

pub fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().flat_map(|(batch, heads, group, queries, keys)| {
        [32, 64, 128].map(|dim| Shape { batch, heads, group, queries, keys, dim })
    })
}

/// Every kernel that a command uses, by name.
pub fn all() -> Vec<(String, String)> {
    let timed = TIMED.into_iter().flat_map(|(shape, causal)| timed(shape, causal));
    shapes().flat_map(checked).chain(timed).flat_map(|instance| instance.sources()).collect()
}
