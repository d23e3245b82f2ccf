//! Cholesky's factorisation from the last row up: `H = R Rᵀ` with R upper triangular. With `D = diag(R)²`
//! and `U = R diag(R)⁻¹ - I` it is `H = (I + U) D (I + U)ᵀ`, which is what rounding with feedback needs;
//! the inverse of H is never formed.

use super::parallel;
use std::sync::Mutex;

/// Columns that are finished together.
const BLOCK: usize = 64;

/// Rows above a block that one thread takes at a time.
const ROWS: usize = 32;

/// Factors the symmetric matrix `h`, row-major \[n, n\], in place; only its upper triangle is read and
/// written. The same bits on any number of threads. False if a pivot is not positive; `h` is then
/// spoilt.
#[must_use]
pub fn factor(h: &mut [f64], n: usize, threads: usize) -> bool {
    assert_eq!(h.len(), n * n, "a square matrix");
    let mut end = n;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        let (above, block) = h[..end * n].split_at_mut(begin * n);
        if !factor_block(block, n, begin) {
            return false;
        }
        let rows: Vec<_> = above.chunks_mut(ROWS * n).map(Mutex::new).collect();
        parallel::map(&rows, threads, |rows| {
            if let Ok(mut rows) = rows.lock() {
                rows.chunks_exact_mut(n).for_each(|row| solve(row, block, begin));
            }
        });
        end = begin;
    }
    true
}

/// Factors the rows of a block, the first of which is row `begin`, once all later ones are.
fn factor_block(block: &mut [f64], n: usize, begin: usize) -> bool {
    let end = begin + block.len() / n;
    for k in (begin..end).rev() {
        let (rows, from_k) = block.split_at_mut((k - begin) * n);
        let row_k = &mut from_k[..n];
        let pivot = row_k[k] - square(&row_k[end..]) - square(&row_k[k + 1..end]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        row_k[k] = pivot.sqrt();
        rows.chunks_exact_mut(n).for_each(|row| element(row, row_k, k, end));
    }
    true
}

/// The elements of a row above a factored block in the block's columns.
fn solve(row: &mut [f64], block: &[f64], begin: usize) {
    let n = row.len();
    let end = begin + block.len() / n;
    for (k, row_k) in (begin..end).zip(block.chunks_exact(n)).rev() {
        element(row, row_k, k, end);
    }
}

/// Element `k` of a row, once row `k` and the row's later elements are finished.
fn element(row: &mut [f64], row_k: &[f64], k: usize, end: usize) {
    let later = row[k] - dot(&row[end..], &row_k[end..]);
    let within = dot(&row[k + 1..end], &row_k[k + 1..end]);
    row[k] = (later - within) / row_k[k];
}

fn square(a: &[f64]) -> f64 {
    dot(a, a)
}

/// In eight sums, added up in a fixed order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (x, y) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_factored_exactly() {
        // R of small integers, so that every step is exact; longer than a block.
        let n = 2 * BLOCK + 9;
        let r = |i: usize, j: usize| match i.cmp(&j) {
            std::cmp::Ordering::Greater => 0.0,
            std::cmp::Ordering::Equal => (1 + i % 3) as f64,
            std::cmp::Ordering::Less => ((i * 7 + j * 3) % 5) as f64 - 2.0,
        };
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = (0..n).map(|k| r(i, k) * r(j, k)).sum();
            }
        }
        assert!(factor(&mut h, n, 2));
        for i in 0..n {
            for j in i..n {
                assert_eq!(h[i * n + j], r(i, j), "({i}, {j})");
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert!(!factor(&mut [1.0, 2.0, 2.0, 1.0], 2, 1));
        assert!(!factor(&mut [0.0], 1, 1));
        assert!(!factor(&mut [f64::NAN], 1, 1));
    }
}
