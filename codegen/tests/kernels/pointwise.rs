//! Element-wise kernels: broadcast, strides, slices, copies, element types.

use crate::harness::*;
use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::expr::{BinaryOp, UnaryOp};
use fqc_ir::plan::{Kernel, View, row_major};
use fqc_ir::types::Elem;

fn add() -> Expr {
    Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1))
}

#[test]
fn broadcasts_over_symbolic_shapes() {
    for shape in [[1, 7, 16], [3, 5, 33], [2, 8, 8], [2, 1, 67], [4, 17, 1], [1, 1, 1]] {
        let s = symbols("n", 3);
        let mut p = Problem::default();
        let a = p.input(Elem::F32, &s);
        let mut row = p.input(Elem::F32, &[s[2].clone()]);
        let mut column = p.input(Elem::F32, &[s[0].clone(), s[1].clone(), Dim::one()]);
        let (zero, one) = (Dim::zero(), Dim::one());
        row = View { shape: s.clone(), strides: vec![zero.clone(), zero.clone(), one], ..row };
        column.shape = s.clone();
        column.strides[2] = zero;
        let y = p.output(Elem::F32, &s);
        let sum = Expr::binary(BinaryOp::Mul, add(), Expr::arg(2));
        p.step(Kernel::Pointwise(sum), vec![a, row, column], vec![y]);
        let [n0, n1, n2] = shape;
        let mut r = Random::new(11);
        let x = r.floats(n0 * n1 * n2, 2.0);
        let (v, c) = (r.floats(n2, 2.0), r.floats(n0 * n1, 2.0));
        let want: Vec<f32> = (0..x.len()).map(|i| (x[i] + v[i % n2]) * c[i / n2]).collect();
        let column_shape = [n0, n1, 1];
        let inputs: [(&[usize], Vec<u8>); 3] =
            [(&shape, f32_bytes(&x)), (&[n2], f32_bytes(&v)), (&column_shape, f32_bytes(&c))];
        for out in p.run(&inputs) {
            assert_eq!(to_f32(&out[0]), want, "{shape:?}");
        }
    }
}

/// A view of `x` with its axes permuted.
fn permuted(x: &View, order: &[usize]) -> View {
    View {
        shape: order.iter().map(|&a| x.shape[a].clone()).collect(),
        strides: order.iter().map(|&a| x.strides[a].clone()).collect(),
        ..x.clone()
    }
}

#[test]
fn transposing_copies() {
    let cases: [(&[usize], &[usize]); 8] = [
        (&[2, 5, 3, 32], &[0, 2, 1, 3]),
        (&[2, 33, 3, 32], &[0, 2, 3, 1]),
        (&[67, 17], &[1, 0]),
        (&[16, 16], &[1, 0]),
        (&[48, 64], &[1, 0]),
        (&[7, 9, 11], &[2, 1, 0]),
        (&[8, 40, 24], &[2, 0, 1]),
        (&[1, 3, 1, 5], &[3, 2, 1, 0]),
    ];
    for elem in [Elem::F32, Elem::I64, Elem::U8, Elem::F16] {
        for (shape, order) in cases {
            for symbolic in [false, true] {
                let dims = if symbolic { symbols("n", shape.len()) } else { fixed(shape) };
                let mut p = Problem::default();
                let x = p.input(elem, &dims);
                let view = permuted(&x, order);
                let y = p.output(elem, &view.shape);
                p.step(Kernel::Pointwise(Expr::arg(0)), vec![view], vec![y]);
                let size = elem.bits() as usize / 8;
                let count: usize = shape.iter().product();
                let bytes: Vec<u8> = (0..count * size).map(|i| (i * 37 % 61) as u8).collect();
                let out_shape: Vec<usize> = order.iter().map(|&a| shape[a]).collect();
                let mut want = Vec::new();
                for index in indices(&out_shape) {
                    let mut source = vec![0; index.len()];
                    order.iter().zip(&index).for_each(|(&a, &i)| source[a] = i);
                    let at = offset(shape, &source) * size;
                    want.extend_from_slice(&bytes[at..at + size]);
                }
                for out in p.run(&[(shape, bytes.clone())]) {
                    assert!(out[0] == want, "{elem} {shape:?} {order:?} {symbolic}");
                }
            }
        }
    }
}

