//! The walk over a model: opsets, initializers, inputs, nodes in order, branches and model-local
//! functions inlined, outputs. Problems are collected; what depends on a broken node is skipped.

use crate::attrs::Attrs;
use crate::builder::{Builder, V};
use crate::cx::Cx;
use crate::dims::{self, Substitution};
use crate::error::{Fault, Kind, Problem, Res, Site, shown};
use crate::external::External;
use crate::functions::{self, Functions};
use crate::{ImportOptions, limits, ops, tensor};
use fqc_ir::{Const, Dim, Graph, Op, Type};
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as DimValue;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, ValueInfoProto, type_proto};

/// The newest version of the standard operators whose meaning is known here.
const NEWEST_OPSET: i64 = 27;
const OLDEST_OPSET: i64 = 7;

/// Values by name; `None` for a value that a broken node should have made.
pub(crate) type Scope = BTreeMap<String, Option<V>>;

/// Versions by domain, the standard domain as the empty string.
pub(crate) type Opsets = BTreeMap<String, i64>;

/// One attempt at a model, under the substitutions found so far.
pub(crate) struct Walk<'m> {
    pub(crate) builder: Builder,
    pub(crate) external: &'m mut External,
    pub(crate) functions: Functions<'m>,
    substitution: &'m Substitution,
    options: &'m ImportOptions,
    problems: Vec<Problem>,
    needs: BTreeSet<String>,
    /// Names of the scopes that are open, innermost last.
    pub(crate) scopes: Vec<Scope>,
    /// Scopes below this one belong to a caller and are not visible.
    pub(crate) floor: usize,
    /// Prefixes of the functions that are open.
    pub(crate) prefix: String,
    nodes: usize,
    pub(crate) depth: usize,
}

/// How an attempt ended.
pub(crate) enum Outcome {
    Done(Box<Graph>),
    /// These sizes must be equal; try again with that.
    Equate(Dim, Dim, Box<Problem>),
    Failed(Vec<Problem>, Vec<String>),
}

/// Why a node's walk stops the whole attempt.
pub(crate) enum Stop {
    Equate(Dim, Dim, Box<Problem>),
    Limit,
}

/// What an attempt needs beside the model.
pub(crate) struct Inputs<'m> {
    pub initializers: &'m BTreeMap<String, Res<Const>>,
    pub external: &'m mut External,
    pub substitution: &'m Substitution,
    pub options: &'m ImportOptions,
}

pub(crate) fn attempt(model: &ModelProto, given: Inputs<'_>) -> Outcome {
    let Some(graph) = &model.graph else {
        return failed(Kind::Invalid, "the model has no graph", "");
    };
    let opsets = match opsets(model) {
        Ok(opsets) => opsets,
        Err(problem) => return Outcome::Failed(vec![problem], Vec::new()),
    };
    let functions = match Functions::new(&model.functions) {
        Ok(functions) => functions,
        Err(message) => return failed(Kind::Invalid, &message, ""),
    };
    let mut walk = Walk {
        builder: Builder::new(if graph.name.is_empty() { "main" } else { &graph.name }),
        external: given.external,
        functions,
        substitution: given.substitution,
        options: given.options,
        problems: Vec::new(),
        needs: BTreeSet::new(),
        scopes: vec![Scope::new()],
        floor: 0,
        prefix: String::new(),
        nodes: 0,
        depth: 0,
    };
    match walk.main(graph, given.initializers, &opsets) {
        Ok(()) if walk.problems.is_empty() => {
            walk.builder.graph.sweep();
            Outcome::Done(Box::new(walk.builder.graph))
        }
        Err(Stop::Equate(a, b, problem)) => Outcome::Equate(a, b, problem),
        Ok(()) | Err(Stop::Limit) => {
            Outcome::Failed(walk.problems, walk.needs.into_iter().collect())
        }
    }
}

fn failed(kind: Kind, message: &str, help: &str) -> Outcome {
    Outcome::Failed(vec![problem(kind, message, help)], Vec::new())
}

fn problem(kind: Kind, message: impl Into<String>, help: impl Into<String>) -> Problem {
    Problem { kind, site: None, message: message.into(), help: help.into() }
}

