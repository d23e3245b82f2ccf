//! Instances of `gemm_sm90.cuh`.

use super::pack::{BLOCK_CHANNELS, BLOCK_K, GROUPED_BLOCK_BYTES, block_bytes};
use super::wgmma;
use std::fmt;

/// How weights lie in memory. Multiplication is INT8 unless they are `Native4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weights {
    /// One byte a code.
    Int8,
    /// Half a byte a code.
    Int4,
    /// Half a byte a code, and an integer factor for each 64 codes of a channel: the product of both
    /// is the INT8 weight.
    Int4Grouped,
    /// Half a byte a code, multiplied by activations that are INT4 as well. The instruction exists
    /// before Hopper; there it is emulated, at a fortieth of the rate.
    Native4,
    /// IEEE halves, multiplied by halves into float sums: layers that stay float.
    F16,
    /// The same in bfloat16.
    Bf16,
}

impl Weights {
    /// Whether products are of halves.
    pub fn float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }
}

/// Activation of the epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// The identity.
    None,
    /// max(x, 0).
    Relu,
    /// x Φ(x), with erf.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x / (1 + exp(-x)).
    Silu,
}

/// Element of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// float.
    F32,
    /// The accumulators themselves; neither scale, bias, activation nor residual is applied.
    S32,
    /// Codes from -127 to 127, one digit a channel: `c = rint(y * inverse[o])` and
    /// `sgn(c) * clamp(|c| - below[o], 0, 127)`.
    S8,
    /// The same from 0 to 255.
    U8,
    /// The same from -7 to 7, a byte each.
    S4,
    /// The same from 0 to 15, a byte each.
    U4,
}

impl Output {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::S32 => 4,
            Self::S8 | Self::U8 | Self::S4 | Self::U4 => 1,
        }
    }

    /// Whether results are codes.
    pub fn codes(self) -> bool {
        self.bytes() == 1
    }

    /// Whether results go through shared memory and a tensor map.
    pub fn staged(self) -> bool {
        !matches!(self, Self::F32 | Self::S32)
    }
}

/// One instance: everything that is fixed when its code is generated. Sizes are not; equal
/// layers of different sizes share an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmConfig {
    /// How weights lie in memory.
    pub weights: Weights,
    /// 64-channel blocks of each of the two consumers: a tile has `128 * blocks` channels.
    pub blocks: u32,
    /// Tokens of a tile.
    pub tokens: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Thread blocks of a cluster; they share the tokens of a tile.
    pub cluster: u32,
    /// Thread blocks of a cluster that share the K of one tile; 1 unless `cluster` is.
    pub split: u32,
    /// Element of the result.
    pub output: Output,
    /// Activation.
    pub activation: Activation,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether a residual of the output's type (f16 with codes) is added.
    pub residual: bool,
    /// Whether activations are bytes from 0 to 255; from -128 to 127 otherwise.
    pub unsigned: bool,
    /// Whether a channel of a code output may be a higher digit; all are the first otherwise.
    pub digits: bool,
}

/// Shared memory that a block of a Hopper GPU can have.
pub const MAX_SHARED_BYTES: usize = 232_448;

/// Threads of a block.
pub const THREADS: u32 = 384;

const CONSUMERS: usize = 2;

/// Tokens of one store of the epilogue.
const CHUNK_TOKENS: u32 = 64;

impl GemmConfig {
    /// Channels of a tile.
    pub fn tile_channels(&self) -> usize {
        CONSUMERS * self.blocks as usize * BLOCK_CHANNELS
    }

    /// Tokens of one box of the activations' tensor map.
    pub fn x_box_tokens(&self) -> u32 {
        self.tokens / self.cluster
    }

    /// Tokens of one box of the result's tensor map.
    pub fn y_box_tokens(&self) -> u32 {
        self.tokens.min(CHUNK_TOKENS)
    }

    /// Bytes of a consumer's accumulators.
    fn accumulator_bytes(&self) -> usize {
        self.blocks as usize * BLOCK_CHANNELS * self.tokens as usize * 4
    }

    /// Thread blocks of a cluster.
    pub fn group(&self) -> u32 {
        self.cluster * self.split
    }

    /// Channels of the tiles that fill a GPU of `blocks` resident thread blocks a whole number of
    /// times, if some but not all do and the rest would leave more than half of it idle. The rest is
    /// then better a launch of its own, [`Self::rest`], whose smaller tiles and shares of K keep all
    /// of the GPU busy.
    pub fn whole_waves(&self, m: usize, n: usize, blocks: usize) -> Option<usize> {
        if self.cluster > 1 || self.split > 1 || self.blocks * self.tokens < 256 {
            return None;
        }
        let token_tiles = m.div_ceil(self.tokens as usize);
        let channel_tiles = n.div_ceil(self.tile_channels());
        let waves = channel_tiles * token_tiles / blocks;
        let whole = waves * blocks / token_tiles;
        let rest = (channel_tiles - whole) * token_tiles;
        (waves > 0 && rest > 0 && rest * 2 <= blocks).then(|| whole * self.tile_channels())
    }

