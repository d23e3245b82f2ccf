//! Builds the graph while following what is already known: an operation on known elements gives a
//! known value and no node. A node for such a value is made only when another node reads it.

use crate::dims;
use crate::error::{Fault, Res, shown};
use crate::known::{self, Known};
use crate::limits;
use crate::places::{count, join, numbers, slice_places, spread, strides, walk};
use fqc_ir::graph::Limit;
use fqc_ir::op::ReduceOp;
use fqc_ir::{BinaryOp, Const, Dim, Elem, Graph, InferError, NodeId, Op, Type, UnaryOp};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// A value of the model.
pub(crate) type V = Rc<Val>;

pub(crate) struct Val {
    pub ty: Type,
    /// The ONNX name, once it has one.
    name: OnceCell<String>,
    source: RefCell<Source>,
    known: OnceCell<Option<Known>>,
}

#[derive(Clone)]
enum Source {
    Node(NodeId),
    /// A constant that no node has read yet.
    Const(Const),
    /// Only its elements, in `known`.
    Elements,
}

impl Val {
    fn new(ty: Type, source: Source) -> V {
        let (name, known) = (OnceCell::new(), OnceCell::new());
        Rc::new(Val { ty, name, source: RefCell::new(source), known })
    }

    pub fn elem(&self) -> Elem {
        self.ty.elem
    }

    pub fn rank(&self) -> usize {
        self.ty.rank()
    }

    pub fn shape(&self) -> &[Dim] {
        &self.ty.shape
    }

    /// The elements, if they are known and few enough to follow.
    pub fn known(&self) -> Option<&Known> {
        let compute = || match &*self.source.borrow() {
            Source::Const(c) if c.count() <= limits::TRACKED => Known::of(c),
            _ => None,
        };
        self.known.get_or_init(compute).as_ref()
    }

    /// The constant behind the value, if it is one.
    pub fn as_const(&self) -> Option<Const> {
        match &*self.source.borrow() {
            Source::Const(c) => Some(c.clone()),
            _ => {
                let shape = self.ty.const_shape()?;
                Const::new(self.elem(), shape, self.known()?.to_bytes(self.elem())?)
            }
        }
    }

    /// The node, if one has been made.
    pub fn made(&self) -> Option<NodeId> {
        match &*self.source.borrow() {
            Source::Node(id) => Some(*id),
            _ => None,
        }
    }
}

/// The graph under construction.
pub(crate) struct Builder {
    pub graph: Graph,
    /// Where new nodes come from.
    origin: Arc<str>,
    /// Stem of the names of new nodes.
    stem: String,
    /// Nodes made since the current ONNX node was begun.
    fresh: Vec<NodeId>,
    /// How often each name was asked for, to number the rest without searching.
    names: BTreeMap<String, usize>,
}

impl Builder {
    pub fn new(name: &str) -> Self {
        Builder {
            graph: Graph::new(node_name(name)),
            origin: Arc::from(""),
            stem: String::new(),
            fresh: Vec::new(),
            names: BTreeMap::new(),
        }
    }

    /// What follows belongs to the ONNX node `origin`, whose first output is `output`.
    pub fn begin(&mut self, origin: &str, output: &str) {
        self.origin = Arc::from(shown(origin));
        self.stem = node_name(output);
        self.fresh.clear();
    }

    /// Gives a value its ONNX name, and its node too if the current ONNX node made it.
    pub fn name(&mut self, v: &V, name: &str) {
        if v.name.set(node_name(name)).is_err() {
            return;
        }
        let Some(id) = v.made() else { return };
        if let Some(i) = self.fresh.iter().position(|&f| f == id) {
            self.fresh.swap_remove(i);
            let free = self.free_name(&node_name(name));
            self.graph.rename(id, &free);
        }
    }

    fn free_name(&mut self, name: &str) -> String {
        let count = self.names.entry(name.to_owned()).or_insert(0);
        *count += 1;
        if *count == 1 { name.to_owned() } else { format!("{name}.{count}") }
    }

