//! Loops that kernels share: over the rows of a strided nest, over the elements of a row in
//! vectors with a tail, and folds of a row. Folds of f32 use sixteen lanes at every level, so that
//! all levels give the same bits.

use fqc_ir::types::Elem;
use inkwell::IntPredicate::{EQ, SLT};

use super::build::{Builder, Val};
use super::expr::{self, Typed};
use super::spec::Size;

/// Lanes of a fold, at every level.
pub const FOLD_LANES: u32 = 16;

/// Independent partial results of a fold.
const FOLD_UNROLL: usize = 4;

/// A walk over `shape`: sizes of the axes, and for each view the stride of each axis, in elements.
pub struct Walk<'c> {
    pub shape: Vec<Val<'c>>,
    pub strides: Vec<Vec<Val<'c>>>,
}

impl<'c> Walk<'c> {
    pub fn new(b: &Builder<'_, 'c>, shape: &[Size], strides: &[&[Size]]) -> Walk<'c> {
        let vals = |sizes: &[Size]| sizes.iter().map(|s| s.val(b)).collect::<Vec<_>>();
        Walk { shape: vals(shape), strides: strides.iter().map(|s| vals(s)).collect() }
    }

    /// Index along each axis of the position `row` in row-major order; the first is not reduced.
    pub fn unravel(&self, b: &Builder<'_, 'c>, row: Val<'c>) -> Vec<Val<'c>> {
        let mut left = row;
        let mut index = vec![row; self.shape.len()];
        for axis in (0..self.shape.len()).rev() {
            if axis == 0 {
                index[0] = left;
                continue;
            }
            // A size of zero means no rows; the division must not trap all the same.
            let n = b.umax(self.shape[axis], b.i64c(1));
            let next = b.udiv(left, n);
            index[axis] = b.sub(left, b.mul(next, n));
            left = next;
        }
        index
    }

    /// Element offset of every view at `index`.
    pub fn offsets(&self, b: &Builder<'_, 'c>, index: &[Val<'c>]) -> Vec<Val<'c>> {
        self.strides
            .iter()
            .map(|view| {
                view.iter()
                    .zip(index)
                    .fold(b.i64c(0), |sum, (&stride, &i)| b.add(sum, b.mul(i, stride)))
            })
            .collect()
    }

    /// Calls `body` with each row of `[begin, end)` and the offsets of the views there. Divides
    /// once; afterwards it counts like an odometer.
    pub fn rows(
        &self,
        b: &Builder<'_, 'c>,
        begin: Val<'c>,
        end: Val<'c>,
        body: impl FnOnce(Val<'c>, &[Val<'c>]),
    ) {
        let rank = self.shape.len();
        if rank < 2 {
            b.for_range(begin, end, 1, |row| body(row, &self.offsets(b, &[row])));
            return;
        }
        let index = self.unravel(b, begin);
        let offsets = self.offsets(b, &index);
        let init: Vec<_> = index[1..].iter().chain(&offsets).copied().collect();
        let zero = b.i64c(0);
        b.for_carried(begin, end, 1, &init, |row, carried| {
            let (index, offsets) = carried.split_at(rank - 1);
            body(row, offsets);
            let (mut index, mut offsets) = (index.to_vec(), offsets.to_vec());
            let mut carry: Option<Val<'c>> = None;
            for axis in (0..rank).rev() {
                let moves = |x: Val<'c>| carry.map_or(x, |c| b.select(c, x, zero));
                for (offset, view) in offsets.iter_mut().zip(&self.strides) {
                    *offset = b.add(*offset, moves(view[axis]));
                }
                if axis == 0 {
                    break;
                }
                let next = b.add(index[axis - 1], moves(b.i64c(1)));
                let wraps = b.icmp(EQ, next, self.shape[axis]);
                index[axis - 1] = b.select(wraps, zero, next);
                for (offset, view) in offsets.iter_mut().zip(&self.strides) {
                    let span = b.mul(view[axis], self.shape[axis]);
                    *offset = b.sub(*offset, b.select(wraps, span, zero));
                }
                carry = Some(wraps);
            }
            index.into_iter().chain(offsets).collect()
        });
    }

    /// Calls `body` with the offsets of the views at `count` rows at a time, a power of two, and with
    /// those of one for the rest, or for all if the rows do not lie at equal distances.
    pub fn groups(
        &self,
        b: &Builder<'_, 'c>,
        [begin, end]: [Val<'c>; 2],
        count: i64,
        body: impl Fn(&[Vec<Val<'c>>]),
    ) {
        let each = |first| self.rows(b, first, end, |_, offsets| body(&[offsets.to_vec()]));
        if self.shape.len() > 1 {
            return each(begin);
        }
        let whole = b.add(begin, b.and(b.sub(end, begin), b.i64c(-count)));
        b.for_range(begin, whole, count, |row| {
            let row = |i| b.add(row, b.i64c(i));
            let rows: Vec<_> = (0..count).map(|i| self.offsets(b, &[row(i)])).collect();
            body(&rows);
        });
        each(whole);
    }
}

/// Some consecutive elements of a row.
#[derive(Clone, Copy)]
pub struct Chunk<'c> {
    pub lanes: u32,
    /// Set where only the first lanes exist.
    pub mask: Option<Val<'c>>,
}

/// What is done with the elements that fill no whole vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    Masked,
    Scalar,
}

/// A row of a view: the address of its first element and the distance to the next.
#[derive(Clone, Copy)]
pub struct Row<'c> {
    pub elem: Elem,
    pub base: Val<'c>,
    pub step: Step<'c>,
}

/// Distance between the elements of a row.
#[derive(Clone, Copy)]
pub enum Step<'c> {
    Unit,
    Same,
    By(Val<'c>),
}

impl<'c> Step<'c> {
    pub fn new(b: &Builder<'_, 'c>, size: Size) -> Step<'c> {
        match size {
            Size::Const(1) => Step::Unit,
            Size::Const(0) => Step::Same,
            other => Step::By(other.val(b)),
        }
    }
}

