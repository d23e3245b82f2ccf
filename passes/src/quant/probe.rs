//! A graph that shows what an error in one group's input costs the model: every group's input gets a
//! rounding error in the shape of its quantisation, times a gate that is an input of the graph.
//!
//! ```text
//! %y: f32[m,3] = matmul %x, %w
//! ----
//! %t: f32[m,2] = mul %x, %inverse
//! %x.probe: f32[m,2] = add %x, %gate * (round(%t) - %t) * %step
//! %y: f32[m,3] = matmul %x.probe, %w
//! ```

use super::groups::{self, Heads, linear};
use super::passes::{Choices, weights};
use super::stats::Statistics;
use super::trial::Base;
use fqc_ir::expr::BinaryOp;
use fqc_ir::patch::PatchError;
use fqc_ir::{Const, Elem, Graph, Op, Patch, Type, UnaryOp, Value};

/// Relative error of the outputs that a probe aims at: well above the noise of f32, and small
/// enough for the loss to be quadratic.
const AIM: f64 = 2e-3;

/// One group's gate.
#[derive(Clone, PartialEq, Debug)]
pub struct Probe {
    /// The group's input.
    pub group: String,
    /// The gate, an f32 input of one element: 0 or 1.
    pub gate: String,
    /// Error of the group's outputs with the gate at 1, in the measure of [`trial`](super::trial).
    pub error: f64,
}

/// The graph with a probe for each group that has a choice.
pub fn probe(
    graph: &Graph,
    heads: Heads,
    choices: &Choices,
    statistics: &Statistics,
) -> Result<(Graph, Vec<Probe>), PatchError> {
    let mut probed = graph.clone();
    let mut probes = Vec::new();
    for group in groups::find(graph, heads) {
        let name = graph.node(group.input).name.clone();
        let (Some(choice), Some(stats)) = (choices.get(&name), statistics.get(&name)) else {
            continue;
        };
        // By name: a probe replaces linears, and one may be the next group's input.
        let group = probed.find(&name).and_then(|input| groups::of(&probed, input, heads));
        let Some(group) = group else { continue };
        let Some(weights) = weights(&probed, &group) else { continue };
        let base = Base::new(stats, &weights, choice.widths);
        let rounding = |scale: f32| {
            let steps: Vec<f32> = choice.smooth.iter().map(|s| s * scale).collect();
            base.rounding(&steps).iter().sum::<f64>()
        };
        let plain = rounding(choice.scale());
        if plain <= 0.0 {
            continue;
        }
        let scale = choice.scale() * (AIM / plain).sqrt() as f32;
        let error = rounding(scale);
        let gate = format!("{name}.gate");
        let mut patch = Patch::new();
        let one = patch.add(&gate, Op::Input(Type::fixed(Elem::F32, &[1])), &[]);
        let steps: Vec<f32> = choice.smooth.iter().map(|s| s * scale).collect();
        let noisy = noisy(&mut patch, &name, group.input.into(), one, &steps);
        for &id in &group.linears {
            let Some((_, w)) = linear(&probed, id) else { continue };
            let product = patch.add(&probed.node(id).name, Op::MatMul, &[noisy, w.into()]);
            patch.replace(id, product);
        }
        patch.apply(&mut probed)?;
        probes.push(Probe { group: name, gate, error });
    }
    Ok((probed, probes))
}

