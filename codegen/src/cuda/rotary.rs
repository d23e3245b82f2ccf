//! The rotary embedding of queries and keys in the gemm that makes them, where an attention in bf16 alone
//! reads them: the two channels that turn into each other become neighbours, so that one thread has both
//! sums, and the result is kept as bf16. Queries and keys then have their channels in another order, both in
//! the same, which changes the order of the sums in their products and nothing else.

use std::collections::BTreeMap;

use fqc_ir::dim::Dim;
use fqc_ir::expr::{BinaryOp, Expr};
use fqc_ir::plan::{Extra, Gemm, GemmInput, GemmOutput, Kernel, Place, Plan, Step, View};
use fqc_ir::types::Elem;

use super::pair::{Columns, by_column};
use super::text::divides;
use super::turned::{PIECE, Rotary, TABLES, Table};
use super::{Arch, gemm};

/// Finds such gemms and makes their results what the attention reads; by their results' buffers.
pub fn fold(plan: &mut Plan, arch: Arch, columns: &mut Columns) -> BTreeMap<usize, Rotary> {
    let mut found = BTreeMap::new();
    if arch != Arch::Sm90a {
        return found;
    }
    let mut at = 0;
    while at < plan.steps.len() {
        if let Some(turned) = Turned::of(plan, at) {
            let rotary = turned.apply(plan, at, columns);
            found.extend(rotary.map(|rotary| (plan.steps[at].results[0].buffer.0, rotary)));
        }
        at += 1;
    }
    found
}

/// Which operand of an attention the keys are; queries are before them, values after.
const KEYS: usize = 1;

/// A gemm of which an attention reads parts, rotated or as they are.
struct Turned {
    /// Steps between the two, which are no longer needed.
    between: Vec<usize>,
    attention: usize,
    /// Which operand of the attention is which view of the gemm's result.
    operands: Vec<(usize, View)>,
    /// What is turned, and the tables.
    columns: std::ops::Range<usize>,
    width: usize,
    tables: [View; TABLES],
}

impl Turned {
    fn of(plan: &Plan, at: usize) -> Option<Turned> {
        let step = &plan.steps[at];
        let Kernel::Gemm(own) = &step.kernel else { return None };
        if !fits(plan, step, own) {
            return None;
        }
        let result = step.results[0].buffer;
        let reads = |s: &&Step| s.args.iter().any(|arg| arg.buffer == result);
        let between: Vec<usize> =
            (0..plan.steps.len()).filter(|&i| reads(&&plan.steps[i])).collect();
        let mut made: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &i in &between {
            let [out] = &plan.steps[i].results[..] else { return None };
            made.entry(out.buffer.0).or_default().push(i);
        }
        let attention = reader(plan, *made.keys().next()?)?;
        let mut tables: Option<[View; TABLES]> = None;
        let (mut operands, mut turned) = (Vec::new(), Vec::new());
        for (&buffer, makers) in &made {
            let operand = operand(plan, attention, buffer)?;
            let makers: Vec<&Step> = makers.iter().map(|&i| &plan.steps[i]).collect();
            let part = match makers[..] {
                [one] => copied(one)?,
                [one, two] => {
                    let (part, own) = rotated(one, two).or_else(|| rotated(two, one))?;
                    let known = tables.get_or_insert_with(|| own.clone());
                    if !known.iter().zip(&own).all(|(a, b)| same_rows(a, b)) {
                        return None;
                    }
                    turned.push((operand, part.clone()));
                    part
                }
                _ => return None,
            };
            let wanted = &plan.steps[attention].args[operand];
            let whole = View::whole(wanted.buffer, &part.shape);
            if *wanted != whole || !in_rows(&part, own.n) {
                return None;
            }
            operands.push((operand, part));
        }
        // Products of queries and keys bear another order of channels if both have it, results do not.
        let [(one, first), (other, second)] = &turned[..] else { return None };
        if one.max(other) != &KEYS {
            return None;
        }
        let (columns, width) = range(&[first, second])?;
        let tables = tables?;
        let before = |v: &View| {
            let writes = |s: &Step| s.results.iter().any(|r| r.buffer == v.buffer);
            plan.buffer(v.buffer).elem == Elem::F32 && !plan.steps[at..].iter().any(writes)
        };
        let known = tables.iter().all(|t| before(t) && Table::of(0, t).is_some());
        (known && attention > at).then_some(Turned {
            between,
            attention,
            operands,
            columns,
            width,
            tables,
        })
    }