impl<'c> Row<'c> {
    /// The row that begins `offset` elements behind `buffer`.
    pub fn new(
        b: &Builder<'_, 'c>,
        elem: Elem,
        buffer: Val<'c>,
        offset: Val<'c>,
        step: Step<'c>,
    ) -> Row<'c> {
        Row { elem, base: b.index(buffer, expr::memory_type(b, elem, 1), offset), step }
    }

    /// Address of element `i`.
    pub fn at(&self, b: &Builder<'_, 'c>, i: Val<'c>) -> Val<'c> {
        let i = match self.step {
            Step::Unit => i,
            Step::Same => return self.base,
            Step::By(stride) => b.mul(i, stride),
        };
        b.index(self.base, expr::memory_type(b, self.elem, 1), i)
    }

    /// One element.
    pub fn get(&self, b: &Builder<'_, 'c>, i: Val<'c>) -> Typed<'c> {
        self.read(b, i, Chunk { lanes: 1, mask: None })
    }

    /// Elements from `i`; lanes beyond the mask hold anything.
    pub fn read(&self, b: &Builder<'_, 'c>, i: Val<'c>, chunk: Chunk<'c>) -> Typed<'c> {
        let bytes = self.elem.bits() / 8;
        let one = expr::memory_type(b, self.elem, 1);
        let ty = expr::memory_type(b, self.elem, chunk.lanes);
        let at = self.at(b, i);
        let memory = match self.step {
            _ if chunk.lanes == 1 => b.load(one, at, bytes),
            Step::Unit => match chunk.mask {
                Some(mask) => b.masked_load(ty, at, mask, b.zero(ty)),
                None => b.load(ty, at, bytes),
            },
            Step::Same => b.splat(b.load(one, at, bytes), chunk.lanes),
            Step::By(stride) => {
                assert!(chunk.mask.is_none(), "strided rows have scalar tails");
                let mut x = b.poison(ty);
                let mut from = at;
                for lane in 0..chunk.lanes {
                    x = b.insert(x, b.load(one, from, bytes), lane);
                    from = b.index(from, one, stride);
                }
                x
            }
        };
        Typed { elem: self.elem, val: expr::from_memory(b, self.elem, memory) }
    }

    /// Stores elements from `i` on; lanes beyond the mask are left alone.
    pub fn write(&self, b: &Builder<'_, 'c>, i: Val<'c>, chunk: Chunk<'c>, value: Val<'c>) {
        let bytes = self.elem.bits() / 8;
        let memory = expr::to_memory(b, self.elem, value);
        let at = self.at(b, i);
        match self.step {
            _ if chunk.lanes == 1 => b.store(memory, at, bytes),
            Step::Unit => match chunk.mask {
                Some(mask) => b.masked_store(memory, at, mask),
                None => b.store(memory, at, bytes),
            },
            // A row of one element, for no other is written without a stride.
            Step::Same => b.store(b.extract(memory, 0), at, bytes),
            Step::By(_) => {
                assert!(chunk.mask.is_none(), "strided rows have scalar tails");
                for lane in 0..chunk.lanes {
                    let i = b.add(i, b.i64c(lane.into()));
                    b.store(b.extract(memory, lane), self.at(b, i), bytes);
                }
            }
        }
    }
}

