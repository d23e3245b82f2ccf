//! Gemm kernels against nested loops: accumulators bit for bit at every level, results within the
//! rounding of the epilogue.

use fqbin::Level;
use fqc_ir::plan::{GemmInput, GemmOutput};
use fqc_ir::quant::{digit, q_max, wide_code};
use fqc_ir::{BinaryOp, Elem, Expr, UnaryOp};
use fqc_kernels::gemm::{PANEL, ROW_BLOCK};
use fqc_kernels::{GemmDesc, Operand, Stride, pack};
use half::bf16;
use inkwell::context::Context;

use super::build::Code;
use super::exec::{self, Mapped};
use super::gemm::{self, Gemm};
use super::gemm_amx::Amx;
use super::tiles_emulated::Emulated;

/// Splitmix64: tests need numbers, not randomness.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn code(&mut self) -> i8 {
        match self.next() % 16 {
            0 => 127,
            1 => -127,
            _ => (self.next() % 255) as i8,
        }
        .max(-127)
    }

    fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }
}

/// A call: the operands of a gemm and what it gives.
#[derive(Clone)]
struct Case {
    desc: GemmDesc,
    rows: usize,
    k: usize,
    left: Vec<u8>,
    w: Vec<i8>,
    left_f32: Vec<f32>,
    w_f32: Vec<f32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    inverse: Vec<f32>,
    lo: Vec<f32>,
}

/// Columns of the residual and of the result beyond those that the gemm covers.
const GUARD: usize = 3;

impl Case {
    fn new(
        seed: u64,
        rows: usize,
        k: usize,
        n: usize,
        input: GemmInput,
        output: GemmOutput,
    ) -> Case {
        let mut numbers = Numbers(seed);
        let quantized = input != GemmInput::F32;
        let k_padded = if quantized { k.next_multiple_of(64) } else { k };
        let signed = input == GemmInput::Codes { signed: true };
        let mut left = vec![if signed { 128 } else { 0 }; rows * k_padded];
        for row in left.chunks_exact_mut(k_padded) {
            for byte in &mut row[..k] {
                let code = numbers.next();
                *byte = match code % 8 {
                    0 => 255,
                    1 => u8::from(signed),
                    _ => ((code >> 8) as u8).max(u8::from(signed)),
                };
            }
        }
        let mut floats = |count: usize| (0..count).map(|_| numbers.float()).collect::<Vec<f32>>();
        let residual = floats(rows * (n + GUARD));
        let (left_f32, w_f32) = (floats(rows * k), floats(k * n));
        let (bias, spread) = (floats(n), floats(n));
        let y = BinaryOp::Add;
        let with_bias = Expr::binary(y, Expr::arg(0), Expr::arg(1));
        let relu = Expr::unary(UnaryOp::Relu, with_bias);
        let accumulators = output == GemmOutput::I32;
        let top = match output {
            GemmOutput::Codes { signed, bits } => q_max(bits, signed) as f32,
            GemmOutput::F32 | GemmOutput::I32 => 1.0,
        };
        Case {
            desc: GemmDesc {
                n,
                k: k_padded,
                depth: k,
                input,
                weight: if quantized { Elem::I8 } else { Elem::F32 },
                row_stride: if seed.is_multiple_of(3) {
                    Stride::Dim(1)
                } else {
                    Stride::Const(k_padded as i64)
                },
                epilogue: if accumulators {
                    Expr::arg(0)
                } else {
                    Expr::binary(y, relu, Expr::arg(2))
                },
                operands: if accumulators {
                    Vec::new()
                } else {
                    vec![Operand::PerColumn, Operand::PerElement(Stride::Dim(2))]
                },
                output,
                out_stride: if seed.is_multiple_of(2) {
                    Stride::Const((n + GUARD) as i64)
                } else {
                    Stride::Dim(2)
                },
                pairs: None,
            },
            rows,
            k,
            left,
            w: (0..k * n).map(|_| numbers.code()).collect(),
            left_f32,
            w_f32,
            scale: spread.iter().map(|s| (1.5 + s) * 2e-4).collect(),
            bias,
            residual,
            inverse: spread.iter().map(|s| (0.5 + 0.25 * s) * top).collect(),
            // Every other panel has first digits alone.
            lo: (0..n).map(|i| if i % 5 == 4 && i / PANEL % 2 == 1 { top } else { 0.0 }).collect(),
        }
    }

