//! Element-wise operations.

use super::{error, eval, f32, floats, i64, ints};
use fqc_interp::Tensor;
use fqc_ir::{BinaryOp, Elem, Expr, Op, UnaryOp};
use proptest::prelude::*;
use std::f32::consts::{E, FRAC_1_SQRT_2, LN_2, SQRT_2};

fn unary(op: UnaryOp, x: f32) -> f32 {
    eval(Op::Unary(op), &[&f32(&[], &[x])]).as_f32().expect("f32")[0]
}

#[test]
fn functions_have_their_values_to_the_last_bit() {
    // From tables with twenty digits, rounded to f32 by the compiler.
    let cases: [(UnaryOp, f32, f32); 22] = [
        (UnaryOp::Exp, 1.0, E),
        (UnaryOp::Log, 2.0, LN_2),
        (UnaryOp::Sqrt, 2.0, SQRT_2),
        (UnaryOp::Rsqrt, 2.0, FRAC_1_SQRT_2),
        (UnaryOp::Reciprocal, 3.0, 0.333_333_34),
        (UnaryOp::Sin, 1.0, 0.841_471),
        (UnaryOp::Cos, 1.0, 0.540_302_3),
        (UnaryOp::Tanh, 0.5, 0.462_117_16),
        (UnaryOp::Erf, 0.5, 0.520_499_9),
        (UnaryOp::Erf, 1.0, 0.842_700_8),
        (UnaryOp::Sigmoid, 1.0, 0.731_058_6),
        (UnaryOp::Gelu, 1.0, 0.841_344_8),
        (UnaryOp::Gelu, -6.0, -5.919_526e-9),
        (UnaryOp::GeluTanh, 1.0, 0.841_192),
        (UnaryOp::Silu, 1.0, 0.731_058_6),
        (UnaryOp::Softplus, 0.0, LN_2),
        (UnaryOp::Softplus, 100.0, 100.0),
        (UnaryOp::Round, 2.5, 2.0),
        (UnaryOp::Round, -3.5, -4.0),
        (UnaryOp::Floor, -1.5, -2.0),
        (UnaryOp::Ceil, -1.5, -1.0),
        (UnaryOp::Sign, -7.0, -1.0),
    ];
    for (op, x, y) in cases {
        let got = unary(op, x);
        assert!((got - y).abs() <= y.abs() * 1.2e-7, "{}({x}) = {got:?}, not {y:?}", op.name());
    }
    assert!(unary(UnaryOp::Relu, f32::NAN).is_nan());
    assert_eq!(unary(UnaryOp::Relu, -1.0), 0.0);
}

#[test]
fn integers_wrap_in_their_own_type() {
    let a = Tensor::from_ints(Elem::I8, &[3], &[127, -128, 100]);
    let b = Tensor::from_ints(Elem::I8, &[3], &[1, -1, 3]);
    assert_eq!(ints(&eval(Op::Binary(BinaryOp::Add), &[&a, &b]), &[3]), [-128, 127, 103]);
    assert_eq!(ints(&eval(Op::Binary(BinaryOp::Mul), &[&a, &b]), &[3]), [127, -128, 44]);
    assert_eq!(ints(&eval(Op::Unary(UnaryOp::Neg), &[&a]), &[3]), [-127, -128, -100]);
    let a = i64(&[4], &[7, -7, i64::MIN, 5]);
    let b = i64(&[4], &[-2, 2, -1, 0]);
    assert_eq!(
        ints(&eval(Op::Binary(BinaryOp::Div), &[&a, &b]), &[4]),
        [-3, -3, i128::from(i64::MIN), 0]
    );
    assert_eq!(ints(&eval(Op::Binary(BinaryOp::Mod), &[&a, &b]), &[4]), [-1, 1, 0, 0]);
    assert_eq!(ints(&eval(Op::Binary(BinaryOp::Rem), &[&a, &b]), &[4]), [1, -1, 0, 0]);
    let a = i64(&[4], &[3, -1, -1, 2]);
    let b = i64(&[4], &[5, -3, 1 << 62, -1]);
    assert_eq!(ints(&eval(Op::Binary(BinaryOp::Pow), &[&a, &b]), &[4]), [243, -1, 1, 0]);
    let u = Tensor::from_ints(Elem::U64, &[2], &[-1, 1]);
    let v = Tensor::from_ints(Elem::U64, &[2], &[1, 2]);
    assert_eq!(eval(Op::Binary(BinaryOp::Gt), &[&u, &v]).as_bool(), Some(&[true, false][..]));
}