    /// The instance for the rest that [`Self::whole_waves`] leaves.
    pub fn rest(self) -> Self {
        Self { blocks: 1, tokens: 128, split: 2, ..self }.with_stages_up_to(8)
    }

    /// Dynamic shared memory of a block, as `Gemm::kSharedBytes` counts it.
    pub fn shared_bytes(&self) -> usize {
        let chunk = self.y_box_tokens() as usize * BLOCK_CHANNELS * self.output.bytes();
        let chunks = if self.output.staged() { 2 * CONSUMERS * chunk } else { 0 };
        let block = match self.weights {
            Weights::Int4 => block_bytes(true),
            Weights::Int4Grouped => GROUPED_BLOCK_BYTES,
            _ => block_bytes(false),
        };
        let weights = (CONSUMERS * self.blocks as usize * block).next_multiple_of(1024);
        let stage = weights + self.tokens as usize * BLOCK_K;
        let partials = CONSUMERS * (self.split as usize - 1) * self.accumulator_bytes();
        chunks + self.stages as usize * (stage + 16) + partials + CONSUMERS * 8
    }

    /// What forbids this instance, if anything does.
    pub fn fault(&self) -> Option<String> {
        let chunk = self.y_box_tokens();
        if !wgmma::TOKENS.contains(&self.tokens) {
            return Some(format!("{} tokens: integer wgmma has {:?}", self.tokens, wgmma::TOKENS));
        }
        if !(1..=2).contains(&self.blocks) || self.blocks * self.tokens > 256 {
            return Some(format!("{} x {} accumulators", self.blocks, self.tokens));
        }
        if !matches!(self.cluster, 1 | 2 | 4) || !self.x_box_tokens().is_multiple_of(8) {
            return Some(format!("{} tokens in a cluster of {}", self.tokens, self.cluster));
        }
        if !matches!(self.split, 1 | 2 | 4 | 8) || self.cluster > 1 && self.split > 1 {
            return Some(format!("K split {} ways in a cluster of {}", self.split, self.cluster));
        }
        if self.weights == Weights::Native4 {
            return Some("Hopper multiplies INT4 weights as INT8".into());
        }
        if self.weights.float() {
            let known = wgmma::HALF_COLUMNS;
            if !known.contains(&self.tokens) {
                return Some(format!(
                    "{} tokens: wgmma of halves is here for {known:?}",
                    self.tokens
                ));
            }
            if self.split > 1 {
                return Some("sums of halves are not handed over between blocks".into());
            }
            if self.output.staged() || self.unsigned {
                return Some(format!(
                    "{:?} results of halves, unsigned {}",
                    self.output, self.unsigned
                ));
            }
        }
        let gelu = self.activation == Activation::Gelu;
        if gelu && self.weights == Weights::Int4Grouped && self.blocks * self.tokens > 192 {
            return Some("GELU and factors of groups leave no registers for such a tile".into());
        }
        if self.output.codes() && chunk < 32 {
            return Some("codes want at least 32 tokens".into());
        }
        if self.digits && !self.output.codes() {
            return Some(format!("digits of {:?} results", self.output));
        }
        if self.residual && !self.output.staged() {
            return Some(format!("a residual with {:?} results", self.output));
        }
        if self.stages < 2 || self.shared_bytes() > MAX_SHARED_BYTES {
            return Some(format!("{} stages take {} bytes", self.stages, self.shared_bytes()));
        }
        None
    }

    /// The same with as many stages as fit, at most `limit`.
    pub fn with_stages_up_to(self, limit: u32) -> Self {
        let fits =
            |stages: &u32| Self { stages: *stages, ..self }.shared_bytes() <= MAX_SHARED_BYTES;
        Self { stages: (2..=limit).rev().find(fits).unwrap_or(2), ..self }
    }

