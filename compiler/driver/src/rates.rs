//! What the machine can do at most, measured: the rates that `fqc bench` sets kernels beside.

use serde::Serialize;
use std::fmt;

/// Rates of all threads together at one level.
#[derive(Serialize)]
pub struct Rates {
    /// Products of codes, of pairs of bf16 (of f32 where the level lacks them) and of f32, between
    /// registers, in 10^9 operations a second.
    pub codes_gops: f64,
    pub bf16_gops: f64,
    pub f32_gops: f64,
    /// Copies, by the bytes that they read and write: 10^9 bytes a second.
    pub copies: Vec<CopyRate>,
}

/// A copy that reads and writes so many bytes.
#[derive(Serialize)]
pub struct CopyRate {
    pub bytes: usize,
    pub gb_s: f64,
}

impl Rates {
    /// Least nanoseconds for so many operations of a family and so many bytes: what multiplies there
    /// at its rate, or a copy of as many bytes, whichever is longer.
    pub fn floor_ns(&self, family: &str, ops: f64, bytes: f64) -> f64 {
        let gops = match family {
            "gemm_i8" | "gemm_i4" => self.codes_gops,
            "attention" | "gemm_bf16" => self.bf16_gops,
            _ => self.f32_gops,
        };
        let copy = self.copies.iter().find(|copy| copy.bytes as f64 >= bytes);
        let copy = copy.or(self.copies.last()).map_or(f64::INFINITY, |copy| copy.gb_s);
        (ops / gops).max(bytes / copy)
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rates { codes_gops, bf16_gops, f32_gops, copies } = self;
        write!(
            f,
            "possible here: {codes_gops:.0} GOP/s of codes, {bf16_gops:.0} of bf16, {f32_gops:.0} of \
             f32; copies of"
        )?;
        for (i, copy) in copies.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma} {} KiB {:.0}", copy.bytes >> 10, copy.gb_s)?;
        }
        write!(f, " GB/s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_arithmetic_and_memory_bounds() {
        let copies = vec![CopyRate { bytes: 100, gb_s: 10.0 }, CopyRate { bytes: 1000, gb_s: 2.0 }];
        let rates = Rates { codes_gops: 4.0, bf16_gops: 2.0, f32_gops: 1.0, copies };
        assert_eq!(rates.floor_ns("gemm_i8", 80.0, 100.0), 20.0);
        assert_eq!(rates.floor_ns("gemm_i4", 80.0, 500.0), 250.0);
        assert_eq!(rates.floor_ns("attention", 80.0, 100.0), 40.0);
        assert_eq!(rates.floor_ns("layer_norm", 10.0, 4000.0), 2000.0);
    }
}
