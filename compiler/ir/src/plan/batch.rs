//! Whether a plan can be run for a few items of its batch at a time, with the same bytes as result.
//!
//! Let `b` be the size that leads all inputs and outputs. A buffer is either free of `b`, or holds
//! `b` equal parts, one an item. If what each step writes to the part of an item depends on nothing
//! but the parts of that item and on buffers that are free of `b`, then so do the outputs, step by
//! step; and if no number that a step computes with speaks of `b`, a run on some of the items is
//! that part of a run on all. The steps are held to a form in which both can be read off: the items
//! are the first axis of all views of their parts, or its outer factor.
//!
//! That a view stays inside the part of its item follows from its staying inside the buffer, which
//! the verifiers prove: its offset is free of `b`, so that the last item would reach beyond.

use std::sync::Arc;

use super::{Extra, Gemm, GemmInput, Kernel, Plan, Step, View};
use crate::dim::{self, Atom, Dim};
use crate::graph::Limit;

/// The symbol along which the plan's work can be cut, if there is one.
pub fn batch(plan: &Plan) -> Option<Arc<str>> {
    let symbol = plan.inputs.first()?.shape.first()?.as_sym()?;
    let batch = Batch { symbol, size: Dim::sym(symbol) };
    let leads = plan.inputs.iter().chain(&plan.outputs).all(|port| {
        let leads = port.shape.first() == Some(&batch.size) && port.elem.bits() >= 8;
        leads && port.shape[1..].iter().all(|size| batch.is_free(size))
    });
    let unlimited = plan.limits.iter().all(|limit| match limit {
        Limit::AtMost(size, _) => batch.is_free(size) || grows(size),
        Limit::Equal(a, b) => batch.is_free(a) && batch.is_free(b),
    });
    let separable = leads && unlimited && plan.steps.iter().all(|step| batch.splits(plan, step));
    separable.then(|| Arc::from(symbol))
}

/// Whether a size is greater for a greater batch, so that a limit that all items keep is kept by some.
fn grows(size: &Dim) -> bool {
    let named = |atom: &Atom| matches!(atom, Atom::Sym(_));
    size.terms().all(|(atoms, factor)| factor >= 0 && atoms.iter().all(named))
}

struct Batch<'p> {
    symbol: &'p str,
    size: Dim,
}

/// What a step reads of an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// For the result's index on the first axis, the same index on its own.
    Aligned,
    /// Anything.
    Anywhere,
}

impl Batch<'_> {
    fn is_free(&self, size: &Dim) -> bool {
        size.symbols().iter().all(|symbol| **symbol != *self.symbol)
    }

    fn all_free(&self, view: &View) -> bool {
        self.is_free(&view.offset)
            && view.shape.iter().chain(&view.strides).all(|d| self.is_free(d))
    }

    /// Elements of one item in the buffer behind a view; `None` if the buffer is free of the batch.
    fn part(&self, plan: &Plan, view: &View) -> Option<Dim> {
        let count = dim::product(&plan.buffer(view.buffer).shape);
        (!self.is_free(&count)).then(|| count.exact_div(&self.size).unwrap_or(count))
    }

    /// Whether a step keeps the items apart, or is the same for all of them.
    fn splits(&self, plan: &Plan, step: &Step) -> bool {
        let same_for_all = |view: &View| self.part(plan, view).is_none() && self.all_free(view);
        if step.args.iter().chain(&step.results).all(same_for_all) {
            return match &step.kernel {
                Kernel::Dims(values) => values.iter().all(|value| self.is_free(value)),
                _ => true,
            };
        }
        if !keeps_items_apart(&step.kernel) {
            return false;
        }
        let Some(rows) = step.results.first().and_then(|view| view.shape.first()) else {
            return false;
        };
        step.results.iter().all(|view| self.by_item(plan, view, rows))
            && step.args.iter().enumerate().all(|(i, view)| match reads(step, i) {
                Reads::Anywhere => same_for_all(view),
                Reads::Aligned => self.by_item(plan, view, rows) || self.repeated(plan, view, rows),
            })
    }

    /// Whether a view's first axis, of `rows`, goes through the items one after another.
    fn by_item(&self, plan: &Plan, view: &View, rows: &Dim) -> bool {
        let (Some(part), Some(first)) = (self.part(plan, view), view.strides.first()) else {
            return false;
        };
        let Some(rows_of_item) = rows.exact_div(&self.size) else { return false };
        self.is_free(&part)
            && self.is_free(&rows_of_item)
            && rows_of_item * first.clone() == part
            && self.is_one_item(view, rows)
    }

    /// Whether a view shows the same at every index of its first axis, of `rows`.
    fn repeated(&self, plan: &Plan, view: &View, rows: &Dim) -> bool {
        let still = view.strides.first().and_then(Dim::as_const) == Some(0);
        self.part(plan, view).is_none() && still && self.is_one_item(view, rows)
    }

    /// Whether a view has `rows` on its first axis, and nothing else in it speaks of the batch.
    fn is_one_item(&self, view: &View, rows: &Dim) -> bool {
        let inner = view.shape.iter().skip(1).chain(&view.strides);
        view.shape.first() == Some(rows)
            && self.is_free(&view.offset)
            && inner.into_iter().all(|size| self.is_free(size))
    }
}

