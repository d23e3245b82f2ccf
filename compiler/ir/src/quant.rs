//! What quantised codes mean, and *the* arithmetic: rounding, saturation, digits. Every other place
//! (interpreter, code generators, packing) follows the functions here bit for bit.

use std::sync::Arc;

/// Scales of a quantised value.
#[derive(Clone, PartialEq, Debug)]
pub enum Scale {
    /// One scale for the whole tensor.
    Tensor(f32),
    /// One scale for each index along `axis`.
    Axis { axis: usize, scales: Arc<[f32]> },
}

/// Where the extra channels of a flattened tensor come from. The layout of the channel axis is
/// `[base | tail | zero pad]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlattenMap {
    /// Channels of the tensor before flattening.
    pub base: u32,
    /// For each extra channel: its source channel and which digit it holds (2 is the first extra),
    /// sorted.
    pub tail: Arc<[(u32, u16)]>,
    /// Channels after flattening, padding included.
    pub padded: u32,
}

impl FlattenMap {
    /// Source channel and digit (1 for the base) of flattened channel `i`; `None` in the padding.
    pub fn source(&self, i: usize) -> Option<(usize, u32)> {
        let base = self.base as usize;
        if i < base {
            return Some((i, 1));
        }
        self.tail.get(i - base).map(|&(src, digit)| (src as usize, u32::from(digit)))
    }
}

/// What the integer codes of a value mean: `real = scale * code`, symmetric.
#[derive(Clone, PartialEq, Debug)]
pub struct Quant {
    pub scale: Scale,
    /// Width of a code: 8 or 4.
    pub bits: u8,
    /// Codes run from `-q_max` to `q_max` if true, from 0 to `2^bits - 1` otherwise.
    pub signed: bool,
    /// Channels along the last axis (of an activation) or the first (of a weight) are digits.
    pub flatten: Option<Arc<FlattenMap>>,
}

impl Quant {
    /// The largest code: 127, 7, 255 or 15.
    pub fn q_max(&self) -> i32 {
        q_max(self.bits, self.signed)
    }
}

/// How a float tensor becomes codes: one static scale per tensor, a multiplier per base channel
/// (`1 / (s_x * s_j)` with the smoothing factor `s_j`, or `1 / s_x`), digits where flattened.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantizer {
    pub quant: Arc<Quant>,
    /// One multiplier, or one for each base channel.
    pub inverse: Arc<[f32]>,
}

impl Quantizer {
    /// A plain per-tensor quantizer; `scale` must be positive and finite.
    pub fn per_tensor(quant: Arc<Quant>) -> Self {
        let Scale::Tensor(scale) = quant.scale else {
            panic!("an activation quantizer has one scale");
        };
        Quantizer { quant, inverse: Arc::from([1.0 / scale]) }
    }

    /// The multiplier of base channel `j`.
    pub fn inverse(&self, j: usize) -> f32 {
        if self.inverse.len() == 1 { self.inverse[0] } else { self.inverse[j] }
    }

    /// Channels after quantisation of a row of `channels`.
    pub fn out_channels(&self, channels: i64) -> i64 {
        self.quant.flatten.as_ref().map_or(channels, |f| i64::from(f.padded))
    }

    /// The codes of one row.
    pub fn row(&self, x: &[f32], out: &mut [i8]) {
        let q_max = self.quant.q_max();
        for (i, code) in out.iter_mut().enumerate() {
            let source = match &self.quant.flatten {
                Some(map) => map.source(i),
                None => Some((i, 1)),
            };
            *code = source.map_or(0, |(j, k)| {
                let c = wide_code(x[j], self.inverse(j), self.quant.signed);
                digit(c, k, q_max) as i8
            });
        }
    }
}

/// The largest code of a width.
pub fn q_max(bits: u8, signed: bool) -> i32 {
    (1 << (bits - u8::from(signed))) - 1
}

/// Bound on wide codes: above it the float no longer holds every integer, and no digit reaches it.
pub const WIDE_MAX: f32 = 8_388_608.0;

/// `rint(x * inverse)`, half to even, NaN to 0, clamped to +-2^23; to 0.. where unsigned.
pub fn wide_code(x: f32, inverse: f32, signed: bool) -> i32 {
    let c = (x * inverse).round_ties_even();
    if c.is_nan() {
        return 0;
    }
    c.clamp(if signed { -WIDE_MAX } else { 0.0 }, WIDE_MAX) as i32
}

/// Digit `k >= 1` of a wide code: `sgn(c) * clamp(|c| - (k-1) * q_max, 0, q_max)`.
pub fn digit(c: i32, k: u32, q_max: i32) -> i32 {
    let below = i64::from(k - 1) * i64::from(q_max);
    let d = (i64::from(c.unsigned_abs()) - below).clamp(0, i64::from(q_max)) as i32;
    if c < 0 { -d } else { d }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_add_up_to_the_wide_code() {
        for q_max in [7, 15, 127, 255] {
            for c in -1000..=1000 {
                let n = 1000_u32.div_ceil(q_max as u32);
                let sum: i32 = (1..=n).map(|k| digit(c, k, q_max)).sum();
                assert_eq!(sum, c, "q_max {q_max}");
            }
        }
    }

    #[test]
    fn rounding_is_half_to_even_and_nan_is_zero() {
        let codes: Vec<i32> =
            [0.5, 1.5, 2.5, -0.5, -1.5, f32::NAN].map(|x| wide_code(x, 1.0, true)).into();
        assert_eq!(codes, [0, 2, 2, 0, -2, 0]);
        assert_eq!(wide_code(f32::INFINITY, 1.0, true), 8_388_608);
        assert_eq!(wide_code(-3.0, 1.0, false), 0);
    }
}
