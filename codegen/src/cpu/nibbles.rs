//! Values of four bits enter and leave a model two a byte, the even index in the low half; here
//! they get a byte each, or lose it.

use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;

use super::CpuError;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::spec::{Size, Sizes};

/// Values of one work item; even, so that no byte belongs to two.
const BLOCK: i64 = 32_768;

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Nibbles {
    unpack: bool,
    signed: bool,
    count: Size,
}

/// Whether some value of the step has less than a byte.
pub fn is_narrow(elems: &[Elem]) -> bool {
    elems.iter().any(|e| e.bits() < 8)
}

/// Takes a cast between halves of bytes and bytes apart.
pub fn call(step: &Step, expr: &Expr, elems: &[Elem]) -> Result<Call, CpuError> {
    let (unpack, signed) = match elems {
        [Elem::I4, Elem::I8] => (true, true),
        [Elem::U4, Elem::U8] => (true, false),
        [Elem::I8, Elem::I4] => (false, true),
        [Elem::U8, Elem::U4] => (false, false),
        _ => return Err(unsupported(step, "values of four bits are only unpacked and packed")),
    };
    let whole = |v: &View| v.is_contiguous() && v.offset == Dim::zero();
    let copies = matches!(expr, Expr::Cast(to, x) if *to == elems[1] && **x == Expr::arg(0));
    if !copies || !step.args.iter().chain(&step.results).all(whole) {
        return Err(unsupported(step, "values of four bits are packed as whole buffers"));
    }
    let count = step.results[0].count();
    let mut sizes = Sizes::default();
    let kernel = Nibbles { unpack, signed, count: sizes.one(&count) };
    let work = count.ceil_div(BLOCK);
    Ok(Call::new(Spec::Nibbles(kernel), sizes, work, 1, Dim::zero()))
}

impl Nibbles {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let (from, to, count) = (b.buf(0), b.buf(1), self.count.val(b));
        let byte = |base, at| b.offset(base, at);
        b.for_range(b.begin(), b.end(), 1, |item| {
            let first = b.mul(item, b.i64c(BLOCK));
            let last = b.smin(b.add(first, b.i64c(BLOCK)), count);
            b.for_range(first, last, 2, |i| {
                let (next, pair) = (b.add(i, b.i64c(1)), b.lshr(i, b.i64c(1)));
                let both = b.icmp(inkwell::IntPredicate::SLT, next, last);
                let load = |at| b.load(b.int(8), at, 1);
                if self.unpack {
                    let pair = load(byte(from, pair));
                    b.store(self.value(b, b.shl(pair, b.iconst(b.int(8), 4))), byte(to, i), 1);
                    b.when(both, || b.store(self.value(b, pair), byte(to, next), 1));
                } else {
                    let low = b.and(load(byte(from, i)), b.iconst(b.int(8), 15));
                    b.store(low, byte(to, pair), 1);
                    b.when(both, || {
                        let high = b.shl(load(byte(from, next)), b.iconst(b.int(8), 4));
                        b.store(b.or(low, high), byte(to, pair), 1);
                    });
                }
            });
        });
    }

    /// The value in the high half of a byte.
    fn value<'c>(&self, b: &Builder<'_, 'c>, pair: Val<'c>) -> Val<'c> {
        let four = b.iconst(b.int(8), 4);
        if self.signed { b.ashr(pair, four) } else { b.lshr(pair, four) }
    }
}