    /// The lines that specialise the source, up to the kernel.
    pub fn specialisation(&self) -> String {
        let Self {
            weights,
            blocks,
            tokens,
            stages,
            cluster,
            split,
            output,
            activation,
            bias,
            residual,
            unsigned,
            digits,
        } = *self;
        let type_of_tokens = if unsigned { "u8" } else { "s8" };
        let halves = weights.float();
        let half = if weights == Weights::Bf16 { "bf16" } else { "f16" };
        let grouped = weights == Weights::Int4Grouped;
        let int4 = weights == Weights::Int4 || grouped;
        format!(
            "#define FQC_TOKENS \"{type_of_tokens}\"
#define FQC_HALF \"{half}\"
#include \"gemm_sm90.cuh\"

struct Config {{
    static constexpr bool kHalves = {halves};
    static constexpr bool kInt4 = {int4};
    static constexpr bool kGrouped = {grouped};
    static constexpr int kBlocks = {blocks};
    static constexpr int kTokens = {tokens};
    static constexpr int kStages = {stages};
    static constexpr int kCluster = {cluster};
    static constexpr int kSplit = {split};
    static constexpr Output kOutput = Output::k{output:?};
    static constexpr Activation kActivation = Activation::k{activation:?};
    static constexpr bool kBias = {bias};
    static constexpr bool kResidual = {residual};
    static constexpr bool kDigits = {digits};
}};

static_assert(Gemm<Config>::kSharedBytes == {shared}, \"the host counts shared memory alike\");
",
            shared = self.shared_bytes(),
        )
    }

    /// What goes before the kernel's name.
    pub fn attributes(&self) -> String {
        let group = self.group();
        format!(
            "extern \"C\" __global__ void __launch_bounds__(kThreads, 1) __cluster_dims__({group}, 1, 1)"
        )
    }

    /// The whole source.
    pub fn source(&self) -> String {
        format!(
            "{}
{}
{self}(const __grid_constant__ GemmArguments arguments) {{
    Gemm<Config>::run(arguments);
}}
",
            self.specialisation(),
            self.attributes()
        )
    }
}

/// The kernel's name.
impl fmt::Display for GemmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = match self.weights {
            Weights::Int8 => "w8a8",
            Weights::Native4 => "w4a4",
            Weights::F16 => "f16",
            Weights::Bf16 => "bf16",
            Weights::Int4 => "w4a8",
            Weights::Int4Grouped => "w4g64a8",
        };
        write!(
            f,
            "gemm_sm90_{weights}{}_{}x{}_s{}_c{}_k{}_{:?}",
            if self.unsigned { "u" } else { "" },
            self.tile_channels(),
            self.tokens,
            self.stages,
            self.cluster,
            self.split,
            self.output
        )?;
        if self.activation != Activation::None {
            write!(f, "_{:?}", self.activation)?;
        }
        if self.bias {
            f.write_str("_bias")?;
        }
        for (set, name) in [(self.residual, "_residual"), (self.digits, "_digits")] {
            f.write_str(if set { name } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: GemmConfig = GemmConfig {
        weights: Weights::Int4,
        blocks: 1,
        tokens: 256,
        stages: 4,
        cluster: 2,
        split: 1,
        output: Output::F16,
        activation: Activation::Relu,
        bias: true,
        residual: false,
        unsigned: false,
        digits: false,
    };

    #[test]
    fn an_instance_prints_its_name_and_its_configuration() {
        insta::assert_snapshot!(WIDE.source());
    }

    #[test]
    fn shared_memory_is_counted() {
        // Two chunks of 64 tokens a consumer, four stages of 8 KiB and 32 KiB, ten barriers.
        assert_eq!(WIDE.shared_bytes(), 4 * 8192 + 4 * (8192 + 32768) + 10 * 8);
        assert_eq!(WIDE.with_stages_up_to(8).stages, 4);
        assert_eq!(GemmConfig { output: Output::S8, ..WIDE }.with_stages_up_to(8).stages, 5);
        let split = GemmConfig { tokens: 16, cluster: 1, split: 4, ..WIDE };
        let one = GemmConfig { split: 1, ..split };
        assert_eq!(split.shared_bytes() - one.shared_bytes(), 2 * 3 * 64 * 16 * 4);
    }

    #[test]
    fn a_last_wave_that_is_short_is_a_launch_of_its_own() {
        let plain = GemmConfig { cluster: 1, ..WIDE };
        // 288 tiles on 132 multiprocessors: two waves, and 24 tiles.
        assert_eq!(plain.whole_waves(256, 36864, 132), Some(264 * 128));
        assert_eq!(plain.whole_waves(256, 33792, 132), None);
        assert_eq!(plain.whole_waves(256, 4096, 132), None);
        assert_eq!(plain.whole_waves(256, 28672, 132), None);
        assert_eq!(WIDE.whole_waves(256, 36864, 132), None);
        assert_eq!(plain.rest().fault(), None);
    }

    #[test]
    fn what_the_hardware_cannot_do_is_named() {
        let fault = |config: GemmConfig| config.fault().unwrap_or_default();
        assert_eq!(WIDE.fault(), None);
        assert!(fault(GemmConfig { tokens: 40, ..WIDE }).contains("40 tokens"));
        assert!(fault(GemmConfig { blocks: 2, ..WIDE }).contains("2 x 256 accumulators"));
        assert!(fault(GemmConfig { split: 2, ..WIDE }).contains("cluster of 2"));
        assert!(fault(GemmConfig { tokens: 8, ..WIDE }).contains("cluster of 2"));
        assert!(fault(GemmConfig { stages: 6, ..WIDE }).contains("6 stages"));
        let plain = GemmConfig { residual: true, output: Output::S32, stages: 2, ..WIDE };
        assert!(fault(plain).contains("a residual with S32"));
        let s8 = GemmConfig { tokens: 16, output: Output::S8, cluster: 1, ..WIDE };
        assert!(fault(s8).contains("32 tokens"));
        assert!(fault(GemmConfig { weights: Weights::Native4, ..WIDE }).contains("as INT8"));
        assert!(fault(GemmConfig { digits: true, ..WIDE }).contains("digits of F16"));
    }
}
