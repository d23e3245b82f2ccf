//! Equal nodes with equal operands become one; exporters repeat masks, casts and constants for every
//! layer. Nodes that no output needs are removed first.
//!
//! ```text
//! %a = cast %m     %b = cast %m
//! %y = add %a, %b                    ->  %a = cast %m    %y = add %a, %a
//! ```

use crate::facts::Facts;
use crate::run::{Pass, PassCx, PassError};
use fqc_ir::{Const, Graph, NodeId, Op, Patch};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Constants up to this many bytes are compared by content, larger ones by address.
const COMPARED_BYTES: usize = 4096;

/// The pass.
pub struct Cse;

impl Pass for Cse {
    fn name(&self) -> &'static str {
        "cse"
    }

    fn gives(&self) -> Facts {
        Facts::NO_DEAD
    }

    fn breaks(&self) -> Facts {
        Facts::CANONICAL
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), PassError> {
        graph.sweep();
        let mut seen: BTreeMap<(&'static str, Vec<NodeId>, u64), Vec<NodeId>> = BTreeMap::new();
        for id in graph.topological().ok_or(PassError::Cycle)? {
            let op = &graph.node(id).op;
            if matches!(op, Op::Input(_)) {
                continue;
            }
            let key = (op.mnemonic(), graph.operands(id), hash(op));
            let known = seen.entry(key).or_default();
            let Some(&first) = known.iter().find(|&&k| same(graph, k, id)) else {
                known.push(id);
                continue;
            };
            if !cx.take_patch() {
                return Ok(());
            }
            let name = graph.node(id).name.clone();
            Patch::alias(id, first).apply(graph).map_err(|error| PassError::Patch {
                rule: "cse",
                node: name,
                error: error.to_string(),
            })?;
            cx.count("cse");
        }
        Ok(())
    }
}

fn address(value: &Const) -> usize {
    value.bytes.as_slice().as_ptr() as usize
}

/// Only a constant needs more than its operands to be told apart quickly.
fn hash(op: &Op) -> u64 {
    let Op::Const(value) = op else { return 0 };
    let mut hasher = DefaultHasher::new();
    value.shape.hash(&mut hasher);
    let bytes = value.bytes.as_slice();
    if bytes.len() <= COMPARED_BYTES {
        bytes.hash(&mut hasher);
    } else {
        address(value).hash(&mut hasher);
    }
    hasher.finish()
}

fn same(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let (a, b) = (graph.node(a), graph.node(b));
    if a.ty != b.ty {
        return false;
    }
    match (&a.op, &b.op) {
        (Op::Const(x), Op::Const(y)) if x.bytes.as_slice().len() > COMPARED_BYTES => {
            address(x) == address(y)
        }
        (x, y) => x == y,
    }
}
