//! What an operator's function sees of its node: operands, attributes, opset, the builder.

use crate::attrs::Attrs;
use crate::builder::{Builder, V};
use crate::error::{Fault, Res};
use crate::external::External;
use crate::tensor;
use fqc_ir::Const;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use tract_onnx::pb::TensorProto;

/// One ONNX node under import. Dereferences to the builder.
pub(crate) struct Cx<'a> {
    pub builder: &'a mut Builder,
    pub external: &'a mut External,
    pub attrs: Attrs<'a>,
    /// Version of the operator's domain.
    pub version: i64,
    operands: Vec<Option<V>>,
    /// Which results the model reads; an empty name is not read.
    results: Vec<bool>,
    used: Cell<u64>,
}

impl Deref for Cx<'_> {
    type Target = Builder;
    fn deref(&self) -> &Builder {
        self.builder
    }
}

impl DerefMut for Cx<'_> {
    fn deref_mut(&mut self) -> &mut Builder {
        self.builder
    }
}

impl<'a> Cx<'a> {
    pub fn new(
        builder: &'a mut Builder,
        external: &'a mut External,
        attrs: Attrs<'a>,
        version: i64,
        operands: Vec<Option<V>>,
        results: Vec<bool>,
    ) -> Self {
        Cx { builder, external, attrs, version, operands, results, used: Cell::new(0) }
    }

    /// Number of operands given, absent optional ones in the middle included.
    pub fn arity(&self) -> usize {
        self.operands.len()
    }

    /// An optional operand.
    pub fn opt(&self, i: usize) -> Option<V> {
        if i < 64 {
            self.used.set(self.used.get() | 1 << i);
        }
        self.operands.get(i).cloned().flatten()
    }

    pub fn operand(&self, i: usize) -> Res<V> {
        self.opt(i).ok_or_else(|| Fault::invalid(format!("operand {i} is missing")))
    }

    /// All operands of a variadic operator.
    pub fn all(&self) -> Res<Vec<V>> {
        self.used.set(u64::MAX);
        if self.operands.is_empty() {
            return Err(Fault::invalid("no operands"));
        }
        let each = self.operands.iter().enumerate();
        each.map(|(i, v)| {
            v.clone().ok_or_else(|| Fault::invalid(format!("operand {i} is missing")))
        })
        .collect()
    }

    /// Number of results that the node names.
    pub fn results(&self) -> usize {
        self.results.len()
    }

    /// Whether result `i` is named.
    pub fn wants(&self, i: usize) -> bool {
        self.results.get(i).copied().unwrap_or(false)
    }

    /// Refuses operands and attributes that the operator's function did not look at.
    pub fn finish(&self) -> Res<()> {
        let extra = |i: &usize| {
            self.operands[*i].is_some() && (*i >= 64 || self.used.get() & (1 << *i) == 0)
        };
        if self.used.get() != u64::MAX
            && let Some(i) = (0..self.operands.len()).find(extra)
        {
            return Err(Fault::invalid(format!("operand {i} is one too many")));
        }
        match self.attrs.unread().as_slice() {
            [] => Ok(()),
            names => {
                let names: Vec<String> =
                    names.iter().map(|n| format!("`{}`", crate::error::shown(n))).collect();
                Err(Fault::unsupported(format!("attribute {} is not known", names.join(", "))))
            }
        }
    }

    /// The constant of a tensor attribute.
    pub fn tensor(&mut self, t: &TensorProto) -> Res<Const> {
        tensor::copy(t, self.external)
    }

    /// An attribute that became an operand at opset `since`: integers from either.
    pub fn ints(&self, name: &str, operand: usize, since: i64) -> Res<Option<Vec<i64>>> {
        if self.version < since {
            return self.attrs.ints_opt(name);
        }
        match self.opt(operand) {
            None => Ok(None),
            Some(v) => self.ints_of(&v, "a list of axes").map(Some),
        }
    }
}

/// An axis counted from the front; negative ones count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Res<usize> {
    let r = rank as i64;
    if (-r..r).contains(&axis) {
        Ok(if axis < 0 { axis + r } else { axis } as usize)
    } else {
        Err(Fault::invalid(format!("axis {axis} of a tensor with {rank} axes")))
    }
}

/// Several axes, each at most once, in ascending order.
pub(crate) fn axes(list: &[i64], rank: usize) -> Res<Vec<usize>> {
    let mut out: Vec<usize> = list.iter().map(|&a| axis(a, rank)).collect::<Res<_>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(Fault::invalid(format!("axes {list:?} repeat an axis")));
    }
    Ok(out)
}
