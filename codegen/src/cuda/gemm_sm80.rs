//! Gemms of codes before Hopper, and in PTX: an instance of `kernels/cuda/gemm_sm80.cuh` with an epilogue
//! that is generated from the step's expression. Weights are in Hopper's order.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{Gemm, GemmInput, Step};
use fqc_ir::types::Elem;
use fqc_kernels::cuda::gemm::{Activation, Output, Weights};
use fqc_kernels::cuda::gemm_sm80::GemmSm80Config;
use fqc_kernels::cuda::pack as hopper;

use super::epilogue::epilogue;
use super::gemm::{Call, Instance, printed};
use super::text::Text;
use super::writer;

/// The tile: what all of these architectures have the shared memory and the registers for.
const TILE: GemmSm80Config = GemmSm80Config {
    weights: Weights::Int8,
    unsigned: true,
    channels: 128,
    tokens: 64,
    channel_warps: 4,
    token_warps: 2,
    stages: 3,
    // The generated epilogue writes.
    output: Output::S32,
    activation: Activation::None,
    bias: false,
    residual: false,
    digits: false,
};

/// Token tiles that are walked together.
const RASTER: i64 = 8;

/// A gemm of codes, as it stores elements of `stored`; `native` multiplies codes of four bits as such.
pub fn gemm(step: &Step, gemm: &Gemm, stored: Elem, native: bool) -> Result<Call, String> {
    let weights = match gemm.weight {
        Elem::I4 if native => Weights::Native4,
        Elem::I4 => Weights::Int4,
        _ => Weights::Int8,
    };
    // Bytes have 128 added to signed codes, which halves of bytes have not.
    let signed = native && gemm.input == GemmInput::Codes { signed: true };
    let config = GemmSm80Config { weights, unsigned: !signed, ..TILE };
    if let Some(fault) = config.fault() {
        return Err(fault);
    }
    let x = &step.args[0];
    let args = step.args.len() + step.results.len();
    let mut t = Text::of_run_time_sizes(step);
    let k = Dim::from(gemm.k);
    let k_blocks = Dim::from(hopper::k_blocks(if native { gemm.k / 2 } else { gemm.k }));
    let fields = [
        ("m", &x.shape[0]),
        ("n", &Dim::from(gemm.n)),
        ("k_blocks", &k_blocks),
        ("k_bytes", &k),
        ("x_pitch", &x.strides[0]),
    ]
    .map(|(name, dim)| (name, t.size_word(dim)));
    let e = epilogue(step, gemm, stored, 0, !signed, &mut t)?;
    writer::direct(step, gemm, stored, &e, &mut t);
    let (body, dims) = t.with_sizes(args);
    let words = args + dims.len() + 2;
    let fields: String = fields
        .iter()
        .map(|(name, word)| format!("    args.{name} = static_cast<int>(a.w[{}]);\n", args + word))
        .collect();
    let source = format!(
        "{specialisation}
{writer}
extern \"C\" __global__ void __launch_bounds__({threads})
@(const __grid_constant__ scalar::Words<{words}> a) {{
    GemmSm80Arguments args = {{}};
    args.x = reinterpret_cast<const u8*>(a.w[0]);
    args.weights = reinterpret_cast<const u8*>(a.w[1]);
{fields}    args.raster = {RASTER};
    GemmSm80<Config>::run(args, scalar::Epilogue{{a}});
}}
",
        specialisation = config.specialisation(),
        writer = printed(gemm, &e, words, "GemmSm80Arguments", &body),
        threads = config.threads(),
    );
    let attrs = vec![
        ("threads", i64::from(config.threads())),
        ("shared", config.shared_bytes() as i64),
        ("items", 1),
    ];
    let tiles = x.shape[0].ceil_div(i64::from(config.tokens))
        * Dim::from(gemm.n.div_ceil(config.channels as usize));
    let ops = x.shape[0].clone() * Dim::from(2 * gemm.n * gemm.depth);
    Ok(Call { instances: vec![Instance { source, attrs }], dims, rows: tiles, ops })
}
