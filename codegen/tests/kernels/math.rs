//! The elementary functions against f64, over dense samples and the special values.

use crate::harness::{Problem, Random, dim, f32_bytes, levels, to_f32};
use fqc_ir::Expr;
use fqc_ir::expr::{BinaryOp, UnaryOp};
use fqc_ir::plan::Kernel;
use fqc_ir::types::Elem;

/// Samples of all magnitudes, denormals, infinities and NaN among them.
fn samples() -> Vec<f32> {
    let mut r = Random::new(7);
    let mut x: Vec<f32> = (0..40_000).map(|_| f32::from_bits(r.next() as u32)).collect();
    x.extend((0..200_000).map(|i| (i as f32 - 100_000.0) * 1.1e-3));
    x.extend((0..20_000).map(|i| (i as f32 - 10_000.0) * 1e-5));
    let special = [0.0, f32::MIN_POSITIVE, 1e-45, 1e-40, f32::MAX, f32::INFINITY, 1.0, 88.5, 104.0];
    x.extend(special.iter().flat_map(|&v| [v, -v]));
    x.push(f32::NAN);
    x
}

fn evaluate(op: UnaryOp, x: &[f32]) -> Vec<f32> {
    let mut p = Problem::default();
    let a = p.input(Elem::F32, &[dim("n")]);
    let y = p.output(Elem::F32, &[dim("n")]);
    p.step(Kernel::Pointwise(Expr::unary(op, Expr::arg(0))), vec![a], vec![y]);
    let mut all = p.run(&[(&[x.len()], f32_bytes(x))]);
    let last = all.pop().expect("a level ran");
    for other in &all {
        assert!(other[0] == last[0], "{}: levels differ", op.name());
    }
    assert_eq!(all.len() + 1, levels().len());
    to_f32(&last[0])
}

/// Distance in units of the last place of the exact value, denormals as they are.
fn ulps(got: f32, want: f64) -> f64 {
    if want.is_nan() || got.is_nan() {
        return if want.is_nan() && got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let rounded = want as f32;
    if rounded.is_infinite() || got.is_infinite() {
        let limit = f64::from(f32::MAX);
        let near = |v: f64| v.abs() >= limit * (1.0 - 1e-6);
        let same = got == rounded || (near(f64::from(got)) && near(want));
        return if same && (f64::from(got) > 0.0) == (want > 0.0) { 0.0 } else { f64::INFINITY };
    }
    let exponent = want.abs().log2().floor().max(-126.0);
    let ulp = (exponent - 23.0).exp2();
    (f64::from(got) - want).abs() / ulp
}

fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    if a > 6.0 {
        return x.signum();
    }
    // 2/sqrt(pi) * e^(-x^2) * sum 2^n x^(2n+1) / (2n+1)!!: no cancellation.
    let (mut term, mut sum) = (a, a);
    for n in 1..400 {
        term *= 2.0 * a * a / f64::from(2 * n + 1);
        sum += term;
    }
    x.signum() * std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum
}

fn check(op: UnaryOp, max_ulp: f64, reference: impl Fn(f64) -> f64) {
    let x = samples();
    let y = evaluate(op, &x);
    let mut worst = (0.0, 0.0, 0.0);
    for (&x, &y) in x.iter().zip(&y) {
        let want = reference(f64::from(x));
        let off = ulps(y, want);
        if off > worst.0 {
            worst = (off, x, y);
        }
    }
    eprintln!("{}: {:.2} ulp at {:e}", op.name(), worst.0, worst.1);
    assert!(worst.0 <= max_ulp, "{}: {worst:?}", op.name());
}

#[test]
fn exponential_and_logarithm() {
    check(UnaryOp::Exp, 2.0, f64::exp);
    check(UnaryOp::Log, 3.0, f64::ln);
}

#[test]
fn sigmoids() {
    check(UnaryOp::Tanh, 5.0, f64::tanh);
    check(UnaryOp::Erf, 5.0, erf);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let x = samples();
    // Below -87 the exponential overflows before the result is zero.
    for (&x, &y) in x.iter().zip(&evaluate(UnaryOp::Sigmoid, &x)) {
        let want = sigmoid(f64::from(x));
        assert!(ulps(y, want) <= 4.0 || (x < -87.0 && y.abs() < 2e-38), "{x:e}: {y:e}, {want:e}");
    }
}

#[test]
fn softplus_is_relative_everywhere() {
    check(UnaryOp::Softplus, 4.0, |x| x.max(0.0) + (-x.abs()).exp().ln_1p());
}

#[test]
fn trigonometry() {
    let x: Vec<f32> = samples().into_iter().filter(|x| x.abs() <= 1.0995e12).collect();
    for (op, reference) in [(UnaryOp::Sin, f64::sin as fn(f64) -> f64), (UnaryOp::Cos, f64::cos)] {
        for (&x, &y) in x.iter().zip(&evaluate(op, &x)) {
            let want = reference(f64::from(x));
            assert!(ulps(y, want) <= 1.0, "{}({x:e}): {y:e}, {want:e}", op.name());
        }
        let far = [1e13f32, -1e30, f32::MAX];
        assert!(evaluate(op, &far).iter().all(|y| y.abs() <= 1.0));
        assert!(evaluate(op, &[f32::INFINITY, f32::NAN]).iter().all(|y| y.is_nan()));
    }
    assert!(evaluate(UnaryOp::Sin, &[-0.0])[0].is_sign_negative());
}

