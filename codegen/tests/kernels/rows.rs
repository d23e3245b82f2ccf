//! Softmax, norms, quantisation.

use crate::harness::*;
use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::expr::UnaryOp;
use fqc_ir::plan::{Kernel, NormKind, RowQuantize, View};
use fqc_ir::quant::{digit, q_max, wide_code};
use fqc_ir::types::Elem;

fn softmax(x: &[f32]) -> Vec<f32> {
    let top = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let e: Vec<f64> = x.iter().map(|&v| (f64::from(v) - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| (v / sum) as f32).collect()
}

#[test]
fn softmax_of_rows() {
    for n in SIZES.into_iter().chain([128, 1031]) {
        for symbolic in [false, true] {
            let mut p = Problem::default();
            let shape = [dim("b"), if symbolic { dim("n") } else { Dim::from(n) }];
            let x = p.input(Elem::F32, &shape);
            let y = p.output(Elem::F32, &shape);
            p.step(Kernel::Softmax, vec![x], vec![y]);
            let mut data = Random::new(n as u64).floats(5 * n, 30.0);
            data[n - 1] = f32::NEG_INFINITY;
            if n > 1 {
                data[0] = 1.0;
            }
            let want: Vec<f32> = data.chunks(n).flat_map(softmax).collect();
            for out in p.run(&[(&[5, n], f32_bytes(&data))]) {
                assert_close(&to_f32(&out[0]), &want, 1e-30, 1e-5, &format!("{n}"));
            }
        }
    }
}

#[test]
fn softmax_along_a_strided_axis_and_in_other_types() {
    let (n, m) = (17usize, 9usize);
    let mut p = Problem::default();
    let x = p.input(Elem::F32, &fixed(&[n, m]));
    let y = p.output(Elem::F32, &fixed(&[n, m]));
    let turn =
        |v: View| View { shape: fixed(&[m, n]), strides: vec![Dim::one(), Dim::from(m)], ..v };
    p.step(Kernel::Softmax, vec![turn(x)], vec![turn(y)]);
    let data = Random::new(3).floats(n * m, 5.0);
    for out in p.run(&[(&[n, m], f32_bytes(&data))]) {
        let got = to_f32(&out[0]);
        for column in 0..m {
            let of = |v: &[f32]| (0..n).map(|i| v[i * m + column]).collect::<Vec<f32>>();
            assert_close(&of(&got), &softmax(&of(&data)), 1e-30, 1e-5, "strided");
        }
    }
    let mut p = Problem::default();
    let x = p.input(Elem::F16, &fixed(&[3, 21]));
    let y = p.output(Elem::F16, &fixed(&[3, 21]));
    p.step(Kernel::Softmax, vec![x], vec![y]);
    let ones: Vec<u8> = (0..63).flat_map(|_| 0x3c00u16.to_le_bytes()).collect();
    for out in p.run(&[(&[3, 21], ones.clone())]) {
        // 1/21 in half precision.
        assert!(out[0].chunks_exact(2).all(|b| u16::from_le_bytes([b[0], b[1]]) == 0x2a18));
    }
}

struct Table {
    quantize: RowQuantize,
    inverse: Vec<f32>,
    source: Vec<i32>,
    below: Vec<f32>,
    digits: Vec<u32>,
}

fn table(base: usize, tail: usize, signed: bool, bits: u8, seed: u64) -> Table {
    let mut r = Random::new(seed);
    let padded = (base + tail).next_multiple_of(64);
    let source: Vec<i32> = (0..tail).map(|_| r.below(base) as i32).collect();
    let digits: Vec<u32> = (0..tail).map(|i| 2 + i as u32 % 4).collect();
    let top = q_max(bits, signed) as f32;
    Table {
        quantize: RowQuantize { signed, bits, base, tail, padded },
        inverse: (0..base).map(|_| top * (1.0 + r.unit().abs() * 3.0)).collect(),
        source,
        below: digits.iter().map(|&d| (d - 1) as f32 * top).collect(),
        digits,
    }
}

impl Table {
    fn views(&self, p: &mut Problem) -> Vec<View> {
        vec![
            p.input(Elem::F32, &fixed(&[self.inverse.len()])),
            p.input(Elem::I32, &fixed(&[self.source.len()])),
            p.input(Elem::F32, &fixed(&[self.below.len()])),
        ]
    }

    fn shapes(&self) -> [[usize; 1]; 3] {
        [[self.inverse.len()], [self.source.len()], [self.below.len()]]
    }

    fn data(&self) -> [Vec<u8>; 3] {
        [f32_bytes(&self.inverse), i32_bytes(&self.source), f32_bytes(&self.below)]
    }

    /// The bytes of one row.
    fn codes(&self, y: &[f32]) -> Vec<u8> {
        let q = &self.quantize;
        let top = q_max(q.bits, q.signed);
        let code = |j: usize, k: u32| digit(wide_code(y[j], self.inverse[j], q.signed), k, top);
        let mut out: Vec<i32> = (0..q.base).map(|j| code(j, 1)).collect();
        out.extend((0..q.tail).map(|t| code(self.source[t] as usize, self.digits[t])));
        out.resize(q.padded, 0);
        out.iter().map(|c| (c + if q.signed { 128 } else { 0 }) as u8).collect()
    }
}

#[test]
fn quantisation_is_exact() {
    for base in SIZES.into_iter().chain([64, 384]) {
        for (tail, signed, bits) in [(0, true, 8), (1, true, 8), (19, false, 8), (32, true, 4)] {
            let t = table(base, tail, signed, bits, base as u64);
            let mut p = Problem::default();
            let x = p.input(Elem::F32, &[dim("b"), Dim::from(base)]);
            let mut args = vec![x];
            args.extend(t.views(&mut p));
            let padded = Dim::from(t.quantize.padded);
            let y = p.output(Elem::U8, &[dim("b"), padded]);
            let kernel = Kernel::Quantize { expr: Expr::arg(0), quantize: t.quantize.clone() };
            p.step(kernel, args, vec![y]);
            let mut data = Random::new(4).floats(3 * base, 2.0);
            data[0] = f32::NAN;
            data[base / 2] = f32::INFINITY;
            data[2 * base] = f32::NEG_INFINITY;
            data[2 * base + base / 2] = 1e-20;
            let want: Vec<u8> = data.chunks(base).flat_map(|row| t.codes(row)).collect();
            let shapes = t.shapes();
            let [a, b, c] = t.data();
            let shape = [3, base];
            let inputs: [(&[usize], Vec<u8>); 4] =
                [(&shape, f32_bytes(&data)), (&shapes[0], a), (&shapes[1], b), (&shapes[2], c)];
            for out in p.run(&inputs) {
                assert!(out[0] == want, "base {base} tail {tail} signed {signed} bits {bits}");
            }
        }
    }
}

#[test]
fn quantisation_after_an_expression() {
    let t = table(33, 5, true, 8, 1);
    let mut p = Problem::default();
    let x = p.input(Elem::F32, &[dim("b"), Dim::from(33i64)]);
    let mut args = vec![x];
    args.extend(t.views(&mut p));
    let float = p.output(Elem::F32, &[dim("b"), Dim::from(33i64)]);
    let y = p.output(Elem::U8, &[dim("b"), Dim::from(64i64)]);
    let gelu = Expr::unary(UnaryOp::Gelu, Expr::arg(0));
    p.step(Kernel::Pointwise(gelu.clone()), vec![args[0].clone()], vec![float]);
    p.step(Kernel::Quantize { expr: gelu, quantize: t.quantize.clone() }, args, vec![y]);
    let shapes = t.shapes();
    let [a, b, c] = t.data();
    let data = f32_bytes(&Random::new(2).floats(7 * 33, 4.0));
    let shape = [7, 33];
    let inputs: [(&[usize], Vec<u8>); 4] =
        [(&shape, data), (&shapes[0], a), (&shapes[1], b), (&shapes[2], c)];
    for out in p.run(&inputs) {
        let float = to_f32(&out[0]);
        let want: Vec<u8> = float.chunks(33).flat_map(|row| t.codes(row)).collect();
        assert_eq!(out[1], want);
    }
}

fn norm(kind: NormKind, x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32) -> Vec<f32> {
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
        NormKind::Rms => 0.0,
    };
    let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (var + f64::from(epsilon)).sqrt();
    (0..x.len())
        .map(|i| {
            let y = (f64::from(x[i]) - mean) * inverse * f64::from(gamma[i]);
            (y + beta.get(i).map_or(0.0, |&v| f64::from(v))) as f32
        })
        .collect()
}

