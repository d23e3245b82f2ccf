//! Correctness: accumulators bit for bit, outputs against the same arithmetic on the host.

use crate::device::{Buffer, Device};
use crate::gemm::{Operands, Shape};
use crate::product::{Meaning, Product};
use crate::random::Random;
use anyhow::{Result, bail};
use fqc_ir::quant::{digit, wide_code};
use fqc_kernels::cuda::gemm::{Activation, Output, Weights};
use fqc_kernels::cuda::pack::{
    GROUP, MAX_FACTOR, pack_halves, pack_int4, pack_int4_grouped, pack_int8, pack_native4,
};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ragged everything: M from 1 through primes, N odd multiples of 16, K with tails. The last ones
/// have more tiles than a GPU has multiprocessors.
const SHAPES: [(usize, usize, usize); 18] = [
    (1, 16, 16),
    (7, 48, 128),
    (8, 64, 144),
    (13, 80, 400),
    (63, 112, 256),
    (64, 128, 1040),
    (65, 144, 272),
    (127, 208, 512),
    (128, 256, 384),
    (129, 272, 640),
    (191, 336, 1168),
    (257, 528, 256),
    (311, 400, 2064),
    (509, 1040, 784),
    (1021, 784, 128),
    (17, 5136, 1040),
    (2129, 4112, 528),
    (4099, 2064, 1296),
];

/// One problem on the host, with the exact accumulators.
struct Problem {
    shape: Shape,
    x: Vec<i16>,
    w: Vec<i8>,
    /// Of each 64 codes of a channel; ones unless weights have them.
    factors: Vec<u8>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    inverse: Vec<f32>,
    /// Which digit a channel of a code output holds.
    digit: Vec<u32>,
    accumulators: Vec<i32>,
}

impl Problem {
    fn new(shape: Shape, weights: Weights, unsigned: bool) -> Self {
        let Shape { m, n, k } = shape;
        let mut random = Random::new((m * 31 + n * 7 + k) as u64);
        let (limit, x_limit) = match weights {
            Weights::Int8 => (127, 127),
            Weights::Int4 | Weights::Int4Grouped => (7, 127),
            // Small integers, whose sums floats hold exactly.
            Weights::Native4 | Weights::F16 | Weights::Bf16 => (7, 7),
        };
        let sign = |code: i8| i16::from(code) + if unsigned { i16::from(x_limit) } else { 0 };
        let x: Vec<i16> = random.codes(m * k, x_limit).into_iter().map(sign).collect();
        let w = random.codes(n * k, limit);
        let size = 1.0 / (f32::from(x_limit) * f32::from(limit) * (k as f32).sqrt());
        let scale = random.floats(n, size, 3.0 * size);
        let bias = random.floats(n, -1.0, 1.0);
        let residual = random.floats(m * n, -1.0, 1.0);
        let inverse = random.floats(n, 30.0, 90.0);
        let digit = random.codes(n, 1).into_iter().map(|code| (code + 2) as u32).collect();
        let groups = k.div_ceil(GROUP);
        let factors: Vec<u8> = match weights {
            Weights::Int4Grouped => {
                (0..n * groups).map(|_| (random.next() % u64::from(MAX_FACTOR + 1)) as u8).collect()
            }
            _ => vec![1; n * groups],
        };
        let factor = |at: usize| factors[at / k * groups + at % k / GROUP] as i8;
        let products: Vec<i8> = w.iter().enumerate().map(|(at, &w)| w * factor(at)).collect();
        let accumulators = multiply(&x, &products, shape);
        Self { shape, x, w, factors, scale, bias, residual, inverse, digit, accumulators }
    }

    /// The activations as the kernel reads them.
    fn codes(&self, weights: Weights) -> Vec<i8> {
        let codes: Vec<i8> = self.x.iter().map(|&code| code as i8).collect();
        match weights {
            Weights::F16 | Weights::Bf16 => {
                let bytes = halves(weights, &codes).into_iter().flat_map(u16::to_le_bytes);
                bytes.map(|byte| byte as i8).collect()
            }
            _ => codes,
        }
    }

