//! Gemms of codes on Hopper: instances of `kernels/cuda/gemm_sm90.cuh` by the number of rows, with an
//! epilogue that is generated from the step's expression, and the weights in their order.

use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Gemm, GemmInput, GemmOutput, Step};
use fqc_ir::types::Elem;
use fqc_kernels::cuda::choose::Tile;
use fqc_kernels::cuda::gemm::{Activation, GemmConfig, Output, THREADS, Weights};
use fqc_kernels::cuda::pack as hopper;
use fqc_kernels::pack;

use super::epilogue::{Epilogue, epilogue};
use super::text::{Text, divides};
use super::turned::Rotary;
use super::writer::{self, Pairing};

/// Stages at most; more than K has blocks would stay empty.
const STAGES: u32 = 8;

/// One instance of a gemm.
pub struct Instance {
    /// With `@` for the kernel's name.
    pub source: String,
    /// What the launch has to know.
    pub attrs: Vec<(&'static str, i64)>,
}

/// What passes through shared memory on its way out.
#[derive(Clone, Copy)]
enum Staging {
    None,
    Codes,
    /// To be turned.
    Floats,
}

/// A gemm as the program will have it.
pub struct Call {
    /// By growing numbers of rows.
    pub instances: Vec<Instance>,
    pub dims: Vec<Dim>,
    pub rows: Dim,
    pub ops: Dim,
}

/// Whether a gemm fits: codes in rows of whole 16-byte pieces.
pub fn fits(step: &Step, gemm: &Gemm) -> bool {
    let x = &step.args[0];
    gemm.input != GemmInput::F32
        && divides(16, &x.strides[0])
        && divides(16, &x.offset)
        && gemm.k <= pack::I4_K_MAX
}

/// Whether a layer that stays float could multiply halves: products in bf16, rows of whole 16-byte
/// pieces.
pub fn in_halves(step: &Step, gemm: &Gemm) -> bool {
    let x = &step.args[0];
    gemm.weight == Elem::BF16
        && gemm.output == GemmOutput::F32
        && divides(8, &x.strides[0])
        && divides(8, &x.offset)
}

/// How a gemm's weights lie on Hopper.
pub fn weights(gemm: &Gemm) -> Weights {
    match gemm.weight {
        Elem::I4 => Weights::Int4,
        Elem::I8 => Weights::Int8,
        _ => Weights::Bf16,
    }
}

/// Bytes of an element of the operands.
fn operand_bytes(gemm: &Gemm) -> usize {
    if gemm.input == GemmInput::F32 { 2 } else { 1 }
}

/// A gemm that fits, as it stores elements of `stored`. With a `pairing` its columns are pairs that
/// become one code each, the step's last arguments are the tables of these codes, and `gemm` has the
/// columns that there then are. With a `rotary` the step's last arguments are its tables. `tiles` are by
/// growing numbers of rows up to which each is taken.
pub fn gemm(
    step: &Step,
    gemm: &Gemm,
    stored: Elem,
    pairing: Option<&Pairing<'_>>,
    rotary: Option<&Rotary>,
    tiles: Vec<(i64, Tile)>,
) -> Result<Call, String> {
    let x = &step.args[0];
    let args = step.args.len() + step.results.len();
    let mut t = Text::of_run_time_sizes(step);
    let more = pairing.map_or(0, |p| p.tables.len()) + rotary.map_or(0, |r| r.tables.len());
    let mut e = epilogue(step, gemm, stored, more, true, &mut t)?;
    let staged = writer::staged(step, gemm, pairing);
    if let Some(pairing) = pairing {
        if !staged || !e.rows.is_empty() {
            return Err("its codes do not lie in whole pieces".into());
        }
        e.pair(pairing);
    }
    let staging = match rotary {
        _ if staged => {
            writer::through_shared(&e, pairing, &mut t)?;
            Staging::Codes
        }
        Some(rotary) => {
            rotary.write(&e, &mut t);
            Staging::Floats
        }
        None => {
            writer::direct(step, gemm, stored, &e, &mut t);
            Staging::None
        }
    };
    // The distance between rows of codes comes first; the launch needs it, the kernel does not.
    let (body, sizes) = t.with_sizes(args + 1);
    let words = args + 1 + sizes.len() + 2;
    let mut dims = vec![x.strides[0].clone() * Dim::from(operand_bytes(gemm))];
    dims.extend(sizes);
    let writer = printed(gemm, &e, words, "GemmArguments", &body);
    let instances = tiles
        .into_iter()
        .map(|(max_rows, tile)| instance(gemm, max_rows, tile, words, staging, &writer))
        .collect::<Result<Vec<_>, _>>()?;
    let ops = x.shape[0].clone() * Dim::from(2 * gemm.n * gemm.depth);
    Ok(Call { instances, dims, rows: x.shape[0].clone(), ops })
}

/// The generated epilogue of a kernel with `arguments`.
pub fn printed(gemm: &Gemm, e: &Epilogue, words: usize, arguments: &str, body: &str) -> String {
    format!(
        "#include \"scalar.cuh\"

namespace scalar {{

struct Column {{
{members}}};

struct Epilogue {{
    static constexpr bool kWrites = true;
    const Words<{words}>& a;

    struct Columns {{
        Column of[2];
{pair_members}    }};

    __device__ __forceinline__ void load(const {arguments}& args, Columns& columns, int first) const {{
        if (first >= args.n) return;
{pointers}
#pragma unroll
        for (int c = 0; c < 2; ++c) {{
            const int column = first + c;
            Column& t = columns.of[c];
{load}        }}
{pair_load}    }}

    template <int kTokens, int kShift>
    __device__ __forceinline__ void write(const {arguments}& args, const Columns& columns, const {sum}* sums,
                                          int token, int first, u32 scratch) const {{
{body}    }}
}};

}}  // namespace scalar
",
        members = e.members,
        pointers = e.pointers,
        load = e.load,
        pair_members = e.pair_members,
        pair_load = e.pair_load,
        sum = if gemm.input == GemmInput::F32 { "float" } else { "int" },
    )
}

fn instance(
    gemm: &Gemm,
    max_rows: i64,
    tile: Tile,
    words: usize,
    staging: Staging,
    writer: &str,
) -> Result<Instance, String> {
    let Tile { tokens, split } = tile;
    let k = gemm.k * operand_bytes(gemm);
    let k_blocks = hopper::k_blocks(k);
    let most = u32::try_from(k_blocks).unwrap_or(u32::MAX);
    let config = GemmConfig {
        weights: weights(gemm),
        blocks: 1,
        tokens,
        stages: 2,
        cluster: tile.cluster(),
        split,
        // The generated epilogue writes, through what would be the stage of such a result.
        output: match staging {
            Staging::Codes if tokens >= 32 => Output::U8,
            Staging::Codes | Staging::Floats => Output::F16,
            Staging::None => Output::S32,
        },
        activation: Activation::None,
        bias: false,
        residual: false,
        unsigned: gemm.input != GemmInput::F32,
        digits: false,
    };
    let config = config.with_stages_up_to(STAGES.min(most.div_ceil(split).max(2)));
    if let Some(fault) = config.fault() {
        return Err(fault);
    }
    let source = format!(
        "{}
// The host fills the words of the arguments (runtime/engine/src/cuda/engine.rs).
static_assert(sizeof(GemmArguments) == 384, \"the host knows the arguments\");

{writer}
{}
@(const __grid_constant__ GemmArguments arguments, const __grid_constant__ scalar::Words<{words}> words) {{
    Gemm<Config>::run(arguments, scalar::Epilogue{{words}});
}}
",
        config.specialisation(),
        config.attributes()
    );
    let attrs = vec![
        ("threads", i64::from(THREADS)),
        ("shared", config.shared_bytes() as i64),
        ("n", gemm.n as i64),
        ("k", k as i64),
        ("k_blocks", k_blocks as i64),
        ("tokens", i64::from(tokens)),
        ("channels", config.tile_channels() as i64),
        ("cluster", i64::from(config.cluster)),
        ("split", i64::from(split)),
        ("max_rows", max_rows),
    ];
    Ok(Instance { source, attrs })
}

/// A packed weight in Hopper's order, or that of the native INT4 products: its columns in turn, or those that
/// `columns` names, zeros where it names none.
pub fn repack(
    constant: &Const,
    gemm: &Gemm,
    columns: Option<&[Option<usize>]>,
    native: bool,
) -> Vec<u8> {
    let bytes = constant.bytes.as_slice();
    let k = gemm.k;
    if gemm.input == GemmInput::F32 {
        let half = |at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
        let column = |n: usize| (0..k).map(move |row| half(pack::bf16_index(row, n, k)));
        let halves: Vec<u16> = (0..gemm.n).flat_map(column).collect();
        return hopper::pack_halves(&halves, gemm.n, k);
    }
    let int4 = gemm.weight == Elem::I4;
    let code = |row: usize, column: usize| {
        if int4 {
            let at = pack::i4_index(row, column, k);
            let shift = if at.is_multiple_of(2) { 4 } else { 0 };
            ((bytes[at / 2] << shift) as i8) >> 4
        } else {
            bytes[pack::i8_index(row, column, k)] as i8
        }
    };
    let n = columns.map_or(gemm.n, <[_]>::len);
    let mut codes = vec![0i8; n * k];
    for (at, line) in codes.chunks_exact_mut(k).enumerate() {
        let Some(column) = columns.map_or(Some(at), |columns| columns[at]) else { continue };
        line.iter_mut().enumerate().for_each(|(row, to)| *to = code(row, column));
    }
    match int4 {
        true if native => hopper::pack_native4(&codes, n, k),
        true => hopper::pack_int4(&codes, n, k),
        false => hopper::pack_int8(&codes, n, k),
    }
}
