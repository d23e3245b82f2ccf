//! Attention against the plain formula.

use crate::harness::*;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Kernel, Precision, View};
use fqc_ir::types::Elem;

struct Case {
    b: usize,
    h: usize,
    g: usize,
    s: usize,
    t: usize,
    d: usize,
    e: usize,
    causal: bool,
    /// 0: none, 1: \[b,1,1,t\], 2: \[1,1,s,t\], 3: \[b,h,s,t\], 4: the third with swapped axes.
    mask: usize,
}

/// `x` rounded to the operands of a precision, half to even.
fn rounded(x: f32, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => x.into(),
        Precision::Bf16 => half::bf16::from_f32(x).into(),
    }
}

/// Plain attention in f64 over \[b, s, h, d\] and \[b, t, g, d\], with the operands of the two products
/// rounded; and how far each result may be off as weights lie so near the middle of two numbers of bf16
/// that either may be taken.
fn reference(
    c: &Case,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: &dyn Fn([usize; 4]) -> f32,
    precision: Precision,
) -> (Vec<f32>, Vec<f32>) {
    // Pairs count powers of two from a whole one, and sum what they have rounded.
    let in_pairs = precision == Precision::Bf16;
    let unit = if in_pairs { std::f64::consts::LN_2 } else { 1.0 };
    let scale = (1.0 / f64::from(c.d as f32).sqrt() / unit) as f32;
    let round = |x: f32| rounded(x, precision);
    let (mut out, mut slack) = (Vec::new(), Vec::new());
    for index in indices(&[c.b, c.s, c.h]) {
        let [b, i, h] = index[..] else { unreachable!("three axes") };
        let group = h / (c.h / c.g);
        let scores: Vec<f64> = (0..c.t)
            .map(|j| {
                if c.causal && j as i64 > i as i64 + c.t as i64 - c.s as i64 {
                    return f64::NEG_INFINITY;
                }
                let x = &q[((b * c.s + i) * c.h + h) * c.d..][..c.d];
                let y = &k[((b * c.t + j) * c.g + group) * c.d..][..c.d];
                let dot: f64 = x.iter().zip(y).map(|(&x, &y)| round(x * scale) * round(y)).sum();
                dot + f64::from(mask([b, h, i, j])) / unit
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let top = if in_pairs { top.ceil() } else { top };
        let exact: Vec<f64> = scores.iter().map(|score| ((score - top) * unit).exp()).collect();
        let weights: Vec<f64> = exact.iter().map(|&weight| round(weight as f32)).collect();
        // Of an exponential, and of the sums in f32 that it is taken from.
        let error = 2f64.powi(-13) + 3e-5;
        let jump = |weight: f64| {
            let [low, high] = [1.0 - error, 1.0 + error].map(|e| round((weight * e) as f32));
            if in_pairs { high - low } else { 0.0 }
        };
        let jumps: Vec<f64> = exact.iter().map(|&weight| jump(weight)).collect();
        let sum: f64 = weights.iter().sum();
        let blind = c.causal && i as i64 + (c.t as i64) < c.s as i64;
        for x in 0..c.e {
            let value = |j: usize| round(v[((b * c.t + j) * c.g + group) * c.e + x]);
            let y = (0..c.t).map(|j| weights[j] * value(j)).sum::<f64>() / sum;
            let off = (0..c.t).map(|j| jumps[j] * (value(j) - y).abs()).sum::<f64>() / sum;
            out.push(if blind { 0.0 } else { y as f32 });
            slack.push(if blind { 0.0 } else { off as f32 });
        }
    }
    (out, slack)
}

/// \[b, s, h, d\] seen as \[b, h, s, d\].
fn heads_first(v: &View) -> View {
    let mut v = v.clone();
    v.shape.swap(1, 2);
    v.strides.swap(1, 2);
    v
}

fn check(c: &Case) {
    for precision in [Precision::F32, Precision::Bf16] {
        check_in(c, precision);
    }
}

fn check_in(c: &Case, precision: Precision) {
    let mut p = Problem::default();
    let (b, s, t) = (dim("b"), dim("s"), dim("t"));
    let of = |seq: &Dim, heads: usize, depth: usize| {
        [b.clone(), seq.clone(), Dim::from(heads), Dim::from(depth)]
    };
    let q = p.input(Elem::F32, &of(&s, c.h, c.d));
    let k = p.input(Elem::F32, &of(&t, c.g, c.d));
    let v = p.input(Elem::F32, &of(&t, c.g, c.e));
    let y = p.output(Elem::F32, &of(&s, c.h, c.e));
    let mut args = vec![heads_first(&q), heads_first(&k), heads_first(&v)];
    let full = [c.b, c.h, c.s, c.t];
    let kept = [[false; 4], [true, false, false, true], [false, false, true, true], [true; 4]];
    let kept = kept[c.mask.min(3)];
    let mut mask_shape: Vec<usize> = (0..4).map(|a| if kept[a] { full[a] } else { 1 }).collect();
    let names = [b.clone(), Dim::from(c.h), s.clone(), t.clone()];
    let mut dims: Vec<Dim> =
        (0..4).map(|a| if kept[a] { names[a].clone() } else { Dim::one() }).collect();
    if c.mask == 4 {
        dims.swap(2, 3);
        mask_shape.swap(2, 3);
    }
    if c.mask > 0 {
        let mut m = p.input(Elem::F32, &dims);
        if c.mask == 4 {
            m.shape.swap(2, 3);
            m.strides.swap(2, 3);
        }
        for (stride, _) in m.strides.iter_mut().zip(kept).filter(|(_, kept)| !kept) {
            *stride = Dim::zero();
        }
        m.shape = names.to_vec();
        args.push(m);
    }
    let scale = 1.0 / (c.d as f32).sqrt();
    let kernel = Kernel::Attention { scale, causal: c.causal, mask: c.mask > 0, precision };
    p.step(kernel, args, vec![heads_first(&y)]);
    let mut r = Random::new((c.s * c.t + c.d) as u64);
    let (q, k) = (r.floats(c.b * c.s * c.h * c.d, 2.0), r.floats(c.b * c.t * c.g * c.d, 2.0));
    let v = r.floats(c.b * c.t * c.g * c.e, 2.0);
    let mut m = r.floats(mask_shape.iter().product(), 3.0);
    for x in m.iter_mut().skip(1).step_by(5) {
        *x = f32::NEG_INFINITY;
    }
    if c.t == 1 {
        m.fill(0.5);
    }
    let mask = |at: [usize; 4]| {
        if c.mask == 0 {
            return 0.0;
        }
        let mut at: Vec<usize> = (0..4).map(|a| if kept[a] { at[a] } else { 0 }).collect();
        if c.mask == 4 {
            at.swap(2, 3);
        }
        m[offset(&mask_shape, &at)]
    };
    let (exact, _) = reference(c, &q, &k, &v, &mask, Precision::F32);
    let (paired, slack) = reference(c, &q, &k, &v, &mask, Precision::Bf16);
    let shapes = [[c.b, c.s, c.h, c.d], [c.b, c.t, c.g, c.d], [c.b, c.t, c.g, c.e]];
    let mut inputs: Vec<(&[usize], Vec<u8>)> =
        vec![(&shapes[0], f32_bytes(&q)), (&shapes[1], f32_bytes(&k)), (&shapes[2], f32_bytes(&v))];
    if c.mask > 0 {
        inputs.push((&mask_shape, f32_bytes(&m)));
    }
    let what = format!(
        "b{} h{} g{} s{} t{} d{} e{} causal {} mask {}",
        c.b, c.h, c.g, c.s, c.t, c.d, c.e, c.causal, c.mask
    );
    for (level, out) in levels().into_iter().zip(p.run(&inputs)) {
        let in_pairs = precision == Precision::Bf16 && level.has_bf16() && c.d.is_multiple_of(2);
        if in_pairs {
            let out = to_f32(&out[0]);
            assert_eq!(out.len(), paired.len(), "{what}");
            for (at, (x, (want, slack))) in out.iter().zip(paired.iter().zip(&slack)).enumerate() {
                let fits = (x - want).abs() <= 1.1 * slack + 1e-5;
                let nothing = x.is_nan() && want.is_nan();
                assert!(fits || nothing, "{what}: element {at} is {x}, not {want} within {slack}");
            }
        } else {
            // Coarse exponentials are within 2^-13, and values at most 4 apart.
            let coarse = precision == Precision::Bf16 && level.has_avx512();
            let off = if coarse { 4.0 * 2f32.powi(-13) } else { 3e-6 };
            assert_close(&to_f32(&out[0]), &exact, off, 1e-5, &what);
        }
    }
}

#[test]
fn attention_of_all_shapes() {
    let sizes = [(1, 1), (7, 7), (16, 16), (33, 33), (1, 40), (31, 67), (40, 17), (70, 70)];
    let depths = [(32, 32), (64, 64), (7, 5), (16, 40)];
    for (i, (s, t)) in sizes.into_iter().enumerate() {
        for causal in [false, true] {
            let (d, e) = depths[(i + usize::from(causal)) % 4];
            check(&Case { b: 2, h: 4, g: 2, s, t, d, e, causal, mask: i % 5 });
        }
    }
}

#[test]
fn attention_with_every_mask() {
    for mask in 0..5 {
        for causal in [false, true] {
            check(&Case { b: 2, h: 3, g: 3, s: 37, t: 37, d: 32, e: 32, causal, mask });
            check(&Case { b: 1, h: 6, g: 2, s: 5, t: 21, d: 64, e: 64, causal, mask });
        }
    }
}
