//! GELU where its results become codes at once.

use super::build::{Builder, Val};
use super::math;

/// Largest codes of a result of one for which [`gelu`] stands for the finer one: the error is then
/// below 1/64 of a code.
pub(super) const INVERSE_MAX: f64 = 512.0;

/// The same as [`math::gelu`], to 2^-15, by pieces of degree three: four permutations and multiplications
/// a vector less than six and five.
pub(super) fn gelu<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    /// Nothing is left of the product from here on.
    const FAR: f64 = 7.5;
    /// Highest coefficient first.
    const PIECES: [[f64; 16]; 4] = [
        [
            3.143_260_6e-2,
            1.079_397_7e-1,
            1.194_810_9e-1,
            5.691_120_8e-2,
            8.328_387_6e-4,
            -1.605_190_7e-2,
            -1.107_712_2e-2,
            -4.278_959_7e-3,
            -1.111_973_5e-3,
            -2.065_459_3e-4,
            -2.821_331_5e-5,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ],
        [
            -4.034_623_2e-1,
            -3.059_521_6e-1,
            -1.222_192_2e-1,
            1.395_312_6e-2,
            5.286_547e-2,
            3.721_2e-2,
            1.576_235_5e-2,
            4.627_899e-3,
            9.889_448e-4,
            1.574_194_9e-4,
            1.984_684e-5,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ],
        [
            5.001_857e-1,
            1.325_479_6e-1,
            -8.328_416e-2,
            -1.274_743_4e-1,
            -8.524_898e-2,
            -3.761_818_6e-2,
            -1.194_571_5e-2,
            -2.820_098e-3,
            -5.027_788e-4,
            -6.828_106e-5,
            -7.100_438e-6,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ],
        [
            0.0,
            1.542_524_4e-1,
            1.586_647_2e-1,
            1.002_282e-1,
            4.550_903_3e-2,
            1.552_441_2e-2,
            4.047_746e-3,
            8.129_889_6e-4,
            1.262_764_4e-4,
            1.519_850_1e-5,
            1.374_775_5e-6,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ],
    ];
    math::positive_less(b, x, &PIECES, 1, FAR)
}
