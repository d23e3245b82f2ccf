//! Attention against sums of f64.

use super::instances::{checked, shapes};
use super::launch::{Attention, Operands, Shape};
use crate::device::{Buffer, Device, address};
use crate::random::Random;
use crate::timing;
use anyhow::{Result, bail};
use fqc_kernels::cuda::attention_sm90::AttentionSm90Config as Config;
use fqc_kernels::cuda::gemm::Output;
use half::{bf16, f16};

struct Problem {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    inverse: Vec<f32>,
}

const POISON: u8 = 0xa5;

/// Checks every instance on every shape against sums of f64.
pub fn check(device: &Device, only: &str) -> Result<()> {
    let mut count = 0;
    for shape in shapes() {
        let Shape { batch, heads, group, queries, keys, dim } = shape;
        let mut random = Random::new((queries * 7 + keys * 3 + dim) as u64);
        let mut halves = |count: usize, size: f32| -> Vec<f32> {
            let values = random.floats(count, -size, size);
            // Numbers that both kinds of halves hold.
            values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
        };
        let keyed = batch * keys * heads / group * dim;
        let problem = Problem {
            shape,
            q: halves(batch * queries * heads * dim, 3.0),
            k: halves(keyed, 3.0),
            v: halves(keyed, 2.0),
            inverse: random.floats(heads * dim, 50.0, 90.0),
        };
        for config in checked(shape) {
            if timing::wanted(&config.to_string(), only) {
                check_one(device, &config, &problem)?;
                count += 1;
            }
        }
    }
    println!("{count} attentions are right");
    Ok(())
}

fn check_one(device: &Device, config: &Config, problem: &Problem) -> Result<()> {
    let Shape { batch, heads, group, queries, keys, dim } = problem.shape;
    let upload = |values: &[f32]| -> Result<Buffer> {
        if config.output == Output::Bf16 {
            device.upload(&values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())
        } else {
            device.upload(&values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>())
        }
    };
    let (q, k, v) = (upload(&problem.q)?, upload(&problem.k)?, upload(&problem.v)?);
    let elements = batch * queries * heads * dim;
    let bytes = elements * config.output.bytes();
    let out = device.filled(bytes + 64, POISON)?;
    let at = |buffer: &Buffer| address(buffer, &device.stream);
    let key_strides = problem.shape.strides(keys, heads / group);
    let query_strides = problem.shape.strides(queries, heads);
    let operands = Operands {
        addresses: [at(&q), at(&k), at(&v), at(&out)],
        strides: [query_strides, key_strides, key_strides, query_strides],
        inverse: Some(&device.upload(&problem.inverse)?),
    };
    Attention::new(device, config, problem.shape, &operands)?.launch(device)?;
    let result = device.download(&out)?;
    let place = |at: usize| format!("{config} at {:?}, element {at}", problem.shape);
    if result[bytes..].iter().any(|&byte| byte != POISON) {
        bail!("{}: writes past its result", place(elements));
    }
    for row in 0..batch * queries * heads {
        let wanted = expected(config, problem, row);
        for (column, &wanted) in wanted.iter().enumerate() {
            let at = row * dim + column;
            let pair = || [result[at * 2], result[at * 2 + 1]];
            // Probabilities are rounded to halves, then the result.
            let (got, step, wanted) = match config.output {
                Output::Bf16 => (bf16::from_le_bytes(pair()).to_f64(), 1.0 / 128.0, wanted),
                Output::F16 => (f16::from_le_bytes(pair()).to_f64(), 1.0 / 1024.0, wanted),
                _ => {
                    let inverse = problem.inverse[row % heads * dim + column];
                    let wanted = (wanted * f64::from(inverse)).clamp(-127.0, 127.0);
                    (f64::from(result[at] as i8), 1.0 / 1024.0, wanted)
                }
            };
            let rounding = if config.output.codes() { 0.5 } else { 0.0 };
            let allowed = rounding + step * if config.output.codes() { 200.0 } else { 2.0 };
            let off = (got - wanted).abs();
            if off.is_nan() || off > allowed {
                bail!("{}: {got} instead of {wanted}", place(at));
            }
        }
    }
    Ok(())
}

/// Row `row` of `[batch][queries][heads]` by the definition.
fn expected(config: &Config, problem: &Problem, row: usize) -> Vec<f64> {
    let Shape { heads, group, queries, keys, dim, .. } = problem.shape;
    let (head, query, batch) = (row % heads, row / heads % queries, row / heads / queries);
    let key_heads = heads / group;
    let of_key = |values: &[f32], key: usize, i: usize| {
        f64::from(values[((batch * keys + key) * key_heads + head / group) * dim + i])
    };
    let visible = if config.causal { (keys + query + 1).saturating_sub(queries) } else { keys };
    let scores: Vec<f64> = (0..visible.min(keys))
        .map(|key| {
            let dot: f64 = (0..dim)
                .map(|i| f64::from(problem.q[row * dim + i]) * of_key(&problem.k, key, i))
                .sum();
            dot / (dim as f64).sqrt()
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|&s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..dim)
        .map(|i| {
            let sum: f64 =
                weights.iter().enumerate().map(|(key, w)| w * of_key(&problem.v, key, i)).sum();
            sum / total
        })
        .collect()
}