    /// The epilogue in float, as the kernel does it.
    fn expected(&self, config: &Meaning, token: usize, channel: usize) -> f32 {
        let at = token * self.shape.n + channel;
        let bias = if config.bias { self.bias[channel] } else { 0.0 };
        let y = (self.accumulators[at] as f32).mul_add(self.scale[channel], bias);
        let y = match config.activation {
            Activation::None => y,
            Activation::Relu => y.max(0.0),
            Activation::Gelu => 0.5 * y * (1.0 + erf(y * std::f32::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                0.5 * y * (1.0 + (y * 0.035_677_41_f32.mul_add(y * y, 0.797_884_6)).tanh())
            }
            Activation::Silu => y / (1.0 + (-y).exp()),
        };
        match (config.residual, config.output) {
            (false, _) => y,
            (true, Output::Bf16) => y + bf16::from_f32(self.residual[at]).to_f32(),
            (true, _) => y + f16::from_f32(self.residual[at]).to_f32(),
        }
    }
}

/// The bits of small integers as halves.
fn halves(weights: Weights, codes: &[i8]) -> Vec<u16> {
    let half = |&code: &i8| match weights {
        Weights::Bf16 => bf16::from_f32(f32::from(code)).to_bits(),
        _ => f16::from_f32(f32::from(code)).to_bits(),
    };
    codes.iter().map(half).collect()
}

/// The definition of the product, a token a thread at a time.
fn multiply(x: &[i16], w: &[i8], Shape { n, k, .. }: Shape) -> Vec<i32> {
    let m = x.len() / k;
    let mut out = vec![0; m * n];
    let rows = m.div_ceil(threads());
    std::thread::scope(|scope| {
        for (x, out) in x.chunks(rows * k).zip(out.chunks_mut(rows * n)) {
            scope.spawn(move || {
                for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
                    for (w, out) in w.chunks_exact(k).zip(out) {
                        *out = x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
                    }
                }
            });
        }
    });
    out
}

pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// erf by its series and continued fraction; good to the last bits of f32.
pub fn erf(x: f32) -> f32 {
    let (mut sum, mut term, x) = (0.0f64, f64::from(x), f64::from(x));
    if x.abs() > 4.0 {
        return x.signum() as f32;
    }
    for i in 0..80 {
        sum += term / f64::from(2 * i + 1);
        term *= -x * x / f64::from(i + 1);
    }
    (sum * 2.0 / std::f64::consts::PI.sqrt()) as f32
}

const WEIGHTS: [Weights; 6] = [
    Weights::Int8,
    Weights::Int4,
    Weights::Int4Grouped,
    Weights::Native4,
    Weights::F16,
    Weights::Bf16,
];

const POISON: u8 = 0xa5;
const GUARD: usize = 4096;

fn code_max(output: Output) -> (i32, bool) {
    match output {
        Output::S8 => (127, true),
        Output::U8 => (255, false),
        Output::S4 => (7, true),
        _ => (15, false),
    }
}

/// Checks every instance on the first `shapes` shapes; names the first fault of each.
pub fn check(device: &Device, products: &[Product], shapes: usize) -> Result<()> {
    let shapes = &SHAPES[..shapes.min(SHAPES.len())];
    let mut faults: BTreeMap<String, String> = BTreeMap::new();
    for weights in WEIGHTS {
        for unsigned in [false, true] {
            let alike = |product: &&Product| {
                let meaning = product.meaning();
                meaning.weights == weights && meaning.unsigned == unsigned
            };
            let alike: Vec<_> = products.iter().filter(alike).collect();
            for &(m, n, k) in shapes {
                // Rows of the activations are multiples of 16 bytes.
                let k = if weights == Weights::Native4 { k.next_multiple_of(32) } else { k };
                if alike.is_empty() {
                    continue;
                }
                let problem = Problem::new(Shape { m, n, k }, weights, unsigned);
                let buffers = Buffers::new(device, &problem, weights)?;
                for product in &alike {
                    if let Err(fault) = check_one(device, product, &problem, &buffers) {
                        faults.entry(product.to_string()).or_insert_with(|| format!("{fault:#}"));
                    }
                }
            }
        }
    }
    for fault in faults.values() {
        println!("WRONG {fault}");
    }
    if !faults.is_empty() {
        bail!("{} of {} instances are wrong", faults.len(), products.len());
    }
    println!("{} instances are right on {} shapes", products.len(), shapes.len());
    Ok(())
}

/// A problem on the device.
struct Buffers {
    x: Buffer,
    weights: Buffer,
    scale: Buffer,
    bias: Buffer,
    residual: [Buffer; 2],
    inverse: Buffer,
    /// What the digit of a channel leaves to lower ones, by the largest code.
    below: BTreeMap<i32, Buffer>,
}

