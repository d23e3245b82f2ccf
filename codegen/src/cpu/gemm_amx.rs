//! Inner products of a gemm tile in AMX tile registers.
//!
//! Codes, or pairs of bf16 in as many bytes: what is said of K counts bytes of a row.
//!
//! Two tiles of sixteen rows by two of sixteen columns; the left operand is loaded straight from
//! its rows (in scratch where they are rounded) and the packed weight (an INT4 panel once it is unpacked) is in tile order. Tiles are numbered by hand: 0 to 3 accumulate,
//! 4 and 5 hold rows, 6 and 7 columns. The last rows of an operand are reached by a tile that
//! overlaps the one before, so that nothing beyond them is read, unless they are in scratch; only a
//! call with fewer than sixteen rows in all has shorter tiles.

use fqc_ir::Elem;
use fqc_kernels::gemm::PANEL;
use fqc_kernels::pack::K_ALIGN;
use inkwell::IntPredicate;

use super::build::Val;
use super::gemm::{Columns, Gemm, Tile};
use super::gemm_epilogue::Epilogue;
use super::tiles::{HEIGHT, TileOps};

/// Steps between asking for a part of the weight and its use: where two tiles of rows share it,
/// and where one alone waits for it.
const NEAR: i64 = 2;
const FAR: i64 = 6;

/// Deepest left operand whose rows stay in the first-level cache.
const LEFT_STAYS: usize = 768;

/// A panel all of whose columns exist.
const WHOLE: Columns = Columns { groups: 2, count: PANEL as u32 };

/// Most rows that are finished in a step: each is emitted on its own.
const SHARE: i64 = 8;

/// What is noted of a tile: rows, first row, panel, and where its halves begin in scratch.
const NOTES: usize = 5;

/// A tile whose accumulators lie in scratch.
struct Kept<'c> {
    tile: Tile<'c>,
    /// Rows of scratch before each half.
    skipped: [Val<'c>; 2],
}

/// The AMX form of a kernel.
pub(super) struct Amx<'g, 'k, 'm, 'c, O> {
    gemm: &'g Gemm<'k, 'm, 'c>,
    ops: &'g O,
    left_stride: Val<'c>,
    /// Height of the tiles of this call.
    height: Val<'c>,
    /// Memory of [`NOTES`] numbers on the stack.
    notes: Val<'c>,
}

impl<'g, 'k, 'm, 'c, O: TileOps> Amx<'g, 'k, 'm, 'c, O> {
    pub fn new(gemm: &'g Gemm<'k, 'm, 'c>, ops: &'g O) -> Self {
        let b = gemm.b;
        Amx {
            gemm,
            ops,
            left_stride: gemm.stride_bytes(gemm.left_stride(), gemm.left_bytes()),
            // Tiles without rows are no valid configuration; a call without rows has no items.
            height: b.smax(b.smin(gemm.rows, b.i64c(HEIGHT)), b.i64c(1)),
            notes: b.alloca(b.vec(b.int(64), 8), 64).into(),
        }
    }

    pub fn run(&self) {
        let b = self.gemm.b;
        self.ops.configure(b, b.scratch(), self.height);
        self.keep_none();
        if self.gemm.desc.weight == Elem::I4 || self.gemm.rounds() || self.is_deep() {
            self.gemm.walk_grouped(2 * HEIGHT, |at| self.tile(at));
        } else {
            self.gemm.walk(2 * HEIGHT, |at| self.tile(at));
        }
        self.flush();
        self.ops.release(b);
    }

