//! Quantisers against `fqc_ir::quant`.

use super::instances::{WIDTHS, checked};
use super::launch::{EPSILON, Operands, Quantize, Rows};
use crate::check::threads;
use crate::device::{Buffer, Device};
use crate::random::Random;
use crate::timing;
use anyhow::{Result, anyhow, bail};
use fqc_ir::quant::{digit, wide_code};
use fqc_kernels::cuda::gemm::Activation;
use fqc_kernels::cuda::quantize::{Codes, Combine, Element, Norm, QuantizeConfig, pack_tail};
use half::{bf16, f16};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows on the host. A few columns are much larger than the others, as in transformers.
struct Problem {
    rows: Rows,
    x: Vec<f32>,
    other: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    inverse: Vec<f32>,
    tail: Vec<(u32, u16)>,
}

impl Problem {
    fn new(count: usize, width: usize) -> Self {
        let mut random = Random::new((count * 131 + width) as u64);
        let large = |column: usize| if column % 23 == 3 { 9.0 } else { 1.0 };
        let mut floats = |low: f32, high: f32| {
            let mut values = random.floats(count * width, low, high);
            values.iter_mut().enumerate().for_each(|(i, v)| *v *= large(i % width));
            values
        };
        let (x, other) = (floats(-3.0, 3.5), floats(-1.0, 1.0));
        let gamma = random.floats(width, 0.5, 1.5);
        let beta = random.floats(width, -0.5, 0.5);
        let inverse = random.floats(width, 30.0, 70.0);
        // A twentieth of the columns has a second digit, some have a third.
        let second = (0..width as u32).filter(|column| column % 23 == 3);
        let tail: Vec<(u32, u16)> = second
            .flat_map(|column| [(column, 2), (column, 3)])
            .filter(|&(column, digit)| digit == 2 || column % 4 == 0)
            .collect();
        let padded = (width + tail.len()).next_multiple_of(64);
        let rows = Rows { rows: count, width, pitch: width, padded };
        Self { rows, x, other, gamma, beta, inverse, tail }
    }

    /// The row that is normalised, and the row that is quantised before `inverse`; a bound on how
    /// far the device may be from the latter.
    fn expected(&self, config: &QuantizeConfig, row: usize) -> (Vec<f32>, Vec<f64>) {
        let at = row * self.rows.width..(row + 1) * self.rows.width;
        let round = |v: f32| as_element(config.element, v);
        let pair = self.x[at.clone()].iter().zip(&self.other[at]);
        let v: Vec<f32> = pair
            .map(|(&x, &other)| {
                let (x, other) = (activated(config.activation, round(x)), round(other));
                match config.combine {
                    Combine::None => x,
                    Combine::Add => x + other,
                    Combine::Multiply => x * other,
                }
            })
            .collect();
        let n = v.len() as f64;
        let mean = match config.norm {
            Norm::Layer => v.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
            _ => 0.0,
        };
        let variance = v.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let factor = match config.norm {
            Norm::None => 1.0,
            _ => 1.0 / (variance + f64::from(EPSILON)).sqrt(),
        };
        let normal = |(j, &v): (usize, &f32)| {
            let normal = (f64::from(v) - mean) * factor;
            match config.norm {
                Norm::None => normal,
                Norm::Rms => normal * f64::from(self.gamma[j]),
                Norm::Layer => normal * f64::from(self.gamma[j]) + f64::from(self.beta[j]),
            }
        };
        let y = v.iter().enumerate().map(normal).collect();
        (v, y)
    }
}

fn activated(activation: Activation, x: f32) -> f32 {
    let erf = |x: f32| crate::check::erf(x);
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => unreachable!("no instance has it"),
    }
}

fn as_element(element: Element, v: f32) -> f32 {
    match element {
        Element::F16 => f16::from_f32(v).to_f32(),
        Element::Bf16 => bf16::from_f32(v).to_f32(),
        Element::F32 => v,
    }
}

fn upload(device: &Device, element: Element, values: &[f32]) -> Result<Buffer> {
    match element {
        Element::F16 => {
            device.upload(&values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>())
        }
        Element::Bf16 => {
            device.upload(&values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())
        }
        Element::F32 => device.upload(values),
    }
}

fn download(device: &Device, element: Element, buffer: &Buffer) -> Result<Vec<f32>> {
    let bytes = device.download(buffer)?;
    let pair = |bytes: &[u8]| [bytes[0], bytes[1]];
    Ok(match element {
        Element::F16 => {
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes(pair(b)).to_f32()).collect()
        }
        Element::Bf16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(pair(b)).to_f32()).collect()
        }
        Element::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
    })
}

const POISON: u8 = 0xa5;

/// Checks every instance; stops at the first fault.
pub fn check(device: &Device, only: &str) -> Result<()> {
    let mut count = 0;
    for width in WIDTHS {
        for rows in [1, 7, 301] {
            let problem = Problem::new(rows, width);
            for config in checked(width) {
                if timing::wanted(&config.to_string(), only) {
                    check_one(device, &config, &problem)?;
                    count += 1;
                }
            }
        }
    }
    println!("{count} rows of quantisers are right");
    Ok(())
}

