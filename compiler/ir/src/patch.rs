//! An edit as a value: found by reading, checked and applied in one place.

use crate::graph::{Graph, Limit, NodeId};
use crate::infer::InferError;
use crate::op::Op;
use crate::types::Type;
use std::fmt;
use std::sync::Arc;

/// An operand of a new node: one that is there, or an earlier node of the same patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    Old(NodeId),
    New(usize),
}

impl From<NodeId> for Value {
    fn from(id: NodeId) -> Self {
        Value::Old(id)
    }
}

/// New nodes, which values they stand in for, and what they take for granted.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    nodes: Vec<(String, Op, Vec<Value>)>,
    replace: Vec<(NodeId, Value)>,
    limits: Vec<Limit>,
}

/// Why a patch was refused; the graph is as before.
#[derive(Clone, PartialEq, Debug)]
pub enum PatchError {
    Infer { name: String, error: InferError },
    Type { name: String, old: Box<Type>, new: Box<Type> },
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatchError::Infer { name, error } => write!(f, "new node `{name}`: {error}"),
            PatchError::Type { name, old, new } => {
                write!(f, "`{name}` is {old} and would become {new}")
            }
        }
    }
}

impl std::error::Error for PatchError {}

impl Patch {
    pub fn new() -> Self {
        Patch::default()
    }

    /// A patch that puts an existing value in the place of another.
    pub fn alias(old: NodeId, new: NodeId) -> Self {
        Patch { replace: vec![(old, Value::Old(new))], ..Patch::default() }
    }

    /// Adds a node; `name` is made unique when the patch is applied.
    pub fn add(&mut self, name: impl Into<String>, op: Op, operands: &[Value]) -> Value {
        self.nodes.push((name.into(), op, operands.to_vec()));
        Value::New(self.nodes.len() - 1)
    }

    /// Every read of `old` becomes a read of `new`, which must have the same type.
    pub fn replace(&mut self, old: NodeId, new: impl Into<Value>) {
        self.replace.push((old, new.into()));
    }

    /// The graph takes this for granted from now on: what the patch replaces fails where it does not hold, or
    /// computes nothing.
    pub fn limit(&mut self, limit: Limit) {
        self.limits.push(limit);
    }

    pub fn is_empty(&self) -> bool {
        self.replace.is_empty()
    }

    /// Applies the patch, sweeps what became dead, and returns the new nodes that stayed. A new node
    /// may read the value it replaces: its own reads are not redirected. The replacement of a node
    /// takes over its name and origin where it is new.
    pub fn apply(self, graph: &mut Graph) -> Result<Vec<NodeId>, PatchError> {
        let mut made: Vec<NodeId> = Vec::new();
        if let Err(error) = self.build(graph, &mut made) {
            graph.sweep_from(made);
            return Err(error);
        }
        for limit in self.limits {
            graph.add_limit(limit);
        }
        for (old, new) in &self.replace {
            let id = resolve(&made, *new);
            let name = graph.node(*old).name.clone();
            graph.redirect(*old, id, &made);
            if matches!(new, Value::New(_)) && graph.use_count(*old) == 0 {
                graph.rename(*old, &format!("{name}.replaced"));
                graph.rename(id, &name);
            }
        }
        let replaced = self.replace.iter().map(|(old, _)| *old);
        graph.sweep_from(replaced.chain(made.iter().copied()).collect());
        made.retain(|id| graph.contains(*id));
        Ok(made)
    }

    /// Adds the new nodes and checks that every replacement has the type of what it replaces.
    fn build(&self, graph: &mut Graph, made: &mut Vec<NodeId>) -> Result<(), PatchError> {
        let mut origin: Vec<Arc<str>> =
            self.replace.iter().flat_map(|(old, _)| graph.node(*old).origin.clone()).collect();
        origin.dedup();
        for (name, op, operands) in &self.nodes {
            let ids: Vec<NodeId> = operands.iter().map(|&v| resolve(made, v)).collect();
            let id = graph
                .add(name.clone(), op.clone(), &ids)
                .map_err(|error| PatchError::Infer { name: name.clone(), error })?;
            graph.set_origin(id, origin.clone());
            made.push(id);
        }
        for (old, new) in &self.replace {
            let (old_node, new_node) = (graph.node(*old), graph.node(resolve(made, *new)));
            if old_node.ty != new_node.ty {
                return Err(PatchError::Type {
                    name: old_node.name.clone(),
                    old: Box::new(old_node.ty.clone()),
                    new: Box::new(new_node.ty.clone()),
                });
            }
        }
        Ok(())
    }
}

/// The node that a patch's value stands for.
fn resolve(made: &[NodeId], value: Value) -> NodeId {
    match value {
        Value::Old(id) => id,
        Value::New(i) => made[i],
    }
}
