//! Which tile a Hopper gemm takes for a number of rows, by a model of its time. The constants were
//! fitted to what `fqc tune` measured on one H100 SXM (`tests/cuda/results/tiles-*`); they decide nothing but speed.

use super::gemm::Weights;
use super::pack::{self, BLOCK_K};
use std::fmt;
use std::str::FromStr;

/// Rows up to which a tile is chosen for; the last one stands for all that are more.
pub const BUCKETS: [usize; 7] = [16, 64, 128, 256, 512, 1024, 4096];

/// Tokens of a tile that are considered.
const TOKENS: [u32; 5] = [16, 32, 64, 128, WIDE];

/// Tokens of the largest tile, of codes alone. Two neighbouring blocks share them, and neither shares K. With
/// fewer blocks of K than these its epilogue, of which nothing hides the end, costs more than it gains: all of
/// MiniLM at 4096 rows took 8 % longer.
const WIDE: u32 = 256;
const WIDE_K_BLOCKS: usize = 16;

/// Parts of K that are considered.
const SPLITS: [u32; 4] = [1, 2, 4, 8];

/// Tokens whose sums other parts of K hand over, at most: they lie in shared memory.
const HANDED: u32 = 224;

/// Channels of a tile.
const CHANNELS: usize = 128;

/// Multiprocessors, each with one block at a time, alone or in pairs; and how many blocks run at a time that
/// share K in clusters, which do not cross the GPU's parts.
const PROCESSORS: usize = 132;
const IN_CLUSTERS: usize = 112;

/// Microseconds of a launch until the first products, and of an epilogue, for itself and by token.
const LAUNCH_US: f64 = 2.1;
const EPILOGUE_US: f64 = 0.35;
const EPILOGUE_TOKEN_US: f64 = 0.018;

/// Microseconds that adding up the parts of K costs: by doublings of the parts, and for each token of each
/// part but the first.
const SPLIT_US: f64 = 0.25;
const SPLIT_TOKEN_US: f64 = 0.007;

/// Of a multiprocessor, in a microsecond: bytes from L2, and products of two codes.
const BYTES_US: f64 = 112e3;
const PRODUCTS_US: f64 = 7.5e6;

/// A tile. Its name is `128x64_k2`: channels, tokens, blocks that share K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Tokens.
    pub tokens: u32,
    /// Blocks that share K.
    pub split: u32,
}

impl Tile {
    /// Neighbouring blocks that share its tokens.
    pub fn cluster(self) -> u32 {
        if self.tokens == WIDE { 2 } else { 1 }
    }

    /// Every tile that there is.
    fn all() -> impl Iterator<Item = Tile> {
        let tiles =
            TOKENS.into_iter().flat_map(|tokens| SPLITS.map(|split| Tile { tokens, split }));
        tiles.filter(|tile| tile.tokens * (tile.split - 1) <= HANDED)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CHANNELS}x{}_k{}", self.tokens, self.split)
    }
}

impl FromStr for Tile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Tile::all()
            .find(|tile| tile.to_string() == name)
            .ok_or_else(|| format!("no tile `{name}`; there are those like `{CHANNELS}x64_k2`"))
    }
}

/// Blocks of the weights along `k`.
fn k_blocks(k: usize, weights: Weights) -> usize {
    pack::k_blocks(if weights.float() { k * 2 } else { k })
}

/// The tiles that a gemm could take: K is split into no more parts than it has blocks, sums of halves are
/// not handed over between blocks, and are of 128 tokens at most.
pub fn candidates(k: usize, weights: Weights) -> Vec<Tile> {
    let blocks = k_blocks(k, weights);
    let (most, wide) = match weights.float() {
        true => (1, false),
        false => (blocks.max(1), blocks >= WIDE_K_BLOCKS),
    };
    Tile::all().filter(|tile| tile.split as usize <= most && (wide || tile.tokens < WIDE)).collect()
}

/// Microseconds of `m` tokens by `n` channels with `k_blocks` blocks of 128 bytes of K, of which one
/// takes `block_bytes` for 64 channels.
pub fn cost(tile: Tile, m: usize, n: usize, k_blocks: usize, block_bytes: usize) -> f64 {
    let (tokens, split) = (tile.tokens as usize, tile.split as usize);
    let cluster = tile.cluster() as usize;
    let tiles = n.div_ceil(CHANNELS).next_multiple_of(cluster) * m.div_ceil(tokens);
    let room = if split > 1 { IN_CLUSTERS } else { PROCESSORS };
    let waves = (tiles * split).div_ceil(room) as f64;
    let bytes = (2 * block_bytes + tokens / cluster * BLOCK_K) as f64;
    let products = (CHANNELS * tokens * BLOCK_K) as f64;
    let stage = (bytes / BYTES_US).max(products / PRODUCTS_US);
    let epilogue = EPILOGUE_US + EPILOGUE_TOKEN_US * tokens as f64;
    let handed = (tokens * (split - 1)) as f64;
    let adding = SPLIT_US * (split as f64).log2() + SPLIT_TOKEN_US * handed;
    LAUNCH_US + waves * (k_blocks.div_ceil(split) as f64 * stage + epilogue + adding)
}

/// The tiles of `m` tokens by an `[n, k]` weight and their microseconds, the cheapest first.
pub fn ranked(m: usize, n: usize, k: usize, weights: Weights) -> Vec<(Tile, f64)> {
    let block_bytes = pack::block_bytes(weights == Weights::Int4);
    let cost = |tile| (tile, cost(tile, m, n, k_blocks(k, weights), block_bytes));
    let mut tiles: Vec<_> = candidates(k, weights).into_iter().map(cost).collect();
    tiles.sort_by(|a, b| a.1.total_cmp(&b.1));
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best tile of a layer with INT8 weights.
    fn best(m: usize, n: usize, k: usize) -> Tile {
        ranked(m, n, k, Weights::Int8)[0].0
    }

    #[test]
    fn k_is_split_where_it_is_long_and_tiles_are_few() {
        assert_eq!(best(128, 960, 640).split, 1);
        assert_eq!(best(128, 3200, 640).split, 1);
        assert!(best(128, 576, 4608).split > 1);
        // Measured 9.5 us, and 12.1 in two parts.
        assert_eq!(best(1024, 576, 4224).split, 1);
        assert_eq!(best(4096, 4096, 4096).split, 1);
    }

    #[test]
    fn tiles_have_names() {
        for tile in candidates(4096, Weights::Int8) {
            assert_eq!(tile.to_string().parse(), Ok(tile));
        }
        for name in ["128x99_k1", "128x128_k4", "128x256_k2"] {
            assert!(name.parse::<Tile>().unwrap_err().contains(&format!("no tile `{name}`")));
        }
        assert_eq!(candidates(256, Weights::Int8).len(), 8);
        assert_eq!(candidates(256, Weights::Bf16).len(), 4);
    }

    #[test]
    fn few_rows_want_small_tiles_and_many_large_ones() {
        assert_eq!(best(16, 3072, 1024).tokens, 16);
        assert_eq!(best(4096, 3072, 1024).tokens, 128);
        assert_eq!(best(4096, 12288, 4352), Tile { tokens: WIDE, split: 1 });
    }
}
