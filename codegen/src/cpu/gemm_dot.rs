//! Inner products of a gemm tile in vector registers: `vpdpbusd` (AVX-512 VNNI), `vpmaddwd` on
//! widened operands (AVX2, which so never saturates; `vpmaddubsw` for weights of four bits, which
//! does not either), `vdpbf16ps` (AVX-512 BF16) and fused multiply-adds (f32, and bf16 elsewhere).
//!
//! Every accumulator takes its terms in the order of K. Integer sums are exact whatever the
//! order; float sums depend on neither the number of rows nor the cut into tasks.

use fqbin::Level;
use fqc_kernels::Stride;
use fqc_kernels::gemm::{PANEL, WIDENED_ROWS};
use fqc_kernels::pack::{DOT, GROUP, PAIR};
use inkwell::IntPredicate;

use super::attention_bf16;
use super::build::Val;
use super::gemm::{Gemm, Tile};
use super::gemm_weight::Weight;

/// Bytes of a row of the accumulator tile.
const TILE_ROW: i64 = 4 * PANEL as i64;

/// Independent accumulators that hide the latency of a dot product.
const CHAINS: u32 = 8;

/// How far in front lines of a bf16 weight are asked for, in bytes, and from how many rows on: with fewer
/// the processor does so itself.
const AHEAD: i64 = 1024;
const AHEAD_ROWS: u32 = 8;

/// A run of rows of a tile: where they are in the left operand and in the accumulator tile.
#[derive(Clone, Copy)]
struct Rows<'c> {
    left: Val<'c>,
    tile: Val<'c>,
    count: u32,
}

impl<'c> Gemm<'_, '_, 'c> {
    /// Rows of a tile: as many as registers hold accumulators for.
    pub fn dot_rows(&self) -> i64 {
        if self.b.level() == Level::Avx2 { WIDENED_ROWS as i64 } else { 12 }
    }

    /// Emits one tile: accumulators into scratch, then the epilogue.
    pub fn dot_tile(&self, at: Tile<'c>) {
        let b = self.b;
        let full = self.dot_rows();
        let is_full = b.icmp(IntPredicate::EQ, at.rows, b.i64c(full));
        b.if_else(
            is_full,
            || {
                self.prefetch(at, full);
                let left = self.left_row(at.left, at.row);
                self.dot_run(at, Rows { left, tile: self.tile, count: full as u32 });
                Vec::new()
            },
            || {
                self.dot_remainder(at, full);
                Vec::new()
            },
        );
        self.epilogue_in_order(at);
    }

    /// Fewer rows than a tile has: runs of 8, 4, 2 and 1.
    fn dot_remainder(&self, at: Tile<'c>, full: i64) {
        let b = self.b;
        let mut done = b.i64c(0);
        for count in [8i64, 4, 2, 1].into_iter().filter(|&count| count < full) {
            let taken = b.icmp(IntPredicate::NE, b.and(at.rows, b.i64c(count)), b.i64c(0));
            let after = b.if_else(
                taken,
                || {
                    let left = self.left_row(at.left, b.add(at.row, done));
                    let tile = b.offset(self.tile, b.mul(done, b.i64c(TILE_ROW)));
                    self.dot_run(at, Rows { left, tile, count: count as u32 });
                    vec![b.add(done, b.i64c(count))]
                },
                || vec![done],
            );
            done = after[0];
        }
    }

    fn dot_run(&self, at: Tile<'c>, rows: Rows<'c>) {
        match (self.start, self.b.level()) {
            (None, _) if self.in_pairs() => self.dot_words(at, rows, None),
            (None, _) => self.dot_f32(at, rows),
            (Some(start), Level::Avx2) => {
                self.dot_avx2(at, rows, self.column_table(start, at.panel));
            }
            (Some(start), _) => self.dot_words(at, rows, Some(self.column_table(start, at.panel))),
        }
    }

    /// Rows of a code weight that a loop passes over: up to the last that is not zero, in its own
    /// steps, at most `K_ALIGN`.
    fn depth(&self, step: i64) -> i64 {
        self.desc.depth.next_multiple_of(step as usize) as i64
    }

