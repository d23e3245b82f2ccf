//! Weights as codes: to nearest, or with feedback (GPTQ), each with a search of the scale.

use super::cholesky;
use super::choose::Choice;
use super::gram::Gram;
use super::parallel;
use fqc_ir::quant::q_max;

/// How many scales a weight has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granularity {
    PerTensor,
    PerChannel,
}

/// Codes \[rows, n\], row-major, and a scale for each column.
#[derive(Clone, PartialEq, Debug)]
pub struct Rounded {
    pub codes: Vec<i8>,
    pub scales: Vec<f32>,
}

impl Rounded {
    /// Some of the columns.
    pub fn columns(&self, range: std::ops::Range<usize>) -> Rounded {
        let n = self.scales.len();
        let rows = self.codes.chunks_exact(n.max(1));
        let codes = rows.flat_map(|row| &row[range.clone()]).copied().collect();
        Rounded { codes, scales: self.scales[range].to_vec() }
    }
}

/// Scales that a search tries: the largest weight's, and so many hundredths less.
const SHRINKS: std::ops::Range<u32> = 0..50;

/// Damping of the Gram matrix, as a share of its mean diagonal (GPTQ's default).
const DAMPING: f64 = 0.01;

/// How often it is raised.
const ATTEMPTS: i32 = 6;

/// Columns that are rounded together.
const COLUMNS: usize = 128;

/// Rows between two updates of all that follow.
const BLOCK: usize = 32;

