//! How a random graph grows: each step picks a kind of operation and values that it takes, or gives
//! up and tries another.

use super::{Rng, random_const};
use crate::data::Const;
use crate::dim::Dim;
use crate::expr::{BinaryOp, Expr, Literal, UnaryOp};
use crate::graph::{Graph, Limit, NodeId};
use crate::op::{Op, PadMode, ReduceOp, ScatterOp};
use crate::quant::{FlattenMap, Quant, Quantizer, Scale};
use crate::text;
use crate::types::{Elem, Type};
use std::sync::Arc;

pub(super) struct Grower {
    rng: Rng,
    graph: Graph,
    /// Everything that may be read.
    values: Vec<NodeId>,
}

/// Grows the graph by some nodes; `None` if nothing fits.
type Grow = fn(&mut Grower) -> Option<NodeId>;

const KINDS: &[Grow] = &[
    Grower::leaf,
    Grower::unary,
    Grower::unary,
    Grower::binary,
    Grower::binary,
    Grower::integer,
    Grower::logic,
    Grower::cast,
    Grower::pointwise,
    Grower::reshape,
    Grower::transpose,
    Grower::broadcast,
    Grower::slice,
    Grower::concat,
    Grower::pad,
    Grower::gather,
    Grower::gather_nd,
    Grower::scatter,
    Grower::reduce,
    Grower::scan,
    Grower::matmul,
    Grower::normalise,
    Grower::rope,
    Grower::attention,
    Grower::flatten,
    Grower::quantize,
    Grower::dequantize,
    Grower::gemm,
    Grower::gemm_codes,
];

impl Grower {
    pub fn new(seed: u64) -> Self {
        let mut graph = Graph::new(format!("random {seed}"));
        graph.add_limit(Limit::AtMost(Dim::sym("b") * Dim::sym("s"), 4096));
        Grower { rng: Rng::new(seed), graph, values: Vec::new() }
    }

    pub fn graph(mut self, nodes: usize) -> Graph {
        let channels = self.rng.pick(&[2usize, 4, 6, 8]);
        let shape = vec![Dim::sym("b"), Dim::sym("s"), Dim::from(channels)];
        self.put("x", Op::Input(Type::f32(shape)), &[]);
        let ids = Type::new(Elem::I64, vec![Dim::sym("b"), Dim::sym("s")]);
        self.put("ids", Op::Input(ids), &[]);
        for _ in 0..nodes * 30 {
            if self.graph.len() >= nodes {
                break;
            }
            let grow = self.rng.pick(KINDS);
            grow(&mut self);
        }
        for id in self.values.clone() {
            if self.graph.use_count(id) > 0 || matches!(self.graph.node(id).op, Op::Input(_)) {
                continue;
            }
            // What codes look like in memory is a backend's own affair.
            let id = match self.ty(id).quant {
                Some(_) => self.op(Op::Dequantize, &[id]).expect("codes have a meaning"),
                None => id,
            };
            self.graph.add_output(format!("out {}", self.graph.outputs().len()), id);
        }
        self.graph
    }

    /// Adds a node if its operands fit, under a name that is at times an odd one.
    fn put(&mut self, base: &str, op: Op, operands: &[NodeId]) -> Option<NodeId> {
        let name = match self.rng.below(8) {
            0 => format!("onnx::{base} \"{}\"", self.graph.len()),
            1 => format!("/{base}/{}_output_0", self.graph.len()),
            _ => base.to_owned(),
        };
        let id = self.graph.add(name, op, operands).ok()?;
        self.values.push(id);
        Some(id)
    }

    fn op(&mut self, op: Op, operands: &[NodeId]) -> Option<NodeId> {
        self.put(op.mnemonic(), op, operands)
    }

    fn constant(&mut self, value: Const) -> Option<NodeId> {
        self.op(Op::Const(value), &[])
    }

    fn random(&mut self, elem: Elem, shape: Vec<usize>) -> Option<NodeId> {
        let op = random_const(&mut self.rng, elem, shape);
        self.op(op, &[])
    }

    fn ty(&self, id: NodeId) -> &Type {
        &self.graph.node(id).ty
    }

    /// A value whose type fits, rather a new one than an old one.
    fn value(&mut self, fits: impl Fn(&Type) -> bool) -> Option<NodeId> {
        let found: Vec<NodeId> =
            self.values.iter().copied().filter(|&id| fits(self.ty(id))).collect();
        if found.is_empty() {
            return None;
        }
        let recent = found.len().saturating_sub(6);
        let from = if self.rng.flip() { &found[recent..] } else { &found[..] };
        Some(from[self.rng.below(from.len())])
    }