    /// Addresses of the rows of a run.
    fn row_pointers(&self, rows: Rows<'c>) -> Vec<Val<'c>> {
        let b = self.b;
        (0..i64::from(rows.count))
            .map(|row| match self.left_stride() {
                Stride::Const(stride) => {
                    b.offset(rows.left, b.i64c(row * stride * self.left_bytes()))
                }
                stride => {
                    let stride = self.stride_bytes(stride, self.left_bytes());
                    b.offset(rows.left, b.mul(stride, b.i64c(row)))
                }
            })
            .collect()
    }

    /// `vpdpbusd`, or without `start` `vdpbf16ps`: a word of the left operand, four codes or two bf16,
    /// is broadcast and multiplied with a line of the weight. K counts bytes of the left operand.
    fn dot_words(&self, at: Tile<'c>, rows: Rows<'c>, start: Option<Val<'c>>) {
        const UNROLL: i64 = 4;
        let b = self.b;
        let ty = b.vec(self.accumulator(), 16);
        let ahead = start.is_none() && rows.count >= AHEAD_ROWS;
        let (groups, weight) = (at.columns.groups, at.weight);
        let shift = b.iconst(b.i32v(16), weight.shift());
        // The order of float sums is to be the same however many rows there are.
        let splits = match start {
            Some(_) => (CHAINS / (rows.count * groups)).clamp(1, UNROLL as u32),
            None => 1,
        };
        let mut init = vec![b.zero(ty); (splits * rows.count * groups) as usize];
        if let Some(start) = start {
            for (i, first) in init.iter_mut().take((rows.count * groups) as usize).enumerate() {
                let group = i as i64 % i64::from(groups);
                *first = b.shl(
                    b.load(ty, b.offset(start, b.i64c(4 * self.groups().2 * group)), 4),
                    shift,
                );
            }
        }
        let pointers = self.row_pointers(rows);
        let step = UNROLL * DOT as i64;
        let depth = match start {
            Some(_) => self.depth(DOT as i64),
            None => self.desc.k.next_multiple_of(PAIR) as i64 * self.left_bytes(),
        };
        let whole = depth - depth % step;
        let asks = start.is_some() && whole > 0 && i64::from(rows.count) == self.dot_rows();
        let advance = |k: Val<'c>, dots: i64, carried: &[Val<'c>]| {
            let mut sums = carried.to_vec();
            if asks && dots == UNROLL {
                // The last tile of rows may be none that asks.
                let tiles = b.smax(b.sub(at.turn.count, b.i64c(1)), b.i64c(1));
                let now = b.udiv(k, b.i64c(step));
                self.ask_for_next(at, tiles, now, whole / step, |line| b.prefetch(line));
            }
            for u in 0..dots {
                let lines: Vec<_> =
                    (0..i64::from(groups)).map(|g| weight.vnni_line(b, k, u, g)).collect();
                if ahead {
                    for g in 0..i64::from(groups) {
                        b.prefetch(b.offset(weight.line(b, k, u, g), b.i64c(AHEAD)));
                    }
                }
                let split = (u as u32 % splits * rows.count * groups) as usize;
                for (row, &pointer) in pointers.iter().enumerate() {
                    let four = b.offset(b.offset(pointer, k), b.i64c(DOT as i64 * u));
                    let four = b.splat(b.load(b.int(32), four, 1), 16);
                    for (group, &line) in lines.iter().enumerate() {
                        let sum = &mut sums[split + row * groups as usize + group];
                        *sum = match start {
                            Some(_) => {
                                let four = b.bitcast(four, b.vec(b.int(8), 64));
                                let args = [*sum, four, line];
                                b.call("llvm.x86.avx512.vpdpbusd.512", &[], &args)
                            }
                            None => attention_bf16::dot(b, *sum, four, line),
                        };
                    }
                }
            }
            sums
        };
        let sums = b
            .for_carried(b.i64c(0), b.i64c(whole), step, &init, |k, sums| advance(k, UNROLL, sums));
        let sums = advance(b.i64c(whole), (depth - whole) / DOT as i64, &sums);
        let one = (rows.count * groups) as usize;
        for i in 0..one {
            let sum = (1..splits as usize).fold(sums[i], |sum, s| b.add(sum, sums[s * one + i]));
            let (row, group) = (i as i64 / i64::from(groups), i as i64 % i64::from(groups));
            let to = b.offset(rows.tile, b.i64c(row * TILE_ROW + group * 64));
            b.store(if start.is_some() { b.ashr(sum, shift) } else { sum }, to, 16);
        }
    }

