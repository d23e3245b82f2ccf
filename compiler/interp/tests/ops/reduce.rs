//! Reductions and running sums.

use super::{count_up, error, eval, f32, floats, i64, ints};
use fqc_interp::Tensor;
use fqc_ir::op::ReduceOp;
use fqc_ir::{Elem, Op};

fn reduce(op: ReduceOp, axes: &[usize]) -> Op {
    Op::Reduce { op, axes: axes.to_vec(), keep_dims: false }
}

#[test]
fn reductions_over_any_axes() {
    let x = count_up(&[2, 3, 2]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Sum, &[0, 2]), &[&x]), &[3]), [14.0, 22.0, 30.0]);
    let kept = Op::Reduce { op: ReduceOp::Mean, axes: vec![1], keep_dims: true };
    assert_eq!(floats(&eval(kept, &[&x]), &[2, 1, 2]), [2.0, 3.0, 8.0, 9.0]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Max, &[0, 1, 2]), &[&x]), &[]), [11.0]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Min, &[2]), &[&x]), &[2, 3])[..2], [0.0, 2.0]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Prod, &[0]), &[&f32(&[3], &[2.0; 3])]), &[]), [8.0]);
    assert_eq!(
        floats(&eval(reduce(ReduceOp::Sum, &[]), &[&f32(&[2], &[1.0, 2.0])]), &[2]),
        [1., 2.]
    );
}

#[test]
fn sums_are_rounded_once() {
    let mut values = vec![1.0f32; 1 << 20];
    values[0] = 16_777_216.0;
    let sum = eval(reduce(ReduceOp::Sum, &[0]), &[&f32(&[1 << 20], &values)]);
    assert_eq!(floats(&sum, &[]), [17_825_792.0]);
}

#[test]
fn integers_empties_and_nan() {
    let x = i64(&[2], &[2, i64::MAX]);
    let wrapped = i128::from(i64::MIN) + 1;
    assert_eq!(ints(&eval(reduce(ReduceOp::Sum, &[0]), &[&x]), &[]), [wrapped]);
    let small = Tensor::from_ints(Elem::I8, &[3], &[-7, 2, 100]);
    assert_eq!(ints(&eval(reduce(ReduceOp::Mean, &[0]), &[&small]), &[]), [31]);
    let none = Tensor::zeros(Elem::F32, &[2, 0]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Sum, &[1]), &[&none]), &[2]), [0.0, 0.0]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Prod, &[1]), &[&none]), &[2]), [1.0, 1.0]);
    assert_eq!(floats(&eval(reduce(ReduceOp::Max, &[1]), &[&none]), &[2]), [f32::NEG_INFINITY; 2]);
    let none = Tensor::zeros(Elem::I8, &[0]);
    assert_eq!(ints(&eval(reduce(ReduceOp::Max, &[0]), &[&none]), &[]), [-128]);
    let holes = f32(&[3], &[1.0, f32::NAN, 3.0]);
    assert!(floats(&eval(reduce(ReduceOp::Max, &[0]), &[&holes]), &[])[0].is_nan());
}

#[test]
fn arg_reduce_breaks_ties_as_told() {
    let x = f32(&[2, 3], &[1.0, 5.0, 5.0, 0.0, 0.0, 2.0]);
    let arg = |largest, last| {
        let op = Op::ArgReduce { axis: 1, keep_dims: false, largest, last };
        ints(&eval(op, &[&x]), &[2])
    };
    assert_eq!(arg(true, false), [1, 2]);
    assert_eq!(arg(true, true), [2, 2]);
    assert_eq!(arg(false, false), [0, 0]);
    assert_eq!(arg(false, true), [0, 1]);
    let op = Op::ArgReduce { axis: 0, keep_dims: true, largest: true, last: false };
    assert_eq!(ints(&eval(op.clone(), &[&x]), &[1, 3]), [0, 0, 0]);
    error(op, &[&Tensor::zeros(Elem::F32, &[0, 3])]);
}

#[test]
fn cum_sum_in_both_directions() {
    let x = f32(&[3], &[1.0, 2.0, 3.0]);
    let sum =
        |exclusive, reverse| floats(&eval(Op::CumSum { axis: 0, exclusive, reverse }, &[&x]), &[3]);
    assert_eq!(sum(false, false), [1.0, 3.0, 6.0]);
    assert_eq!(sum(true, false), [0.0, 1.0, 3.0]);
    assert_eq!(sum(false, true), [6.0, 5.0, 3.0]);
    assert_eq!(sum(true, true), [5.0, 3.0, 0.0]);
    let y = eval(
        Op::CumSum { axis: 0, exclusive: false, reverse: false },
        &[&i64(&[2, 2], &[1, 2, 3, 4])],
    );
    assert_eq!(ints(&y, &[2, 2]), [1, 2, 4, 6]);
}