fn check_one(device: &Device, config: &QuantizeConfig, problem: &Problem) -> Result<()> {
    let Rows { rows, width, .. } = problem.rows;
    let element = config.element;
    let padded = if config.tail { problem.rows.padded } else { width };
    let bytes = rows * padded / if config.codes.packed { 2 } else { 1 };
    let size = match element {
        Element::F32 => 4,
        _ => 2,
    };
    let entries = pack_tail(&problem.tail, width, problem.rows.padded, config.codes)
        .map_err(|fault| anyhow!("{fault}"))?;
    let floats = rows * width * size;
    let outputs = [
        device.filled(floats + 64, POISON)?,
        device.filled(floats + 64, POISON)?,
        device.filled(bytes + 64, POISON)?,
    ];
    let operands = Operands {
        x: &upload(device, element, &problem.x)?,
        other: &upload(device, element, &problem.other)?,
        other_at: 0,
        sum: &outputs[0],
        normal: &outputs[1],
        codes: &outputs[2],
        gamma: &device.upload(&problem.gamma)?,
        beta: &device.upload(&problem.beta)?,
        inverse: &device.upload(&problem.inverse)?,
        tail: &device.upload(&entries)?,
    };
    Quantize::new(device, config, Rows { padded, ..problem.rows }, &operands)?.launch(device)?;
    let codes = device.download(&outputs[2])?;
    if codes[bytes..].iter().any(|&byte| byte != POISON) {
        bail!("{config} at {rows} x {width} writes past its codes");
    }
    let sum = download(device, element, &outputs[0])?;
    let normal = download(device, element, &outputs[1])?;
    let results = Results { padded, codes, sum, normal };
    let next = AtomicUsize::new(0);
    let search = || -> Result<()> {
        loop {
            let row = next.fetch_add(1, Ordering::Relaxed);
            if row >= rows {
                return Ok(());
            }
            check_row(config, problem, &results, row)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads()).map(|_| scope.spawn(search)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker that ends"))
    })
}

/// What came back from the device.
struct Results {
    padded: usize,
    codes: Vec<u8>,
    sum: Vec<f32>,
    normal: Vec<f32>,
}

fn check_row(
    config: &QuantizeConfig,
    problem: &Problem,
    results: &Results,
    row: usize,
) -> Result<()> {
    let Rows { rows, width, .. } = problem.rows;
    let Results { padded, ref codes, ref sum, ref normal } = *results;
    let element = config.element;
    let (v, y) = problem.expected(config, row);
    for column in 0..padded {
        let at = row * padded + column;
        let place = || format!("{config} at {rows} x {width}, row {row}, column {column}");
        let got = match config.codes {
            Codes { packed: true, signed, .. } => {
                let half = codes[at / 2] >> (at % 2 * 4) & 0xf;
                if signed { ((half as i8) << 4 >> 4) as i32 } else { i32::from(half) }
            }
            Codes { signed: true, .. } => i32::from(codes[at] as i8),
            _ => i32::from(codes[at]),
        };
        let wanted = match source(problem, column) {
            Some((j, k)) => allowed(config, problem, &y, j, k),
            None => [0, 0],
        };
        if !(wanted[0].min(wanted[1])..=wanted[0].max(wanted[1])).contains(&got) {
            bail!("{}: {got} instead of {wanted:?}", place());
        }
        if column < width && config.sum {
            let wanted = as_element(element, v[column]);
            if sum[row * width + column] != wanted {
                bail!("{}: sum {} instead of {wanted}", place(), sum[row * width + column]);
            }
        }
        if column < width && config.float {
            let (got, wanted) = (f64::from(normal[row * width + column]), y[column]);
            let step = if element == Element::Bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
            if (got - wanted).abs() > step * wanted.abs() + 1e-5 {
                bail!("{}: {got} instead of {wanted}", place());
            }
        }
    }
    Ok(())
}

fn source(problem: &Problem, column: usize) -> Option<(usize, u32)> {
    if column < problem.rows.width {
        return Some((column, 1));
    }
    let tail = problem.tail.get(column - problem.rows.width);
    tail.map(|&(source, digit)| (source as usize, u32::from(digit)))
}

/// The digits between which the device's must be: one where floats are exact, else those of what
/// lies half a step of their error to either side.
fn allowed(config: &QuantizeConfig, problem: &Problem, y: &[f64], j: usize, k: u32) -> [i32; 2] {
    let (inverse, codes) = (problem.inverse[j], config.codes);
    let exact = config.norm == Norm::None
        && matches!(config.activation, Activation::None | Activation::Relu);
    if exact {
        let code = digit(wide_code(y[j] as f32, inverse, codes.signed), k, codes.max());
        return [code, code];
    }
    let wide = y[j] * f64::from(inverse);
    let error = match config.activation {
        Activation::None => 3e-6 * (wide.abs() + 100.0),
        // tanh by one instruction.
        _ => 1e-3 * (wide.abs() + 40.0),
    };
    [-error, error]
        .map(|error| digit(wide_code((wide + error) as f32, 1.0, codes.signed), k, codes.max()))
}
