//! Target images for CUDA without a GPU: every family of kernels compiles, for every architecture
//! that is wanted, and the image is a sound file.

#[path = "cuda/tools.rs"]
mod tools;

use fqc_codegen::cuda::{Arch, Compiler, Error, Nvrtc, generate, sources};
use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::expr::{BinaryOp, Expr, UnaryOp};
use fqc_ir::op::{ReduceOp, ScatterOp};
use fqc_ir::plan::{
    Buffer, BufferId, Extra, Gemm, GemmInput, GemmOutput, Kernel, NormKind, Place, Plan, Port,
    Precision, RowQuantize, Step, View,
};
use fqc_ir::types::Elem;
use fqc_kernels::pack;

/// A plan in the making.
#[derive(Default)]
struct Draft(Plan);

impl Draft {
    fn buffer(&mut self, elem: Elem, shape: &[Dim], place: Place) -> View {
        let id = BufferId(self.0.buffers.len());
        let name = format!("b{}", id.0);
        self.0.buffers.push(Buffer { name, elem, shape: shape.to_vec(), place });
        View::whole(id, shape)
    }

    fn port(&self, view: &View, name: &str) -> Port {
        let buffer = &self.0.buffers[view.buffer.0];
        let (elem, shape) = (buffer.elem, buffer.shape.clone());
        Port { name: name.to_owned(), elem, shape, buffer: view.buffer }
    }

    fn input(&mut self, name: &str, elem: Elem, shape: &[Dim]) -> View {
        let view = self.buffer(elem, shape, Place::Input(self.0.inputs.len()));
        let port = self.port(&view, name);
        self.0.inputs.push(port);
        view
    }

    fn arena(&mut self, elem: Elem, shape: &[Dim]) -> View {
        self.buffer(elem, shape, Place::Arena)
    }

    fn table(&mut self, value: Const) -> View {
        let shape: Vec<Dim> = value.shape.iter().map(|&d| Dim::from(d)).collect();
        self.buffer(value.elem, &shape, Place::Const(value))
    }

    fn floats(&mut self, n: usize) -> View {
        self.table(Const::f32(vec![n], &vec![0.25; n]))
    }

    fn step(&mut self, kernel: Kernel, args: Vec<View>, result: &View) {
        let name = format!("s{}", self.0.steps.len());
        self.0.steps.push(Step { name, kernel, args, results: vec![result.clone()] });
    }

    /// A layer that stays float, of 192 channels to 64.
    fn float_gemm(&mut self, x: &View, result: &View, weight: Elem) {
        let (values, k) = ([0.5; 192 * 64], 192);
        let w = self.table(match weight {
            Elem::BF16 => {
                let bytes = pack::pack_bf16(&values, k, 64);
                Const::new(weight, vec![4, k / 2, 16, 2], bytes).expect("two bytes a value")
            }
            _ => Const::f32(vec![4, k, 16], &pack::pack_f32(&values, k, 64)),
        });
        let gemm = Gemm {
            n: 64,
            k: 192,
            depth: 192,
            input: GemmInput::F32,
            weight,
            epilogue: Expr::arg(0),
            extras: vec![],
            output: GemmOutput::F32,
        };
        self.step(Kernel::Gemm(gemm), vec![x.clone(), w], result);
    }

    /// A gemm of codes without anything after it.
    fn plain_gemm(&mut self, x: &View, n: usize) -> View {
        let out = self.gemm(x, n, 8, GemmOutput::I32);
        let step = self.0.steps.last_mut().expect("a gemm");
        if let Kernel::Gemm(gemm) = &mut step.kernel {
            gemm.output = GemmOutput::F32;
        }
        self.0.buffers[out.buffer.0].elem = Elem::F32;
        out
    }

