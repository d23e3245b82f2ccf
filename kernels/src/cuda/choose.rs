//! Which tile a Hopper gemm takes for a number of rows, by a model of its time. The constants were
//! fitted to one H100 SXM; they decide nothing but speed.

use super::pack::BLOCK_K;

/// Rows up to which a tile is chosen for; the last one stands for all that are more.
pub const BUCKETS: [usize; 7] = [16, 64, 128, 256, 512, 1024, 4096];

/// Tokens of a tile that are considered.
const TOKENS: [u32; 4] = [16, 32, 64, 128];

/// Parts of K that are considered.
const SPLITS: [u32; 4] = [1, 2, 4, 8];

/// Channels of a tile.
const CHANNELS: usize = 128;

/// Multiprocessors, each with one block at a time; and how many blocks run at a time that come in
/// clusters, which do not cross the GPU's parts.
const PROCESSORS: usize = 132;
const IN_CLUSTERS: usize = 112;

/// Microseconds of a launch until the first products, and of an epilogue, for itself and by token.
const LAUNCH_US: f64 = 2.1;
const EPILOGUE_US: f64 = 0.35;
const EPILOGUE_TOKEN_US: f64 = 0.018;

/// Microseconds that adding up the parts of K costs.
const SPLIT_US: f64 = 0.75;

/// Of a multiprocessor, in a microsecond: bytes from L2, and products of two codes.
const BYTES_US: f64 = 112e3;
const PRODUCTS_US: f64 = 7.5e6;

/// A tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Tokens.
    pub tokens: u32,
    /// Blocks that share K.
    pub split: u32,
}

/// Microseconds of `m` tokens by `n` channels with `k_blocks` blocks of 128 bytes of K, of which one
/// takes `block_bytes` for 64 channels.
pub fn cost(tile: Tile, m: usize, n: usize, k_blocks: usize, block_bytes: usize) -> f64 {
    let (tokens, split) = (tile.tokens as usize, tile.split as usize);
    let tiles = n.div_ceil(CHANNELS) * m.div_ceil(tokens);
    let room = if split > 1 { IN_CLUSTERS } else { PROCESSORS };
    let waves = (tiles * split).div_ceil(room) as f64;
    let bytes = (2 * block_bytes + tokens * BLOCK_K) as f64;
    let products = (CHANNELS * tokens * BLOCK_K) as f64;
    let stage = (bytes / BYTES_US).max(products / PRODUCTS_US);
    let epilogue = EPILOGUE_US + EPILOGUE_TOKEN_US * tokens as f64;
    let adding = if split > 1 { SPLIT_US * (split as f64).log2() / 2.0 } else { 0.0 };
    LAUNCH_US + waves * (k_blocks.div_ceil(split) as f64 * stage + epilogue + adding)
}

/// The tiles for `m` tokens, the cheapest first.
pub fn ranked(m: usize, n: usize, k_blocks: usize, block_bytes: usize) -> Vec<Tile> {
    let all = TOKENS.iter().flat_map(|&tokens| SPLITS.map(|split| Tile { tokens, split }));
    let mut tiles: Vec<Tile> = all.filter(|t| t.split as usize <= k_blocks.max(1)).collect();
    let cost = |t: &Tile| cost(*t, m, n, k_blocks, block_bytes);
    tiles.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best tile of a layer with INT8 weights.
    fn best(m: usize, n: usize, k: usize) -> Tile {
        ranked(m, n, k.div_ceil(BLOCK_K), 8192)[0]
    }

    #[test]
    fn k_is_split_where_it_is_long_and_tiles_are_few() {
        assert_eq!(best(128, 960, 640).split, 1);
        assert_eq!(best(128, 3200, 640).split, 1);
        assert!(best(128, 576, 4608).split > 1);
        assert_eq!(best(4096, 4096, 4096).split, 1);
    }

    #[test]
    fn few_rows_want_small_tiles_and_many_large_ones() {
        assert_eq!(best(16, 3072, 1024).tokens, 16);
        assert_eq!(best(4096, 3072, 1024).tokens, 128);
    }
}
