//! Gemm kernels: the walk over work items and tiles. The inner products are in `gemm_dot` and
//! `gemm_amx`, what follows them in `gemm_epilogue`.
//!
//! A tile is a few rows by one panel of columns. Its accumulators go through scratch memory to
//! the epilogue, which is therefore one loop whatever the level and the number of rows; the way
//! costs a few cycles in a hundred and stays in the first-level cache.

use fqbin::Level;
use fqc_ir::Elem;
use fqc_ir::plan::GemmOutput;
use fqc_kernels::gemm::{PANEL, Pairs, ROW_BLOCK, SCRATCH_TILE};
use fqc_kernels::pack::GROUP;
use fqc_kernels::{GemmDesc, Operand, Stride};
use inkwell::IntPredicate;

use super::CpuError;
use super::build::{Builder, Code, Ty, Val};
use super::gemm_amx::Amx;
use super::gemm_epilogue;
use super::gemm_pairs::PairBuffers;
use super::gemm_weight::Weight;
use super::tiles::Native;

/// Row blocks of a slice of 128 rows.
const SLICE_BLOCKS: i64 = 2;

/// Deepest left operand of which the rows of a tile stay in the first-level cache.
const LEFT_STAYS: usize = 768;

/// Emits the kernel `name` for `desc` at the level of `code`.
pub fn emit(code: &Code<'_>, name: &str, desc: &GemmDesc) -> Result<(), CpuError> {
    desc.check().map_err(|reason| CpuError::Unsupported { kernel: name.to_owned(), reason })?;
    code.kernel(name, |b| {
        let gemm = Gemm::new(b, desc);
        let streams = gemm.streams.is_some();
        if desc.weight != Elem::F32 && code.level() == Level::AmxInt8 {
            Amx::new(gemm, &Native).run();
        } else {
            gemm.walk_grouped(gemm.dot_rows(), |at| gemm.dot_tile(at));
        }
        if streams {
            b.fence();
        }
        Ok(())
    })
}

/// Columns of one panel that exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    /// Groups of sixteen in the packed weight: 1 or 2.
    pub groups: u32,
    /// Columns of the result: 1 to 32.
    pub count: u32,
}

/// One tile of the result.
#[derive(Clone, Copy)]
pub(super) struct Tile<'c> {
    /// First row.
    pub row: Val<'c>,
    /// Rows, at most the tile height.
    pub rows: Val<'c>,
    /// Panel of the weight.
    pub panel: Val<'c>,
    pub columns: Columns,
    pub turn: Turn<'c>,
    pub left: Left<'c>,
    /// Where the codes of the columns are.
    pub weight: Weight<'c>,
}

/// A tile of rows among those that pass by a panel one after another.
#[derive(Clone, Copy)]
pub(super) struct Turn<'c> {
    /// How many came before.
    pub index: Val<'c>,
    /// How many there are.
    pub count: Val<'c>,
}

/// Tiles of rows that pass by a panel.
#[derive(Clone, Copy)]
struct Pass<'c> {
    panel: Val<'c>,
    /// The first of this call, and the one behind the last.
    tiles: [Val<'c>; 2],
    /// The same of all that pass by it together, whoever calls.
    group: [Val<'c>; 2],
    left: Left<'c>,
    weight: Weight<'c>,
}

/// Where the left operand's rows are: all from the first on, or a group of them in scratch.
#[derive(Clone, Copy)]
pub(super) struct Left<'c> {
    pub at: Val<'c>,
    /// Row that lies there.
    pub first: Val<'c>,
}

/// The kernel being emitted: its buffers and sizes as values.
pub(super) struct Gemm<'k, 'm, 'c> {
    pub b: &'k Builder<'m, 'c>,
    pub desc: &'k GemmDesc,
    pub rows: Val<'c>,
    pub left: Val<'c>,
    pub weight: Val<'c>,
    pub scale: Option<Val<'c>>,
    pub start: Option<Val<'c>>,
    pub operands: Vec<Val<'c>>,
    pub inverse: Option<Val<'c>>,
    pub lo: Option<Val<'c>>,
    /// Where a panel's two groups are the two arguments of the epilogue.
    pub pairs: Option<PairBuffers<'c>>,
    pub out: Val<'c>,
    /// Whether the result goes past the caches; `None` where it never does.
    pub streams: Option<Val<'c>>,
    /// The accumulator tile in scratch: rows of [`PANEL`] i32 or f32.
    pub tile: Val<'c>,
    /// Whether accumulators begin at zero, so that `start` is added to them afterwards.
    pub from_zero: bool,
}

