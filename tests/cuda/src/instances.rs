//! The instances that are checked and timed.

use crate::bench::Contender;
use fqc_kernels::cuda::gemm::{Activation, GemmConfig, Output, Weights};

const BASE: GemmConfig = GemmConfig {
    weights: Weights::Int8,
    blocks: 1,
    tokens: 256,
    stages: 8,
    cluster: 2,
    output: Output::F16,
    activation: Activation::Relu,
    bias: true,
    residual: false,
};

const WEIGHTS: [Weights; 2] = [Weights::Int8, Weights::Int4];

/// Every tile with plain accumulators, and every epilogue on one tile.
pub fn checked() -> Vec<GemmConfig> {
    let mut all = Vec::new();
    for weights in WEIGHTS {
        let plain =
            GemmConfig { output: Output::S32, activation: Activation::None, bias: false, ..BASE };
        for (blocks, tokens) in
            [(1, 256), (2, 128), (1, 192), (1, 128), (2, 64), (1, 64), (1, 32), (1, 16), (1, 8)]
        {
            for cluster in [1, 2] {
                all.push(GemmConfig { weights, blocks, tokens, cluster, ..plain });
            }
        }
        all.push(GemmConfig { weights, cluster: 4, ..plain });
        for output in [Output::F16, Output::Bf16, Output::F32, Output::S8] {
            all.push(GemmConfig { weights, output, ..BASE });
        }
        for (blocks, tokens) in [(2, 128), (1, 64), (1, 32)] {
            for output in [Output::F16, Output::S8] {
                all.push(GemmConfig { weights, output, blocks, tokens, ..BASE });
            }
        }
        for activation in
            [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu]
        {
            all.push(GemmConfig { weights, activation, residual: true, ..BASE });
        }
        all.push(GemmConfig { weights, output: Output::Bf16, residual: true, ..BASE });
        all.push(GemmConfig { weights, tokens: 16, bias: false, ..BASE });
    }
    finished(all)
}

/// Candidates for so many tokens.
pub fn timed(m: usize) -> Vec<Contender> {
    let mut all = Vec::new();
    let tiles: &[(u32, u32)] = match m {
        ..=16 => &[(1, 8), (1, 16)],
        ..=64 => &[(1, 32), (1, 64), (2, 64)],
        ..=512 => &[(1, 128), (2, 64), (2, 128), (1, 192), (1, 256)],
        _ => &[(1, 256), (2, 128)],
    };
    let clusters: &[u32] = if m > 512 { &[1, 2, 4] } else { &[1, 2] };
    for weights in WEIGHTS {
        for &(blocks, tokens) in tiles {
            for &cluster in clusters {
                all.push(GemmConfig { weights, blocks, tokens, cluster, ..BASE });
            }
        }
        if m > 512 {
            let config = GemmConfig { weights, ..BASE };
            all.push(GemmConfig { output: Output::S8, ..config });
            all.push(GemmConfig { activation: Activation::Gelu, ..config });
        }
    }
    finished(all).into_iter().map(|config| Contender { config, raster: 8 }).collect()
}

/// Every instance that any command uses.
pub fn all() -> Vec<GemmConfig> {
    let timed = [16, 64, 512, 2048].into_iter().flat_map(timed).map(|c| c.config);
    let mut all: Vec<_> = checked().into_iter().chain(timed).collect();
    all.sort_by_key(ToString::to_string);
    all.dedup();
    all
}

fn finished(all: Vec<GemmConfig>) -> Vec<GemmConfig> {
    let staged = all.into_iter().map(|config| config.with_stages_up_to(8));
    staged.filter(|config| config.fault().is_none()).collect()
}
