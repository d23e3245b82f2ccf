//! The Hopper gemms: instances compile, their code is what it should be.

use crate::tools::{disassemble, nvrtc};
use fqc_codegen::cuda::{Arch, Error};
use fqc_kernels::cuda::gemm::{Activation, GemmConfig, Output, Weights};

const WIDE: GemmConfig = GemmConfig {
    weights: Weights::Int4,
    blocks: 1,
    tokens: 256,
    stages: 8,
    cluster: 2,
    split: 1,
    output: Output::F16,
    activation: Activation::Relu,
    bias: true,
    residual: false,
    unsigned: false,
    digits: false,
};

/// Both kinds of weights, each shape of tile, each output; and the epilogues that take the most
/// registers.
fn instances() -> Vec<GemmConfig> {
    let mut all = Vec::new();
    for weights in [Weights::Int8, Weights::Int4, Weights::Int4Grouped] {
        let wide = GemmConfig { weights, ..WIDE };
        all.extend([
            wide,
            GemmConfig { blocks: 2, tokens: 128, ..wide },
            GemmConfig { tokens: 128, cluster: 1, split: 2, ..wide },
            GemmConfig { tokens: 16, cluster: 1, split: 4, ..wide },
            GemmConfig { output: Output::S8, ..wide },
            GemmConfig { output: Output::S32, ..wide },
            GemmConfig { output: Output::Bf16, residual: true, ..wide },
            GemmConfig { blocks: 2, tokens: 128, residual: true, ..wide },
            GemmConfig { unsigned: true, output: Output::U8, digits: true, ..wide },
        ]);
        if weights != Weights::Int4Grouped {
            all.push(GemmConfig { activation: Activation::Gelu, residual: true, ..wide });
        }
    }
    all.into_iter().map(|config| config.with_stages_up_to(8)).collect()
}

#[test]
fn hopper_gemms_compile_to_igmma_without_local_memory_or_device_fences() {
    let nvrtc = nvrtc();
    for config in instances() {
        assert_eq!(config.fault(), None, "{config}");
        let compiled = nvrtc
            .compile(&config.to_string(), &config.source(), Arch::Sm90a)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(compiled.resources.registers, 168, "{config}: a third of 65536 / 128");
        let code = disassemble(&nvrtc, &compiled.cubin);
        let tokens = if config.unsigned { "U8" } else { "S8" };
        let shape = format!("IGMMA.64x{}x32.S8.{tokens}", config.tokens);
        assert!(code.contains(&shape), "{config} has no {shape}");
        for unwanted in ["LDL", "STL", "MEMBAR.ALL.GPU", "HGMMA"] {
            assert!(!code.contains(unwanted), "{config} has {unwanted}");
        }
    }
}

#[test]
fn the_same_source_gives_the_same_cubin() {
    let nvrtc = nvrtc();
    let config = GemmConfig { tokens: 8, cluster: 1, ..WIDE };
    let compile = || nvrtc.compile(&config.to_string(), &config.source(), Arch::Sm90a);
    assert_eq!(compile().expect("a cubin").cubin, compile().expect("a cubin").cubin);
}

#[test]
fn faults_of_a_source_name_the_kernel_and_the_architecture() {
    let error = nvrtc().compile("broken", "no such thing", Arch::Sm80).expect_err("an error");
    assert!(matches!(error, Error::Compile { .. }));
    let text = error.to_string();
    assert!(text.contains("broken") && text.contains("sm_80"), "{text}");
}

#[test]
fn code_that_needs_local_memory_is_refused() {
    let source = "extern \"C\" __global__ void spills(int* p, int i) {
        int local[512];
        for (int k = 0; k < i; ++k) local[p[k] & 511] = k;
        p[0] = local[p[i] & 511];
    }";
    let error = nvrtc().compile("spills", source, Arch::Sm90a).expect_err("a refusal");
    assert!(matches!(error, Error::Slow { .. }), "{error}");
}
