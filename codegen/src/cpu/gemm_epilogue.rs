//! What follows a gemm's accumulators: scale, expression, and the store as floats, as codes or,
//! for tests, as they are.

use fqc_ir::plan::GemmOutput;
use fqc_ir::quant::q_max;
use fqc_kernels::gemm::PANEL;
use fqc_kernels::pack::GROUP;
use fqc_kernels::{GemmDesc, Operand, Stride};

use inkwell::IntPredicate;

use super::build::{Builder, Ty, Val};
use super::expr;
use super::gemm::{Gemm, Tile};
use super::gemm_pairs::PairTables;
use super::quantize;

/// Columns and bytes from which on a result of floats goes past the caches: logits, which are larger
/// than those anyway, and would be fetched before they are overwritten.
const STREAM_COLUMNS: usize = 1 << 14;
const STREAM_BYTES: usize = 8 << 20;

/// Bytes of a cache line.
const LINE: i64 = 64;

/// Whether the result goes past the caches; `None` where it never does.
pub(super) fn streams<'c>(
    b: &Builder<'_, 'c>,
    desc: &GemmDesc,
    out: Val<'c>,
    rows: Val<'c>,
) -> Option<Val<'c>> {
    let whole = matches!(desc.out_stride, Stride::Const(stride) if stride * 4 % LINE == 0);
    if !whole || desc.n < STREAM_COLUMNS || desc.output != GemmOutput::F32 {
        return None;
    }
    let skew = b.and(b.address(out), b.i64c(LINE - 1));
    let many = b.i64c(STREAM_BYTES.div_ceil(4 * desc.n) as i64);
    let aligned = b.icmp(IntPredicate::EQ, skew, b.i64c(0));
    Some(b.and(aligned, b.icmp(IntPredicate::SGE, rows, many)))
}

/// A vector of consecutive columns of a tile.
#[derive(Clone, Copy)]
pub(super) struct Lane<'c> {
    /// First column within the panel.
    first: u32,
    /// Lanes that exist.
    pub count: u32,
    /// Set where these are not all.
    mask: Option<Val<'c>>,
}

/// What follows the accumulators of one tile: addresses and tables.
pub(super) struct Epilogue<'g, 'k, 'm, 'c> {
    pub gemm: &'g Gemm<'k, 'm, 'c>,
    pub vectors: Vec<Lane<'c>>,
    pub tables: Tables<'c>,
    pub pairs: Option<PairTables<'c>>,
    /// First row of the tile.
    row: Val<'c>,
    out: (Val<'c>, Val<'c>),
    operands: Vec<Option<(Val<'c>, Val<'c>)>>,
}

/// Which digits of codes columns hold.
#[derive(Clone, Copy)]
pub(super) enum Digits {
    First,
    /// What is taken by lower ones, the tables say.
    Any,
}

impl<'g, 'k, 'm, 'c> Epilogue<'g, 'k, 'm, 'c> {
    pub fn new(gemm: &'g Gemm<'k, 'm, 'c>, at: Tile<'c>) -> Self {
        let lanes = gemm.b.level().f32_lanes();
        let vectors = gemm.vectors(at, lanes);
        let tables = Tables::load(gemm, at, &vectors, lanes);
        let pairs = gemm.pairs.map(|buffers| PairTables::load(gemm, buffers, at.panel));
        let (out, operands) = (gemm.out_rows(at), gemm.operand_rows(at));
        Epilogue { gemm, vectors, tables, pairs, row: at.row, out, operands }
    }

