//! What flattening promises: after smoothing and flattening, before any rounding, a model computes
//! what it did; and the accumulators of its integer products are those of wide, unflattened codes.

use anyhow::{Context as _, Result, ensure};
use fqbin::Level;
use fqc::calibrate::{self, Data};
use fqc::data::{Batch, Rare};
use fqc::pipeline;
use fqc::settings::{Rounding, Settings};
use fqc_codegen::cpu::generate;
use fqc_interp::{Data as Values, Tensor, evaluate};
use fqc_ir::quant::q_max;
use fqc_ir::{Graph, NodeId, Op, Quantizer};
use fqc_passes::quant::choose::mean_extra;
use fqc_passes::quant::groups;
use fqc_passes::quant::passes::Choices;
use fqc_tests::calibrated::{
    as_batches, choices, quietly, real_model, text, tiny_inputs, tiny_models,
};
use fqc_tests::compare::{Tolerance, compare};
use fqc_tests::runtime::{self, Runtime};
use fqrt::{Model, Session, SessionOptions, TensorView};

/// Of the largest magnitude of an output: sums in f32, in another order.
const TOLERANCE: Tolerance = Tolerance { absolute: 0.0, relative: 0.0, of_largest: 1e-5 };

/// The graph after smoothing and flattening; every group must have been rewritten.
fn flattened(float: &Graph, choices: &Choices, settings: &Settings) -> Result<Graph> {
    let mut graph = float.clone();
    quietly(|cx| pipeline::run(&mut graph, &pipeline::exact(choices, settings), cx))?;
    let groups = groups::find(float, settings.heads()).len();
    let is_flatten = |id: &NodeId| matches!(graph.node(*id).op, Op::Flatten { .. });
    let flat = graph.ids().iter().filter(|id| is_flatten(id)).count();
    ensure!(groups > 0 && flat == groups, "{flat} of {groups} groups are flattened");
    Ok(graph)
}