    /// Makes the result of the gemm at `at` the attention's operands.
    fn apply(self, plan: &mut Plan, at: usize, columns: &mut Columns) -> Option<Rotary> {
        let Kernel::Gemm(own) = &plan.steps[at].kernel else { return None };
        let sources = neighbours(&self.columns, self.width, own.n);
        let mut step = plan.steps[at].clone();
        for arg in step.args.iter_mut().skip(2) {
            *arg = by_column(plan, arg, &sources)?;
        }
        columns.insert(step.args[1].buffer.0, sources);
        let first = step.args.len();
        let mut at_argument = first..;
        let tables =
            self.tables.clone().map(|view| Table::of(at_argument.next().unwrap_or(first), &view));
        step.args.extend(self.tables);
        let result = &mut plan.buffers[step.results[0].buffer.0];
        result.elem = Elem::BF16;
        result.name.push_str(".rotated");
        for (operand, view) in self.operands {
            plan.steps[self.attention].args[operand] = view;
        }
        plan.steps[at] = step;
        let mut index = 0;
        plan.steps.retain(|_| {
            index += 1;
            !self.between.contains(&(index - 1))
        });
        let [Some(a), Some(b), Some(c), Some(d)] = tables else { return None };
        Some(Rotary { columns: self.columns, width: self.width, tables: [a, b, c, d] })
    }
}

/// The columns of a gemm with the two that turn into each other beside each other.
fn neighbours(columns: &std::ops::Range<usize>, width: usize, n: usize) -> Vec<Option<usize>> {
    let source = |column: usize| {
        if !columns.contains(&column) {
            return column;
        }
        let place = (column - columns.start) % width;
        let upper = if place.is_multiple_of(2) { 0 } else { width / 2 };
        column - place + place / 2 + upper
    };
    (0..n).map(source).map(Some).collect()
}

/// Whether a gemm of tiles could store pairs of bf16: codes in, floats in memory of their own out, and
/// constants that it alone reads.
fn fits(plan: &Plan, step: &Step, own: &Gemm) -> bool {
    let result = &step.results[0];
    let buffer = plan.buffer(result.buffer);
    let constant = |view: &View| {
        let readers = plan.steps.iter().flat_map(|s| &s.args).filter(|a| a.buffer == view.buffer);
        matches!(plan.buffer(view.buffer).place, Place::Const(_)) && readers.count() == 1
    };
    gemm::fits(step, own)
        && matches!(own.input, GemmInput::Codes { .. })
        && own.output == GemmOutput::F32
        && own.extras.iter().all(|e| *e == Extra::PerColumn)
        && own.n.is_multiple_of(PIECE)
        && buffer.place == Place::Arena
        && buffer.elem == Elem::F32
        && result.is_contiguous()
        && result.offset == Dim::zero()
        && step.args[1..].iter().all(constant)
}

/// The attention that alone reads a buffer.
fn reader(plan: &Plan, buffer: usize) -> Option<usize> {
    let reads = |s: &Step| s.args.iter().any(|arg| arg.buffer.0 == buffer);
    let mut readers = (0..plan.steps.len()).filter(|&i| reads(&plan.steps[i]));
    let attention = readers.next()?;
    let own = matches!(plan.steps[attention].kernel, Kernel::Attention { .. });
    (own && readers.next().is_none()).then_some(attention)
}

/// Which operand of an attention a buffer of bf16 is, if nothing else reads it.
fn operand(plan: &Plan, attention: usize, buffer: usize) -> Option<usize> {
    let args = &plan.steps[attention].args;
    let mut operands = (0..args.len()).filter(|&i| args[i].buffer.0 == buffer);
    let operand = operands.next()?;
    let private = operand < 3
        && operands.next().is_none()
        && reader(plan, buffer) == Some(attention)
        && plan.buffers[buffer].elem == Elem::BF16
        && plan.buffers[buffer].place == Place::Arena;
    private.then_some(operand)
}