/// Whether a kernel's result at an index of the first axis depends on the operands' values alone,
/// and on those that [`reads`] says. Positions (`iota`) and sizes are none, and a scatter writes
/// where its indices say.
fn keeps_items_apart(kernel: &Kernel) -> bool {
    match kernel {
        Kernel::Gemm(_)
        | Kernel::MatMul
        | Kernel::Pointwise(_)
        | Kernel::Attention { .. }
        | Kernel::Reduce { .. }
        | Kernel::ArgReduce { .. }
        | Kernel::CumSum { .. }
        | Kernel::Softmax
        | Kernel::Norm { .. }
        | Kernel::Quantize { .. }
        | Kernel::Gather { .. }
        | Kernel::GatherElements { .. }
        | Kernel::GatherNd { .. } => true,
        Kernel::ScatterElements { .. }
        | Kernel::ScatterNd { .. }
        | Kernel::Iota
        | Kernel::Dims(_) => false,
    }
}

/// How the argument `index` of a step is read.
fn reads(step: &Step, index: usize) -> Reads {
    let rank = step.args[index].shape.len();
    let aligned = match &step.kernel {
        Kernel::Gemm(gemm) => index == 0 || is_extra_of_elements(gemm, index),
        // Of two matrices without batch axes, only the rows of the left one are apart.
        Kernel::MatMul => index == 0 || rank > 2,
        Kernel::Pointwise(_) | Kernel::Attention { .. } => true,
        Kernel::Reduce { keep, .. } => *keep > 0,
        Kernel::ArgReduce { .. } | Kernel::CumSum { .. } | Kernel::Softmax => rank > 1,
        Kernel::Norm { .. } => index == 0 && rank > 1,
        // The tables of the quantisation have one axis.
        Kernel::Quantize { .. } => rank > 1,
        Kernel::Gather { axis: 0, index_rank } => index == 1 && *index_rank > 0,
        Kernel::Gather { .. } => index == 0,
        Kernel::GatherElements { axis } => index == 1 || *axis > 0,
        Kernel::GatherNd { batch_dims: 0 } => index == 1 && rank > 1,
        Kernel::GatherNd { .. } => true,
        Kernel::ScatterElements { .. }
        | Kernel::ScatterNd { .. }
        | Kernel::Iota
        | Kernel::Dims(_) => false,
    };
    if aligned { Reads::Aligned } else { Reads::Anywhere }
}

/// Whether an argument of a gemm is an operand of its epilogue that has a value for each element.
fn is_extra_of_elements(gemm: &Gemm, index: usize) -> bool {
    let first = match gemm.input {
        GemmInput::F32 => 2,
        GemmInput::Codes { .. } => 4,
    };
    let extra = index.checked_sub(first).and_then(|i| gemm.extras.get(i));
    extra == Some(&Extra::PerElement)
}

#[cfg(test)]
mod tests;
