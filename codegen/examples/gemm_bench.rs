//! Times the gemm kernels and sets them beside the peak that the same machine reaches, in the same
//! process, on dot products between registers. Arguments: a level, the seconds for each figure, and
//! words that a line must contain to be measured.
//!
//! What a kernel of codes gives is compared with what that of the lowest level gives, byte by byte.
//!
//! Peak and kernel take turns, one call each. A machine may be shared: while somebody else runs on
//! the other half of a core, it does half of the work. So there are two columns for a number of
//! threads: calls before and after which the peak was near the best, and calls where it was not.
//!
//! `cargo run --release -p fqc-codegen --example gemm_bench -- avx512-vnni 0.5 4096 gelu`, or `layer` in
//! place of the last two for the gemms of a layer of MiniLM, or `pairs` for gate and up of SmolLM2 with
//! what makes codes of them

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use fqc_codegen::cpu::build::Code;
use fqc_codegen::cpu::ceiling::{Ceiling, Unit};
use fqc_codegen::cpu::exec::Mapped;
use fqc_codegen::cpu::{Level, gemm};
use fqc_ir::expr::UnaryOp;
use fqc_ir::plan::{GemmInput, GemmOutput};
use fqc_ir::{BinaryOp, Elem, Expr};
use fqc_kernels::gemm::{Pairs, ROW_BLOCK};
use fqc_kernels::{GemmDesc, Operand, Stride, pack};
use inkwell::context::Context;

/// Rows, depth, columns.
type Shape = (usize, usize, usize);

const SHAPES: [Shape; 14] = [
    (4096, 384, 1536),
    (512, 384, 1536),
    (512, 1536, 384),
    (4096, 384, 384),
    (4096, 1536, 384),
    (1024, 384, 1536),
    (1024, 1536, 384),
    (256, 576, 1536),
    (16, 384, 1536),
    (1, 384, 1536),
    (16, 576, 1536),
    (1, 1536, 576),
    (256, 576, 49_152),
    (1, 576, 49_152),
];

/// What follows the products.
#[derive(Clone, Copy, PartialEq)]
enum After {
    Bias,
    Gelu,
    /// A bias and floats of the shape of the result.
    Residual,
    /// A GELU; of the columns beyond these the second digits.
    GeluTail(usize),
    /// `silu(gate) * up` of the two halves of the columns, and codes of a tail.
    Gate,
}

const CODES: GemmOutput = GemmOutput::Codes { signed: true, bits: 8 };

/// The gemms of a layer of MiniLM as a slice of 128 tokens sees them, channels of their own for large
/// values included: query, key and value, what follows attention, and the two of the feed-forward
/// part. `layer` is their word.
const LAYER: [(Shape, GemmOutput, After); 4] = [
    ((128, 448, 1152), GemmOutput::F32, After::Bias),
    ((128, 448, 384), GemmOutput::F32, After::Residual),
    ((128, 448, 1984), CODES, After::GeluTail(1536)),
    ((128, 1984, 384), GemmOutput::F32, After::Residual),
];

/// Gate and up of a layer of SmolLM2.
const PAIRS: Shape = (256, 640, 3072);

/// Codes behind those of the channels.
const TAIL: usize = 100;

/// Rows up to which the weights come from memory, as they do where a model has many layers: each
/// call takes another copy. For rows of a slice they come from the last cache, as the weights of all
/// layers do.
const FEW_ROWS: usize = 16;
const SLICE_ROWS: usize = 128;

