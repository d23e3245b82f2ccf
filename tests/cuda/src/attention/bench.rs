//! Times of attention.

use super::instances::{TIMED, timed};
use super::launch::{Attention, Operands, Shape};
use crate::device::{Buffer, Device, address};
use crate::random;
use crate::timing::{self, Entry, ROTATION, round};
use anyhow::Result;
use serde_json::{Value, json};

/// Times the shapes; `tests/cuda/torch_baseline.py` times torch's on the same.
pub fn bench(device: &Device, only: &str) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    for shape in TIMED {
        let config = timed(shape);
        if !timing::wanted(&config.to_string(), only) {
            continue;
        }
        let Shape { batch, heads, group, queries, keys, dim } = shape;
        let (query_elements, key_elements) =
            (batch * queries * heads * dim, batch * keys * heads / group * dim);
        let sets = (ROTATION / (4 * (query_elements + key_elements))).clamp(2, 24);
        let buffers = (0..sets as u64)
            .map(|i| -> Result<[Buffer; 4]> {
                let half = |elements: usize| device.filled(elements * 2, 0);
                let set = [
                    half(query_elements)?,
                    half(key_elements)?,
                    half(key_elements)?,
                    half(query_elements)?,
                ];
                for (j, buffer) in set[..3].iter().enumerate() {
                    random::fill(device, buffer, i * 3 + j as u64, true)?;
                }
                Ok(set)
            })
            .collect::<Result<Vec<_>>>()?;
        let operations = shape.operations(config.causal);
        let expected_ms = operations / 3e11 + 2.0 * key_elements as f64 * 2.0 / 2e9 + 0.005;
        let repeats = timing::repeats(expected_ms, sets);
        let (key, query) = (shape.strides(keys, heads / group), shape.strides(queries, heads));
        let launches = buffers
            .iter()
            .map(|set| {
                let operands = Operands {
                    addresses: std::array::from_fn(|i| address(&set[i], &device.stream)),
                    strides: [query, key, key, query],
                    inverse: None,
                };
                Attention::new(device, &config, shape, &operands)
            })
            .collect::<Result<Vec<_>>>()?;
        let work = |i: usize| launches[i % sets].launch(device);
        let mut entries = [Entry::new(device, config.to_string(), repeats, work)?];
        timing::time(device, &mut entries)?;
        for entry in &entries {
            let ms = entry.median();
            let tflops = operations / ms / 1e9;
            println!(
                "{:9.2} us {tflops:6.1} TFLOPS {:5.0} GB/s of keys  {shape:?} {}",
                ms * 1e3,
                4.0 * key_elements as f64 / ms / 1e6,
                entry.name,
            );
            records.push(json!({
                "attention": [batch, heads, group, queries, keys, dim], "causal": config.causal,
                "name": entry.name, "us": round(ms * 1e3, 100.0), "tflops": round(tflops, 10.0),
            }));
        }
    }
    Ok(records)
}