    /// Fused multiply-adds: one row of K a step, the left operand broadcast.
    fn dot_f32(&self, at: Tile<'c>, rows: Rows<'c>) {
        let b = self.b;
        let lanes = b.level().f32_lanes();
        let vectors = GROUP as u32 / lanes;
        // AVX2 has registers for one group at a time, AVX-512 for two.
        let at_once = if b.level() == Level::Avx2 { 1 } else { at.columns.groups };
        let pointers = self.row_pointers(rows);
        for first in (0..at.columns.groups).step_by(at_once as usize) {
            let offsets: Vec<(i64, i64)> = (0..at_once * vectors)
                .map(|v| (i64::from(first + v / vectors), i64::from(v % vectors * lanes * 4)))
                .collect();
            self.dot_f32_groups(rows, &pointers, at.weight, &offsets);
        }
    }

    /// The columns at `offsets`: pairs of a group and a byte offset in its sixty-four.
    fn dot_f32_groups(
        &self,
        rows: Rows<'c>,
        pointers: &[Val<'c>],
        weight: Weight<'c>,
        offsets: &[(i64, i64)],
    ) {
        const UNROLL: i64 = 4;
        let b = self.b;
        let lanes = b.level().f32_lanes();
        let ty = b.f32v(lanes);
        let depth = self.desc.k as i64;
        let step = |k: Val<'c>, u: i64, sums: &mut [Val<'c>]| {
            let lines: Vec<_> = offsets
                .iter()
                .map(|(group, byte)| {
                    self.float_line(weight.first, k, u, group * weight.group_bytes + byte)
                })
                .collect();
            for (row, &pointer) in pointers.iter().enumerate() {
                let value = b.offset(b.index(pointer, b.f32(), k), b.i64c(4 * u));
                let value = b.splat(b.load(b.f32(), value, 4), lanes);
                for (v, &line) in lines.iter().enumerate() {
                    let sum = &mut sums[row * lines.len() + v];
                    *sum = b.fma(value, line, *sum);
                }
            }
        };
        let whole = depth / UNROLL * UNROLL;
        let init = vec![b.zero(ty); pointers.len() * offsets.len()];
        let mut sums = b.for_carried(b.i64c(0), b.i64c(whole), UNROLL, &init, |k, carried| {
            let mut sums = carried.to_vec();
            for u in 0..UNROLL {
                step(k, u, &mut sums);
            }
            sums
        });
        for rest in 0..depth - whole {
            step(b.i64c(whole), rest, &mut sums);
        }
        for (i, &sum) in sums.iter().enumerate() {
            let (row, (group, byte)) = (i / offsets.len(), offsets[i % offsets.len()]);
            let at = row as i64 * TILE_ROW + group * 64 + byte;
            b.store(sum, b.offset(rows.tile, b.i64c(at)), 16);
        }
    }

    /// Eight columns at a time; a loop, so that the code stays small.
    fn dot_avx2(&self, at: Tile<'c>, rows: Rows<'c>, start: Val<'c>) {
        let b = self.b;
        let pointers = self.row_pointers(rows);
        if !at.weight.halves {
            self.widen(&pointers);
        }
        b.for_range(b.i64c(0), b.i64c(i64::from(at.columns.groups) * 2), 1, |eight| {
            let group = b.lshr(eight, b.i64c(1));
            let half = b.and(eight, b.i64c(1));
            let from = b.mul(group, b.i64c(at.weight.group_bytes));
            let from = b.offset(at.weight.first, b.add(from, b.mul(half, b.i64c(32))));
            let lines = Weight { first: from, ..at.weight };
            let column = b.mul(group, b.i64c(4 * self.groups().2));
            let start = b.offset(start, b.add(column, b.mul(half, b.i64c(32))));
            let tile = b.offset(rows.tile, b.mul(eight, b.i64c(32)));
            if at.weight.halves {
                self.dot_avx2_i4(&pointers, lines, start, tile);
            } else {
                self.dot_avx2_i8(rows.count, lines, start, tile);
            }
        });
    }