/// Bytes of all those copies.
const MEMORY_BYTES: usize = 256 << 20;
const CACHE_BYTES: usize = 16 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let level = args.next().unwrap_or_else(|| "avx512-vnni".to_owned());
    let level = level.parse::<Level>().expect("a level");
    let seconds = args.next().map_or(0.3, |text| text.parse().expect("seconds"));
    let budget = Duration::from_secs_f64(seconds);
    let ceiling = Ceiling::new(level).expect("a level of this machine");
    for threads in [1, 2] {
        let bf16 = ceiling.rate(Unit::Bf16, threads, budget);
        let copy = |bytes| ceiling.copy(bytes, threads, budget);
        let (near, far) = (copy(1 << 19), copy(1 << 28));
        println!("{threads} threads: bf16 {bf16:.0} GOP/s, copies {near:.0} and {far:.0} GB/s");
    }
    let words: Vec<String> = args.collect();
    let report = |shape, weight, output, after| {
        let case = |level| Case::new(level, shape, weight, output, after);
        report(&ceiling, &words, (level, budget), case, &name(shape, weight, output, after));
    };
    for weight in [Elem::I8, Elem::I4, Elem::BF16, Elem::F32] {
        let quantized = !weight.is_float();
        let outputs =
            if quantized { [GemmOutput::F32, CODES].as_slice() } else { &[GemmOutput::F32] };
        let afters = if quantized { [After::Bias, After::Gelu].as_slice() } else { &[After::Bias] };
        for shape in SHAPES {
            for &output in outputs {
                for &after in afters {
                    report(shape, weight, output, after);
                }
            }
        }
    }
    for (shape, output, after) in LAYER {
        report(shape, Elem::I8, output, after);
    }
    report(PAIRS, Elem::I8, CODES, After::Gate);
}

fn name((rows, k, n): Shape, weight: Elem, output: GemmOutput, after: After) -> String {
    let after = match after {
        After::Bias => "",
        After::Gelu | After::GeluTail(_) => "gelu",
        After::Residual => "sum",
        After::Gate => "silu",
    };
    let output = if output == GemmOutput::F32 { "floats" } else { "codes" };
    let group = match (rows, after) {
        (SLICE_ROWS, _) => " layer",
        (_, "silu") => " pairs",
        _ => "",
    };
    format!("{rows:>4} x {k:>4} x {n:>4} {weight:>3} {after:4} to {output:6}{group}")
}

/// One line: medians of rates and of shares of the peak, on one and two threads.
fn report(
    ceiling: &Ceiling,
    words: &[String],
    (level, budget): (Level, Duration),
    case: impl Fn(Level) -> Case,
    name: &str,
) {
    if !words.iter().all(|word| name.split(' ').any(|part| part == word)) {
        return;
    }
    let (case, lowest) = (case(level), case(Level::Avx2));
    if case.desc.is_quantized() {
        assert!(case.result() == lowest.result(), "{name}: not what {} gives", Level::Avx2);
    }
    print!("  {name}");
    for threads in [1, 2] {
        for turns in turns(ceiling, &case, threads, budget) {
            if turns.is_empty() {
                print!("{:>28}", "-");
                continue;
            }
            let rate = median(turns.iter().map(|turn| turn.rate));
            let share = median(turns.iter().map(|turn| 100.0 * turn.rate / turn.peak));
            print!("   {rate:5.0} GOP/s {share:3.0} % of {:4}", turns.len());
        }
    }
    println!("   compiled in {:.0} ms", case.compile_ms);
}

/// A call of the kernel between two of the peak's loop.
struct Turn {
    rate: f64,
    peak: f64,
}

