//! Times of quantisers.

use super::instances::{BASE, TIMED_WIDTHS, timed};
use super::launch::{Operands, Quantize, Rows};
use crate::device::{Buffer, Device};
use crate::random;
use crate::timing::{self, Entry, ROTATION, round};
use anyhow::{Result, anyhow};
use fqc_kernels::cuda::quantize::{Combine, QuantizeConfig, pack_tail};
use serde_json::{Value, json};

/// Times the instances beside the copy bandwidth, which is in bytes per second.
pub fn bench(device: &Device, bandwidth: f64, tokens: &[usize], only: &str) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    for &rows in tokens {
        for width in TIMED_WIDTHS {
            records.extend(bench_one(device, bandwidth, rows, width, only)?);
        }
    }
    Ok(records)
}

/// Bytes that a launch reads and writes.
fn bytes(config: &QuantizeConfig, rows: Rows) -> usize {
    let inputs = 1 + usize::from(config.combine != Combine::None) + usize::from(config.sum);
    rows.rows * (rows.width * 2 * inputs + rows.padded)
}

fn bench_one(
    device: &Device,
    bandwidth: f64,
    rows: usize,
    width: usize,
    only: &str,
) -> Result<Vec<Value>> {
    let tail: Vec<(u32, u16)> = (0..width as u32 / 20).map(|i| (i * 20 + 7, 2)).collect();
    let padded = (width + tail.len()).next_multiple_of(64);
    let entries =
        pack_tail(&tail, width, padded, BASE.codes).map_err(|fault| anyhow!("{fault}"))?;
    let tail = device.upload(&entries)?;
    let column = device.upload(&vec![1.25f32; width])?;
    let inverse = device.upload(&vec![50.0f32; width])?;
    // Buffers of one rotation: x, other, sum, codes.
    let sets = (ROTATION / (rows * width * 3)).clamp(2, 48);
    let buffers = (0..sets)
        .map(|i| -> Result<[Buffer; 4]> {
            let half = || device.filled(rows * width * 2, 0);
            let set = [half()?, half()?, half()?, device.filled(rows * padded, 0)?];
            random::fill(device, &set[0], i as u64 * 2 + 1, true)?;
            random::fill(device, &set[1], i as u64 * 2 + 2, true)?;
            Ok(set)
        })
        .collect::<Result<Vec<_>>>()?;
    let configs =
        timed(width).into_iter().filter(|config| timing::wanted(&config.to_string(), only));
    let mut entries = Vec::new();
    let (mut sizes, mut held) = (Vec::new(), Vec::new());
    for config in configs {
        let padded = if config.tail { padded } else { width };
        let shape = Rows { rows, width, pitch: width, padded };
        let launches = buffers
            .iter()
            .map(|[x, other, sum, codes]| {
                let normal = sum;
                let (gamma, beta) = (&column, &column);
                let (inverse, tail) = (&inverse, &tail);
                let operands = Operands {
                    x,
                    other,
                    other_at: 0,
                    sum,
                    normal,
                    codes,
                    gamma,
                    beta,
                    inverse,
                    tail,
                };
                Quantize::new(device, &config, shape, &operands)
            })
            .collect::<Result<Vec<_>>>()?;
        let expected_ms = bytes(&config, shape) as f64 / 2.5e9 + 0.002;
        let repeats = timing::repeats(expected_ms, sets);
        let work = |i: usize| launches[i % sets].launch(device);
        entries.push(Entry::new(device, config.to_string(), repeats, work)?);
        // A copy that reads and writes as many bytes together.
        let half = bytes(&config, shape) / 2;
        let copies = buffers
            .iter()
            .map(|_| -> Result<_> { Ok([device.filled(half, 1)?, device.filled(half, 2)?]) })
            .collect::<Result<Vec<_>>>()?;
        let work = |i: usize| device.copy(&copies[i % sets][0], &copies[i % sets][1]);
        entries.push(Entry::new(device, format!("copy for {config}"), repeats, work)?);
        held.extend(copies);
        sizes.push((config.to_string(), bytes(&config, shape)));
    }
    timing::time(device, &mut entries)?;
    let time = |name: &str| entries.iter().find(|entry| entry.name == name).map(Entry::median);
    println!("\nrows {rows}, width {width}");
    let mut records = Vec::new();
    for (name, size) in sizes {
        let Some(ms) = time(&name) else { continue };
        let over_bytes = ms / (size as f64 / bandwidth * 1e3);
        let over_plain = time(&name.replace("_tail", "")).filter(|_| name.contains("_tail"));
        let over_plain = over_plain.map(|plain| round(ms / plain, 1000.0));
        let copy = time(&format!("copy for {name}")).unwrap_or(f64::NAN);
        println!(
            "{:8.2} us {:5.2}x its bytes, {:5.2}x a copy of them, {} {name}",
            ms * 1e3,
            over_bytes,
            ms / copy,
            over_plain.map_or("     ".into(), |ratio| format!("{ratio:.2}x")),
        );
        records.push(json!({
            "rows": rows, "width": width, "name": name, "us": round(ms * 1e3, 100.0),
            "over_bytes": round(over_bytes, 1000.0), "over_copy": round(ms / copy, 1000.0),
            "over_without_tail": over_plain,
        }));
    }
    Ok(records)
}