    /// The same with weights of four bits.
    fn narrow(mut self) -> Case {
        self.desc.weight = Elem::I4;
        self.w.iter_mut().for_each(|code| *code >>= 4);
        self
    }

    /// The same with a weight of bf16.
    fn halved(mut self) -> Case {
        self.desc.weight = Elem::BF16;
        self
    }

    /// The same with an epilogue of which tables say how large it can be: a bias alone.
    fn biased(mut self) -> Case {
        self.desc.epilogue = Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1));
        self.desc.operands.truncate(1);
        self
    }

    /// The first rows alone.
    fn first_rows(mut self, rows: usize) -> Case {
        self.rows = rows;
        self
    }

    /// Sums of the codes' products, by the definition.
    fn accumulators(&self) -> Vec<i32> {
        let (n, offset) = (
            self.desc.n,
            match self.desc.input {
                GemmInput::Codes { signed: true } => 128,
                _ => 0,
            },
        );
        let mut sums = vec![0; self.rows * n];
        for row in 0..self.rows {
            for k in 0..self.k {
                let code = i32::from(self.left[row * self.desc.k + k]) - offset;
                for column in 0..n {
                    sums[row * n + column] += code * i32::from(self.w[k * n + column]);
                }
            }
        }
        sums
    }

    /// The first argument of the epilogue.
    fn products(&self) -> Vec<f32> {
        let n = self.desc.n;
        if self.desc.is_quantized() {
            let scaled = |(i, &sum): (usize, &i32)| sum as f32 * self.scale[i % n];
            return self.accumulators().iter().enumerate().map(scaled).collect();
        }
        let mut sums = vec![0.0; self.rows * n];
        for row in 0..self.rows {
            for k in 0..self.k {
                for column in 0..n {
                    let (x, w) = (self.left_f32[row * self.k + k], self.w_f32[k * n + column]);
                    let (x, w) = (self.operand(x), self.operand(w));
                    sums[row * n + column] = x.mul_add(w, sums[row * n + column]);
                }
            }
        }
        sums
    }

    /// A float as it is multiplied.
    fn operand(&self, x: f32) -> f32 {
        if self.desc.weight == Elem::BF16 { bf16::from_f32(x).to_f32() } else { x }
    }

    /// How far a float result may be from [`Case::results`], whose sums follow K: each of two sums in
    /// any order is within so much of the exact one.
    fn bounds(&self) -> Vec<f32> {
        let n = self.desc.n;
        let bound = |i: usize| {
            let terms = (0..self.k).map(|k| {
                let (x, w) = (self.left_f32[i / n * self.k + k], self.w_f32[k * n + i % n]);
                (self.operand(x) * self.operand(w)).abs()
            });
            let more = self.bias[i % n].abs() + self.residual[i / n * (n + GUARD) + i % n].abs();
            2.0 * (self.k + 2) as f32 * 2f32.powi(-24) * (terms.sum::<f32>() + more)
        };
        (0..self.rows * n).map(bound).collect()
    }

    fn results(&self) -> Vec<f32> {
        let n = self.desc.n;
        let finish = |(i, x): (usize, f32)| match self.desc.operands.len() {
            1 => x + self.bias[i % n],
            _ => (x + self.bias[i % n]).max(0.0) + self.residual[i / n * (n + GUARD) + i % n],
        };
        self.products().into_iter().enumerate().map(finish).collect()
    }

    /// Runs the kernel in several parts; the result's rows are `n + GUARD` elements apart.
    fn run(&self, blob: &Mapped) -> Vec<u8> {
        let (n, k) = (self.desc.n, self.desc.k);
        let quantized = self.desc.is_quantized();
        let wide = if matches!(self.desc.output, GemmOutput::Codes { .. }) { 1 } else { 4 };
        let mut out = vec![0xa5u8; self.rows * (n + GUARD) * wide];
        let packed: Vec<u8> = match self.desc.weight {
            Elem::I4 => pack::pack_i4(&self.w, self.k, n, k),
            Elem::I8 => pack::pack_i8(&self.w, self.k, n, k).iter().map(|&c| c as u8).collect(),
            Elem::BF16 => pack::pack_bf16(&self.w_f32, self.k, n),
            _ => {
                let floats = pack::pack_f32(&self.w_f32, self.k, n);
                floats.into_iter().flat_map(f32::to_le_bytes).collect()
            }
        };
        let signed = self.desc.input == GemmInput::Codes { signed: true };
        let start = pack::accumulator_start(&self.w, self.k, n, signed);
        let tables =
            [&self.scale, &self.bias, &self.inverse, &self.lo].map(|t| pack::pad_columns(t));
        let [scale, bias, inverse, lo] = &tables;
        let mut bufs: Vec<*const u8> = if quantized {
            vec![self.left.as_ptr(), packed.as_ptr(), scale.as_ptr().cast(), start.as_ptr().cast()]
        } else {
            vec![self.left_f32.as_ptr().cast(), packed.as_ptr()]
        };
        if !self.desc.operands.is_empty() {
            let operands = [bias.as_ptr().cast(), self.residual.as_ptr().cast::<u8>()];
            bufs.extend(&operands[..self.desc.operands.len()]);
        }
        if wide == 1 {
            bufs.extend([inverse.as_ptr().cast::<u8>(), lo.as_ptr().cast()]);
        }
        bufs.push(out.as_mut_ptr());
        assert_eq!(bufs.len(), self.desc.buffers());
        let bufs: Vec<*mut u8> = bufs.into_iter().map(|buffer| buffer.cast_mut()).collect();
        let stride = (n + GUARD) as i64;
        let dims = [self.rows as i64, k as i64, stride];
        let work = (self.rows.div_ceil(ROW_BLOCK) * self.desc.panels()) as i64;
        let mut scratch = vec![0u128; self.desc.scratch_bytes() as usize / 16 + 1024];
        let scratch = scratch.as_mut_ptr().cast::<u8>();
        let scratch = scratch.wrapping_add(scratch.align_offset(64));
        for items in [work / 2..work, 0..work / 3, work / 3..work / 2] {
            // SAFETY: the buffers are those of the description and hold `rows` rows.
            let status = unsafe { blob.call("gemm", &bufs, &dims, items, scratch) };
            assert_eq!(status, 0);
        }
        for row in out.chunks_exact((n + GUARD) * wide) {
            let guard = &row[n * wide..];
            let name = self.name();
            assert!(guard.iter().all(|&byte| byte == 0xa5), "{name}: {guard:?} after a row");
        }
        out.chunks_exact((n + GUARD) * wide).flat_map(|row| row[..n * wide].to_vec()).collect()
    }

    /// The byte of a column's digit of a wide code.
    fn code(&self, column: usize, wide: i32, signed: bool, bits: u8) -> u8 {
        let (offset, top) = (if signed { 128 } else { 0 }, q_max(bits, signed));
        let digit = (wide.abs() - self.lo[column] as i32).clamp(0, top) * wide.signum();
        (digit + offset) as u8
    }

    /// Compares the codes of all levels with the digits of the results.
    fn check_codes(&self, signed: bool, bits: u8) {
        let n = self.desc.n;
        let code = |(i, &y): (usize, &f32)| {
            self.code(i % n, wide_code(y, self.inverse[i % n], signed), signed, bits)
        };
        let expected: Vec<u8> = self.results().iter().enumerate().map(code).collect();
        for (level, blob) in blobs(&self.desc) {
            assert!(self.run(&blob) == expected, "{level}: {}", self.name());
        }
    }

    fn name(&self) -> String {
        let GemmDesc { n, weight, output, .. } = &self.desc;
        format!("{} x {} x {n} {weight} {output:?}", self.rows, self.k)
    }
}