    fn push(&mut self, name: &str, op: Op, operands: &[NodeId]) -> Res<NodeId> {
        let name = self.free_name(name);
        let id = self.graph.add(name, op, operands).map_err(|e| match e {
            InferError::Unequal(a, b) => Fault::Equal(a, b),
            InferError::Invalid(message) => Fault::invalid(message),
        })?;
        check_type(&self.graph.node(id).ty)?;
        self.graph.set_origin(id, vec![self.origin.clone()]);
        Ok(id)
    }

    /// The node that computes the value.
    pub fn node(&mut self, v: &V) -> Res<NodeId> {
        let source = v.source.borrow().clone();
        let stem = |kind: &str| v.name.get().cloned().unwrap_or(format!("{}.{kind}", self.stem));
        let id = match source {
            Source::Node(id) => return Ok(id),
            Source::Const(c) => self.push(&stem("const"), Op::Const(c), &[])?,
            Source::Elements => match (v.as_const(), v.known()) {
                (Some(c), _) => self.push(&stem("const"), Op::Const(c), &[])?,
                (None, Some(Known::Dims(elements))) => {
                    let name = stem("dims");
                    let id = self.push(&name, Op::Dims(elements.clone()), &[])?;
                    let id = self.push(&name, Op::Reshape(v.ty.shape.clone()), &[id])?;
                    match v.elem() {
                        Elem::I64 => id,
                        elem => self.push(&name, Op::Cast(elem), &[id])?,
                    }
                }
                _ => unreachable!("a value without a node is a constant or has known sizes"),
            },
        };
        *v.source.borrow_mut() = Source::Node(id);
        Ok(id)
    }

    /// Adds a node.
    pub fn add(&mut self, op: Op, operands: &[&V]) -> Res<V> {
        let ids: Vec<NodeId> = operands.iter().map(|v| self.node(v)).collect::<Res<_>>()?;
        let name = format!("{}.{}", self.stem, op.mnemonic());
        let id = self.push(&name, op, &ids)?;
        self.fresh.push(id);
        Ok(Val::new(self.graph.node(id).ty.clone(), Source::Node(id)))
    }

    /// A model input.
    pub fn input(&mut self, name: &str, ty: Type) -> Res<V> {
        check_type(&ty)?;
        self.begin(name, name);
        let id = self.push(&node_name(name), Op::Input(ty.clone()), &[])?;
        Ok(Val::new(ty, Source::Node(id)))
    }

    pub fn constant(&mut self, c: Const) -> V {
        let shape = c.shape.iter().map(|&d| Dim::from(d)).collect();
        Val::new(Type::new(c.elem, shape), Source::Const(c))
    }

    /// A value of known elements and constant shape.
    pub fn elements(&mut self, elem: Elem, shape: Vec<Dim>, known: Known) -> V {
        let v = Val::new(Type::new(elem, shape), Source::Elements);
        v.known.get_or_init(|| Some(known));
        v
    }

    /// Sizes as an i64 vector.
    pub fn dims(&mut self, dims: Vec<Dim>) -> V {
        let shape = vec![Dim::from(dims.len())];
        self.elements(Elem::I64, shape, Known::Dims(dims))
    }

    /// One number of the given type, rank 0.
    pub fn scalar(&mut self, elem: Elem, value: f64) -> V {
        let known = if elem.is_float() {
            Known::Floats(vec![value])
        } else {
            Known::Dims(vec![Dim::from(value as i64)])
        };
        self.elements(elem, Vec::new(), known)
    }

    /// One size as an i64 scalar.
    pub fn size(&mut self, dim: &Dim) -> V {
        self.elements(Elem::I64, Vec::new(), Known::Dims(vec![dim.clone()]))
    }

    /// Takes for granted that one size is at most another; checked when the model runs.
    pub fn assume_at_most(&mut self, a: &Dim, b: &Dim) -> Res<()> {
        if dims::at_least(b, a) {
            return Ok(());
        }
        let diff = a.clone() - b.clone();
        dims::check(&diff)?;
        if diff.is_const() {
            return Err(Fault::invalid(format!("size {a} is more than {b}")));
        }
        let constant = diff.terms().find(|(atoms, _)| atoms.is_empty()).map_or(0, |(_, k)| k);
        let limit = Limit::AtMost(diff - Dim::from(constant), constant.saturating_neg());
        self.graph.add_limit(limit);
        Ok(())
    }

