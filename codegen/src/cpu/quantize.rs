//! Quantise-and-flatten of a row of f32 into codes as bytes: the digits of all base channels, the
//! further digits of the large ones gathered from the row in units of a step, padding. The arithmetic
//! is that of `fqc_ir::quant`, bit for bit.

use std::ops::Range;

use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{RowQuantize, Step, View};
use fqc_ir::quant::{WIDE_MAX, q_max};
use fqc_ir::types::Elem;
use inkwell::FloatPredicate::{ORD, UNO};

use super::CpuError;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::expr::{self, Typed};
use super::math;
use super::pointwise::TASK_ELEMENTS;
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::walk::{self, Chunk, FOLD_LANES, Row, Step as Stride, Tail, Walk};

/// Codes that are packed and stored together, where sixteen floats are a register.
const BLOCK: usize = 64;

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantize {
    expr: Expr,
    quantize: RowQuantize,
    rows: Vec<Size>,
    /// The expression's arguments, then the result.
    views: Vec<ViewSpec>,
    steps: Vec<Size>,
}

/// Takes a step apart.
pub fn call(
    step: &Step,
    expr: &Expr,
    quantize: &RowQuantize,
    elems: &[Elem],
) -> Result<Call, CpuError> {
    let inputs = step.args.len().checked_sub(3);
    let inputs = inputs.ok_or_else(|| unsupported(step, "has no tables"))?;
    check(step, quantize, &step.args[inputs..], &step.results[0])?;
    if expr::check(expr, &elems[..inputs])? != Elem::F32 {
        return Err(unsupported(step, "only f32 is quantised; cast before"));
    }
    let out = &step.results[0];
    let views: Vec<&View> = step.args[..inputs].iter().chain([out]).collect();
    let mut kinds = elems[..inputs].to_vec();
    kinds.push(Elem::U8);
    let rank = out.shape.len() - 1;
    let outer: Vec<&[Dim]> = views.iter().map(|v| &v.strides[..rank]).collect();
    let rows = Nest::new(&out.shape[..rank], &outer).collapse();
    let mut sizes = Sizes::default();
    let last: Vec<Dim> = views.iter().map(|v| v.strides[rank].clone()).collect();
    let kernel = Quantize {
        expr: expr.clone(),
        quantize: quantize.clone(),
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &views, &kinds, &rows.strides),
        steps: sizes.all(&last),
    };
    let grain = (TASK_ELEMENTS / quantize.padded.max(1) as i64).max(1);
    let ops = out.count() * Dim::from(expr.size() as i64 + 4);
    let call = Call::new(Spec::Quantize(kernel), sizes, rows.count(), grain, ops);
    Ok(call.with_scratch(scratch_bytes(quantize)))
}

/// Bytes for the floats of a row in units of a step, if any are needed.
pub(super) fn scratch_bytes(quantize: &RowQuantize) -> Dim {
    let wide = if quantize.tail > 0 { quantize.base.next_multiple_of(16) * 4 } else { 0 };
    Dim::from(wide)
}

/// Checks the tables and the result of a row quantiser.
pub(super) fn check(
    step: &Step,
    quantize: &RowQuantize,
    tables: &[View],
    out: &View,
) -> Result<(), CpuError> {
    let RowQuantize { base, tail, padded, .. } = *quantize;
    let contiguous = tables.iter().all(|t| t.strides.len() == 1 && t.is_contiguous());
    if tables.len() != 3 || !contiguous {
        return Err(unsupported(step, "wants three contiguous tables"));
    }
    let one = Dim::one();
    if out.strides.last() != Some(&one) || out.shape.last() != Some(&Dim::from(padded)) {
        return Err(unsupported(step, "codes are contiguous along the channels"));
    }
    if base + tail > padded {
        return Err(unsupported(step, "the channels exceed the padded row"));
    }
    Ok(())
}

/// The tables of a row quantiser, scratch included.
pub(super) struct Tables<'c> {
    inverse: Row<'c>,
    source: Val<'c>,
    below: Row<'c>,
    /// Memory for a row in units of a step.
    wide: Val<'c>,
}

impl<'c> Tables<'c> {
    /// The tables in the buffers from `first` on.
    pub fn new(b: &Builder<'_, 'c>, first: u32) -> Tables<'c> {
        let inverse = Row { elem: Elem::F32, base: b.buf(first), step: Stride::Unit };
        let source = b.buf(first + 1);
        let below = Row { elem: Elem::F32, base: b.buf(first + 2), step: Stride::Unit };
        Tables { inverse, source, below, wide: b.scratch() }
    }
}

/// Codes as bytes, from floats that are integers of small magnitude.
pub(super) fn bytes<'c>(b: &Builder<'_, 'c>, code: Val<'c>, signed: bool) -> Val<'c> {
    let lanes = b.lanes(code);
    let int = b.i32v(lanes);
    let code = b.fptosi(code, int);
    let offset = if signed { b.add(code, b.iconst(int, 128)) } else { code };
    b.trunc(offset, b.vec(b.int(8), lanes))
}