    fn plain(&mut self, elem: Elem, rank: usize) -> Option<NodeId> {
        self.value(|t| t.elem == elem && t.quant.is_none() && t.rank() >= rank)
    }

    fn float(&mut self, rank: usize) -> Option<NodeId> {
        self.plain(Elem::F32, rank)
    }

    /// A float of at least this rank with a small constant last size.
    fn rows(&mut self, rank: usize) -> Option<(NodeId, usize)> {
        let last = |t: &Type| t.last().as_const().filter(|n| (1..=256).contains(n));
        let fits = |t: &Type| t.elem == Elem::F32 && t.rank() >= rank && last(t).is_some();
        let id = self.value(fits)?;
        Some((id, last(self.ty(id))? as usize))
    }

    fn axis(&mut self, id: NodeId) -> usize {
        let rank = self.ty(id).rank();
        self.rng.below(rank)
    }

    fn leaf(&mut self) -> Option<NodeId> {
        let symbol = Dim::sym(self.rng.pick(&["b", "s"]));
        match self.rng.below(4) {
            0 => {
                let elem = self.rng.pick(&[Elem::F32, Elem::F32, Elem::I64, Elem::Bool]);
                let shape = self.rng.pick(&[vec![], vec![1], vec![2], vec![4], vec![8]]);
                self.random(elem, shape)
            }
            1 => {
                let size = symbol.clone() * Dim::from(2i64) + Dim::one();
                self.op(Op::Dims(vec![size, symbol, Dim::from(3i64)]), &[])
            }
            2 => self.op(Op::Iota(symbol), &[]),
            _ => {
                let elem = self.rng.pick(&[Elem::F32, Elem::Bool]);
                let shape = vec![Dim::sym("b"), Dim::sym("s"), Dim::from(self.rng.below(3) + 1)];
                self.op(Op::Input(Type::new(elem, shape)), &[])
            }
        }
    }

    /// `op(x)`, or where it has a pole or grows fast `op(0.5 + |tanh x|)`.
    fn unary(&mut self) -> Option<NodeId> {
        use UnaryOp::{Exp, IsInf, IsNan, Log, Not, Reciprocal, Rsqrt, Sqrt};
        let mut x = self.float(0)?;
        let op = self.rng.pick(UnaryOp::ALL);
        if op == Not {
            x = self.plain(Elem::Bool, 0)?;
        }
        if matches!(op, Exp | Log | Reciprocal | Rsqrt | Sqrt) {
            x = self.away_from_zero(x)?;
        }
        let id = self.op(Op::Unary(op), &[x])?;
        if matches!(op, IsNan | IsInf) { self.op(Op::Unary(Not), &[id]) } else { Some(id) }
    }

    fn away_from_zero(&mut self, x: NodeId) -> Option<NodeId> {
        let half = self.constant(Const::f32(vec![], &[0.5]))?;
        let small = self.op(Op::Unary(UnaryOp::Tanh), &[x])?;
        let positive = self.op(Op::Unary(UnaryOp::Abs), &[small])?;
        self.op(Op::Binary(BinaryOp::Add), &[positive, half])
    }

    fn binary(&mut self) -> Option<NodeId> {
        use BinaryOp::{Add, Div, Eq, Ge, Gt, Le, Lt, Max, Min, Mod, Mul, Ne, Pow, Rem, Sub};
        let op = self
            .rng
            .pick(&[Add, Add, Sub, Mul, Mul, Div, Pow, Min, Max, Mod, Rem, Eq, Ne, Lt, Le, Gt, Ge]);
        let mut a = self.float(0)?;
        let mut b = self.float(0)?;
        if op == Pow {
            a = self.away_from_zero(a)?;
        }
        if matches!(op, Div | Mod | Rem | Pow) {
            b = self.away_from_zero(b)?;
        }
        self.op(Op::Binary(op), &[a, b])
    }

    fn integer(&mut self) -> Option<NodeId> {
        use BinaryOp::{Add, Div, Eq, Lt, Max, Min, Mod, Mul, Rem, Sub};
        let op = self.rng.pick(&[Add, Sub, Mul, Div, Min, Max, Mod, Rem, Eq, Lt]);
        let (a, b) = (self.plain(Elem::I64, 0)?, self.plain(Elem::I64, 0)?);
        self.op(Op::Binary(op), &[a, b])
    }

