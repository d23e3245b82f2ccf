//! Rounding: a flattened input and the weights it meets go through codes and back. The only rewrite
//! that changes the model's values.
//!
//! ```text
//! %x.flat: f32[m,64] = flatten %x {threshold=1.27, …}
//! %y: f32[m,3] = matmul %x.flat, %w
//! ----
//! %x.q: i8[m,64] !q0 = quantize %x {…}              ; digits of rint(x / 0.01)
//! %x.dq: f32[m,64] = dequantize %x.q
//! %w.q: i8[64,3] !q1 = const …                      ; rounded to nearest, a scale for each column
//! %w.dq: f32[64,3] = dequantize %w.q
//! %y: f32[m,3] = matmul %x.dq, %w.dq
//! ```
//!
//! A smoothing multiplication before the flattening goes into the quantizer's multiplier.

use super::groups::linear;
use super::round::{Granularity, Rounded};
use super::widths::Widths;
use fqc_ir::expr::BinaryOp;
use fqc_ir::quant::q_max;
use fqc_ir::{Const, Elem, Graph, NodeId, Op, Patch, Quant, Quantizer, Scale};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Widths and signs of one group's codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub widths: Widths,
    /// Whether the codes of the input are signed.
    pub signed: bool,
    pub granularity: Granularity,
}

/// What is quantised: a value, and what its channels are multiplied by first.
#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    pub value: NodeId,
    pub factors: Option<Vec<f32>>,
}

/// Weights that were rounded elsewhere, by the name of their linear, with all rows of the flattened
/// weight.
pub type RoundedWeights = Arc<BTreeMap<String, Rounded>>;

/// The patch for the group behind one `flatten` node, whose operand `source` describes. Weights that
/// are not in `rounded` are rounded to nearest.
pub fn insert(
    graph: &Graph,
    id: NodeId,
    source: &Source,
    format: Format,
    rounded: &RoundedWeights,
) -> Option<Patch> {
    let Op::Flatten { threshold, map } = &graph.node(id).op else { return None };
    let scale = threshold / q_max(format.widths.activations, format.signed) as f32;
    let inverse: Arc<[f32]> = match &source.factors {
        None => Arc::from([1.0 / scale]),
        Some(factors) => factors.iter().map(|f| f / scale).collect(),
    };
    let quant = Quant {
        scale: Scale::Tensor(scale),
        bits: format.widths.activations,
        signed: format.signed,
        flatten: Some(map.clone()),
    };
    let quantizer = Quantizer { quant: Arc::new(quant), inverse };
    let name = &graph.node(id).name;
    let mut patch = Patch::new();
    let codes =
        patch.add(format!("{name}.q"), Op::Quantize(Arc::new(quantizer)), &[source.value.into()]);
    let back = patch.add(format!("{name}.dq"), Op::Dequantize, &[codes]);
    for (user, _) in graph.users(id) {
        let (_, w) = linear(graph, user)?;
        let Op::Const(value) = &graph.node(w).op else { return None };
        let w_name = &graph.node(w).name;
        let (codes, quant) = match rounded.get(&graph.node(user).name) {
            Some(rounded) => coded(value, rounded, format)?,
            None => round_weight(value, format)?,
        };
        let codes = Op::Const(codes.with_quant(Arc::new(quant)));
        let weight = patch.add(format!("{w_name}.q"), codes, &[]);
        let weight = patch.add(format!("{w_name}.dq"), Op::Dequantize, &[weight]);
        let product = patch.add(&graph.node(user).name, Op::MatMul, &[back, weight]);
        patch.replace(user, product);
    }
    Some(patch)
}

/// The value before a multiplication by one constant a channel, and the constants.
pub fn multiplied(graph: &Graph, x: NodeId) -> Option<(NodeId, Vec<f32>)> {
    let node = graph.node(x);
    let (Op::Binary(BinaryOp::Mul), [source, table]) = (&node.op, &graph.operands(x)[..]) else {
        return None;
    };
    let Op::Const(value) = &graph.node(*table).op else { return None };
    let per_channel = value.shape.len() == 1
        && node.ty.last().as_const() == i64::try_from(value.shape[0]).ok()
        && graph.node(*source).ty.shape == node.ty.shape;
    per_channel.then(|| value.to_f32()).flatten().map(|factors| (*source, factors))
}

/// Weight codes, round to nearest half to even, and what they mean. A column of zeros, or of values
/// too small for a scale, has scale 1.
pub fn round_weight(value: &Const, format: Format) -> Option<(Const, Quant)> {
    let values = value.to_f32()?;
    let [_, n] = value.shape[..] else { return None };
    let q = q_max(format.widths.weights, true) as f32;
    let mut maxima = vec![0.0f32; n];
    for row in values.chunks_exact(n.max(1)) {
        for (m, v) in maxima.iter_mut().zip(row) {
            *m = m.max(v.abs());
        }
    }
    if format.granularity == Granularity::PerTensor {
        let all = maxima.iter().fold(0.0f32, |a, b| a.max(*b));
        maxima.fill(all);
    }
    let step = |m: f32| if m / q >= f32::MIN_POSITIVE { m / q } else { 1.0 };
    let scales: Vec<f32> = maxima.iter().map(|&m| step(m)).collect();
    let mut codes = Vec::with_capacity(values.len());
    for row in values.chunks_exact(n.max(1)) {
        codes.extend(
            row.iter().zip(&scales).map(|(v, s)| (v / s).round_ties_even().clamp(-q, q) as i8),
        );
    }
    coded(value, &Rounded { codes, scales }, format)
}

/// The constant of a weight's codes, in the shape of the weight, and what they mean.
fn coded(value: &Const, rounded: &Rounded, format: Format) -> Option<(Const, Quant)> {
    let scale = match format.granularity {
        Granularity::PerTensor => Scale::Tensor(rounded.scales.first().copied().unwrap_or(1.0)),
        Granularity::PerChannel => {
            Scale::Axis { axis: 1, scales: rounded.scales.as_slice().into() }
        }
    };
    let quant = Quant { scale, bits: format.widths.weights, signed: true, flatten: None };
    let elem = format.widths.weight_elem();
    Some((codes_const(elem, value.shape.clone(), &rounded.codes)?, quant))
}

/// A constant of codes: bytes, or nibbles, the even index in the low one.
fn codes_const(elem: Elem, shape: Vec<usize>, codes: &[i8]) -> Option<Const> {
    let byte = |c: &i8| *c as u8;
    let bytes: Vec<u8> = match elem {
        Elem::I4 => codes
            .chunks(2)
            .map(|pair| (byte(&pair[0]) & 15) | (pair.get(1).map_or(0, byte) << 4))
            .collect(),
        _ => codes.iter().map(byte).collect(),
    };
    Const::new(elem, shape, bytes)
}
