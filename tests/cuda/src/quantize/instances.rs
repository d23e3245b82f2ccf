//! The quantisers that are checked and timed.

use fqc_kernels::cuda::gemm::Activation;
use fqc_kernels::cuda::quantize::{Codes, Combine, Element, Norm, QuantizeConfig};

pub const BASE: QuantizeConfig = QuantizeConfig {
    threads: 256,
    chunks: 2,
    element: Element::F16,
    norm: Norm::Rms,
    combine: Combine::None,
    activation: Activation::None,
    sum: false,
    float: false,
    tail: true,
    codes: Codes { bits: 8, signed: true, packed: false },
};

/// What is checked, for rows of `width`.
pub fn checked(width: usize) -> Vec<QuantizeConfig> {
    let mut all = Vec::new();
    for norm in [Norm::None, Norm::Layer, Norm::Rms] {
        for tail in [false, true] {
            let base = QuantizeConfig { norm, tail, ..BASE };
            all.push(base);
            all.push(QuantizeConfig { combine: Combine::Add, sum: true, ..base });
            for element in [Element::Bf16, Element::F32] {
                let added = QuantizeConfig { combine: Combine::Add, sum: true, element, ..base };
                all.push(QuantizeConfig { float: norm != Norm::None, ..added });
            }
            for codes in [
                Codes { bits: 8, signed: false, packed: false },
                Codes { bits: 4, signed: true, packed: false },
                Codes { bits: 4, signed: true, packed: true },
                Codes { bits: 4, signed: false, packed: true },
            ] {
                all.push(QuantizeConfig { codes, ..base });
            }
        }
    }
    for activation in [Activation::Relu, Activation::Silu, Activation::Gelu] {
        let base = QuantizeConfig { norm: Norm::None, activation, ..BASE };
        all.push(base);
        all.push(QuantizeConfig { combine: Combine::Multiply, ..base });
    }
    all.into_iter().map(|config| config.for_width(width)).collect()
}

/// What is timed.
pub fn timed(width: usize) -> Vec<QuantizeConfig> {
    let mut all = Vec::new();
    for tail in [false, true] {
        for norm in [Norm::Rms, Norm::Layer] {
            let base = QuantizeConfig { norm, tail, ..BASE };
            all.push(base);
            all.push(QuantizeConfig { combine: Combine::Add, sum: true, ..base });
        }
        let none = QuantizeConfig { norm: Norm::None, tail, ..BASE };
        all.push(none);
        let (activation, combine) = (Activation::Silu, Combine::Multiply);
        all.push(QuantizeConfig { activation, combine, ..none });
    }
    all.into_iter().map(|config| config.for_width(width)).collect()
}

pub const WIDTHS: [usize; 7] = [64, 384, 768, 1000, 4096, 5120, 9216];
pub const TIMED_WIDTHS: [usize; 3] = [4096, 5120, 9216];

/// Every instance that a command uses.
pub fn all() -> Vec<QuantizeConfig> {
    let checked = WIDTHS.into_iter().flat_map(checked);
    checked.chain(TIMED_WIDTHS.into_iter().flat_map(timed)).collect()
}