impl<'k, 'm, 'c> Gemm<'k, 'm, 'c> {
    pub fn new(b: &'k Builder<'m, 'c>, desc: &'k GemmDesc) -> Self {
        let mut next = 0..;
        let mut buffer = || b.buf(next.next().expect("an endless range"));
        let (left, weight) = (buffer(), buffer());
        let mut pair =
            |wanted: bool| if wanted { (Some(buffer()), Some(buffer())) } else { (None, None) };
        let (scale, start) = pair(desc.is_quantized());
        let operands = desc.operands.iter().map(|_| buffer()).collect();
        let codes = matches!(desc.output, GemmOutput::Codes { .. }) && desc.pairs.is_none();
        let (inverse, lo) = if codes { (Some(buffer()), Some(buffer())) } else { (None, None) };
        let pairs = desc.pairs.map(|pairs| {
            let [inverse, below, source, first] = [(); 4].map(|()| buffer());
            PairBuffers { pairs, inverse, below, source, first }
        });
        let out = buffer();
        let tile = b.offset(b.scratch(), b.i64c(SCRATCH_TILE as i64));
        let rows = b.dim(0);
        let streams = gemm_epilogue::streams(b, desc, out, rows);
        Gemm {
            b,
            desc,
            rows,
            left,
            weight,
            scale,
            start,
            operands,
            inverse,
            lo,
            pairs,
            out,
            streams,
            tile,
            from_zero: false,
        }
    }

    /// Bytes of an element of the left operand, as inner products read it.
    pub fn left_bytes(&self) -> i64 {
        match self.desc.is_quantized() {
            true => 1,
            false if self.in_pairs() => 2,
            false => 4,
        }
    }