    fn tile(&self, at: Tile<'c>) {
        let b = self.gemm.b;
        // The last tile starts early enough to end with the operand.
        let latest = b.sub(self.gemm.rows, self.height);
        let (upper, lower) = (at.row, b.add(at.row, b.i64c(HEIGHT)));
        let near = |row| if self.gemm.rounds() { row } else { b.smin(row, latest) };
        let first = [near(upper), near(lower)];
        let skipped = [b.sub(upper, first[0]), b.sub(lower, first[1])];
        let both = b.icmp(IntPredicate::SGT, at.rows, b.i64c(HEIGHT));
        if at.columns == WHOLE && self.overlaps() {
            let one = || {
                self.flush();
                self.products(at, &first[..1], None);
                self.gemm.epilogue(at, |row| b.add(row, skipped[0]));
            };
            b.either(both, || self.overlapped(at, &first, skipped), one);
            return;
        }
        self.flush();
        b.either(
            both,
            || {
                self.gemm.prefetch(at, 2 * HEIGHT);
                self.products(at, &first, None);
            },
            || self.products(at, &first[..1], None),
        );
        self.gemm.epilogue(at, |row| self.place(row, skipped));
    }

    /// Rows of the tile before that are finished in a step of products.
    fn share(&self) -> i64 {
        let steps = self.gemm.left_depth() / K_ALIGN;
        (2 * HEIGHT as usize).div_ceil(steps) as i64
    }

    /// Whether there are whole panels, and steps enough to spread the rows of a tile over them.
    fn overlaps(&self) -> bool {
        self.gemm.desc.n >= PANEL && self.share() <= SHARE
    }

    /// A whole tile. What follows its accumulators is done while the tile registers work on the
    /// next tile, where that is the same for all: not so where later digits have their own way.
    fn overlapped(&self, at: Tile<'c>, first: &[Val<'c>; 2], skipped: [Val<'c>; 2]) {
        let b = self.gemm.b;
        self.gemm.prefetch(at, 2 * HEIGHT);
        self.products(at, first, Some(&self.kept()));
        match Epilogue::new(self.gemm, at).first_digits() {
            None => self.keep(at, skipped),
            Some(plain) => {
                let now = || {
                    self.gemm.epilogue(at, |row| self.place(row, skipped));
                    self.keep_none();
                };
                b.either(plain, || self.keep(at, skipped), now);
            }
        }
    }