fn compile(level: Level, desc: &GemmDesc) -> Mapped {
    let context = Context::create();
    let code = Code::new(&context, "t", level).unwrap();
    gemm::emit(&code, "gemm", desc).unwrap();
    Mapped::new(&code.finish().unwrap()).unwrap()
}

/// A level that has AMX's products as vector instructions.
fn emulated_level(desc: &GemmDesc) -> Level {
    if desc.is_quantized() { Level::Avx512Vnni } else { Level::Avx512Bf16 }
}

/// The AMX walk with tile registers in memory.
fn compile_emulated(desc: &GemmDesc) -> Mapped {
    let context = Context::create();
    let code = Code::new(&context, "t", emulated_level(desc)).unwrap();
    let at = (desc.scratch_bytes() as i64 + 63) / 64 * 64;
    code.kernel("gemm", |b| {
        Amx::new(Gemm::new(b, desc), &Emulated { at }).run();
        Ok::<(), super::CpuError>(())
    })
    .unwrap();
    Mapped::new(&code.finish().unwrap()).unwrap()
}

/// Rows, depth and columns: ones, primes, tiles and their neighbours, tails in all directions.
const SHAPES: [(usize, usize, usize); 18] = [
    (1, 1, 1),
    (1, 64, 16),
    (2, 63, 31),
    (3, 65, 33),
    (5, 7, 97),
    (11, 127, 15),
    (12, 128, 32),
    (13, 129, 48),
    (16, 384, 64),
    (17, 191, 47),
    (31, 100, 65),
    (33, 64, 96),
    (48, 37, 17),
    (95, 256, 50),
    (97, 193, 80),
    (211, 131, 113),
    (101, 1283, 40),
    (450, 66, 70),
];