    /// Element of an accumulator.
    pub fn accumulator(&self) -> Ty<'c> {
        if self.desc.is_quantized() { self.b.int(32) } else { self.b.f32() }
    }

    /// A row stride in bytes.
    pub fn stride_bytes(&self, stride: Stride, bytes: i64) -> Val<'c> {
        match stride {
            Stride::Const(elements) => self.b.i64c(elements * bytes),
            Stride::Dim(index) => self.b.mul(self.b.dim(index), self.b.i64c(bytes)),
        }
    }

    /// Bytes of a row of the left operand that the whole packed weight takes.
    pub fn left_depth(&self) -> usize {
        self.desc.packed_rows() * self.left_bytes() as usize
    }

    /// Distance between rows of the left operand, as inner products read it.
    pub fn left_stride(&self) -> Stride {
        if self.rounds() { self.rounded_stride() } else { self.desc.row_stride }
    }

    /// Row `row` of the left operand.
    pub fn left_row(&self, left: Left<'c>, row: Val<'c>) -> Val<'c> {
        let stride = self.stride_bytes(self.left_stride(), self.left_bytes());
        self.b.offset(left.at, self.b.mul(self.b.sub(row, left.first), stride))
    }

    /// The left operand where the caller has it.
    pub fn left_all(&self) -> Left<'c> {
        Left { at: self.left, first: self.b.i64c(0) }
    }

    /// A per-column table of four-byte elements at the first column of a panel.
    pub fn column_table(&self, table: Val<'c>, panel: Val<'c>) -> Val<'c> {
        let (first, columns, _) = self.groups();
        let first = self.b.offset(table, self.b.i64c(4 * first));
        self.b.offset(first, self.b.mul(panel, self.b.i64c(4 * columns)))
    }

    /// First column of the first panel, columns from its first group to that of the next panel, and
    /// to its own second group.
    pub fn groups(&self) -> (i64, i64, i64) {
        match self.desc.pairs {
            None => (0, PANEL as i64, GROUP as i64),
            Some(Pairs { starts: [x, y], .. }) => (x as i64, GROUP as i64, y as i64 - x as i64),
        }
    }

    /// Walks the items of the call, tile by tile. Several row blocks pass by a panel before the next one
    /// comes, so that it is read, or for tile registers unpacked, once for all of them. Rows that are
    /// rounded are so once for all panels.
    pub fn walk_grouped(&self, tile_rows: i64, tile: impl Fn(Tile<'c>)) {
        self.walk_panels(tile_rows, |pass, columns| self.pass(pass, columns, tile_rows, &tile));
    }

    /// Walks the panels that the items of the call have tiles of, group by group of row blocks.
    fn walk_panels(&self, tile_rows: i64, pass: impl Fn(&Pass<'c>, Columns)) {
        let b = self.b;
        // Tile registers, which alone begin at zero, cannot take halves apart.
        let unpacks = self.desc.weight == Elem::I4 && self.from_zero;
        if self.desc.is_quantized() && !unpacks {
            return self.walk_blocks(tile_rows, pass);
        }
        let panels = b.i64c(self.desc.panels() as i64);
        let blocks = self.up(self.rows, b.i64c(ROW_BLOCK as i64));
        let shared = self.shared_blocks(blocks);
        let count = |first| b.smin(shared, b.sub(blocks, first));
        // Which pass has an item: panels of a group follow each other.
        let pass_of = |item| {
            let group = b.udiv(item, b.mul(shared, panels));
            let first = b.mul(group, shared);
            let rest = b.sub(item, b.mul(first, panels));
            b.add(b.mul(group, panels), b.udiv(rest, count(first)))
        };
        let (begin, end) = (b.begin(), b.end());
        let none = b.i64c(-1);
        let init = if self.rounds() { vec![none; 2] } else { vec![none] };
        b.when(b.icmp(IntPredicate::SLT, begin, end), || {
            let last = pass_of(b.sub(end, b.i64c(1)));
            b.for_carried(pass_of(begin), b.add(last, b.i64c(1)), 1, &init, |at, done| {
                let group = b.udiv(at, panels);
                let (panel, first) = (b.sub(at, b.mul(group, panels)), b.mul(group, shared));
                let count = count(first);
                let item = b.add(b.mul(first, panels), b.mul(panel, count));
                let from = b.add(first, b.smax(b.sub(begin, item), b.i64c(0)));
                let to = b.add(first, b.smin(b.sub(end, item), count));
                if unpacks {
                    let fresh = b.icmp(IntPredicate::NE, panel, done[0]);
                    b.when(fresh, || self.unpack(panel));
                }
                let weight = if unpacks { self.unpacked() } else { self.packed(panel) };
                let tiles = self.tiles(tile_rows, [from, to]);
                let group = self.tiles(tile_rows, [first, b.add(first, count)]);
                let emit = |left| {
                    let at = Pass { panel, tiles, group, left, weight };
                    self.columns(panel, |columns| pass(&at, columns));
                };
                if !self.rounds() {
                    emit(self.left_all());
                    return vec![panel];
                }
                let row = |tile| b.mul(tile, b.i64c(tile_rows));
                let (from, to) = (row(group[0]), b.smin(row(group[1]), self.rows));
                let fresh = b.icmp(IntPredicate::NE, first, done[1]);
                b.when(fresh, || self.round_rows(from, to));
                emit(Left { at: self.rounded(), first: from });
                vec![panel, first]
            });
        });
    }

    /// The same where the panels of a row block are items that follow each other: a thread with a part of
    /// them keeps to its rows, which it finds in its own caches from step to step. Blocks of which the
    /// call has all panels still pass by them in groups.
    fn walk_blocks(&self, tile_rows: i64, pass: impl Fn(&Pass<'c>, Columns)) {
        let (b, begin, end) = (self.b, self.b.begin(), self.b.end());
        let panels = b.i64c(self.desc.panels() as i64);
        let shared = self.shared_blocks(self.up(self.rows, b.i64c(ROW_BLOCK as i64)));
        let (zero, one) = (b.i64c(0), b.i64c(1));
        let from = self.up(begin, panels);
        let to = b.smax(b.udiv(end, panels), from);
        // Part of a block, groups of whole blocks, part of a block.
        let behind = b.add(self.up(b.sub(to, from), shared), one);
        // A call without items has no groups: it may have no rows, either.
        let any = b.icmp(IntPredicate::SLT, begin, end);
        let groups = b.select(any, b.add(behind, one), zero);
        b.for_range(zero, groups, 1, |group| {
            let is_before = b.icmp(IntPredicate::EQ, group, zero);
            let is_behind = b.icmp(IntPredicate::EQ, group, behind);
            let pick = |before, whole, after| {
                b.select(is_before, before, b.select(is_behind, after, whole))
            };
            let whole = b.add(from, b.mul(b.sub(group, one), shared));
            let first = pick(b.udiv(begin, panels), whole, to);
            let count = pick(one, b.smin(shared, b.sub(to, first)), one);
            let panel = |item| b.smax(b.smin(b.sub(item, b.mul(first, panels)), panels), zero);
            let first_panel = pick(panel(begin), zero, zero);
            let last = pick(panel(b.smin(end, b.mul(from, panels))), panels, panel(end));
            let tiles = self.tiles(tile_rows, [first, b.add(first, count)]);
            b.for_range(first_panel, last, 1, |panel| {
                let (left, weight) = (self.left_all(), self.packed(panel));
                let at = Pass { panel, tiles, group: tiles, left, weight };
                self.columns(panel, |columns| pass(&at, columns));
            });
        });
    }

    /// The tiles of a pass, one after another.
    fn pass(&self, pass: &Pass<'c>, columns: Columns, tile_rows: i64, tile: &impl Fn(Tile<'c>)) {
        let b = self.b;
        let Pass { panel, tiles: [from, to], group: [first, last], left, weight } = *pass;
        let count = b.sub(last, first);
        b.for_range(from, to, 1, |i| {
            let row = b.mul(i, b.i64c(tile_rows));
            let rows = b.smin(b.sub(self.rows, row), b.i64c(tile_rows));
            let turn = Turn { index: b.sub(i, first), count };
            tile(Tile { row, rows, panel, columns, turn, left, weight });
        });
    }

    /// Row blocks of `blocks` that pass by a panel together. Many rows of floats are written a few at a
    /// time, all panels of them, if nothing is in the way; the rows of a slice wait for no weight.
    fn shared_blocks(&self, blocks: Val<'c>) -> Val<'c> {
        let (b, desc) = (self.b, self.desc);
        let floats = desc.weight == Elem::I8 && desc.output == GemmOutput::F32;
        let most = b.i64c(desc.shared_blocks() as i64);
        if !floats || self.left_depth() > LEFT_STAYS {
            return most;
        }
        let slice = b.icmp(IntPredicate::SLE, blocks, b.i64c(SLICE_BLOCKS));
        b.select(slice, most, b.i64c(1))
    }

    /// `value / by`, rounded up.
    pub fn up(&self, value: Val<'c>, by: Val<'c>) -> Val<'c> {
        let most = self.b.sub(self.b.add(value, by), self.b.i64c(1));
        self.b.udiv(most, by)
    }

    /// The first tile of a row block: blocks get whole tiles and as equal a share of them as can be.
    fn first_tile(&self, tile_rows: i64, block: Val<'c>) -> Val<'c> {
        let b = self.b;
        let up = |by| self.up(self.rows, b.i64c(by));
        let (blocks, tiles) = (up(ROW_BLOCK as i64), up(tile_rows));
        b.udiv(b.mul(block, tiles), blocks)
    }

    /// The tiles of row blocks, from the first of one to that of another.
    fn tiles(&self, tile_rows: i64, blocks: [Val<'c>; 2]) -> [Val<'c>; 2] {
        blocks.map(|block| self.first_tile(tile_rows, block))
    }

    /// Emits `item` for a whole panel and, if it differs, for the last.
    fn columns(&self, panel: Val<'c>, item: impl Fn(Columns)) {
        let b = self.b;
        let panels = self.desc.panels();
        let full = Columns { groups: 2, count: PANEL as u32 };
        let count = (self.desc.n - (panels - 1) * PANEL) as u32;
        let last = Columns { groups: count.div_ceil(GROUP as u32), count };
        if last == full {
            item(full);
        } else if panels == 1 {
            item(last);
        } else {
            let is_last = b.icmp(IntPredicate::EQ, panel, b.i64c(panels as i64 - 1));
            b.either(is_last, || item(last), || item(full));
        }
    }

    /// Row stride of an epilogue operand in bytes, if it has one.
    pub fn operand_stride(&self, operand: Operand) -> Option<Val<'c>> {
        match operand {
            Operand::PerColumn => None,
            Operand::PerElement(stride) => Some(self.stride_bytes(stride, 4)),
        }
    }
}
