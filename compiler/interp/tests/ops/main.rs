//! Every family of operations against values worked out by hand, and properties that hold for all
//! operands.

mod graph;
mod index;
mod math;
mod nn;
mod quant;
mod reduce;
mod shape;

use fqc_interp::{Binding, OpError, Tensor, eval_node};
use fqc_ir::{Dim, Op};

fn eval(op: Op, operands: &[&Tensor]) -> Tensor {
    eval_node(&op, operands, &Binding::new()).expect("the operands fit the operation")
}

fn error(op: Op, operands: &[&Tensor]) -> String {
    match eval_node(&op, operands, &Binding::new()) {
        Ok(value) => panic!("`{}` gave {value:?}", op.mnemonic()),
        Err(OpError::Invalid(what)) => what,
        Err(other) => other.to_string(),
    }
}

fn f32(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::f32(shape, values)
}

fn i64(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::i64(shape, values)
}

/// 0, 1, 2, … as f32.
fn count_up(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    f32(shape, &(0..n).map(|i| i as f32).collect::<Vec<_>>())
}

fn dims(sizes: &[i64]) -> Vec<Dim> {
    sizes.iter().map(|&d| Dim::from(d)).collect()
}

/// The elements, and that the shape is as expected.
#[track_caller]
fn floats(t: &Tensor, shape: &[usize]) -> Vec<f32> {
    assert_eq!(t.shape(), shape);
    t.as_f32().expect("an f32 result").to_vec()
}

#[track_caller]
fn ints(t: &Tensor, shape: &[usize]) -> Vec<i128> {
    assert_eq!(t.shape(), shape);
    t.ints().expect("an integer result")
}

#[track_caller]
fn near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance, "element {i}: {x} and {y}");
    }
}