#[test]
fn nan_wins_in_min_and_max_and_loses_in_comparisons() {
    let a = f32(&[3], &[f32::NAN, 1.0, 2.0]);
    let b = f32(&[3], &[1.0, f32::NAN, 1.0]);
    for op in [BinaryOp::Min, BinaryOp::Max] {
        let y = floats(&eval(Op::Binary(op), &[&a, &b]), &[3]);
        assert!(y[0].is_nan() && y[1].is_nan() && !y[2].is_nan(), "{}", op.name());
    }
    let less = eval(Op::Binary(BinaryOp::Lt), &[&a, &b]);
    assert_eq!(less.as_bool(), Some(&[false; 3][..]));
    assert_eq!(eval(Op::Unary(UnaryOp::IsNan), &[&a]).as_bool(), Some(&[true, false, false][..]));
    let x = f32(&[2], &[-7.5, 7.5]);
    let m = floats(&eval(Op::Binary(BinaryOp::Mod), &[&x, &f32(&[], &[2.0])]), &[2]);
    let r = floats(&eval(Op::Binary(BinaryOp::Rem), &[&x, &f32(&[], &[2.0])]), &[2]);
    assert_eq!((m, r), (vec![0.5, 1.5], vec![-1.5, 1.5]));
}

#[test]
fn casts_truncate_and_wrap() {
    let x = f32(&[7], &[1.9, -1.9, 300.0, f32::NAN, -0.0, 3e9, f32::INFINITY]);
    let cast = |to| eval(Op::Cast(to), &[&x]);
    assert_eq!(ints(&cast(Elem::I32), &[7]), [1, -1, 300, 0, 0, -1_294_967_296, -1]);
    assert_eq!(ints(&cast(Elem::U8), &[7])[..3], [1, 255, 44]);
    assert_eq!(ints(&cast(Elem::I64), &[7])[6], i128::from(i64::MAX));
    let bools = cast(Elem::Bool);
    assert_eq!(bools.as_bool(), Some(&[true, true, true, true, false, true, true][..]));
    assert_eq!(floats(&eval(Op::Cast(Elem::F32), &[&bools]), &[7])[3..5], [1.0, 0.0]);
    let half = eval(Op::Cast(Elem::F16), &[&f32(&[2], &[2049.0, 1e6])]);
    assert_eq!(half.floats(), Some(vec![2048.0, f64::INFINITY]));
    let sum = eval(Op::Binary(BinaryOp::Add), &[&half, &half]);
    assert_eq!(sum.elem(), Elem::F16);
}

#[test]
fn select_and_pointwise_broadcast() {
    let c = Tensor::bool(&[2, 1], &[true, false]);
    let y = eval(Op::Select, &[&c, &f32(&[3], &[1.0, 2.0, 3.0]), &f32(&[], &[9.0])]);
    assert_eq!(floats(&y, &[2, 3]), [1.0, 2.0, 3.0, 9.0, 9.0, 9.0]);

    // max(x * 2 + y, 0) > 3 ? x : -1
    let scaled = Expr::binary(BinaryOp::Mul, Expr::arg(0), Expr::f32(2.0));
    let sum = Expr::unary(UnaryOp::Relu, Expr::binary(BinaryOp::Add, scaled, Expr::arg(1)));
    let test = Expr::binary(BinaryOp::Gt, sum, Expr::f32(3.0));
    let tree = Expr::select(test, Expr::arg(0), Expr::f32(-1.0));
    let (x, y) = (f32(&[2, 1], &[1.0, 2.0]), f32(&[2], &[0.0, 2.0]));
    let out = eval(Op::Pointwise(tree), &[&x, &y]);
    assert_eq!(floats(&out, &[2, 2]), [-1.0, 1.0, 2.0, 2.0]);
    let constant = eval(Op::Pointwise(Expr::f32(4.0)), &[&y]);
    assert_eq!(floats(&constant, &[2]), [4.0, 4.0]);
}