    /// A gemm of codes, `[m, k]` by a weight of `bits`.
    fn gemm(&mut self, x: &View, n: usize, bits: u8, output: GemmOutput) -> View {
        let k = x.shape[1].as_const().expect("a constant depth") as usize;
        let m = x.shape[0].clone();
        let codes: Vec<i8> = (0..n * k).map(|i| (i % 15) as i8 - 7).collect();
        let start = pack::accumulator_start(&codes, k, n, true);
        let groups = pack::groups(n);
        let weight = match bits {
            4 => {
                Const::new(Elem::I4, vec![groups, k / 8, 16, 4, 2], pack::pack_i4(&codes, k, n, k))
                    .expect("two codes a byte")
            }
            _ => Const::i8(vec![groups, k / 4, 16, 4], &pack::pack_i8(&codes, k, n, k)),
        };
        let bytes: Vec<u8> = start.iter().flat_map(|v| v.to_le_bytes()).collect();
        let start = Const::new(Elem::I32, vec![start.len()], bytes).expect("four bytes a number");
        let elem = weight.elem;
        let padded = groups * pack::GROUP;
        let mut args = vec![x.clone(), self.table(weight), self.floats(padded), self.table(start)];
        args.push(self.floats(padded));
        if output != GemmOutput::I32 {
            let residual = self.arena(Elem::F32, &[m.clone(), Dim::from(n)]);
            let (shape, strides) = (residual.shape.clone(), vec![Dim::zero(); 2]);
            let splat = View { shape, strides, ..self.floats(1) };
            self.step(Kernel::Pointwise(Expr::arg(0)), vec![splat], &residual);
            args.push(residual);
        }
        let out = match output {
            GemmOutput::Codes { .. } => {
                args.extend([self.floats(padded), self.floats(padded)]);
                self.arena(Elem::U8, &[m, Dim::from(n)])
            }
            GemmOutput::I32 => {
                args.truncate(4);
                self.arena(Elem::I32, &[m, Dim::from(n)])
            }
            GemmOutput::F32 => self.arena(Elem::F32, &[m, Dim::from(n)]),
        };
        let sum = Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1));
        let extras = match output {
            GemmOutput::I32 => vec![],
            _ => vec![Extra::PerColumn, Extra::PerElement],
        };
        let epilogue = match output {
            GemmOutput::I32 => Expr::arg(0),
            _ => Expr::binary(BinaryOp::Add, Expr::unary(UnaryOp::Gelu, sum), Expr::arg(2)),
        };
        let input = GemmInput::Codes { signed: true };
        let gemm = Gemm { n, k, depth: k, input, weight: elem, epilogue, extras, output };
        self.step(Kernel::Gemm(gemm), args, &out);
        out
    }
}

