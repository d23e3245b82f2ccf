//! The kernels of every architecture, and Hopper's attention.

use crate::tools::{assembly, nvrtc};
use fqc_codegen::cuda::Arch;
use fqc_kernels::cuda::attention::AttentionConfig;
use fqc_kernels::cuda::attention_sm90::AttentionSm90Config;
use fqc_kernels::cuda::gemm::{Activation, Output, Weights};
use fqc_kernels::cuda::gemm_sm80::GemmSm80Config;
use fqc_kernels::cuda::quantize::{Codes, Combine, Element, Norm, QuantizeConfig};
use fqc_kernels::cuda::rotate::RotateConfig;

const GEMM: GemmSm80Config = GemmSm80Config {
    weights: Weights::Int8,
    unsigned: false,
    channels: 128,
    tokens: 128,
    channel_warps: 2,
    token_warps: 4,
    stages: 3,
    output: Output::F16,
    activation: Activation::Gelu,
    bias: true,
    residual: true,
    digits: false,
};

#[test]
fn gemms_multiply_natively_before_hopper_and_are_right_on_it() {
    let nvrtc = nvrtc();
    for weights in [Weights::Int8, Weights::Int4, Weights::Native4] {
        let few = GemmSm80Config {
            weights,
            channels: 64,
            tokens: 16,
            channel_warps: 4,
            token_warps: 1,
            stages: 8,
            output: Output::S8,
            digits: true,
            residual: false,
            ..GEMM
        };
        for config in [GemmSm80Config { weights, ..GEMM }, few] {
            assert_eq!(config.fault(), None, "{config}");
            for arch in Arch::ALL {
                let code = assembly(&nvrtc, &config.to_string(), &config.source(), arch);
                let native = if weights == Weights::Native4 && arch < Arch::Sm90a {
                    "IMMA.16864.S4.S4"
                } else {
                    "IMMA.16832.S8.S8"
                };
                assert!(code.contains(native), "{config} for {arch} has no {native}");
                assert!(code.contains("LDGSTS"), "{config} for {arch} copies by the threads");
            }
        }
    }
}

#[test]
fn activations_from_zero_up_are_multiplied_as_such() {
    let nvrtc = nvrtc();
    for (weights, wanted) in [(Weights::Int8, "S8.U8"), (Weights::Native4, "S4.U4")] {
        let config = GemmSm80Config { weights, unsigned: true, ..GEMM };
        let code = assembly(&nvrtc, &config.to_string(), &config.source(), Arch::Sm80);
        assert!(code.contains(wanted), "{config} has no {wanted}");
    }
}

#[test]
fn layers_that_stay_float_are_multiplied_as_halves() {
    let nvrtc = nvrtc();
    for (weights, wanted) in
        [(Weights::F16, "HMMA.16816.F32 "), (Weights::Bf16, "HMMA.16816.F32.BF16 ")]
    {
        let config = GemmSm80Config { weights, ..GEMM };
        assert_eq!(config.fault(), None, "{config}");
        for arch in [Arch::Sm80, Arch::Sm90a] {
            let code = assembly(&nvrtc, &config.to_string(), &config.source(), arch);
            assert!(code.contains(wanted), "{config} for {arch} has no {wanted}");
        }
    }
}

#[test]
fn quantisers_compile_for_every_architecture() {
    let nvrtc = nvrtc();
    let base = QuantizeConfig {
        threads: 0,
        chunks: 0,
        element: Element::F16,
        norm: Norm::Layer,
        combine: Combine::Add,
        activation: Activation::None,
        sum: true,
        float: false,
        tail: true,
        codes: Codes { bits: 8, signed: true, packed: false },
    };
    let float = QuantizeConfig { element: Element::F32, float: true, ..base };
    let gate = QuantizeConfig {
        norm: Norm::None,
        combine: Combine::Multiply,
        activation: Activation::Silu,
        sum: false,
        codes: Codes { bits: 4, signed: true, packed: true },
        ..base
    };
    for config in [base.for_width(4096), float.for_width(9216), gate.for_width(768)] {
        assert_eq!(config.fault(), None, "{config}");
        for arch in Arch::ALL {
            let code = assembly(&nvrtc, &config.to_string(), &config.source(), arch);
            assert!(code.contains("LDG.E.128"), "{config} for {arch}: narrow loads");
            assert!(code.contains("F2I.S16"), "{config} for {arch}: rounds otherwise");
        }
    }
}

#[test]
fn attention_compiles_for_every_architecture() {
    let nvrtc = nvrtc();
    let base = AttentionConfig {
        dim: 0,
        keys: 0,
        warps: 0,
        row_tiles: 0,
        causal: true,
        mask: false,
        split: false,
        output: Output::F16,
    };
    for (dim, rows, mask, split) in [
        (32, 128, false, false),
        (64, 4, true, true),
        (64, 2048, false, false),
        (128, 300, true, false),
    ] {
        let config = AttentionConfig { mask, split, ..base }.for_rows(dim, rows);
        assert_eq!(config.fault(), None, "{config}");
        for arch in Arch::ALL {
            let code = assembly(&nvrtc, &config.to_string(), &config.source(), arch);
            assert!(code.contains("HMMA.16816.F32"), "{config} for {arch} multiplies otherwise");
            if split {
                assembly(&nvrtc, &config.sum_name(), &config.sum_source(), arch);
            }
        }
    }
}

#[test]
fn hopper_attention_is_wgmma_without_local_memory() {
    let nvrtc = nvrtc();
    for (dim, stages) in [(64, 4), (128, 2)] {
        for output in [Output::F16, Output::Bf16, Output::S8] {
            let config = AttentionSm90Config { dim, stages, causal: true, output };
            assert_eq!(config.fault(), None, "{config}");
            let code = assembly(&nvrtc, &config.to_string(), &config.source(), Arch::Sm90a);
            assert!(code.contains("HGMMA.64x128x16"), "{config} has no wgmma");
        }
    }
}

#[test]
fn rotations_compile_for_every_architecture() {
    let nvrtc = nvrtc();
    for element in [Element::F16, Element::Bf16] {
        let config = RotateConfig { element };
        assert_eq!(config.fault(), None, "{config}");
        for arch in Arch::ALL {
            assembly(&nvrtc, &config.to_string(), &config.source(), arch);
        }
    }
}
