//! Flattening and codes: exact sums, and the equality of the flattened and the wide product.

use super::{error, eval, f32, floats, ints};
use fqc_interp::Tensor;
use fqc_ir::quant::{digit, q_max, wide_code};
use fqc_ir::{BinaryOp, Elem, Expr, FlattenMap, Op, Quant, Quantizer, Scale, UnaryOp};
use proptest::prelude::*;
use std::sync::Arc;

/// A map with the given number of copies of each channel.
fn map(copies: &[u16], align: u32) -> Arc<FlattenMap> {
    let tail: Vec<(u32, u16)> =
        (0u32..).zip(copies).flat_map(|(j, &n)| (2..=n).map(move |digit| (j, digit))).collect();
    let used = (copies.len() + tail.len()) as u32;
    let padded = used.next_multiple_of(align);
    Arc::new(FlattenMap { base: copies.len() as u32, tail: Arc::from(tail), padded })
}

fn quantizer(scale: f32, bits: u8, signed: bool, flatten: Option<Arc<FlattenMap>>) -> Quantizer {
    let scale = Scale::Tensor(scale);
    Quantizer::per_tensor(Arc::new(Quant { scale, bits, signed, flatten }))
}

fn weights(k: usize, n: usize, codes: &[i8], scales: &[f32]) -> Tensor {
    let scale = Scale::Axis { axis: 1, scales: Arc::from(scales) };
    let quant = Quant { scale, bits: 8, signed: true, flatten: None };
    Tensor::i8(&[k, n], codes).with_quant(Some(Arc::new(quant)))
}

#[test]
fn quantize_makes_digits_and_dequantize_reads_them() {
    let x = f32(&[2, 2], &[1.0, 20.0, f32::NAN, -9.4]);
    let q = quantizer(1.0, 4, true, Some(map(&[1, 3], 8)));
    let codes = eval(Op::Quantize(Arc::new(q.clone())), &[&x]);
    let wanted = [1, 7, 7, 6, 0, 0, 0, 0, 0, -7, -2, 0, 0, 0, 0, 0];
    assert_eq!(codes.elem(), Elem::I8);
    assert_eq!(codes.quant(), Some(&q.quant));
    assert_eq!(ints(&codes, &[2, 8]), wanted);
    let real = eval(Op::Dequantize, &[&codes]);
    assert_eq!(floats(&real, &[2, 8])[8..12], [0.0, -7.0, -2.0, 0.0]);

    let unsigned = quantizer(0.5, 8, false, None);
    let codes = eval(Op::Quantize(Arc::new(unsigned)), &[&f32(&[3], &[-1.0, 100.25, 1e9])]);
    assert_eq!((codes.elem(), ints(&codes, &[3])), (Elem::U8, vec![0, 200, 255]));
    let per_channel = weights(2, 2, &[1, 2, 3, 4], &[0.5, 2.0]);
    assert_eq!(floats(&eval(Op::Dequantize, &[&per_channel]), &[2, 2]), [0.5, 4.0, 1.5, 8.0]);
    error(Op::Dequantize, &[&Tensor::i8(&[1], &[1])]);
}