#[test]
fn slices_with_negative_and_wide_steps() {
    for n in SIZES {
        let mut p = Problem::default();
        let len = Dim::from(n);
        let x = p.input(Elem::F32, &[Dim::from(3 * n + 2)]);
        let backwards = View {
            offset: Dim::from(n - 1),
            shape: vec![len.clone()],
            strides: vec![Dim::from(-1i64)],
            ..x.clone()
        };
        let third = View {
            offset: Dim::one(),
            shape: vec![len.clone()],
            strides: vec![Dim::from(3i64)],
            ..x
        };
        let y = p.output(Elem::F32, &[len.clone(), Dim::from(2i64)]);
        let odd =
            View { offset: Dim::one(), shape: vec![len], strides: vec![Dim::from(2i64)], ..y };
        p.step(Kernel::Pointwise(add()), vec![backwards, third], vec![odd]);
        let x: Vec<f32> = (0..3 * n + 2).map(|i| i as f32).collect();
        let want: Vec<f32> = (0..2 * n)
            .map(|i| if i % 2 == 0 { 0.0 } else { x[n - 1 - i / 2] + x[1 + i / 2 * 3] })
            .collect();
        for out in p.run(&[(&[x.len()], f32_bytes(&x))]) {
            assert_eq!(to_f32(&out[0]), want, "{n}");
        }
    }
}

#[test]
fn a_concatenation_is_two_copies() {
    let (s, t) = (dim("s"), dim("t"));
    let mut p = Problem::default();
    let a = p.input(Elem::F32, &[dim("b"), s.clone()]);
    let c = p.input(Elem::F32, &[dim("b"), t.clone()]);
    let shape = [dim("b"), s.clone() + t.clone()];
    let y = p.output(Elem::F32, &shape);
    let left = View { shape: a.shape.clone(), ..y.clone() };
    let right = View { offset: s, shape: c.shape.clone(), strides: row_major(&shape), ..y.clone() };
    p.step(Kernel::Pointwise(Expr::arg(0)), vec![a], vec![left]);
    p.step(Kernel::Pointwise(Expr::arg(0)), vec![c], vec![right]);
    let (x, z) = (Random::new(1).floats(3 * 17, 1.0), Random::new(2).floats(3 * 9, 1.0));
    let want: Vec<f32> =
        (0..3).flat_map(|b| [&x[b * 17..(b + 1) * 17], &z[b * 9..(b + 1) * 9]].concat()).collect();
    for out in p.run(&[(&[3, 17], f32_bytes(&x)), (&[3, 9], f32_bytes(&z))]) {
        assert_eq!(to_f32(&out[0]), want);
    }
}

/// Casts `x` of `from` to `to` and gives the bytes.
fn cast(from: Elem, to: Elem, bytes: Vec<u8>) -> Vec<u8> {
    let n = bytes.len() * 8 / from.bits() as usize;
    let mut p = Problem::default();
    let a = p.input(from, &[dim("n")]);
    let y = p.output(to, &[dim("n")]);
    p.step(Kernel::Pointwise(Expr::cast(to, Expr::arg(0))), vec![a], vec![y]);
    let mut all = p.run(&[(&[n], bytes)]);
    let last = all.pop().expect("a level ran");
    assert!(all.iter().all(|o| o[0] == last[0]), "{from} to {to}: levels differ");
    last[0].clone()
}