    /// Whether all columns hold first digits; `None` if the result is no codes, or those of pairs.
    pub fn first_digits(&self) -> Option<Val<'c>> {
        let b = self.gemm.b;
        let bits = |&lo: &Val<'c>| b.bitcast(lo, b.i32v(b.lanes(lo)));
        let any = self.tables.lo.iter().map(bits).reduce(|x, y| b.or(x, y))?;
        let any = b.reduce(any, |x, y| b.or(x, y));
        Some(b.icmp(IntPredicate::EQ, any, b.i32c(0)))
    }

    /// Finishes rows from one on up to another; row `i` of the tile lies in scratch in row `place(i)`.
    fn each_row(&self, [from, to]: [Val<'c>; 2], place: impl Fn(Val<'c>) -> Val<'c>) {
        let b = self.gemm.b;
        let rows = |d| b.for_range(from, to, 1, |row| self.row(row, place(row), d));
        match self.first_digits() {
            Some(first) => b.either(first, || rows(Digits::First), || rows(Digits::Any)),
            None => rows(Digits::Any),
        }
    }

    /// Finishes row `row` of the tile, whose accumulators lie in scratch in row `place`.
    pub fn row(&self, row: Val<'c>, place: Val<'c>, digits: Digits) {
        let Epilogue { gemm, tables, .. } = self;
        let (b, desc) = (gemm.b, gemm.desc);
        let lanes = b.level().f32_lanes();
        if let Some(pairs) = &self.pairs {
            let sums = |v: usize| tables.scaled(gemm, self.sums(place, v), v);
            let half = self.vectors.len() / 2;
            let y: Vec<Val<'c>> = (0..half)
                .map(|v| expr::emit_f32(b, &desc.epilogue, &[sums(v), sums(v + half)], lanes))
                .collect();
            let start = b.offset(gemm.out, b.mul(b.add(self.row, row), self.out.1));
            return pairs.row(b, &y, start, self.out_of(row, 0));
        }
        for (v, lane) in self.vectors.iter().enumerate() {
            let to = self.out_of(row, lane.first);
            if desc.output == GemmOutput::I32 {
                gemm.store(self.sums(place, v), to, *lane, 4);
                continue;
            }
            let y = self.value(row, place, v);
            match desc.output {
                GemmOutput::Codes { signed, bits } => {
                    let byte = match digits {
                        Digits::First => tables.first_digit(gemm, y, v, (bits, signed)),
                        Digits::Any => tables.digit(gemm, y, v, (bits, signed), lanes),
                    };
                    gemm.store(byte, to, *lane, 1);
                }
                GemmOutput::F32 | GemmOutput::I32 => gemm.store(y, to, *lane, 4),
            }
        }
    }

    /// A vector of accumulators.
    fn sums(&self, place: Val<'c>, v: usize) -> Val<'c> {
        let (b, first) = (self.gemm.b, i64::from(self.vectors[v].first));
        let ty = b.vec(self.gemm.accumulator(), b.level().f32_lanes());
        let at = b.add(b.mul(place, b.i64c(4 * PANEL as i64)), b.i64c(4 * first));
        let sums = b.load(ty, b.offset(self.gemm.tile, at), 16);
        self.tables.start.get(v).map_or(sums, |&start| b.add(sums, start))
    }

    /// A vector of results before they become codes.
    pub fn value(&self, row: Val<'c>, place: Val<'c>, v: usize) -> Val<'c> {
        let Epilogue { gemm, tables, .. } = self;
        let (b, lanes, lane) = (gemm.b, gemm.b.level().f32_lanes(), self.vectors[v]);
        let mut args = vec![tables.scaled(gemm, self.sums(place, v), v)];
        for (i, operand) in self.operands.iter().enumerate() {
            args.push(match operand {
                None => tables.operands[i][v],
                Some((first, stride)) => {
                    let from = b.offset(*first, b.mul(row, *stride));
                    let from = b.offset(from, b.i64c(4 * i64::from(lane.first)));
                    gemm.load(b.f32v(lanes), from, lane)
                }
            });
        }
        expr::emit_f32(b, &gemm.desc.epilogue, &args, lanes)
    }

    /// Where column `first` of the panel lies in row `row` of the result.
    pub fn out_of(&self, row: Val<'c>, first: u32) -> Val<'c> {
        let b = self.gemm.b;
        let column = b.i64c(self.gemm.out_bytes() * i64::from(first));
        b.offset(b.offset(self.out.0, b.mul(row, self.out.1)), column)
    }
}