    fn logic(&mut self) -> Option<NodeId> {
        let (a, b) = (self.plain(Elem::Bool, 0)?, self.plain(Elem::Bool, 0)?);
        if self.rng.flip() {
            let op = self.rng.pick(&[BinaryOp::And, BinaryOp::Or, BinaryOp::Xor]);
            return self.op(Op::Binary(op), &[a, b]);
        }
        let elem = self.rng.pick(&[Elem::F32, Elem::I64]);
        let (x, y) = (self.plain(elem, 0)?, self.plain(elem, 0)?);
        self.op(Op::Select, &[a, x, y])
    }

    fn cast(&mut self) -> Option<NodeId> {
        let x = self.value(|t| t.quant.is_none())?;
        let to =
            self.rng.pick(&[Elem::F32, Elem::F32, Elem::I64, Elem::I32, Elem::Bool, Elem::F64]);
        self.op(Op::Cast(to), &[x])
    }

    /// A random expression of two floats.
    fn expr(&mut self, depth: usize) -> Expr {
        use UnaryOp::{Abs, Gelu, GeluTanh, Neg, Relu, Sigmoid, Silu, Tanh};
        if depth == 0 {
            return match self.rng.below(3) {
                0 => Expr::Literal(Literal::F32(self.rng.below(9) as f32 * 0.25 - 1.0)),
                i => Expr::arg(i - 1),
            };
        }
        match self.rng.below(4) {
            0 => {
                let op = self.rng.pick(&[Abs, Gelu, GeluTanh, Neg, Relu, Sigmoid, Silu, Tanh]);
                Expr::unary(op, self.expr(depth - 1))
            }
            1 => {
                let (a, b) = (self.expr(depth - 1), self.expr(depth - 1));
                let c = Expr::binary(BinaryOp::Lt, a.clone(), b.clone());
                Expr::select(c, a, Expr::cast(Elem::F32, Expr::cast(Elem::F16, b)))
            }
            _ => {
                let op = self.rng.pick(&[BinaryOp::Add, BinaryOp::Mul, BinaryOp::Max]);
                Expr::binary(op, self.expr(depth - 1), self.expr(depth - 1))
            }
        }
    }

    fn pointwise(&mut self) -> Option<NodeId> {
        let (a, b) = (self.float(0)?, self.float(0)?);
        let depth = 1 + self.rng.below(3);
        let expr = self.expr(depth);
        if self.rng.below(3) > 0 {
            return self.op(Op::Pointwise(expr), &[a, b]);
        }
        let (a, n) = self.rows(1)?;
        let out = self.quantizer(n, true);
        self.op(Op::PointwiseQuantize { expr, out }, &[a, b])
    }

    /// Merges two axes, splits the last one, or adds and removes axes of size 1.
    fn reshape(&mut self) -> Option<NodeId> {
        let x = self.value(|t| t.rank() >= 1 && t.quant.is_none())?;
        let mut shape = self.ty(x).shape.clone();
        match self.rng.below(3) {
            0 if shape.len() > 1 => {
                let at = self.rng.below(shape.len() - 1);
                let next = shape.remove(at + 1);
                shape[at] = shape[at].clone() * next;
            }
            1 => {
                let half = shape.pop()?.exact_div(&Dim::from(2i64))?;
                shape.extend([Dim::from(2i64), half]);
            }
            _ => shape.insert(self.rng.below(shape.len() + 1), Dim::one()),
        }
        self.op(Op::Reshape(shape), &[x])
    }

    fn transpose(&mut self) -> Option<NodeId> {
        let x = self.value(|t| t.rank() >= 2 && t.quant.is_none())?;
        let mut perm: Vec<usize> = (0..self.ty(x).rank()).collect();
        for i in (1..perm.len()).rev() {
            perm.swap(i, self.rng.below(i + 1));
        }
        self.op(Op::Transpose(perm), &[x])
    }

    fn broadcast(&mut self) -> Option<NodeId> {
        let x = self.value(|t| t.rank() <= 3 && t.quant.is_none())?;
        let mut shape = self.ty(x).shape.clone();
        for d in &mut shape {
            if *d == Dim::one() {
                *d = self.rng.pick(&[Dim::from(3i64), Dim::sym("s")]);
            }
        }
        if self.rng.flip() {
            shape.insert(0, Dim::from(2i64));
        }
        self.op(Op::Broadcast(shape), &[x])
    }

