//! Node-by-node comparison of a backend with the interpreter. Some values of a graph are made
//! visible; each visible one is compared with what the interpreter computes from the backend's own
//! values before it. So errors do not add up, and what jumps (rounding, comparisons, codes) sees the
//! same operands on both sides.

use crate::compare::{Tolerance, report};
use crate::generate::Random;
use crate::runtime::{Codes, Cpu, Named, Runtime};
use anyhow::{Context, Result, bail, ensure};
use fqc_interp::{Binding, Data, Tensor, bind, eval_node_within};
use fqc_ir::{BinaryOp, Elem, Expr, Graph, NodeId, Op, Type, UnaryOp};
use std::collections::{BTreeMap, BTreeSet};

/// How much of a graph is made visible.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Visible {
    /// The outputs, and what operations that jump read.
    Needed,
    /// Those and half of the others.
    Half,
    All,
}

/// Whether a small change of a float operand can be a large one of the result.
fn jumps(op: &Op, float_operands: bool) -> bool {
    let jumps = match op {
        Op::Unary(op) => unary_jumps(*op),
        Op::Binary(op) => binary_jumps(*op),
        Op::Cast(elem) => *elem != Elem::F64,
        Op::Pointwise(expr) => expr_jumps(expr),
        Op::ArgReduce { .. } | Op::Quantize(_) => true,
        _ => rounds(op),
    };
    jumps && float_operands
}

/// Whether the operation computes floats and then rounds them to codes, so that a code at the edge
/// may be the next one.
fn rounds(op: &Op) -> bool {
    match op {
        Op::LayerNormQuantize { .. }
        | Op::RmsNormQuantize { .. }
        | Op::PointwiseQuantize { .. }
        | Op::Gemm { out: Some(_), .. } => true,
        Op::Gemm { epilogue: expr, .. } | Op::Pointwise(expr) => expr_jumps(expr),
        _ => false,
    }
}

fn unary_jumps(op: UnaryOp) -> bool {
    use UnaryOp::{Ceil, Floor, IsInf, IsNan, Round, Sign};
    matches!(op, Ceil | Floor | IsInf | IsNan | Round | Sign)
}

fn binary_jumps(op: BinaryOp) -> bool {
    op.is_comparison() || matches!(op, BinaryOp::Mod | BinaryOp::Rem)
}

fn expr_jumps(expr: &Expr) -> bool {
    match expr {
        Expr::Arg(_) | Expr::Literal(_) => false,
        Expr::Unary(op, a) => unary_jumps(*op) || expr_jumps(a),
        Expr::Binary(op, a, b) => binary_jumps(*op) || expr_jumps(a) || expr_jumps(b),
        Expr::Select(c, a, b) => expr_jumps(c) || expr_jumps(a) || expr_jumps(b),
        Expr::Cast(elem, a) => !matches!(elem, Elem::F32 | Elem::F64) || expr_jumps(a),
    }
}

fn is_leaf(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Input(_) | Op::Const(_))
}

/// The graph with all visible values as outputs (codes are seen in the arena), and those values.
pub fn expose(graph: &Graph, visible: Visible, random: &mut Random) -> (Graph, BTreeSet<NodeId>) {
    let mut seen: BTreeSet<NodeId> = graph.outputs().iter().map(|o| o.1).collect();
    for id in graph.ids() {
        if graph.node(id).ty.quant.is_some() || visible == Visible::All {
            seen.insert(id);
        }
        if visible == Visible::Half && random.below(2) == 0 {
            seen.insert(id);
        }
        let operands = graph.operands(id);
        let floats = operands.iter().any(|&o| graph.node(o).ty.elem.is_float());
        if jumps(&graph.node(id).op, floats) {
            seen.extend(operands);
            seen.insert(id);
        }
    }
    seen.retain(|&id| !is_leaf(graph, id));
    let mut exposed = graph.clone();
    let mut outputs = graph.outputs().to_vec();
    let plain = seen.iter().filter(|&&id| graph.node(id).ty.quant.is_none());
    outputs.extend(plain.map(|&id| (format!("seen {}", graph.node(id).name), id)));
    exposed.set_outputs(outputs);
    (exposed, seen)
}

/// Codes from the bytes that a backend keeps: `code + 128` if signed, rows padded.
fn codes(ty: &Type, shape: &[usize], (stored, bytes): &Codes) -> Result<Tensor> {
    let quant = ty.quant.as_ref().context("the type has a quantisation")?;
    let (width, padded) = (shape.last().copied(), stored.last().copied());
    let (width, padded) = (width.context("codes have rows")?, padded.context("rows are padded")?);
    let (mut values, mut padding) = (Vec::new(), Vec::new());
    for row in bytes.chunks_exact(padded.max(1)) {
        let row = row.iter().map(|&b| i64::from(b) - if quant.signed { 128 } else { 0 });
        let row: Vec<i64> = row.collect();
        values.extend_from_slice(&row[..width]);
        padding.extend_from_slice(&row[width..]);
    }
    ensure!(padding.iter().all(|&c| c == 0), "the padding of the rows is not zero");
    ensure!(values.len() == shape.iter().product::<usize>(), "{stored:?} is no {shape:?}");
    Ok(Tensor::from_ints(ty.elem, shape, &values).with_quant(ty.quant.clone()))
}

