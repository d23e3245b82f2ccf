//! Cholesky's factorisation from the last row up: `H = R Rᵀ` with R upper triangular. With `D = diag(R)²`
//! and `U = R diag(R)⁻¹ - I` it is `H = (I + U) D (I + U)ᵀ`, which is what rounding with feedback needs;
//! the inverse of H is never formed.

/// Columns that are finished together.
const BLOCK: usize = 64;

/// Factors the symmetric matrix `h`, row-major \[n, n\], in place; only its upper triangle is read and
/// written. False if a pivot is not positive; `h` is then spoilt.
#[must_use]
pub fn factor(h: &mut [f64], n: usize) -> bool {
    assert_eq!(h.len(), n * n, "a square matrix");
    let mut end = n;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        // What the finished columns take off the block's.
        for j in 0..end {
            let (above, from_j) = h.split_at_mut(j * n);
            debug_assert_eq!(above.len(), j * n);
            for k in j.max(begin)..end {
                let (row_j, rest) = from_j.split_at_mut(n);
                let sum = match k - j {
                    0 => dot(&row_j[end..], &row_j[end..]),
                    below => dot(&row_j[end..], &rest[(below - 1) * n..][end..n]),
                };
                row_j[k] -= sum;
            }
        }
        if !factor_block(h, n, begin, end) {
            return false;
        }
        end = begin;
    }
    true
}

/// The columns `begin..end`, once the later ones have been taken off.
fn factor_block(h: &mut [f64], n: usize, begin: usize, end: usize) -> bool {
    for k in (begin..end).rev() {
        let pivot = h[k * n + k] - square(&h[k * n + k + 1..k * n + end]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        let root = pivot.sqrt();
        h[k * n + k] = root;
        let row_k: Vec<f64> = h[k * n + k + 1..k * n + end].to_vec();
        for j in 0..k {
            let sum = dot(&h[j * n + k + 1..j * n + end], &row_k);
            h[j * n + k] = (h[j * n + k] - sum) / root;
        }
    }
    true
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
        let n = BLOCK + 9;
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
        assert!(factor(&mut h, n));
        for i in 0..n {
            for j in i..n {
                assert_eq!(h[i * n + j], r(i, j), "({i}, {j})");
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert!(!factor(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!factor(&mut [0.0], 1));
        assert!(!factor(&mut [f64::NAN], 1));
    }
}