impl Buffers {
    fn new(device: &Device, problem: &Problem, weights: Weights) -> Result<Self> {
        let Shape { n, k, .. } = problem.shape;
        let packed = match weights {
            Weights::Int4 => pack_int4(&problem.w, n, k),
            Weights::Int4Grouped => pack_int4_grouped(&problem.w, &problem.factors, n, k),
            Weights::Int8 => pack_int8(&problem.w, n, k),
            Weights::Native4 => pack_native4(&problem.w, n, k),
            Weights::F16 | Weights::Bf16 => pack_halves(&halves(weights, &problem.w), n, k),
        };
        let halves: Vec<f16> = problem.residual.iter().map(|&v| f16::from_f32(v)).collect();
        let brains: Vec<bf16> = problem.residual.iter().map(|&v| bf16::from_f32(v)).collect();
        Ok(Self {
            x: device.upload(&problem.codes(weights))?,
            weights: device.upload(&packed)?,
            scale: device.upload(&problem.scale)?,
            bias: device.upload(&problem.bias)?,
            residual: [device.upload(&halves)?, device.upload(&brains)?],
            inverse: device.upload(&problem.inverse)?,
            below: [7, 15, 127, 255]
                .into_iter()
                .map(|max| {
                    let below = |&digit: &u32| ((digit - 1) * max as u32) as f32;
                    let below: Vec<f32> = problem.digit.iter().map(below).collect();
                    Ok((max, device.upload(&below)?))
                })
                .collect::<Result<_>>()?,
        })
    }
}

fn check_one(
    device: &Device,
    product: &Product,
    problem: &Problem,
    buffers: &Buffers,
) -> Result<()> {
    let Shape { m, n, .. } = problem.shape;
    let config = &product.meaning();
    let bytes = m * n * config.output.bytes();
    let out = device.filled(bytes + GUARD, POISON)?;
    let operands = Operands {
        x: &buffers.x,
        weights: &buffers.weights,
        scale: &buffers.scale,
        bias: &buffers.bias,
        residual: &buffers.residual[usize::from(config.output == Output::Bf16)],
        inverse: &buffers.inverse,
        below: &buffers.below[&code_max(config.output).0],
        out: &out,
    };
    product.launch(device, problem.shape, &operands)?;
    let result = device.download(&out)?;
    if result[bytes..].iter().any(|&byte| byte != POISON) {
        bail!("{product} at {:?} writes past its output", problem.shape);
    }
    let next = AtomicUsize::new(0);
    let search = || -> Option<String> {
        loop {
            let token = next.fetch_add(1, Ordering::Relaxed);
            if token >= m {
                return None;
            }
            for channel in 0..n {
                if let Some(fault) = fault(config, problem, &result, token, channel) {
                    next.store(m, Ordering::Relaxed);
                    return Some(format!("token {token}, channel {channel}: {fault}"));
                }
            }
        }
    };
    let found = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads()).map(|_| scope.spawn(search)).collect();
        let mut found =
            workers.into_iter().map(|worker| worker.join().expect("a worker that ends"));
        found.find_map(|fault| fault)
    });
    match found {
        Some(fault) => bail!("{product} at {:?}, {fault}", problem.shape),
        None => Ok(()),
    }
}

fn fault(
    config: &Meaning,
    problem: &Problem,
    result: &[u8],
    token: usize,
    channel: usize,
) -> Option<String> {
    let at = token * problem.shape.n + channel;
    let pair = || [result[at * 2], result[at * 2 + 1]];
    let quad = || [result[at * 4], result[at * 4 + 1], result[at * 4 + 2], result[at * 4 + 3]];
    if config.output == Output::S32 {
        let (got, wanted) = (i32::from_le_bytes(quad()), problem.accumulators[at]);
        return (got != wanted).then(|| format!("{got} instead of {wanted}"));
    }
    let wanted = problem.expected(config, token, channel);
    // Activations by approximate instructions may differ by more than their rounding.
    let slack = match config.activation {
        Activation::None | Activation::Relu => 0.0,
        Activation::Gelu => 1e-6,
        Activation::GeluTanh | Activation::Silu => 1.5e-3,
    };
    let (got, wanted, step) = match config.output {
        output if output.codes() => {
            let (max, signed) = code_max(output);
            let wide = wide_code(wanted, problem.inverse[channel], signed);
            let at_digit = if config.digits { problem.digit[channel] } else { 1 };
            let got = if signed { f32::from(result[at] as i8) } else { f32::from(result[at]) };
            (got, digit(wide, at_digit, max) as f32, 1.0)
        }
        Output::F16 => {
            let (got, wanted) = (f16::from_le_bytes(pair()), f16::from_f32(wanted));
            (got.to_f32(), wanted.to_f32(), wanted.to_f32().abs().max(1e-4) / 1024.0)
        }
        Output::Bf16 => {
            let (got, wanted) = (bf16::from_le_bytes(pair()), bf16::from_f32(wanted));
            (got.to_f32(), wanted.to_f32(), wanted.to_f32().abs().max(1e-4) / 128.0)
        }
        _ => (f32::from_le_bytes(quad()), wanted, 0.0),
    };
    let allowed = if slack == 0.0 { 0.0 } else { slack * wanted.abs().max(1.0) + step };
    let off = (got - wanted).abs();
    (off.is_nan() || off > allowed).then(|| format!("{got} instead of {wanted}"))
}
