//! What the launch of `kernels/cuda/attention_sm90.cuh` needs.

use super::maps;
use crate::error::{Error, Result};

/// Queries of a block, and keys of a tile: rows of a box.
const ROWS: u32 = 128;

/// Words of `AttentionSm90Arguments`: three tensor maps, two words of sizes, and what fills up to the
/// alignment of a map.
const WORDS: usize = 56;

/// The first dims of a step that may take this kernel: counts, then the elements from one batch, head and row
/// to the next, of queries, keys and values.
struct Dims {
    batches: u64,
    heads: u64,
    key_heads: u64,
    queries: u64,
    keys: u64,
    strides: [[u64; 3]; 3],
}

impl Dims {
    fn new(dims: &[i64]) -> Result<Dims> {
        let number = |i: usize| {
            let dim = dims.get(i).and_then(|&d| u64::try_from(d).ok());
            dim.ok_or_else(|| Error::Program("an attention has no shape that makes sense".into()))
        };
        let mut strides = [[0; 3]; 3];
        for (i, stride) in strides.as_flattened_mut().iter_mut().enumerate() {
            *stride = number(5 + i)?;
        }
        let [batches, heads, key_heads, queries, keys] =
            [number(0)?, number(1)?, number(2)?, number(3)?, number(4)?];
        let small = |n: u64| n > 0 && i32::try_from(n).is_ok();
        if ![batches, heads, key_heads, queries, keys].into_iter().all(small)
            || !heads.is_multiple_of(key_heads)
        {
            return Err(Error::Program("an attention has no shape that makes sense".into()));
        }
        Ok(Dims { batches, heads, key_heads, queries, keys, strides })
    }
}

/// When the first of two kernels is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Few {
    /// Up to so many queries,
    pub(crate) queries: u32,
    /// and up to twice as many where the heads of all batches are more than this.
    pub(crate) crowd: u32,
}

impl Few {
    /// Whether a step of these dims has no more.
    pub(crate) fn holds(self, dims: &[i64]) -> Result<bool> {
        let Dims { batches, heads, queries, .. } = Dims::new(dims)?;
        let few = u64::from(self.queries);
        let crowd = batches.saturating_mul(heads) > u64::from(self.crowd);
        Ok(queries <= few || crowd && queries <= few.saturating_mul(2))
    }
}

/// `AttentionSm90Arguments` for heads of `width` channels at the first three addresses, and the number of
/// blocks.
pub(crate) fn arguments(addresses: &[u64], dims: &[i64], width: u32) -> Result<(Vec<u64>, u32)> {
    let dims = Dims::new(dims)?;
    let Dims { batches, heads, key_heads, queries, keys, strides } = dims;
    let mut words = Vec::with_capacity(WORDS);
    let operands = [(queries, heads), (keys, key_heads), (keys, key_heads)];
    for ((&address, (rows, heads)), [batch, head, row]) in
        addresses.iter().zip(operands).zip(strides)
    {
        let size = [u64::from(width), rows, heads, batches];
        let bytes = [row, head, batch].map(|stride| stride.saturating_mul(2).max(16));
        words.extend(maps::of_heads(address, size, bytes, ROWS)?);
    }
    words.push(queries | (keys << 32));
    words.push(heads | ((heads / key_heads) << 32));
    words.resize(WORDS, 0);
    let tiles = queries.div_ceil(u64::from(ROWS));
    let blocks = heads.saturating_mul(tiles).saturating_mul(batches);
    match u32::try_from(blocks) {
        Ok(blocks) if i32::try_from(blocks).is_ok() => Ok((words, blocks)),
        _ => Err(Error::Limit(format!("an attention has {blocks} blocks, too many for a GPU"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: [i64; 14] = [2, 9, 3, 100, 300, 57_600, 64, 576, 57_600, 64, 192, 57_600, 64, 192];

    #[test]
    fn queries_and_heads_decide() {
        let few = |queries, crowd| Few { queries, crowd }.holds(&DIMS).is_ok_and(|few| few);
        assert!(few(100, 18));
        assert!(!few(64, 18));
        assert!(few(64, 17));
        assert!(!few(49, 17));
    }

    #[test]
    fn a_shape_without_sense_is_refused() {
        let with = |i: usize, value: i64| {
            let mut dims = DIMS;
            dims[i] = value;
            Dims::new(&dims)
        };
        assert!(with(2, 3).is_ok());
        assert!(with(2, 4).is_err());
        assert!(with(3, 0).is_err());
        assert!(with(7, -1).is_err());
        assert!(with(4, 1 << 40).is_err());
        assert!(Dims::new(&DIMS[..13]).is_err());
    }
}