fn as_i32(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn as_f32(bytes: &[u8]) -> Vec<f32> {
    as_i32(bytes).into_iter().map(|bits| f32::from_bits(bits as u32)).collect()
}

fn blobs(desc: &GemmDesc) -> Vec<(&'static str, Mapped)> {
    let mut blobs: Vec<_> = Level::ALL
        .into_iter()
        .filter(|&level| exec::available(level))
        .map(|level| (level.name(), compile(level, desc)))
        .collect();
    if desc.weight != Elem::F32 && exec::available(emulated_level(desc)) {
        blobs.push(("amx-int8, emulated", compile_emulated(desc)));
    }
    blobs
}

#[test]
fn accumulators_are_the_sums_of_the_products_at_every_level() {
    let mut numbers = Numbers(17);
    let mut below = |limit: u64| 1 + (numbers.next() % limit) as usize;
    let random: Vec<_> = (0..8).map(|_| (below(150), below(300), below(120))).collect();
    for (seed, (rows, k, n)) in SHAPES.into_iter().chain(random).enumerate() {
        for signed in [true, false] {
            let input = GemmInput::Codes { signed };
            let case = || Case::new(seed as u64, rows, k, n, input, GemmOutput::I32);
            let narrow = signed == seed.is_multiple_of(2);
            for case in [Some(case()), narrow.then(|| case().narrow())].into_iter().flatten() {
                let expected = case.accumulators();
                for (level, blob) in blobs(&case.desc) {
                    assert!(as_i32(&case.run(&blob)) == expected, "{level}: {}", case.name());
                }
            }
        }
    }
}

#[test]
fn float_results_follow_scale_expression_and_operands() {
    for (seed, (rows, k, n)) in SHAPES.into_iter().enumerate() {
        let input = GemmInput::Codes { signed: true };
        let case = Case::new(seed as u64, rows, k, n, input, GemmOutput::F32);
        let case = if seed.is_multiple_of(2) { case } else { case.narrow() };
        let expected = case.results();
        for (level, blob) in blobs(&case.desc) {
            assert!(as_f32(&case.run(&blob)) == expected, "{level}: {}", case.name());
        }
    }
}

#[test]
fn codes_are_the_digits_of_the_result() {
    for (seed, (rows, k, n)) in SHAPES.into_iter().enumerate() {
        for signed in [true, false] {
            let input = GemmInput::Codes { signed: true };
            let bits = if signed == seed.is_multiple_of(2) { 8 } else { 4 };
            let output = GemmOutput::Codes { signed, bits };
            let case = || Case::new(seed as u64, rows, k, n, input, output);
            for case in [case(), case().biased()] {
                case.check_codes(signed, bits);
            }
        }
    }
}

#[test]
fn codes_of_panels_whose_tables_say_little_are_the_same() {
    let output = GemmOutput::Codes { signed: true, bits: 8 };
    let case = || Case::new(6, 96, 64, 96, GemmInput::Codes { signed: true }, output).biased();
    // Floats without an integer of 32 bits, and digits that take more than 16.
    let (mut wide, mut high) = (case(), case());
    wide.scale[3] = 1e30;
    wide.bias[37] = f32::INFINITY;
    wide.scale[67] = -1e12;
    high.inverse[4] = 1e5;
    high.lo[4] = 20_000.0;
    high.inverse[40] = 1e5;
    high.lo[40] = 16_000.0;
    for case in [wide, high] {
        case.check_codes(true, 8);
    }
}

#[test]
fn f32_gemm_is_the_same_sum_in_the_order_of_k() {
    for (seed, (rows, k, n)) in SHAPES.into_iter().enumerate() {
        let case = Case::new(seed as u64, rows, k, n, GemmInput::F32, GemmOutput::F32);
        let expected = case.results();
        for (level, blob) in blobs(&case.desc) {
            assert!(as_f32(&case.run(&blob)) == expected, "{level}: {}", case.name());
        }
    }
}

#[test]
fn bf16_gemm_adds_the_products_of_rounded_operands() {
    for (seed, (rows, k, n)) in SHAPES.into_iter().enumerate() {
        let case = || Case::new(seed as u64, rows, k, n, GemmInput::F32, GemmOutput::F32).halved();
        let (few, case) = (case().first_rows(rows.div_ceil(3)), case());
        let (expected, bounds) = (case.results(), case.bounds());
        for (level, blob) in blobs(&case.desc) {
            let got = as_f32(&case.run(&blob));
            for (i, ((got, expected), bound)) in got.iter().zip(&expected).zip(&bounds).enumerate()
            {
                let at = (i / n, i % n);
                let name = case.name();
                assert!(
                    (got - expected).abs() <= *bound,
                    "{level}: {name}, {at:?}: {got}, {expected}"
                );
            }
            if !level.parse::<Level>().is_ok_and(Level::has_bf16) && !level.contains("emulated") {
                assert!(got == expected, "{level}: {}: one by one along K", case.name());
            }
            let few = as_f32(&few.run(&blob));
            assert!(few == got[..few.len()], "{level}: {}: fewer rows", case.name());
        }
    }
}

#[test]
fn codes_of_a_bf16_gemm_are_those_of_its_floats() {
    let output = GemmOutput::Codes { signed: true, bits: 8 };
    let case = Case::new(3, 37, 70, 49, GemmInput::F32, output).halved();
    let mut floats = Case::new(3, 37, 70, 49, GemmInput::F32, GemmOutput::F32).halved();
    floats.bias = case.bias.clone();
    for ((level, blob), (_, float_blob)) in blobs(&case.desc).into_iter().zip(blobs(&floats.desc)) {
        let n = case.desc.n;
        let code = |(i, &y): (usize, &f32)| {
            let wide = wide_code(y, case.inverse[i % n], true);
            let which = if case.lo[i % n] == 0.0 { 1 } else { 2 };
            (digit(wide, which, q_max(8, true)) + 128) as u8
        };
        let results = as_f32(&floats.run(&float_blob));
        let expected: Vec<u8> = results.iter().enumerate().map(code).collect();
        assert!(case.run(&blob) == expected, "{level}: {}", case.name());
    }
}

#[test]
fn nan_becomes_code_zero_and_infinities_saturate() {
    let input = GemmInput::Codes { signed: true };
    let output = GemmOutput::Codes { signed: true, bits: 8 };
    // Tiles that are not whole, and whole ones; a panel of first digits, and one with others.
    for (rows, column) in [3, 40].into_iter().flat_map(|rows| [(rows, 0), (rows, 35)]) {
        let mut case = Case::new(4, rows, 64, 64, input, output);
        let stride = case.desc.n + GUARD;
        for (row, values) in [
            (0, [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
            (1, [f32::NEG_INFINITY, -f32::NAN, 3e38]),
        ] {
            case.residual[row * stride + column..][..3].copy_from_slice(&values);
        }
        for (level, blob) in blobs(&case.desc) {
            let codes = case.run(&blob);
            assert_eq!(codes[column..][..3], [128, 255, 1], "{level}");
            assert_eq!(codes[case.desc.n + column..][..3], [1, 128, 255], "{level}");
        }
    }
}

#[test]
fn the_amx_level_uses_tiles_and_nothing_outside() {
    let case = Case::new(2, 33, 128, 48, GemmInput::Codes { signed: true }, GemmOutput::F32);
    let context = Context::create();
    let code = Code::new(&context, "t", Level::AmxInt8).unwrap();
    gemm::emit(&code, "gemm", &case.desc).unwrap();
    let text = code.assembly().unwrap();
    for instruction in ["ldtilecfg", "tileloadd", "tdpbusd", "tilestored", "tilerelease"] {
        assert!(text.contains(instruction), "no {instruction} in\n{text}");
    }
    let context = Context::create();
    let code = Code::new(&context, "t", Level::AmxInt8).unwrap();
    gemm::emit(&code, "gemm", &case.desc).unwrap();
    assert!(code.finish().unwrap().entries.contains_key("gemm"));
}

#[path = "gemm_gelu_tests.rs"]
mod gelu;

#[path = "gemm_pairs_tests.rs"]
mod pairs;
