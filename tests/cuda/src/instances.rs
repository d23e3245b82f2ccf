//! The instances that are checked and timed.

use crate::product::Product;
use fqc_kernels::cuda::gemm::{Activation, GemmConfig, Output, Weights};
use fqc_kernels::cuda::gemm_sm80::GemmSm80Config;

const BASE: GemmConfig = GemmConfig {
    weights: Weights::Int8,
    blocks: 1,
    tokens: 256,
    stages: 8,
    cluster: 1,
    split: 1,
    output: Output::F16,
    activation: Activation::Relu,
    bias: true,
    residual: false,
    unsigned: false,
    digits: false,
};

const WEIGHTS: [Weights; 3] = [Weights::Int8, Weights::Int4, Weights::Int4Grouped];

/// Tiles as (blocks, tokens, cluster, split).
const TILES: [(u32, u32, u32, u32); 24] = [
    (1, 256, 1, 1),
    (1, 256, 2, 1),
    (1, 256, 4, 1),
    (2, 128, 1, 1),
    (2, 128, 2, 1),
    (1, 192, 1, 1),
    (1, 128, 1, 1),
    (1, 128, 2, 1),
    (1, 128, 1, 2),
    (2, 64, 1, 1),
    (2, 64, 1, 4),
    (1, 64, 1, 1),
    (1, 64, 2, 1),
    (1, 64, 1, 2),
    (1, 64, 1, 4),
    (1, 32, 1, 1),
    (1, 32, 1, 2),
    (1, 32, 1, 4),
    (1, 16, 1, 1),
    (1, 16, 2, 1),
    (1, 16, 1, 2),
    (1, 16, 1, 4),
    (1, 8, 1, 1),
    (1, 8, 1, 8),
];

fn tile((blocks, tokens, cluster, split): (u32, u32, u32, u32), base: GemmConfig) -> GemmConfig {
    GemmConfig { blocks, tokens, cluster, split, ..base }
}

/// What is checked, of both families.
pub fn checked() -> Vec<Product> {
    let hopper = checked_hopper().into_iter().map(Product::Hopper);
    hopper.chain(checked_sm80().into_iter().map(Product::Sm80)).collect()
}

/// Every tile with plain accumulators, and every epilogue on some tiles.
fn checked_hopper() -> Vec<GemmConfig> {
    let mut all = Vec::new();
    for weights in WEIGHTS {
        let base = GemmConfig { weights, ..BASE };
        let plain =
            GemmConfig { output: Output::S32, activation: Activation::None, bias: false, ..base };
        all.extend(TILES.map(|shape| tile(shape, plain)));
        for shape in [(1, 256, 2, 1), (2, 128, 2, 1), (1, 64, 1, 1), (1, 32, 1, 4)] {
            for output in [Output::F16, Output::Bf16, Output::F32, Output::S8] {
                all.push(GemmConfig { output, ..tile(shape, base) });
            }
        }
        let wide = tile((1, 256, 2, 1), base);
        for activation in [
            Activation::None,
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
        ] {
            all.push(GemmConfig { activation, residual: true, ..wide });
            all.push(GemmConfig { activation, ..wide });
        }
        all.push(GemmConfig { output: Output::Bf16, residual: true, ..wide });
        all.push(GemmConfig { output: Output::S8, residual: true, ..wide });
        for shape in [(2, 128, 2, 1), (1, 64, 1, 2), (1, 16, 1, 1)] {
            all.push(GemmConfig { residual: true, ..tile(shape, base) });
        }
        all.push(GemmConfig { bias: false, ..tile((1, 16, 1, 4), base) });
        for output in CODES {
            all.push(GemmConfig { output, digits: true, ..wide });
            all.push(GemmConfig { output, digits: true, activation: Activation::None, ..wide });
        }
        for shape in [(1, 256, 2, 1), (2, 128, 2, 1), (1, 64, 1, 2), (1, 16, 1, 4)] {
            all.push(GemmConfig { unsigned: true, ..tile(shape, plain) });
        }
        all.push(GemmConfig { unsigned: true, output: Output::U8, ..wide });
    }
    finished(all)
}

const CODES: [Output; 4] = [Output::S8, Output::U8, Output::S4, Output::U4];

