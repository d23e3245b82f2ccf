//! Random graphs over every operation: the passes keep what the interpreter computes, and the CPU
//! backend computes it too, at every level that this machine has.

use anyhow::{Context, Result, anyhow, ensure};
use fqc_codegen::cpu::generate;
use fqc_interp::{Tensor, evaluate};
use fqc_ir::op::PadMode;
use fqc_ir::testing::{random_graph, random_inputs};
use fqc_ir::{Const, Dim, Graph, Op, Quant, Quantizer, Scale, Type};
use fqc_passes::quant::passes::{fold_qdq, fold_quantize};
use fqc_passes::{Runner, clean, fuse};
use fqc_tests::compare::{Tolerance, report};
use fqc_tests::generate::Random;
use fqc_tests::local::{Visible, compare, expose};
use fqc_tests::runtime;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of the random graphs, how many the backend must take.
const SHARE_THAT_COMPILES: f64 = 0.98;

/// Values for `b` and `s`.
const SIZES: [(i64, i64); 3] = [(1, 1), (2, 5), (3, 17)];

fn inputs(graph: &Graph, (b, s): (i64, i64), seed: u64) -> Result<Vec<(String, Tensor)>> {
    let binding = |name: &str| Some(if name == "b" { b } else { s });
    let inputs = random_inputs(graph, &binding, seed).context("every size has a value")?;
    Ok(inputs.into_iter().map(|(name, c)| (name, Tensor::from_const(&c))).collect())
}

/// The way of a compilation, without calibration.
fn passes(graph: &Graph) -> Result<Graph> {
    let mut graph = graph.clone();
    let mut runner = Runner::new();
    runner.run(&mut graph, &clean::passes())?;
    runner.run(&mut graph, &fuse::refuse())?;
    runner.run(&mut graph, &[Box::new(fold_qdq())])?;
    runner.run(&mut graph, &fuse::fuse())?;
    runner.run(&mut graph, &[Box::new(fold_quantize())])?;
    Ok(graph)
}

