//! Linears that are awkward to quantise, all in one graph each: shared weights, inputs that are inputs
//! or outputs of the model, linears that read linears, widths of one and of primes, dead channels,
//! zero columns, values at the edges of f32, the model's own multiplication by a constant row. The
//! compiled graph must be near the float one, and every level near the interpreter.

use anyhow::{Context as _, Result, ensure};
use fqc::pipeline;
use fqc::settings::{LmHead, Method, Settings};
use fqc_interp::{Binding, Tensor, evaluate};
use fqc_ir::text::{Blobs, parse};
use fqc_ir::{Elem, Graph, Op};
use fqc_tests::calibrated::{as_batches, quietly};
use fqc_tests::compare::{Tolerance, report};
use fqc_tests::generate::inputs;
use fqc_tests::runtime::{Named, Runtime, levels, sessions};

/// Of the largest output, for one rounding of weights and activations to INT8 and what follows it.
const ROUNDING: f64 = 3e-2;

/// Of the largest output: a float that differs in its last bit may round to the next code.
const LEVELS: f64 = 1e-2;

/// Products of codes in a graph.
fn products(graph: &Graph) -> usize {
    let codes = |id| graph.operand(id, 0).is_some_and(|x| graph.node(x).ty.quant.is_some());
    let gemm = |id| matches!(graph.node(id).op, Op::Gemm { .. });
    graph.ids().into_iter().filter(|&id| gemm(id) && codes(id)).count()
}

/// Largest difference of each output, as a share of its largest value.
fn check(got: &Named, want: &Named, share: f64, what: &str) -> Result<()> {
    for (name, want) in want {
        let (_, got) = got.iter().find(|(n, _)| n == name).context("every output is there")?;
        let report = report(got, want, Tolerance::of_largest(share));
        ensure!(report.off == 0, "{what}, `{name}`: {report}");
    }
    Ok(())
}

/// Compiles a graph with random calibration data; `expected` products must be on codes.
fn compile_and_compare(text: &str, sizes: &[(&str, i64)], expected: usize) -> Result<()> {
    let float = parse(text, &Blobs::new())?;
    let sizes: Binding = sizes.iter().copied().collect();
    let given: Vec<Named> = (0..16).map(|seed| inputs(&float, &sizes, seed)).collect();
    let levels = levels()?;
    let settings = Settings {
        method: Method::Flattenquant,
        levels: levels.iter().map(|l| l.name().to_owned()).collect(),
        lm_head: LmHead::Int8,
        ..Settings::default()
    };
    let data = as_batches(&given)?;
    let compiled = quietly(|cx| pipeline::compile(float.clone(), &settings, |_| Ok(data), cx))?;
    let found = products(&compiled.graph);
    ensure!(found == expected, "{found} quantised products, want {expected}");
    let mut cpus = sessions(&compiled.target, &levels)?;
    for given in &given[..2] {
        let (want, codes) = (evaluate(&float, given)?, evaluate(&compiled.graph, given)?);
        check(&codes, &want, ROUNDING, "float and interpreter")?;
        for cpu in &mut cpus {
            check(&cpu.run(given)?, &codes, LEVELS, cpu.name())?;
        }
    }
    Ok(())
}

#[test]
fn shared_weights_chains_and_outputs() -> Result<()> {
    let text = "graph @shared {
  %w: f32[5,5] = const {rand=1, in=[-1.0, 1.0]}
  %v: f32[5,3] = const {rand=2, in=[-1.0, 1.0]}
  %x: f32[n,5] = input
  %z: f32[2,n,5] = input
  %a: f32[n,5] = matmul %x, %w
  %b: f32[n,5] = matmul %a, %w
  %c: f32[n,3] = matmul %a, %v
  %d: f32[2,n,5] = matmul %z, %w
  %e: f32[2,n,5] = add %d, %z
  return %x as x, %a as a, %b as b, %c as c, %e as e
}
";
    // The two linears that read %a become one product.
    compile_and_compare(text, &[("n", 7)], 3)
}