/// The tail that suits these rows at the level of `b`: AVX2 masks only words and longer.
pub fn tail_for(b: &Builder<'_, '_>, rows: &[Row<'_>]) -> Tail {
    let strided = rows.iter().any(|r| matches!(r.step, Step::By(_)));
    let short = rows.iter().any(|r| matches!(r.step, Step::Unit) && r.elem.bits() < 32);
    if strided || (short && !b.level().has_avx512()) { Tail::Scalar } else { Tail::Masked }
}

/// Calls `body` for the elements `[begin, end)`, whole vectors first.
pub fn span<'c>(
    b: &Builder<'_, 'c>,
    begin: Val<'c>,
    end: Val<'c>,
    lanes: u32,
    tail: Tail,
    body: impl Fn(Val<'c>, Chunk<'c>),
) {
    let whole = b.and(b.sub(end, begin), b.i64c(-i64::from(lanes)));
    let middle = b.add(begin, whole);
    b.for_range(begin, middle, lanes.into(), |i| body(i, Chunk { lanes, mask: None }));
    match tail {
        Tail::Masked => b.when(b.icmp(SLT, middle, end), || {
            let mask = b.mask_first(b.sub(end, middle), lanes);
            body(middle, Chunk { lanes, mask: Some(mask) });
        }),
        Tail::Scalar => {
            b.for_range(middle, end, 1, |i| body(i, Chunk { lanes: 1, mask: None }));
        }
    }
}

/// Folds `term` over `[0, n)`. `identity` is a scalar; the order of the operations depends on `n`
/// and the tail only.
pub fn fold<'c>(
    b: &Builder<'_, 'c>,
    n: Val<'c>,
    tail: Tail,
    identity: Val<'c>,
    combine: impl Fn(Val<'c>, Val<'c>) -> Val<'c>,
    term: impl Fn(Val<'c>, Chunk<'c>) -> Val<'c>,
) -> Val<'c> {
    folds(b, n, tail, identity, combine, 1, |_, i, chunk| term(i, chunk))[0]
}

/// As many folds at once, of `term(0, ..)` and so on, so that they do not wait for one another: each
/// in the order of [`fold`].
pub fn folds<'c>(
    b: &Builder<'_, 'c>,
    n: Val<'c>,
    tail: Tail,
    identity: Val<'c>,
    combine: impl Fn(Val<'c>, Val<'c>) -> Val<'c>,
    count: usize,
    term: impl Fn(usize, Val<'c>, Chunk<'c>) -> Val<'c>,
) -> Vec<Val<'c>> {
    let lanes = FOLD_LANES;
    let whole = Chunk { lanes, mask: None };
    let block = i64::from(lanes) * FOLD_UNROLL as i64;
    let neutral = b.splat(identity, lanes);
    let blocks = b.and(n, b.i64c(-block));
    let init = vec![neutral; FOLD_UNROLL * count];
    let parts = b.for_carried(b.i64c(0), blocks, block, &init, |i, parts| {
        let step = |k: usize| b.add(i, b.i64c(k as i64 * i64::from(lanes)));
        let part = |(at, &p): (usize, &Val<'c>)| {
            combine(p, term(at / FOLD_UNROLL, step(at % FOLD_UNROLL), whole))
        };
        parts.iter().enumerate().map(part).collect()
    });
    let parts: Vec<&[Val<'c>]> = parts.chunks_exact(FOLD_UNROLL).collect();
    let vectors = b.and(n, b.i64c(-i64::from(lanes)));
    let first: Vec<Val<'c>> = parts.iter().map(|parts| parts[0]).collect();
    let mut sums = b.for_carried(blocks, vectors, lanes.into(), &first, |i, sums| {
        sums.iter().enumerate().map(|(at, &sum)| combine(sum, term(at, i, whole))).collect()
    });
    if tail == Tail::Masked {
        let rest = b.icmp(SLT, vectors, n);
        let more = |at: usize, sum: Val<'c>| {
            let mask = b.mask_first(b.sub(n, vectors), lanes);
            let value = term(at, vectors, Chunk { lanes, mask: Some(mask) });
            combine(sum, b.select(mask, value, neutral))
        };
        sums = b.if_else(
            rest,
            || sums.iter().enumerate().map(|(at, &sum)| more(at, sum)).collect(),
            || sums.clone(),
        );
    }
    let whole = |(&sum, parts): (&Val<'c>, &&[Val<'c>])| {
        let sum = combine(combine(sum, parts[1]), combine(parts[2], parts[3]));
        b.reduce(sum, &combine)
    };
    let sums: Vec<Val<'c>> = sums.iter().zip(&parts).map(whole).collect();
    if tail == Tail::Masked {
        return sums;
    }
    b.for_carried(vectors, n, 1, &sums, |i, sums| {
        let one = Chunk { lanes: 1, mask: None };
        sums.iter().enumerate().map(|(at, &sum)| combine(sum, term(at, i, one))).collect()
    })
}
