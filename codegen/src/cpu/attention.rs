//! Attention over a block of queries at a time. The queries lie across the vector lanes: scores are
//! kept transposed, \[key\]\[query\], in scratch, so that the softmax needs no sum across lanes, keys
//! and values are read where they are, and only the block of queries is transposed. Where tile registers
//! multiply, all of this is otherwise (`attention_tiles.rs`).

use fqbin::Level;
use fqc_ir::dim::{self, Dim};
use fqc_ir::plan::{Precision, Step, View};
use fqc_ir::types::Elem;
use inkwell::IntPredicate::EQ;

use super::CpuError;
use super::attention_bf16::SLACK;
use super::attention_parts::Block;
use super::attention_tiles::DEPTH;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::spec::{Size, Sizes};
use super::tiles::{Native, TileOps};

/// Queries of a work item.
pub(super) const QUERIES: i64 = 32;

/// Where things lie in the scratch of a thread.
pub(super) struct Scratch<'c> {
    /// Queries \[channel\]\[query\].
    pub queries: Val<'c>,
    /// 1 / sum of each query.
    pub inverse: Val<'c>,
    /// Scores \[key\]\[query\].
    pub scores: Val<'c>,
    /// In pairs: keys and values of the head, the mask if there is one for all heads.
    pub keys: Val<'c>,
    pub values: Val<'c>,
    pub mask: Val<'c>,
}

impl<'c> Scratch<'c> {
    fn new(b: &Builder<'_, 'c>, spec: &Attention, keys: Val<'c>) -> Scratch<'c> {
        let [queries, inverse, scores, keys, values, mask] = lay_out(b, spec.regions(), keys);
        Scratch { queries, inverse, scores, keys, values, mask }
    }
}

/// Bytes of a part of scratch: some, and some for each key that there is room for.
#[derive(Clone, Copy)]
pub(super) struct Region {
    pub fixed: i64,
    pub per_key: i64,
}

/// Where regions begin that follow each other, for so many keys.
pub(super) fn lay_out<'c, const N: usize>(
    b: &Builder<'_, 'c>,
    regions: [Region; N],
    keys: Val<'c>,
) -> [Val<'c>; N] {
    let stored = stored(b, keys);
    let mut next = b.scratch();
    regions.map(|region| {
        let place = next;
        let bytes = b.add(b.mul(stored, b.i64c(region.per_key)), b.i64c(region.fixed));
        next = b.offset(place, bytes);
        place
    })
}

/// Bytes of regions together.
fn total(regions: &[Region]) -> Region {
    let sum = |part: fn(&Region) -> i64| regions.iter().map(part).sum();
    Region { fixed: sum(|r| r.fixed), per_key: sum(|r| r.per_key) }
}

/// Keys that scratch has room for.
pub(super) fn stored<'c>(b: &Builder<'_, 'c>, keys: Val<'c>) -> Val<'c> {
    b.and(b.add(keys, b.i64c(DEPTH - 1)), b.i64c(-DEPTH))
}

/// Arguments and result.
pub(super) struct Operands<'c> {
    buffers: [Val<'c>; 5],
    /// Of q, k, v, the result, and the mask.
    pub strides: Vec<Vec<Val<'c>>>,
}

impl<'c> Operands<'c> {
    pub fn new(b: &Builder<'_, 'c>, spec: &Attention) -> Operands<'c> {
        let out = if spec.mask { 4 } else { 3 };
        let mask = if spec.mask { 3 } else { 0 };
        let strides = spec.strides.iter().map(|s| s.iter().map(|s| s.val(b)).collect()).collect();
        Operands { buffers: [0, 1, 2, out, mask].map(|i| b.buf(i)), strides }
    }

    /// Address of an element by its first three indices.
    pub fn at(&self, b: &Builder<'_, 'c>, view: usize, index: [Val<'c>; 3]) -> Val<'c> {
        let parts = index.iter().zip(&self.strides[view]);
        let offset = parts.fold(b.i64c(0), |sum, (&i, &s)| b.add(sum, b.mul(i, s)));
        b.index(self.buffers[view], b.f32(), offset)
    }
}

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    pub(super) scale: f32,
    pub(super) causal: bool,
    pub(super) mask: bool,
    pub(super) precision: Precision,
    pub(super) heads: Size,
    pub(super) groups: Size,
    pub(super) queries: Size,
    pub(super) keys: Size,
    /// Channels of a query and of a value.
    pub(super) depth: i64,
    pub(super) width: i64,
    /// Strides of q, k, v, result, and of the mask if there is one, along \[b, h or g, s or t\];
    /// the mask's fourth is along t.
    pub(super) strides: Vec<Vec<Size>>,
}

