//! Model-local functions: finding them, and their bodies with the caller's attributes put in.

use crate::error::{Fault, Res, shown};
use crate::limits;
use crate::model::Opsets;
use std::collections::BTreeMap;
use tract_onnx::pb::{AttributeProto, FunctionProto, NodeProto};

/// The standard domain has two names.
pub(crate) fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// The functions of a model, by domain and name.
pub(crate) struct Functions<'m> {
    map: BTreeMap<(&'m str, &'m str), Body<'m>>,
}

/// One function.
#[derive(Clone, Copy)]
pub(crate) struct Body<'m> {
    message: &'m FunctionProto,
    /// Number of nodes after all calls inside are expanded; branches are not counted.
    pub size: usize,
}

impl<'m> Functions<'m> {
    pub fn new(list: &'m [FunctionProto]) -> Result<Self, String> {
        let mut map = BTreeMap::new();
        for f in list {
            let name = f.name.as_deref().unwrap_or_default();
            let key = (domain(f.domain.as_deref().unwrap_or_default()), name);
            if map.insert(key, Body { message: f, size: f.node.len() }).is_some() {
                return Err(format!("function `{}` twice", shown(name)));
            }
        }
        let mut functions = Functions { map };
        // A round adds one level of calls; deeper ones are refused anyway.
        for _ in 0..limits::CALL_DEPTH {
            let sizes: Vec<usize> = functions.map.values().map(|f| functions.expanded(f)).collect();
            functions.map.values_mut().zip(sizes).for_each(|(f, size)| f.size = size);
        }
        Ok(functions)
    }

    fn expanded(&self, f: &Body<'_>) -> usize {
        let callee = |n: &NodeProto| self.find(domain(&n.domain), &n.op_type);
        let sizes = f.message.node.iter().map(|n| callee(n).map_or(1, |c| c.size));
        sizes.fold(0, usize::saturating_add)
    }

    pub fn find(&self, domain: &str, name: &str) -> Option<Body<'m>> {
        self.map.get(&(domain, name)).copied()
    }
}

impl<'m> Body<'m> {
    pub fn inputs(self) -> &'m [String] {
        &self.message.input
    }

    pub fn outputs(self) -> &'m [String] {
        &self.message.output
    }

    /// The nodes of the function as `caller` sees them, and the opsets they are written in.
    pub fn instantiate(self, caller: &NodeProto) -> Res<(Vec<NodeProto>, Opsets)> {
        for a in &caller.attribute {
            if !self.message.attribute.contains(&a.name) {
                let name = shown(&a.name);
                return Err(Fault::invalid(format!("the function has no attribute `{name}`")));
            }
        }
        let mut nodes = self.message.node.clone();
        for node in &mut nodes {
            bind(node, &caller.attribute)?;
        }
        let sets = self.message.opset_import.iter();
        let opsets = sets.map(|s| (domain(&s.domain).to_owned(), s.version)).collect();
        Ok((nodes, opsets))
    }
}

/// Replaces references to the function's attributes by the caller's values, also in branches; a
/// reference to an attribute that the caller does not give disappears.
fn bind(node: &mut NodeProto, given: &[AttributeProto]) -> Res<()> {
    let mut kept = Vec::with_capacity(node.attribute.len());
    for mut a in std::mem::take(&mut node.attribute) {
        if a.ref_attr_name.is_empty() {
            for graph in a.g.iter_mut().chain(&mut a.graphs) {
                graph.node.iter_mut().try_for_each(|n| bind(n, given))?;
            }
            kept.push(a);
        } else if let Some(value) = given.iter().find(|g| g.name == a.ref_attr_name) {
            kept.push(AttributeProto { name: a.name, ..value.clone() });
        }
    }
    node.attribute = kept;
    Ok(())
}
