//! The weight of a gemm as its inner products read it: lines of bytes, or lines that share their
//! bytes two by two (INT4).
//!
//! Vector code takes the halves apart in registers. For tile registers a panel is unpacked into
//! scratch and then passes by as many tiles of rows as can be.

use fqc_ir::Elem;
use fqc_kernels::gemm::PANEL;
use fqc_kernels::pack::{DOT, GROUP, HALVES};
use inkwell::IntPredicate;

use super::build::{Builder, Val};
use super::gemm::{Gemm, Tile};

/// Bytes of a line: four rows of sixteen columns, or twice as many rows in halves.
const LINE: i64 = (GROUP * DOT) as i64;

/// A panel of the weight.
#[derive(Clone, Copy)]
pub(super) struct Weight<'c> {
    /// Its first byte.
    pub first: Val<'c>,
    /// Bytes from the first of its two sixteen-column groups to the second.
    pub group_bytes: i64,
    /// Whether two lines share their bytes.
    pub halves: bool,
}

impl<'c> Weight<'c> {
    /// Bits by which `vnni_line` shifts codes up.
    pub fn shift(&self) -> i64 {
        if self.halves { 4 } else { 0 }
    }

    /// Address of the line of rows `k + 4 * u` of a group; `k` is a multiple of eight.
    pub fn line(&self, b: &Builder<'_, 'c>, k: Val<'c>, u: i64, group: i64) -> Val<'c> {
        let (rows, u) = if self.halves { (DOT * HALVES, u / HALVES as i64) } else { (DOT, u) };
        let line = b.offset(self.first, b.mul(k, b.i64c(LINE / rows as i64)));
        b.offset(line, b.i64c(group * self.group_bytes + LINE * u))
    }

    /// A line as a `vpdpbusd` operand, its codes times `1 << shift()`: a half moved to the top of
    /// its byte is a signed byte without more ado.
    pub fn vnni_line(&self, b: &Builder<'_, 'c>, k: Val<'c>, u: i64, group: i64) -> Val<'c> {
        let bytes = b.vec(b.int(8), LINE as u32);
        let line = b.bitcast(b.load(b.i32v(16), self.line(b, k, u, group), 16), bytes);
        match (self.halves, u % HALVES as i64) {
            (false, _) => line,
            (true, 0) => b.shl(line, b.iconst(bytes, 4)),
            (true, _) => b.and(line, b.iconst(bytes, 0xf0)),
        }
    }

    /// Thirty-two codes of a line in halves, eight columns of four rows, as bytes.
    pub fn avx2_half(&self, b: &Builder<'_, 'c>, k: Val<'c>, u: i64) -> Val<'c> {
        let bytes = b.vec(b.int(8), 32);
        let line = b.load(bytes, self.line(b, k, u, 0), 16);
        let low = match u % HALVES as i64 {
            0 => line,
            _ => b.lshr(line, b.iconst(bytes, 4)),
        };
        let table = code(b, b.and(b.iota(b.int(8), 32), b.iconst(bytes, 15)));
        b.call("llvm.x86.avx2.pshuf.b", &[], &[table, b.and(low, b.iconst(bytes, 15))])
    }
}

/// The codes that the low halves of bytes stand for; the high halves are zero.
fn code<'c>(b: &Builder<'_, 'c>, halves: Val<'c>) -> Val<'c> {
    let sign = b.iconst(halves.get_type(), 8);
    b.sub(b.xor(halves, sign), sign)
}

impl<'c> Gemm<'_, '_, 'c> {
    /// Bytes from a panel to the next, and between the end of its first group and the second.
    pub fn next_panel(&self) -> (i64, i64) {
        let (_, columns, second) = self.groups();
        (self.bytes(columns), self.bytes(second) - self.group_bytes())
    }

    /// Asks, in step `step` of the `steps` of a tile, for so much of the next panel that `tiles` tiles of
    /// rows which pass by this one ask for all of it; `ask` says into which cache.
    pub fn ask_for_next(
        &self,
        at: Tile<'c>,
        tiles: Val<'c>,
        step: Val<'c>,
        steps: i64,
        ask: impl Fn(Val<'c>),
    ) {
        let b = self.b;
        let (next, gap) = self.next_panel();
        let next = b.offset(at.weight.first, b.i64c(next));
        let all = (PANEL / GROUP) as i64 * self.group_bytes() / LINE;
        let lines = self.up(b.i64c((all + steps - 1) / steps), tiles);
        let from = b.mul(b.add(b.mul(at.turn.index, b.i64c(steps)), step), lines);
        b.for_range(from, b.add(from, lines), 1, |line| {
            let line = b.mul(line, b.i64c(LINE));
            let second = b.icmp(IntPredicate::SGE, line, b.i64c(self.group_bytes()));
            let skipped = b.select(second, b.i64c(gap), b.i64c(0));
            ask(b.offset(next, b.add(line, skipped)));
        });
    }

    /// Bytes of whole groups of columns of the packed weight.
    fn bytes(&self, columns: i64) -> i64 {
        columns / GROUP as i64 * self.group_bytes()
    }

    /// Bytes of one sixteen-column group of the packed weight.
    pub fn group_bytes(&self) -> i64 {
        let elements = self.desc.packed_rows() * GROUP;
        self.desc.weight.bytes(elements) as i64
    }

    /// A panel as it lies in the file.
    pub fn packed(&self, panel: Val<'c>) -> Weight<'c> {
        let b = self.b;
        let (first, columns, second) = self.groups();
        let first = b.offset(self.weight, b.i64c(self.bytes(first)));
        let first = b.offset(first, b.mul(panel, b.i64c(self.bytes(columns))));
        Weight { first, group_bytes: self.bytes(second), halves: self.desc.weight == Elem::I4 }
    }

    /// The panel that [`Gemm::unpack`] has put into scratch.
    pub fn unpacked(&self) -> Weight<'c> {
        let b = self.b;
        let first = b.offset(b.scratch(), b.i64c(self.desc.scratch_panel() as i64));
        Weight { first, group_bytes: (self.desc.k * GROUP) as i64, halves: false }
    }

    /// Unpacks a panel of an INT4 weight into scratch.
    pub fn unpack(&self, panel: Val<'c>) {
        let b = self.b;
        let (from, to) = (self.packed(panel), self.unpacked());
        let all = self.desc.n.div_ceil(GROUP) as i64;
        let pair = (PANEL / GROUP) as i64;
        let groups = b.smin(b.sub(b.i64c(all), b.mul(panel, b.i64c(pair))), b.i64c(pair));
        let ty = b.vec(b.int(8), LINE as u32);
        b.for_range(b.i64c(0), b.mul(groups, b.i64c(from.group_bytes)), LINE, |at| {
            let line = b.load(ty, b.offset(from.first, at), 16);
            let to = b.offset(to.first, b.mul(at, b.i64c(HALVES as i64)));
            b.store(code(b, b.and(line, b.iconst(ty, 15))), to, 64);
            let high = b.lshr(line, b.iconst(ty, 4));
            b.store(code(b, high), b.offset(to, b.i64c(LINE)), 64);
        });
    }
}
