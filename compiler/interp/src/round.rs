//! Rounding of f64 to the narrower types, once.

use half::{bf16, f16};

/// f64 to f32 so that a second rounding, to a type of at most 22 bits, is right: truncated, and the
/// last bit set where anything was cut off.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || x.is_nan() {
        return near;
    }
    let toward_zero =
        if f64::from(near).abs() > x.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward_zero | 1)
}

/// To nearest, ties to even.
pub(crate) fn to_f16(x: f64) -> f16 {
    f16::from_f32(to_odd(x))
}

/// To nearest, ties to even.
pub(crate) fn to_bf16(x: f64) -> bf16 {
    bf16::from_f32(to_odd(x))
}

/// Truncated; negative values wrap as those of i64 do, large ones stay at the bounds, NaN is 0.
pub(crate) fn to_u64(x: f64) -> u64 {
    if x >= 0.0 { x as u64 } else { (x as i64) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_once() {
        // A hair above the middle between 1 and the next f16: two roundings would fall back to 1.
        let x = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(to_f16(x).to_f64(), 1.0 + 2f64.powi(-10));
        assert_eq!(to_f16(1.0 + 2f64.powi(-11)).to_f64(), 1.0);
        let y = -(1.0 + 2f64.powi(-8) + 2f64.powi(-40));
        assert_eq!(to_bf16(y).to_f64(), -(1.0 + 2f64.powi(-7)));
        assert_eq!(to_f16(1e9), f16::INFINITY);
        assert!(to_f16(f64::NAN).is_nan());
        assert_eq!(to_f16(1e-50).to_f64(), 0.0);
        assert_eq!(to_bf16(-0.0).to_bits(), 0x8000);
    }

    #[test]
    fn unsigned_conversion_wraps_and_stays_at_the_bounds() {
        assert_eq!(to_u64(-1.5), u64::MAX);
        assert_eq!(to_u64(1e30), u64::MAX);
        assert_eq!(to_u64(f64::NAN), 0);
    }
}