#[test]
fn casts_follow_the_rules() {
    let floats: Vec<f32> = vec![
        0.0,
        -0.0,
        1.5,
        -1.5,
        2.5,
        127.9,
        -128.9,
        255.0,
        300.0,
        -300.0,
        65504.0,
        65520.0,
        1e-8,
        6e-8,
        1e20,
        -1e20,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        3.0e9,
        0.1,
    ];
    let bytes = f32_bytes(&floats);
    let ints = |f: &dyn Fn(f32) -> Vec<u8>| floats.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>();
    let wrap = |v: f32| v as i64;
    assert_eq!(cast(Elem::F32, Elem::I8, bytes.clone()), ints(&|v| vec![wrap(v) as u8]));
    assert_eq!(
        cast(Elem::F32, Elem::I32, bytes.clone()),
        ints(&|v| (wrap(v) as i32).to_le_bytes().to_vec())
    );
    assert_eq!(
        cast(Elem::F32, Elem::U64, bytes.clone()),
        ints(&|v| (if v >= 0.0 { v as u64 } else { v as i64 as u64 }).to_le_bytes().to_vec())
    );
    assert_eq!(cast(Elem::F32, Elem::Bool, bytes.clone()), ints(&|v| vec![u8::from(v != 0.0)]));
    let signed: Vec<i64> =
        vec![0, 1, -1, 127, 128, 255, 256, i64::MAX, i64::MIN, 1 << 53, 16777217];
    let s = i64_bytes(&signed);
    let each = |f: &dyn Fn(i64) -> Vec<u8>| signed.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>();
    assert_eq!(cast(Elem::I64, Elem::I8, s.clone()), each(&|v| vec![v as u8]));
    assert_eq!(cast(Elem::I64, Elem::F32, s.clone()), each(&|v| (v as f32).to_le_bytes().to_vec()));
    assert_eq!(
        cast(Elem::U64, Elem::F32, s.clone()),
        each(&|v| (v as u64 as f32).to_le_bytes().to_vec())
    );
    assert_eq!(cast(Elem::I64, Elem::Bool, s), each(&|v| vec![u8::from(v != 0)]));
}

/// f64 to f16 in one rounding, by search among the neighbours.
fn half_of(x: f64) -> f64 {
    let ulp = if x.abs() < 2f64.powi(-14) {
        2f64.powi(-24)
    } else {
        (x.abs().log2().floor() - 10.0).exp2()
    };
    let y = (x / ulp).round_ties_even() * ulp;
    if y.abs() > 65504.0 { y.signum() * f64::INFINITY } else { y }
}

#[test]
fn half_precision_rounds_once() {
    let mut r = Random::new(9);
    let mut x: Vec<f64> = (0..5000).map(|_| f64::from(r.unit()) * 10.0).collect();
    x.extend([1.0 + 2f64.powi(-11), 1.0 + 2f64.powi(-11) + 2f64.powi(-40), 65519.9, 65520.0]);
    x.extend([2f64.powi(-25), 2f64.powi(-25) * 1.0001, -3e-8]);
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let half = cast(Elem::F64, Elem::F16, bytes);
    let back = to_f32(&cast(Elem::F16, Elem::F32, half));
    for (i, &got) in back.iter().enumerate() {
        assert_eq!(f64::from(got), half_of(x[i]), "{:e}", x[i]);
    }
    let narrow: Vec<f32> = (0..5000).map(|_| f32::from_bits(r.next() as u32)).collect();
    let brain = cast(Elem::F32, Elem::BF16, f32_bytes(&narrow));
    for (i, b) in brain.chunks_exact(2).enumerate() {
        let got = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
        let bits = narrow[i].to_bits();
        let want = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) & 0xffff_0000;
        let same = got.is_nan() && narrow[i].is_nan() || got.to_bits() == want;
        assert!(same, "{:e}", narrow[i]);
    }
}