impl<'c> Gemm<'_, '_, 'c> {
    /// Finishes a tile whose accumulators are in scratch; row `i` of the tile lies there in row
    /// `place(i)`.
    pub fn epilogue(&self, at: Tile<'c>, place: impl Fn(Val<'c>) -> Val<'c>) {
        Epilogue::new(self, at).each_row([self.b.i64c(0), at.rows], place);
    }

    /// The same where rows lie in order: two at a time, if their codes can be packed.
    pub fn epilogue_in_order(&self, at: Tile<'c>) {
        let (b, epilogue) = (self.b, Epilogue::new(self, at));
        let even = b.and(at.rows, b.i64c(-2));
        let each = |from| epilogue.each_row([from, at.rows], |row| row);
        let Some(packing) = epilogue.packing() else {
            return each(b.i64c(0));
        };
        let from = b.select(packing.fits, even, b.i64c(0));
        b.when(packing.fits, || epilogue.packed_rows([b.i64c(0), even], &packing));
        each(from);
    }

    /// Asks for the lines of memory that the epilogue of a full tile will touch; the inner products
    /// hide the way there.
    pub fn prefetch(&self, at: Tile<'c>, rows: i64) {
        let b = self.b;
        // What goes past the caches is not asked for.
        let out = self.streams.is_none().then(|| (self.out_rows(at), self.out_bytes()));
        let operands = self.operand_rows(at).into_iter().flatten().map(|rows| (rows, 4));
        for ((first, stride), bytes) in out.into_iter().chain(operands) {
            for row in 0..rows {
                let line = b.offset(first, b.mul(stride, b.i64c(row)));
                for byte in (0..PANEL as i64 * bytes).step_by(64) {
                    b.prefetch(b.offset(line, b.i64c(byte)));
                }
            }
        }
    }

    /// Bytes of an element of the result.
    fn out_bytes(&self) -> i64 {
        if matches!(self.desc.output, GemmOutput::Codes { .. }) { 1 } else { 4 }
    }

    /// First element of a tile of the result, and the distance between its rows in bytes.
    fn out_rows(&self, at: Tile<'c>) -> (Val<'c>, Val<'c>) {
        let (b, bytes) = (self.b, self.out_bytes());
        let stride = self.stride_bytes(self.desc.out_stride, bytes);
        let columns = if self.pairs.is_some() { GROUP } else { PANEL } as i64;
        let panel = b.mul(at.panel, b.i64c(columns * bytes));
        (b.offset(self.rows_of(self.out, stride, at), panel), stride)
    }

    /// The same for each operand of the epilogue; `None` for one that is equal in all rows.
    fn operand_rows(&self, at: Tile<'c>) -> Vec<Option<(Val<'c>, Val<'c>)>> {
        let rows = |(&operand, &buffer)| {
            let stride = self.operand_stride(operand)?;
            Some((self.column_table(self.rows_of(buffer, stride, at), at.panel), stride))
        };
        self.desc.operands.iter().zip(&self.operands).map(rows).collect()
    }

    /// The vectors that cover the columns of a tile.
    fn vectors(&self, at: Tile<'c>, lanes: u32) -> Vec<Lane<'c>> {
        let b = self.b;
        (0..at.columns.count)
            .step_by(lanes as usize)
            .map(|first| {
                let count = lanes.min(at.columns.count - first);
                let mask = (count < lanes).then(|| b.mask_first(b.i64c(i64::from(count)), lanes));
                Lane { first, count, mask }
            })
            .collect()
    }

    /// `buffer` moved to the first row of a tile.
    fn rows_of(&self, buffer: Val<'c>, stride: Val<'c>, at: Tile<'c>) -> Val<'c> {
        self.b.offset(buffer, self.b.mul(at.row, stride))
    }

    fn load(&self, ty: Ty<'c>, from: Val<'c>, lane: Lane<'c>) -> Val<'c> {
        match lane.mask {
            Some(mask) => self.b.masked_load(ty, from, mask, self.b.zero(ty)),
            None => self.b.load(ty, from, 4),
        }
    }

    fn store(&self, value: Val<'c>, to: Val<'c>, lane: Lane<'c>, align: u32) {
        let b = self.b;
        match (lane.mask, self.streams) {
            (Some(_), _) => b.store_first(value, to, lane.count),
            (None, Some(streams)) => {
                b.either(streams, || b.stream(value, to), || b.store(value, to, align));
            }
            (None, None) => b.store(value, to, align),
        }
    }
}

/// Per-column tables of a tile, one value for each vector of columns.
pub(super) struct Tables<'c> {
    /// What accumulators lack; empty where they began with it.
    start: Vec<Val<'c>>,
    pub scale: Vec<Val<'c>>,
    /// Empty for operands that differ from row to row.
    pub operands: Vec<Vec<Val<'c>>>,
    pub inverse: Vec<Val<'c>>,
    pub lo: Vec<Val<'c>>,
}

impl<'c> Tables<'c> {
    fn load(gemm: &Gemm<'_, '_, 'c>, at: Tile<'c>, vectors: &[Lane<'c>], lanes: u32) -> Self {
        let b = gemm.b;
        // Tables are padded to whole groups, so that no mask is needed.
        assert!(lanes <= GROUP as u32, "a vector has at most the columns of a group");
        let typed = |buffer: Val<'c>, ty: Ty<'c>| -> Vec<Val<'c>> {
            let first = gemm.column_table(buffer, at.panel);
            vectors
                .iter()
                .map(|lane| {
                    let (group, at) = (lane.first / GROUP as u32, lane.first % GROUP as u32);
                    let at = i64::from(at) + gemm.groups().2 * i64::from(group);
                    b.load(ty, b.offset(first, b.i64c(4 * at)), 4)
                })
                .collect()
        };
        let table = |buffer: Val<'c>| typed(buffer, b.f32v(lanes));
        let start = gemm.start.filter(|_| gemm.from_zero);
        let all = |buffer: Option<Val<'c>>| buffer.map(table).unwrap_or_default();
        let scaled = gemm.desc.output != GemmOutput::I32;
        Tables {
            start: start.map(|start| typed(start, b.i32v(lanes))).unwrap_or_default(),
            scale: all(gemm.scale.filter(|_| scaled)),
            operands: gemm
                .desc
                .operands
                .iter()
                .zip(&gemm.operands)
                .map(|(operand, &buffer)| match operand {
                    Operand::PerColumn if scaled => table(buffer),
                    _ => Vec::new(),
                })
                .collect(),
            inverse: all(gemm.inverse),
            lo: all(gemm.lo),
        }
    }

    /// Accumulators as the first argument of the expression.
    fn scaled(&self, gemm: &Gemm<'_, '_, 'c>, sums: Val<'c>, vector: usize) -> Val<'c> {
        match self.scale.get(vector) {
            Some(&scale) => gemm.b.fmul(gemm.b.sitofp(sums, scale.get_type()), scale),
            None => sums,
        }
    }

    /// The first digit of the code of `y`, as the byte that is stored.
    fn first_digit(
        &self,
        gemm: &Gemm<'_, '_, 'c>,
        y: Val<'c>,
        vector: usize,
        (bits, signed): (u8, bool),
    ) -> Val<'c> {
        let x = gemm.b.fmul(y, self.inverse[vector]);
        quantize::nearest(gemm.b, x, f64::from(q_max(bits, signed)), signed)
    }

    /// One digit of the code of `y`, as the byte that is stored. Minimum and maximum give their
    /// second operand for a NaN, which so becomes zero.
    fn digit(
        &self,
        gemm: &Gemm<'_, '_, 'c>,
        y: Val<'c>,
        vector: usize,
        (bits, signed): (u8, bool),
        lanes: u32,
    ) -> Val<'c> {
        let b = gemm.b;
        let ty = y.get_type();
        let wide = b.roundeven(b.fmul(y, self.inverse[vector]));
        let size = if signed { b.fabs(wide) } else { wide };
        let above = b.fmax(b.fsub(size, self.lo[vector]), b.zero(ty));
        let digit = b.fmin(above, b.fconst(ty, f64::from(q_max(bits, signed))));
        let digit = if signed { b.copysign(digit, wide) } else { digit };
        let integer = b.fptosi(digit, b.i32v(lanes));
        let offset = if signed { 128 } else { 0 };
        let byte = b.add(integer, b.iconst(integer.get_type(), offset));
        b.trunc(byte, b.vec(b.int(8), lanes))
    }
}
