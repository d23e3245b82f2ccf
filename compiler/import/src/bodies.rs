//! Bodies that stand inside of nodes and are inlined: the branch of an `If` that is taken, and
//! model-local functions.

use crate::attrs::Attrs;
use crate::builder::V;
use crate::error::{Fault, Res, shown};
use crate::functions::Body;
use crate::model::{Opsets, Scope, Stop, Walk};
use crate::{limits, tensor};
use fqc_ir::Elem;
use std::collections::BTreeSet;
use tract_onnx::pb::{GraphProto, NodeProto};

/// The values that a body makes; an empty list if something in it is broken and reported.
type Made = Result<Res<Vec<V>>, Stop>;

impl Walk<'_> {
    /// `If` on a condition that is known: only the branch that is taken is imported.
    pub(crate) fn branch(
        &mut self,
        attrs: &Attrs<'_>,
        opsets: &Opsets,
        operands: &[Option<V>],
    ) -> Made {
        let graph = match self.taken(attrs, operands) {
            Ok(graph) => graph,
            Err(fault) => return Ok(Err(fault)),
        };
        self.nested(|walk| {
            walk.scopes.push(Scope::new());
            let out = walk.branch_body(graph, opsets);
            walk.scopes.pop();
            out
        })
    }

    fn taken<'a>(&self, attrs: &Attrs<'a>, operands: &[Option<V>]) -> Res<&'a GraphProto> {
        let condition = operands.first().cloned().flatten();
        let condition = condition.ok_or_else(|| Fault::invalid("the condition is missing"))?;
        if condition.elem() != Elem::Bool {
            return Err(Fault::invalid("the condition is not a bool"));
        }
        let (yes, no) = (attrs.graph("then_branch")?, attrs.graph("else_branch")?);
        match self.builder.ints_of(&condition, "the condition of `If`")?.as_slice() {
            [v] => Ok(if *v != 0 { yes } else { no }),
            _ => Err(Fault::invalid("the condition is not one bool")),
        }
    }

    fn branch_body(&mut self, graph: &GraphProto, opsets: &Opsets) -> Made {
        let mut seen = BTreeSet::new();
        for t in &graph.initializer {
            if !seen.insert(&t.name) {
                let message = format!("initializer `{}` twice", shown(&t.name));
                return Ok(Err(Fault::invalid(message)));
            }
            match tensor::copy(t, self.external) {
                Ok(c) => {
                    let v = self.builder.constant(c);
                    self.define(&t.name, Some(v));
                }
                Err(fault) => return Ok(Err(fault)),
            }
        }
        self.body(graph, opsets)?;
        let mut values = Vec::new();
        for info in &graph.output {
            match self.lookup(&info.name) {
                Some(Some(v)) => values.push(v.clone()),
                Some(None) => return Ok(Ok(Vec::new())),
                None => {
                    let message = format!("no node makes the output `{}`", shown(&info.name));
                    return Ok(Err(Fault::invalid(message)));
                }
            }
        }
        Ok(Ok(values))
    }

    /// A call of a model-local function: its body, with formal names bound to the operands.
    pub(crate) fn call(
        &mut self,
        node: &NodeProto,
        function: Body<'_>,
        operands: &[Option<V>],
    ) -> Made {
        let (nodes, opsets) = match function.instantiate(node) {
            Ok(body) => body,
            Err(fault) => return Ok(Err(fault)),
        };
        self.nested(|walk| {
            let floor = std::mem::replace(&mut walk.floor, walk.scopes.len());
            let output = node.output.first().map_or("", |o| o.as_str());
            let inner = format!("{}{}.", walk.prefix, output);
            let prefix = std::mem::replace(&mut walk.prefix, inner);
            walk.scopes.push(Scope::new());
            let made = walk.function_body(function, nodes, &opsets, operands);
            walk.scopes.pop();
            walk.floor = floor;
            walk.prefix = prefix;
            made
        })
    }

    fn function_body(
        &mut self,
        function: Body<'_>,
        nodes: Vec<NodeProto>,
        opsets: &Opsets,
        operands: &[Option<V>],
    ) -> Made {
        if operands.len() > function.inputs().len() {
            let most = function.inputs().len();
            let message = format!("{} operands, the function takes {most}", operands.len());
            return Ok(Err(Fault::invalid(message)));
        }
        let mut absent = BTreeSet::new();
        for (i, formal) in function.inputs().iter().enumerate() {
            match operands.get(i).cloned().flatten() {
                Some(v) => self.define(formal, Some(v)),
                None => {
                    absent.insert(formal.as_str());
                }
            }
        }
        for mut inner in nodes {
            for name in inner.input.iter_mut().filter(|n| absent.contains(n.as_str())) {
                name.clear();
            }
            self.node(&inner, opsets)?;
        }
        let mut values = Vec::new();
        for name in function.outputs() {
            match self.lookup(name) {
                Some(Some(v)) => values.push(v.clone()),
                Some(None) => return Ok(Ok(Vec::new())),
                None => {
                    let message = format!("the function does not make `{}`", shown(name));
                    return Ok(Err(Fault::invalid(message)));
                }
            }
        }
        Ok(Ok(values))
    }

    fn nested(&mut self, body: impl FnOnce(&mut Self) -> Made) -> Made {
        if self.depth >= limits::CALL_DEPTH {
            let message = format!("functions and branches nest deeper than {}", limits::CALL_DEPTH);
            return Ok(Err(Fault::limit(message).help("does a function call itself?")));
        }
        self.depth += 1;
        let made = body(self);
        self.depth -= 1;
        made
    }
}