    /// 0, 1, … `len`-1 as i64.
    pub fn iota(&mut self, len: &Dim) -> Res<V> {
        dims::check(len)?;
        match len.as_const() {
            Some(n) if n < 0 => Err(Fault::invalid(format!("a range of {n} elements"))),
            Some(n) if n <= limits::TRACKED as i64 => {
                Ok(self.dims((0..n).map(Dim::from).collect()))
            }
            _ => self.add(Op::Iota(len.clone()), &[]),
        }
    }

    pub fn unary(&mut self, op: UnaryOp, a: &V) -> Res<V> {
        if let Some(k) = a.known().and_then(|k| known::unary(op, k, a.elem())) {
            let elem = if op.is_predicate() { Elem::Bool } else { a.elem() };
            return Ok(self.elements(elem, a.ty.shape.clone(), k));
        }
        self.add(Op::Unary(op), &[a])
    }

    pub fn binary(&mut self, op: BinaryOp, a: &V, b: &V) -> Res<V> {
        if a.elem() == b.elem()
            && let (Some(x), Some(y)) = (a.known(), b.known())
        {
            let shape = dims::broadcast_shapes(a.shape(), b.shape())?;
            let (x, y) = (spread(x, a.shape(), &shape), spread(y, b.shape(), &shape));
            if let (Some(x), Some(y)) = (x, y)
                && let Some(k) = known::binary(op, &x, &y, a.elem())
            {
                let elem = if op.is_comparison() { Elem::Bool } else { a.elem() };
                check_known(&k)?;
                return Ok(self.elements(elem, shape, k));
            }
        }
        self.add(Op::Binary(op), &[a, b])
    }

    pub fn select(&mut self, c: &V, a: &V, b: &V) -> Res<V> {
        if let (Some(kc), Some(ka), Some(kb)) = (c.known(), a.known(), b.known()) {
            let shape = dims::broadcast_shapes(a.shape(), b.shape())?;
            let shape = dims::broadcast_shapes(c.shape(), &shape)?;
            let all = spread(kc, c.shape(), &shape).zip(spread(ka, a.shape(), &shape).zip(spread(
                kb,
                b.shape(),
                &shape,
            )));
            if let Some((kc, (ka, kb))) = all
                && let Some(k) = known::select(&kc, &ka, &kb)
                && a.elem() == b.elem()
            {
                return Ok(self.elements(a.elem(), shape, k));
            }
        }
        self.add(Op::Select, &[c, a, b])
    }

    pub fn cast(&mut self, v: &V, elem: Elem) -> Res<V> {
        if v.elem() == elem {
            return Ok(v.clone());
        }
        if let Some(k) = v.known().and_then(|k| known::cast(k, elem)) {
            return Ok(self.elements(elem, v.ty.shape.clone(), k));
        }
        self.add(Op::Cast(elem), &[v])
    }

    pub fn reshape(&mut self, v: &V, shape: Vec<Dim>) -> Res<V> {
        if v.ty.shape == shape {
            return Ok(v.clone());
        }
        if let Some(k) = v.known()
            && count(&shape) == Some(k.len())
        {
            let k = k.clone();
            return Ok(self.elements(v.elem(), shape, k));
        }
        self.add(Op::Reshape(shape), &[v])
    }

