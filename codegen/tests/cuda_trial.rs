//! Programs that time one gemm: sound, whatever the gemm, and with the tile that was asked for.

use fqbin::{Port, Program};
use fqc_codegen::cuda::trial::{Trial, program};
use fqc_codegen::cuda::{Compiler, Error, Layer, Nvrtc};

const TRIAL: Trial = Trial { rows: 24, weights: 3, launches: 5 };

/// A gemm of each kind: codes to floats with a residual, to codes, in pairs; halves.
const LAYERS: [&str; 5] = [
    "weights=w8a8; k=448; n=384; epilogue=add(add(arg0, arg1), arg2); extras=column,element; output=f32",
    "weights=w4a8; k=192; n=1664; epilogue=gelu(add(arg0, arg1)); extras=column; output=s8",
    "weights=w8a8; k=640; n=3328; epilogue=arg0; extras=; output=u8; pair=mul(silu(arg0), arg1)",
    "weights=w8a8; k=640; n=960; epilogue=arg0; extras=; output=bf16",
    "weights=bf16; k=576; n=1000; epilogue=add(arg0, arg1); extras=column; output=f32",
];

/// The shape of an input, which is constant.
fn sizes(program: &Program, port: &Port) -> Vec<usize> {
    let size = |dim: &fqbin::ExprId| match program.exprs[dim.index()] {
        fqbin::Expr::Const(size) => size as usize,
        ref other => panic!("{other:?}"),
    };
    port.shape.iter().map(size).collect()
}

#[test]
fn a_trial_is_a_sound_program_with_the_tile() {
    let compiler = Compiler::Direct(Nvrtc::load().expect("NVRTC"));
    for text in LAYERS {
        let layer: Layer = text.parse().expect("a gemm");
        let tile = "128x32_k1".parse().expect("a tile");
        let image = program(&layer, tile, TRIAL, &compiler).expect(text);
        fqbin::verify(&image.program, image.weights.len() as u64).expect(text);
        let shapes: Vec<Vec<usize>> =
            image.program.inputs.iter().map(|i| sizes(&image.program, i)).collect();
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        fqbin::Binding::new(&image.program, &shapes).expect(text);
        let gemms: Vec<_> =
            image.program.kernels.iter().filter(|k| k.name.starts_with("gemm")).collect();
        assert_eq!(gemms.len(), 1, "{text}");
        let attr = |name: &str| gemms[0].attrs.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        assert_eq!((attr("tokens"), attr("split")), (Some(32), Some(1)), "{text}");
        assert_eq!(image.program.steps.len(), 2 * TRIAL.launches + 1);
    }
}

#[test]
fn a_tile_that_a_gemm_cannot_have_is_refused() {
    let compiler = Compiler::Direct(Nvrtc::load().expect("NVRTC"));
    let refused = |layer: usize, tile: &str| {
        let layer = LAYERS[layer].parse().expect("a gemm");
        match program(&layer, tile.parse().expect("a tile"), TRIAL, &compiler) {
            Err(Error::Unsupported(faults)) => faults.join("; "),
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(4, "128x32_k2").contains("cannot take `128x32_k2`"));
}
