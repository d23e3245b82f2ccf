//! Runs a file on the CPU and on a GPU and says how far apart they are, step by step; times the GPU.
//!
//!     devices MODEL.fqbin compare BATCHxTOKENS…   outputs and steps beside the CPU's
//!     devices MODEL.fqbin time BATCHxTOKENS…      bytes of weights, median time of replays on the GPU
//!     devices MODEL.fqbin steps BATCHxTOKENS      time of each step on the GPU
//!     devices MODEL.fqbin perplexity DEVICE TOKENS N   of windows of N tokens (i32) from a file

use std::collections::BTreeMap;

use cudarc::driver::{CudaContext, DevicePtr};
use fqrt::{
    Device, DeviceTensor, Elem, Model, Options, Outputs, Place, Session, SessionOptions, Tensor,
    TensorView, Trust,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, command, rest @ ..] = arguments.as_slice() else {
        return Err("usage: devices MODEL.fqbin compare|time|steps|perplexity …".into());
    };
    let load = |device| Model::load(file.as_ref(), &Options::new(Trust::Anyone).device(device));
    let gpu = || load(Device::Cuda(0));
    match (command.as_str(), rest) {
        ("compare", shapes) => {
            let (cpu, gpu) = (load(Device::Cpu)?, gpu()?);
            shapes.iter().try_for_each(|shape| compare(&cpu, &gpu, parse(shape)?))
        }
        ("time", shapes) => {
            let gpu = gpu()?;
            println!("{} bytes of weights", weight_bytes(gpu.program()));
            shapes.iter().try_for_each(|shape| time(&gpu, parse(shape)?))
        }
        ("steps", [shape]) => steps(&gpu()?, parse(shape)?),
        ("perplexity", [device, tokens, n]) => {
            let tokens = std::fs::read(tokens)?;
            let tokens: Vec<i64> = tokens
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect();
            let n = n.parse()?;
            let on = if device == "cpu" { load(Device::Cpu)? } else { gpu()? };
            println!("{device}: perplexity {:.6}", perplexity(&on, &tokens, n)?);
            Ok(())
        }
        _ => Err("no such command".into()),
    }
}

fn parse(shape: &str) -> Fallible<[usize; 2]> {
    let (batch, tokens) = shape.split_once('x').ok_or("a shape is BATCHxTOKENS")?;
    Ok([batch.parse()?, tokens.parse()?])
}

/// An input with its values.
struct Input {
    name: String,
    shape: Vec<usize>,
    values: Values,
}

enum Values {
    Ids(Vec<i64>),
    Floats(Vec<f32>),
}

impl Input {
    fn view(&self) -> TensorView<'_> {
        match &self.values {
            Values::Ids(values) => TensorView::of(&self.shape, values),
            Values::Floats(values) => TensorView::of(&self.shape, values),
        }
    }

    fn elem(&self) -> Elem {
        match self.values {
            Values::Ids(_) => Elem::I64,
            Values::Floats(_) => Elem::F32,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.values {
            Values::Ids(values) => fqrt::bytes_of(values),
            Values::Floats(values) => fqrt::bytes_of(values),
        }
    }
}

/// Made-up numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize
    }

    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() % 1024) as f32 / 512.0 - 1.0).sum::<f32>() / 2f32.sqrt()
    }
}

/// Inputs of a text model: made-up token ids, masks of ones with a ragged end, zeros; or of a part of one:
/// activations, of which every 25th channel is 20 times larger, cosines and sines of a rotary embedding.
fn inputs(model: &Model, [batch, tokens]: [usize; 2]) -> Vec<Input> {
    let mut random = Random(1);
    let program = model.program();
    let input = |port: &fqbin::Port| {
        let size = |(axis, &dim)| {
            let symbol = if axis == 0 { batch } else { tokens };
            program.expr_text(dim).parse().unwrap_or(symbol)
        };
        let shape: Vec<usize> = port.shape.iter().enumerate().map(size).collect();
        let count = shape.iter().product();
        let values = match port.elem {
            Elem::F32 => Values::Floats(floats_of(&port.name, &shape, count, &mut random)),
            _ => Values::Ids((0..count).map(|i| id(&port.name, i, tokens, &mut random)).collect()),
        };
        Input { name: port.name.clone(), shape, values }
    };
    program.inputs.iter().map(input).collect()
}

