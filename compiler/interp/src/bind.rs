//! Symbols to numbers: from the shapes of the inputs, and within the attributes of an operation.

use crate::error::{EvalError, OpError, Res};
use crate::tensor::Tensor;
use fqc_ir::graph::Limit;
use fqc_ir::{Dim, Graph, NodeId, Op, Type};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What each symbol stands for in one run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Binding(BTreeMap<Arc<str>, i64>);

impl Binding {
    pub fn new() -> Self {
        Binding::default()
    }

    pub fn get(&self, symbol: &str) -> Option<i64> {
        self.0.get(symbol).copied()
    }

    pub fn set(&mut self, symbol: &str, value: i64) {
        self.0.insert(Arc::from(symbol), value);
    }

    /// The value of a size; `None` for an unbound symbol, a division by zero or an overflow.
    pub fn eval(&self, dim: &Dim) -> Option<i64> {
        dim.eval(&|symbol| self.get(symbol))
    }

    /// The sizes of a shape; `None` also for a negative one.
    pub fn shape(&self, shape: &[Dim]) -> Option<Vec<usize>> {
        shape.iter().map(|d| self.eval(d).and_then(|v| usize::try_from(v).ok())).collect()
    }
}

impl<S: AsRef<str>> FromIterator<(S, i64)> for Binding {
    fn from_iter<I: IntoIterator<Item = (S, i64)>>(pairs: I) -> Self {
        Binding(pairs.into_iter().map(|(s, v)| (Arc::from(s.as_ref()), v)).collect())
    }
}

/// Checks the inputs against the graph and binds its symbols: first every size that is a bare
/// symbol, then all others are computed and compared, then the limits.
pub fn bind<S: AsRef<str>>(graph: &Graph, inputs: &[(S, Tensor)]) -> Result<Binding, EvalError> {
    let declared: Vec<(&str, &Type)> = graph
        .inputs()
        .iter()
        .map(|&id| (graph.node(id).name.as_str(), &graph.node(id).ty))
        .collect();
    if let Some((name, _)) =
        inputs.iter().find(|(name, _)| !declared.iter().any(|(d, _)| *d == name.as_ref()))
    {
        let all: Vec<&str> = declared.iter().map(|d| d.0).collect();
        let what = format!("the graph has no such input, only `{}`", all.join("`, `"));
        return Err(EvalError::Input { name: name.as_ref().to_owned(), what });
    }
    let mut given: Vec<(&str, &Type, &Tensor)> = Vec::new();
    for (name, ty) in declared {
        let Some((_, tensor)) = inputs.iter().find(|(n, _)| n.as_ref() == name) else {
            let what = format!("is missing, it is {ty}");
            return Err(EvalError::Input { name: name.to_owned(), what });
        };
        if tensor.elem() != ty.elem || tensor.shape().len() != ty.rank() {
            let what = format!("is {}, the graph wants {ty}", tensor.ty());
            return Err(EvalError::Input { name: name.to_owned(), what });
        }
        given.push((name, ty, tensor));
    }
    let mut binding = Binding::new();
    for (_, ty, tensor) in &given {
        for (dim, &size) in ty.shape.iter().zip(tensor.shape()) {
            if let (Some(symbol), None) = (dim.as_sym(), dim.as_sym().and_then(|s| binding.get(s)))
            {
                binding.set(symbol, size as i64);
            }
        }
    }
    for (name, ty, tensor) in given {
        for (axis, (dim, &size)) in ty.shape.iter().zip(tensor.shape()).enumerate() {
            let Some(wanted) = binding.eval(dim) else {
                let what = format!("size `{dim}` of axis {axis} cannot be computed");
                return Err(EvalError::Input { name: name.to_owned(), what });
            };
            if wanted != size as i64 {
                let what = if dim.is_const() {
                    format!("axis {axis} has size {size}, the graph wants {wanted}")
                } else {
                    format!("axis {axis} has size {size}, the graph wants `{dim}` = {wanted}")
                };
                return Err(EvalError::Input { name: name.to_owned(), what });
            }
        }
    }
    check_limits(graph, &binding)?;
    Ok(binding)
}

fn check_limits(graph: &Graph, binding: &Binding) -> Result<(), EvalError> {
    for limit in graph.limits() {
        let value = |dim: &Dim| {
            binding.eval(dim).ok_or_else(|| EvalError::Sizes(format!("`{dim}` has no value")))
        };
        match limit {
            Limit::AtMost(dim, most) => {
                let size = value(dim)?;
                if size > *most {
                    let what = format!("`{dim}` is {size}, at most {most} is allowed");
                    return Err(EvalError::Sizes(what));
                }
            }
            Limit::Equal(a, b) => {
                let (x, y) = (value(a)?, value(b)?);
                if x != y {
                    let what = format!("`{a}` is {x} and `{b}` is {y}, they must be equal");
                    return Err(EvalError::Sizes(what));
                }
            }
        }
    }
    Ok(())
}

/// The operation with every size in it a number.
pub(crate) fn bind_op(op: &Op, binding: &Binding) -> Res<Op> {
    let one = |dim: &Dim| match binding.eval(dim) {
        Some(v) => Ok(Dim::from(v)),
        None => Err(OpError::invalid(format!("size `{dim}` cannot be computed"))),
    };
    let all = |dims: &[Dim]| dims.iter().map(one).collect::<Res<Vec<Dim>>>();
    Ok(match op {
        Op::Dims(dims) => Op::Dims(all(dims)?),
        Op::Iota(len) => Op::Iota(one(len)?),
        Op::Reshape(shape) => Op::Reshape(all(shape)?),
        Op::Broadcast(shape) => Op::Broadcast(all(shape)?),
        Op::Slice { start, len, step } => {
            Op::Slice { start: all(start)?, len: all(len)?, step: step.clone() }
        }
        Op::Pad { before, after, mode } => {
            Op::Pad { before: all(before)?, after: all(after)?, mode: *mode }
        }
        other => other.clone(),
    })
}

/// The type of a node with numbers for sizes.
pub(crate) fn node_shape(graph: &Graph, id: NodeId, binding: &Binding) -> Res<Vec<usize>> {
    let ty = &graph.node(id).ty;
    binding
        .shape(&ty.shape)
        .ok_or_else(|| OpError::invalid(format!("the sizes of {ty} cannot be computed")))
}