fn opsets(model: &ModelProto) -> Result<Opsets, Problem> {
    let mut out = Opsets::new();
    for set in &model.opset_import {
        let domain = functions::domain(&set.domain);
        if out.insert(domain.to_owned(), set.version).is_some_and(|old| old != set.version) {
            let message = format!("domain `{}` is imported twice", shown(domain));
            return Err(problem(Kind::Invalid, message, ""));
        }
    }
    match out.get("") {
        None if model.functions.is_empty() && out.is_empty() => {
            let help = "the file may be truncated or not an ONNX model";
            Err(problem(Kind::Invalid, "the model imports no opset", help))
        }
        Some(v) if !(OLDEST_OPSET..=NEWEST_OPSET).contains(v) => {
            let message = format!("opset {v} is not supported");
            let help = format!(
                "supported are {OLDEST_OPSET} to {NEWEST_OPSET}; convert the model with \
                 `onnx.version_converter`"
            );
            Err(problem(Kind::Unsupported, message, help))
        }
        _ => Ok(out),
    }
}

impl Walk<'_> {
    fn main(
        &mut self,
        graph: &GraphProto,
        initializers: &BTreeMap<String, Res<Const>>,
        opsets: &Opsets,
    ) -> Result<(), Stop> {
        if !graph.sparse_initializer.is_empty() {
            let help = "convert it to a dense initializer";
            let message = "sparse initializers are not supported";
            self.problems.push(problem(Kind::Unsupported, message, help));
        }
        for (name, constant) in initializers {
            let value = match constant {
                Ok(c) => Some(self.constant(c.clone(), name)),
                Err(fault) => {
                    let message = format!("initializer `{}`: {}", shown(name), fault.message());
                    let Fault::Problem { kind, help, .. } = fault else { continue };
                    self.problems.push(problem(*kind, message, help));
                    None
                }
            };
            self.define(name, value);
        }
        let mut seen = BTreeSet::new();
        for info in &graph.input {
            if !seen.insert(&info.name) {
                let message = format!("input `{}` twice", shown(&info.name));
                self.problems.push(problem(Kind::Invalid, message, ""));
            } else if !initializers.contains_key(&info.name) {
                self.input(info);
            }
        }
        self.body(graph, opsets)?;
        self.outputs(graph);
        Ok(())
    }

    fn constant(&mut self, c: Const, name: &str) -> V {
        let v = self.builder.constant(c);
        self.builder.name(&v, name);
        v
    }

    pub(crate) fn define(&mut self, name: &str, value: Option<V>) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), value);
        }
    }

    pub(crate) fn lookup(&self, name: &str) -> Option<&Option<V>> {
        self.scopes[self.floor..].iter().rev().find_map(|s| s.get(name))
    }

    fn input(&mut self, info: &ValueInfoProto) {
        let name = shown(&info.name);
        let bound = self.options.bind.get(&info.name).cloned();
        let value = self.input_type(info).and_then(|ty| match bound {
            Some(c) if c.elem != ty.elem || c.shape.len() != ty.rank() => {
                Err(Fault::invalid(format!("is `{ty}`, but bound to `{}{:?}`", c.elem, c.shape)))
            }
            Some(c) => Ok(self.constant(c, &info.name)),
            None => self.builder.input(&info.name, ty),
        });
        if let Err(Fault::Problem { kind, message, help }) = &value {
            self.problems.push(problem(*kind, format!("input `{name}`: {message}"), help));
        }
        self.define(&info.name, value.ok());
    }

    fn input_type(&self, info: &ValueInfoProto) -> Res<Type> {
        let Some(type_proto::Value::TensorType(t)) =
            info.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            return Err(Fault::unsupported("is not a tensor"));
        };
        let elem = tensor::elem(t.elem_type)?;
        let Some(shape) = &t.shape else {
            return Err(Fault::unsupported("the number of axes is not known")
                .help("run `onnx.shape_inference` or export with a fixed rank"));
        };
        if info.name.is_empty() || info.name.len() > limits::NAME_BYTES {
            return Err(Fault::invalid("the name is empty or too long"));
        }
        let mut dims = Vec::new();
        for (i, dim) in shape.dim.iter().enumerate() {
            let size = match &dim.value {
                Some(DimValue::DimValue(v)) if *v < 0 => {
                    return Err(Fault::invalid(format!("axis {i} has size {v}")));
                }
                Some(DimValue::DimValue(v)) => Dim::from(*v),
                Some(DimValue::DimParam(p)) if !p.is_empty() && p != "?" => dims::parse(p),
                _ => Dim::sym(format!("{}_{i}", dims::symbol(&info.name))),
            };
            dims.push(self.substitution.apply(&size));
        }
        Ok(Type::new(elem, dims))
    }

    fn outputs(&mut self, graph: &GraphProto) {
        if graph.output.is_empty() {
            self.problems.push(problem(Kind::Invalid, "the model has no outputs", ""));
        }
        let mut seen = BTreeSet::new();
        for info in &graph.output {
            let name = shown(&info.name);
            if !seen.insert(&info.name) {
                let message = format!("output `{name}` twice");
                self.problems.push(problem(Kind::Invalid, message, ""));
                continue;
            }
            match self.lookup(&info.name).cloned() {
                Some(Some(v)) => match self.builder.node(&v) {
                    Ok(id) => self.builder.graph.add_output(&info.name, id),
                    Err(fault) => {
                        let message = format!("output `{name}`: {}", fault.message());
                        self.problems.push(problem(Kind::Invalid, message, ""));
                    }
                },
                Some(None) => {}
                None => {
                    let message = format!("no node makes the output `{name}`");
                    self.problems.push(problem(Kind::Invalid, message, ""));
                }
            }
        }
    }

    /// All nodes of a graph or a branch.
    pub(crate) fn body(&mut self, graph: &GraphProto, opsets: &Opsets) -> Result<(), Stop> {
        graph.node.iter().try_for_each(|node| self.node(node, opsets))
    }

    /// One node, or the body that it stands for.
    pub(crate) fn node(&mut self, node: &NodeProto, opsets: &Opsets) -> Result<(), Stop> {
        self.nodes += 1;
        if self.nodes > limits::NODES {
            return Err(self.too_many());
        }
        let mut operands = Vec::with_capacity(node.input.len());
        let mut fault = None;
        for name in &node.input {
            match self.lookup(name) {
                _ if name.is_empty() => operands.push(None),
                Some(v) => operands.push(v.clone()),
                None => {
                    let message = format!("reads `{}`, which nothing before it makes", shown(name));
                    fault.get_or_insert(
                        Fault::invalid(message).help(
                            "nodes must be sorted and without cycles; was the file truncated?",
                        ),
                    );
                }
            }
        }
        let broken = node.input.iter().any(|n| matches!(self.lookup(n), Some(None)));
        let values = match fault {
            Some(fault) => Err(fault),
            None => self.apply(node, opsets, operands.clone(), broken)?,
        };
        match values.and_then(|values| self.results(node, &values)) {
            Ok(()) => Ok(()),
            Err(Fault::Equal(a, b)) => {
                let message = format!("size `{a}` must equal `{b}`");
                let help = "export the model with consistent sizes".to_owned();
                let site = Some(Box::new(self.site(node, opsets, &operands)));
                let problem = Problem { kind: Kind::Invalid, site, message, help };
                Err(Stop::Equate(a, b, Box::new(problem)))
            }
            Err(fault) => {
                let site = self.site(node, opsets, &operands);
                self.report(fault, site);
                self.poison(node);
                Ok(())
            }
        }
    }

    /// Results of a node as values, or `Ok(Ok(vec![]))` with all results poisoned already.
    fn apply(
        &mut self,
        node: &NodeProto,
        opsets: &Opsets,
        operands: Vec<Option<V>>,
        broken: bool,
    ) -> Result<Res<Vec<V>>, Stop> {
        let domain = functions::domain(&node.domain);
        if let Some(function) = self.functions.find(domain, &node.op_type) {
            if self.nodes.saturating_add(function.size) > limits::NODES {
                return Err(self.too_many());
            }
            return if broken { Ok(Ok(Vec::new())) } else { self.call(node, function, &operands) };
        }
        let Some(&version) = opsets.get(domain) else {
            let message = format!("the model does not import domain `{}`", shown(domain));
            return Ok(Err(Fault::invalid(message)));
        };
        let is_if = domain.is_empty() && node.op_type == "If";
        let run = ops::find(domain, &node.op_type);
        if run.is_none() && !is_if {
            let op = qualified(node);
            return Ok(Err(Fault::unsupported(format!("operator `{op}` is not supported"))));
        }
        if broken {
            return Ok(Ok(Vec::new()));
        }
        let attrs = match Attrs::new(&node.attribute) {
            Ok(attrs) => attrs,
            Err(fault) => return Ok(Err(fault)),
        };
        let Some(run) = run else { return self.branch(&attrs, opsets, &operands) };
        let output = node.output.iter().find(|o| !o.is_empty()).map_or("", |o| o.as_str());
        let results = node.output.iter().map(|o| !o.is_empty()).collect();
        self.builder.begin(
            &format!("{}{}", self.prefix, if node.name.is_empty() { output } else { &node.name }),
            &format!("{}{output}", self.prefix),
        );
        let mut cx = Cx::new(&mut self.builder, self.external, attrs, version, operands, results);
        Ok(run.apply(&mut cx).and_then(|values| cx.finish().map(|()| values)))
    }

    fn too_many(&mut self) -> Stop {
        let message = format!("the model expands to more than {} nodes", limits::NODES);
        self.problems.push(problem(Kind::Limit, message, "does a function call itself?"));
        Stop::Limit
    }

    /// Names the values that a node made; none at all means that they are broken already.
    fn results(&mut self, node: &NodeProto, values: &[V]) -> Res<()> {
        if values.is_empty() {
            self.poison(node);
            return Ok(());
        }
        for (i, name) in node.output.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            if self.scopes.last().is_some_and(|s| s.contains_key(name)) {
                return Err(Fault::invalid(format!("`{}` is defined twice", shown(name))));
            }
            let v = values
                .get(i)
                .ok_or_else(|| Fault::unsupported(format!("result {i} is not supported")))?;
            let full = format!("{}{name}", self.prefix);
            self.builder.name(v, &full);
            self.define(name, Some(v.clone()));
        }
        Ok(())
    }

    fn poison(&mut self, node: &NodeProto) {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            self.define(name, None);
        }
    }

    fn site(&self, node: &NodeProto, opsets: &Opsets, operands: &[Option<V>]) -> Site {
        let first = node.output.iter().find(|o| !o.is_empty());
        let name = if node.name.is_empty() { first.map_or("", |o| o) } else { &node.name };
        Site {
            node: shown(&format!("{}{name}", self.prefix)),
            op: qualified(node),
            opset: opsets.get(functions::domain(&node.domain)).copied().unwrap_or(0),
            operands: operands
                .iter()
                .take(8)
                .map(|v| v.as_ref().map_or_else(|| "-".into(), |v| format!("`{}`", v.ty)))
                .collect(),
        }
    }

    fn report(&mut self, fault: Fault, site: Site) {
        let (kind, message, help) = match fault {
            Fault::Problem { kind, message, help } => (kind, message, help),
            Fault::Equal(a, b) => {
                (Kind::Invalid, format!("size `{a}` must equal `{b}`"), String::new())
            }
            Fault::Unknown { value, what } => {
                let inputs = value.map(|id| self.sources(id)).unwrap_or_default();
                let names: Vec<String> = inputs.iter().map(|n| format!("`{n}`")).collect();
                let message =
                    format!("{what} is known only when the model runs, but decides a shape");
                let help = match names.as_slice() {
                    [] => "export the model with constant shapes".to_owned(),
                    _ => format!("it depends on {}: bind that to a constant", names.join(", ")),
                };
                self.needs.extend(inputs);
                (Kind::Unsupported, message, help)
            }
        };
        self.problems.push(Problem { kind, site: Some(Box::new(site)), message, help });
    }

    /// The model inputs that a value is computed from.
    fn sources(&self, id: fqc_ir::NodeId) -> Vec<String> {
        let graph = &self.builder.graph;
        let (mut seen, mut stack, mut out) = (BTreeSet::from([id]), vec![id], BTreeSet::new());
        while let Some(id) = stack.pop() {
            if matches!(graph.node(id).op, Op::Input(_)) {
                out.insert(graph.node(id).name.clone());
            }
            stack.extend(graph.operands(id).into_iter().filter(|&o| seen.insert(o)));
        }
        out.into_iter().collect()
    }
}

/// The operator with its domain, unless that is the standard one.
pub(crate) fn qualified(node: &NodeProto) -> String {
    let op = shown(&node.op_type);
    match functions::domain(&node.domain) {
        "" => op,
        domain => format!("{}.{op}", shown(domain)),
    }
}