fn id(name: &str, i: usize, tokens: usize, random: &mut Random) -> i64 {
    let (row, column) = (i / tokens, i % tokens);
    match name {
        n if n.contains("mask") => i64::from(column < tokens - row % 3),
        n if n.contains("position") => column as i64,
        n if n.contains("input_ids") => (1000 + random.next() % 3000) as i64,
        _ => 0,
    }
}

fn floats_of(name: &str, shape: &[usize], count: usize, random: &mut Random) -> Vec<f32> {
    let size = |from_end: usize| shape.iter().rev().nth(from_end).map_or(1, |&size| size.max(1));
    let (width, tokens) = (size(0), size(1));
    let value = |i: usize| {
        let (token, channel) = (i / width % tokens, i % width);
        let half = (width / 2).max(1);
        let angle = || token as f32 * 1e4f32.powf(-((channel % half) as f32) / half as f32);
        match name {
            "cos" => angle().cos(),
            "sin" => angle().sin(),
            _ => random.normal() * if channel % 25 == 7 { 20.0 } else { 1.0 },
        }
    };
    (0..count).map(value).collect()
}

fn views(inputs: &[Input]) -> Vec<(&str, TensorView<'_>)> {
    inputs.iter().map(|input| (input.name.as_str(), input.view())).collect()
}

/// What was written to a buffer, and by which step: the last of several.
#[derive(Clone, PartialEq)]
struct Value {
    step: usize,
    elem: Elem,
    bytes: Vec<u8>,
}

/// What a run wrote, by name and size of the buffers: the targets have other steps, and a GPU may keep
/// floats as bf16.
type Seen = BTreeMap<(String, String), Value>;

/// A buffer's name and size in a program.
fn key(program: &fqrt::Program, buffer: u32) -> (String, String) {
    let buffer = &program.buffers[buffer as usize];
    (buffer.name.clone(), program.shape_text(&buffer.shape))
}