    pub fn transpose(&mut self, v: &V, perm: Vec<usize>) -> Res<V> {
        let mut seen = vec![false; v.rank()];
        for &p in &perm {
            if seen.get_mut(p).is_none_or(|s| std::mem::replace(s, true)) {
                let rank = v.rank();
                return Err(Fault::invalid(format!("{perm:?} does not permute {rank} axes")));
            }
        }
        if perm.len() != v.rank() {
            return Err(Fault::invalid(format!("{perm:?} does not permute {} axes", v.rank())));
        }
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(v.clone());
        }
        if let (Some(k), Some(sizes)) = (v.known(), v.ty.const_shape()) {
            let steps = strides(&sizes);
            let to: Vec<usize> = perm.iter().map(|&p| sizes[p]).collect();
            let steps: Vec<usize> = perm.iter().map(|&p| steps[p]).collect();
            let k = k.pick(walk(&to, &steps, 0));
            let shape = perm.iter().map(|&p| v.ty.shape[p].clone()).collect();
            return Ok(self.elements(v.elem(), shape, k));
        }
        self.add(Op::Transpose(perm), &[v])
    }

    /// Swaps the last two axes.
    pub fn swap_last(&mut self, v: &V) -> Res<V> {
        let r = v.rank();
        let mut perm: Vec<usize> = (0..r).collect();
        if r >= 2 {
            perm.swap(r - 1, r - 2);
        }
        self.transpose(v, perm)
    }

    pub fn broadcast(&mut self, v: &V, shape: Vec<Dim>) -> Res<V> {
        if v.ty.shape == shape {
            return Ok(v.clone());
        }
        if let Some(k) = v.known().and_then(|k| spread(k, v.shape(), &shape)) {
            return Ok(self.elements(v.elem(), shape, k));
        }
        self.add(Op::Broadcast(shape), &[v])
    }

    pub fn slice(&mut self, v: &V, start: Vec<Dim>, len: Vec<Dim>, step: Vec<i64>) -> Res<V> {
        let whole = start.iter().all(|s| s.as_const() == Some(0)) && step.iter().all(|&s| s == 1);
        if whole && len == v.ty.shape {
            return Ok(v.clone());
        }
        if let (Some(k), Some(from), Some(sizes)) = (v.known(), numbers(&start), numbers(&len)) {
            let steps = strides(&v.ty.const_shape().unwrap_or_default());
            let all = from.iter().zip(&sizes).zip(v.shape().iter().zip(&step));
            for ((&f, &n), (d, &s)) in all {
                let last = f + (n - 1).max(0) * s;
                let inside = |i: i64| i >= 0 && d.as_const().is_some_and(|d| i < d);
                if n > 0 && !(inside(f) && inside(last)) {
                    return Err(Fault::invalid(format!("slice of {n} from {f} outside of {d}")));
                }
            }
            if sizes.iter().all(|&n| n >= 0) {
                let to: Vec<usize> = sizes.iter().map(|&n| n as usize).collect();
                let k = k.pick(slice_places(&from, &to, &step, &steps).into_iter());
                return Ok(self.elements(v.elem(), len, k));
            }
        }
        self.add(Op::Slice { start, len, step }, &[v])
    }

    /// A range of one axis.
    pub fn narrow(&mut self, v: &V, axis: usize, start: &Dim, len: &Dim) -> Res<V> {
        if axis >= v.rank() {
            return Err(Fault::invalid(format!("axis {axis} of `{}`", v.ty)));
        }
        let mut starts = vec![Dim::zero(); v.rank()];
        let mut lens = v.ty.shape.clone();
        starts[axis] = start.clone();
        lens[axis] = len.clone();
        self.slice(v, starts, lens, vec![1; v.rank()])
    }

    pub fn concat(&mut self, parts: &[V], axis: usize) -> Res<V> {
        if let [one] = parts {
            return Ok(one.clone());
        }
        let known: Option<Vec<(&Known, Vec<usize>)>> =
            parts.iter().map(|p| p.known().zip(p.ty.const_shape())).collect();
        let same =
            parts.windows(2).all(|w| w[0].elem() == w[1].elem() && w[0].rank() == w[1].rank());
        if let (Some(known), true) = (known, same && parts[0].rank() > axis) {
            let outer: usize = known[0].1[..axis].iter().product();
            let fits = |s: &[usize]| {
                s[..axis] == known[0].1[..axis] && s[axis + 1..] == known[0].1[axis + 1..]
            };
            if known.iter().all(|(_, s)| fits(s)) {
                let mut shape = parts[0].ty.shape.clone();
                shape[axis] = Dim::from(known.iter().map(|(_, s)| s[axis]).sum::<usize>());
                if let Some(k) = join(&known, outer) {
                    return Ok(self.elements(parts[0].elem(), shape, k));
                }
            }
        }
        let operands: Vec<&V> = parts.iter().collect();
        self.add(Op::Concat { axis }, &operands)
    }

    pub fn gather(&mut self, data: &V, indices: &V, axis: usize) -> Res<V> {
        if let (Some(k), Some(Known::Dims(at)), Some(sizes)) =
            (data.known(), indices.known(), data.ty.const_shape())
            && let Some(at) = numbers(at)
            && axis < sizes.len()
        {
            let size = sizes[axis] as i64;
            let inner: usize = sizes[axis + 1..].iter().product();
            let outer: usize = sizes[..axis].iter().product();
            let mut places = Vec::new();
            for o in 0..outer {
                for &i in &at {
                    let i = if i < 0 { i.saturating_add(size) } else { i };
                    if !(0..size).contains(&i) {
                        return Err(Fault::invalid(format!("index {i} is outside of {size}")));
                    }
                    let first = (o * sizes[axis] + i as usize) * inner;
                    places.extend(first..first + inner);
                }
                if places.len() > limits::TRACKED {
                    return self.add(Op::Gather { axis }, &[data, indices]);
                }
            }
            let mut shape = data.ty.shape[..axis].to_vec();
            shape.extend_from_slice(indices.shape());
            shape.extend_from_slice(&data.ty.shape[axis + 1..]);
            let k = k.pick(places.into_iter());
            return Ok(self.elements(data.elem(), shape, k));
        }
        self.add(Op::Gather { axis }, &[data, indices])
    }

    pub fn reduce(&mut self, op: ReduceOp, v: &V, axes: Vec<usize>, keep_dims: bool) -> Res<V> {
        if axes.len() == v.rank()
            && let Some(Known::Dims(k)) = v.known()
            && !k.is_empty()
        {
            let pair: Option<fn(Dim, &Dim) -> Dim> = match op {
                ReduceOp::Sum => Some(|a, b| a + b.clone()),
                ReduceOp::Prod => Some(|a, b| a * b.clone()),
                ReduceOp::Max => Some(|a, b| dims::max(&a, b)),
                ReduceOp::Min => Some(|a, b| dims::min(&a, b)),
                ReduceOp::Mean => None,
            };
            if let Some(pair) = pair {
                let total = k[1..].iter().try_fold(k[0].clone(), |a, b| {
                    let r = pair(a, b);
                    dims::check(&r).map(|()| r)
                })?;
                let shape = if keep_dims { vec![Dim::one(); v.rank()] } else { Vec::new() };
                return Ok(self.elements(v.elem(), shape, Known::Dims(vec![total])));
            }
        }
        self.add(Op::Reduce { op, axes, keep_dims }, &[v])
    }

    /// The elements of a value that decides a shape.
    pub fn sizes_of(&self, v: &V, what: &'static str) -> Res<Vec<Dim>> {
        match v.known() {
            Some(Known::Dims(d)) => Ok(d.clone()),
            Some(Known::Floats(_)) => {
                Err(Fault::invalid(format!("{what} is of type `{}`", v.elem())))
            }
            None => Err(Fault::Unknown { value: v.made(), what }),
        }
    }

    /// The elements of a value that must be plain numbers at import.
    pub fn ints_of(&self, v: &V, what: &'static str) -> Res<Vec<i64>> {
        let sizes = self.sizes_of(v, what)?;
        numbers(&sizes).ok_or_else(|| {
            let shown: Vec<String> = sizes.iter().map(ToString::to_string).collect();
            Fault::unsupported(format!("{what} is symbolic: [{}]", shown.join(", ")))
        })
    }
}

/// A name for a node: never empty, never endless. The IR's text quotes what is unusual in it.
fn node_name(name: &str) -> String {
    if name.is_empty() { "_".to_owned() } else { name.chars().take(400).collect() }
}

fn check_type(ty: &Type) -> Res<()> {
    if ty.rank() > limits::RANK {
        return Err(Fault::limit(format!("{} axes, the limit is {}", ty.rank(), limits::RANK)));
    }
    let mut count = 1i64;
    for d in &ty.shape {
        dims::check(d)?;
        match d.as_const() {
            Some(v) if v < 0 => return Err(Fault::invalid(format!("a size of {v} in `{ty}`"))),
            Some(v) => count = count.saturating_mul(v.max(1)),
            None => {}
        }
    }
    if count > limits::ELEMENTS {
        return Err(Fault::limit(format!("`{ty}` has more than {} elements", limits::ELEMENTS)));
    }
    Ok(())
}

fn check_known(k: &Known) -> Res<()> {
    let Known::Dims(d) = k else { return Ok(()) };
    d.iter().filter(|d| !d.is_const()).try_for_each(dims::check)
}
