//! Attention with its products in tile registers, sixteen queries at a time. A tile of scores is
//! \[query\]\[key\]: rows of queries times packed keys. Exponentials become rows of bf16, the left operand
//! of the products with packed values; a tile of ones beside the values gives their sums.
//!
//! Three blocks of queries are under way: while the exponentials of one are computed, tile registers
//! multiply the next one's queries by the keys and the last one's exponentials by the values.

use fqc_ir::plan::Precision;
use inkwell::IntPredicate::{EQ, NE, SGT, SLT};
use inkwell::types::VectorType;

use super::attention::{Attention, Operands, QUERIES, Region, lay_out, stored};
use super::build::{Builder, Val};
use super::tiles::{HEIGHT, TileOps};

/// Lanes of a register, queries of a tile.
pub(super) const LANES: u32 = 16;

/// Keys of a step: their exponentials fill the rows of a tile.
pub(super) const DEPTH: i64 = 32;

/// Bytes of a tile and of its row.
pub(super) const TILE: i64 = 1024;
pub(super) const ROW: i64 = 64;

/// Most tiles of channels whose sums are kept at once.
const CHANNELS: i64 = 4;

/// Scratch in front: offsets of a block's queries, 1 / sums, an order of bytes and which of them are
/// taken, results, and queries.
const INVERSE: i64 = 64;
const TURN: i64 = 128;
const UPPER: i64 = 192;
const ANY: i64 = 200;
const RESULTS: i64 = 256;
const FRONT: i64 = RESULTS + (CHANNELS + 1) * TILE;

/// Numbers of tile registers.
pub(super) struct Registers {
    pub sum: u8,
    pub scores: [u8; 2],
    pub query: u8,
    pub weights: u8,
    pub right: u8,
}

/// A block of queries.
#[derive(Clone, Copy)]
pub(super) struct Rows<'c> {
    /// Steps of keys that a query sees.
    pub steps: Val<'c>,
    /// First row of the result.
    pub out: Val<'c>,
    /// Queries of it.
    pub count: Val<'c>,
    /// Last key that the first query sees.
    pub limit: Val<'c>,
    /// Where its scores begin.
    pub place: Val<'c>,
}

/// What all blocks of a kernel have in common.
pub(super) struct Tiled<'s, 'c, T> {
    pub spec: &'s Attention,
    pub ops: &'s T,
    pub operands: Operands<'c>,
    pub keys: Val<'c>,
    pub registers: Registers,
    /// Scratch.
    pub offsets: Val<'c>,
    pub inverse: Val<'c>,
    pub turn: Val<'c>,
    pub upper: Val<'c>,
    pub results: Val<'c>,
    /// Scores of a block, and places for those of steps.
    pub scores: Val<'c>,
    pub places: Val<'c>,
    pub weights: Val<'c>,
    pub queries: Val<'c>,
    pub packed_keys: Val<'c>,
    pub packed_values: Val<'c>,
    pub packed_mask: Val<'c>,
    /// Whether the mask has anything but zeros.
    pub any_mask: Val<'c>,
}

impl Attention {
    /// Whether the products fill tiles, and sums can begin with the mask: one for all queries and
    /// heads of a batch.
    pub(super) fn fits_tiles(&self) -> bool {
        let fits_mask = !self.mask || self.mask_is_one();
        self.depth % DEPTH == 0 && self.width % HEIGHT == 0 && fits_mask
    }

    /// Scratch: what is in front, queries, weights, scores with room for one step more, packed keys,
    /// values and mask.
    pub(super) fn tile_regions(&self) -> [Region; 7] {
        let region = |fixed: i64, per_key: i64| match self.precision {
            Precision::Bf16 if self.fits_tiles() => Region { fixed, per_key },
            _ => Region { fixed: 0, per_key: 0 },
        };
        [
            region(FRONT, 0),
            region(2 * HEIGHT * self.depth, 0),
            region(0, ROW / 2),
            region(2 * TILE, ROW),
            region(0, 2 * self.depth),
            region(0, 2 * self.width),
            region(0, 4),
        ]
    }