#[test]
fn gelus_and_silu_are_absolute() {
    let tanh = |x: f64| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        0.5 * x * (1.0 + u.tanh())
    };
    let exact = |x: f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let table = [
        (UnaryOp::Gelu, &exact as &dyn Fn(f64) -> f64, -22),
        (UnaryOp::GeluTanh, &tanh, -22),
        (UnaryOp::Silu, &silu, -21),
    ];
    for (op, reference, bound) in table {
        let x: Vec<f32> = samples().into_iter().filter(|x| x.is_finite()).collect();
        for (&x, &y) in x.iter().zip(&evaluate(op, &x)) {
            let want = reference(f64::from(x));
            let size = f64::from(x).abs();
            // SiLU of small numbers is as near relative to them.
            let relative = op == UnaryOp::Silu && size < 0.5;
            let unit = if relative { size.max(f32::MIN_POSITIVE.into()) } else { size.max(1.0) };
            let bound = 2f64.powi(bound) * unit;
            assert!((f64::from(y) - want).abs() <= bound, "{}({x:e}): {y:e}, {want:e}", op.name());
        }
        let large = evaluate(op, &[-30.0, -1e4, 1e4, f32::INFINITY, f32::NAN]);
        assert!(large[0].abs() < 1e-30 && large[1] == 0.0 && large[2] == 1e4, "{large:?}");
        assert!(large[3] == f32::INFINITY && large[4].is_nan(), "{large:?}");
    }
}

/// Two-argument functions over pairs.
fn binary(op: BinaryOp, x: &[f32], y: &[f32]) -> Vec<f32> {
    let mut p = Problem::default();
    let (a, b) = (p.input(Elem::F32, &[dim("n")]), p.input(Elem::F32, &[dim("n")]));
    let out = p.output(Elem::F32, &[dim("n")]);
    let expr = Expr::binary(op, Expr::arg(0), Expr::arg(1));
    p.step(Kernel::Pointwise(expr), vec![a, b], vec![out]);
    let n = [x.len()];
    to_f32(&p.run(&[(&n, f32_bytes(x)), (&n, f32_bytes(y))]).pop().expect("a level ran")[0])
}

#[test]
fn powers_and_remainders() {
    let values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        3.0,
        -3.0,
        2.5,
        -7.25,
        1e10,
        -1e10,
        1e-10,
        1e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-45,
    ];
    let mut r = Random::new(3);
    let mut pairs: Vec<(f32, f32)> =
        values.iter().flat_map(|&x| values.iter().map(move |&y| (x, y))).collect();
    pairs.extend((0..20_000).map(|_| (r.unit() * 20.0, r.unit() * 20.0)));
    pairs.extend((0..20_000).map(|_| (r.unit().abs() * 1e3, r.unit() * 5.0)));
    let (x, y): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
    for (i, got) in binary(BinaryOp::Pow, &x, &y).into_iter().enumerate() {
        let want = f64::from(x[i]).powf(f64::from(y[i]));
        assert!(ulps(got, want) <= 1.0, "{}^{}: {got:e}, {want:e}", x[i], y[i]);
    }
    for (i, got) in binary(BinaryOp::Rem, &x, &y).into_iter().enumerate() {
        let want = x[i] % y[i];
        let same = got == want || (got.is_nan() && want.is_nan());
        assert!(same, "{} % {}: {got:e}, {want:e}", x[i], y[i]);
    }
}

#[test]
fn double_precision() {
    let mut r = Random::new(5);
    let mut x: Vec<f64> = (0..4000).map(|_| f64::from(r.unit()) * 40.0).collect();
    x.extend([0.0, 1e-300, 1e300, 700.0, -745.0, 5e-324, f64::INFINITY, -f64::INFINITY, f64::NAN]);
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let table: [(UnaryOp, &dyn Fn(f64) -> f64); 7] = [
        (UnaryOp::Exp, &f64::exp),
        (UnaryOp::Log, &f64::ln),
        (UnaryOp::Tanh, &f64::tanh),
        (UnaryOp::Erf, &erf),
        (UnaryOp::Sin, &f64::sin),
        (UnaryOp::Cos, &f64::cos),
        (UnaryOp::Sigmoid, &sigmoid),
    ];
    for (op, reference) in table {
        let mut p = Problem::default();
        let a = p.input(Elem::F64, &[dim("n")]);
        let y = p.output(Elem::F64, &[dim("n")]);
        p.step(Kernel::Pointwise(Expr::unary(op, Expr::arg(0))), vec![a], vec![y]);
        let got = p.run(&[(&[x.len()], bytes.clone())]).pop().expect("a level ran");
        for (i, b) in got[0].chunks_exact(8).enumerate() {
            let got = f64::from_le_bytes(b.try_into().expect("eight bytes"));
            let want = reference(x[i]);
            let trigonometric = matches!(op, UnaryOp::Sin | UnaryOp::Cos);
            let near = (got - want).abs() <= 2e-15 * want.abs().max(f64::MIN_POSITIVE);
            let slack = trigonometric && (x[i].abs() > 1e9 || (got - want).abs() < 1e-15);
            let same = got == want || (got.is_nan() && want.is_nan());
            assert!(same || near || slack, "{}({:e}): {got:e}, {want:e}", op.name(), x[i]);
        }
    }
}
