//! Tolerant comparison of tensors. The tolerance is a number with a cause, NaN and infinity must
//! agree exactly, and a mismatch says where, how often, and both values.

use fqc_interp::Tensor;
use std::fmt;

/// What an element may be off by: `absolute + relative * |want| + of_largest * max |want|`.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
    pub of_largest: f64,
}

impl Tolerance {
    /// Equal values.
    pub const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0, of_largest: 0.0 };

    pub fn absolute(absolute: f64) -> Self {
        Tolerance { absolute, ..Tolerance::EXACT }
    }

    /// Of the largest magnitude that is wanted anywhere in the tensor.
    pub fn of_largest(of_largest: f64) -> Self {
        Tolerance { of_largest, ..Tolerance::EXACT }
    }

    /// NumPy's `allclose`.
    pub fn each(absolute: f64, relative: f64) -> Self {
        Tolerance { absolute, relative, of_largest: 0.0 }
    }
}

/// The first element that is off.
#[derive(Clone, PartialEq, Debug)]
pub struct Mismatch {
    pub at: Vec<usize>,
    pub got: f64,
    pub want: f64,
}

/// How two tensors of one shape and element type differ.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    pub count: usize,
    /// Elements beyond the tolerance.
    pub off: usize,
    pub first: Option<Mismatch>,
    /// Among the elements that are finite on both sides, as are the figures below.
    pub max_absolute: f64,
    /// The largest difference over the largest wanted magnitude.
    pub max_relative: f64,
    pub cosine: f64,
    /// Signal to noise, in decibel; infinite for equal tensors.
    pub sqnr: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Mismatch { at, got, want }) = &self.first {
            write!(f, "{} of {} elements are off, first at {at:?}: ", self.off, self.count)?;
            write!(f, "got {got:?}, want {want:?}; ")?;
        }
        write!(
            f,
            "max difference {:.3e}, relative {:.3e}, cosine {:.7}, sqnr {:.1} dB",
            self.max_absolute, self.max_relative, self.cosine, self.sqnr
        )
    }
}

/// Compares; the error is a sentence.
pub fn compare(got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<Report, String> {
    if got.elem() != want.elem() || got.shape() != want.shape() {
        return Err(format!("got {}, want {}", got.ty(), want.ty()));
    }
    let report = report(got, want, tolerance);
    if report.off > 0 { Err(report.to_string()) } else { Ok(report) }
}

/// The figures of two tensors of one shape.
pub fn report(got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Report {
    assert_eq!(got.shape(), want.shape(), "only tensors of one shape have a difference");
    let (a, b) = (got.to_f64(), want.to_f64());
    let both: Vec<(f64, f64)> = a
        .iter()
        .zip(&b)
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .map(|(&x, &y)| (x, y))
        .collect();
    let largest = both.iter().fold(0f64, |m, (_, y)| m.max(y.abs()));
    let max_absolute = both.iter().fold(0f64, |m, (x, y)| m.max((x - y).abs()));
    let mut report = Report {
        count: a.len(),
        off: 0,
        first: None,
        max_absolute,
        max_relative: if max_absolute == 0.0 { 0.0 } else { max_absolute / largest },
        cosine: cosine(&both),
        sqnr: sqnr(&both),
    };
    for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
        let allowed =
            tolerance.absolute + tolerance.relative * y.abs() + tolerance.of_largest * largest;
        let same = x == y || x.is_nan() && y.is_nan();
        if same || x.is_finite() && y.is_finite() && (x - y).abs() <= allowed {
            continue;
        }
        report.off += 1;
        if report.first.is_none() {
            let at = coordinate(i, got.shape());
            report.first = Some(Mismatch { at, got: x, want: y });
        }
    }
    report
}

fn coordinate(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&d| {
            let here = flat % d;
            flat /= d;
            here
        })
        .collect();
    at.reverse();
    at
}

fn cosine(pairs: &[(f64, f64)]) -> f64 {
    let sum = |f: fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>();
    let (dot, a, b) = (sum(|(x, y)| x * y), sum(|(x, _)| x * x), sum(|(_, y)| y * y));
    if a == 0.0 && b == 0.0 { 1.0 } else { dot / (a.sqrt() * b.sqrt()) }
}

fn sqnr(pairs: &[(f64, f64)]) -> f64 {
    let noise: f64 = pairs.iter().map(|(x, y)| (x - y) * (x - y)).sum();
    let signal: f64 = pairs.iter().map(|(_, y)| y * y).sum();
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_says_where_and_what() {
        let want = Tensor::f32(&[2, 2], &[1.0, -4.0, 0.0, 2.0]);
        let got = Tensor::f32(&[2, 2], &[1.0, -4.0, 0.5, 2.5]);
        let error = compare(&got, &want, Tolerance::EXACT).expect_err("two elements differ");
        assert!(
            error.starts_with("2 of 4 elements are off, first at [1, 0]: got 0.5, want 0.0; max "),
            "{error}"
        );
        assert!(compare(&got, &want, Tolerance::absolute(0.5)).is_ok());
        assert!(compare(&got, &want, Tolerance::of_largest(0.125)).is_ok());
        assert!(compare(&got, &want, Tolerance::of_largest(0.124)).is_err());
        let report = report(&got, &want, Tolerance::each(0.1, 0.2));
        assert_eq!((report.off, report.max_absolute, report.max_relative), (1, 0.5, 0.125));
    }

    #[test]
    fn nan_and_infinity_must_agree() {
        let loose = Tolerance::absolute(1e9);
        let one = |v: f32| Tensor::f32(&[1], &[v]);
        assert!(compare(&one(f32::NAN), &one(f32::NAN), Tolerance::EXACT).is_ok());
        assert!(compare(&one(f32::INFINITY), &one(f32::INFINITY), Tolerance::EXACT).is_ok());
        for (a, b) in [(f32::NAN, 0.0), (0.0, f32::NAN), (f32::INFINITY, -f32::INFINITY)] {
            assert!(compare(&one(a), &one(b), loose).is_err(), "{a} and {b}");
        }
        assert!(compare(&one(0.0), &Tensor::f32(&[], &[0.0]), loose).is_err());
    }
}
