//! The graph. petgraph is private to this file: operand order lives on the edges, creation order in
//! the nodes, so no index decides anything. Names are unique and the only keys that outlive a pass.

use crate::dim::Dim;
use crate::infer::{self, InferError};
use crate::op::Op;
use crate::types::Type;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A node of one graph; stays valid until that node is removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(NodeIndex);

/// An operation and its one result.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub op: Op,
    /// Unique in the graph; ONNX's name of the value where there is one.
    pub name: String,
    pub ty: Type,
    /// Names of the ONNX nodes it comes from, for messages.
    pub origin: Vec<Arc<str>>,
    /// Creation order; ties in the topological order go by it.
    stamp: u64,
}

/// A condition on the sizes of a run that the model's graph takes for granted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Limit {
    /// The size is at most this.
    AtMost(Dim, i64),
    /// The two sizes are the same.
    Equal(Dim, Dim),
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    inner: StableDiGraph<Node, usize>,
    names: BTreeMap<String, NodeId>,
    inputs: Vec<NodeId>,
    outputs: Vec<(String, NodeId)>,
    limits: BTreeSet<Limit>,
    next_stamp: u64,
}

impl Graph {
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds a node; its type follows from the operation and the operands.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        op: Op,
        operands: &[NodeId],
    ) -> Result<NodeId, InferError> {
        let types: Vec<&Type> = operands.iter().map(|&id| &self.node(id).ty).collect();
        let ty = infer::infer(&op, &types)?;
        let name = self.unique(&name.into());
        let is_input = matches!(op, Op::Input(_));
        let node = Node { op, name: name.clone(), ty, origin: Vec::new(), stamp: self.next_stamp };
        self.next_stamp += 1;
        let id = NodeId(self.inner.add_node(node));
        for (slot, operand) in operands.iter().enumerate() {
            self.inner.add_edge(operand.0, id.0, slot);
        }
        self.names.insert(name, id);
        if is_input {
            self.inputs.push(id);
        }
        Ok(id)
    }

    /// `name` if it is free, else with the first free `.2`, `.3`, ….
    pub fn unique(&self, name: &str) -> String {
        if !self.names.contains_key(name) {
            return name.to_owned();
        }
        (2u64..)
            .map(|i| format!("{name}.{i}"))
            .find(|n| !self.names.contains_key(n))
            .expect("a finite graph leaves a name free")
    }

    pub fn set_origin(&mut self, id: NodeId, origin: Vec<Arc<str>>) {
        self.inner[id.0].origin = origin;
    }

    /// Makes a value an output under the given public name.
    pub fn add_output(&mut self, name: impl Into<String>, id: NodeId) {
        self.outputs.push((name.into(), id));
    }

    pub fn set_outputs(&mut self, outputs: Vec<(String, NodeId)>) {
        self.outputs = outputs;
    }

    pub fn add_limit(&mut self, limit: Limit) {
        self.limits.insert(limit);
    }

    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.limits.iter()
    }

    /// The inputs in the order of the model; an unused input stays.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[(String, NodeId)] {
        &self.outputs
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.inner[id.0]
    }

    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    pub fn len(&self) -> usize {
        self.inner.node_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes in creation order.
    pub fn ids(&self) -> Vec<NodeId> {
        let mut ids: Vec<NodeId> = self.inner.node_indices().map(NodeId).collect();
        ids.sort_by_key(|id| self.node(*id).stamp);
        ids
    }

    /// Whether the node is still there.
    pub fn contains(&self, id: NodeId) -> bool {
        self.inner.contains_node(id.0)
    }

    /// The operand in a slot.
    pub fn operand(&self, id: NodeId, slot: usize) -> Option<NodeId> {
        let mut edges = self.inner.edges_directed(id.0, Direction::Incoming);
        edges.find(|e| *e.weight() == slot).map(|e| NodeId(e.source()))
    }

    /// The operands by slot.
    pub fn operands(&self, id: NodeId) -> Vec<NodeId> {
        let mut edges: Vec<(usize, NodeId)> = self
            .inner
            .edges_directed(id.0, Direction::Incoming)
            .map(|e| (*e.weight(), NodeId(e.source())))
            .collect();
        edges.sort_unstable();
        edges.into_iter().map(|(_, id)| id).collect()
    }

    /// Who reads the value: node and slot, in creation order. Outputs are not in it.
    pub fn users(&self, id: NodeId) -> Vec<(NodeId, usize)> {
        let mut users: Vec<(NodeId, usize)> = self
            .inner
            .edges_directed(id.0, Direction::Outgoing)
            .map(|e| (NodeId(e.target()), *e.weight()))
            .collect();
        users.sort_by_key(|(id, slot)| (self.node(*id).stamp, *slot));
        users
    }

    pub fn is_output(&self, id: NodeId) -> bool {
        self.outputs.iter().any(|(_, o)| *o == id)
    }

    /// Number of reads, outputs included.
    pub fn use_count(&self, id: NodeId) -> usize {
        self.inner.edges_directed(id.0, Direction::Outgoing).count()
            + self.outputs.iter().filter(|(_, o)| *o == id).count()
    }

    /// The one reader, if the value has exactly one use and it is not an output.
    pub fn single_user(&self, id: NodeId) -> Option<NodeId> {
        (self.use_count(id) == 1).then(|| self.users(id).first().map(|u| u.0)).flatten()
    }

    /// Every node after its operands: constants, then inputs, then by creation order among those
    /// that are ready. `None` if there is a cycle.
    pub fn topological(&self) -> Option<Vec<NodeId>> {
        let rank = |id: NodeId| match self.node(id).op {
            Op::Const(_) => 0u8,
            Op::Input(_) => 1,
            _ => 2,
        };
        let mut missing: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut ready = BTreeSet::new();
        for id in self.ids() {
            let n = self.inner.edges_directed(id.0, Direction::Incoming).count();
            if n == 0 {
                ready.insert((rank(id), self.node(id).stamp, id));
            } else {
                missing.insert(id, n);
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some((_, _, id)) = ready.pop_first() {
            order.push(id);
            for (user, _) in self.users(id) {
                let left = missing.get_mut(&user).expect("a user has operands");
                *left -= 1;
                if *left == 0 {
                    ready.insert((rank(user), self.node(user).stamp, user));
                }
            }
        }
        (order.len() == self.len()).then_some(order)
    }

    /// The slots of the operands as they are stored, sorted; 0, 1, … in a sound graph.
    pub(crate) fn slots(&self, id: NodeId) -> Vec<usize> {
        let mut slots: Vec<usize> =
            self.inner.edges_directed(id.0, Direction::Incoming).map(|e| *e.weight()).collect();
        slots.sort_unstable();
        slots
    }

    /// Every node that lies on a cycle, in creation order.
    pub(crate) fn cyclic(&self) -> Vec<NodeId> {
        let on_cycle = |part: &Vec<NodeIndex>| {
            part.len() > 1 || part.iter().any(|&i| self.inner.contains_edge(i, i))
        };
        let parts = petgraph::algo::kosaraju_scc(&self.inner);
        let mut ids: Vec<NodeId> =
            parts.into_iter().filter(on_cycle).flatten().map(NodeId).collect();
        ids.sort_by_key(|id| self.node(*id).stamp);
        ids
    }

    /// Every symbol that occurs in an input's shape, in order.
    pub fn symbols(&self) -> Vec<Arc<str>> {
        let dims = self.inputs.iter().flat_map(|&id| &self.node(id).ty.shape);
        let mut symbols: Vec<_> = dims.flat_map(Dim::symbols).collect();
        symbols.sort();
        symbols.dedup();
        symbols
    }

    /// Points every read of `old`, outputs included, at `new`, but for the reads by `except`.
    pub(crate) fn redirect(&mut self, old: NodeId, new: NodeId, except: &[NodeId]) {
        let edges: Vec<_> = self
            .inner
            .edges_directed(old.0, Direction::Outgoing)
            .filter(|e| !except.contains(&NodeId(e.target())))
            .map(|e| (e.id(), e.target(), *e.weight()))
            .collect();
        for (edge, target, slot) in edges {
            self.inner.remove_edge(edge);
            self.inner.add_edge(new.0, target, slot);
        }
        for (_, output) in &mut self.outputs {
            if *output == old {
                *output = new;
            }
        }
    }

    /// Gives the node another name; the caller has freed it.
    pub fn rename(&mut self, id: NodeId, name: &str) {
        let free = self.unique(name);
        let old = std::mem::replace(&mut self.inner[id.0].name, free.clone());
        self.names.remove(&old);
        self.names.insert(free, id);
    }

    /// Removes those of `seeds` that nothing reads, then what only they had read; inputs stay. Costs
    /// no more than what it removes.
    pub(crate) fn sweep_from(&mut self, mut seeds: Vec<NodeId>) {
        while let Some(id) = seeds.pop() {
            let kept = !self.contains(id)
                || matches!(self.node(id).op, Op::Input(_))
                || self.use_count(id) > 0;
            if kept {
                continue;
            }
            seeds.extend(self.operands(id));
            if let Some(node) = self.inner.remove_node(id.0) {
                self.names.remove(&node.name);
            }
        }
    }

    /// Removes what no output depends on; inputs stay. Returns how many nodes went.
    pub fn sweep(&mut self) -> usize {
        let mut live: BTreeSet<NodeId> = self.inputs.iter().copied().collect();
        let mut stack: Vec<NodeId> = self.outputs.iter().map(|(_, id)| *id).collect();
        stack.extend(live.iter().copied());
        while let Some(id) = stack.pop() {
            live.insert(id);
            for operand in self.operands(id) {
                if !live.contains(&operand) {
                    stack.push(operand);
                }
            }
        }
        let dead: Vec<NodeId> = self.ids().into_iter().filter(|id| !live.contains(id)).collect();
        for id in &dead {
            if let Some(node) = self.inner.remove_node(id.0) {
                self.names.remove(&node.name);
            }
        }
        dead.len()
    }
}
