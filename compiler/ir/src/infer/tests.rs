//! The rules by example: what each family accepts, and the two ways to refuse.

use super::*;
use crate::data::Const;
use crate::expr::{BinaryOp, Expr, UnaryOp};
use crate::quant::{FlattenMap, Quant, Quantizer, Scale};
use std::sync::Arc;

fn ty(text: &str) -> Type {
    let (elem, rest) = text.split_once('[').expect("a type has a bracket");
    let dims = rest.trim_end_matches(']');
    let shape = dims.split(',').filter(|d| !d.is_empty()).map(|d| match d.parse::<i64>() {
        Ok(v) => Dim::from(v),
        Err(_) => Dim::sym(d),
    });
    Type::new(Elem::parse(elem).expect("an element type"), shape.collect())
}

fn check(op: Op, operands: &[&str], expected: &str) {
    let types: Vec<Type> = operands.iter().map(|t| ty(t)).collect();
    let got = match infer(&op, &types.iter().collect::<Vec<_>>()) {
        Ok(ty) => ty.to_string(),
        Err(e) => e.to_string(),
    };
    assert_eq!(got, expected, "{op:?} of {operands:?}");
}

#[test]
fn elementwise_broadcasts_and_names_sizes_that_may_be_equal() {
    let add = || Op::Binary(BinaryOp::Add);
    check(add(), &["f32[b,1,4]", "f32[s,1]"], "f32[b,s,4]");
    check(add(), &["f32[0]", "f32[1]"], "f32[0]");
    check(add(), &["f32[a]", "f32[b]"], "size `a` is not known to equal `b`");
    check(add(), &["f32[3]", "f32[4]"], "broadcast: size 3 is not 4");
    check(add(), &["f32[3]", "i64[3]"], "`add` of f32 and i64");
    check(add(), &["f32[3]"], "`add` takes 2 operands, 1 given");
    check(Op::Binary(BinaryOp::Lt), &["i64[n]", "i64[]"], "bool[n]");
    check(Op::Unary(UnaryOp::Exp), &["i64[3]"], "`exp` does not take i64");
    check(Op::Select, &["bool[n,1]", "f32[]", "f32[5]"], "f32[n,5]");
}

#[test]
fn matmul_broadcasts_its_batch() {
    check(Op::MatMul, &["f32[b,h,s,64]", "f32[64,12]"], "f32[b,h,s,12]");
    check(Op::MatMul, &["f32[2,3]", "f32[4,5]"], "matmul: size 3 is not 4");
    check(Op::MatMul, &["f32[s,t]", "f32[u,5]"], "size `t` is not known to equal `u`");
}

#[test]
fn shapes_move_without_losing_elements() {
    let to = |t: &str| Op::Reshape(ty(&format!("f32[{t}]")).shape);
    check(to("b,2,6"), &["f32[b,12]"], "f32[b,2,6]");
    check(to("5"), &["f32[2,3]"], "`reshape` of f32[2,3], 6 elements, to f32[5]");
    check(to("t,12"), &["f32[b,12]"], "size `12*b` is not known to equal `12*t`");
    check(Op::Transpose(vec![1, 0, 2]), &["f32[b,s,3]"], "f32[s,b,3]");
    let one = |start: i64, len: i64, step| Op::Slice {
        start: vec![start.into()],
        len: vec![len.into()],
        step: vec![step],
    };
    check(one(4, 5, -1), &["f32[5]"], "f32[5]");
    check(one(1, 3, 2), &["f32[5]"], "`slice`: element 5 of axis 0, whose size is 5");
    check(Op::Concat { axis: 0 }, &["f32[s]", "f32[1]", "f32[s]"], "f32[2*s+1]");
}

#[test]
fn gathers_and_scatters() {
    check(Op::Gather { axis: 0 }, &["f32[30522,384]", "i64[b,s]"], "f32[b,s,384]");
    check(Op::GatherNd { batch_dims: 1 }, &["f32[b,7,4]", "i64[b,3,1]"], "f32[b,3,4]");
    let scatter = Op::ScatterNd { reduction: crate::op::ScatterOp::Set };
    check(scatter, &["f32[8,4]", "i64[3,1]", "f32[3,4]"], "f32[8,4]");
}

#[test]
fn attention_groups_heads() {
    let op = || Op::Attention { scale: 0.125, causal: false };
    let kv = "f32[b,3,t,8]";
    check(op(), &["f32[b,6,s,8]", kv, "f32[b,3,t,5]", "f32[b,1,1,t]"], "f32[b,6,s,5]");
    check(op(), &["f32[b,4,s,8]", kv, kv], "`attention`: 4 heads are not a multiple of 3 groups");
}

#[test]
fn codes_flow_from_quantize_through_gemm() {
    let map = FlattenMap { base: 6, tail: Arc::from([(1, 2), (1, 3)]), padded: 64 };
    let quant = Arc::new(Quant {
        scale: Scale::Tensor(0.5),
        bits: 8,
        signed: true,
        flatten: Some(Arc::new(map)),
    });
    let quantizer = Arc::new(Quantizer::per_tensor(quant.clone()));
    let x = infer(&Op::Quantize(quantizer), &[&ty("f32[b,6]")]).expect("six channels");
    assert_eq!((x.to_string().as_str(), x.quant.as_ref()), ("i8[b,64]", Some(&quant)));

    let scales = Scale::Axis { axis: 1, scales: Arc::from([0.1, 0.2, 0.3]) };
    let w_quant = Quant { scale: scales, bits: 8, signed: true, flatten: None };
    let w = Const::i8(vec![64, 3], &[1; 192]).with_quant(Arc::new(w_quant));
    let w = infer(&Op::Const(w), &[]).expect("a constant has its type");
    let gemm =
        Op::Gemm { epilogue: Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1)), out: None };
    let y = infer(&gemm, &[&x, &w, &ty("f32[3]")]).expect("a bias of three columns");
    assert_eq!(y, ty("f32[b,3]"));
    let plain = infer(&gemm, &[&ty("f32[b,64]"), &w, &ty("f32[3]")]);
    assert!(plain.is_err(), "codes and floats do not mix");
    assert!(infer(&Op::Unary(UnaryOp::Neg), &[&x]).is_err(), "codes are not numbers");
    assert_eq!(infer(&Op::Dequantize, &[&x]), Ok(ty("f32[b,64]")));
}