/// Half to even; exact for `|v| < 2^22`, and vectorised where the processor's own rounding is not.
pub fn rint(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

/// The scale of a column that costs least: `Σ_k d_k (w_k - q(w_k))²`. A column of zeros, or of values
/// too small for a scale, has scale 1.
pub fn best_scale(column: &[f32], importance: &[f32], bits: u8) -> f32 {
    let q = q_max(bits, true) as f32;
    let largest = column.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if largest / q < f32::MIN_POSITIVE {
        return 1.0;
    }
    let mut best = (f64::INFINITY, largest / q);
    for percent in SHRINKS {
        let scale = largest * (1.0 - percent as f32 / 100.0) / q;
        if scale < f32::MIN_POSITIVE {
            break;
        }
        let inverse = 1.0 / scale;
        let mut sums = [0.0f32; 8];
        let (w8, w_rest) = column.as_chunks::<8>();
        let (d8, d_rest) = importance.as_chunks::<8>();
        let off = |w: f32, d: f32| {
            let e = w - rint((w * inverse).clamp(-q, q)) * scale;
            d * e * e
        };
        for (w, d) in w8.iter().zip(d8) {
            for i in 0..8 {
                sums[i] += off(w[i], d[i]);
            }
        }
        let rest: f32 = w_rest.iter().zip(d_rest).map(|(w, d)| off(*w, *d)).sum();
        let error = f64::from(sums.iter().sum::<f32>() + rest);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// GPTQ on the flattened input: rows of `weights` (smoothed, \[base, n\]) are repeated as the choice's map
/// says and rounded in order of falling importance, each with what the rows before it got wrong:
/// `q_k = Q(w_k + Σ_{j<k} U_jk (w_j - q_j))` with `H = (I + U) D (I + U)ᵀ`, which is the same as the
/// paper's update by rows of the inverse's Cholesky factor (Frantar et al. 2023; Chee et al. 2023,
/// theorem 6). Scales come first, each column's by search under the weights D. A copy that never
/// fired takes the codes of its channel's first. The result has the padded rows, zeros at the end.
pub fn gptq(
    weights: &[f32],
    n: usize,
    choice: &Choice,
    gram: &Gram,
    granularity: Granularity,
    threads: usize,
) -> Rounded {
    let width = gram.width();
    let source = |i: usize| choice.map.source(i).map_or(0, |(j, _)| j);
    let (mut order, dead): (Vec<usize>, Vec<usize>) =
        (0..width).partition(|&i| gram.at(i, i) > 0.0);
    order.sort_by(|&a, &b| gram.at(b, b).total_cmp(&gram.at(a, a)).then(a.cmp(&b)));
    let (feedback, importance) = feedback(gram, &order, threads);
    // Channels that never fired have little say in the scales, but some.
    let base = choice.map.base as usize;
    let silent = || dead.iter().copied().filter(|&i| i < base);
    let mean = importance.iter().sum::<f32>() / importance.len().max(1) as f32;
    let little = if mean > 0.0 { DAMPING as f32 * mean } else { 1.0 };
    let importance: Vec<f32> = importance.into_iter().chain(silent().map(|_| little)).collect();
    let bits = choice.widths.weights;
    let k = order.len();
    let chunks: Vec<std::ops::Range<usize>> =
        (0..n).step_by(COLUMNS).map(|c| c..(c + COLUMNS).min(n)).collect();
    let chunk_scales = parallel::map(&chunks, threads, |range| {
        let column = |c: usize| -> Vec<f32> {
            order.iter().copied().chain(silent()).map(|i| weights[source(i) * n + c]).collect()
        };
        range.clone().map(|c| best_scale(&column(c), &importance, bits)).collect::<Vec<f32>>()
    });
    let mut scales: Vec<f32> = chunk_scales.concat();
    if granularity == Granularity::PerTensor {
        let largest = weights.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let step = largest / q_max(bits, true) as f32;
        scales.fill(if step >= f32::MIN_POSITIVE { step } else { 1.0 });
    }
    let rounded = parallel::map(&chunks, threads, |range| {
        let rows: Vec<f32> =
            order.iter().flat_map(|&i| &weights[source(i) * n..][range.clone()]).copied().collect();
        round_columns(rows, &scales[range.clone()], &feedback, k, bits)
    });
    let mut codes = vec![0i8; choice.map.padded as usize * n];
    for (range, chunk) in chunks.iter().zip(&rounded) {
        for (&i, row) in order.iter().zip(chunk.chunks_exact(range.len())) {
            codes[i * n..][range.clone()].copy_from_slice(row);
        }
    }
    let q = q_max(bits, true) as f32;
    for i in dead {
        let first = source(i);
        if first != i && gram.at(first, first) > 0.0 {
            codes.copy_within(first * n..(first + 1) * n, i * n);
            continue;
        }
        for (c, scale) in scales.iter().enumerate() {
            codes[i * n + c] = rint((weights[first * n + c] / scale).clamp(-q, q)) as i8;
        }
    }
    Rounded { codes, scales }
}

/// `U` transposed, \[k, k\] row-major with row `k` holding `U_jk` for `j < k`, and the diagonal D, for the
/// Gram matrix in the given order. Damping grows tenfold while the factorisation fails; without
/// one there is no feedback.
fn feedback(gram: &Gram, order: &[usize], threads: usize) -> (Vec<f32>, Vec<f32>) {
    let k = order.len();
    let mean = order.iter().map(|&i| f64::from(gram.at(i, i))).sum::<f64>() / k.max(1) as f64;
    let mut h = vec![0.0f64; k * k];
    let mut factored = false;
    for damping in (0..ATTEMPTS).map(|i| DAMPING * 10f64.powi(i)) {
        for (a, &i) in order.iter().enumerate() {
            for (b, &j) in order.iter().enumerate().skip(a) {
                h[a * k + b] = f64::from(gram.at(i, j));
            }
            h[a * k + a] += damping * mean;
        }
        factored = cholesky::factor(&mut h, k, threads);
        if factored {
            break;
        }
    }
    let mut u = vec![0.0f32; k * k];
    if !factored {
        return (u, order.iter().map(|&i| gram.at(i, i)).collect());
    }
    for b in 0..k {
        let pivot = h[b * k + b];
        for a in 0..b {
            u[b * k + a] = (h[a * k + b] / pivot) as f32;
        }
    }
    let importance = (0..k).map(|a| h[a * k + a].powi(2) as f32).collect();
    (u, importance)
}

/// Rounds the columns of `rows`, \[k, columns\].
fn round_columns(rows: Vec<f32>, scales: &[f32], feedback: &[f32], k: usize, bits: u8) -> Vec<i8> {
    let columns = scales.len();
    let q = q_max(bits, true) as f32;
    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
    let mut errors = vec![0.0f32; rows.len()];
    let mut codes = vec![0i8; rows.len()];
    let mut wanted = vec![0.0f32; BLOCK * columns];
    for begin in (0..k).step_by(BLOCK) {
        let end = (begin + BLOCK).min(k);
        let wanted = &mut wanted[..(end - begin) * columns];
        wanted.copy_from_slice(&rows[begin * columns..end * columns]);
        for (row, target) in (begin..end).zip(wanted.chunks_exact_mut(columns)) {
            add_rows(target, &errors[..begin * columns], &feedback[row * k..][..begin]);
        }
        for row in begin..end {
            let target = &mut wanted[(row - begin) * columns..][..columns];
            let within = &errors[begin * columns..row * columns];
            add_rows(target, within, &feedback[row * k + begin..][..row - begin]);
            let at = row * columns..(row + 1) * columns;
            let outs = errors[at.clone()].iter_mut().zip(&mut codes[at.clone()]);
            let ins = target.iter().zip(&rows[at]).zip(scales.iter().zip(&inverse));
            for ((error, code), ((target, w), (scale, inverse))) in outs.zip(ins) {
                let c = rint((target * inverse).clamp(-q, q));
                *code = c as i8;
                *error = w - c * scale;
            }
        }
    }
    codes
}

/// `target += Σ_j factors[j] · rows[j]`.
fn add_rows(target: &mut [f32], rows: &[f32], factors: &[f32]) {
    let columns = target.len();
    let (fours, rest) = factors.as_chunks::<4>();
    let mut at = 0;
    for [a, b, c, d] in fours {
        let (r0, r) = rows[at..].split_at(columns);
        let (r1, r) = r.split_at(columns);
        let (r2, r) = r.split_at(columns);
        let r3 = &r[..columns];
        for (t, ((p, q), (r, s))) in target.iter_mut().zip(r0.iter().zip(r1).zip(r2.iter().zip(r3)))
        {
            *t += a * p + b * q + (c * r + d * s);
        }
        at += 4 * columns;
    }
    for factor in rest {
        let row = &rows[at..at + columns];
        target.iter_mut().zip(row).for_each(|(t, v)| *t += factor * v);
        at += columns;
    }
}

#[cfg(test)]
mod tests {
    use super::super::choose::Choice;
    use super::super::widths::Widths;
    use super::*;
    use fqc_ir::quant::FlattenMap;
    use std::sync::Arc;

    const BASE: usize = 40;
    const N: usize = 12;

    fn uniform(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .collect()
    }

    /// Rows whose channels go together: a few directions mixed, and a little of their own.
    fn correlated(rows: usize) -> Vec<f32> {
        let mix = uniform(6 * BASE, 1);
        let parts = uniform(rows * 6, 2);
        let mut out = uniform(rows * BASE, 3);
        for (row, part) in out.chunks_exact_mut(BASE).zip(parts.chunks_exact(6)) {
            for (j, v) in row.iter_mut().enumerate() {
                *v = 0.2 * *v + (0..6).map(|i| part[i] * mix[i * BASE + j]).sum::<f32>();
            }
        }
        out
    }

    fn choice(tail: &[(u32, u16)]) -> Choice {
        let base = BASE as u32;
        Choice {
            alpha: 0.0,
            smooth: vec![1.0; BASE],
            threshold: 1.5,
            map: Arc::new(FlattenMap { base, tail: tail.into(), padded: 64 }),
            signed: true,
            widths: Widths::W4A8,
            typical_energy: 1.0,
            error: 0.0,
        }
    }

    fn rounded(weights: &[f32], choice: &Choice, gram: &Gram, threads: usize) -> Rounded {
        gptq(weights, N, choice, gram, Granularity::PerChannel, threads)
    }

    /// `Σ_t ‖x_t (W - Ŵ)‖²`.
    fn output_error(rows: &[f32], weights: &[f32], rounded: &Rounded) -> f64 {
        let mut sum = 0.0;
        for row in rows.chunks_exact(BASE) {
            for o in 0..N {
                let off = row.iter().enumerate().map(|(j, x)| {
                    let code = f32::from(rounded.codes[j * N + o]);
                    f64::from(x * (weights[j * N + o] - code * rounded.scales[o]))
                });
                sum += off.sum::<f64>().powi(2);
            }
        }
        sum
    }

    #[test]
    fn feedback_makes_the_output_error_smaller_than_rounding_to_nearest() {
        let (rows, weights) = (correlated(400), uniform(BASE * N, 4));
        let choice = choice(&[]);
        let mut gram = Gram::new(&choice);
        gram.update(&rows, &choice);
        let with = rounded(&weights, &choice, &gram, 1);
        let scales = with.scales.clone();
        let nearest = weights.chunks_exact(N).flat_map(|row| {
            row.iter().zip(&scales).map(|(w, s)| (w / s).round_ties_even().clamp(-7.0, 7.0) as i8)
        });
        let nearest = Rounded { codes: nearest.collect(), scales: scales.clone() };
        let unseen = correlated(500)[400 * BASE..].to_vec();
        let (a, b) =
            (output_error(&unseen, &weights, &with), output_error(&unseen, &weights, &nearest));
        assert!(a < 0.6 * b, "{a} against {b}");
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let (rows, weights) = (correlated(100), uniform(BASE * N, 4));
        let choice = choice(&[(3, 2)]);
        let mut gram = Gram::new(&choice);
        gram.update(&rows, &choice);
        assert_eq!(rounded(&weights, &choice, &gram, 1), rounded(&weights, &choice, &gram, 3));
    }

    #[test]
    fn a_copy_that_never_fired_takes_the_codes_of_the_first() {
        let (rows, weights) = (correlated(100), uniform(BASE * N, 4));
        let choice = choice(&[(5, 2), (5, 3)]);
        let mut gram = Gram::new(&choice);
        gram.update(&rows, &choice);
        assert_eq!(gram.at(BASE, BASE), 0.0, "no value above the threshold");
        let all = rounded(&weights, &choice, &gram, 2);
        let row = |i: usize| &all.codes[i * N..(i + 1) * N];
        assert_eq!(row(5), row(BASE));
        assert_eq!(row(5), row(BASE + 1));
        assert!(row(BASE + 2).iter().all(|c| *c == 0), "padding");
    }

    #[test]
    fn nothing_seen_is_rounding_to_nearest() {
        let weights = uniform(BASE * N, 4);
        let choice = choice(&[]);
        let all = rounded(&weights, &choice, &Gram::new(&choice), 1);
        for (i, code) in all.codes[..BASE * N].iter().enumerate() {
            let want = (weights[i] / all.scales[i % N]).round_ties_even().clamp(-7.0, 7.0);
            assert_eq!(f32::from(*code), want);
        }
    }
}
