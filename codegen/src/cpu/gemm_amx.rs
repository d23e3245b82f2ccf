//! Inner products of a gemm tile in AMX tile registers.
//!
//! Codes, or pairs of bf16 in as many bytes: what is said of K counts bytes of a row.
//!
//! Two tiles of sixteen rows by two of sixteen columns; the left operand is loaded straight from
//! its rows (in scratch where they are rounded) and the packed weight (an INT4 panel once it is
//! unpacked) is in tile order. Tiles are numbered by hand: 0 to 3 accumulate, 4 and 5 hold rows, 6
//! and 7 columns. The last rows of an operand are reached by a tile that overlaps the one before, so
//! that nothing beyond them is read, unless they are in scratch; only a call with fewer than sixteen
//! rows in all has shorter tiles.
//!
//! A step of four products takes the tile registers 64 cycles and its four loads the load ports 32,
//! so that the rows of the tile before, a few of which are finished after each product, find room. The
//! loads of a step stand between the products of the step before: a core whose other half is busy does
//! not look far enough ahead to find them elsewhere.
//! Lines that are asked for early take it from them: each of an INT8 or bf16 weight is asked for once, a
//! panel ahead by all tiles of rows that pass by it, a few steps ahead by one that is alone.

use fqc_ir::Elem;
use fqc_kernels::gemm::PANEL;
use fqc_kernels::pack::K_ALIGN;
use inkwell::IntPredicate;

use super::build::Val;
use super::gemm::{Columns, Gemm, Tile, Turn};
use super::gemm_epilogue::{Digits, Epilogue};
use super::gemm_packed::Packing;
use super::tiles::{HEIGHT, TileOps};

/// Steps between asking for a part of the weight and its use, where one tile of rows waits for it.
const AHEAD: i64 = 6;

/// A panel all of whose columns exist.
const WHOLE: Columns = Columns { groups: 2, count: PANEL as u32 };

/// Rows of a whole tile.
const ROWS: i64 = 2 * HEIGHT;

/// What is noted of a tile: whether there is one, its first row and its panel.
const NOTES: usize = 3;

/// What follows a whole tile whose accumulators lie in scratch.
struct Kept<'g, 'k, 'm, 'c> {
    epilogue: Epilogue<'g, 'k, 'm, 'c>,
    packing: Option<Packing<'c>>,
}

/// The AMX form of a kernel.
pub(super) struct Amx<'g, 'k, 'm, 'c, O> {
    gemm: Gemm<'k, 'm, 'c>,
    ops: &'g O,
    left_stride: Val<'c>,
    /// Height of the tiles of this call.
    height: Val<'c>,
    /// Memory of [`NOTES`] numbers on the stack.
    notes: Val<'c>,
}

impl<'g, 'k, 'm, 'c, O: TileOps> Amx<'g, 'k, 'm, 'c, O> {
    pub fn new(gemm: Gemm<'k, 'm, 'c>, ops: &'g O) -> Self {
        let b = gemm.b;
        // To clear a tile is free; to load it sixteen times from a line is not.
        let gemm = Gemm { from_zero: true, ..gemm };
        Amx {
            ops,
            left_stride: gemm.stride_bytes(gemm.left_stride(), gemm.left_bytes()),
            // Tiles without rows are no valid configuration; a call without rows has no items.
            height: b.smax(b.smin(gemm.rows, b.i64c(HEIGHT)), b.i64c(1)),
            notes: b.alloca(b.vec(b.int(64), 4), 64).into(),
            gemm,
        }
    }

    pub fn run(&self) {
        let b = self.gemm.b;
        self.ops.configure(b, b.scratch(), self.height);
        self.keep_none();
        self.gemm.walk_grouped(ROWS, |at| self.tile(at));
        self.flush();
        self.ops.release(b);
    }

    fn tile(&self, at: Tile<'c>) {
        let b = self.gemm.b;
        if at.columns == WHOLE {
            let whole = b.icmp(IntPredicate::EQ, at.rows, b.i64c(ROWS));
            b.either(whole, || self.whole(at), || self.part(at));
        } else {
            self.part(at);
        }
    }

    /// A whole tile. What follows its accumulators is done while the tile registers work on the
    /// next tile.
    fn whole(&self, at: Tile<'c>) {
        let b = self.gemm.b;
        let first = [at.row, b.add(at.row, b.i64c(HEIGHT))];
        b.either(
            self.is_kept(),
            || self.whole_products(at, first, Some(&self.kept())),
            || self.whole_products(at, first, None),
        );
        self.keep(at);
    }

