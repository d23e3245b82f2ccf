//! Steps of a plan that are one launch on a GPU, where each launch costs microseconds and floats between
//! two of them a way through memory.

use std::collections::BTreeMap;

use fqc_ir::dim::Dim;
use fqc_ir::expr::Expr;
use fqc_ir::plan::{Kernel, Place, Plan, Precision, RowQuantize, Step, View};

use super::text::divides;
use super::turned::Rotary;
use super::{Arch, attention, pair};

/// Element-wise steps of one launch at most.
const MOST_PARTS: usize = 8;

/// One launch: the step that it is as a whole, with the arguments of all its steps, then the results
/// of all that stay; and what is in it.
pub struct Unit {
    pub step: Step,
    pub kind: Kind,
}

/// What is in a launch.
#[derive(Clone)]
pub enum Kind {
    /// The step alone.
    Alone,
    /// Element-wise steps that do not depend on each other.
    Together(Vec<Step>),
    /// Attention and the quantisation that alone reads its result.
    AttentionCodes { attention: Step, codes: RowQuantize },
    /// A gemm, with its columns as pairs, and the quantisation of two of its parts.
    Pairs { expr: Expr, codes: RowQuantize },
    /// A gemm that turns queries and keys.
    Turned(Rotary),
}

/// A plan's steps as launches, in order. Constants of a gemm of pairs become what it reads; gemms whose
/// results are in the buffers of `turned` turn them.
pub fn units(
    plan: &mut Plan,
    arch: Arch,
    paired: &mut pair::Columns,
    mut turned: BTreeMap<usize, Rotary>,
) -> Vec<Unit> {
    let mut units = Vec::new();
    let steps = std::mem::take(&mut plan.steps);
    let readers = readers(plan, &steps);
    let mut rest = &steps[..];
    while let Some(first) = rest.first() {
        let parts = independent(rest);
        let next = rest.get(1);
        let rotary = turned.remove(&first.results[0].buffer.0);
        let unit = if let Some(rotary) = rotary {
            Unit { step: first.clone(), kind: Kind::Turned(rotary) }
        } else if parts > 1 {
            together(plan, &rest[..parts])
        } else {
            let fused = next.and_then(|next| {
                attention_codes(plan, &readers, first, next)
                    .or_else(|| pair::unit(plan, &readers, arch, first, next, paired))
            });
            fused.unwrap_or_else(|| Unit { step: first.clone(), kind: Kind::Alone })
        };
        rest = &rest[unit.steps()..];
        units.push(unit);
    }
    units
}

/// How many arguments of all steps are of each buffer.
fn readers(plan: &Plan, steps: &[Step]) -> Vec<usize> {
    let mut readers = vec![0; plan.buffers.len()];
    steps.iter().flat_map(|s| &s.args).for_each(|arg| readers[arg.buffer.0] += 1);
    readers
}

impl Unit {
    /// Steps of the plan in it.
    fn steps(&self) -> usize {
        match &self.kind {
            Kind::Alone | Kind::Turned(_) => 1,
            Kind::Together(parts) => parts.len(),
            Kind::AttentionCodes { .. } | Kind::Pairs { .. } => 2,
        }
    }
}

/// Results of several parts in one buffer are one result, the buffer.
fn together(plan: &Plan, parts: &[Step]) -> Unit {
    let mut results: Vec<View> = Vec::new();
    for result in parts.iter().map(|p| &p.results[0]) {
        match results.iter_mut().find(|r| r.buffer == result.buffer) {
            Some(whole) => *whole = View::whole(result.buffer, &plan.buffer(result.buffer).shape),
            None => results.push(result.clone()),
        }
    }
    let args = parts.iter().flat_map(|p| p.args.clone()).collect();
    Unit { step: Step { args, results, ..parts[0].clone() }, kind: Kind::Together(parts.to_vec()) }
}

/// The expression of an element-wise step.
pub fn expression(step: &Step) -> Option<&Expr> {
    match &step.kernel {
        Kernel::Pointwise(expr) => Some(expr),
        _ => None,
    }
}

/// How many of the first steps are element-wise and independent of each other.
fn independent(steps: &[Step]) -> usize {
    let most = steps.iter().take(MOST_PARTS).take_while(|s| expression(s).is_some()).count();
    let fits = |i: &usize| steps[..*i].iter().all(|earlier| apart(earlier, &steps[*i]));
    (0..most).take_while(fits).count().max(1)
}

/// Whether two steps may run at the same time.
fn apart(a: &Step, b: &Step) -> bool {
    let reads = |reader: &Step, writer: &Step| {
        let buffer = writer.results[0].buffer;
        reader.args.iter().any(|arg| arg.buffer == buffer)
    };
    let (x, y) = (&a.results[0], &b.results[0]);
    !reads(a, b) && !reads(b, a) && (x.buffer != y.buffer || disjoint(x, y))
}

/// Whether two views of a buffer are different parts of rows of one length.
fn disjoint(x: &View, y: &View) -> bool {
    let inside = |v: &View, period: i64| {
        let (start, n) = (v.offset.as_const()?, v.shape.last()?.as_const()?);
        let outer = &v.strides[..v.strides.len() - 1];
        let whole = outer.iter().all(|s| divides(period, s));
        let unit = v.strides.last().and_then(Dim::as_const) == Some(1);
        (whole && unit && start >= 0 && start + n <= period).then_some(start..start + n)
    };
    let period = x.strides.len().checked_sub(2).and_then(|i| x.strides[i].as_const());
    let Some(period) = period.filter(|&p| p > 0) else { return false };
    match (inside(x, period), inside(y, period)) {
        (Some(a), Some(b)) => a.end <= b.start || b.end <= a.start,
        _ => false,
    }
}

/// An attention on tensor cores with the quantisation of its result, if nothing else reads that.
fn attention_codes(plan: &Plan, readers: &[usize], step: &Step, codes: &Step) -> Option<Unit> {
    let Kernel::Attention { precision: Precision::Bf16, .. } = step.kernel else { return None };
    let Kernel::Quantize { expr: Expr::Arg(0), quantize } = &codes.kernel else { return None };
    let (result, x) = (&step.results[0], &codes.args[0]);
    let buffer = plan.buffer(result.buffer);
    let [batch, heads, queries, width] = &result.shape[..] else { return None };
    let row = heads.clone() * width.clone();
    let merged = [queries.clone() * row.clone(), width.clone(), row.clone(), Dim::one()];
    let rows = [batch.clone(), queries.clone(), row.clone()];
    let fits = x.buffer == result.buffer
        && readers[result.buffer.0] == 1
        && buffer.place == Place::Arena
        && result.strides == merged
        && result.offset == Dim::zero()
        && x.shape == rows
        && x.is_contiguous()
        && x.offset == Dim::zero()
        && row == Dim::from(quantize.base)
        && codes.results[0].is_contiguous()
        && divides(4, &codes.results[0].offset)
        && attention::in_tiles(step, plan.buffer(step.args[0].buffer).elem);
    fits.then(|| {
        let mut args = step.args.clone();
        args.extend_from_slice(&codes.args[1..]);
        Unit {
            step: Step { args, results: codes.results.clone(), ..step.clone() },
            kind: Kind::AttentionCodes { attention: step.clone(), codes: quantize.clone() },
        }
    })
}