/// Codes as bytes, of floats in units of a step: rounded half to even, cut to the codes there are;
/// NaN becomes zero, with AVX2 because it becomes the integer 2^31, whose lowest byte is zero.
pub(super) fn nearest<'c>(b: &Builder<'_, 'c>, x: Val<'c>, top: f64, signed: bool) -> Val<'c> {
    let lanes = b.lanes(x);
    let int = b.i32v(lanes);
    let near = |x: Val<'c>| clamp(b, x, if signed { -top } else { 0.0 }, top);
    let eight = |x: Val<'c>| b.call("llvm.x86.avx.cvt.ps2dq.256", &[], &[near(x)]);
    let code = match lanes {
        16 if b.level().has_avx512() => nearest_16(b, x, top, signed),
        16 => b.concat(eight(b.slice(x, 0, 8)), eight(b.slice(x, 8, 8))),
        8 => eight(x),
        _ => {
            let x = b.select(b.fcmp(UNO, x, x), b.zero(x.get_type()), x);
            b.fptosi(b.roundeven(near(x)), int)
        }
    };
    let offset = if signed { b.add(code, b.iconst(int, 128)) } else { code };
    b.trunc(offset, b.vec(b.int(8), lanes))
}

/// The same as integers of 32 bits, of sixteen floats with AVX-512; NaN becomes zero.
pub(super) fn nearest_16<'c>(b: &Builder<'_, 'c>, x: Val<'c>, top: f64, signed: bool) -> Val<'c> {
    let near = if signed { math::nearer_zero(b, x, top) } else { clamp(b, x, 0.0, top) };
    integers(b, near, b.bitcast(b.fcmp(ORD, x, x), b.int(16)))
}

/// The nearest integers of 32 bits, halves to even, of sixteen floats that have such; zero where the
/// mask is.
pub(super) fn integers<'c>(b: &Builder<'_, 'c>, x: Val<'c>, mask: Val<'c>) -> Val<'c> {
    let half_to_even = b.i32c(8);
    let args = [x, b.zero(b.i32v(FOLD_LANES)), mask, half_to_even];
    b.call("llvm.x86.avx512.mask.cvtps2dq.512", &[], &args)
}

/// Two vectors of integers of 32 bits as one of sixteen bits each, cut. Packing works within quarters of
/// a register: each has four of either vector.
pub(super) fn packed_words<'c>(b: &Builder<'_, 'c>, two: &[Val<'c>]) -> Val<'c> {
    b.call("llvm.x86.avx512.packssdw.512", &[], two)
}

/// Two vectors of [`packed_words`] as one of bytes, cut; each quarter has four of all four vectors.
pub(super) fn packed_bytes<'c>(b: &Builder<'_, 'c>, two: &[Val<'c>], signed: bool) -> Val<'c> {
    let name = if signed { "packsswb" } else { "packuswb" };
    b.call(&format!("llvm.x86.avx512.{name}.512"), &[], two)
}

/// Of some of the four vectors that became [`packed_bytes`], the fours of these in order.
pub(super) fn fours_of(vectors: Range<u32>) -> Vec<u32> {
    vectors.flat_map(|v| (0..4).map(move |quarter| 4 * quarter + v)).collect()
}

/// `min(max(x, low), high)`; NaN passes.
pub(super) fn clamp<'c>(b: &Builder<'_, 'c>, x: Val<'c>, low: f64, high: f64) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    b.fmin(c(high), b.fmax(c(low), x))
}

