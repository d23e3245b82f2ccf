//! Gathers and scatters.

use super::{count_up, error, eval, f32, floats, i64, ints};
use fqc_interp::Tensor;
use fqc_ir::op::ScatterOp;
use fqc_ir::{Elem, Op};

#[test]
fn gathers_take_rows_elements_and_tuples() {
    let x = count_up(&[3, 2]);
    let y = eval(Op::Gather { axis: 0 }, &[&x, &i64(&[2, 1], &[2, -3])]);
    assert_eq!(floats(&y, &[2, 1, 2]), [4.0, 5.0, 0.0, 1.0]);
    let y = eval(Op::Gather { axis: 1 }, &[&x, &i64(&[], &[-1])]);
    assert_eq!(floats(&y, &[3]), [1.0, 3.0, 5.0]);
    let at = Tensor::from_ints(Elem::I32, &[2, 2], &[0, 1, 2, -1]);
    let y = eval(Op::GatherElements { axis: 0 }, &[&x, &at]);
    assert_eq!(floats(&y, &[2, 2]), [0.0, 3.0, 4.0, 5.0]);
    let y = eval(Op::GatherNd { batch_dims: 0 }, &[&x, &i64(&[2, 2], &[0, 1, -1, 0])]);
    assert_eq!(floats(&y, &[2]), [1.0, 4.0]);
    let y = eval(Op::GatherNd { batch_dims: 1 }, &[&count_up(&[2, 2, 2]), &i64(&[2, 1], &[1, 0])]);
    assert_eq!(floats(&y, &[2, 2]), [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn an_index_outside_is_an_error() {
    let x = count_up(&[3, 2]);
    for bad in [3, -4, i64::MIN, i64::MAX] {
        let what = error(Op::Gather { axis: 0 }, &[&x, &i64(&[1], &[bad])]);
        assert_eq!(what, format!("index {bad} is outside an axis of size 3"));
        error(Op::GatherElements { axis: 0 }, &[&x, &i64(&[1, 1], &[bad])]);
        error(Op::GatherNd { batch_dims: 0 }, &[&x, &i64(&[1], &[bad])]);
        let scatter = Op::ScatterNd { reduction: ScatterOp::Set };
        error(scatter, &[&x, &i64(&[1, 1], &[bad]), &count_up(&[1, 2])]);
    }
}

#[test]
fn scatters_combine_in_order() {
    let x = count_up(&[2, 2]);
    let (at, updates) = (i64(&[1, 2], &[1, 1]), f32(&[1, 2], &[10.0, 20.0]));
    let elements = |reduction| Op::ScatterElements { axis: 0, reduction };
    let y = |reduction| floats(&eval(elements(reduction), &[&x, &at, &updates]), &[2, 2]);
    assert_eq!(y(ScatterOp::Set), [0.0, 1.0, 10.0, 20.0]);
    assert_eq!(y(ScatterOp::Add), [0.0, 1.0, 12.0, 23.0]);
    assert_eq!(y(ScatterOp::Mul), [0.0, 1.0, 20.0, 60.0]);
    assert_eq!(y(ScatterOp::Max), [0.0, 1.0, 10.0, 20.0]);
    assert_eq!(y(ScatterOp::Min), [0.0, 1.0, 2.0, 3.0]);

    let twice = i64(&[2, 1], &[-1, 1]);
    let rows = f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let nd = |reduction| Op::ScatterNd { reduction };
    let y = |reduction| floats(&eval(nd(reduction), &[&x, &twice, &rows]), &[2, 2]);
    assert_eq!(y(ScatterOp::Set), [0.0, 1.0, 3.0, 4.0]);
    assert_eq!(y(ScatterOp::Add), [0.0, 1.0, 6.0, 9.0]);

    let bytes = Tensor::from_ints(Elem::U8, &[1], &[200]);
    let more = Tensor::from_ints(Elem::U8, &[1], &[100]);
    let sum = eval(nd(ScatterOp::Add), &[&bytes, &i64(&[1, 1], &[0]), &more]);
    assert_eq!(ints(&sum, &[1]), [44]);
}