/// How a graph fared on the backend.
enum Outcome {
    /// So many results of each operation were compared.
    Agrees(BTreeMap<&'static str, usize>),
    /// Cleanly, with this message.
    Refused(String),
    Wrong(anyhow::Error),
}

fn on_cpu(seed: u64) -> Result<Outcome> {
    let mut random = Random::new(seed);
    let mut graph = random_graph(seed, 12 + random.below(24) as usize);
    if random.below(2) == 0 {
        graph = passes(&graph)?;
    }
    let visible = [Visible::Needed, Visible::Half, Visible::All][random.below(3) as usize];
    let (exposed, seen) = expose(&graph, visible, &mut random);
    let levels = runtime::levels()?;
    let plan = match runtime::lower(&exposed) {
        Ok(plan) => plan,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let target = match generate(&plan, &levels) {
        Ok(target) => target,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let mut counts = BTreeMap::new();
    for mut cpu in runtime::sessions(&target, &levels)? {
        for sizes in SIZES {
            let inputs = inputs(&exposed, sizes, seed)?;
            let compared = compare(&exposed, &seen, &mut cpu, &inputs);
            match compared.with_context(|| format!("{visible:?}, {sizes:?}")) {
                Ok(names) => names.into_iter().for_each(|n| *counts.entry(n).or_insert(0) += 1),
                Err(error) => return Ok(Outcome::Wrong(error)),
            }
        }
    }
    Ok(Outcome::Agrees(counts))
}

/// A seed range for trying more than the suite does.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let first = number("FQC_FIRST_SEED").unwrap_or(0);
    first..first + number("FQC_SEEDS").unwrap_or(default)
}

#[test]
fn the_backend_agrees_with_the_interpreter() -> Result<()> {
    let (mut agreed, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    let mut operations = BTreeMap::<&str, usize>::new();
    for seed in seeds(60) {
        match on_cpu(seed).with_context(|| format!("seed {seed}"))? {
            Outcome::Agrees(counts) => {
                agreed += 1;
                counts
                    .into_iter()
                    .for_each(|(n, count)| *operations.entry(n).or_insert(0) += count);
            }
            Outcome::Refused(why) => refused.push(format!("seed {seed}: {why}")),
            Outcome::Wrong(error) => wrong.push(format!("seed {seed}: {error:#}")),
        }
    }
    println!("{agreed} agree, {} refused:\n{}", refused.len(), refused.join("\n"));
    println!("compared: {operations:?}");
    ensure!(wrong.is_empty(), "{} graphs are wrong:\n{}", wrong.len(), wrong.join("\n"));
    let all = agreed + refused.len();
    let share = agreed as f64 / all as f64;
    ensure!(share >= SHARE_THAT_COMPILES, "only {agreed} of {all} graphs compile");
    ensure!(operations.len() >= 40, "only {} operations were compared", operations.len());
    Ok(())
}

/// What the random graphs do not have: symbolic axes that run backwards, padding by symbols.
#[test]
fn reversed_axes_and_symbolic_padding() -> Result<()> {
    let mut graph = Graph::new("edges");
    let (b, s, one) = (Dim::sym("b"), Dim::sym("s"), Dim::one());
    let shape = vec![b.clone(), s.clone(), Dim::from(4i64)];
    let x = graph.add("x", Op::Input(Type::f32(shape.clone())), &[])?;
    let ends = vec![b.clone() - one.clone(), s - one.clone(), Dim::from(3i64)];
    let turned = Op::Slice { start: ends, len: shape.clone(), step: vec![-1, -1, -1] };
    let turned = graph.add("turned", turned, &[x])?;
    let mut len = shape;
    len[2] = Dim::from(2i64);
    let start = vec![Dim::zero(), Dim::zero(), Dim::from(3i64)];
    let skipped = Op::Slice { start, len, step: vec![1, 1, -2] };
    let skipped = graph.add("skipped", skipped, &[turned])?;
    let fill = graph.add("fill", Op::Const(Const::f32(vec![], &[7.0])), &[])?;
    let (before, after) =
        (vec![one.clone(), b, Dim::from(2i64)], vec![Dim::zero(), one, Dim::one()]);
    let padded = Op::Pad { before, after, mode: PadMode::Constant };
    let padded = graph.add("padded", padded, &[skipped, fill])?;
    graph.add_output("y", padded);
    let mut random = Random::new(1);
    for visible in [Visible::Needed, Visible::All] {
        let (exposed, seen) = expose(&graph, visible, &mut random);
        for mut cpu in runtime::cpu(&exposed)? {
            for sizes in SIZES {
                compare(&exposed, &seen, &mut cpu, &inputs(&exposed, sizes, 5)?)?;
            }
        }
    }
    Ok(())
}

#[test]
fn outputs_of_codes_are_refused() -> Result<()> {
    let mut graph = Graph::new("codes");
    let x = graph.add("x", Op::Input(Type::f32(vec![Dim::sym("b"), Dim::from(3i64)])), &[])?;
    let quant = Quant { scale: Scale::Tensor(0.5), bits: 8, signed: true, flatten: None };
    let quantizer = Arc::new(Quantizer::per_tensor(Arc::new(quant)));
    let codes = graph.add("codes", Op::Quantize(quantizer), &[x])?;
    graph.add_output("y", codes);
    let error = runtime::lower(&graph).map(|_| ()).unwrap_err().to_string();
    ensure!(error.starts_with("output `y` is quantised (i8["), "{error}");
    Ok(())
}

/// Rounding of a few operations in another order.
const REORDERED: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-4, of_largest: 1e-5 };

#[test]
fn the_passes_keep_the_values() -> Result<()> {
    let mut wrong = Vec::new();
    for seed in seeds(300) {
        let before = random_graph(seed, 12 + seed as usize % 40);
        let after = passes(&before).with_context(|| format!("seed {seed}"))?;
        let inputs = inputs(&before, SIZES[seed as usize % SIZES.len()], seed)?;
        let run = |graph: &Graph| evaluate(graph, &inputs).map_err(|e| anyhow!("seed {seed}: {e}"));
        for ((name, want), (_, got)) in run(&before)?.iter().zip(&run(&after)?) {
            let tolerance = if want.elem().is_float() { REORDERED } else { Tolerance::EXACT };
            let report = report(got, want, tolerance);
            if report.off > 0 {
                wrong.push(format!("seed {seed}, output `{name}`: {report}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} outputs:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