/// `x + gate * (round(x / step) - x / step) * step`.
fn noisy(patch: &mut Patch, name: &str, x: Value, gate: Value, steps: &[f32]) -> Value {
    let inverse: Vec<f32> = steps.iter().map(|s| 1.0 / s).collect();
    let mut row = |what: &str, values: &[f32]| {
        let table = Op::Const(Const::f32(vec![values.len()], values));
        patch.add(format!("{name}.{what}"), table, &[])
    };
    let (inverse, step) = (row("inverse", &inverse), row("step", steps));
    let mut node = |op: Op, operands: &[Value]| patch.add(format!("{name}.probe"), op, operands);
    let codes = node(Op::Binary(BinaryOp::Mul), &[x, inverse]);
    let rounded = node(Op::Unary(UnaryOp::Round), &[codes]);
    let off = node(Op::Binary(BinaryOp::Sub), &[rounded, codes]);
    let error = node(Op::Binary(BinaryOp::Mul), &[off, step]);
    let gated = node(Op::Binary(BinaryOp::Mul), &[error, gate]);
    node(Op::Binary(BinaryOp::Add), &[x, gated])
}

#[cfg(test)]
mod tests {
    use super::super::choose::Choice;
    use super::super::stats::ChannelStats;
    use super::super::widths::Widths;
    use super::*;
    use fqc_interp::{Tensor, evaluate};
    use fqc_ir::{FlattenMap, text};
    use std::sync::Arc;

    /// One channel of each row only, so that the errors of channels do not meet.
    const ROWS: [f32; 12] = [1.3, 0.0, 0.0, -2.7, 0.31, 0.0, 0.0, 0.9, -3.1, 0.0, 0.0, 0.17];
    const WEIGHTS: [f32; 2] = [0.7, -1.9];

    #[test]
    fn the_error_is_that_of_the_outputs_with_the_gate_open() {
        let lines = [
            "graph @g {",
            "  %x: f32[6,2] = input",
            "  %w: f32[2,1] = const {dense=[0.7, -1.9]}",
            "  %y: f32[6,1] = matmul %x, %w",
            "  return %y as y",
            "}",
        ];
        let graph = text::parse(&lines.join("\n"), &text::Blobs::new()).expect("a graph");
        let mut stats = ChannelStats::new(2);
        stats.update(&ROWS).expect("finite");
        let choice = Choice {
            alpha: 0.0,
            smooth: vec![2.0, 0.5],
            threshold: 3.0,
            map: Arc::new(FlattenMap { base: 2, tail: [].into(), padded: 2 }),
            signed: true,
            widths: Widths::W8A8,
            typical_energy: 1.0,
            error: 0.0,
        };
        let choices = Arc::new([("x".to_owned(), choice)].into());
        let statistics = [("x".to_owned(), stats)].into();
        let (probed, probes) =
            probe(&graph, Heads::Quantized, &choices, &statistics).expect("a patch that fits");
        let [found] = &probes[..] else { panic!("one group: {probes:?}") };
        let outputs = |gate: f32| {
            let x = ("x".to_owned(), Tensor::f32(&[6, 2], &ROWS));
            let gate = (found.gate.clone(), Tensor::f32(&[1], &[gate]));
            let outputs = evaluate(&probed, &[x, gate]).expect("runs");
            outputs[0].1.to_f64()
        };
        let (plain, noisy) = (outputs(0.0), outputs(1.0));
        let sizes: Vec<f64> =
            ROWS.map(|v| f64::from(v).powi(2)).into_iter().filter(|s| *s > 0.0).collect();
        let mut sorted = sizes.clone();
        sorted.sort_by(f64::total_cmp);
        let tau = sorted[3];
        let (mut off, mut all) = (0.0, 0.0);
        for ((y, n), size) in plain.iter().zip(&noisy).zip(&sizes) {
            off += (n - y).powi(2) / (size + tau);
            all += y * y / (size + tau);
        }
        assert!(off > 0.0, "rounded: {noisy:?}");
        assert!((found.error / (off / all) - 1.0).abs() < 1e-3, "{} {}", found.error, off / all);
        let exact: Vec<f64> = ROWS
            .chunks_exact(2)
            .map(|r| f64::from(r[0] * WEIGHTS[0] + r[1] * WEIGHTS[1]))
            .collect();
        assert!(plain.iter().zip(&exact).all(|(p, e)| (p - e).abs() < 1e-6), "{plain:?}");
    }
}
