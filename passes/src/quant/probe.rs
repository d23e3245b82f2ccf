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