#[test]
fn norms_with_floats_and_codes() {
    for n in SIZES.into_iter().chain([384, 1030]) {
        for kind in [NormKind::Layer, NormKind::Rms] {
            for (float, coded) in [(true, false), (true, true), (false, true)] {
                let t = table(n, if n > 8 { 5 } else { 0 }, true, 8, n as u64);
                let mut p = Problem::default();
                let shape = [dim("b"), dim("s"), Dim::from(n)];
                let x = p.input(Elem::F32, &shape);
                let gamma = p.input(Elem::F32, &fixed(&[n]));
                let mut args = vec![x, gamma];
                if kind == NormKind::Layer {
                    args.push(p.input(Elem::F32, &fixed(&[n])));
                }
                let mut results = Vec::new();
                if coded {
                    args.extend(t.views(&mut p));
                }
                if float {
                    results.push(p.output(Elem::F32, &shape));
                }
                if coded {
                    let padded = Dim::from(t.quantize.padded);
                    results.push(p.output(Elem::U8, &[dim("b"), dim("s"), padded]));
                }
                let quantize = coded.then(|| t.quantize.clone());
                p.step(Kernel::Norm { kind, epsilon: 1e-5, float, quantize }, args, results);
                let mut r = Random::new(n as u64);
                let (data, g, h) = (r.floats(6 * n, 3.0), r.floats(n, 2.0), r.floats(n, 1.0));
                let beta: &[f32] = if kind == NormKind::Layer { &h } else { &[] };
                let row = [n];
                let x_shape = [2, 3, n];
                let mut inputs: Vec<(&[usize], Vec<u8>)> =
                    vec![(&x_shape, f32_bytes(&data)), (&row, f32_bytes(&g))];
                if kind == NormKind::Layer {
                    inputs.push((&row, f32_bytes(&h)));
                }
                let shapes = t.shapes();
                if coded {
                    inputs.extend(shapes.iter().map(|s| s.as_slice()).zip(t.data()));
                }
                let want: Vec<f32> =
                    data.chunks(n).flat_map(|x| norm(kind, x, &g, beta, 1e-5)).collect();
                for out in p.run(&inputs) {
                    if float {
                        assert_close(&to_f32(&out[0]), &want, 1e-5, 1e-5, &format!("{n} {kind:?}"));
                    }
                    if float && coded {
                        let got = to_f32(&out[0]);
                        let codes: Vec<u8> = got.chunks(n).flat_map(|y| t.codes(y)).collect();
                        assert!(out[1] == codes, "{n} {kind:?}");
                    } else if coded {
                        let codes: Vec<u8> = want.chunks(n).flat_map(|y| t.codes(y)).collect();
                        let near = out[0].iter().zip(&codes).all(|(&g, &w)| g.abs_diff(w) <= 1);
                        assert!(near, "{n} {kind:?}");
                    }
                }
            }
        }
    }
}
