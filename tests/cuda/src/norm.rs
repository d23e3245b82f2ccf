//! Norms that quantise and flatten, as codegen prints them for a compiled model: checked and timed beside
//! a copy of as many bytes that is launched the same way.

use crate::device::{Buffer, Device, address};
use crate::random::Random;
use crate::timing::{self, Entry, ROTATION, round};
use anyhow::{Context as _, Result, bail};
use cudarc::driver::{CudaFunction, DeviceRepr};
use cudarc::nvrtc::Ptx;
use fqc_codegen::cuda::{Arch, Cache, Compiler, Nvrtc, generate};
use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Buffer as Memory, BufferId, Kernel, NormKind, Place, Plan, Port, RowQuantize};
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;
use serde_json::{Value, json};

/// Hidden sizes of MiniLM, SmolLM2-135M, and a model of 7 billion weights.
const WIDTHS: [usize; 3] = [384, 576, 4096];
const ROWS: [usize; 3] = [512, 2048, 8192];
const EPSILON: f32 = 1e-5;

/// Words of the longest parameter.
const WORDS: usize = 16;

/// The parameter of a generated kernel; what a kernel does not read is zero.
#[derive(Clone, Copy)]
#[repr(C)]
struct Words([u64; WORDS]);

// SAFETY: plain words, at least as many as the kernels read.
unsafe impl DeviceRepr for Words {}

/// A norm of rows of floats whose result is codes alone.
struct Norm {
    kind: NormKind,
    width: usize,
    codes: RowQuantize,
    kernel: CudaFunction,
    threads: u32,
    /// Rows of a block, and blocks of a multiprocessor if they stay.
    items: u32,
    resident: Option<u32>,
    /// Gamma, for a LayerNorm beta, then the tables of the codes.
    tables: Vec<Buffer>,
    host: Tables,
}

struct Tables {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    inverse: Vec<f32>,
    source: Vec<i32>,
    below: Vec<f32>,
}

impl Norm {
    /// With a tail of a twentieth of the width, or none.
    fn new(device: &Device, kind: NormKind, width: usize, tailed: bool) -> Result<Norm> {
        let tail = if tailed { width / 20 } else { 0 };
        let padded = (width + tail).next_multiple_of(64);
        let codes = RowQuantize { signed: true, bits: 8, base: width, tail, padded };
        let mut random = Random::new(width as u64);
        let host = Tables {
            gamma: random.floats(width, 0.5, 1.5),
            beta: random.floats(width, -0.5, 0.5),
            inverse: random.floats(width, 50.0, 90.0),
            source: (0..tail).map(|t| (t * 20 + 7) as i32).collect(),
            below: vec![127.0; tail],
        };
        let plan = plan(kind, &codes, &host);
        let folder = std::env::var("FQC_CACHE").unwrap_or_else(|_| ".cache".into());
        let cache = Cache::new(format!("{folder}/cubins"), Nvrtc::load()?);
        let image = generate(&plan, Arch::Sm90a, &Compiler::Cached(cache))?;
        let own = image.program.kernels.first().context("a plan of one step has a kernel")?;
        let attr = |name: &str| {
            let found = own.attrs.iter().find(|(n, _)| n == name);
            found.map(|&(_, value)| value as u32).context("a kernel says how it is launched")
        };
        let code = image.code.first().context("a target has code")?;
        let module = device.context.load_module(Ptx::from_binary(code.bytes.clone()))?;
        let mut tables = vec![device.upload(&host.gamma)?];
        if kind == NormKind::Layer {
            tables.push(device.upload(&host.beta)?);
        }
        tables.push(device.upload(&host.inverse)?);
        tables.push(device.upload(&host.source)?);
        tables.push(device.upload(&host.below)?);
        Ok(Norm {
            kind,
            width,
            codes,
            kernel: module.load_function(&own.name)?,
            threads: attr("threads")?,
            items: attr("items")?,
            resident: attr("resident").ok(),
            tables,
            host,
        })
    }

    fn name(&self) -> String {
        let tail = if self.codes.tail > 0 { ", tail" } else { "" };
        format!("{:?}Norm of {}{tail}", self.kind, self.width)
    }

    fn launch(&self, device: &Device, x: &Buffer, codes: &Buffer, rows: usize) -> Result<()> {
        let mut words = [0; WORDS];
        let buffers = [x].into_iter().chain(&self.tables).chain([codes]);
        let addresses = buffers.map(|buffer| address(buffer, &device.stream));
        let all = addresses.chain([rows as u64, 0]);
        words.iter_mut().zip(all).for_each(|(word, value)| *word = value);
        let most = self.resident.map_or(u32::MAX, |n| n * device.processors);
        let blocks = (rows as u32).div_ceil(self.items).min(most);
        device.launch(&self.kernel, &Words(words), blocks, self.threads, 0, true)
    }