    /// Emits the body.
    pub(super) fn emit_tiles<'c>(&self, b: &Builder<'_, 'c>, ops: &impl TileOps) {
        let scratch = b.scratch();
        let at = |bytes: i64| b.offset(scratch, b.i64c(bytes));
        let upper = halves(b, at(TURN), at(UPPER), || ops.configure(b, scratch, b.i64c(HEIGHT)));
        let (heads, queries, keys) = (self.heads.val(b), self.queries.val(b), self.keys.val(b));
        let operands = Operands::new(b, self);
        let [_, first_queries, weights, scores, packed_keys, packed_values, packed_mask] =
            lay_out(b, self.tile_regions(), keys);
        let tiled = Tiled {
            spec: self,
            ops,
            keys,
            registers: self.registers(),
            offsets: scratch,
            inverse: at(INVERSE),
            turn: at(TURN),
            results: at(RESULTS),
            upper,
            any_mask: at(ANY),
            scores,
            places: b.add(b.ashr(stored(b, keys), b.i64c(5)), b.i64c(1)),
            weights,
            queries: first_queries,
            packed_keys,
            packed_values,
            packed_mask,
            operands,
        };
        let one = b.i64c(1);
        let blocks = b.sdiv(b.add(queries, b.i64c(QUERIES - 1)), b.i64c(QUERIES));
        let share = b.sdiv(heads, self.groups.val(b));
        // Items that share keys and values follow each other.
        let run = b.mul(share, blocks);
        let (begin, end) = (b.begin(), b.end());
        let any = b.icmp(SLT, begin, end);
        b.when(any, || {
            let last = b.sdiv(b.sub(end, one), run);
            b.for_range(b.sdiv(begin, run), b.add(last, one), 1, |index| {
                let groups = b.sdiv(heads, share);
                let (batch, group) = (b.sdiv(index, groups), b.srem(index, groups));
                tiled.pack(b, batch, group);
                let first = b.mul(index, run);
                let from = b.sub(b.smax(begin, first), first);
                let to = b.sub(b.smin(end, b.add(first, run)), first);
                // Blocks of sixteen queries: two an item, the last of a head may have one.
                let tiles = b.sdiv(b.add(queries, b.i64c(HEIGHT - 1)), b.i64c(HEIGHT));
                let before = |item: Val<'c>| {
                    let whole = b.mul(b.sdiv(item, blocks), tiles);
                    b.add(whole, b.mul(b.srem(item, blocks), b.i64c(QUERIES / HEIGHT)))
                };
                tiled.blocks(b, before(from), before(to), &|b, number, place| {
                    let (within, block) = (b.sdiv(number, tiles), b.srem(number, tiles));
                    let head = b.add(b.mul(group, share), within);
                    let block = if self.causal {
                        // Every other head goes backwards: neighbours then see about as many keys.
                        let back = b.sub(b.sub(tiles, one), block);
                        let odd = b.icmp(NE, b.and(within, one), b.i64c(0));
                        b.select(odd, back, block)
                    } else {
                        block
                    };
                    let first = b.mul(block, b.i64c(HEIGHT));
                    let count = b.smin(b.sub(queries, first), b.i64c(HEIGHT));
                    let limit = match self.causal {
                        true => b.add(first, b.sub(keys, queries)),
                        false => b.sub(keys, one),
                    };
                    let out = tiled.operands.at(b, 3, [batch, head, first]);
                    let query = tiled.operands.at(b, 0, [batch, head, first]);
                    let steps = b.i64c(0);
                    (query, Rows { steps, out, count, limit, place })
                });
            });
        });
        ops.release(b);
    }

    fn registers(&self) -> Registers {
        match self.width / HEIGHT {
            ..=2 => Registers { sum: 2, scores: [3, 4], query: 5, right: 6, weights: 7 },
            _ => Registers { sum: 4, scores: [5, 5], query: 6, right: 7, weights: 6 },
        }
    }
}