/// Tiles of the `mma.sync` kernels as (channels, tokens, channel warps, token warps, stages).
const SM80_TILES: [(u32, u32, u32, u32, u32); 4] =
    [(128, 128, 2, 4, 3), (128, 64, 4, 2, 4), (64, 32, 4, 1, 6), (64, 16, 4, 1, 8)];

/// Every tile with plain accumulators, every epilogue on two of them.
fn checked_sm80() -> Vec<GemmSm80Config> {
    let mut all = Vec::new();
    for weights in [Weights::Int8, Weights::Int4, Weights::Native4, Weights::F16, Weights::Bf16] {
        for (channels, tokens, channel_warps, token_warps, stages) in SM80_TILES {
            let plain = GemmSm80Config {
                weights,
                unsigned: false,
                channels,
                tokens,
                channel_warps,
                token_warps,
                stages,
                output: Output::S32,
                activation: Activation::None,
                bias: false,
                residual: false,
                digits: false,
            };
            all.push(plain);
            all.push(GemmSm80Config { unsigned: true, ..plain });
            if !matches!(tokens, 16 | 128) {
                continue;
            }
            let base = GemmSm80Config { activation: Activation::Relu, bias: true, ..plain };
            for output in [Output::F16, Output::Bf16, Output::F32] {
                all.push(GemmSm80Config { output, ..base });
            }
            for output in CODES {
                all.push(GemmSm80Config { output, ..base });
                all.push(GemmSm80Config {
                    output,
                    digits: true,
                    activation: Activation::None,
                    ..base
                });
            }
            for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
                all.push(GemmSm80Config {
                    output: Output::F16,
                    activation,
                    residual: true,
                    ..base
                });
            }
        }
    }
    all.retain(|config| config.fault().is_none());
    all
}

/// Candidates for so many tokens.
pub fn timed(m: usize) -> Vec<GemmConfig> {
    let tiles = TILES.into_iter().filter(|&(blocks, tokens, cluster, _)| match m {
        ..=8 => tokens <= 16 && cluster == 1,
        9..=16 => tokens == 16 && cluster == 1,
        17..=64 => tokens >= m as u32 && tokens <= 64 && cluster == 1,
        65..=256 => tokens >= 64 && cluster < 4 && (blocks, tokens) != (1, 64),
        257..=512 => tokens >= 128 && cluster < 4,
        _ => tokens * blocks == 256 && cluster == 2,
    });
    let mut all = Vec::new();
    for weights in WEIGHTS {
        let base = GemmConfig { weights, ..BASE };
        for shape in tiles.clone() {
            all.push(tile(shape, base));
            if m > 64 && (shape.2 == 2 || m <= 512) {
                all.push(GemmConfig { output: Output::S8, ..tile(shape, base) });
            }
        }
        if m > 512 {
            let wide = tile((1, 256, 2, 1), base);
            all.push(tile((1, 256, 1, 1), base));
            all.push(GemmConfig { activation: Activation::Gelu, ..wide });
            all.push(GemmConfig { residual: true, ..wide });
        }
    }
    finished(all)
}

/// An instance and, where it may leave a rest, that one's.
fn with_rest(config: GemmConfig) -> impl Iterator<Item = GemmConfig> {
    let leaves = config.cluster == 1 && config.split == 1 && config.blocks * config.tokens >= 256;
    [Some(config), leaves.then(|| config.rest())].into_iter().flatten()
}

/// Every instance that any command uses.
pub fn all() -> Vec<Product> {
    let timed = [8, 16, 32, 64, 256, 512, 2048].into_iter().flat_map(timed);
    let hopper = checked_hopper().into_iter().chain(timed).flat_map(with_rest).map(Product::Hopper);
    let mut all: Vec<_> = hopper.chain(checked_sm80().into_iter().map(Product::Sm80)).collect();
    all.sort_by_key(ToString::to_string);
    all.dedup();
    all
}

/// As many stages as fit; what is not legal is left out.
fn finished(all: Vec<GemmConfig>) -> Vec<GemmConfig> {
    let staged = all.into_iter().map(|config| config.with_stages_up_to(8));
    staged.filter(|config| config.fault().is_none()).collect()
}
