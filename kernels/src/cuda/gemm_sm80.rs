//! Instances of `gemm_sm80.cuh`: `mma.sync`, for sm_80, sm_86 and sm_89; right on everything later.

use super::gemm::{Activation, Output, Weights};
use super::pack::BLOCK_CHANNELS;
use std::fmt;

/// One instance. Sizes are run-time numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmSm80Config {
    /// How weights lie in memory; `Native4` wants activations of four bits, `F16` and `Bf16` want halves.
    pub weights: Weights,
    /// Whether activations are codes from 0 up.
    pub unsigned: bool,
    /// Channels of a tile, a multiple of 64.
    pub channels: u32,
    /// Tokens of a tile.
    pub tokens: u32,
    /// Warps that share the channels of a tile, each with a multiple of 16.
    pub channel_warps: u32,
    /// Warps that share its tokens, each with a multiple of 16.
    pub token_warps: u32,
    /// Stages of the ring, of 128 bytes of K.
    pub stages: u32,
    /// Element of the result.
    pub output: Output,
    /// Activation.
    pub activation: Activation,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether a residual of the output's type (f16 with codes) is added.
    pub residual: bool,
    /// Whether a channel of a code output may be a higher digit.
    pub digits: bool,
}

/// Shared memory that a block can have on sm_86 and sm_89; sm_80 has more.
pub const MAX_SHARED_BYTES: usize = 101_376;

impl GemmSm80Config {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        32 * self.channel_warps * self.token_warps
    }

    /// Dynamic shared memory of a block.
    pub fn shared_bytes(&self) -> usize {
        let channel = if self.weights == Weights::Int4 { 64 } else { 128 };
        self.stages as usize * (self.channels as usize * channel + self.tokens as usize * 128)
    }

    /// Blocks of a launch.
    pub fn blocks(&self, m: usize, n: usize) -> usize {
        n.div_ceil(self.channels as usize) * m.div_ceil(self.tokens as usize)
    }

    /// What is wrong with the instance, if anything is.
    pub fn fault(&self) -> Option<String> {
        if self.weights == Weights::Int4Grouped {
            return Some("factors of groups are multiplied on Hopper only".into());
        }
        let splits = |size: u32, warps: u32| warps > 0 && size.is_multiple_of(16 * warps);
        if !self.channels.is_multiple_of(BLOCK_CHANNELS as u32)
            || !splits(self.channels, self.channel_warps)
            || !splits(self.tokens, self.token_warps)
        {
            return Some(format!(
                "{} channels for {} warps, {} tokens for {}",
                self.channels, self.channel_warps, self.tokens, self.token_warps
            ));
        }
        if self.stages < 2 || self.shared_bytes() > MAX_SHARED_BYTES {
            return Some(format!("{} stages take {} bytes", self.stages, self.shared_bytes()));
        }
        if self.weights.float() && (self.output == Output::S32 || self.unsigned) {
            return Some(format!(
                "{:?} results of halves, unsigned {}",
                self.output, self.unsigned
            ));
        }
        if self.residual && matches!(self.output, Output::F32 | Output::S32) {
            return Some(format!("a residual with {:?} results", self.output));
        }
        if self.digits && !self.output.codes() {
            return Some(format!("digits of {:?} results", self.output));
        }
        None
    }

    /// The lines that specialise the source, up to the kernel.
    pub fn specialisation(&self) -> String {
        let Self {
            weights,
            unsigned,
            channels,
            tokens,
            channel_warps,
            token_warps,
            stages,
            output,
            activation,
            bias,
            residual,
            digits,
        } = *self;
        format!(
            "#include \"gemm_sm80.cuh\"

struct Config {{
    static constexpr Weights kWeights = Weights::k{weights:?};
    static constexpr bool kUnsigned = {unsigned};
    static constexpr int kChannels = {channels};
    static constexpr int kTokens = {tokens};
    static constexpr int kChannelWarps = {channel_warps};
    static constexpr int kTokenWarps = {token_warps};
    static constexpr int kStages = {stages};
    static constexpr Output kOutput = Output::k{output:?};
    static constexpr Activation kActivation = Activation::k{activation:?};
    static constexpr bool kBias = {bias};
    static constexpr bool kResidual = {residual};
    static constexpr bool kDigits = {digits};
}};

static_assert(GemmSm80<Config>::kSharedBytes == {shared}, \"the host counts shared memory alike\");
",
            shared = self.shared_bytes(),
        )
    }

    /// The whole source.
    pub fn source(&self) -> String {
        format!(
            "{}
extern \"C\" __global__ void __launch_bounds__({threads})
{self}(const __grid_constant__ GemmSm80Arguments arguments) {{
    GemmSm80<Config>::run(arguments);
}}
",
            self.specialisation(),
            threads = self.threads(),
        )
    }
}

/// The kernel's name.
impl fmt::Display for GemmSm80Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.weights {
            Weights::Int8 => "w8a8",
            Weights::Int4 => "w4a8",
            Weights::Int4Grouped => "w4g64a8",
            Weights::Native4 => "w4a4",
            Weights::F16 => "f16",
            Weights::Bf16 => "bf16",
        };
        write!(
            f,
            "gemm_sm80_{kind}{}_{}x{}_w{}x{}_s{}_{:?}",
            if self.unsigned { "u" } else { "" },
            self.channels,
            self.tokens,
            self.channel_warps,
            self.token_warps,
            self.stages,
            self.output
        )?;
        if self.activation != Activation::None {
            write!(f, "_{:?}", self.activation)?;
        }
        for (set, name) in
            [(self.bias, "_bias"), (self.residual, "_residual"), (self.digits, "_digits")]
        {
            f.write_str(if set { name } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: GemmSm80Config = GemmSm80Config {
        weights: Weights::Int8,
        unsigned: false,
        channels: 128,
        tokens: 128,
        channel_warps: 2,
        token_warps: 4,
        stages: 3,
        output: Output::F16,
        activation: Activation::Relu,
        bias: true,
        residual: false,
        digits: false,
    };

    #[test]
    fn an_instance_prints_its_name_and_its_configuration() {
        insta::assert_snapshot!(WIDE.source());
    }

    #[test]
    fn what_the_hardware_cannot_do_is_named() {
        let fault = |config: GemmSm80Config| config.fault().unwrap_or_default();
        assert_eq!(WIDE.fault(), None);
        assert_eq!(WIDE.shared_bytes(), 3 * (16384 + 16384));
        assert!(fault(GemmSm80Config { tokens: 32, ..WIDE }).contains("32 tokens for 4"));
        assert!(fault(GemmSm80Config { stages: 4, ..WIDE }).contains("4 stages"));
        assert!(fault(GemmSm80Config { digits: true, ..WIDE }).contains("digits"));
    }
}