    /// The last rows, or columns that are not a whole panel.
    fn part(&self, at: Tile<'c>) {
        let b = self.gemm.b;
        self.flush();
        // A tile starts early enough to end with the operand.
        let latest = b.sub(self.gemm.rows, self.height);
        let (upper, lower) = (at.row, b.add(at.row, b.i64c(HEIGHT)));
        let near = |row| if self.gemm.rounds() { row } else { b.smin(row, latest) };
        let first = [near(upper), near(lower)];
        let skipped = [b.sub(upper, first[0]), b.sub(lower, first[1])];
        let both = b.icmp(IntPredicate::SGT, at.rows, b.i64c(HEIGHT));
        b.either(both, || self.products(at, &first), || self.products(at, &first[..1]));
        self.gemm.epilogue(at, |row| {
            let is_upper = b.icmp(IntPredicate::SLT, row, b.i64c(HEIGHT));
            b.add(row, b.select(is_upper, skipped[0], skipped[1]))
        });
    }

    /// Notes a whole tile whose accumulators lie in scratch and wait for what follows.
    fn keep(&self, at: Tile<'c>) {
        let b = self.gemm.b;
        for (i, value) in [b.i64c(1), at.row, at.panel].into_iter().enumerate() {
            b.store(value, self.note(i), 8);
        }
    }

    /// Notes that no tile waits.
    fn keep_none(&self) {
        let b = self.gemm.b;
        for i in 0..NOTES {
            b.store(b.i64c(0), self.note(i), 8);
        }
    }