    /// The row of scratch in which a row of a tile lies.
    fn place(&self, row: Val<'c>, skipped: [Val<'c>; 2]) -> Val<'c> {
        let b = self.gemm.b;
        let is_upper = b.icmp(IntPredicate::SLT, row, b.i64c(HEIGHT));
        b.add(row, b.select(is_upper, skipped[0], skipped[1]))
    }

    /// Notes a tile whose accumulators lie in scratch and wait for what follows.
    fn keep(&self, at: Tile<'c>, skipped: [Val<'c>; 2]) {
        let b = self.gemm.b;
        let values = [at.rows, at.row, at.panel, skipped[0], skipped[1]];
        for (i, value) in values.into_iter().enumerate() {
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

    /// The tile that was noted; one without rows if there is none.
    fn kept(&self) -> Kept<'c> {
        let b = self.gemm.b;
        let value = |i: usize| b.load(b.int(64), self.note(i), 8);
        let panel = value(2);
        let weight = self.gemm.packed(panel);
        let left = self.gemm.left_all();
        let tile = Tile { row: value(1), rows: value(0), panel, columns: WHOLE, left, weight };
        Kept { tile, skipped: [value(3), value(4)] }
    }

    /// Finishes the tile that was noted.
    fn flush(&self) {
        if !self.overlaps() {
            return;
        }
        let b = self.gemm.b;
        let Kept { tile, skipped } = self.kept();
        let epilogue = Epilogue::new(self.gemm, tile);
        b.for_range(b.i64c(0), tile.rows, 1, |row| {
            epilogue.row(row, self.place(row, skipped), true);
        });
        self.keep_none();
    }

    /// Asks for the part of the weight that comes `ahead` steps later, at the end of a panel for the
    /// beginning of the next: a tile is loaded faster than the second-level cache answers.
    fn prefetch_weight(&self, at: Tile<'c>, k: Val<'c>, ahead: i64) {
        let b = self.gemm.b;
        let steps = (self.gemm.left_depth() / K_ALIGN) as i64;
        let later = b.add(k, b.i64c(ahead.min(steps) * K_ALIGN as i64));
        let depth = b.i64c(self.gemm.left_depth() as i64);
        let skipped = b.i64c((i64::from(at.columns.groups) - 1) * at.weight.group_bytes);
        let past = b.icmp(IntPredicate::SGE, later, depth);
        let skipped = b.select(past, skipped, b.i64c(0));
        let from = b.offset(at.weight.first, b.add(b.mul(later, b.i64c(16)), skipped));
        for group in 0..i64::from(at.columns.groups) {
            for line in 0..HEIGHT {
                b.prefetch(b.offset(from, b.i64c(group * at.weight.group_bytes + 64 * line)));
            }
        }
    }

    /// Whether the rows of an item do not stay in the first-level cache.
    fn is_deep(&self) -> bool {
        self.gemm.left_depth() > LEFT_STAYS
    }

    /// Accumulators of one or two tiles of rows, into scratch; meanwhile the tile that lies there is
    /// finished.
    fn products(&self, at: Tile<'c>, first: &[Val<'c>], kept: Option<&Kept<'c>>) {
        let (b, ops) = (self.gemm.b, self.ops);
        let groups = at.columns.groups as u8;
        let start = self.gemm.start.map(|start| self.gemm.column_table(start, at.panel));
        let sum = |row: u8, group: u8| 2 * row + group;
        let rows: Vec<_> = first.iter().map(|&row| self.gemm.left_row(at.left, row)).collect();
        for group in 0..groups {
            let from = start.map(|start| b.offset(start, b.i64c(64 * i64::from(group))));
            for row in 0..rows.len() as u8 {
                match from {
                    Some(from) => ops.load(b, sum(row, group), from, b.i64c(0)),
                    None => ops.zero(b, sum(row, group)),
                }
            }
        }
        let depth = b.i64c(self.gemm.left_depth() as i64);
        let kept = kept.map(|kept| (kept, Epilogue::new(self.gemm, kept.tile)));
        let share = self.share();
        b.for_range(b.i64c(0), depth, K_ALIGN as i64, |k| {
            let line = b.offset(at.weight.first, b.mul(k, b.i64c(16)));
            match rows.len() {
                1 => self.prefetch_weight(at, k, FAR),
                _ if !self.is_deep() => self.prefetch_weight(at, k, NEAR),
                _ => {}
            }
            for (row, &from) in rows.iter().enumerate() {
                let from = b.offset(from, k);
                ops.load(b, 4 + row as u8, from, self.left_stride);
            }
            for group in 0..groups {
                let from = b.i64c(i64::from(group) * at.weight.group_bytes);
                ops.load(b, 6 + group, b.offset(line, from), b.i64c(64));
                for row in 0..rows.len() as u8 {
                    if self.gemm.in_pairs() {
                        ops.dot_bf16(b, sum(row, group), 4 + row, 6 + group);
                    } else {
                        ops.dot(b, sum(row, group), 4 + row, 6 + group);
                    }
                }
            }
            if let Some((kept, epilogue)) = &kept {
                let from = b.mul(b.udiv(k, b.i64c(K_ALIGN as i64)), b.i64c(share));
                for i in 0..share {
                    let row = b.add(from, b.i64c(i));
                    let exists = b.icmp(IntPredicate::SLT, row, kept.tile.rows);
                    b.when(exists, || epilogue.row(row, self.place(row, kept.skipped), true));
                }
            }
        });
        for row in 0..rows.len() as u8 {
            for group in 0..groups {
                let at = i64::from(row) * HEIGHT * 4 * PANEL as i64 + 64 * i64::from(group);
                let to = b.offset(self.gemm.tile, b.i64c(at));
                ops.store(b, sum(row, group), to, b.i64c(4 * PANEL as i64));
            }
        }
    }
}