#[test]
fn flatten_cuts_all_but_the_last_copy() {
    let op = Op::Flatten { threshold: 2.0, map: map(&[2, 3, 1], 4) };
    let y = eval(op, &[&f32(&[3], &[-5.0, 3.0, 9.0])]);
    // [base | (0,2) (1,2) (1,3) | pad]
    assert_eq!(floats(&y, &[8]), [-2.0, 2.0, 9.0, -3.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn gemm_scales_the_sums_then_applies_the_epilogue() {
    let x =
        Tensor::i8(&[2, 2], &[1, 2, -3, 4]).with_quant(Some(quantizer(0.5, 8, true, None).quant));
    let w = weights(2, 2, &[1, 2, 3, 4], &[1.0, 0.25]);
    let sums = eval(Op::GemmAccumulate, &[&x, &w]);
    assert_eq!((sums.elem(), ints(&sums, &[2, 2])), (Elem::I32, vec![7, 10, 9, 10]));
    // relu(acc + bias) - residual
    let biased = Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1));
    let epilogue = Expr::binary(BinaryOp::Sub, Expr::unary(UnaryOp::Relu, biased), Expr::arg(2));
    let (bias, residual) = (f32(&[2], &[-4.0, 1.0]), f32(&[2, 2], &[0.0, 1.0, 2.0, 3.0]));
    let gemm = |out| Op::Gemm { epilogue: epilogue.clone(), out };
    let y = eval(gemm(None), &[&x, &w, &bias, &residual]);
    assert_eq!(floats(&y, &[2, 2]), [0.0, 1.25, -1.5, -0.75]);
    let out = quantizer(0.5, 8, true, None);
    let y = eval(gemm(Some(Arc::new(out))), &[&x, &w, &bias, &residual]);
    assert_eq!(ints(&y, &[2, 2]), [0, 2, -3, -2]);

    let plain = Op::Gemm { epilogue: Expr::arg(0), out: None };
    let y = eval(plain.clone(), &[&f32(&[1, 2], &[1.0, 2.0]), &f32(&[2, 1], &[3.0, 4.0])]);
    assert_eq!(floats(&y, &[1, 1]), [11.0]);
    error(plain, &[&x, &f32(&[2, 1], &[3.0, 4.0])]);
}

#[test]
fn fused_quantisers_equal_their_parts() {
    let x = f32(&[2, 4], &[1.0, -2.0, 3.0, 8.0, 0.5, 0.5, 0.25, -9.0]);
    let (gamma, beta) = (f32(&[4], &[1.0, 2.0, 1.0, 3.0]), f32(&[4], &[0.1, 0.2, 0.3, 0.4]));
    let out = Arc::new(quantizer(0.02, 8, true, Some(map(&[1, 1, 1, 3], 8))));
    let after =
        |op: Op, operands: &[&Tensor]| eval(Op::Quantize(out.clone()), &[&eval(op, operands)]);
    let epsilon = 1e-5;
    assert_eq!(
        eval(Op::LayerNormQuantize { epsilon, out: out.clone() }, &[&x, &gamma, &beta]),
        after(Op::LayerNorm { epsilon }, &[&x, &gamma, &beta])
    );
    assert_eq!(
        eval(Op::RmsNormQuantize { epsilon, out: out.clone() }, &[&x, &gamma]),
        after(Op::RmsNorm { epsilon }, &[&x, &gamma])
    );
    let expr = Expr::unary(UnaryOp::Gelu, Expr::binary(BinaryOp::Mul, Expr::arg(0), Expr::arg(1)));
    assert_eq!(
        eval(Op::PointwiseQuantize { expr: expr.clone(), out: out.clone() }, &[&x, &gamma]),
        after(Op::Pointwise(expr), &[&x, &gamma])
    );
}

/// Rows, columns, the copies of each channel, and seeds for what is in them.
fn linear() -> impl Strategy<Value = (usize, usize, Vec<u16>, Vec<f32>, Vec<i8>)> {
    let copies = prop::collection::vec(prop_oneof![3 => Just(1u16), 1 => 2u16..6], 1..24);
    (1usize..5, 1usize..7, copies).prop_flat_map(|(m, n, copies)| {
        let k = copies.len();
        let x =
            prop::collection::vec(prop_oneof![4 => -10.0f32..10.0, 1 => -800.0f32..800.0], m * k);
        let w = prop::collection::vec(-127i8..=127, k * n);
        (Just(m), Just(n), Just(copies), x, w)
    })
}

proptest! {
    /// The identity that flattening rests on: with shared weight codes, the digits' product is the
    /// product of the wide codes, saturated where the last digit ends.
    #[test]
    fn a_flattened_product_is_the_wide_one(
        (m, n, copies, x, w) in linear(),
        bits in prop_oneof![Just(4u8), Just(8)],
        signed in any::<bool>(),
    ) {
        let (k, scale) = (copies.len(), 0.11f32);
        let map = map(&copies, 16);
        let q = quantizer(scale, bits, signed, Some(map.clone()));
        let codes = eval(Op::Quantize(Arc::new(q.clone())), &[&f32(&[m, k], &x)]);
        let padded = map.padded as usize;
        let mut flat = vec![0i8; padded * n];
        for i in 0..padded {
            if let Some((j, _)) = map.source(i) {
                flat[i * n..][..n].copy_from_slice(&w[j * n..][..n]);
            }
        }
        let flat = weights(padded, n, &flat, &vec![1.0; n]);
        let sums = ints(&eval(Op::GemmAccumulate, &[&codes, &flat]), &[m, n]);
        let top = i64::from(q_max(bits, signed));
        for row in 0..m {
            for o in 0..n {
                let wide: i64 = (0..k).map(|j| {
                    let c = i64::from(wide_code(x[row * k + j], q.inverse(j), signed));
                    let most = i64::from(copies[j]) * top;
                    c.clamp(-most, most) * i64::from(w[j * n + o])
                }).sum();
                prop_assert_eq!(sums[row * n + o], i128::from(wide));
            }
        }
    }

    /// Values on a grid, so that each slice is exact and the sum must be the value itself.
    #[test]
    fn flatten_keeps_the_sum(
        (copies, grid) in prop::collection::vec((1u16..5, -4000i32..4000), 1..20)
            .prop_map(|v| v.into_iter().unzip::<u16, i32, Vec<_>, Vec<_>>()),
        threshold in 1u16..512,
    ) {
        let values: Vec<f32> = grid.iter().map(|&v| v as f32 / 64.0).collect();
        let map = map(&copies, 8);
        let threshold = f32::from(threshold) / 64.0;
        let op = Op::Flatten { threshold, map: map.clone() };
        let y = eval(op, &[&f32(&[values.len()], &values)]);
        let flat = y.as_f32().expect("f32");
        let mut sums = vec![0f32; values.len()];
        for (i, v) in flat.iter().enumerate() {
            match map.source(i) {
                Some((j, k)) => {
                    sums[j] += v;
                    let cut = k < u32::from(copies[j]);
                    prop_assert!(!cut || v.abs() <= threshold);
                }
                None => prop_assert_eq!(*v, 0.0),
            }
        }
        prop_assert_eq!(sums, values);
    }

    /// Any values: the sum of the slices is the value but for the rounding of the last slice.
    #[test]
    fn flatten_keeps_the_sum_of_any_value(x in -1e6f32..1e6, threshold in 0.01f32..1e4) {
        let op = Op::Flatten { threshold, map: map(&[4], 4) };
        let y = eval(op, &[&f32(&[1], &[x])]);
        let sum: f64 = y.to_f64().iter().sum();
        prop_assert!((sum - f64::from(x)).abs() <= f64::from(x.abs()) * 2f64.powi(-24));
    }

    #[test]
    fn digits_of_a_code_lie_in_its_range(c in any::<i32>(), k in 1u32..9, bits in 4u8..9) {
        let top = q_max(bits, true);
        prop_assert!((-top..=top).contains(&digit(c, k, top)));
    }
}