/// Writes one row of codes at `out`; `y` gives the floats.
pub(super) fn row<'c>(
    b: &Builder<'_, 'c>,
    q: &RowQuantize,
    tables: &Tables<'c>,
    out: Val<'c>,
    tail: Tail,
    y: impl Fn(Val<'c>, Chunk<'c>) -> Val<'c>,
) {
    let top = f64::from(q_max(q.bits, q.signed));
    let wide_max = f64::from(WIDE_MAX);
    let base = b.i64c(q.base as i64);
    let wide_row = Row { elem: Elem::F32, base: tables.wide, step: Stride::Unit };
    let code_row = Row { elem: Elem::U8, base: out, step: Stride::Unit };
    let scaled = |i: Val<'c>, chunk: Chunk<'c>| {
        let x = b.fmul(y(i, chunk), tables.inverse.read(b, i, chunk).val);
        if q.tail > 0 {
            wide_row.write(b, i, chunk, x);
        }
        x
    };
    let blocks = if b.level().has_avx512() { q.base / BLOCK * BLOCK } else { 0 };
    b.for_range(b.i64c(0), b.i64c(blocks as i64), BLOCK as i64, |i| {
        let codes = [0, 1, 2, 3].map(|v| {
            let chunk = Chunk { lanes: FOLD_LANES, mask: None };
            let x = scaled(b.add(i, b.i64c(v * i64::from(FOLD_LANES))), chunk);
            nearest_16(b, x, top, q.signed)
        });
        let bytes = packed_bytes(b, &[0, 2].map(|i| packed_words(b, &codes[i..i + 2])), q.signed);
        let bytes = if q.signed { b.xor(bytes, b.iconst(bytes.get_type(), 128)) } else { bytes };
        let fours = b.bitcast(bytes, b.i32v(FOLD_LANES));
        b.store(b.shuffle(fours, fours, &fours_of(0..4)), b.offset(out, i), 1);
    });
    walk::span(b, b.i64c(blocks as i64), base, FOLD_LANES, tail, |i, chunk| {
        let code = nearest(b, scaled(i, chunk), top, q.signed);
        // What a whole vector writes too much, tail and padding overwrite.
        let room = q.base.next_multiple_of(FOLD_LANES as usize) <= q.padded;
        let store = if room { Chunk { mask: None, ..chunk } } else { chunk };
        code_row.write(b, i, store, code);
    });
    let digits = |first: Val<'c>, count: u32| {
        let mask = b.mask_first(b.i64c(count.into()), FOLD_LANES);
        let part = Chunk { lanes: FOLD_LANES, mask: (count < FOLD_LANES).then_some(mask) };
        let x = gather(b, tables, first, count, part);
        let wide = b.select(b.fcmp(UNO, x, x), b.zero(x.get_type()), b.roundeven(x));
        let wide = clamp(b, wide, if q.signed { -wide_max } else { 0.0 }, wide_max);
        let below = tables.below.read(b, first, part).val;
        let digit = clamp(b, b.fsub(b.fabs(wide), below), 0.0, top);
        let code = bytes(b, b.copysign(digit, wide), q.signed);
        code_row.write(b, b.add(base, first), part, code);
    };
    let whole = q.tail as i64 & -i64::from(FOLD_LANES);
    b.for_range(b.i64c(0), b.i64c(whole), FOLD_LANES.into(), |t| digits(t, FOLD_LANES));
    if q.tail as i64 > whole {
        digits(b.i64c(whole), (q.tail as i64 - whole) as u32);
    }
    fill(b, out, q.base + q.tail, q.padded, if q.signed { 128 } else { 0 });
}

/// Those floats of a row, in units of a step, that the codes from `first` of the tail are digits of.
fn gather<'c>(
    b: &Builder<'_, 'c>,
    tables: &Tables<'c>,
    first: Val<'c>,
    count: u32,
    part: Chunk<'c>,
) -> Val<'c> {
    let ty = b.f32v(FOLD_LANES);
    if b.level().has_avx512() {
        let source = Row { elem: Elem::I32, base: tables.source, step: Stride::Unit };
        let source = source.read(b, first, part).val;
        let mask = b.mask_first(b.i64c(count.into()), FOLD_LANES);
        let args = [b.zero(ty), tables.wide, source, mask, b.i32c(4)];
        return b.call("llvm.x86.avx512.mask.gather.dps.512", &[], &args);
    }
    (0..count).fold(b.zero(ty), |all, lane| {
        let t = b.add(first, b.i64c(lane.into()));
        let from = b.load(b.int(32), b.index(tables.source, b.int(32), t), 4);
        let from = b.sext(from, b.int(64));
        b.insert(all, b.load(b.f32(), b.index(tables.wide, b.f32(), from), 4), lane)
    })
}

/// Sets the bytes `[from, to)` behind `out`.
fn fill<'c>(b: &Builder<'_, 'c>, out: Val<'c>, from: usize, to: usize, value: i64) {
    let put = |at: Val<'c>, lanes: u32| {
        let ty = b.vec(b.int(8), lanes);
        b.store(b.iconst(ty, value), b.offset(out, at), 1);
    };
    let blocks = from + (to - from) / 64 * 64;
    b.for_range(b.i64c(from as i64), b.i64c(blocks as i64), 64, |at| put(at, 64));
    let mut at = blocks;
    for lanes in [32u32, 16, 8, 4, 2, 1] {
        if at + lanes as usize <= to {
            put(b.i64c(at as i64), lanes);
            at += lanes as usize;
        }
    }
}

impl Quantize {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let strides: Vec<&[Size]> = self.views.iter().map(|v| v.strides.as_slice()).collect();
        let walk = Walk::new(b, &self.rows, &strides);
        let inputs = self.views.len() - 1;
        let buffers: Vec<_> = (0..inputs).map(|i| b.buf(i as u32)).collect();
        let tables = Tables::new(b, inputs as u32);
        let out = b.buf(inputs as u32 + 3);
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let steps: Vec<_> = self.steps.iter().map(|&s| Stride::new(b, s)).collect();
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let rows: Vec<Row<'_>> = (0..inputs)
                .map(|i| {
                    let offset = b.add(starts[i], offsets[i]);
                    Row::new(b, self.views[i].elem, buffers[i], offset, steps[i])
                })
                .collect();
            let tail = walk::tail_for(b, &rows);
            let out = b.offset(out, b.add(starts[inputs], offsets[inputs]));
            row(b, &self.quantize, &tables, out, tail, |i, chunk| {
                let args: Vec<Typed<'_>> = rows.iter().map(|r| r.read(b, i, chunk)).collect();
                expr::emit(b, &self.expr, &args, chunk.lanes).val
            });
        });
    }
}
