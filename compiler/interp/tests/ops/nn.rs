//! Matrix products, norms, rotary embedding, attention.

use super::{count_up, error, eval, f32, floats, i64, ints, near};
use fqc_interp::Tensor;
use fqc_ir::{Elem, Op};

#[test]
fn matmul_broadcasts_its_batches() {
    let a = count_up(&[2, 3]);
    let b = count_up(&[3, 2]);
    assert_eq!(floats(&eval(Op::MatMul, &[&a, &b]), &[2, 2]), [10.0, 13.0, 28.0, 40.0]);
    let left = count_up(&[2, 1, 1, 2]);
    let right = count_up(&[2, 2, 1]);
    let y = eval(Op::MatMul, &[&left, &right]);
    assert_eq!(floats(&y, &[2, 2, 1, 1]), [1.0, 3.0, 3.0, 13.0]);
    let none = eval(Op::MatMul, &[&count_up(&[2, 0]), &count_up(&[0, 3])]);
    assert_eq!(floats(&none, &[2, 3]), [0.0; 6]);
    error(Op::MatMul, &[&a, &a]);
    error(Op::MatMul, &[&count_up(&[2]), &b]);
}

#[test]
fn integer_matmul_wraps() {
    let a = Tensor::from_ints(Elem::U8, &[1, 2], &[200, 100]);
    let b = Tensor::from_ints(Elem::U8, &[2, 1], &[2, 1]);
    assert_eq!(ints(&eval(Op::MatMul, &[&a, &b]), &[1, 1]), [500 - 256]);
    let wide = i64(&[1, 1], &[i64::MAX]);
    assert_eq!(ints(&eval(Op::MatMul, &[&wide, &wide]), &[1, 1]), [1]);
}

#[test]
fn f32_products_are_rounded_once() {
    let a = f32(&[1, 3], &[1e8, 1.0, -1e8]);
    let b = f32(&[3, 1], &[1.0, 1.0, 1.0]);
    assert_eq!(floats(&eval(Op::MatMul, &[&a, &b]), &[1, 1]), [1.0]);
}

#[test]
fn softmax_of_extreme_rows() {
    let inf = f32::INFINITY;
    let x = f32(&[3, 2], &[1000.0, 1000.0, 0.0, -inf, 1.0, 2.0]);
    let y = floats(&eval(Op::Softmax, &[&x]), &[3, 2]);
    near(&y, &[0.5, 0.5, 1.0, 0.0, 0.268_941_43, 0.731_058_6], 1e-7);
    let hidden = eval(Op::Softmax, &[&f32(&[2], &[-inf, -inf])]);
    assert!(floats(&hidden, &[2]).iter().all(|v| v.is_nan()));
}

#[test]
fn norms() {
    let x = f32(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let (gamma, beta) = (f32(&[4], &[1.0, 1.0, 2.0, 2.0]), f32(&[4], &[0.0, 0.0, 0.0, 1.0]));
    let y = eval(Op::LayerNorm { epsilon: 0.0 }, &[&x, &gamma, &beta]);
    // Mean 2.5, variance 1.25.
    let unit = 1.0 / 1.25f32.sqrt();
    near(&floats(&y, &[1, 4]), &[-1.5 * unit, -0.5 * unit, unit, 3.0 * unit + 1.0], 1e-6);
    let y = eval(Op::LayerNorm { epsilon: 2.75 }, &[&x, &gamma]);
    near(&floats(&y, &[1, 4]), &[-0.75, -0.25, 0.5, 1.5], 1e-6);
    let y = eval(Op::RmsNorm { epsilon: 1.5 }, &[&x, &gamma]);
    // Mean square 7.5.
    near(&floats(&y, &[1, 4]), &[1.0 / 3.0, 2.0 / 3.0, 2.0, 8.0 / 3.0], 1e-6);
}

#[test]
fn rope_rotates_halves() {
    let x = f32(&[1, 1, 2, 4], &[1., 2., 3., 4., 5., 6., 7., 8.]);
    let cos = f32(&[2, 4], &[0., 0., 0., 0., 1., 1., 1., 1.]);
    let sin = f32(&[2, 4], &[1., 1., 1., 1., 0., 0., 0., 2.]);
    let y = eval(Op::Rope, &[&x, &cos, &sin]);
    assert_eq!(floats(&y, &[1, 1, 2, 4]), [-3., -4., 1., 2., 5., 6., 7., 20.]);
    error(Op::Rope, &[&count_up(&[2, 3]), &count_up(&[3]), &count_up(&[3])]);
}

#[test]
fn attention_reads_groups_masks_and_order() {
    let attention = |causal| Op::Attention { scale: 1.0, causal };
    // Two heads share one group; all scores are equal, so the weights are uniform.
    let q = Tensor::zeros(Elem::F32, &[1, 2, 2, 1]);
    let k = count_up(&[1, 1, 3, 1]);
    let v = f32(&[1, 1, 3, 1], &[1.0, 2.0, 6.0]);
    let y = eval(attention(false), &[&q, &k, &v]);
    near(&floats(&y, &[1, 2, 2, 1]), &[3.0; 4], 1e-6);
    let y = eval(attention(true), &[&q, &k, &v]);
    near(&floats(&y, &[1, 2, 2, 1]), &[1.5, 3.0, 1.5, 3.0], 1e-6);
    let mask = f32(&[2, 1, 3], &[0.0, -1e30, 0.0, -1e30, -1e30, 0.0]);
    let y = eval(attention(false), &[&q, &k, &v, &mask]);
    near(&floats(&y, &[1, 2, 2, 1]), &[3.5, 3.5, 6.0, 6.0], 1e-6);
    // More queries than keys: the first has nothing to look at.
    let q = Tensor::zeros(Elem::F32, &[1, 1, 2, 1]);
    let one = f32(&[1, 1, 1, 1], &[5.0]);
    let y = eval(attention(true), &[&q, &one, &one]);
    assert_eq!(floats(&y, &[1, 1, 2, 1]), [0.0, 5.0]);
    let hidden = f32(&[1], &[f32::NEG_INFINITY]);
    let y = floats(&eval(attention(true), &[&q, &one, &one, &hidden]), &[1, 1, 2, 1]);
    assert!(y[0] == 0.0 && y[1].is_nan());
}

#[test]
fn attention_weights_follow_the_scores() {
    let q = f32(&[1, 1, 1, 2], &[1.0, 2.0]);
    let k = f32(&[1, 1, 2, 2], &[1.0, 0.0, 0.0, 1.0]);
    let v = f32(&[1, 1, 2, 1], &[0.0, 1.0]);
    let y = eval(Op::Attention { scale: 2.0, causal: false }, &[&q, &k, &v]);
    // Scores 2 and 4: the weight of the second is sigmoid(2).
    near(&floats(&y, &[1, 1, 1, 1]), &[0.880_797], 1e-6);
}
