//! The attentions that are checked and timed.

use super::launch::Shape;
use fqc_kernels::cuda::attention_sm90::AttentionSm90Config;
use fqc_kernels::cuda::gemm::Output;

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

pub fn checked(shape: Shape) -> impl Iterator<Item = AttentionSm90Config> {
    let outputs = [Output::F16, Output::Bf16, Output::S8];
    let both = [false, true].into_iter();
    both.flat_map(move |causal| outputs.map(|output| config(shape, causal, output)))
}

fn config(shape: Shape, causal: bool, output: Output) -> AttentionSm90Config {
    let stages = if shape.dim == 64 { 4 } else { 2 };
    AttentionSm90Config { dim: shape.dim as u32, stages, causal, output }
}

/// Shapes that are timed, causal.
pub const TIMED: [Shape; 4] = [
    Shape { batch: 1, heads: 32, group: 1, queries: 2048, keys: 2048, dim: 128 },
    Shape { batch: 8, heads: 32, group: 1, queries: 256, keys: 256, dim: 128 },
    Shape { batch: 4, heads: 32, group: 1, queries: 2048, keys: 2048, dim: 128 },
    Shape { batch: 4, heads: 32, group: 4, queries: 2048, keys: 2048, dim: 64 },
];

pub fn timed(shape: Shape) -> AttentionSm90Config {
    config(shape, true, Output::F16)
}

pub fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().flat_map(|(batch, heads, group, queries, keys)| {
        [64, 128].map(|dim| Shape { batch, heads, group, queries, keys, dim })
    })
}

/// Every kernel that a command uses, by name.
pub fn all() -> Vec<(String, String)> {
    let all = shapes().flat_map(checked).chain(TIMED.map(timed));
    all.map(|config| (config.to_string(), config.source())).collect()
}
