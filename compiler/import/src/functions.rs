//! Model-local functions: finding them, and their bodies with the caller's attributes put in.

use crate::error::{Fault, Res, shown};
use crate::model::Opsets;
use std::collections::BTreeMap;
use tract_onnx::pb::{AttributeProto, FunctionProto, NodeProto};

/// The standard domain has two names.
pub(crate) fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// The functions of a model, by domain and name.
pub(crate) struct Functions<'m> {
    map: BTreeMap<(&'m str, &'m str), &'m FunctionProto>,
}

/// One function.
#[derive(Clone, Copy)]
pub(crate) struct Body<'m>(&'m FunctionProto);

impl<'m> Functions<'m> {
    pub fn new(list: &'m [FunctionProto]) -> Result<Self, String> {
        let mut map = BTreeMap::new();
        for f in list {
            let name = f.name.as_deref().unwrap_or_default();
            let key = (domain(f.domain.as_deref().unwrap_or_default()), name);
            if map.insert(key, f).is_some() {
                return Err(format!("function `{}` twice", shown(name)));
            }
        }
        Ok(Functions { map })
    }

    pub fn find(&self, domain: &str, name: &str) -> Option<Body<'m>> {
        self.map.get(&(domain, name)).map(|f| Body(f))
    }
}

impl<'m> Body<'m> {
    pub fn inputs(self) -> &'m [String] {
        &self.0.input
    }

    pub fn outputs(self) -> &'m [String] {
        &self.0.output
    }

    /// The nodes of the function as `caller` sees them, and the opsets they are written in.
    pub fn instantiate(self, caller: &NodeProto) -> Res<(Vec<NodeProto>, Opsets)> {
        for a in &caller.attribute {
            if !self.0.attribute.contains(&a.name) {
                let name = shown(&a.name);
                return Err(Fault::invalid(format!("the function has no attribute `{name}`")));
            }
        }
        let mut nodes = self.0.node.clone();
        for node in &mut nodes {
            bind(node, &caller.attribute)?;
        }
        let sets = self.0.opset_import.iter();
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