/// What a value may be off by; integers and bools must be equal.
fn tolerance(node_elem: Elem, wide: bool) -> Tolerance {
    match node_elem {
        // Sums run in f32, functions are good to a few units in the last place.
        Elem::F32 if wide => Tolerance { absolute: 1e-5, relative: 1e-4, of_largest: 2e-5 },
        Elem::F32 => Tolerance { absolute: 1e-6, relative: 1e-5, of_largest: 4e-6 },
        Elem::F64 => Tolerance { absolute: 1e-6, relative: 1e-5, of_largest: 4e-6 },
        Elem::F16 => Tolerance { absolute: 1e-6, relative: 1e-3, of_largest: 1e-5 },
        Elem::BF16 => Tolerance { absolute: 1e-6, relative: 8e-3, of_largest: 1e-5 },
        _ => Tolerance::EXACT,
    }
}

/// A value of the backend that is not the interpreter's.
fn check(op: &Op, got: &Tensor, want: &Tensor, wide: bool) -> Result<()> {
    ensure!(
        got.elem() == want.elem() && got.shape() == want.shape(),
        "got {}, want {}",
        got.ty(),
        want.ty()
    );
    let strict = report(got, want, tolerance(got.elem(), wide));
    if strict.off == 0 {
        return Ok(());
    }
    // Where an operation rounds inside, a few results may fall on the other side of an edge: codes
    // by one, of the rest any.
    if rounds(op) && strict.off <= 1 + strict.count / 200 {
        let is_code = want.quant().is_some();
        let loose = report(got, want, Tolerance::absolute(1.0));
        if !is_code || loose.off == 0 {
            return Ok(());
        }
    }
    bail!("{strict}")
}

/// Runs the exposed graph and compares every visible value; gives the operations that were compared.
pub fn compare(
    exposed: &Graph,
    seen: &BTreeSet<NodeId>,
    cpu: &mut Cpu,
    inputs: &[(String, Tensor)],
) -> Result<Vec<&'static str>> {
    let (outputs, stored) = cpu.run_watched(inputs)?;
    let values = Values { graph: exposed, binding: bind(exposed, inputs)?, outputs, stored };
    let (mut known, mut compared) = (BTreeMap::<NodeId, Tensor>::new(), Vec::new());
    for (name, tensor) in inputs {
        let id = exposed.find(name).context("inputs have nodes")?;
        let quant = exposed.node(id).ty.quant.clone();
        known.insert(id, tensor.clone().with_quant(quant));
    }
    for id in exposed.topological().context("the graph has no cycle")? {
        if known.contains_key(&id) {
            continue;
        }
        let node = exposed.node(id);
        let ids = exposed.operands(id);
        let operands: Vec<&Tensor> = ids.iter().map(|o| &known[o]).collect();
        let value = eval_node_within(&node.op, &operands, &values.binding, 1 << 30)
            .with_context(|| format!("`{}` ({})", node.name, node.op.mnemonic()))?;
        let mut value = value.with_quant(node.ty.quant.clone());
        if seen.contains(&id) {
            let got = values.get(id)?;
            let wide = ids.iter().any(|o| !seen.contains(o) && !is_leaf(exposed, *o));
            check(&node.op, &got, &value, wide).with_context(|| {
                let operands: Vec<String> = operands.iter().map(|t| t.ty().to_string()).collect();
                let op = node.op.mnemonic();
                format!("{}: `{}` = {op} of {}", cpu.name(), node.name, operands.join(", "))
            })?;
            compared.push(node.op.mnemonic());
            value = got;
        }
        known.insert(id, value);
    }
    Ok(compared)
}

/// What a run of the backend showed.
struct Values<'g> {
    graph: &'g Graph,
    binding: Binding,
    outputs: Named,
    stored: BTreeMap<String, Codes>,
}

impl Values<'_> {
    fn get(&self, id: NodeId) -> Result<Tensor> {
        let node = self.graph.node(id);
        if node.ty.quant.is_some() {
            let shape = self.binding.shape(&node.ty.shape).context("every size is bound")?;
            if shape.contains(&0) {
                let data =
                    if node.ty.elem == Elem::I8 { Data::I8(vec![]) } else { Data::U8(vec![]) };
                let empty = Tensor::new(node.ty.elem, shape, data).context("has no elements")?;
                return Ok(empty.with_quant(node.ty.quant.clone()));
            }
            let stored = self.stored.get(&node.name);
            let stored = stored.with_context(|| format!("no buffer of `{}`", node.name))?;
            return codes(&node.ty, &shape, stored);
        }
        let at = self.graph.outputs().iter().position(|o| o.1 == id);
        Ok(self.outputs[at.context("visible values are outputs")?].1.clone())
    }
}