#[test]
fn tiny_models_stay_the_same() -> Result<()> {
    let (mut failed, mut tails) = (Vec::new(), 0);
    let models = tiny_models()?;
    for (name, float) in &models {
        let settings = Settings::default();
        let data = as_batches(&tiny_inputs(name, float, 1)?)?;
        let choices = choices(float, &settings, &data).context(name.clone())?;
        let graph = flattened(float, &choices, &settings).context(name.clone())?;
        tails += usize::from(choices.values().any(|c| !c.map.tail.is_empty()));
        // Other tokens than those of the calibration: the last slice is not cut off.
        for given in tiny_inputs(name, float, 2)? {
            let (got, want) = (evaluate(&graph, &given)?, evaluate(float, &given)?);
            for ((output, want), (_, got)) in want.iter().zip(&got) {
                match compare(got, want, TOLERANCE) {
                    Ok(report) => println!("{name} {output}: {report}"),
                    Err(error) => failed.push(format!("{name} {output}: {error}")),
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(models.len() >= 16 && tails >= 16, "{tails} of {} have a tail", models.len());
    Ok(())
}

/// The outputs of a graph on the CPU backend.
fn outputs(graph: &Graph, batch: &Batch) -> Result<Vec<(String, Tensor)>> {
    let target = quietly(|cx| pipeline::float_target(graph, cx))?;
    let model = Model::from_parts(target.program, &target.weights, &target.code, None)?;
    let mut session = Session::new(&model, SessionOptions::threads(2))?;
    let inputs: Vec<(&str, TensorView<'_>)> =
        batch.iter().map(|(name, t)| (name.as_str(), t.view())).collect();
    let outputs = session.run(&inputs)?;
    let floats = outputs.iter().filter_map(|(name, t)| {
        Some((name.to_owned(), Tensor::f32(t.shape(), t.numbers::<f32>()?)))
    });
    Ok(floats.collect())
}

/// A fetched model on the CPU backend, calibrated on one novel and run on another.
fn real_model_stays_the_same(name: &str, windows: usize, window: usize) -> Result<()> {
    let float = real_model(name)?;
    let settings = Settings::default();
    let choices = choices(&float, &settings, &text(&float, name, "emma", windows, window)?)?;
    let unseen = text(&float, name, "persuasion", 1, 16)?;
    let want = outputs(&float, &unseen[0])?;
    let graph = flattened(&float, &choices, &settings)?;
    drop(float);
    let got = outputs(&graph, &unseen[0])?;
    ensure!(!want.is_empty() && want.len() == got.len(), "{} outputs", got.len());
    for ((output, want), (_, got)) in want.iter().zip(&got) {
        let report = compare(got, want, TOLERANCE)
            .map_err(|error| anyhow::anyhow!("{name} {output}: {error}"))?;
        println!(
            "{name} {output}, {:.1} % extra channels: {report}",
            100.0 * mean_extra(choices.values())
        );
    }
    Ok(())
}

#[test]
fn minilm_stays_the_same() -> Result<()> {
    real_model_stays_the_same("minilm", 16, 128)
}

#[test]
fn smollm2_stays_the_same() -> Result<()> {
    real_model_stays_the_same("smollm2", 4, 64)
}

/// The floats that a node quantises, as a node without the quantisation, and the quantizer.
fn unquantised(graph: &mut Graph, id: NodeId) -> Result<(NodeId, Quantizer)> {
    let operands = graph.operands(id);
    let (op, out) = match graph.node(id).op.clone() {
        Op::Quantize(out) => return Ok((operands[0], Quantizer::clone(&out))),
        Op::LayerNormQuantize { epsilon, out } => (Op::LayerNorm { epsilon }, out),
        Op::RmsNormQuantize { epsilon, out } => (Op::RmsNorm { epsilon }, out),
        Op::PointwiseQuantize { expr, out } => (Op::Pointwise(expr), out),
        Op::Gemm { epilogue, out: Some(out) } => (Op::Gemm { epilogue, out: None }, out),
        op => anyhow::bail!("`{}` gives no codes", op.mnemonic()),
    };
    let name = format!("{}.float", graph.node(id).name);
    let real = graph.add(name, op, &operands)?;
    Ok((real, Quantizer::clone(&out)))
}

fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    Ok(match tensor.data() {
        Values::I32(v) => v.iter().map(|&v| i64::from(v)).collect(),
        Values::I8(v) => v.iter().map(|&v| i64::from(v)).collect(),
        Values::U8(v) => v.iter().map(|&v| i64::from(v)).collect(),
        _ => anyhow::bail!("{} is no integer", tensor.elem()),
    })
}

/// The sums of rows of real values, each rounded to one wide integer a channel, with the weights'
/// first rows. A channel with `n` digits holds `n` times the largest digit.
fn wide_sums(rows: &[f32], quantizer: &Quantizer, w: &[i32], columns: usize) -> Vec<i64> {
    let map = quantizer.quant.flatten.as_ref().expect("the pipeline flattens every group");
    let top = i64::from(q_max(quantizer.quant.bits, quantizer.quant.signed));
    let mut most = vec![top; map.base as usize];
    map.tail.iter().for_each(|&(j, _)| most[j as usize] += top);
    let mut sums = Vec::new();
    for row in rows.chunks_exact(most.len()) {
        let begin = sums.len();
        sums.resize(begin + columns, 0);
        for ((j, &x), &most) in row.iter().enumerate().zip(&most) {
            let low = if quantizer.quant.signed { -most } else { 0 };
            let wide = (x * quantizer.inverse(j)).round_ties_even() as i64;
            let wide = wide.clamp(low, most);
            for (sum, w) in sums[begin..].iter_mut().zip(&w[j * columns..][..columns]) {
                *sum += wide * i64::from(*w);
            }
        }
    }
    sums
}

/// Adds, as outputs, the floats behind every quantised product and its bare accumulator; the
/// quantizers and weight codes by product.
fn with_accumulators(graph: &mut Graph) -> Result<Vec<(Quantizer, NodeId)>> {
    let mut products = Vec::new();
    graph.set_outputs(Vec::new());
    for id in graph.ids() {
        let operands = graph.operands(id);
        let codes = operands.first().is_some_and(|&x| graph.node(x).ty.quant.is_some());
        if !codes || !matches!(graph.node(id).op, Op::Gemm { .. }) {
            continue;
        }
        let name = graph.node(id).name.clone();
        let (real, quantizer) = unquantised(graph, operands[0])?;
        let sums = graph.add(format!("{name}.sums"), Op::GemmAccumulate, &operands[..2])?;
        graph.add_output(format!("{name}.x"), real);
        graph.add_output(format!("{name}.sums"), sums);
        products.push((quantizer, operands[1]));
    }
    Ok(products)
}

/// That all accumulators of a compiled graph equal those of wide codes, in the interpreter and on the
/// CPU at these levels; how many columns of how many products there are.
fn check_accumulators(
    mut graph: Graph,
    levels: &[Level],
    inputs: &[(String, Tensor)],
) -> Result<(usize, usize)> {
    let products = with_accumulators(&mut graph)?;
    let mut runs = vec![("interpreter", evaluate(&graph, inputs)?)];
    let target = generate(&runtime::lower(&graph)?, levels)?;
    let mut cpus = runtime::sessions(&target, levels)?;
    for cpu in &mut cpus {
        let values = cpu.run(inputs)?;
        runs.push((cpu.name(), values));
    }
    let mut all_columns = 0;
    for (i, (quantizer, w)) in products.iter().enumerate() {
        let Op::Const(w) = &graph.node(*w).op else { anyhow::bail!("product {i} has no weight") };
        let columns = w.shape[1];
        let base = quantizer.quant.flatten.as_ref().context("flattened")?.base as usize;
        let codes = w.to_i64().context("codes are integers")?;
        let w: Vec<i32> = codes[..base * columns].iter().map(|&c| c as i32).collect();
        for (runtime, values) in &runs {
            let [(_, x), (name, sums)] = &values[2 * i..2 * i + 2] else { continue };
            let x = x.as_f32().context("the activation is f32")?;
            let same = integers(sums)? == wide_sums(x, quantizer, &w, columns);
            ensure!(same, "{runtime}: `{name}` differs");
        }
        all_columns += columns;
    }
    Ok((products.len(), all_columns))
}

#[test]
fn accumulators_equal_those_of_wide_integers() -> Result<()> {
    let settings = Settings { levels: Vec::new(), ..Settings::default() };
    for (name, float) in tiny_models()? {
        let data = as_batches(&tiny_inputs(&name, &float, 1)?)?;
        let compiled = quietly(|cx| pipeline::compile(float.clone(), &settings, |_| Ok(data), cx))?;
        for given in tiny_inputs(&name, &float, 3)? {
            let (products, _) =
                check_accumulators(compiled.graph.clone(), &[], &given).context(name.clone())?;
            ensure!(products > 0, "{name} has no quantised product");
        }
    }
    Ok(())
}

/// The same for a fetched model, calibrated on one novel and run on four tokens of another.
fn check_real_model(name: &str, windows: usize, window: usize) -> Result<(usize, usize)> {
    // The copies of a channel have the same weights; GPTQ gives each its own.
    let rounding = Rounding::Nearest;
    let settings = Settings { levels: Vec::new(), rounding, ..Settings::default() };
    let float = real_model(name)?;
    let seen = text(&float, name, "emma", windows, window)?;
    let unseen = text(&float, name, "persuasion", 1, 4)?;
    let (heads, rare) = (settings.heads(), Rare::default());
    let statistics = quietly(|cx| calibrate::run(&float, heads, &seen, &rare, cx))?;
    // Without the samples, no time goes into measuring what errors cost.
    let data = Data { statistics: Some(statistics), ..Data::default() };
    let graph = quietly(|cx| pipeline::compile(float, &settings, |_| Ok(data), cx))?.graph;
    let given: Vec<(String, Tensor)> = unseen[0]
        .iter()
        .map(|(name, t)| {
            let tokens = t.numbers::<i64>().context("tokens are i64")?;
            Ok((name.clone(), Tensor::i64(t.shape(), tokens)))
        })
        .collect::<Result<_>>()?;
    let (products, columns) = check_accumulators(graph, &runtime::levels()?, &given)?;
    println!("{products} products of {name}, {columns} columns, equal those of wide integers");
    Ok((products, columns))
}

#[test]
fn accumulators_of_minilm_equal_those_of_wide_integers() -> Result<()> {
    let checked = check_real_model("minilm", 16, 128)?;
    // Six layers; q, k and v are merged.
    ensure!(checked == (24, 6 * (3 * 384 + 384 + 1536 + 384)), "{checked:?}");
    Ok(())
}

#[test]
fn accumulators_of_smollm2_equal_those_of_wide_integers() -> Result<()> {
    let checked = check_real_model("smollm2", 2, 48)?;
    // 30 layers of seven linears each; q, k and v are merged, and so are gate and up.
    let columns = (576 + 2 * 192) + 576 + 2 * 1536 + 576;
    ensure!(checked == (30 * 4, 30 * columns), "{checked:?}");
    Ok(())
}