#[test]
fn unsigned_codes_and_own_multiplications() -> Result<()> {
    let text = "graph @own {
  %w: f32[67,67] = const {rand=1, in=[-0.3, 0.3]}
  %v: f32[67,9] = const {rand=2, in=[-0.3, 0.3]}
  %gain: f32[67] = const {rand=3, in=[0.1, 9.0]}
  %x: f32[n,67] = input
  %a: f32[n,67] = matmul %x, %w
  %r: f32[n,67] = relu %a
  %b: f32[n,9] = matmul %r, %v
  %g: f32[n,67] = mul %x, %gain
  %c: f32[n,9] = matmul %g, %v
  %h: f32[n,67] = mul %r, %gain
  %d: f32[n,9] = matmul %h, %v
  return %b as b, %c as c, %d as d
}
";
    compile_and_compare(text, &[("n", 5)], 4)
}

#[test]
fn dead_channels_zero_columns_and_width_one() -> Result<()> {
    let text = "graph @dead {
  %mask: f32[4] = const {dense=[1.0, 0.0, 1e-30, 100.0]}
  %w: f32[4,3] = const {dense=[0.0, 1.0, 0.5, 0.0, 2.0, 0.5, 0.0, 3.0, -0.5, 0.0, 0.0, 0.0]}
  %one: f32[1,2] = const {dense=[0.5, -2.0]}
  %tiny: f32[4,1] = const {dense=[1e-41, -1e-41, 0.0, 1e-42]}
  %x: f32[n,4] = input
  %y: f32[n,1] = input
  %m: f32[n,4] = mul %x, %mask
  %a: f32[n,3] = matmul %m, %w
  %b: f32[n,2] = matmul %y, %one
  %t: f32[n,1] = matmul %x, %tiny
  %c: f32[n,1] = add %t, %y
  return %a as a, %b as b, %c as c
}
";
    compile_and_compare(text, &[("n", 6)], 3)
}

/// What cannot be quantised stays in float, and the rest is.
#[test]
fn weights_without_a_scale_stay_in_float() -> Result<()> {
    let text = "graph @edges {
  %inf: f32[2,2] = const {dense=[1.0, inf, 2.0, 3.0]}
  %huge: f32[2,2] = const {dense=[1e30, 1.0, 2.0, 3.0]}
  %w: f32[2,2] = const {dense=[1.0, -0.5, 0.25, 2.0]}
  %scale: f32[] = const {dense=[1e30]}
  %x: f32[n,2] = input
  %y: f32[n,2] = input
  %z: f32[n,2] = input
  %big: f32[n,2] = mul %z, %scale
  %a: f32[n,2] = matmul %x, %inf
  %b: f32[n,2] = matmul %y, %huge
  %c: f32[n,2] = matmul %z, %w
  %d: f32[n,2] = matmul %big, %w
  return %a as a, %b as b, %c as c, %d as d
}
";
    compile_and_compare(text, &[("n", 3)], 1)
}

/// No row was seen: there is nothing to choose by.
#[test]
fn empty_calibration_leaves_the_model_in_float() -> Result<()> {
    let text = "graph @empty {
  %w: f32[2,2] = const {dense=[1.0, -0.5, 0.25, 2.0]}
  %x: f32[n,2] = input
  %a: f32[n,2] = matmul %x, %w
  return %a as a
}
";
    let float = parse(text, &Blobs::new())?;
    let settings = Settings {
        lm_head: LmHead::Int8,
        levels: vec![levels()?[0].name().to_owned()],
        ..Settings::default()
    };
    let data = as_batches(&[vec![("x".to_owned(), Tensor::zeros(Elem::F32, &[0, 2]))]])?;
    let compiled = quietly(|cx| pipeline::compile(float, &settings, |_| Ok(data), cx))?;
    ensure!(products(&compiled.graph) == 0, "a linear without statistics is quantised");
    Ok(())
}