#[test]
fn integer_arithmetic_never_traps() {
    let values: Vec<i32> = vec![0, 1, -1, 2, -2, 7, -7, 100, i32::MAX, i32::MIN];
    let pairs: Vec<(i32, i32)> =
        values.iter().flat_map(|&a| values.iter().map(move |&b| (a, b))).collect();
    let (x, y): (Vec<i32>, Vec<i32>) = pairs.iter().copied().unzip();
    let power = |a: i32, b: i32| match (a, b) {
        (_, 0..) => a.wrapping_pow(b as u32),
        (1, _) => 1,
        (-1, _) => {
            if b % 2 == 0 {
                1
            } else {
                -1
            }
        }
        _ => 0,
    };
    let floor_mod = |a: i32, b: i32| {
        if b == 0 { 0 } else { a.wrapping_rem(b).wrapping_add(b).wrapping_rem(b) }
    };
    type Reference<'a> = (BinaryOp, &'a dyn Fn(i32, i32) -> i32);
    let table: [Reference<'_>; 7] = [
        (BinaryOp::Add, &i32::wrapping_add),
        (BinaryOp::Mul, &i32::wrapping_mul),
        (BinaryOp::Div, &|a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
        (BinaryOp::Rem, &|a, b| if b == 0 { 0 } else { a.wrapping_rem(b) }),
        (BinaryOp::Mod, &floor_mod),
        (BinaryOp::Max, &|a, b| a.max(b)),
        (BinaryOp::Pow, &power),
    ];
    for (op, reference) in table {
        let mut p = Problem::default();
        let (a, b) = (p.input(Elem::I32, &[dim("n")]), p.input(Elem::I32, &[dim("n")]));
        let out = p.output(Elem::I32, &[dim("n")]);
        let expr = Expr::binary(op, Expr::arg(0), Expr::arg(1));
        p.step(Kernel::Pointwise(expr), vec![a, b], vec![out]);
        let n = [x.len()];
        for out in p.run(&[(&n, i32_bytes(&x)), (&n, i32_bytes(&y))]) {
            for (i, b) in out[0].chunks_exact(4).enumerate() {
                let got = i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let overflow = op == BinaryOp::Mod && (x[i] == i32::MIN || y[i].abs_diff(0) > 1000);
                let want = reference(x[i], y[i]);
                assert!(got == want || overflow, "{} {} {}: {got}", x[i], op.name(), y[i]);
            }
        }
    }
}

#[test]
fn bools_select_and_compare() {
    for n in SIZES {
        let mut r = Random::new(n as u64);
        let (x, y) = (r.floats(n, 1.0), r.floats(n, 1.0));
        let flags: Vec<u8> = (0..n).map(|_| r.below(2) as u8).collect();
        let mut p = Problem::default();
        let d = [dim("n")];
        let (a, b) = (p.input(Elem::F32, &d), p.input(Elem::F32, &d));
        let c = p.input(Elem::Bool, &d);
        let (out, below) = (p.output(Elem::F32, &d), p.output(Elem::Bool, &d));
        let less = Expr::binary(BinaryOp::Lt, Expr::arg(0), Expr::arg(1));
        let flag = Expr::unary(UnaryOp::Not, Expr::arg(2));
        let both = Expr::binary(BinaryOp::And, less, flag);
        let pick = Expr::select(both.clone(), Expr::arg(0), Expr::arg(1));
        let args = vec![a, b, c];
        p.step(Kernel::Pointwise(pick), args.clone(), vec![out]);
        p.step(Kernel::Pointwise(both), args, vec![below]);
        let m = [n];
        let inputs: [(&[usize], Vec<u8>); 3] =
            [(&m, f32_bytes(&x)), (&m, f32_bytes(&y)), (&m, flags.clone())];
        for got in p.run(&inputs) {
            let hit = |i: usize| x[i] < y[i] && flags[i] == 0;
            let want: Vec<f32> = (0..n).map(|i| if hit(i) { x[i] } else { y[i] }).collect();
            assert_eq!(to_f32(&got[0]), want);
            assert_eq!(got[1], (0..n).map(|i| u8::from(hit(i))).collect::<Vec<u8>>());
        }
    }
}

#[test]
fn twelve_equal_layers_share_one_kernel() {
    let mut p = Problem::default();
    let x = p.input(Elem::F32, &[dim("b"), Dim::from(64i64)]);
    let mut last = x;
    for i in 0..12 {
        let next = p.output(Elem::F32, &[dim("b"), Dim::from(64i64)]);
        let expr = Expr::unary(UnaryOp::Gelu, Expr::arg(0));
        p.step(Kernel::Pointwise(expr), vec![last], vec![next.clone()]);
        p.plan.steps[i].name = format!("layer{i}");
        last = next;
    }
    let image = fqc_codegen::cpu::generate(&p.plan, &levels()).expect("it compiles");
    assert_eq!(image.program.kernels.len(), 1);
    assert_eq!(image, fqc_codegen::cpu::generate(&p.plan, &levels()).expect("it compiles"));
}