    fn note(&self, index: usize) -> Val<'c> {
        self.gemm.b.offset(self.notes, self.gemm.b.i64c(8 * index as i64))
    }

    fn is_kept(&self) -> Val<'c> {
        let b = self.gemm.b;
        b.icmp(IntPredicate::NE, b.load(b.int(64), self.note(0), 8), b.i64c(0))
    }

    /// What follows the tile that was noted.
    fn kept(&self) -> Kept<'_, 'k, 'm, 'c> {
        let epilogue = Epilogue::new(&self.gemm, self.kept_tile());
        Kept { packing: epilogue.packing(), epilogue }
    }

    fn kept_tile(&self) -> Tile<'c> {
        let b = self.gemm.b;
        let value = |i: usize| b.load(b.int(64), self.note(i), 8);
        let (row, panel) = (value(1), value(2));
        let (left, weight) = (self.gemm.left_all(), self.gemm.packed(panel));
        let turn = Turn { index: b.i64c(0), count: b.i64c(1) };
        Tile { row, rows: b.i64c(ROWS), panel, columns: WHOLE, turn, left, weight }
    }

    /// Finishes the tile that was noted, if there is one.
    fn flush(&self) {
        let b = self.gemm.b;
        if self.gemm.desc.n < PANEL {
            return;
        }
        b.when(self.is_kept(), || {
            self.finish(&self.kept(), b.i64c(0), b.i64c(ROWS));
            self.keep_none();
        });
    }

    /// Finishes an even number of rows of a whole tile in scratch.
    fn finish(&self, kept: &Kept<'_, 'k, 'm, 'c>, from: Val<'c>, to: Val<'c>) {
        let b = self.gemm.b;
        let Kept { epilogue, packing } = kept;
        let rows = || b.for_range(from, to, 1, |row| epilogue.row(row, row, Digits::Any));
        match packing {
            Some(packing) => {
                b.either(packing.fits, || epilogue.packed_rows([from, to], packing), rows);
            }
            None => rows(),
        }
    }

    /// Asks for this step's part of the next panel, unless panels are unpacked.
    fn ask_for_next(&self, at: Tile<'c>, k: Val<'c>) {
        if self.gemm.desc.weight == Elem::I4 {
            return;
        }
        let (b, each) = (self.gemm.b, K_ALIGN as i64);
        let steps = self.gemm.left_depth() as i64 / each;
        let step = b.udiv(k, b.i64c(each));
        self.gemm.ask_for_next(at, at.turn.count, step, steps, |line| b.prefetch_second(line));
    }

    /// Asks for the part of the weight that comes some steps later, at the end of a panel for the
    /// beginning of the next: one tile is loaded faster than the weight comes from memory.
    fn prefetch_weight(&self, at: Tile<'c>, k: Val<'c>) {
        let b = self.gemm.b;
        let steps = (self.gemm.left_depth() / K_ALIGN) as i64;
        let later = b.add(k, b.i64c(AHEAD.min(steps) * K_ALIGN as i64));
        let depth = b.i64c(self.gemm.left_depth() as i64);
        let skipped = match at.columns.groups {
            1 => 0,
            _ => self.gemm.next_panel().0 - self.gemm.group_bytes(),
        };
        let skipped = b.i64c(skipped);
        let past = b.icmp(IntPredicate::SGE, later, depth);
        let skipped = b.select(past, skipped, b.i64c(0));
        let from = b.offset(at.weight.first, b.add(b.mul(later, b.i64c(16)), skipped));
        for group in 0..i64::from(at.columns.groups) {
            for line in 0..HEIGHT {
                b.prefetch(b.offset(from, b.i64c(group * at.weight.group_bytes + 64 * line)));
            }
        }
    }

    /// Accumulators of a whole tile, into scratch; meanwhile the one that lies there is finished.
    ///
    /// What a step multiplies first is loaded during the step before. In the last step that is its
    /// own part once more, because nothing may be read behind an operand.
    fn whole_products(
        &self,
        at: Tile<'c>,
        first: [Val<'c>; 2],
        kept: Option<&Kept<'_, 'k, 'm, 'c>>,
    ) {
        let b = self.gemm.b;
        let rows = first.map(|row| self.gemm.left_row(at.left, row));
        let left = |row: usize, k| self.load_left(rows[row], row as u8, k);
        let right = |group, k| self.load_right(at, group, k);
        self.clear(2, 2);
        let (depth, step) = (self.gemm.left_depth() as i64, K_ALIGN as i64);
        let share = 2 * (ROWS as u64 / 2).div_ceil((depth / step) as u64) as i64;
        let start = b.i64c(0);
        left(0, start);
        right(0, start);
        right(1, start);
        b.for_range(start, b.i64c(depth), step, |k| {
            self.ask_for_next(at, k);
            let next = b.smin(b.add(k, b.i64c(step)), b.i64c(depth - step));
            let finished = b.mul(b.udiv(k, b.i64c(step)), b.i64c(share));
            // The rows that follow so many of the four products.
            let finish = |products: i64| {
                let [from, to] = [products - 1, products].map(|n| share * n / 4 / 2 * 2);
                if let Some(kept) = kept.filter(|_| from < to) {
                    let [from, to] =
                        [from, to].map(|row| b.smin(b.add(finished, b.i64c(row)), b.i64c(ROWS)));
                    self.finish(kept, from, to);
                }
            };
            self.dot(0, 0);
            finish(1);
            self.dot(0, 1);
            left(1, k);
            left(0, next);
            finish(2);
            self.dot(1, 0);
            right(0, next);
            finish(3);
            self.dot(1, 1);
            right(1, next);
            finish(4);
        });
        self.store(2, 2);
    }

    /// Accumulators of one or two tiles of rows of a panel that may have one group, into scratch.
    fn products(&self, at: Tile<'c>, first: &[Val<'c>]) {
        let b = self.gemm.b;
        let (count, groups) = (first.len() as u8, at.columns.groups as u8);
        let rows: Vec<_> = first.iter().map(|&row| self.gemm.left_row(at.left, row)).collect();
        self.clear(count, groups);
        let depth = b.i64c(self.gemm.left_depth() as i64);
        b.for_range(b.i64c(0), depth, K_ALIGN as i64, |k| {
            if count == 1 {
                self.prefetch_weight(at, k);
            } else {
                self.ask_for_next(at, k);
            }
            for (row, &from) in (0..).zip(&rows) {
                self.load_left(from, row, k);
                for group in 0..groups {
                    if row == 0 {
                        self.load_right(at, group, k);
                    }
                    self.dot(row, group);
                }
            }
        });
        self.store(count, groups);
    }

    /// Clears the accumulators of so many tiles of rows and of columns.
    fn clear(&self, rows: u8, groups: u8) {
        for (row, group) in pairs(rows, groups) {
            self.ops.zero(self.gemm.b, sum(row, group));
        }
    }

    /// Loads a tile of rows, of which the first is at `from`.
    fn load_left(&self, from: Val<'c>, row: u8, k: Val<'c>) {
        let b = self.gemm.b;
        self.ops.load(b, 4 + row, b.offset(from, k), self.left_stride);
    }

    /// Loads a tile of columns.
    fn load_right(&self, at: Tile<'c>, group: u8, k: Val<'c>) {
        let b = self.gemm.b;
        let first = b.offset(at.weight.first, b.i64c(i64::from(group) * at.weight.group_bytes));
        self.ops.load(b, 6 + group, b.offset(first, b.mul(k, b.i64c(16))), b.i64c(64));
    }

    /// Adds the products of a tile of rows and one of columns.
    fn dot(&self, row: u8, group: u8) {
        let (b, [sum, left, right]) = (self.gemm.b, [sum(row, group), 4 + row, 6 + group]);
        match self.gemm.in_pairs() {
            true => self.ops.dot_bf16(b, sum, left, right),
            false => self.ops.dot(b, sum, left, right),
        }
    }

    /// Stores the accumulators into scratch.
    fn store(&self, rows: u8, groups: u8) {
        let b = self.gemm.b;
        for (row, group) in pairs(rows, groups) {
            let at = i64::from(row) * HEIGHT * 4 * PANEL as i64 + 64 * i64::from(group);
            let to = b.offset(self.gemm.tile, b.i64c(at));
            self.ops.store(b, sum(row, group), to, b.i64c(4 * PANEL as i64));
        }
    }
}

/// The accumulator of a tile of rows and one of columns.
fn sum(row: u8, group: u8) -> u8 {
    2 * row + group
}

fn pairs(rows: u8, groups: u8) -> impl Iterator<Item = (u8, u8)> {
    (0..rows).flat_map(move |row| (0..groups).map(move |group| (row, group)))
}
