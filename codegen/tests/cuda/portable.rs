//! The kernels of every architecture, and Hopper's attention.

use crate::tools::{assembly, nvrtc};
use fqc_codegen::cuda::Arch;
use fqc_kernels::cuda::attention_sm90::AttentionSm90Config;
use fqc_kernels::cuda::gemm::{Activation, Output, Weights};
use fqc_kernels::cuda::gemm_sm80::GemmSm80Config;

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
