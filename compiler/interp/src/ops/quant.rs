//! Flattening and codes. All rounding is `fqc_ir::quant`'s; sums of codes are exact integers.

use super::floats;
use super::math::pointwise;
use super::nn::product;
use crate::error::{OpError, Res};
use crate::tensor::{Data, Tensor};
use fqc_ir::{Elem, Expr, FlattenMap, Quant, Quantizer, Scale};

/// Product of all sizes but the last.
fn rows(x: &Tensor) -> usize {
    let shape = x.shape();
    shape[..shape.len().saturating_sub(1)].iter().product()
}

pub(crate) fn flatten(x: &Tensor, threshold: f32, map: &FlattenMap) -> Res<Data> {
    let (values, threshold) = (floats(x)?, f64::from(threshold));
    let base = map.base as usize;
    let mut copies = vec![1u32; base];
    for &(source, digit) in map.tail.iter() {
        copies[source as usize] = u32::from(digit);
    }
    let mut out = Vec::with_capacity(rows(x) * map.padded as usize);
    for row in 0..rows(x) {
        let x = &values[row * base..][..base];
        out.extend((0..map.padded as usize).map(|i| match map.source(i) {
            Some((j, k)) => slice_of(x[j], k, copies[j], threshold),
            None => 0.0,
        }));
    }
    Ok(Data::from_floats(Elem::F32, out.into_iter()))
}

/// Slice `k` of `copies` of a real number.
fn slice_of(x: f64, k: u32, copies: u32, threshold: f64) -> f64 {
    if x.is_nan() || copies == 1 {
        return x;
    }
    let rest = (x.abs() - f64::from(k - 1) * threshold).max(0.0);
    let cut = if k < copies { rest.min(threshold) } else { rest };
    if x < 0.0 { -cut } else { cut }
}

pub(crate) fn quantize(x: &Tensor, quantizer: &Quantizer) -> Res<Data> {
    let values = x.as_f32().ok_or_else(|| OpError::invalid("only f32 can be quantised"))?;
    let channels = x.last();
    let wide = usize::try_from(quantizer.out_channels(channels as i64)).unwrap_or(channels);
    let mut codes = vec![0i8; rows(x) * wide];
    for row in 0..rows(x) {
        quantizer.row(&values[row * channels..][..channels], &mut codes[row * wide..][..wide]);
    }
    if quantizer.quant.signed {
        return Ok(Data::I8(codes));
    }
    Ok(Data::U8(codes.into_iter().map(|c| c as u8).collect()))
}

fn meaning(x: &Tensor) -> Res<&Quant> {
    x.quant().map(|q| &**q).ok_or_else(|| OpError::invalid("the operand is not codes"))
}

fn codes(x: &Tensor) -> Res<Vec<i32>> {
    match x.data() {
        Data::I8(v) => Ok(v.iter().map(|&c| i32::from(c)).collect()),
        Data::U8(v) => Ok(v.iter().map(|&c| i32::from(c)).collect()),
        _ => Err(OpError::invalid(format!("{} cannot be codes", x.elem()))),
    }
}

pub(crate) fn dequantize(x: &Tensor) -> Res<Data> {
    let codes = codes(x)?;
    let values: Vec<f32> = match &meaning(x)?.scale {
        Scale::Tensor(scale) => codes.iter().map(|&c| c as f32 * scale).collect(),
        Scale::Axis { axis, scales } => {
            let inner: usize = x.shape()[axis + 1..].iter().product();
            let scale = |i: usize| scales[i / inner % scales.len()];
            codes.iter().enumerate().map(|(i, &c)| c as f32 * scale(i)).collect()
        }
    };
    Ok(Data::F32(values))
}

/// The sums of products of codes, row-major.
fn accumulate(x: &Tensor, w: &Tensor) -> Res<Vec<i32>> {
    let (k, n) = (w.shape()[0], w.shape()[1]);
    let (x_codes, w_codes) = (codes(x)?, codes(w)?);
    let mut out = Vec::with_capacity(rows(x) * n);
    for row in 0..rows(x) {
        let mut sums = vec![0i64; n];
        for (p, &c) in x_codes[row * k..][..k].iter().enumerate() {
            for (sum, &v) in sums.iter_mut().zip(&w_codes[p * n..][..n]) {
                *sum += i64::from(c * v);
            }
        }
        for sum in sums {
            let overflow = || OpError::invalid(format!("the sum {sum} does not fit in i32"));
            out.push(i32::try_from(sum).map_err(|_| overflow())?);
        }
    }
    Ok(out)
}

pub(crate) fn gemm_accumulate(x: &Tensor, w: &Tensor) -> Res<Data> {
    Ok(Data::I32(accumulate(x, w)?))
}

/// The scale of the sums of output channel `o`, as the compiler computes it: one f32 product.
fn sum_scale(x: &Quant, w: &Quant, o: usize) -> Res<f32> {
    match (&x.scale, &w.scale) {
        (Scale::Tensor(x), Scale::Tensor(w)) => Ok(x * w),
        (Scale::Tensor(x), Scale::Axis { scales, .. }) => Ok(x * scales[o]),
        _ => Err(OpError::invalid("the activation has one scale a channel")),
    }
}

pub(crate) fn gemm(x: &[&Tensor], epilogue: &Expr, out: Option<&Quantizer>) -> Res<Data> {
    let (input, w) = (x[0], x[1]);
    let n = w.shape()[1];
    let mut shape = input.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    let sums: Vec<f32> = if input.quant().is_some() {
        let (xq, wq) = (meaning(input)?, meaning(w)?);
        let scales: Vec<f32> = (0..n).map(|o| sum_scale(xq, wq, o)).collect::<Res<_>>()?;
        let sums = accumulate(input, w)?;
        sums.iter().enumerate().map(|(i, &s)| s as f32 * scales[i % n]).collect()
    } else {
        product(&floats(input)?, &floats(w)?, rows(input), n)
            .into_iter()
            .map(|s| s as f32)
            .collect()
    };
    let sums = Tensor::new(Elem::F32, shape.clone(), Data::F32(sums))
        .ok_or_else(|| OpError::invalid("the sums do not fill the result"))?;
    let mut args = vec![&sums];
    args.extend(&x[2..]);
    let real = pointwise(epilogue, &args, &shape)?;
    match out {
        Some(quantizer) => quantize(&real, quantizer),
        None => Ok(real.data().clone()),
    }
}