    /// The code that a float of the norm becomes, nearly: `below` of a digit is 0 for the base.
    fn code(&self, y: f64, channel: usize, below: f32) -> f64 {
        let wide = (y * f64::from(self.host.inverse[channel])).round_ties_even();
        let digit = (wide.abs() - f64::from(below)).clamp(0.0, 127.0);
        digit.copysign(wide) + 128.0
    }
}

/// A plan of the norm alone.
fn plan(kind: NormKind, codes: &RowQuantize, host: &Tables) -> Plan {
    let mut plan = Plan::default();
    let mut buffer = |elem: Elem, shape: &[Dim], place: Place| {
        let id = BufferId(plan.buffers.len());
        let name = format!("b{}", id.0);
        plan.buffers.push(Memory { name, elem, shape: shape.to_vec(), place });
        View::whole(id, shape)
    };
    let rows = Dim::sym("rows");
    let x = buffer(Elem::F32, &[rows.clone(), Dim::from(codes.base)], Place::Input(0));
    let out = buffer(Elem::U8, &[rows, Dim::from(codes.padded)], Place::Output(0));
    let mut args = vec![x.clone()];
    let mut table = |value: Const| {
        let shape: Vec<Dim> = value.shape.iter().map(|&n| Dim::from(n)).collect();
        args.push(buffer(value.elem, &shape, Place::Const(value)));
    };
    let floats = |values: &[f32]| Const::f32(vec![values.len()], values);
    table(floats(&host.gamma));
    if kind == NormKind::Layer {
        table(floats(&host.beta));
    }
    table(floats(&host.inverse));
    let source: Vec<u8> = host.source.iter().flat_map(|v| v.to_le_bytes()).collect();
    let source = Const::new(Elem::I32, vec![host.source.len()], source);
    table(source.expect("four bytes a number"));
    table(floats(&host.below));
    let quantize = Some(codes.clone());
    let kernel = Kernel::Norm { kind, epsilon: EPSILON, float: false, quantize };
    plan.steps.push(Step { name: "norm".into(), kernel, args, results: vec![out.clone()] });
    let port = |view: &View, elem: Elem| Port {
        name: format!("p{}", view.buffer.0),
        elem,
        shape: view.shape.clone(),
        buffer: view.buffer,
    };
    plan.inputs.push(port(&x, Elem::F32));
    plan.outputs.push(port(&out, Elem::U8));
    plan
}

const KINDS: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];

/// Codes and digits against sums of f64: nowhere further off than one.
pub fn check(device: &Device, only: &str) -> Result<()> {
    let mut count = 0;
    for width in WIDTHS.into_iter().chain([20, 1000, 1024, 1028, 2050, 8192, 9216, 16384]) {
        for (kind, tailed) in KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            let norm = Norm::new(device, kind, width, tailed)?;
            if timing::wanted(&norm.name(), only) {
                [1, 5, 37].into_iter().try_for_each(|rows| check_one(device, &norm, rows))?;
                count += 1;
            }
        }
    }
    println!("{count} norms are right");
    Ok(())
}

fn check_one(device: &Device, norm: &Norm, rows: usize) -> Result<()> {
    let Norm { width, codes, host, .. } = norm;
    let x = Random::new(rows as u64 + 1).floats(rows * width, -3.0, 5.0);
    let out = device.filled(rows * codes.padded + 64, 0xa5)?;
    norm.launch(device, &device.upload(&x)?, &out, rows)?;
    let bytes = device.download(&out)?;
    let (bytes, guard) = bytes.split_at(rows * codes.padded);
    if guard.iter().any(|&byte| byte != 0xa5) {
        bail!("{} of {rows} rows writes past its result", norm.name());
    }
    let mut off = 0usize;
    for (r, (x, got)) in x.chunks(*width).zip(bytes.chunks(codes.padded)).enumerate() {
        let n = *width as f64;
        let mean = match norm.kind {
            NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
            NormKind::Rms => 0.0,
        };
        let squares: f64 = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
        let scale = 1.0 / (squares / n + f64::from(EPSILON)).sqrt();
        let value = |c: usize| {
            let beta = if norm.kind == NormKind::Layer { host.beta[c] } else { 0.0 };
            (f64::from(x[c]) - mean) * scale * f64::from(host.gamma[c]) + f64::from(beta)
        };
        for (at, &got) in got.iter().enumerate() {
            let wanted = match at {
                at if at < *width => norm.code(value(at), at, 0.0),
                at if at < width + codes.tail => {
                    let t = at - width;
                    let c = host.source[t] as usize;
                    norm.code(value(c), c, host.below[t])
                }
                _ => 128.0,
            };
            let far = (f64::from(got) - wanted).abs();
            off += usize::from(far > 0.0);
            if far > 1.0 {
                bail!("{}: row {r}, byte {at} is {got} instead of {wanted}", norm.name());
            }
        }
    }
    // What rounds differently lies within an error of f32 of a half.
    if off * 500 > bytes.len().max(2000) {
        bail!("{} of {rows} rows: {off} codes of {} are off", norm.name(), bytes.len());
    }
    Ok(())
}

