//! A batch in slices that fit the caches. A program whose items do not mix (`Program::batch`) gives the
//! same bytes whether it runs on all of them or on some at a time, so that on a CPU each thread takes a
//! few items through all steps, with an arena of its own: activations stay in its second-level cache,
//! and threads meet once a run instead of once a step. What is left over all threads share.
//!
//! A slice reads all weights again. It must have enough items that what it keeps out of memory exceeds
//! them, few enough that its arena is not much larger than the cache. Measured in `tests/bench/findings.md`.

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

/// A slice moves at least this many times the bytes that it reads again.
const WORTH: f64 = 1.75;
/// How many times larger than the second-level cache the arena of a slice may be: most of an arena is
/// written and read once within a few steps. The first is aimed at, the second allowed.
const ROOM: [f64; 2] = [1.25, 2.0];
/// An item that all threads share after the slices costs as much as this many in each slice: the
/// threads wait for each other at each step, and read all weights once more.
const LEFT: usize = 4;

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

    /// Items of a slice, as few as are worth it; `None` if no number is.
    fn items(&self, batch: usize, threads: usize, level2: usize) -> Option<usize> {
        let least = (WORTH * self.fixed / self.moved).ceil().max(1.0);
        let [most, limit] = ROOM.map(|room| (room * level2 as f64 / self.arena).floor());
        let share = batch / threads;
        if !(least <= limit && least <= share as f64) {
            return None;
        }
        // Both are at most `share` now, which is a whole number.
        let most = most.max(least).min(share as f64) as usize;
        let cost = |&items: &usize| LEFT * (batch % (threads * items)) + items;
        let items = (least as usize..=most).min_by_key(cost)?;
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
    fn slices_are_worth_what_they_read_again_and_fit_the_cache() {
        let small = [0.25, 7.0, 14.0];
        for (batch, threads) in [(64, 1), (64, 2), (8, 2), (64, 16)] {
            assert_eq!(items(small, batch, threads, MIB), Some(4));
        }
        // Too few for so many threads.
        assert_eq!(items(small, 8, 4, MIB), None);
        // A cache that what pays exceeds a little, and by far.
        assert_eq!(items(small, 64, 2, MIB / 2), Some(4));
        assert_eq!(items(small, 64, 2, MIB / 4), None);
        // One slice of all is none.
        assert_eq!(items(small, 4, 1, MIB), None);
    }

    #[test]
    fn little_is_left_over() {
        let small = [0.25, 14.0, 14.0];
        for (batch, expected) in [(8, 2), (12, 2), (10, 2), (15, 3), (11, 2), (25, 5)] {
            assert_eq!(items(small, batch, 1, MIB), Some(expected), "{batch} items");
        }
        assert_eq!(items(small, 9, 2, MIB), Some(2));
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