/// One step of every family, over `x: f32[batch, seq, 128]` and `ids: i64[batch, seq]`.
fn plan() -> Plan {
    let (b, s) = (Dim::sym("batch"), Dim::sym("seq"));
    let shape = |last: usize| vec![b.clone(), s.clone(), Dim::from(last)];
    let mut d = Draft::default();
    let ids = d.input("ids", Elem::I64, &[b.clone(), s.clone()]);
    let embedding = d.table(Const::f32(vec![10, 128], &[0.5; 1280]));
    let x = d.arena(Elem::F32, &shape(128));
    d.step(Kernel::Gather { axis: 0, index_rank: 2 }, vec![embedding, ids.clone()], &x);
    // Norm with floats and flattened codes.
    let (gamma, beta) = (d.floats(128), d.floats(128));
    let quantize = RowQuantize { signed: true, bits: 8, base: 128, tail: 3, padded: 192 };
    let source: Vec<u8> = [5i32, 7, 9].iter().flat_map(|v| v.to_le_bytes()).collect();
    let source = Const::new(Elem::I32, vec![3], source).expect("three numbers");
    let tables = [d.floats(128), d.table(source), d.floats(3)];
    let (y, codes) = (d.arena(Elem::F32, &shape(128)), d.arena(Elem::U8, &shape(192)));
    let mut args = vec![x.clone(), gamma.clone(), beta];
    args.extend(tables.clone());
    let kind = NormKind::Layer;
    let norm = Kernel::Norm { kind, epsilon: 1e-5, float: true, quantize: Some(quantize.clone()) };
    d.step(norm, args, &y);
    d.0.steps.last_mut().expect("a step").results.push(codes.clone());
    let rms = d.arena(Elem::F32, &shape(128));
    let kind = NormKind::Rms;
    let norm = Kernel::Norm { kind, epsilon: 1e-5, float: true, quantize: None };
    d.step(norm, vec![y.clone(), gamma], &rms);
    // Gemms: INT8 and INT4 weights, each output; of floats.
    let rows = View {
        shape: vec![b.clone() * s.clone(), Dim::from(192i64)],
        strides: vec![Dim::from(192i64), Dim::one()],
        ..codes
    };
    let wide = d.gemm(&rows, 192, 8, GemmOutput::Codes { signed: true, bits: 8 });
    d.gemm(&wide, 192, 4, GemmOutput::I32);
    let qkv = d.gemm(&wide, 192, 4, GemmOutput::F32);
    d.gemm(&wide, 33, 8, GemmOutput::F32);
    let product = d.arena(Elem::F32, &[qkv.shape[0].clone(), Dim::from(64i64)]);
    d.float_gemm(&qkv, &product, Elem::F32);
    // Attention with a mask, and causal in bf16.
    let head = |i: i64| View {
        buffer: qkv.buffer,
        offset: Dim::from(64 * i),
        shape: vec![b.clone(), Dim::from(2i64), s.clone(), Dim::from(32i64)],
        strides: vec![
            s.clone() * Dim::from(192i64),
            Dim::from(32i64),
            Dim::from(192i64),
            Dim::one(),
        ],
    };
    let mask = d.arena(Elem::F32, &[b.clone(), s.clone()]);
    let cast = Expr::cast(Elem::F32, Expr::arg(0));
    d.step(Kernel::Pointwise(cast), vec![ids], &mask);
    let mask = View {
        shape: vec![b.clone(), Dim::from(2i64), s.clone(), s.clone()],
        strides: vec![s.clone(), Dim::zero(), Dim::zero(), Dim::one()],
        ..mask
    };
    let attended = d.arena(Elem::F32, &[b.clone(), Dim::from(2i64), s.clone(), Dim::from(32i64)]);
    for (causal, precision) in [(false, Precision::F32), (true, Precision::Bf16)] {
        let mut args = vec![head(0), head(1), head(2)];
        args.extend((!causal).then(|| mask.clone()));
        let kernel = Kernel::Attention { scale: 0.125, causal, mask: !causal, precision };
        d.step(kernel, args, &attended);
    }
    let keys = View {
        shape: vec![b.clone(), Dim::from(2i64), Dim::from(32i64), s.clone()],
        strides: vec![
            s.clone() * Dim::from(192i64),
            Dim::from(32i64),
            Dim::one(),
            Dim::from(192i64),
        ],
        ..head(1)
    };
    let scores = d.arena(Elem::F32, &[b.clone(), Dim::from(2i64), s.clone(), s.clone()]);
    d.step(Kernel::MatMul, vec![head(0), keys], &scores);
    let weights = d.arena(Elem::F32, &scores.shape.clone());
    d.step(Kernel::Softmax, vec![scores], &weights);
    // The rest.
    let silu = Expr::unary(UnaryOp::Silu, Expr::arg(0));
    let again = d.arena(Elem::U8, &shape(192));
    let mut args = vec![rms.clone()];
    args.extend(tables);
    d.step(Kernel::Quantize { expr: silu, quantize }, args, &again);
    let sums = d.arena(Elem::F32, &[b.clone(), Dim::from(128i64)]);
    let by_column = View {
        shape: vec![b.clone(), Dim::from(128i64), s.clone()],
        strides: vec![s.clone() * Dim::from(128i64), Dim::one(), Dim::from(128i64)],
        ..rms
    };
    d.step(Kernel::Reduce { op: ReduceOp::Mean, keep: 2 }, vec![by_column], &sums);
    let best = d.arena(Elem::I64, std::slice::from_ref(&b));
    d.step(Kernel::ArgReduce { largest: true, last: false }, vec![sums.clone()], &best);
    let running = d.arena(Elem::F32, &sums.shape.clone());
    d.step(Kernel::CumSum { exclusive: true, reverse: true }, vec![sums.clone()], &running);
    let picked = d.arena(Elem::F32, &[b.clone(), Dim::one()]);
    let index = View { shape: vec![b.clone(), Dim::one()], strides: vec![Dim::one(); 2], ..best };
    d.step(Kernel::GatherElements { axis: 1 }, vec![running, index], &picked);
    let count = d.arena(Elem::I64, std::slice::from_ref(&s));
    d.step(Kernel::Iota, vec![], &count);
    let sizes = d.arena(Elem::I64, &[Dim::from(2i64)]);
    d.step(Kernel::Dims(vec![b.clone(), s]), vec![], &sizes);
    let out = d.buffer(Elem::F32, &[b, Dim::one()], Place::Output(0));
    let port = d.port(&out, "out");
    d.0.outputs.push(port);
    d.step(Kernel::Pointwise(Expr::unary(UnaryOp::Cos, Expr::arg(0))), vec![picked], &out);
    d.0
}