    /// A part of the axes of constant size, the first element of others.
    fn slice(&mut self) -> Option<NodeId> {
        let x = self.value(|t| t.rank() >= 1 && t.quant.is_none())?;
        let (mut start, mut len, mut step) = (vec![], vec![], vec![]);
        for d in self.ty(x).shape.clone() {
            let n = d.as_const().unwrap_or(1).max(0) as usize;
            let (from, to) = (self.rng.below(n.max(1)) as i64, self.rng.below(n.max(1)) as i64);
            match self.rng.below(3) {
                0 => {
                    start.push(Dim::zero());
                    len.push(d);
                    step.push(1);
                }
                1 if from != to => {
                    start.push(Dim::from(from));
                    len.push(Dim::from(2i64));
                    step.push(to - from);
                }
                _ => {
                    start.push(Dim::from(from));
                    len.push(Dim::from(n.min(1)));
                    step.push(1);
                }
            }
        }
        self.op(Op::Slice { start, len, step }, &[x])
    }

    fn concat(&mut self) -> Option<NodeId> {
        let a = self.value(|t| t.rank() >= 1 && t.quant.is_none())?;
        let ty = self.ty(a).clone();
        let b = self.value(|t| *t == ty)?;
        let axis = self.axis(a);
        self.op(Op::Concat { axis }, &[a, b, a])
    }

    fn pad(&mut self) -> Option<NodeId> {
        let x = self.float(1)?;
        let mode = self.rng.pick(PadMode::ALL);
        let (mut before, mut after) = (vec![], vec![]);
        for d in self.ty(x).shape.clone() {
            let room = d.as_const().filter(|&d| d > 1 || mode == PadMode::Constant).is_some();
            before.push(Dim::from(self.rng.below(if room { 2 } else { 1 })));
            after.push(Dim::from(self.rng.below(if room { 2 } else { 1 })));
        }
        let mut operands = vec![x];
        if mode == PadMode::Constant {
            operands.push(self.random(Elem::F32, vec![])?);
        }
        self.op(Op::Pad { before, after, mode }, &operands)
    }

