//! Packing of intermediate buffers into one arena: a pure function from sizes and live ranges to
//! offsets, used by the runtime for every bound shape and by the compiler for its report. Greedy
//! by decreasing size into the lowest gap that fits; ties keep the order of the list, so equal
//! input gives equal output everywhere.

use crate::error::{Error, Result};
use crate::len::ByteLen;

/// Alignment of every offset and of the total.
pub const ARENA_ALIGN: u64 = 64;

/// A buffer to place: its size in bytes and the steps between which it lives, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub bytes: u64,
    pub first: u32,
    pub last: u32,
}

impl Block {
    fn meets(&self, other: &Block) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Offsets of the blocks, in their order, and the bytes that the arena needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArenaLayout {
    pub offsets: Vec<u64>,
    pub total: u64,
}

/// Packs the blocks. Fails only when a size overflows.
pub fn pack_arena(blocks: &[Block]) -> Result<ArenaLayout> {
    let mut order: Vec<usize> = (0..blocks.len()).filter(|&i| blocks[i].bytes > 0).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), i));
    let mut offsets = vec![0u64; blocks.len()];
    let mut total = ByteLen::ZERO;
    // Placed blocks as (offset, end, index), kept in order of offset.
    let mut placed: Vec<(u64, u64, usize)> = Vec::with_capacity(order.len());
    for i in order {
        let size = ByteLen::new(blocks[i].bytes).align_up(ARENA_ALIGN)?;
        let mut at = ByteLen::ZERO;
        for &(offset, end, other) in &placed {
            if !blocks[i].meets(&blocks[other]) {
                continue;
            }
            if at.plus(size)?.get() <= offset {
                break;
            }
            at = at.max(ByteLen::new(end));
        }
        let end = at.plus(size)?;
        offsets[i] = at.get();
        total = total.max(end);
        let slot = placed.partition_point(|&(offset, _, _)| offset <= at.get());
        placed.insert(slot, (at.get(), end.get(), i));
    }
    Ok(ArenaLayout { offsets, total: total.get() })
}

/// Checks a layout independently of how it was made: aligned, inside the total, and no two blocks
/// that live at the same time overlap.
pub fn verify_arena(blocks: &[Block], layout: &ArenaLayout) -> Result<()> {
    if blocks.len() != layout.offsets.len() {
        let (want, got) = (blocks.len(), layout.offsets.len());
        return Err(Error::malformed(format!("arena of {want} blocks has {got} offsets")));
    }
    // Sweep in order of offset; `open` holds the blocks that may reach beyond the current one.
    let mut order: Vec<usize> = (0..blocks.len()).filter(|&i| blocks[i].bytes > 0).collect();
    order.sort_by_key(|&i| (layout.offsets[i], i));
    let mut open: Vec<(u64, usize)> = Vec::new();
    for i in order {
        let start = ByteLen::new(layout.offsets[i]);
        let end = start.plus(ByteLen::new(blocks[i].bytes))?.get();
        if !start.is_aligned(ARENA_ALIGN) || end > layout.total {
            return Err(Error::malformed(format!("arena block {i} is misaligned or outside")));
        }
        open.retain(|&(open_end, _)| open_end > start.get());
        if let Some((_, other)) = open.iter().find(|(_, other)| blocks[i].meets(&blocks[*other])) {
            return Err(Error::malformed(format!("arena blocks {i} and {other} overlap")));
        }
        open.push((end, i));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(bytes: u64, first: u32, last: u32) -> Block {
        Block { bytes, first, last }
    }

    #[test]
    fn a_chain_needs_two_slots() {
        let blocks: Vec<Block> = (0..10).map(|i| block(1000, i, i + 1)).collect();
        let layout = pack_arena(&blocks).unwrap();
        assert_eq!(layout.total, 2 * 1024);
        verify_arena(&blocks, &layout).unwrap();
    }

    #[test]
    fn overflow_is_an_error() {
        assert!(pack_arena(&[block(u64::MAX, 0, 0)]).is_err());
        assert!(pack_arena(&[block(1 << 63, 0, 0), block(1 << 63, 0, 0)]).is_err());
    }

    #[test]
    fn the_verifier_sees_overlap_misalignment_and_excess() {
        let blocks = [block(64, 0, 1), block(64, 1, 2)];
        let layout = |a, b, total| ArenaLayout { offsets: vec![a, b], total };
        verify_arena(&blocks, &layout(0, 64, 128)).unwrap();
        assert!(verify_arena(&blocks, &layout(0, 0, 128)).is_err());
        assert!(verify_arena(&blocks, &layout(0, 65, 256)).is_err());
        assert!(verify_arena(&blocks, &layout(0, 64, 127)).is_err());
        assert!(verify_arena(&blocks, &ArenaLayout::default()).is_err());
    }

    proptest! {
        #[test]
        fn packing_is_valid_and_bounded(
            spans in prop::collection::vec((0u64..5000, 0u32..40, 0u32..12), 0..60)
        ) {
            let blocks: Vec<Block> =
                spans.iter().map(|&(bytes, first, len)| block(bytes, first, first + len)).collect();
            let layout = pack_arena(&blocks).unwrap();
            verify_arena(&blocks, &layout).unwrap();
            let aligned = |b: &Block| b.bytes.div_ceil(64) * 64;
            let sum: u64 = blocks.iter().map(aligned).sum();
            let peak = (0..60)
                .map(|t| blocks.iter().filter(|b| b.first <= t && t <= b.last).map(aligned).sum())
                .max()
                .unwrap_or(0u64);
            prop_assert!(layout.total >= peak && layout.total <= sum);
            prop_assert_eq!(&layout, &pack_arena(&blocks).unwrap());
        }
    }
}