/// Turns with a peak near the best, as of a core that is alone, and turns without; those in which that
/// changed are left out.
fn turns(ceiling: &Ceiling, case: &Case, threads: usize, budget: Duration) -> [Vec<Turn>; 2] {
    /// One call, however long it takes.
    const CALL: Duration = Duration::ZERO;
    /// Least share of the best peak that a core which is alone has.
    const ALONE: f64 = 0.7;
    let unit = match case.desc.weight {
        Elem::F32 => Unit::F32,
        Elem::BF16 => Unit::Bf16,
        _ => Unit::Codes,
    };
    let peak = || ceiling.rate(unit, threads, CALL);
    let mut turns = Vec::new();
    let begin = Instant::now();
    let mut before = peak();
    while begin.elapsed() < budget {
        let rate = case.speed(threads, CALL);
        let after = peak();
        turns.push((before, rate, after));
        before = after;
    }
    let best = turns.iter().map(|turn| turn.0).fold(0.0, f64::max);
    [true, false].map(|alone| {
        let same = |peak: f64| (peak >= ALONE * best) == alone;
        let kept = turns.iter().filter(|turn| same(turn.0) && same(turn.2));
        kept.map(|turn| Turn { rate: turn.1, peak: turn.0.max(turn.2) }).collect()
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The best rate of `call` in operations a nanosecond.
fn best(ops: f64, budget: Duration, mut call: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut fastest = f64::INFINITY;
    loop {
        let start = Instant::now();
        call();
        fastest = fastest.min(start.elapsed().as_nanos() as f64);
        if begin.elapsed() >= budget {
            return ops / fastest;
        }
    }
}

/// A line of a cache.
#[repr(align(64))]
#[derive(Clone)]
struct Line([u8; 64]);

/// The bytes in aligned memory, zeros behind them up to the end of a line.
fn lines(bytes: &[u8]) -> Vec<Line> {
    let line = |bytes: &[u8]| {
        let mut line = Line([0; 64]);
        line.0[..bytes.len()].copy_from_slice(bytes);
        line
    };
    bytes.chunks(64).map(line).collect()
}

/// One gemm with its operands.
struct Case {
    desc: GemmDesc,
    blob: Mapped,
    compile_ms: f64,
    rows: usize,
    weight_bytes: usize,
    /// Of the weight.
    copies: usize,
    /// Calls so far: each takes the next copy.
    calls: AtomicUsize,
    /// In the order of the kernel's buffers.
    buffers: Vec<Vec<Line>>,
}

impl Case {
    fn new(
        level: Level,
        (rows, k, n): Shape,
        weight: Elem,
        output: GemmOutput,
        after: After,
    ) -> Case {
        let quantized = !weight.is_float();
        let biased = Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1));
        let epilogue = match after {
            After::Bias => biased,
            After::Gelu | After::GeluTail(_) => Expr::unary(UnaryOp::Gelu, biased),
            After::Residual => Expr::binary(BinaryOp::Add, biased, Expr::arg(2)),
            After::Gate => {
                let gate = Expr::unary(UnaryOp::Silu, Expr::arg(0));
                Expr::binary(BinaryOp::Mul, gate, Expr::arg(1))
            }
        };
        let pairs = (after == After::Gate).then_some(Pairs { starts: [0, n / 2], end: 1 });
        let mut operands = if pairs.is_some() { Vec::new() } else { vec![Operand::PerColumn] };
        if after == After::Residual {
            operands.push(Operand::PerElement(Stride::Const(n as i64)));
        }
        let wide = if matches!(output, GemmOutput::Codes { .. }) { 1 } else { 4 };
        let desc = GemmDesc {
            n,
            k,
            depth: k,
            input: if quantized { GemmInput::Codes { signed: true } } else { GemmInput::F32 },
            weight,
            row_stride: Stride::Const(k as i64),
            epilogue,
            operands,
            output,
            out_stride: if pairs.is_some() { Stride::Dim(2) } else { Stride::Const(n as i64) },
            pairs,
        };
        let begin = Instant::now();
        let context = Context::create();
        let code = Code::new(&context, "bench", level).expect("a target machine");
        gemm::emit(&code, "gemm", &desc).expect("a kernel");
        let blob = Mapped::new(&code.finish().expect("code")).expect("mapped code");
        let compile_ms = begin.elapsed().as_secs_f64() * 1e3;
        let element = if quantized { 1 } else { 4 };
        let columns = pack::groups(n) * pack::GROUP;
        let weight_bytes = weight.bytes(pack::packed_len(desc.packed_rows(), n));
        let copies = match rows {
            ..=FEW_ROWS => MEMORY_BYTES / weight_bytes,
            SLICE_ROWS => CACHE_BYTES.div_ceil(weight_bytes),
            _ => 1,
        };
        let noise = |size: usize| (0..size + 64).map(|i| (i * i % 61) as u8).collect::<Vec<u8>>();
        let table = |value: f32| value.to_le_bytes().repeat(columns + 16);
        let operand = |bytes: usize, wide: usize| match (weight, wide) {
            // Noise has numbers near zero, which take longer, and NaNs.
            (Elem::BF16 | Elem::F32, 4) => 0.5f32.to_le_bytes().repeat(bytes / 4 + 16),
            (Elem::BF16, _) => [0, 0x3f].repeat(bytes / 2 + 32),
            _ => noise(bytes),
        };
        let wide_weight = if weight == Elem::BF16 { 2 } else { element };
        let mut buffers =
            vec![operand(rows * k * element, element), operand(weight_bytes * copies, wide_weight)];
        if quantized {
            // Results of about one.
            buffers.extend([table(1e-3 / k as f32), table(0.0)]);
        }
        // Not all on one side of zero.
        let biases =
            (0..columns + 16).flat_map(|column| ((column % 13) as f32 * 0.5).to_le_bytes());
        if pairs.is_none() {
            buffers.push(biases.collect());
        }
        if after == After::Residual {
            buffers.push(0.25f32.to_le_bytes().repeat(rows * n + 16));
        }
        if pairs.is_some() {
            let channels = n / 2;
            let numbers = |values: &mut dyn Iterator<Item = usize>| {
                values.flat_map(|x| (x as i32).to_le_bytes()).collect::<Vec<u8>>()
            };
            let source = |code: usize| code * channels / TAIL;
            let before =
                |panel: usize| (0..TAIL).filter(|&c| source(c) < pack::GROUP * panel).count();
            buffers.extend([table(60.0), table(127.0)]);
            buffers.push(numbers(&mut (0..TAIL).map(source)));
            buffers.push(numbers(&mut (0..=channels / pack::GROUP).map(before)));
        } else if wide == 1 {
            let first = if let After::GeluTail(first) = after { first } else { n };
            let digits = (0..columns + 16).map(|column| if column < first { 0f32 } else { 127.0 });
            buffers.push(table(60.0));
            buffers.push(digits.flat_map(f32::to_le_bytes).collect());
        }
        buffers.push(noise(rows * n * wide));
        let calls = AtomicUsize::new(0);
        let buffers = buffers.iter().map(|buffer| lines(buffer)).collect();
        Case { desc, blob, compile_ms, rows, weight_bytes, copies, calls, buffers }
    }

    /// The bytes of the first call's result.
    fn result(&self) -> Vec<u8> {
        self.speed(1, Duration::ZERO);
        let lines = self.buffers.last().expect("a call has a result");
        let bytes = lines.iter().flat_map(|line| line.0).collect::<Vec<u8>>();
        bytes[..self.rows * self.desc.n * self.out_bytes()].to_vec()
    }

    /// Bytes of an element of the result.
    fn out_bytes(&self) -> usize {
        if matches!(self.desc.output, GemmOutput::Codes { .. }) { 1 } else { 4 }
    }

    /// The best rate in GOP/s with the items split evenly among `threads`.
    fn speed(&self, threads: usize, budget: Duration) -> f64 {
        let bufs: Vec<usize> = self.buffers.iter().map(|buffer| buffer.as_ptr() as usize).collect();
        let (codes, padded) =
            (self.desc.n / 2 + TAIL, (self.desc.n / 2 + TAIL).next_multiple_of(64));
        // The last two are read where there are pairs.
        let dims = [self.rows, codes, padded].map(|size| size as i64);
        let work = (self.rows.div_ceil(ROW_BLOCK) * self.desc.panels()) as i64;
        let scratch_bytes = self.desc.scratch_bytes() as usize;
        let ops = 2.0 * (self.rows * self.desc.n * self.desc.k) as f64;
        let (go, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let calls = self.calls.load(Relaxed);
        let mut rate = 0.0;
        let part = |t: usize, round: usize| {
            let mut scratch = vec![Line([0; 64]); scratch_bytes.div_ceil(64)];
            let items = work * t as i64 / threads as i64..work * (t as i64 + 1) / threads as i64;
            let mut bufs: Vec<*mut u8> = bufs.iter().map(|&address| address as *mut u8).collect();
            let copy = (calls + round) % self.copies;
            bufs[1] = bufs[1].wrapping_add(copy * self.weight_bytes);
            let scratch = scratch.as_mut_ptr().cast();
            // SAFETY: the buffers have the sizes that the description and `rows` ask for, and
            // the threads write different items.
            unsafe { self.blob.call("gemm", &bufs, &dims, items, scratch) };
        };
        std::thread::scope(|scope| {
            for t in 1..threads {
                let (part, go, done) = (&part, &go, &done);
                scope.spawn(move || {
                    for round in 1.. {
                        while go.load(Acquire) < round {
                            std::hint::spin_loop();
                        }
                        if go.load(Acquire) == usize::MAX {
                            return;
                        }
                        part(t, round);
                        done.fetch_add(1, Release);
                    }
                });
            }
            let mut round = 0;
            rate = best(ops, budget, || {
                round += 1;
                go.store(round, Release);
                part(0, round);
                while done.load(Acquire) < round * (threads - 1) {
                    std::hint::spin_loop();
                }
            });
            go.store(usize::MAX, Release);
            self.calls.fetch_add(round, Relaxed);
        });
        rate
    }
}