/// What is copied as bf16.
fn copied(step: &Step) -> Option<View> {
    let Kernel::Pointwise(expr) = &step.kernel else { return None };
    let whole = step.results[0].is_contiguous() && step.results[0].offset == Dim::zero();
    let fits = *expr == Expr::cast(Elem::BF16, Expr::arg(0)) && whole;
    fits.then(|| step.args[0].clone())
}

/// What is rotated, of two steps that make the first and the second half, and the tables.
fn rotated(first: &Step, second: &Step) -> Option<(View, [View; TABLES])> {
    let turn = |op| {
        let product = |a, b| Expr::binary(BinaryOp::Mul, Expr::arg(a), Expr::arg(b));
        Expr::cast(Elem::BF16, Expr::binary(op, product(0, 1), product(2, 3)))
    };
    let is = |step: &Step, op| matches!(&step.kernel, Kernel::Pointwise(expr) if *expr == turn(op));
    if !is(first, BinaryOp::Sub) || !is(second, BinaryOp::Add) {
        return None;
    }
    let [low, low_cos, high, low_sin] = &first.args[..] else { return None };
    let [same_high, high_cos, same_low, high_sin] = &second.args[..] else { return None };
    let half = low.shape.last()?.clone();
    let whole = doubled(low)?;
    let follows = |a: &View, b: &View| {
        b.buffer == a.buffer
            && b.strides == a.strides
            && b.offset == a.offset.clone() + half.clone()
    };
    let out = View { offset: Dim::zero(), ..doubled(&first.results[0])? };
    let fits = low == same_low
        && high == same_high
        && follows(low, high)
        && follows(&first.results[0], &second.results[0])
        && first.results[0].offset == Dim::zero()
        && out.is_contiguous();
    let tables = [low_cos, high_cos, low_sin, high_sin].map(View::clone);
    fits.then_some((whole, tables))
}

/// A view with a last axis of twice the length.
fn doubled(view: &View) -> Option<View> {
    let mut shape = view.shape.clone();
    let last = shape.last_mut()?;
    *last = last.clone() * Dim::from(2i64);
    Some(View { shape, ..view.clone() })
}

/// Whether two tables are the same but for the number of heads that share them.
fn same_rows(a: &View, b: &View) -> bool {
    a.buffer == b.buffer && a.offset == b.offset && a.strides == b.strides
}

/// Whether heads \[b, h, s, d\] are columns of rows of `n` elements, from one on that attention can load.
fn in_rows(view: &View, n: usize) -> bool {
    let [_, _, tokens, width] = &view.shape[..] else { return false };
    let row = Dim::from(n);
    divides(PIECE as i64, &view.offset)
        && view.strides == [tokens.clone() * row.clone(), width.clone(), row, Dim::one()]
}

/// The columns of heads that follow each other without a gap, and the width of one.
fn range(parts: &[&View; 2]) -> Option<(std::ops::Range<usize>, usize)> {
    let number = |dim: &Dim| usize::try_from(dim.as_const()?).ok();
    let mut ranges = Vec::new();
    let width = number(&parts[0].shape[3])?;
    for part in parts {
        let (start, heads) = (number(&part.offset)?, number(&part.shape[1])?);
        if number(&part.shape[3])? != width {
            return None;
        }
        ranges.push(start..start + heads * width);
    }
    ranges.sort_by_key(|range| range.start);
    let adjacent = ranges.windows(2).all(|pair| pair[0].end == pair[1].start);
    let (start, end) = (ranges.first()?.start, ranges.last()?.end);
    (adjacent && width.is_multiple_of(PIECE) && start.is_multiple_of(PIECE))
        .then_some((start..end, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_turn_into_each_other_become_neighbours() {
        let columns: Option<Vec<usize>> = neighbours(&(8..24), 8, 26).into_iter().collect();
        let of_head = |first: usize| [0, 4, 1, 5, 2, 6, 3, 7].map(|i| first + i);
        let wanted = [(0..8).collect::<Vec<_>>(), [of_head(8), of_head(16)].concat(), vec![24, 25]];
        assert_eq!(columns, Some(wanted.concat()));
    }
}
