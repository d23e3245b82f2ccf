//! Matrix products, norms, rotary embedding and attention, in f64 from the operands to the result.

use super::{floats, ints};
use crate::error::{OpError, Res};
use crate::tensor::{Data, Tensor};
use crate::walk::{Walk, broadcast_strides};

/// Sizes and positions of a batched product: for each matrix of the result, where its factors begin.
struct Batches {
    m: usize,
    k: usize,
    n: usize,
    starts: Vec<(usize, usize)>,
}

impl Batches {
    fn of(a: &Tensor, b: &Tensor, shape: &[usize]) -> Self {
        let (a_batch, a_matrix) = a.shape().split_at(a.shape().len() - 2);
        let (b_batch, b_matrix) = b.shape().split_at(b.shape().len() - 2);
        let batch = &shape[..shape.len() - 2];
        let (m, k, n) = (a_matrix[0], a_matrix[1], b_matrix[1]);
        let starts = Walk::broadcast(a_batch, batch)
            .zip(Walk::broadcast(b_batch, batch))
            .map(|(i, j)| (i * m * k, j * k * n))
            .collect();
        Batches { m, k, n, starts }
    }
}

pub(crate) fn matmul(a: &Tensor, b: &Tensor, shape: &[usize]) -> Res<Data> {
    let batches = Batches::of(a, b, shape);
    let Batches { m, k, n, .. } = batches;
    if a.elem().is_float() {
        let (x, y) = (floats(a)?, floats(b)?);
        let mut out = Vec::with_capacity(shape.iter().product());
        for (i, j) in batches.starts {
            out.extend(product(&x[i..i + m * k], &y[j..j + k * n], m, n));
        }
        return Ok(Data::from_floats(a.elem(), out.into_iter()));
    }
    let (x, y) = (ints(a)?, ints(b)?);
    let mut out = Vec::with_capacity(shape.iter().product());
    for (i, j) in batches.starts {
        for row in 0..m {
            for column in 0..n {
                out.push((0..k).fold(0i128, |sum, p| {
                    let term = x[i + row * k + p].wrapping_mul(y[j + p * n + column]);
                    sum.wrapping_add(term)
                }));
            }
        }
    }
    Ok(Data::from_ints(a.elem(), out.into_iter()))
}

/// `[m, k]` times `[k, n]`, row by row of the right factor, so that memory is read in order.
pub(super) fn product(a: &[f64], b: &[f64], m: usize, n: usize) -> Vec<f64> {
    let k = b.len() / n;
    let mut out = vec![0f64; m * n];
    for (i, sums) in out.chunks_exact_mut(n).enumerate() {
        for (&x, row) in a[i * k..][..k].iter().zip(b.chunks_exact(n)) {
            for (sum, &y) in sums.iter_mut().zip(row) {
                *sum += x * y;
            }
        }
    }
    out
}

/// Softmax in place. A row of `-inf` alone gives NaN, as in every framework.
fn softmax_row(row: &mut [f64]) {
    let top = row.iter().fold(f64::NEG_INFINITY, |a, &b| if b.is_nan() || b > a { b } else { a });
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = libm::exp(*v - top);
        sum += *v;
    }
    for v in row {
        *v /= sum;
    }
}

pub(crate) fn softmax(x: &Tensor) -> Res<Data> {
    let mut values = floats(x)?;
    values.chunks_exact_mut(x.last()).for_each(softmax_row);
    Ok(Data::from_floats(x.elem(), values.into_iter()))
}

pub(crate) fn layer_norm(x: &[&Tensor], epsilon: f32) -> Res<Data> {
    let (mut values, gamma) = (floats(x[0])?, floats(x[1])?);
    let beta = x.get(2).map_or(Ok(vec![0.0; gamma.len()]), |b| floats(b))?;
    for row in values.chunks_exact_mut(x[0].last()) {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        let inverse = 1.0 / (variance + f64::from(epsilon)).sqrt();
        for ((v, g), b) in row.iter_mut().zip(&gamma).zip(&beta) {
            *v = (*v - mean) * inverse * g + b;
        }
    }
    Ok(Data::from_floats(x[0].elem(), values.into_iter()))
}

pub(crate) fn rms_norm(x: &[&Tensor], epsilon: f32) -> Res<Data> {
    let (mut values, gamma) = (floats(x[0])?, floats(x[1])?);
    for row in values.chunks_exact_mut(x[0].last()) {
        let square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let inverse = 1.0 / (square + f64::from(epsilon)).sqrt();
        for (v, g) in row.iter_mut().zip(&gamma) {
            *v = *v * inverse * g;
        }
    }
    Ok(Data::from_floats(x[0].elem(), values.into_iter()))
}

pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Res<Data> {
    let (values, c, s) = (floats(x)?, floats(cos)?, floats(sin)?);
    let half = x.last() / 2;
    let tables =
        Walk::broadcast(cos.shape(), x.shape()).zip(Walk::broadcast(sin.shape(), x.shape()));
    let rotated = tables.enumerate().map(|(at, (i, j))| {
        let other = if at % (2 * half) < half { -values[at + half] } else { values[at - half] };
        values[at] * c[i] + other * s[j]
    });
    Ok(Data::from_floats(x.elem(), rotated))
}

pub(crate) fn attention(x: &[&Tensor], scale: f32, causal: bool, shape: &[usize]) -> Res<Data> {
    let (q, k, v) = (floats(x[0])?, floats(x[1])?, floats(x[2])?);
    let &[batch, heads, queries, width] = shape else {
        return Err(OpError::invalid("attention works on rank 4"));
    };
    let &[_, groups, keys, depth] = x[1].shape() else {
        return Err(OpError::invalid("attention works on rank 4"));
    };
    let mask = x.get(3).map_or(Ok(Vec::new()), |m| floats(m))?;
    let mask_strides =
        x.get(3).map(|m| broadcast_strides(m.shape(), &[batch, heads, queries, keys]));
    let at_mask = |b: usize, h: usize, i: usize, j: usize| match &mask_strides {
        Some(s) => {
            let at = [b, h, i, j].iter().zip(s).map(|(&p, &s)| p * s as usize).sum::<usize>();
            mask[at]
        }
        None => 0.0,
    };
    let mut out = vec![0f64; shape.iter().product()];
    for (row, y) in out.chunks_exact_mut(width).enumerate() {
        let (i, h, b) = (row % queries, row / queries % heads, row / queries / heads);
        let group = b * groups + h / (heads / groups);
        let visible = if causal { (i + 1 + keys).saturating_sub(queries).min(keys) } else { keys };
        let query = &q[row * depth..][..depth];
        let mut scores: Vec<f64> = (0..visible)
            .map(|j| {
                let key = &k[(group * keys + j) * depth..][..depth];
                let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                dot * f64::from(scale) + at_mask(b, h, i, j)
            })
            .collect();
        softmax_row(&mut scores);
        for (j, p) in scores.iter().enumerate() {
            let value = &v[(group * keys + j) * width..][..width];
            for (y, v) in y.iter_mut().zip(value) {
                *y += p * v;
            }
        }
    }
    Ok(Data::from_floats(x[0].elem(), out.into_iter()))
}
