//! A tiny OPT with the channels of a large one: some channels of every norm, and of every ReLU, are made
//! hundreds of times larger and the weights behind them as much smaller. In float nothing changes;
//! static INT8 collapses, and flattening holds it.

use anyhow::{Context as _, Result, ensure};
use fqc::evaluate::{self, Scores};
use fqc::pipeline;
use fqc::progress::Verbosity;
use fqc::score::Against;
use fqc::settings::{Method, Rounding, Settings};
use fqc::text::Text;
use fqc_interp::evaluate;
use fqc_ir::{BinaryOp, Const, Graph, NodeId, Op, Patch, UnaryOp, Value};
use fqc_passes::quant::groups::{self, Group, Heads, linear};
use fqc_tests::calibrated::{as_batches, quietly, tiny_inputs, tiny_models};
use fqc_tests::generate::Random;
use fqrt::{Model, SessionOptions};
use std::sync::Arc;

/// Channels of each norm and each ReLU that are made larger.
const CHANNELS: [usize; 3] = [3, 21, 50];

/// By how much: powers of two, so that no float is rounded differently.
const FACTORS: [f32; 3] = [64.0, 256.0, 1024.0];

/// A constant of rank one or two with some of its rows, or of its last axis, multiplied.
fn scaled(
    graph: &Graph,
    id: NodeId,
    last_axis: bool,
    factor: impl Fn(f32) -> f32,
) -> Option<Const> {
    let Op::Const(value) = &graph.node(id).op else { return None };
    let mut values = value.to_f32()?;
    let width = *value.shape.last()?;
    for (channel, by) in CHANNELS.into_iter().zip(FACTORS) {
        for (i, v) in values.iter_mut().enumerate() {
            let at = if last_axis { i % width } else { i / width };
            *v *= if at == channel { factor(by) } else { 1.0 };
        }
    }
    Some(Const::f32(value.shape.clone(), &values))
}

/// Adds the maker of a group's input with larger channels to a patch: the norm, with gain and bias
/// scaled, or the ReLU, with weight and bias of the linear before it scaled. `None` if the value is
/// made in another way or read by others too.
fn enlarged(graph: &Graph, group: &Group, patch: &mut Patch) -> Option<Value> {
    if graph.use_count(group.input) != group.linears.len() {
        return None;
    }
    let larger = |patch: &mut Patch, id: NodeId| {
        let value = Op::Const(scaled(graph, id, true, |by| by)?);
        Some(patch.add(format!("{}.up", graph.node(id).name), value, &[]))
    };
    let again = |patch: &mut Patch, id: NodeId, operands: &[Value]| {
        let node = graph.node(id);
        patch.add(format!("{}.up", node.name), node.op.clone(), operands)
    };
    let operands = graph.operands(group.input);
    match &graph.node(group.input).op {
        Op::LayerNorm { .. } => {
            let (gain, bias) = (larger(patch, operands[1])?, larger(patch, operands[2])?);
            Some(again(patch, group.input, &[operands[0].into(), gain, bias]))
        }
        Op::Unary(UnaryOp::Relu) if graph.single_user(operands[0]) == Some(group.input) => {
            // A bias of zeros is gone; another is added to the product.
            let parts = match &graph.node(operands[0]).op {
                Op::Binary(BinaryOp::Add) => graph.operands(operands[0]),
                _ => vec![operands[0]],
            };
            let product = parts.iter().copied().find(|&id| linear(graph, id).is_some())?;
            let (x, weight) = linear(graph, product)?;
            let weight = larger(patch, weight)?;
            let mut value = again(patch, product, &[x.into(), weight]);
            if let Some(bias) = parts.into_iter().find(|&id| id != product) {
                let bias = larger(patch, bias)?;
                value = again(patch, operands[0], &[value, bias]);
            }
            Some(again(patch, group.input, &[value]))
        }
        _ => None,
    }
}