    /// Constant indices below `n`, at times negative, as i64.
    fn indices(&mut self, shape: Vec<usize>, n: usize) -> Option<NodeId> {
        let count = shape.iter().product();
        let sign = |rng: &mut Rng, v: usize| v as i64 - if rng.flip() { n as i64 } else { 0 };
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            let v = self.rng.below(n);
            values.push(sign(&mut self.rng, v));
        }
        self.constant(Const::i64(shape, &values))
    }

    fn gather(&mut self) -> Option<NodeId> {
        let fixed = |t: &Type| t.const_shape().is_some_and(|s| !s.contains(&0) && !s.is_empty());
        let axis_value = self.float(1)?;
        let axis = self.axis(axis_value);
        if let Some(n) = self.ty(axis_value).shape[axis].as_const().filter(|&n| n > 0) {
            let shape = self.rng.pick(&[vec![], vec![3], vec![2, 2]]);
            let indices = self.indices(shape, n as usize)?;
            return self.op(Op::Gather { axis }, &[axis_value, indices]);
        }
        let x = self.value(|t| fixed(t) && t.quant.is_none())?;
        let axis = self.axis(x);
        let shape = self.ty(x).const_shape()?;
        let n = shape[axis];
        let indices = self.indices(shape, n)?;
        self.op(Op::GatherElements { axis }, &[x, indices])
    }

    fn gather_nd(&mut self) -> Option<NodeId> {
        let x = self.value(|t| {
            let shape = t.const_shape();
            t.quant.is_none() && shape.is_some_and(|s| s.len() >= 2 && !s.contains(&0))
        })?;
        let shape = self.ty(x).const_shape()?;
        let smallest = shape.iter().copied().min()?;
        if self.rng.flip() {
            let depth = 1 + self.rng.below(shape.len() - 1);
            let indices = self.indices(vec![shape[0], 2, depth], smallest)?;
            return self.op(Op::GatherNd { batch_dims: 1 }, &[x, indices]);
        }
        let depth = 1 + self.rng.below(shape.len());
        let indices = self.indices(vec![3, depth], smallest)?;
        self.op(Op::GatherNd { batch_dims: 0 }, &[x, indices])
    }

    fn scatter(&mut self) -> Option<NodeId> {
        let x = self.value(|t| {
            let shape = t.const_shape();
            t.elem == Elem::F32 && shape.is_some_and(|s| !s.is_empty() && !s.contains(&0))
        })?;
        let shape = self.ty(x).const_shape()?;
        let reduction = self.rng.pick(ScatterOp::ALL);
        // Two writes to one place are in no order, so `set` gets one index only.
        if self.rng.flip() {
            let axis = self.axis(x);
            let mut at = vec![1; shape.len()];
            if reduction != ScatterOp::Set {
                at[axis] = 3;
            }
            let indices = self.indices(at.clone(), shape[axis])?;
            let updates = self.random(Elem::F32, at)?;
            return self.op(Op::ScatterElements { axis, reduction }, &[x, indices, updates]);
        }
        let count = if reduction == ScatterOp::Set { 1 } else { 3 };
        let indices = self.indices(vec![count, 1], shape[0])?;
        let updates = self.random(Elem::F32, [&[count], &shape[1..]].concat())?;
        self.op(Op::ScatterNd { reduction }, &[x, indices, updates])
    }

    fn reduce(&mut self) -> Option<NodeId> {
        let x = self.float(1)?;
        let rank = self.ty(x).rank();
        let axes: Vec<usize> = (0..rank).filter(|_| self.rng.flip()).collect();
        let empty = axes.iter().any(|&a| self.ty(x).shape[a].as_const() == Some(0));
        let keep_dims = self.rng.flip();
        if empty {
            return None;
        }
        if self.rng.flip() {
            let axis = self.axis(x);
            let (largest, last) = (self.rng.flip(), self.rng.flip());
            return self.op(Op::ArgReduce { axis, keep_dims, largest, last }, &[x]);
        }
        let op = self.rng.pick(ReduceOp::ALL);
        self.op(Op::Reduce { op, axes, keep_dims }, &[x])
    }

    fn scan(&mut self) -> Option<NodeId> {
        let elem = self.rng.pick(&[Elem::F32, Elem::I64]);
        let x = self.plain(elem, 1)?;
        let axis = self.axis(x);
        let (exclusive, reverse) = (self.rng.flip(), self.rng.flip());
        self.op(Op::CumSum { axis, exclusive, reverse }, &[x])
    }

    fn matmul(&mut self) -> Option<NodeId> {
        let (x, k) = self.rows(2)?;
        if self.rng.flip() {
            let n = 1 + self.rng.below(5);
            let w = self.random(Elem::F32, vec![k, n])?;
            return self.op(Op::MatMul, &[x, w]);
        }
        let mut perm: Vec<usize> = (0..self.ty(x).rank()).collect();
        let last = perm.len() - 1;
        perm.swap(last, last - 1);
        let turned = self.op(Op::Transpose(perm), &[x])?;
        self.op(Op::MatMul, &[x, turned])
    }

    fn normalise(&mut self) -> Option<NodeId> {
        let (x, n) = self.rows(1)?;
        if self.rng.below(3) == 0 {
            return self.op(Op::Softmax, &[x]);
        }
        let gamma = self.random(Elem::F32, vec![n])?;
        let beta = self.random(Elem::F32, vec![n])?;
        let epsilon = self.rng.pick(&[1e-5, 1e-12, 0.01]);
        let out = self.quantizer(n, true);
        match self.rng.below(4) {
            0 => self.op(Op::LayerNorm { epsilon }, &[x, gamma, beta]),
            1 => self.op(Op::RmsNorm { epsilon }, &[x, gamma]),
            2 => self.op(Op::LayerNormQuantize { epsilon, out }, &[x, gamma]),
            _ => self.op(Op::RmsNormQuantize { epsilon, out }, &[x, gamma]),
        }
    }

    fn rope(&mut self) -> Option<NodeId> {
        let (x, n) = self.rows(1)?;
        let (cos, sin) = (self.random(Elem::F32, vec![n])?, self.random(Elem::F32, vec![1])?);
        self.op(Op::Rope, &[x, cos, sin])
    }

    /// Heads of one value attend to themselves, at times in groups.
    fn attention(&mut self) -> Option<NodeId> {
        let x = self.value(|t| {
            t.elem == Elem::F32 && t.rank() == 3 && t.last().as_const().is_some_and(|n| n % 2 == 0)
        })?;
        let [b, s, c] = &self.ty(x).shape.clone()[..] else { return None };
        let size = c.exact_div(&Dim::from(2i64))?;
        let shape = vec![b.clone(), s.clone(), Dim::from(2i64), size];
        let split = self.op(Op::Reshape(shape), &[x])?;
        let q = self.op(Op::Transpose(vec![0, 2, 1, 3]), &[split])?;
        let mut k = q;
        if self.rng.flip() {
            let axes = vec![1];
            k = self.op(Op::Reduce { op: ReduceOp::Mean, axes, keep_dims: true }, &[q])?;
        }
        let op = Op::Attention { scale: 0.5, causal: self.rng.flip() };
        if self.rng.flip() {
            return self.op(op, &[q, k, k]);
        }
        let mask = self.random(Elem::F32, vec![1, 2, 1, 1])?;
        self.op(op, &[q, k, k, mask])
    }

    /// A map with some extra digits.
    fn map(&mut self, base: usize) -> Arc<FlattenMap> {
        let mut tail = Vec::new();
        for source in 0..base.min(3) {
            let digits = self.rng.below(3) as u16;
            tail.extend((0..digits).map(|k| (source as u32, k + 2)));
        }
        let padded = (base + tail.len()).next_multiple_of(8) as u32;
        Arc::new(FlattenMap { base: base as u32, tail: tail.into(), padded })
    }

    fn flatten(&mut self) -> Option<NodeId> {
        let (x, n) = self.rows(1)?;
        let map = self.map(n);
        self.op(Op::Flatten { threshold: 0.75, map }, &[x])
    }

    fn quantizer(&mut self, channels: usize, flatten: bool) -> Arc<Quantizer> {
        let flatten = if flatten && self.rng.flip() { Some(self.map(channels)) } else { None };
        let scale = self.rng.pick(&[0.01f32, 0.0235, 0.1]);
        let (bits, signed) = self.rng.pick(&[(8, true), (8, true), (8, false), (4, true)]);
        let quant = Arc::new(Quant { scale: Scale::Tensor(scale), bits, signed, flatten });
        if self.rng.flip() {
            return Arc::new(Quantizer::per_tensor(quant));
        }
        let inverse = (0..channels).map(|j| 1.0 / (scale * (1.0 + j as f32 / 8.0))).collect();
        Arc::new(Quantizer { quant, inverse })
    }

    fn quantize(&mut self) -> Option<NodeId> {
        let (x, n) = self.rows(1)?;
        let out = self.quantizer(n, true);
        self.op(Op::Quantize(out), &[x])
    }

    fn dequantize(&mut self) -> Option<NodeId> {
        let x = self.value(|t| t.quant.is_some())?;
        self.op(Op::Dequantize, &[x])
    }

    /// An epilogue with a bias, and the operands that follow the weights.
    fn epilogue(&mut self, n: usize) -> Option<(Op, NodeId)> {
        let bias = self.random(Elem::F32, vec![n])?;
        let epilogue = Expr::binary(BinaryOp::Add, Expr::arg(0), self.expr(2));
        let out = if self.rng.flip() { Some(self.quantizer(n, true)) } else { None };
        Some((Op::Gemm { epilogue, out }, bias))
    }

    fn gemm(&mut self) -> Option<NodeId> {
        let (x, k) = self.rows(1)?;
        let n = 1 + self.rng.below(5);
        let w = self.random(Elem::F32, vec![k, n])?;
        let (op, bias) = self.epilogue(n)?;
        self.op(op, &[x, w, bias])
    }

    fn gemm_codes(&mut self) -> Option<NodeId> {
        let x = match self.value(|t| t.quant.is_some() && t.rank() >= 2) {
            Some(x) if !matches!(self.graph.node(x).op, Op::Const(_)) => x,
            _ => self.quantize()?,
        };
        let k = usize::try_from(self.ty(x).last().as_const()?).ok()?;
        let n = 1 + self.rng.below(5);
        let scale = match self.rng.flip() {
            true => Scale::Tensor(0.02),
            false => Scale::Axis { axis: 1, scales: (0..n).map(|o| 0.01 + o as f32).collect() },
        };
        let (bits, elem) = self.rng.pick(&[(8, Elem::I8), (8, Elem::I8), (4, Elem::I4)]);
        let quant = Arc::new(Quant { scale, bits, signed: true, flatten: None });
        let top = f64::from(quant.q_max());
        let codes = text::random(elem, vec![k, n], self.rng.bits(), -top, top);
        let w = self.constant(codes.with_quant(quant))?;
        if self.rng.below(3) == 0 {
            return self.op(Op::GemmAccumulate, &[x, w]);
        }
        let (op, bias) = self.epilogue(n)?;
        self.op(op, &[x, w, bias])
    }
}