#[test]
fn mismatches_are_errors() {
    let what = error(Op::Binary(BinaryOp::Add), &[&f32(&[2], &[0.0; 2]), &i64(&[2], &[0; 2])]);
    assert!(what.contains("f32") && what.contains("i64"), "{what}");
    error(Op::Binary(BinaryOp::Add), &[&f32(&[2], &[0.0; 2]), &f32(&[3], &[0.0; 3])]);
    error(Op::Binary(BinaryOp::Add), &[&f32(&[2], &[0.0; 2])]);
    error(Op::Unary(UnaryOp::Exp), &[&i64(&[1], &[0])]);
    error(Op::Select, &[&i64(&[1], &[0]), &i64(&[1], &[0]), &i64(&[1], &[0])]);
}

/// A shape, and two shapes that broadcast to it.
fn broadcastable() -> impl Strategy<Value = (Vec<usize>, Vec<usize>, Vec<usize>)> {
    prop::collection::vec((1usize..4, 0u8..3), 0..4).prop_flat_map(|axes| {
        let out: Vec<usize> = axes.iter().map(|a| a.0).collect();
        let part = |keep: u8| -> Vec<usize> {
            axes.iter().map(|&(d, k)| if k == keep { 1 } else { d }).collect()
        };
        let (a, b) = (part(1), part(2));
        let lead = a.iter().take_while(|d| **d == 1).count();
        (Just(out), (0..=lead).prop_map(move |drop| a[drop..].to_vec()), Just(b))
    })
}

proptest! {
    #[test]
    fn broadcasting_agrees_with_index_arithmetic((out, sa, sb) in broadcastable()) {
        let value = |shape: &[usize]| {
            let n: usize = shape.iter().product();
            let v: Vec<i64> = (0..n).map(|i| (i * i + 7) as i64).collect();
            i64(shape, &v)
        };
        let (a, b) = (value(&sa), value(&sb));
        let got = eval(Op::Binary(BinaryOp::Sub), &[&a, &b]);
        prop_assert_eq!(got.shape(), &out[..]);
        let at = |shape: &[usize], index: &[usize]| {
            let index = &index[index.len() - shape.len()..];
            shape.iter().zip(index).fold(0, |at, (&d, &i)| at * d + if d == 1 { 0 } else { i })
        };
        for flat in 0..got.count() {
            let mut rest = flat;
            let mut index = vec![0; out.len()];
            for axis in (0..out.len()).rev() {
                index[axis] = rest % out[axis];
                rest /= out[axis];
            }
            let (i, j) = (at(&sa, &index), at(&sb, &index));
            let (x, y) = (a.as_i64().expect("i64")[i], b.as_i64().expect("i64")[j]);
            prop_assert_eq!(got.as_i64().expect("i64")[flat], x - y);
        }
    }

    #[test]
    fn f32_arithmetic_is_that_of_the_machine(x in any::<f32>(), y in any::<f32>()) {
        let (a, b) = (f32(&[], &[x]), f32(&[], &[y]));
        let same = |op, z: f32| {
            let got = eval(Op::Binary(op), &[&a, &b]).as_f32().expect("f32")[0];
            got.to_bits() == z.to_bits() || got.is_nan() && z.is_nan()
        };
        prop_assert!(same(BinaryOp::Add, x + y));
        prop_assert!(same(BinaryOp::Sub, x - y));
        prop_assert!(same(BinaryOp::Mul, x * y));
        prop_assert!(same(BinaryOp::Div, x / y));
        prop_assert!(same(BinaryOp::Rem, x % y));
    }
}