/// A copy of whole pieces of 16 bytes, launched as the norms are.
const COPY: &str = "
struct Words { unsigned long long w[3]; };

extern \"C\" __global__ void __launch_bounds__(256) copy_pieces(const __grid_constant__ Words a) {
    const uint4* const from = reinterpret_cast<const uint4*>(a.w[0]);
    uint4* const to = reinterpret_cast<uint4*>(a.w[1]);
    asm volatile(\"griddepcontrol.launch_dependents;\\ngriddepcontrol.wait;\" ::: \"memory\");
    uint4 pieces[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned long long at = (blockIdx.x * 4ull + i) * 256 + threadIdx.x;
        if (at < a.w[2]) pieces[i] = from[at];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned long long at = (blockIdx.x * 4ull + i) * 256 + threadIdx.x;
        if (at < a.w[2]) to[at] = pieces[i];
    }
}
";

/// Times the norms beside the copy bandwidth, which is in bytes per second.
pub fn bench(device: &Device, bandwidth: f64, only: &str) -> Result<Vec<Value>> {
    let copy = device.kernel("copy_pieces", || COPY.to_owned(), 0)?;
    let mut records = Vec::new();
    for (rows, width) in ROWS.into_iter().flat_map(|rows| WIDTHS.map(|width| (rows, width))) {
        for kind in KINDS {
            let norms =
                [Norm::new(device, kind, width, false)?, Norm::new(device, kind, width, true)?];
            if timing::wanted(&norms[1].name(), only) {
                records.push(bench_one(device, bandwidth, &copy, &norms, rows)?);
            }
        }
    }
    Ok(records)
}

fn bench_one(
    device: &Device,
    bandwidth: f64,
    copy: &CudaFunction,
    norms: &[Norm; 2],
    rows: usize,
) -> Result<Value> {
    let [plain, tailed] = norms;
    let bytes = rows * (tailed.width * 4 + tailed.codes.padded);
    let sets = (ROTATION / bytes).clamp(2, 128);
    let x = Random::new(1).floats(rows * tailed.width, -3.0, 5.0);
    let pieces = bytes / 32;
    let buffers = (0..sets)
        .map(|_| -> Result<[Buffer; 4]> {
            let copied = || device.filled(pieces * 16, 1);
            let codes = device.filled(rows * tailed.codes.padded, 0)?;
            Ok([device.upload(&x)?, codes, copied()?, copied()?])
        })
        .collect::<Result<Vec<_>>>()?;
    let repeats = timing::repeats(bytes as f64 / 2.5e9 + 0.002, sets);
    let of = |norm: &'_ Norm, i: usize| {
        norm.launch(device, &buffers[i % sets][0], &buffers[i % sets][1], rows)
    };
    let copied = |i: usize| {
        let [.., from, to] = &buffers[i % sets];
        let mut words = [0; WORDS];
        words[..3].copy_from_slice(&[
            address(from, &device.stream),
            address(to, &device.stream),
            pieces as u64,
        ]);
        let blocks = (pieces as u32).div_ceil(4 * 256);
        device.launch(copy, &Words(words), blocks, 256, 0, true)
    };
    let mut entries = vec![
        Entry::new(device, "tail".into(), repeats, |i| of(tailed, i))?,
        Entry::new(device, "plain".into(), repeats, |i| of(plain, i))?,
        Entry::new(device, "copy".into(), repeats, copied)?,
    ];
    timing::time(device, &mut entries)?;
    let us = |name: &str| {
        let found = entries.iter().find(|entry| entry.name == name);
        found.map_or(f64::NAN, |entry| entry.median() * 1e3)
    };
    let (tail, plain, copy) = (us("tail"), us("plain"), us("copy"));
    let over_bytes = tail / (bytes as f64 / bandwidth * 1e6);
    println!(
        "{tail:8.2} us {over_bytes:5.2}x its bytes, {:5.2}x a copy of them, {:5.2}x without a tail: {rows} rows, {}",
        tail / copy,
        tail / plain,
        tailed.name()
    );
    Ok(json!({
        "norm": tailed.name(), "rows": rows, "width": tailed.width, "us": round(tail, 100.0),
        "over_bytes": round(over_bytes, 1000.0), "over_copy": round(tail / copy, 1000.0),
        "over_without_tail": round(tail / plain, 1000.0),
    }))
}