impl<'c, T: TileOps> Tiled<'_, 'c, T> {
    /// Some blocks that share keys and values; `block` gives the queries' address and the block from
    /// its number.
    fn blocks(
        &self,
        b: &Builder<'_, 'c>,
        from: Val<'c>,
        to: Val<'c>,
        block: &dyn Fn(&Builder<'_, 'c>, Val<'c>, Val<'c>) -> (Val<'c>, Rows<'c>),
    ) {
        let (zero, one) = (b.i64c(0), b.i64c(1));
        let none = Rows { steps: zero, out: self.scores, count: zero, limit: zero, place: zero };
        let parts = |x: &Rows<'c>| [x.steps, x.out, x.count, x.limit, x.place];
        let rows =
            |x: &[Val<'c>]| Rows { steps: x[0], out: x[1], count: x[2], limit: x[3], place: x[4] };
        let init = [parts(&none), parts(&none)].concat();
        b.for_carried(from, b.add(to, b.i64c(2)), 1, &init, |v, state| {
            let (second, third) = (rows(&state[..5]), rows(&state[5..]));
            let exists = b.icmp(SLT, v, to);
            let first = b.icmp(EQ, second.place, zero);
            let place = b.sub(b.select(first, self.places, second.place), one);
            let (query, mut next) = block(b, b.smin(v, b.sub(to, one)), place);
            next.count = b.select(exists, next.count, zero);
            let (plain, steps) = self.steps(b, &next);
            next.steps = steps;
            b.when(b.icmp(SGT, steps, zero), || self.pack_queries(b, query, next.count));
            // The last weights of all channels, before others take their place.
            let all = self.spec.width / HEIGHT;
            if all > CHANNELS {
                for first in (0..all).step_by(CHANNELS as usize) {
                    let tiles = (all - first).min(CHANNELS);
                    self.begin_results(b, first, tiles);
                    b.for_range(zero, third.steps, 1, |step| {
                        self.weighted(b, step, first, tiles).iter().for_each(|x| x());
                    });
                    self.finish(b, &third, first, tiles);
                }
                self.round(b, plain, [&next, &second, &Rows { steps: zero, ..third }], 0);
            } else {
                self.begin_results(b, 0, all);
                self.round(b, plain, [&next, &second, &third], all);
                self.finish(b, &third, 0, all);
            }
            self.largest(b, plain, &next);
            [parts(&next), parts(&second)].concat()
        });
    }

    /// Steps of keys that all queries of a block see, and that some do.
    fn steps(&self, b: &Builder<'_, 'c>, rows: &Rows<'c>) -> (Val<'c>, Val<'c>) {
        let clamp = |x| b.smax(b.i64c(0), b.smin(x, self.keys));
        let first = clamp(b.add(rows.limit, b.i64c(1)));
        let last = match self.spec.causal {
            true => clamp(b.add(rows.limit, rows.count)),
            false => self.keys,
        };
        let last = b.select(b.icmp(EQ, rows.count, b.i64c(0)), b.i64c(0), last);
        let first = b.smin(first, last);
        (b.ashr(first, b.i64c(5)), b.ashr(b.add(last, b.i64c(DEPTH - 1)), b.i64c(5)))
    }

    /// Products of the first block's queries, exponentials of the second, weighted values of the third
    /// in `tiles` tiles of channels, which may be none.
    fn round(
        &self,
        b: &Builder<'_, 'c>,
        plain: Val<'c>,
        [first, second, third]: [&Rows<'c>; 3],
        tiles: i64,
    ) {
        if self.query_stays() {
            self.load_query(b, 0);
        }
        let weighted = |step| match tiles {
            0 => Vec::new(),
            _ => self.weighted(b, step, 0, tiles),
        };
        let mut both = b.smin(plain, second.steps);
        if tiles > 0 {
            both = b.smin(both, third.steps);
        }
        b.for_range(b.i64c(0), both, 1, |step| {
            let (weighted, products) = (weighted(step), self.products(b, first, step));
            let all: Vec<&dyn Fn()> =
                weighted.iter().chain(&products).map(|x| x as &dyn Fn()).collect();
            self.exponentials(b, second, step, &all);
        });
        // In this order, as each takes the place of what the one before has read.
        let each = |list: Vec<Box<dyn Fn() + '_>>| list.iter().for_each(|x| x());
        b.for_range(both, third.steps, 1, |step| each(weighted(step)));
        b.for_range(both, second.steps, 1, |step| self.exponentials(b, second, step, &[]));
        b.for_range(both, first.steps, 1, |step| each(self.products(b, first, step)));
    }
}

/// Writes the order of bytes that puts the lower halves of words into the upper ones, and gives the
/// upper halves as a mask. Both come from memory that something else may have changed: of what LLVM
/// knows, it makes more instructions.
fn halves<'c>(
    b: &Builder<'_, 'c>,
    order: Val<'c>,
    upper: Val<'c>,
    between: impl FnOnce(),
) -> Val<'c> {
    let bytes = (0..64).map(|i| b.iconst(b.int(8), i % 16 / 4 * 4 + i % 2).into_int_value());
    b.store(VectorType::const_vector(&bytes.collect::<Vec<_>>()).into(), order, 64);
    b.store(b.i64c(0xcccc_cccc_cccc_cccc_u64 as i64), upper, 8);
    between();
    b.bitcast(b.load(b.int(64), upper, 8), b.vec(b.int(1), 64))
}