    /// Where the rows of a run are kept as sixteen bits.
    fn widened(&self) -> Val<'c> {
        self.b.offset(self.b.scratch(), self.b.i64c(self.desc.scratch_widened() as i64))
    }

    /// Widens rows to sixteen bits, once for the panel.
    fn widen(&self, pointers: &[Val<'c>]) {
        let b = self.b;
        let (widened, depth) = (self.widened(), self.desc.k as i64);
        b.for_range(b.i64c(0), b.i64c(self.depth(16)), 16, |k| {
            for (row, &pointer) in pointers.iter().enumerate() {
                let bytes = b.load(b.vec(b.int(8), 16), b.offset(pointer, k), 1);
                let words = b.zext(bytes, b.vec(b.int(16), 16));
                let to = b.offset(widened, b.i64c(row as i64 * depth * 2));
                b.store(words, b.index(to, b.int(16), k), 16);
            }
        });
    }

    /// `vpmaddubsw`: products of bytes and codes of four bits never saturate it, and sixteen of
    /// them fit in sixteen bits.
    fn dot_avx2_i4(&self, pointers: &[Val<'c>], lines: Weight<'c>, start: Val<'c>, tile: Val<'c>) {
        /// Lines whose products an accumulator of sixteen bits holds: two from each,
        /// 8 * 2 * 255 * 8 < 2^15.
        const LINES: i64 = 8;
        let b = self.b;
        let (bytes, words) = (b.vec(b.int(8), 32), b.vec(b.int(16), 16));
        let init = vec![b.load(b.i32v(8), start, 4); pointers.len()];
        let step = LINES * DOT as i64;
        let sums = b.for_carried(b.i64c(0), b.i64c(self.depth(step)), step, &init, |k, sums| {
            let mut pairs = vec![b.zero(words); pointers.len()];
            for u in 0..LINES {
                let line = lines.avx2_half(b, k, u);
                for (pair, &pointer) in pairs.iter_mut().zip(pointers) {
                    let four = b.offset(b.offset(pointer, k), b.i64c(DOT as i64 * u));
                    let four = b.bitcast(b.splat(b.load(b.int(32), four, 1), 8), bytes);
                    let product = b.call("llvm.x86.avx2.pmadd.ub.sw", &[], &[four, line]);
                    *pair = b.add(*pair, product);
                }
            }
            let one = b.iconst(words, 1);
            let wide = |pair| b.call("llvm.x86.avx2.pmadd.wd", &[], &[pair, one]);
            sums.iter().zip(pairs).map(|(&sum, pair)| b.add(sum, wide(pair))).collect()
        });
        for (row, &sum) in sums.iter().enumerate() {
            b.store(sum, b.offset(tile, b.i64c(row as i64 * TILE_ROW)), 16);
        }
    }

    /// `vpmaddwd`: an accumulator holds four columns with two partial sums each.
    fn dot_avx2_i8(&self, rows: u32, lines: Weight<'c>, start: Val<'c>, tile: Val<'c>) {
        const UNROLL: i64 = 2;
        let b = self.b;
        let (widened, depth) = (self.widened(), self.desc.k as i64);
        let (words, sums_ty) = (b.vec(b.int(16), 16), b.i32v(8));
        let init = vec![b.zero(sums_ty); 2 * rows as usize];
        let step = UNROLL * DOT as i64;
        let sums = b.for_carried(b.i64c(0), b.i64c(self.depth(step)), step, &init, |k, carried| {
            let mut sums = carried.to_vec();
            for u in 0..UNROLL {
                let line = lines.line(b, k, u, 0);
                let columns = [0, 16].map(|byte| {
                    let four = b.offset(line, b.i64c(byte));
                    b.sext(b.load(b.vec(b.int(8), 16), four, 16), words)
                });
                for row in 0..rows as usize {
                    let at = b.offset(widened, b.i64c(row as i64 * depth * 2 + u * 8));
                    let four = b.load(b.int(64), b.index(at, b.int(16), k), 8);
                    let four = b.bitcast(b.splat(four, 4), words);
                    for (half, &columns) in columns.iter().enumerate() {
                        let sum = &mut sums[2 * row + half];
                        let product = b.call("llvm.x86.avx2.pmadd.wd", &[], &[four, columns]);
                        *sum = b.add(*sum, product);
                    }
                }
            }
            sums
        });
        let first = b.load(sums_ty, start, 4);
        for row in 0..rows as usize {
            let (low, high) = (sums[2 * row], sums[2 * row + 1]);
            let even = b.shuffle(low, high, &[0, 2, 4, 6, 8, 10, 12, 14]);
            let odd = b.shuffle(low, high, &[1, 3, 5, 7, 9, 11, 13, 15]);
            let sum = b.add(b.add(even, odd), first);
            b.store(sum, b.offset(tile, b.i64c(row as i64 * TILE_ROW)), 16);
        }
    }
}
