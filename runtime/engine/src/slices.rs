//! A batch in slices that fit the caches. A program whose items do not mix (`Program::batch`) gives the
//! same bytes whether it runs on all of them or on some at a time, so that on a CPU each thread takes a
//! few items through all steps, with an arena of its own: activations stay in its second-level cache,
//! and threads meet once a run instead of once a step. What is left over all threads share.
//!
//! A slice reads all weights again. It must have enough items that what it keeps out of memory exceeds
//! them, few enough that its arena is not much larger than the cache. Measured in `tests/bench/README.md`.

use fqbin::{ExprId, Program};

use crate::cpu;
use crate::error::Result;
use crate::launch::Bound;

/// How a session on a CPU cuts a batch whose items do not mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slices {
    /// As the caches and the number of threads want it.
    #[default]
    Fit,
    /// Not at all.
    Whole,
    /// In slices of this many items, at least 1.
    Of(usize),
}

/// Arenas of slices may be this many times larger than the second-level cache: most of an arena is
/// written and read once within a few steps.
const ROOM: f64 = 2.0;
/// Slices that each thread should have, so that one that is late costs a part of its share only.
const TURNS: usize = 4;

/// A batch cut up: `count` equal slices, then a rest.
pub(crate) struct Parts {
    pub(crate) count: usize,
    pub(crate) slice: Bound,
    pub(crate) rest: Option<Bound>,
    /// Bytes of a slice of each input, then of each output.
    pub(crate) port_bytes: Vec<usize>,
}

impl Parts {
    /// The parts of a bound batch, or `None` if it is better run as a whole.
    pub(crate) fn new(
        program: &Program,
        whole: &Bound,
        threads: usize,
        slices: Slices,
    ) -> Result<Option<Parts>> {
        let batch = whole.inputs.first().and_then(|shape| shape.first()).copied().unwrap_or(0);
        if program.batch.is_none() || batch < 2 {
            return Ok(None);
        }
        let (items, count) = match slices {
            Slices::Whole => return Ok(None),
            Slices::Of(items) if items == 0 || items >= batch => return Ok(None),
            Slices::Of(items) => (items, batch / items),
            Slices::Fit => {
                let one = of_items(program, whole, 1)?;
                let sizes = Sizes::new(program, whole, &one, batch);
                match sizes.items(batch, threads, cpu::level2_bytes()) {
                    Some(items) => (items, batch / (threads * items) * threads),
                    None => return Ok(None),
                }
            }
        };
        let slice = of_items(program, whole, items)?;
        let left = batch - items * count;
        let rest = if left > 0 { Some(of_items(program, whole, left)?) } else { None };
        let ports = program.inputs.iter().chain(&program.outputs);
        let bytes = |port: &fqbin::Port| slice.binding.buffer_bytes[port.buffer.index()] as usize;
        let port_bytes = ports.map(bytes).collect();
        Ok(Some(Parts { count, slice, rest, port_bytes }))
    }
}

/// The program bound to some items of a batch.
fn of_items(program: &Program, whole: &Bound, items: usize) -> Result<Bound> {
    let shapes: Vec<Vec<usize>> = whole
        .inputs
        .iter()
        .map(|shape| {
            shape.iter().enumerate().map(|(i, &d)| if i == 0 { items } else { d }).collect()
        })
        .collect();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    Bound::new(program, &shapes)
}

/// What decides how many items make a slice, in bytes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Arena of one item.
    arena: f64,
    /// Moved by all steps for each item.
    moved: f64,
    /// Moved by all steps however many items there are: weights and tables.
    fixed: f64,
}

impl Sizes {
    fn new(program: &Program, whole: &Bound, one: &Bound, batch: usize) -> Sizes {
        let moved = |bound: &Bound| -> f64 {
            let bytes = |id: ExprId| bound.binding.value(id).max(0) as f64;
            program.steps.iter().map(|step| bytes(step.bytes)).sum()
        };
        let (all, first) = (moved(whole), moved(one));
        let each = (all - first) / (batch - 1) as f64;
        Sizes { arena: one.binding.arena_bytes as f64, moved: each, fixed: first - each }
    }

    /// Items of a slice; `None` if no number of them is worth it.
    fn items(&self, batch: usize, threads: usize, level2: usize) -> Option<usize> {
        let least = (self.fixed / self.moved).ceil();
        let most = (ROOM * level2 as f64 / self.arena).floor();
        let share = batch / threads;
        if !(least <= most && least <= share as f64) {
            return None;
        }
        // Both are at most `share` now, which is a whole number.
        let least = (least as usize).max(1);
        let turns = if threads == 1 { share } else { share / TURNS };
        let most = (most.min(share as f64) as usize).min(turns.max(least));
        let left = |items: usize| batch % (threads * items);
        let items = (least.max(most.div_ceil(2))..=most)
            .min_by_key(|&items| (left(items), std::cmp::Reverse(items)))?;
        (items < batch).then_some(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// An item of `arena` MiB that moves `moved` MiB, beside `fixed` MiB.
    fn items(
        [arena, moved, fixed]: [f64; 3],
        batch: usize,
        threads: usize,
        level2: usize,
    ) -> Option<usize> {
        let mib = |size: f64| size * MIB as f64;
        let sizes = Sizes { arena: mib(arena), moved: mib(moved), fixed: mib(fixed) };
        sizes.items(batch, threads, level2)
    }

    #[test]
    fn slices_fit_the_cache_and_outweigh_what_they_read_again() {
        let small = [0.25, 5.0, 10.0];
        assert_eq!(items(small, 64, 2, MIB), Some(8));
        assert_eq!(items(small, 64, 1, MIB), Some(8));
        // A smaller cache, until an item does not pay for the weights.
        assert_eq!(items(small, 64, 2, MIB / 4), Some(2));
        assert_eq!(items(small, 64, 2, MIB / 8), None);
        // Each thread has some slices, of no fewer items than pay.
        assert_eq!(items(small, 16, 2, MIB), Some(2));
        assert_eq!(items(small, 8, 2, MIB), Some(2));
        assert_eq!(items(small, 8, 4, MIB), Some(2));
        assert_eq!(items(small, 8, 8, MIB), None);
        // All of it fits.
        assert_eq!(items(small, 8, 1, MIB), None);
    }

    #[test]
    fn little_is_left_over() {
        let free = [0.25, 5.0, 0.0];
        assert_eq!(items(free, 33, 1, MIB), Some(8));
        assert_eq!(items(free, 35, 1, MIB), Some(7));
        assert_eq!(items(free, 30, 1, MIB), Some(6));
        assert_eq!(items(free, 31, 1, MIB), Some(6));
        assert_eq!(items(free, 9, 2, MIB), Some(1));
    }

    #[test]
    fn nothing_to_go_by_means_no_slices() {
        for sizes in [[0.0; 3], [0.25, 0.0, 1.0], [f64::NAN; 3], [1.0, -1.0, 1.0]] {
            let items = items(sizes, 64, 2, MIB);
            assert!(items.is_none_or(|items| (1..=32).contains(&items)), "{sizes:?}: {items:?}");
        }
        assert_eq!(items([1.0, 1.0, 0.0], 1, 2, MIB), None);
    }
}
