//! Instances of `attention_sm90.cuh`: many queries, on Hopper.

use super::gemm::{MAX_SHARED_BYTES, Output};
use std::fmt;

/// One instance. Batch, heads, queries, keys and strides are run-time numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSm90Config {
    /// Width of a head: 64 or 128; of keys and values alike.
    pub dim: u32,
    /// Stages of the ring, each of a tile of keys and one of values.
    pub stages: u32,
    /// Whether the last query sees all keys, and each one before it one less.
    pub causal: bool,
    /// Element of the result. Inputs are bf16 with `Bf16`, f16 otherwise.
    pub output: Output,
}

/// Queries of a block: rows of a box of `q`, half of them of a box of the result.
pub const QUERIES: usize = 128;

/// Keys of a tile: rows of a box of `k` and `v`.
pub const KEYS: usize = 128;

/// Threads of a block.
pub const THREADS: u32 = 384;

impl AttentionSm90Config {
    /// Dynamic shared memory of a block, as `AttentionSm90::kSharedBytes` counts it.
    pub fn shared_bytes(&self) -> usize {
        let row = self.dim as usize * 2;
        QUERIES * row + self.stages as usize * (2 * KEYS * row + 32) + 8
    }

    /// Columns of a box of the result: codes go out a head at a time, unswizzled.
    pub fn out_box_columns(&self) -> u32 {
        if self.output.codes() { self.dim } else { 64 }
    }

    /// What is wrong with the instance, if anything is.
    pub fn fault(&self) -> Option<String> {
        if !matches!(self.dim, 64 | 128) {
            return Some(format!("heads of {}", self.dim));
        }
        if self.stages < 2 || self.shared_bytes() > MAX_SHARED_BYTES {
            return Some(format!("{} stages take {} bytes", self.stages, self.shared_bytes()));
        }
        if matches!(self.output, Output::F32 | Output::S32) {
            return Some(format!("{:?} results", self.output));
        }
        None
    }

    /// The lines that specialise the source for scores times `scale`, which is positive.
    pub fn specialisation(&self, scale: f32) -> String {
        let Self { dim, stages, causal, output } = *self;
        let (half, halves) = match output {
            Output::Bf16 => ("bf16", Output::Bf16),
            _ => ("f16", Output::F16),
        };
        format!(
            "#define FQC_HALF \"{half}\"
#include \"attention_sm90.cuh\"

struct Config {{
    static constexpr int kDim = {dim};
    static constexpr int kStages = {stages};
    static constexpr bool kCausal = {causal};
    static constexpr float kScale = {scale:?}f;
    static constexpr Output kHalves = Output::k{halves:?};
    static constexpr Output kOutput = Output::k{output:?};
}};

static_assert(AttentionSm90<Config>::kSharedBytes == {shared}, \"the host counts shared memory alike\");
",
            shared = self.shared_bytes(),
        )
    }

    /// The kernel that writes its result in boxes; scores are divided by the root of the head's width.
    pub fn source(&self) -> String {
        format!(
            "{}
#include \"attention_sm90_boxes.cuh\"

extern \"C\" __global__ void __launch_bounds__(kAttentionThreads, 1)
{self}(const __grid_constant__ AttentionBoxesArguments arguments) {{
    AttentionSm90<Config>::run(arguments.attention, AttentionBoxes<Config>{{arguments}});
}}
",
            self.specialisation(1.0 / (self.dim as f32).sqrt()),
        )
    }
}

/// The kernel's name.
impl fmt::Display for AttentionSm90Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dim, stages, causal, output } = self;
        let causal = if *causal { "_causal" } else { "" };
        write!(f, "attention_sm90_{output:?}_{dim}_s{stages}{causal}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSAL: AttentionSm90Config =
        AttentionSm90Config { dim: 128, stages: 2, causal: true, output: Output::F16 };

    #[test]
    fn an_instance_prints_its_name_and_its_configuration() {
        insta::assert_snapshot!(CAUSAL.source());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let fault = |config: AttentionSm90Config| config.fault().unwrap_or_default();
        assert_eq!(CAUSAL.fault(), None);
        assert!(fault(AttentionSm90Config { dim: 32, ..CAUSAL }).contains("heads of 32"));
        assert!(fault(AttentionSm90Config { stages: 4, ..CAUSAL }).contains("4 stages"));
        assert!(fault(AttentionSm90Config { output: Output::S32, ..CAUSAL }).contains("S32"));
    }
}
