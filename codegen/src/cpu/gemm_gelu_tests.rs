//! Codes of a GELU: the same at all levels, and those of the exact one but near ties.

use super::*;

/// `x * (1 + erf(x / sqrt(2))) / 2`, by a series without cancellation.
fn gelu(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return x.max(0.0);
    }
    let a = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let (mut term, mut sum) = (a, a);
    for n in 1..400 {
        term *= 2.0 * a * a / f64::from(2 * n + 1);
        sum += term;
    }
    let erf = std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum;
    0.5 * x * (1.0 + erf.copysign(x))
}

#[test]
fn codes_of_a_gelu_are_exact_but_near_ties() {
    for (seed, (rows, k, n)) in [(96, 64, 128), (33, 70, 50), (5, 448, 49)].into_iter().enumerate()
    {
        for (signed, bits) in [(true, 8), (false, 8), (true, 4)] {
            let output = GemmOutput::Codes { signed, bits };
            let input = GemmInput::Codes { signed: true };
            let mut case = Case::new(seed as u64, rows, k, n, input, output).biased();
            case.desc.epilogue = Expr::unary(UnaryOp::Gelu, case.desc.epilogue);
            // Arguments of some units, most of them small.
            case.scale.iter_mut().for_each(|scale| *scale *= 0.05);
            let products = case.products();
            assert!(products.iter().any(|x| x.abs() > 1.0), "arguments are not all near zero");
            let accepts = |i: usize, code: u8| {
                let x = f64::from(products[i] + case.bias[i % n]);
                let bound = 2f64.powi(-21) * x.abs().max(1.0);
                [-bound, bound].into_iter().any(|error| {
                    let wide = wide_code((gelu(x) + error) as f32, case.inverse[i % n], signed);
                    case.code(i % n, wide, signed, bits) == code
                })
            };
            let blobs = blobs(&case.desc);
            let codes = case.run(&blobs[0].1);
            for (i, &code) in codes.iter().enumerate() {
                assert!(accepts(i, code), "{}: {code} at {i}", case.name());
            }
            for (level, blob) in &blobs {
                assert!(case.run(blob) == codes, "{level}: {}", case.name());
            }
        }
    }
}