/// Where the rotation of queries and keys has its cosines and sines from.
#[derive(Clone, Copy)]
enum Angles {
    /// Rows by batch and position.
    ByToken,
    /// Rows by position.
    ByPosition,
    /// Rows by position, others for each head.
    ByHead,
    /// Rows by batch and position, of queries and values.
    NotKeys,
}

/// A layer of a decoder over codes: rotated queries and keys, attention that is quantised, a gated
/// product that is quantised, a head that stays float.
fn layer(angles: Angles) -> Plan {
    let (b, s) = (Dim::sym("batch"), Dim::sym("seq"));
    let mut d = Draft::default();
    let x = d.input("x", Elem::F32, &[b.clone(), s.clone(), Dim::from(192i64)]);
    let shape = match angles {
        Angles::ByToken | Angles::NotKeys => vec![b.clone(), s.clone(), Dim::from(32i64)],
        Angles::ByPosition => vec![s.clone(), Dim::from(32i64)],
        Angles::ByHead => vec![Dim::from(2i64), s.clone(), Dim::from(32i64)],
    };
    let tables = ["cos", "sin"].map(|name| d.input(name, Elem::F32, &shape));
    let head = s.clone() * Dim::from(32i64);
    let [by_batch, by_head] = match angles {
        Angles::ByToken | Angles::NotKeys => [head, Dim::zero()],
        Angles::ByPosition => [Dim::zero(), Dim::zero()],
        Angles::ByHead => [Dim::zero(), head],
    };
    let table = |i: usize, half: i64| View {
        offset: Dim::from(half),
        shape: vec![b.clone(), Dim::from(2i64), s.clone(), Dim::from(16i64)],
        strides: vec![by_batch.clone(), by_head.clone(), Dim::from(32i64), Dim::one()],
        ..tables[i].clone()
    };
    let codes =
        |d: &mut Draft, kernel: &dyn Fn(RowQuantize) -> Kernel, mut args: Vec<View>, base| {
            let quantize = RowQuantize { signed: true, bits: 8, base, tail: 2, padded: base + 64 };
            let source: Vec<u8> = [3i32, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
            let source = Const::new(Elem::I32, vec![2], source).expect("two numbers");
            args.extend([d.floats(base), d.table(source), d.floats(2)]);
            let out = d.arena(Elem::U8, &[b.clone(), s.clone(), Dim::from(base + 64)]);
            d.step(kernel(quantize), args, &out);
            let shape = vec![b.clone() * s.clone(), Dim::from(base + 64)];
            View { strides: vec![shape[1].clone(), Dim::one()], shape, ..out }
        };
    let gamma = d.floats(192);
    let kind = NormKind::Rms;
    let norm =
        |quantize| Kernel::Norm { kind, epsilon: 1e-5, float: false, quantize: Some(quantize) };
    let rows = codes(&mut d, &norm, vec![x, gamma.clone()], 192);
    let qkv = d.plain_gemm(&rows, 192);
    let part = |start: i64, width: i64| View {
        offset: Dim::from(start),
        shape: vec![b.clone(), Dim::from(2i64), s.clone(), Dim::from(width)],
        strides: vec![
            s.clone() * Dim::from(192i64),
            Dim::from(32i64),
            Dim::from(192i64),
            Dim::one(),
        ],
        ..qkv.clone()
    };
    let mut turned = Vec::new();
    let keys = !matches!(angles, Angles::NotKeys);
    for start in [0i64, if keys { 64 } else { 128 }] {
        let whole = [b.clone(), Dim::from(2i64), s.clone(), Dim::from(32i64)];
        let result = d.arena(Elem::F32, &whole);
        for half in [0i64, 16] {
            let mut to = View { offset: Dim::from(half), ..result.clone() };
            to.shape[3] = Dim::from(16i64);
            let own = [part(start + half, 16), table(0, half)];
            let other = [part(start + 16 - half, 16), table(1, half)];
            let op = if half == 0 { BinaryOp::Sub } else { BinaryOp::Add };
            let product = |a, b| Expr::binary(BinaryOp::Mul, Expr::arg(a), Expr::arg(b));
            let turn = Expr::binary(op, product(0, 1), product(2, 3));
            d.step(Kernel::Pointwise(turn), [own, other].concat(), &to);
        }
        turned.push(result);
    }
    let heads = [b.clone(), s.clone(), Dim::from(2i64), Dim::from(32i64)];
    let merged = d.arena(Elem::F32, &heads);
    let attended = View {
        shape: [0, 2, 1, 3].map(|i: usize| heads[i].clone()).into(),
        strides: [0, 2, 1, 3].map(|i: usize| merged.strides[i].clone()).into(),
        ..merged.clone()
    };
    let precision = Precision::Bf16;
    let attention = Kernel::Attention { scale: 0.125, causal: true, mask: false, precision };
    turned.insert(if keys { 2 } else { 1 }, part(if keys { 128 } else { 64 }, 32));
    d.step(attention, turned, &attended);
    let shape = vec![b.clone(), s.clone(), Dim::from(64i64)];
    let strides = vec![s.clone() * Dim::from(64i64), Dim::from(64i64), Dim::one()];
    let quantised = |quantize| Kernel::Quantize { expr: Expr::arg(0), quantize };
    let rows = codes(&mut d, &quantised, vec![View { shape, strides, ..merged }], 64);
    let both = d.plain_gemm(&rows, 256);
    let wide = |start: i64| View {
        offset: Dim::from(start),
        shape: vec![b.clone(), s.clone(), Dim::from(128i64)],
        strides: vec![s.clone() * Dim::from(256i64), Dim::from(256i64), Dim::one()],
        ..both.clone()
    };
    let gate = Expr::unary(UnaryOp::Silu, Expr::arg(0));
    let gate = Expr::binary(BinaryOp::Mul, gate, Expr::arg(1));
    let gated = |quantize| Kernel::Quantize { expr: gate.clone(), quantize };
    let rows = codes(&mut d, &gated, vec![wide(0), wide(128)], 128);
    let down = d.plain_gemm(&rows, 192);
    let normal = d.arena(Elem::F32, &down.shape.clone());
    let norm = Kernel::Norm { kind, epsilon: 1e-5, float: true, quantize: None };
    d.step(norm, vec![down, gamma], &normal);
    let out = d.buffer(Elem::F32, &[normal.shape[0].clone(), Dim::from(64i64)], Place::Output(0));
    d.float_gemm(&normal, &out, Elem::BF16);
    let port = d.port(&out, "out");
    d.0.outputs.push(port);
    d.0
}

/// Attention of two heads of `width` over fused operands that a step of floats makes, with a mask by key or
/// none, whose result is floats or codes.
fn attention(width: i64, mask: bool, coded: bool) -> Plan {
    let (b, s) = (Dim::sym("batch"), Dim::sym("seq"));
    let mut d = Draft::default();
    let fused = [b.clone(), s.clone(), Dim::from(6 * width)];
    let x = d.input("x", Elem::F32, &fused);
    let qkv = d.arena(Elem::F32, &fused);
    d.step(Kernel::Pointwise(Expr::unary(UnaryOp::Silu, Expr::arg(0))), vec![x], &qkv);
    let row = Dim::from(6 * width);
    let part = |i: i64| View {
        offset: Dim::from(2 * i * width),
        shape: vec![b.clone(), Dim::from(2i64), s.clone(), Dim::from(width)],
        strides: vec![s.clone() * row.clone(), Dim::from(width), row.clone(), Dim::one()],
        ..qkv.clone()
    };
    let mut args = vec![part(0), part(1), part(2)];
    if mask {
        let by_key = d.input("mask", Elem::F32, &[b.clone(), s.clone()]);
        let shape = vec![b.clone(), Dim::from(2i64), s.clone(), s.clone()];
        let strides = vec![s.clone(), Dim::zero(), Dim::zero(), Dim::one()];
        args.push(View { shape, strides, ..by_key });
    }
    let merged = [b.clone(), s.clone(), Dim::from(2 * width)];
    let place = if coded { Place::Arena } else { Place::Output(0) };
    let result = d.buffer(Elem::F32, &merged, place);
    let row = Dim::from(2 * width);
    let heads = View {
        shape: vec![b.clone(), Dim::from(2i64), s.clone(), Dim::from(width)],
        strides: vec![s.clone() * row.clone(), Dim::from(width), row, Dim::one()],
        ..result.clone()
    };
    let precision = Precision::Bf16;
    d.step(Kernel::Attention { scale: 0.1, causal: !mask, mask, precision }, args, &heads);
    let mut out = result.clone();
    if coded {
        let base = 2 * width as usize;
        let quantize = RowQuantize { signed: true, bits: 8, base, tail: 2, padded: base + 64 };
        let source: Vec<u8> = [3i32, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
        let source = Const::new(Elem::I32, vec![2], source).expect("two numbers");
        let args = vec![result, d.floats(base), d.table(source), d.floats(2)];
        out = d.buffer(Elem::U8, &[b, s, Dim::from(base + 64)], Place::Output(0));
        d.step(Kernel::Quantize { expr: Expr::arg(0), quantize }, args, &out);
    }
    let port = d.port(&out, "out");
    d.0.outputs.push(port);
    d.0
}

fn compiler() -> Compiler {
    Compiler::Direct(Nvrtc::load().unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn every_family_compiles_into_a_sound_file() {
    let plan = plan();
    let images: Vec<_> = [Arch::Sm90a, Arch::Sm80]
        .map(|arch| generate(&plan, arch, &compiler()).unwrap_or_else(|error| panic!("{error}")))
        .into();
    for image in &images {
        fqbin::verify(&image.program, image.weights.len() as u64).expect("a sound program");
        assert!(image.program.steps.len() <= plan.steps.len());
        assert_eq!(image.code[0].entries.len(), image.program.kernels.len());
    }
    // Hopper's gemms come in kernels for few and for many rows, in order.
    let kernels = &images[0].program.kernels;
    let rows = |k: &fqbin::Kernel| k.attrs.iter().find(|(n, _)| n == "max_rows").map(|(_, v)| *v);
    let gemm = kernels.iter().position(|k| rows(k).is_some()).expect("a gemm of Hopper's");
    let limits: Vec<_> = kernels[gemm..].iter().map_while(rows).collect();
    let last = limits.iter().position(|&rows| rows == i64::from(i32::MAX)).expect("a last kernel");
    assert!(limits[..=last].is_sorted(), "{limits:?}");
    assert!(images[1].program.kernels.iter().all(|k| rows(k).is_none()));
    let names: Vec<_> = images.iter().map(|i| i.target.clone()).collect();
    let image = fqbin::Image { producer: "test".into(), manifest: b"{}".into(), targets: images };
    let bytes = fqbin::to_bytes(&image, None).expect("a file");
    let layout = fqbin::Layout::validate(&bytes).expect("a sound file");
    for (name, target) in names.iter().zip(&image.targets) {
        assert_eq!(layout.target(name).expect("a target").program, target.program);
    }
}

#[test]
fn steps_that_belong_together_are_one_launch() {
    let families = |angles, arch| -> Vec<String> {
        let plan = layer(angles);
        fqc_ir::plan::verify(&plan).unwrap_or_else(|faults| panic!("{faults:?}"));
        let image = generate(&plan, arch, &compiler()).unwrap_or_else(|error| panic!("{error}"));
        fqbin::verify(&image.program, image.weights.len() as u64).expect("a sound program");
        image.program.steps.iter().map(|s| s.family.clone()).collect()
    };
    // Four rotations and a copy of the values; attention with its codes; the gated product.
    let before = ["rms_norm", "gemm_i8"];
    let after = ["gemm_i8", "rms_norm", "gemm_bf16"];
    let want = |turned: &[&'static str], gated: &[&'static str]| {
        [&before[..], turned, &["attention"], gated, &after[..]].concat()
    };
    // A gemm turns what it makes, if the angles are those of the row.
    assert_eq!(families(Angles::ByToken, Arch::Sm90a), want(&[], &["gemm_i8"]));
    assert_eq!(families(Angles::ByPosition, Arch::Sm90a), want(&[], &["gemm_i8"]));
    assert_eq!(families(Angles::ByHead, Arch::Sm90a), want(&["pointwise"], &["gemm_i8"]));
    // Keys in another order of channels than queries would be wrong.
    assert_eq!(families(Angles::NotKeys, Arch::Sm90a), want(&["pointwise"], &["gemm_i8"]));
    let apart = want(&["pointwise"], &["gemm_i8", "quantize"]);
    assert_eq!(families(Angles::ByToken, Arch::Sm80), apart);
}

/// A layer of INT4 weights over codes of `bits`.
fn narrow(bits: u8) -> Plan {
    let rows = Dim::sym("rows");
    let mut d = Draft::default();
    let x = d.input("x", Elem::F32, &[rows.clone(), Dim::from(128i64)]);
    let quantize = RowQuantize { signed: true, bits, base: 128, tail: 0, padded: 128 };
    let none = d.table(Const::new(Elem::I32, vec![0], vec![]).expect("no numbers"));
    let args = vec![x, d.floats(128), none, d.floats(0)];
    let codes = d.arena(Elem::U8, &[rows.clone(), Dim::from(128i64)]);
    d.step(Kernel::Quantize { expr: Expr::arg(0), quantize }, args, &codes);
    let sums = d.gemm(&codes, 80, 4, GemmOutput::F32);
    let out = d.buffer(Elem::F32, &sums.shape, Place::Output(0));
    d.step(Kernel::Pointwise(Expr::arg(0)), vec![sums], &out);
    let port = d.port(&out, "out");
    d.0.outputs.push(port);
    d.0
}

#[test]
fn int4_by_int4_is_native_before_hopper() {
    let nvrtc = tools::nvrtc();
    for (bits, wanted) in [(4, "IMMA.16864.S4.S4"), (8, "IMMA.16832.S8.U8")] {
        for arch in [Arch::Sm80, Arch::Sm86, Arch::Sm89] {
            let kernels = sources(&narrow(bits), arch).unwrap_or_else(|error| panic!("{error}"));
            let (name, source) =
                kernels.iter().find(|(n, _)| n.starts_with("gemm")).expect("a gemm");
            let assembly = tools::assembly(&nvrtc, name, source, arch);
            assert!(assembly.contains(wanted), "{bits} bits on {arch} have no {wanted}");
        }
    }
}

#[test]
fn attention_of_many_queries_has_a_kernel_of_its_own_on_hopper() {
    for width in [64, 128] {
        for (mask, coded) in [(false, false), (false, true), (true, false), (true, true)] {
            let plan = attention(width, mask, coded);
            fqc_ir::plan::verify(&plan).unwrap_or_else(|faults| panic!("{faults:?}"));
            let kernels = |arch| {
                let image = generate(&plan, arch, &compiler());
                let image = image.unwrap_or_else(|error| panic!("{width} {mask} {coded}: {error}"));
                fqbin::verify(&image.program, image.weights.len() as u64).expect("a sound program");
                image.program.kernels
            };
            let has = |k: &fqbin::Kernel, name: &str| k.attrs.iter().any(|(n, _)| n == name);
            let hopper = kernels(Arch::Sm90a);
            let few = hopper.iter().position(|k| has(k, "max_queries")).expect("a first kernel");
            assert!(has(&hopper[few + 1], "head_width"), "{width} {mask} {coded}");
            assert!(kernels(Arch::Sm80).iter().all(|k| !has(k, "max_queries")));
        }
    }
}

#[test]
fn the_same_plan_gives_the_same_image() {
    let make = || generate(&plan(), Arch::Sm86, &compiler()).expect("an image");
    assert!(make() == make());
}

#[test]
fn the_last_resort_is_ptx() {
    let image = generate(&plan(), Arch::Ptx, &compiler()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(image.target, "cuda:compute_80");
    let code = &image.code[0];
    // The driver reads text up to a zero.
    for &entry in &code.entries {
        let text = code.bytes[entry as usize..].split(|&b| b == 0).next().expect("a text");
        assert!(text.windows(13).any(|w| w == b".target sm_80"), "at {entry}");
    }
    assert_eq!(code.bytes.last(), Some(&0));
}

#[test]
fn all_steps_without_a_kernel_are_named() {
    let mut d = Draft::default();
    let n = Dim::from(4i64);
    let index = d.input("index", Elem::I64, std::slice::from_ref(&n));
    let x = d.input("x", Elem::F32, std::slice::from_ref(&n));
    let out = d.buffer(Elem::F32, &[n], Place::Output(0));
    let scatter = Kernel::ScatterElements { axis: 0, op: ScatterOp::Add };
    d.step(Kernel::Pointwise(Expr::arg(0)), vec![x.clone()], &out);
    d.step(scatter.clone(), vec![index.clone(), x.clone()], &out);
    d.step(scatter, vec![index, x], &out);
    let port = d.port(&out, "out");
    d.0.outputs.push(port);
    let error = generate(&d.0, Arch::Sm90a, &compiler()).expect_err("a refusal");
    assert!(matches!(&error, Error::Unsupported(steps) if steps.len() == 2), "{error}");
    let text = error.to_string();
    assert!(text.contains("`s1`") && text.contains("`s2`"), "{text}");
}

#[test]
fn kernels_read_well() {
    let n = Dim::sym("n");
    let shape = [n.clone(), Dim::from(30i64)];
    let mut d = Draft::default();
    let (x, y) = (d.input("x", Elem::F32, &shape), d.input("y", Elem::F16, &shape));
    let turned = View { shape: shape.to_vec(), strides: vec![Dim::one(), n], ..x.clone() };
    let sum = Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::cast(Elem::F32, Expr::arg(1)));
    let body = Expr::binary(BinaryOp::Mul, Expr::unary(UnaryOp::Gelu, sum), Expr::f32(0.1));
    let mixed = d.arena(Elem::F32, &shape);
    d.step(Kernel::Pointwise(body), vec![turned, y], &mixed);
    let gamma = d.floats(30);
    let out = d.buffer(Elem::F32, &shape, Place::Output(0));
    let port = d.port(&out, "out");
    d.0.outputs.push(port);
    let norm = Kernel::Norm { kind: NormKind::Rms, epsilon: 1e-5, float: true, quantize: None };
    d.step(norm, vec![mixed, gamma], &out);
    let all = sources(&d.0, Arch::Sm80).expect("kernels");
    let text: String = all.into_iter().map(|(_, source)| source).collect();
    insta::assert_snapshot!(text);
}
