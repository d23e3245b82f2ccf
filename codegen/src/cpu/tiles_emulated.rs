//! Tile registers in memory, for tests of code for AMX on machines without it.

use super::build::{Builder, Ty, Val};
use super::tiles::TileOps;

/// Tile registers kept in memory, so that the walk of the AMX code runs on any machine: eight
/// times 1,024 bytes behind the kernel's scratch, always sixteen rows high.
pub(super) struct Emulated {
    /// Bytes of the kernel's own scratch.
    pub at: i64,
}

impl Emulated {
    fn tile<'c>(&self, b: &Builder<'_, 'c>, tile: u8) -> Val<'c> {
        b.offset(b.scratch(), b.i64c(self.at + 64 + 1024 * i64::from(tile)))
    }

    fn height<'c>(&self, b: &Builder<'_, 'c>, tile: u8) -> Val<'c> {
        if tile >= 6 {
            return b.i64c(16);
        }
        b.load(b.int(64), b.offset(b.scratch(), b.i64c(self.at)), 8)
    }

    /// Products of four-byte groups by a vector instruction.
    fn multiply<'c>(
        &self,
        b: &Builder<'_, 'c>,
        [sum, left, right]: [u8; 3],
        sums: Ty<'c>,
        factors: Ty<'c>,
        instruction: &str,
    ) {
        b.for_range(b.i64c(0), self.height(b, sum), 1, |row| {
            let to = b.index(self.tile(b, sum), sums, row);
            let init = b.load(sums, to, 64);
            let done = b.for_carried(b.i64c(0), b.i64c(16), 1, &[init], |four, sums| {
                let from = b.index(self.tile(b, left), factors, row);
                let four_bytes = b.load(b.int(32), b.index(from, b.int(32), four), 4);
                let left = b.bitcast(b.splat(four_bytes, 16), factors);
                let right = b.load(factors, b.index(self.tile(b, right), factors, four), 64);
                vec![b.call(instruction, &[], &[sums[0], left, right])]
            });
            b.store(done[0], to, 64);
        });
    }
}

impl TileOps for Emulated {
    fn configure<'c>(&self, b: &Builder<'_, 'c>, _: Val<'c>, rows: Val<'c>) {
        b.store(rows, b.offset(b.scratch(), b.i64c(self.at)), 8);
    }

    fn load<'c>(&self, b: &Builder<'_, 'c>, tile: u8, from: Val<'c>, stride: Val<'c>) {
        let line = b.i32v(16);
        b.for_range(b.i64c(0), self.height(b, tile), 1, |row| {
            let value = b.load(line, b.offset(from, b.mul(row, stride)), 1);
            b.store(value, b.index(self.tile(b, tile), line, row), 64);
        });
    }

    fn store<'c>(&self, b: &Builder<'_, 'c>, tile: u8, to: Val<'c>, stride: Val<'c>) {
        let line = b.i32v(16);
        b.for_range(b.i64c(0), self.height(b, tile), 1, |row| {
            let value = b.load(line, b.index(self.tile(b, tile), line, row), 64);
            b.store(value, b.offset(to, b.mul(row, stride)), 1);
        });
    }

    fn dot<'c>(&self, b: &Builder<'_, 'c>, sum: u8, left: u8, right: u8) {
        let (sums, bytes) = (b.i32v(16), b.vec(b.int(8), 64));
        self.multiply(b, [sum, left, right], sums, bytes, "llvm.x86.avx512.vpdpbusd.512");
    }

    fn dot_bf16<'c>(&self, b: &Builder<'_, 'c>, sum: u8, left: u8, right: u8) {
        let (sums, pairs) = (b.f32v(16), b.vec(b.bf16(), 32));
        self.multiply(b, [sum, left, right], sums, pairs, "llvm.x86.avx512bf16.dpbf16ps.512");
    }

    fn zero(&self, b: &Builder<'_, '_>, tile: u8) {
        let line = b.i32v(16);
        b.for_range(b.i64c(0), b.i64c(16), 1, |row| {
            b.store(b.zero(line), b.index(self.tile(b, tile), line, row), 64);
        });
    }

    fn release(&self, _: &Builder<'_, '_>) {}
}
