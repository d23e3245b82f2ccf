//! Instances of `attention.cuh`.

use super::gemm::Output;
use std::fmt;

/// One instance. Batch, heads, queries, keys and strides are run-time numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionConfig {
    /// Width of a head: 32, 64 or 128; of keys and values alike.
    pub dim: u32,
    /// Keys of a tile.
    pub keys: u32,
    /// Warps of a block.
    pub warps: u32,
    /// Sixteens of rows (queries times the heads that share a key head) of a warp.
    pub row_tiles: u32,
    /// Whether the last query sees all keys, and each one before it one less.
    pub causal: bool,
    /// Whether a mask of f32 is added to the scaled scores.
    pub mask: bool,
    /// Whether the keys are split over blocks; a launch of [`Self::sum_source`] has to follow.
    pub split: bool,
    /// Element of the result. Inputs are bf16 with `Bf16`, f16 otherwise.
    pub output: Output,
}

/// Threads of a block of the kernel that adds up the splits; a warp has one row.
pub const SUM_THREADS: u32 = 128;

/// Tiles of keys that a split has at least, so that it is worth its partial sums.
const SPLIT_TILES: usize = 2;

impl AttentionConfig {
    /// The same with the tile for this width, and for so many rows a key head (queries times the
    /// query heads that share it).
    pub fn for_rows(self, dim: u32, rows: usize) -> Self {
        let few = rows <= 64;
        let row_tiles = if dim == 128 || few || self.mask { 1 } else { 2 };
        let warps = if rows <= 16 { 1 } else { 4 };
        // Few rows want many blocks, a mask wants registers.
        let keys = if self.mask || warps == 1 { 32 } else { 64 };
        Self { dim, keys, warps, row_tiles, ..self }
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        32 * self.warps
    }

    /// Rows of a tile.
    pub fn rows(&self) -> usize {
        (16 * self.row_tiles * self.warps) as usize
    }

    /// Dynamic shared memory of a block: two tiles of keys and of values, or the queries.
    pub fn shared_bytes(&self) -> usize {
        let pitch = self.dim as usize * 2;
        (self.rows() * pitch).max(4 * self.keys as usize * pitch)
    }

    /// Parts of the keys that fill a GPU of `processors` when each has `blocks` without splitting;
    /// 1 unless `split`.
    pub fn splits(&self, blocks: usize, keys: usize, processors: usize) -> usize {
        let tiles = keys.div_ceil(self.keys as usize);
        let wanted = (4 * processors).div_ceil(blocks.max(1));
        if self.split { wanted.min(tiles / SPLIT_TILES).max(1) } else { 1 }
    }

    /// Bytes of the partial sums.
    pub fn partial_bytes(
        &self,
        splits: usize,
        batch: usize,
        heads: usize,
        queries: usize,
    ) -> usize {
        splits * batch * heads * queries * (self.dim as usize + 2) * 4
    }

    /// What is wrong with the instance, if anything is.
    pub fn fault(&self) -> Option<String> {
        if !matches!(self.dim, 32 | 64 | 128) {
            return Some(format!("heads of {}", self.dim));
        }
        if !matches!(self.warps, 1 | 2 | 4 | 8)
            || !matches!(self.keys, 16 | 32 | 64)
            || !(1..=2).contains(&self.row_tiles)
            || self.row_tiles * self.dim > 128
            || self.row_tiles > 1 && self.mask
        {
            return Some(format!(
                "{} warps, {} row tiles, {} keys at heads of {}, mask {}",
                self.warps, self.row_tiles, self.keys, self.dim, self.mask
            ));
        }
        if matches!(self.output, Output::F32 | Output::S32) {
            return Some(format!("{:?} results", self.output));
        }
        None
    }

    fn head(&self, file: &str) -> String {
        let Self { dim, keys, warps, row_tiles, causal, mask, split, output } = *self;
        format!(
            "#include \"{file}\"

struct Config {{
    static constexpr int kDim = {dim};
    static constexpr int kKeys = {keys};
    static constexpr int kWarps = {warps};
    static constexpr int kRowTiles = {row_tiles};
    static constexpr bool kCausal = {causal};
    static constexpr bool kMask = {mask};
    static constexpr bool kSplit = {split};
    static constexpr Output kOutput = Output::k{output:?};
}};
"
        )
    }

    /// The lines that specialise the source.
    pub fn source(&self) -> String {
        format!(
            "{head}
static_assert(Attention<Config>::kSharedBytes == {shared}, \"the host counts shared memory alike\");

extern \"C\" __global__ void __launch_bounds__({threads})
{self}(const __grid_constant__ AttentionArguments arguments) {{
    Attention<Config>::run(arguments);
}}
",
            head = self.head("attention.cuh"),
            shared = self.shared_bytes(),
            threads = self.threads(),
        )
    }

    /// The name of the kernel that adds up the splits.
    pub fn sum_name(&self) -> String {
        format!("{self}_sum")
    }

    /// Its source; it has the same argument and a warp for each of `batch * heads * queries` rows.
    pub fn sum_source(&self) -> String {
        format!(
            "{head}
extern \"C\" __global__ void __launch_bounds__({SUM_THREADS})
{name}(const __grid_constant__ AttentionArguments arguments) {{
    AttentionSum<Config>::run(arguments);
}}
",
            head = self.head("attention_sum.cuh"),
            name = self.sum_name(),
        )
    }
}

/// The kernel's name.
impl fmt::Display for AttentionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dim, keys, warps, row_tiles, .. } = self;
        write!(f, "attention_{:?}_{dim}_{}x{keys}_w{warps}", self.output, row_tiles * warps * 16)?;
        for (set, name) in [(self.causal, "_causal"), (self.mask, "_mask"), (self.split, "_split")]
        {
            f.write_str(if set { name } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSAL: AttentionConfig = AttentionConfig {
        dim: 64,
        keys: 64,
        warps: 4,
        row_tiles: 2,
        causal: true,
        mask: false,
        split: false,
        output: Output::F16,
    };

    #[test]
    fn an_instance_prints_its_name_and_its_configuration() {
        let split = AttentionConfig { split: true, ..CAUSAL };
        insta::assert_snapshot!(format!("{}\n{}", CAUSAL.source(), split.sum_source()));
    }

    #[test]
    fn keys_are_split_until_the_gpu_is_full() {
        let split = AttentionConfig { split: true, ..CAUSAL };
        assert_eq!(split.splits(32, 4096, 132), 17);
        assert_eq!(split.splits(1, 4096, 132), 32);
        assert_eq!(split.splits(4096, 4096, 132), 1);
        assert_eq!(split.splits(1, 100, 132), 1);
        assert_eq!(CAUSAL.splits(1, 4096, 132), 1);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let fault = |config: AttentionConfig| config.fault().unwrap_or_default();
        assert_eq!(CAUSAL.fault(), None);
        assert!(fault(AttentionConfig { dim: 80, ..CAUSAL }).contains("heads of 80"));
        assert!(fault(AttentionConfig { dim: 128, ..CAUSAL }).contains("2 row tiles"));
        assert!(fault(AttentionConfig { output: Output::F32, ..CAUSAL }).contains("F32"));
        for (dim, rows) in [(32, 1), (64, 40), (128, 2048)] {
            assert_eq!(CAUSAL.for_rows(dim, rows).fault(), None);
        }
    }
}
