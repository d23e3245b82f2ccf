//! A gemm whose result has two parts that a quantisation puts together (`silu(gate) * up`): what both
//! kinds of target ask of the two steps before they make one of them.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{Gemm, GemmInput, GemmOutput, Place, Plan, RowQuantize, Step, View};

/// The first columns of the two parts of a gemm's result that `codes` reads.
pub(crate) fn parts(
    plan: &Plan,
    step: &Step,
    own: &Gemm,
    codes: &Step,
    quantize: &RowQuantize,
) -> Option<[usize; 2]> {
    let [x, y, _, _, _] = &codes.args[..] else { return None };
    let (result, buffer) = (&step.results[0], plan.buffer(step.results[0].buffer));
    let whole = result.is_contiguous()
        && result.offset == Dim::zero()
        && buffer.place == Place::Arena
        && own.output == GemmOutput::F32
        && matches!(own.input, GemmInput::Codes { .. });
    let all_rows = |view: &View| rows(view) == rows(result);
    let start = |view: &View| {
        let start = usize::try_from(view.offset.as_const()?).ok()?;
        let inside = view.buffer == result.buffer
            && all_rows(view)
            && start + quantize.base <= own.n
            && *view.shape.last()? == Dim::from(quantize.base)
            && view.strides == wide_rows(view, own.n);
        inside.then_some(start)
    };
    let to = &codes.results[0];
    let fills = to.is_contiguous() && to.offset == Dim::zero() && all_rows(to);
    if !whole || !fills { None } else { Some([start(x)?, start(y)?]) }
}

/// Rows of a view, whatever its rank.
fn rows(view: &View) -> Option<Dim> {
    view.shape.split_last().map(|(_, outer)| fqc_ir::dim::product(outer))
}

/// Strides of a view of rows that are `n` apart.
fn wide_rows(view: &View, n: usize) -> Vec<Dim> {
    let mut shape = view.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = Dim::from(n);
    }
    fqc_ir::plan::row_major(&shape)
}

/// Contiguous codes as a matrix of rows.
pub(crate) fn rows_of_codes(view: &View) -> Option<View> {
    let (last, outer) = view.shape.split_last()?;
    let shape = vec![fqc_ir::dim::product(outer), last.clone()];
    let strides = vec![last.clone(), Dim::one()];
    Some(View { shape, strides, ..view.clone() })
}

/// The values of a constant table.
pub(crate) fn numbers<T>(plan: &Plan, view: &View, read: impl Fn([u8; 4]) -> T) -> Option<Vec<T>> {
    let Place::Const(table) = &plan.buffer(view.buffer).place else { return None };
    let bytes = table.bytes.as_slice();
    Some(bytes.chunks_exact(4).map(|b| read([b[0], b[1], b[2], b[3]])).collect())
}
