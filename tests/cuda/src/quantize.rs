//! Launches, checks and times `quantize.cuh`.

use crate::check::threads;
use crate::device::{Buffer, Device, address};
use crate::random::{self, Random};
use crate::timing::{self, Entry, ROTATION, round};
use anyhow::{Result, anyhow, bail};
use cudarc::driver::{CudaFunction, DeviceRepr};
use fqc_ir::quant::{digit, wide_code};
use fqc_kernels::cuda::gemm::Activation;
use fqc_kernels::cuda::quantize::{Codes, Combine, Element, Norm, QuantizeConfig, pack_tail};
use half::{bf16, f16};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

/// `QuantizeArguments` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    x: u64,
    other: u64,
    sum: u64,
    normal: u64,
    codes: u64,
    gamma: u64,
    beta: u64,
    inverse: u64,
    tail: u64,
    rows: i32,
    width: i32,
    x_pitch: i32,
    other_pitch: i32,
    pitch: i32,
    tail_count: i32,
    epsilon: f32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for Arguments {}

/// Buffers of one launch; those that the instance does not use may be any.
pub struct Operands<'a> {
    pub x: &'a Buffer,
    pub other: &'a Buffer,
    /// Where `other` starts, in elements of two bytes.
    pub other_at: usize,
    pub sum: &'a Buffer,
    pub normal: &'a Buffer,
    pub codes: &'a Buffer,
    pub gamma: &'a Buffer,
    pub beta: &'a Buffer,
    pub inverse: &'a Buffer,
    pub tail: &'a Buffer,
}

/// Sizes of one launch.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub rows: usize,
    pub width: usize,
    /// Elements from one row of `x` to the next, and of `other`.
    pub pitch: usize,
    /// Columns after flattening.
    pub padded: usize,
}

pub struct Quantize {
    kernel: CudaFunction,
    arguments: Arguments,
    grid: u32,
    threads: u32,
}

pub const EPSILON: f32 = 1e-5;

impl Quantize {
    pub fn new(
        device: &Device,
        config: &QuantizeConfig,
        rows: Rows,
        operands: &Operands,
    ) -> Result<Self> {
        let kernel = device.kernel(&config.to_string(), || config.source(), 0)?;
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        let resident =
            kernel.occupancy_max_active_blocks_per_multiprocessor(config.threads, 0, None)?;
        let codes_a_byte = if config.codes.packed { 2 } else { 1 };
        Ok(Self {
            kernel,
            arguments: Arguments {
                x: at(operands.x),
                other: at(operands.other) + operands.other_at as u64 * 2,
                sum: at(operands.sum),
                normal: at(operands.normal),
                codes: at(operands.codes),
                gamma: at(operands.gamma),
                beta: at(operands.beta),
                inverse: at(operands.inverse),
                tail: at(operands.tail),
                rows: rows.rows as i32,
                width: rows.width as i32,
                x_pitch: rows.pitch as i32,
                other_pitch: rows.pitch as i32,
                pitch: (rows.padded / codes_a_byte) as i32,
                tail_count: (rows.padded - rows.width) as i32,
                epsilon: EPSILON,
            },
            grid: (rows.rows as u32).min(resident * device.processors),
            threads: config.threads,
        })
    }

    pub fn launch(&self, device: &Device) -> Result<()> {
        device.launch(&self.kernel, &self.arguments, self.grid, self.threads, 0, true)
    }
}

const BASE: QuantizeConfig = QuantizeConfig {
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
fn checked(width: usize) -> Vec<QuantizeConfig> {
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
fn timed(width: usize) -> Vec<QuantizeConfig> {
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

const WIDTHS: [usize; 7] = [64, 384, 768, 1000, 4096, 5120, 9216];
const TIMED_WIDTHS: [usize; 3] = [4096, 5120, 9216];

/// Every instance that a command uses.
pub fn all() -> Vec<QuantizeConfig> {
    let checked = WIDTHS.into_iter().flat_map(checked);
    checked.chain(TIMED_WIDTHS.into_iter().flat_map(timed)).collect()
}

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
