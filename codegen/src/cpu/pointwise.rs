//! Element-wise kernels over strided views, and copies. Axes that are contiguous together are one;
//! the last is the vector axis, the others are work items, or if there are none, its elements are.

use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;

use super::build::{Builder, Val};
use super::call::{Call, Spec};
use super::expr::{self, Typed};
use super::spec::{Nest, Size, Sizes, ViewSpec};
use super::transpose;
use super::walk::{self, Row, Step as Stride, Tail, Walk};
use super::{CpuError, spec};

/// Elements that are worth a task.
pub(super) const TASK_ELEMENTS: i64 = 8_192;

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Pointwise {
    expr: Expr,
    /// Outer axes; the views' strides have the same.
    shape: Vec<Size>,
    /// Length of the vector axis, and each view's stride along it.
    inner: Size,
    steps: Vec<Size>,
    /// Arguments, then the result.
    views: Vec<ViewSpec>,
    /// The code walks elements of the vector axis, not rows.
    flat: bool,
}

/// Takes a step apart.
pub fn call(step: &Step, expr: &Expr, elems: &[Elem]) -> Result<Call, CpuError> {
    let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
    let (out, args) = elems.split_last().expect("a step has a result");
    let elem = expr::check(expr, args)?;
    if elem != *out {
        return Err(CpuError::Unsupported {
            kernel: step.name.clone(),
            reason: format!("the expression gives {elem}, the result is {out}"),
        });
    }
    let raw: Vec<Elem> = elems.iter().map(|&e| bits_only(e)).collect();
    let elems = if matches!(expr, Expr::Arg(_)) { raw.as_slice() } else { elems };
    if let Some(copy) = transpose::call(step, expr, elems) {
        return Ok(copy);
    }
    let mut sizes = Sizes::default();
    let result = views.last().expect("a step has a result");
    let strides: Vec<&[Dim]> = views.iter().map(|v| v.strides.as_slice()).collect();
    let nest = unit_axis_last(Nest::new(&result.shape, &strides).collapse());
    let (outer, inner, steps) = nest.split_last();
    let flat = outer.shape.is_empty();
    let specs = spec::view_specs(&mut sizes, &views, elems, &outer.strides);
    let work = if flat { inner.clone() } else { outer.count() };
    let row = inner.as_const().unwrap_or(256).max(1);
    let grain = if flat { TASK_ELEMENTS } else { (TASK_ELEMENTS / row).max(1) };
    let weight = Dim::from(expr.size() as i64);
    let ops = result.count() * weight;
    let kernel = Pointwise {
        expr: expr.clone(),
        shape: sizes.all(&outer.shape),
        inner: sizes.one(&inner),
        steps: sizes.all(&steps),
        views: specs,
        flat,
    };
    Ok(Call::new(Spec::Pointwise(kernel), sizes, work, grain, ops))
}

/// The type as which a copy moves elements.
pub(super) fn bits_only(elem: Elem) -> Elem {
    match elem.bits() {
        8 => Elem::U8,
        16 => Elem::U16,
        32 => Elem::U32,
        _ => Elem::U64,
    }
}

/// Moves the axis along which the result is contiguous to the end.
pub(super) fn unit_axis_last(mut nest: Nest) -> Nest {
    let result = nest.strides.last().expect("there is a result");
    let unit = result.iter().rposition(|s| s.as_const() == Some(1));
    if let Some(axis) = unit
        && axis + 1 < nest.shape.len()
    {
        let n = nest.shape.remove(axis);
        nest.shape.push(n);
        for view in &mut nest.strides {
            let stride = view.remove(axis);
            view.push(stride);
        }
    }
    nest
}

impl Pointwise {
    /// Emits the body.
    pub fn emit<'c>(&self, b: &Builder<'_, 'c>) {
        let strides: Vec<&[Size]> = self.views.iter().map(|v| v.strides.as_slice()).collect();
        let walk = Walk::new(b, &self.shape, &strides);
        let buffers: Vec<_> = (0..self.views.len()).map(|i| b.buf(i as u32)).collect();
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let steps: Vec<_> = self.steps.iter().map(|&s| Stride::new(b, s)).collect();
        let row = |offsets: &[Val<'c>]| -> Vec<Row<'c>> {
            self.views
                .iter()
                .enumerate()
                .map(|(i, view)| {
                    let offset = b.add(starts[i], offsets[i]);
                    Row::new(b, view.elem, buffers[i], offset, steps[i])
                })
                .collect()
        };
        if self.flat {
            let zeros = vec![b.i64c(0); self.views.len()];
            self.emit_row(b, &row(&zeros), b.begin(), b.end());
            return;
        }
        let inner = self.inner.val(b);
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            self.emit_row(b, &row(offsets), b.i64c(0), inner);
        });
    }

    fn emit_row<'c>(&self, b: &Builder<'_, 'c>, rows: &[Row<'c>], begin: Val<'c>, end: Val<'c>) {
        let (out, args) = rows.split_last().expect("there is a result");
        let used: Vec<bool> = (0..args.len()).map(|i| self.expr.uses(i) > 0).collect();
        let tail = walk::tail_for(b, rows);
        walk::span(b, begin, end, self.lanes(b, tail), tail, |i, chunk| {
            let values: Vec<Typed<'c>> = args
                .iter()
                .zip(&used)
                .map(|(row, &used)| match used {
                    true => row.read(b, i, chunk),
                    false => Typed { elem: row.elem, val: b.zero(b.int(8)) },
                })
                .collect();
            let y = expr::emit(b, &self.expr, &values, chunk.lanes);
            out.write(b, i, chunk, y.val);
        });
    }

    /// Native f32 lanes, or for copies as many as fill a register.
    fn lanes(&self, b: &Builder<'_, '_>, tail: Tail) -> u32 {
        let lanes = b.level().f32_lanes();
        let unit = self.steps.iter().all(|s| *s == Size::Const(1));
        match (&self.expr, tail) {
            (Expr::Arg(_), Tail::Masked) if unit => {
                let bits = self.views.iter().map(|v| v.elem.bits()).max().unwrap_or(32);
                lanes * 32 / bits.max(8)
            }
            _ => lanes,
        }
    }
}
