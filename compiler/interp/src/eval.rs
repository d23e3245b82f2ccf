//! A whole graph, node by node in topological order; a value is freed after its last reader, and a
//! constant is read from its bytes just before its first.

use crate::bind::{Binding, bind, node_shape};
use crate::error::{EvalError, OpError, Res};
use crate::ops::eval_node_within;
use crate::tensor::{Tensor, count, value_bytes};
use fqc_ir::{Graph, NodeId, Op};
use std::collections::BTreeMap;

/// What the values alive at one time may take in [`evaluate`]; temporaries of one operation (f64
/// copies of its operands) are not counted.
pub const LIVE_BYTES: u64 = 4 << 30;

/// What one folded constant may take.
pub const FOLD_BYTES: u64 = 64 << 20;

/// The outputs of the graph, in its order, for these inputs.
pub fn evaluate<S: AsRef<str>>(
    graph: &Graph,
    inputs: &[(S, Tensor)],
) -> Result<Vec<(String, Tensor)>, EvalError> {
    evaluate_with(graph, inputs, LIVE_BYTES, &mut |_, _| {})
}

/// The same under another bound on the bytes of the values alive at one time; `observer` sees each
/// value, inputs and constants included, right after it is there.
pub fn evaluate_with<S: AsRef<str>>(
    graph: &Graph,
    inputs: &[(S, Tensor)],
    live_bytes: u64,
    observer: &mut dyn FnMut(NodeId, &Tensor),
) -> Result<Vec<(String, Tensor)>, EvalError> {
    let binding = bind(graph, inputs)?;
    let order = graph.topological().ok_or(EvalError::Cycle)?;
    let mut run = Run { graph, binding, live_bytes, live: 0, values: BTreeMap::new() };
    for &id in graph.inputs() {
        let name = &graph.node(id).name;
        if let Some((_, tensor)) = inputs.iter().find(|(n, _)| n.as_ref() == name) {
            let quant = graph.node(id).ty.quant.clone();
            run.keep(id, tensor.clone().with_quant(quant))?;
            observer(id, &run.values[&id].0);
        }
    }
    for id in order {
        if !is_leaf(graph, id) {
            run.step(id, observer)?;
        }
    }
    let mut outputs = Vec::new();
    for (name, id) in graph.outputs() {
        run.load(*id, observer)?;
        outputs.push((name.clone(), run.values[id].0.clone()));
    }
    Ok(outputs)
}

fn is_leaf(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Input(_) | Op::Const(_))
}

struct Run<'a> {
    graph: &'a Graph,
    binding: Binding,
    live_bytes: u64,
    live: u64,
    /// Values with the number of reads still to come.
    values: BTreeMap<NodeId, (Tensor, usize)>,
}

impl Run<'_> {
    fn at(&self, id: NodeId, error: OpError) -> EvalError {
        let node = self.graph.node(id);
        EvalError::Node { node: node.name.clone(), op: node.op.mnemonic(), error }
    }

    /// The bytes of the node's value, if there is room for them.
    fn room(&self, id: NodeId) -> Res<u64> {
        let shape = node_shape(self.graph, id, &self.binding)?;
        let bytes =
            count(&shape).map_or(u64::MAX, |n| value_bytes(self.graph.node(id).ty.elem, n as u64));
        let need = self.live.saturating_add(bytes);
        if need > self.live_bytes {
            return Err(OpError::Memory { need, limit: self.live_bytes });
        }
        Ok(bytes)
    }

    fn keep(&mut self, id: NodeId, value: Tensor) -> Result<(), EvalError> {
        self.live += self.room(id).map_err(|e| self.at(id, e))?;
        self.values.insert(id, (value, self.graph.use_count(id)));
        Ok(())
    }

    /// Makes a constant's value available.
    fn load(
        &mut self,
        id: NodeId,
        observer: &mut dyn FnMut(NodeId, &Tensor),
    ) -> Result<(), EvalError> {
        let node = self.graph.node(id);
        if let (Op::Const(c), false) = (&node.op, self.values.contains_key(&id)) {
            self.room(id).map_err(|e| self.at(id, e))?;
            self.keep(id, Tensor::from_const(c))?;
            observer(id, &self.values[&id].0);
        }
        Ok(())
    }

    fn step(
        &mut self,
        id: NodeId,
        observer: &mut dyn FnMut(NodeId, &Tensor),
    ) -> Result<(), EvalError> {
        let node = self.graph.node(id);
        let ids = self.graph.operands(id);
        for &operand in &ids {
            self.load(operand, observer)?;
        }
        let operands: Vec<&Tensor> = ids.iter().map(|o| &self.values[o].0).collect();
        let room = self.live_bytes - self.live;
        let value = eval_node_within(&node.op, &operands, &self.binding, room)
            .and_then(|value| self.check(id, value))
            .map_err(|e| self.at(id, e))?;
        for operand in ids {
            self.read(operand);
        }
        self.keep(id, value)?;
        observer(id, &self.values[&id].0);
        if self.graph.use_count(id) == 0 {
            self.free(id);
        }
        Ok(())
    }

    /// The value, if it has the type that the graph says.
    fn check(&self, id: NodeId, value: Tensor) -> Res<Tensor> {
        let ty = &self.graph.node(id).ty;
        let shape = node_shape(self.graph, id, &self.binding)?;
        if value.elem() != ty.elem || value.shape() != shape {
            let what = format!("gives {}, the graph says {ty} = {shape:?}", value.ty());
            return Err(OpError::invalid(what));
        }
        Ok(value.with_quant(ty.quant.clone()))
    }

    fn read(&mut self, id: NodeId) {
        if let Some((_, reads)) = self.values.get_mut(&id) {
            *reads -= 1;
            if *reads == 0 {
                self.free(id);
            }
        }
    }

    fn free(&mut self, id: NodeId) {
        if let Some((value, _)) = self.values.remove(&id) {
            self.live -= value.byte_count();
        }
    }
}