/// The graph with large channels, and how many values have them.
fn with_outliers(float: &Graph) -> Result<(Graph, usize)> {
    let (mut graph, mut changed) = (float.clone(), 0);
    for group in groups::find(float, Heads::Float) {
        let input = float.node(group.input).name.clone();
        let group = graph.find(&input).and_then(|id| groups::of(&graph, id, Heads::Float));
        let group = group.context("the group is still there")?;
        let mut patch = Patch::new();
        let Some(larger) = enlarged(&graph, &group, &mut patch) else { continue };
        for &id in &group.linears {
            let (_, weight) = linear(&graph, id).context("a linear of the group")?;
            let name = graph.node(weight).name.clone();
            let value = scaled(&graph, weight, false, |by| 1.0 / by).context("a weight in f32")?;
            let weight = patch.add(format!("{name}.down"), Op::Const(value), &[]);
            let product = patch.add(&graph.node(id).name, Op::MatMul, &[larger, weight]);
            patch.replace(id, product);
        }
        patch.apply(&mut graph)?;
        changed += 1;
    }
    Ok((graph, changed))
}

/// Windows of random tokens.
fn windows(seed: u64, count: usize) -> Text {
    let mut random = Random::new(seed);
    let mut window = || (0..16).map(|_| random.below(512) as i64).collect();
    Text { windows: (0..count).map(|_| window()).collect(), vocabulary: 512 }
}

/// Divergence from float of a method, on tokens that calibration has not seen.
fn divergence(name: &str, float: &Graph, method: Method) -> Result<Against> {
    let level = fqrt::best_level().context("a CPU level")?;
    let settings = Settings {
        method,
        levels: vec![level.name().to_owned()],
        rounding: Rounding::Nearest,
        ..Settings::default()
    };
    let mut data = Vec::new();
    for seed in 1..9 {
        data.extend(as_batches(&tiny_inputs(name, float, seed)?)?);
    }
    let reference = quietly(|cx| pipeline::float_target(float, cx))?;
    let compiled = quietly(|cx| pipeline::compile(float.clone(), &settings, |_| Ok(data), cx))?;
    let model = |target: fqbin::TargetImage| {
        Model::from_parts(target.program, &target.weights, &target.code, Some(level))
    };
    let (model, reference): (Arc<Model>, Arc<Model>) = (model(compiled.target)?, model(reference)?);
    let options = SessionOptions::threads(2);
    let scores = quietly(|_| {
        evaluate::run(&model, Some(&reference), &windows(99, 8), &options, Verbosity::Quiet)
    })?;
    let Scores::Language(scores) = scores else { anyhow::bail!("OPT has logits") };
    scores.against.context("a reference was given")
}

#[test]
fn flattening_holds_an_opt_on_which_static_int8_collapses() -> Result<()> {
    let mut models = 0;
    for (name, float) in tiny_models()? {
        if !name.starts_with("opt") {
            continue;
        }
        models += 1;
        let (scaled, changed) = with_outliers(&float)?;
        ensure!(changed == 6, "{name}: two norms and a ReLU in each of two layers, not {changed}");
        for given in tiny_inputs(&name, &float, 1)? {
            let (want, got) = (evaluate(&float, &given)?, evaluate(&scaled, &given)?);
            ensure!(want == got, "{name}: the transformation is exact");
        }
        let plain = divergence(&name, &float, Method::Rtn)?;
        println!("{name}, channels as they were, rtn: KL {:.2e}, {:.3}", plain.kl, plain.top1);
        let mut found = Vec::new();
        for method in [Method::Rtn, Method::Smoothquant, Method::Flattenquant] {
            let against = divergence(&name, &scaled, method)?;
            println!("{name}, {method:?}: KL {:.2e}, top-1 {:.3}", against.kl, against.top1);
            found.push(against);
        }
        let [rtn, _, flat] = &found[..] else { anyhow::bail!("three methods") };
        ensure!(rtn.kl > 1000.0 * plain.kl && rtn.top1 < 0.5, "{name}: {rtn:?}");
        ensure!(flat.kl < 4.0 * plain.kl && flat.top1 > 0.9, "{name}: {flat:?}");
    }
    ensure!(models == 3, "{models} exports of OPT");
    Ok(())
}
