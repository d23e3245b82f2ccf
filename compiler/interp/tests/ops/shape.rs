//! Operations that move elements.

use super::{count_up, dims, error, eval, f32, floats, i64, ints};
use fqc_interp::{Binding, Tensor, eval_node};
use fqc_ir::op::PadMode;
use fqc_ir::{Dim, Elem, Op};

#[test]
fn transpose_reshape_broadcast() {
    let x = count_up(&[2, 3]);
    assert_eq!(
        floats(&eval(Op::Transpose(vec![1, 0]), &[&x]), &[3, 2]),
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    );
    let y = eval(Op::Transpose(vec![2, 0, 1]), &[&count_up(&[2, 2, 2])]);
    assert_eq!(floats(&y, &[2, 2, 2]), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    assert_eq!(floats(&eval(Op::Reshape(dims(&[6])), &[&x]), &[6]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let b = eval(Op::Broadcast(dims(&[2, 2, 1])), &[&f32(&[2, 1], &[1.0, 2.0])]);
    assert_eq!(floats(&b, &[2, 2, 1]), [1.0, 2.0, 1.0, 2.0]);
    error(Op::Reshape(dims(&[5])), &[&x]);
    error(Op::Reshape(vec![Dim::sym("n"), Dim::from(2i64)]), &[&x]);
}

#[test]
fn slices_go_both_ways_and_stay_inside() {
    let x = count_up(&[3, 4]);
    let slice = |start: &[i64], len: &[i64], step: &[i64]| Op::Slice {
        start: dims(start),
        len: dims(len),
        step: step.to_vec(),
    };
    let y = eval(slice(&[2, 1], &[2, 2], &[-2, 2]), &[&x]);
    assert_eq!(floats(&y, &[2, 2]), [9.0, 11.0, 1.0, 3.0]);
    assert_eq!(floats(&eval(slice(&[0, 4], &[3, 0], &[1, 1]), &[&x]), &[3, 0]), []);
    let last = eval(slice(&[2, 3], &[1, 1], &[1, i64::MAX]), &[&x]);
    assert_eq!(floats(&last, &[1, 1]), [11.0]);
    error(slice(&[0, 3], &[1, 2], &[1, 1]), &[&x]);
    error(slice(&[0, 0], &[1, 2], &[1, -1]), &[&x]);
}

#[test]
fn concat_joins_along_any_axis() {
    let (a, b) = (count_up(&[2, 1, 2]), count_up(&[2, 2, 2]));
    let y = eval(Op::Concat { axis: 1 }, &[&a, &b]);
    assert_eq!(floats(&y, &[2, 3, 2]), [0., 1., 0., 1., 2., 3., 2., 3., 4., 5., 6., 7.]);
    let z = eval(Op::Concat { axis: 0 }, &[&count_up(&[1, 2]), &count_up(&[0, 2])]);
    assert_eq!(floats(&z, &[1, 2]), [0.0, 1.0]);
    error(Op::Concat { axis: 0 }, &[]);
}

#[test]
fn pads_in_all_modes() {
    let x = count_up(&[3]);
    let pad = |before: i64, after: i64, mode| Op::Pad {
        before: dims(&[before]),
        after: dims(&[after]),
        mode,
    };
    let one = |mode| floats(&eval(pad(4, 3, mode), &[&x]), &[10]);
    let fill = f32(&[], &[9.0]);
    let y = eval(pad(1, 2, PadMode::Constant), &[&x, &fill]);
    assert_eq!(floats(&y, &[6]), [9.0, 0.0, 1.0, 2.0, 9.0, 9.0]);
    assert_eq!(one(PadMode::Edge), [0., 0., 0., 0., 0., 1., 2., 2., 2., 2.]);
    assert_eq!(one(PadMode::Reflect), [0., 1., 2., 1., 0., 1., 2., 1., 0., 1.]);
    assert_eq!(one(PadMode::Wrap), [2., 0., 1., 2., 0., 1., 2., 0., 1., 2.]);
    let grid = eval(
        Op::Pad { before: dims(&[1, 0]), after: dims(&[0, 1]), mode: PadMode::Constant },
        &[&count_up(&[1, 2]), &fill],
    );
    assert_eq!(floats(&grid, &[2, 3]), [9., 9., 9., 0., 1., 9.]);
    error(pad(1, 0, PadMode::Edge), &[&count_up(&[0])]);
}

#[test]
fn sizes_become_data() {
    let binding: Binding = [("b", 3), ("s", 5)].into_iter().collect();
    let (b, s) = (Dim::sym("b"), Dim::sym("s"));
    let op = Op::Dims(vec![b.clone(), s.clone() * b.clone(), Dim::from(7i64)]);
    let y = eval_node(&op, &[], &binding).expect("all symbols are bound");
    assert_eq!(ints(&y, &[3]), [3, 15, 7]);
    let y = eval_node(&Op::Iota(b), &[], &binding).expect("all symbols are bound");
    assert_eq!(ints(&y, &[3]), [0, 1, 2]);
    assert!(eval_node(&Op::Iota(Dim::sym("q")), &[], &binding).is_err());
    assert!(eval_node(&Op::Iota(Dim::from(-1i64)), &[], &binding).is_err());
}

#[test]
fn large_results_are_refused_before_they_are_made() {
    let x = f32(&[1], &[0.0]);
    let what = error(Op::Broadcast(dims(&[1 << 40])), &[&x]);
    assert!(what.contains("4398046511104 bytes"), "{what}");
    error(Op::Broadcast(dims(&[1 << 40, 1 << 40])), &[&x]);
    error(Op::Iota(Dim::from(i64::MAX)), &[]);
    let none = Tensor::zeros(Elem::F32, &[0, 1]);
    error(Op::Broadcast(dims(&[1 << 40, 0, 1 << 40])), &[&none]);
    let wide = eval(Op::Broadcast(dims(&[0, 1 << 40])), &[&none]);
    assert_eq!(eval(Op::Concat { axis: 0 }, &[&wide, &wide]).count(), 0);
    assert_eq!(ints(&eval(Op::Cast(Elem::I8), &[&i64(&[1], &[257])]), &[1]), [1]);
}
