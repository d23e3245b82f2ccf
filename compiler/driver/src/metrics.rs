//! Distances between a tensor and its reference.

use serde::Serialize;

/// How far values are from a reference.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Distance {
    /// Signal-to-error ratio in decibels; infinite for equal values.
    pub sqnr_db: f64,
    /// Cosine of the two as vectors.
    pub cosine: f64,
    /// Smallest cosine over the rows (the last axis).
    pub min_row_cosine: f64,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest absolute difference over the largest absolute reference.
    pub max_rel: f64,
    /// Elements where exactly one of the two is NaN or infinite.
    pub non_finite: usize,
}

/// The distance of `got` from `want`, both in rows of `width`.
pub fn distance(got: &[f32], want: &[f32], width: usize) -> Distance {
    let (mut signal, mut error, mut max_abs, mut max_want) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut non_finite = 0;
    for (&g, &w) in got.iter().zip(want) {
        if g.is_finite() != w.is_finite() {
            non_finite += 1;
            continue;
        }
        if !g.is_finite() {
            continue;
        }
        let (g, w) = (f64::from(g), f64::from(w));
        signal += w * w;
        error += (g - w).powi(2);
        max_abs = max_abs.max((g - w).abs());
        max_want = max_want.max(w.abs());
    }
    let width = width.max(1);
    let rows = got.chunks_exact(width).zip(want.chunks_exact(width));
    let min_row_cosine = rows.map(|(g, w)| cosine(g, w)).fold(1.0f64, f64::min);
    Distance {
        sqnr_db: if error > 0.0 { 10.0 * (signal / error).log10() } else { f64::INFINITY },
        cosine: cosine(got, want),
        min_row_cosine,
        max_abs,
        max_rel: if max_want > 0.0 { max_abs / max_want } else { max_abs },
        non_finite,
    }
}

/// Cosine of the angle between two vectors; 1 if both are zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>()
    };
    let (ab, aa, bb) = (dot(a, b), dot(a, a), dot(b, b));
    if aa == 0.0 && bb == 0.0 { 1.0 } else { ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_simple_vectors() {
        let d = distance(&[1.0, 0.0, 2.0, 2.0], &[1.0, 0.0, 2.0, 0.0], 2);
        assert_eq!(d.max_abs, 2.0);
        assert!((d.min_row_cosine - 0.5f64.sqrt()).abs() < 1e-12);
        assert!((d.sqnr_db - 10.0 * (5.0f64 / 4.0).log10()).abs() < 1e-12);
        assert!(distance(&[1.0], &[1.0], 1).sqnr_db.is_infinite());
        assert_eq!(distance(&[f32::NAN], &[1.0], 1).non_finite, 1);
    }
}