fn observe(
    model: &Model,
    session: &mut Session,
    views: &[(&str, TensorView<'_>)],
) -> Fallible<(Seen, Vec<(String, Tensor)>)> {
    let mut seen = Seen::new();
    let program = model.program();
    let outputs = session.run_observed(views, &mut |o| {
        let elem = program.buffers[o.buffer.0 as usize].elem;
        let value = Value { step: o.step, elem, bytes: o.data.to_vec() };
        seen.insert(key(program, o.buffer.0), value);
    })?;
    Ok((seen, outputs.into_vec()))
}

fn compare(
    cpu: &std::sync::Arc<Model>,
    gpu: &std::sync::Arc<Model>,
    shape: [usize; 2],
) -> Fallible<()> {
    let inputs = inputs(gpu, shape);
    let views = views(&inputs);
    let mut on_cpu = Session::new(cpu, SessionOptions::default())?;
    let mut on_gpu = Session::new(gpu, SessionOptions::default())?;
    let (wanted, outputs) = observe(cpu, &mut on_cpu, &views)?;
    let (got, stepped) = observe(gpu, &mut on_gpu, &views)?;
    println!("{}x{}", shape[0], shape[1]);
    let program = gpu.program();
    let mut rows = Rows::default();
    let mut by_step: Vec<_> = got.iter().collect();
    by_step.sort_by_key(|(_, value)| value.step);
    for (key, got) in by_step {
        let Some(wanted) = wanted.get(key) else {
            println!("{:3} {} is on the GPU alone", got.step, key.0);
            continue;
        };
        let step = &program.steps[got.step];
        let place = format!("{:3} {:12} {}", got.step, step.family, step.name);
        match got.elem {
            Elem::U8 => {
                let pairs = || got.bytes.iter().zip(&wanted.bytes);
                let far = pairs().map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
                let other = pairs().filter(|(a, b)| a != b).count();
                let count = got.bytes.len();
                let share = 100.0 * other as f64 / count.max(1) as f64;
                println!(
                    "{place}: {other} codes of {count} differ ({share:.3} %), by {far} at most"
                );
            }
            Elem::F32 | Elem::Bf16 => {
                let (cosine, far) = distance(&floats(got), &floats(wanted));
                let equal = got.bytes == wanted.bytes;
                println!("{place}: cosine {cosine:.8}, max {far:.3e}, equal {equal}");
            }
            _ => println!("{place}: equal {}", got.bytes == wanted.bytes),
        }
    }
    for (index, step) in program.steps.iter().enumerate() {
        if step.family.starts_with("gemm_i") {
            rows.step(program, index, shape[0] * shape[1], &got, &wanted);
        }
    }
    println!(
        "integer gemms: {} rows with the CPU's operands, {} of them differ in the result",
        rows.same, rows.faults
    );
    let replayed = on_gpu.run(&views)?;
    println!(
        "on the caller's stream and memory: equal {}",
        enqueued(&mut on_gpu, &inputs, &replayed)?
    );
    for (name, want) in &outputs {
        let Some(wanted) = want.numbers::<f32>() else { continue };
        let got =
            replayed.get(name).and_then(|t| t.numbers::<f32>()).ok_or("an output is missing")?;
        let stepped = stepped.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.numbers::<f32>());
        let (cosine, far) = distance(got, wanted);
        let width = *want.shape().last().unwrap_or(&1);
        let worst = got
            .chunks(width)
            .zip(wanted.chunks(width))
            .map(|(a, b)| distance(a, b).0)
            .fold(1.0, f64::min);
        println!(
            "output {name}: cosine {cosine:.8} (row min {worst:.8}), max {far:.3e}; the graph equals the \
             steps: {}",
            stepped == Some(got)
        );
    }
    Ok(())
}

/// Whether a run on memory and a stream of this program's own gives the same.
fn enqueued(session: &mut Session, inputs: &[Input], wanted: &Outputs) -> Fallible<bool> {
    let stream = CudaContext::new(0)?.new_stream()?;
    let uploaded = inputs.iter().map(|input| stream.clone_htod(input.bytes()));
    let uploaded = uploaded.collect::<Result<Vec<_>, _>>()?;
    let room = |(_, t): (&str, &Tensor)| stream.alloc_zeros::<u8>(t.bytes().len());
    let results = wanted.iter().map(room).collect::<Result<Vec<_>, _>>()?;
    stream.synchronize()?;
    let given: Vec<(&str, DeviceTensor<'_>)> = inputs
        .iter()
        .zip(&uploaded)
        .map(|(input, bytes)| {
            let address = bytes.device_ptr(&stream).0;
            (input.name.as_str(), DeviceTensor { elem: input.elem(), shape: &input.shape, address })
        })
        .collect();
    let made: Vec<(&str, DeviceTensor<'_>)> = wanted
        .iter()
        .zip(&results)
        .map(|((name, t), bytes)| {
            let address = bytes.device_ptr(&stream).0;
            (name, DeviceTensor { elem: t.elem(), shape: t.shape(), address })
        })
        .collect();
    for _ in 0..2 {
        // SAFETY: the blocks have the tensors' sizes and live until the stream is waited for.
        unsafe { session.enqueue(&given, &made, stream.cu_stream().cast()) }?;
    }
    stream.synchronize()?;
    let mut equal = true;
    for ((_, tensor), bytes) in wanted.iter().zip(&results) {
        equal &= stream.clone_dtoh(bytes)? == tensor.bytes();
    }
    Ok(equal)
}

/// Rows of gemms whose operands are the CPU's: their results have to be, too.
#[derive(Default)]
struct Rows {
    same: usize,
    faults: usize,
}

impl Rows {
    fn step(
        &mut self,
        program: &fqrt::Program,
        index: usize,
        rows: usize,
        got: &Seen,
        wanted: &Seen,
    ) {
        let step = &program.steps[index];
        // What the step read and wrote, where both still are what they were then.
        let pairs: Option<Vec<(Vec<u8>, Vec<u8>)>> = step
            .args
            .iter()
            .filter(|arg| {
                !matches!(program.buffers[arg.buffer.index()].place, Place::Weight { .. })
            })
            .map(|arg| {
                let key = key(program, arg.buffer.0);
                let (got, wanted) = (got.get(&key)?, wanted.get(&key)?);
                (got.step <= index).then(|| (got.bytes.clone(), kept_as(wanted, got.elem)))
            })
            .collect();
        let Some(pairs) = pairs else { return };
        let Some(((result, wanted), operands)) = pairs.split_last() else { return };
        let row = |bytes: &[u8], r: usize| {
            let width = bytes.len() / rows;
            bytes[r * width..(r + 1) * width].to_vec()
        };
        for r in 0..rows {
            if operands.iter().all(|(a, b)| row(a, r) == row(b, r)) {
                self.same += 1;
                self.faults += usize::from(row(result, r) != row(wanted, r));
            }
        }
    }
}

/// The bytes of a value as they would be if it were kept as `elem`.
fn kept_as(value: &Value, elem: Elem) -> Vec<u8> {
    match (value.elem, elem) {
        (Elem::F32, Elem::Bf16) => {
            // Half to even.
            let round = |x: f32| (x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) >> 16;
            floats(value).into_iter().flat_map(|x| (round(x) as u16).to_le_bytes()).collect()
        }
        _ => value.bytes.clone(),
    }
}

fn floats(value: &Value) -> Vec<f32> {
    match value.elem {
        Elem::Bf16 => {
            let bits = value.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            bits.map(|b| f32::from_bits(u32::from(b) << 16)).collect()
        }
        _ => {
            let words = value.bytes.chunks_exact(4);
            words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
    }
}

/// Cosine and largest difference.
fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut ab, mut aa, mut bb, mut far) = (0.0, 0.0, 0.0, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
        if x != y {
            far = if (x - y).is_nan() { f64::NAN } else { far.max((x - y).abs()) };
        }
    }
    (if aa == 0.0 && bb == 0.0 { 1.0 } else { ab / (aa * bb).sqrt() }, far)
}

/// Of weights with their tables.
fn weight_bytes(program: &fqrt::Program) -> u64 {
    let bytes = |buffer: &fqbin::Buffer| match buffer.place {
        Place::Weight { len, .. } => len,
        _ => 0,
    };
    program.buffers.iter().map(bytes).sum()
}

fn time(model: &std::sync::Arc<Model>, shape: [usize; 2]) -> Fallible<()> {
    let inputs = inputs(model, shape);
    let mut session = Session::new(model, SessionOptions::default())?;
    session.run(&views(&inputs))?;
    // Half a second at most, after half of it for the clocks to settle.
    let first = session.time_on_device(10)?.into_iter().min().unwrap_or(1).max(1);
    let runs = (500_000_000 / first).clamp(40, 400) as usize;
    session.time_on_device(runs / 2)?;
    let mut times = session.time_on_device(runs)?;
    times.sort_unstable();
    let us = |share: usize| times[runs * share / 100] as f64 / 1e3;
    println!(
        "{}x{} graph replay: median {:.1} us ({:.1} to {:.1})",
        shape[0],
        shape[1],
        us(50),
        us(5),
        us(95)
    );
    Ok(())
}

fn steps(model: &std::sync::Arc<Model>, shape: [usize; 2]) -> Fallible<()> {
    let inputs = inputs(model, shape);
    let mut session = Session::new(model, SessionOptions::default())?;
    session.run(&views(&inputs))?;
    let mut best = vec![u64::MAX; model.program().steps.len()];
    for _ in 0..20 {
        let (_, times) = session.run_profiled(&views(&inputs))?;
        best.iter_mut().zip(times).for_each(|(b, t)| *b = (*b).min(t));
    }
    for (step, time) in model.program().steps.iter().zip(best) {
        println!("{:8.2} us {:12} {}", time as f64 / 1e3, step.family, step.name);
    }
    Ok(())
}

/// Of windows of `n` tokens, one after the other.
fn perplexity(model: &std::sync::Arc<Model>, tokens: &[i64], n: usize) -> Fallible<f64> {
    let mut session = Session::new(model, SessionOptions::default())?;
    let (mut loss, mut count) = (0.0, 0usize);
    for window in tokens.chunks_exact(n) {
        let named: Vec<Input> = model
            .program()
            .inputs
            .iter()
            .map(|port| {
                let values = match port.name.as_str() {
                    name if name.contains("mask") => vec![1; n],
                    name if name.contains("position") => (0..n as i64).collect(),
                    _ => window.to_vec(),
                };
                Input { name: port.name.clone(), shape: vec![1, n], values: Values::Ids(values) }
            })
            .collect();
        let outputs = session.run(&views(&named))?.into_vec();
        let logits = outputs[0].1.numbers::<f32>().ok_or("the first output is not f32 logits")?;
        let vocabulary = logits.len() / n;
        for (row, &next) in logits.chunks_exact(vocabulary).zip(&window[1..]) {
            let top = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            let sum: f64 = row.iter().map(|&x| f64::from(x - top).exp()).sum();
            loss += sum.ln() - f64::from(row[next as usize] - top);
            count += 1;
        }
    }
    Ok((loss / count.max(1) as f64).exp())
}