/// Takes a step apart.
pub fn call(
    step: &Step,
    scale: f32,
    causal: bool,
    mask: bool,
    precision: Precision,
    elems: &[Elem],
) -> Result<Call, CpuError> {
    let fail = |reason: &str| Err(unsupported(step, reason));
    let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
    if views.len() != 4 + usize::from(mask) || views.iter().any(|v| v.shape.len() != 4) {
        return fail("wants q, k, v and perhaps a mask, all of rank 4");
    }
    if elems.iter().any(|e| *e != Elem::F32) {
        return fail("computes in f32; cast before");
    }
    let (q, k, v, out) = (views[0], views[1], views[2], views[views.len() - 1]);
    let one = Dim::one();
    let contiguous = |v: &View| v.strides[3] == one || v.shape[3] == one;
    if ![q, k, v, out].into_iter().all(contiguous) {
        return fail("q, k, v and the result are contiguous along the last axis");
    }
    let (Some(depth), Some(width)) = (q.shape[3].as_const(), v.shape[3].as_const()) else {
        return fail("wants constant head sizes");
    };
    let mut sizes = Sizes::default();
    let mut strides: Vec<Vec<Size>> =
        [q, k, v, out].iter().map(|v| sizes.all(&v.strides[..3])).collect();
    if mask {
        strides.push(sizes.all(&views[3].strides));
    }
    let kernel = Attention {
        scale,
        causal,
        mask,
        // Channels go in pairs there.
        precision: if depth % 2 == 0 { precision } else { Precision::F32 },
        heads: sizes.one(&q.shape[1]),
        groups: sizes.one(&k.shape[1]),
        queries: sizes.one(&q.shape[2]),
        keys: sizes.one(&k.shape[2]),
        depth,
        width,
        strides,
    };
    let blocks = q.shape[2].ceil_div(QUERIES);
    let work = dim::product([&q.shape[0], &q.shape[1], &blocks]);
    let pairs = dim::product([&q.shape[0], &q.shape[1], &q.shape[2], &k.shape[2]]);
    let ops = pairs * Dim::from(2 * (depth + width));
    // Code of every level has room in it.
    let (vectors, tiles) = (total(&kernel.regions()), total(&kernel.tile_regions()));
    let stored = k.shape[2].ceil_div(DEPTH) * Dim::from(DEPTH);
    let scratch = stored * Dim::from(vectors.per_key.max(tiles.per_key))
        + Dim::from(vectors.fixed.max(tiles.fixed));
    Ok(Call::new(Spec::Attention(kernel), sizes, work, 1, ops).with_scratch(scratch))
}

impl Attention {
    /// Whether code of this level multiplies pairs of bf16.
    pub(super) fn in_pairs(&self, b: &Builder<'_, '_>) -> bool {
        self.precision == Precision::Bf16 && b.level().has_bf16()
    }

    /// Scratch where vector registers multiply, in the order of [`Scratch`].
    fn regions(&self) -> [Region; 6] {
        let row = 4 * QUERIES;
        let in_pairs = |fixed: i64, per_key: i64| match self.precision {
            Precision::Bf16 => Region { fixed, per_key },
            Precision::F32 => Region { fixed: 0, per_key: 0 },
        };
        [
            Region { fixed: row * self.depth, per_key: 0 },
            Region { fixed: row, per_key: 0 },
            Region { fixed: 0, per_key: row },
            in_pairs(SLACK, 2 * self.depth),
            in_pairs(SLACK, 2 * self.width),
            in_pairs(0, 4),
        ]
    }

    /// Whether all queries of a head have the same mask.
    pub(super) fn mask_is_shared(&self) -> bool {
        self.mask && self.strides[4][2] == Size::Const(0)
    }

    /// Whether all heads of a batch have one mask, too.
    pub(super) fn mask_is_one(&self) -> bool {
        self.mask && self.strides[4][1..3].iter().all(|s| *s == Size::Const(0))
    }

    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let tiles = b.level() == Level::AmxInt8 && self.in_pairs(b) && self.fits_tiles();
        self.emit_with(b, tiles.then_some(&Native));
    }

    /// The same with the products in tile registers, if there are any.
    pub(super) fn emit_with<'c>(&self, b: &Builder<'_, 'c>, tiles: Option<&impl TileOps>) {
        if let Some(ops) = tiles {
            return self.emit_tiles(b, ops);
        }
        let (heads, queries, keys) = (self.heads.val(b), self.queries.val(b), self.keys.val(b));
        let blocks = b.sdiv(b.add(queries, b.i64c(QUERIES - 1)), b.i64c(QUERIES));
        let share = b.sdiv(heads, self.groups.val(b));
        let operands = Operands::new(b, self);
        b.for_range(b.begin(), b.end(), 1, |item| {
            let first = b.mul(b.srem(item, blocks), b.i64c(QUERIES));
            let pair = b.sdiv(item, blocks);
            let (batch, head) = (b.sdiv(pair, heads), b.srem(pair, heads));
            let group = b.sdiv(head, share);
            let rows = b.smin(b.sub(queries, first), b.i64c(QUERIES));
            let zero = b.i64c(0);
            let shift = b.sub(keys, queries);
            let visible = if self.causal {
                let last = b.add(b.add(first, rows), shift);
                b.smax(zero, b.smin(last, keys))
            } else {
                keys
            };
            let strides = &operands.strides;
            let block = Block {
                spec: self,
                q: operands.at(b, 0, [batch, head, first]),
                k: operands.at(b, 1, [batch, group, zero]),
                v: operands.at(b, 2, [batch, group, zero]),
                out: operands.at(b, 3, [batch, head, first]),
                mask: self.mask.then(|| operands.at(b, 4, [batch, head, first])),
                query_stride: strides[0][2],
                key_stride: strides[1][2],
                value_stride: strides[2][2],
                out_stride: strides[3][2],
                mask_strides: self.mask.then(|| [strides[4][2], strides[4][3]]),
                rows,
                keys,
                visible,
                limit: b.add(first, shift),
                scratch: Scratch::new(b, self, keys),
            };
            if self.in_pairs(b) {
                // Items of one group of heads follow each other and share its keys and values.
                let is_first = |x: Val<'c>| b.icmp(EQ, x, zero);
                let fresh = b.and(is_first(first), is_first(b.srem(head, share)));
                let fresh = b.or(fresh, b.icmp(EQ, item, b.begin()));
                b.when(fresh, || {
                    block.pack_keys(b);
                    block.pack_values(b);
                    if let (Some(mask), Some([_, stride])) = (block.mask, block.mask_strides)
                        && self.mask_is_one()
                    {
                        self.pack_mask(b, [mask, block.scratch.mask], stride, keys);
                    }
                });
            }
            block.emit(b);
        });
    }
}
