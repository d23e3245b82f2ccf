//! Geometric means over the layers, ours against the library.

use crate::bench::fastest;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is compared: our instances (a part of the name and its end) with a kind of the library.
const PAIRS: [(&str, &str, &str, &str); 10] = [
    ("w8a8", "_F16_Relu_bias", "f16 output", "S32"),
    ("w8a8", "_F16_Relu_bias", "f16 output", "F16"),
    ("w8a8", "_S8_Relu_bias", "s8 output", "S8"),
    ("w8a8", "_F16_Gelu_bias", "GELU, f16 output", "S32"),
    ("w4a8", "_F16_Relu_bias", "f16 output", "S32"),
    ("w4a8", "_F16_Relu_bias", "f16 output", "F16"),
    ("w4a8", "_S8_Relu_bias", "s8 output", "S8"),
    ("w4a8", "_F16_Gelu_bias", "GELU, f16 output", "S32"),
    ("w4g64a8", "_F16_Relu_bias", "f16 output", "S32"),
    ("w4g64a8", "_F16_Relu_bias", "f16 output", "F16"),
];

/// Speed-ups by tokens and pair.
#[derive(Default)]
pub struct Summary(BTreeMap<(usize, usize), Vec<f64>>);

impl Summary {
    /// Adds one shape's records.
    pub fn add(&mut self, m: usize, records: &[Value]) {
        for (index, (weights, end, _, kind)) in PAIRS.into_iter().enumerate() {
            let ours = fastest(records, |name| name.contains(weights) && name.ends_with(end));
            let library = fastest(records, |name| name == format!("cublasLt {kind}"));
            if let (Some(ours), Some(library)) = (ours, library) {
                self.0.entry((m, index)).or_default().push(library / ours);
            }
        }
    }

    /// Prints and writes the means.
    pub fn print(&self, write: &mut impl FnMut(&Value) -> Result<()>) -> Result<()> {
        println!();
        for (&(m, index), ratios) in &self.0 {
            let (weights, _, output, kind) = PAIRS[index];
            let logs: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
            let mean = (logs / ratios.len() as f64).exp();
            let mean = (mean * 1000.0).round() / 1000.0;
            println!("M {m:5}  {weights}, {output:17} {mean:6.3}x cublasLt {kind}");
            write(&json!({
                "m": m, "weights": weights, "output": output, "library": kind,
                "layers": ratios.len(), "speedup": mean,
            }))?;
        }
        Ok(())
    }
}
