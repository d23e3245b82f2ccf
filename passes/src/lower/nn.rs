//! Norms, softmax, rotary embedding, attention, and everything between floats and codes.

use super::{Lowered, Lowering, splat, view, with_literal};
use fqc_ir::plan::{Kernel, NormKind, RowQuantize, View};
use fqc_ir::{BinaryOp, Const, Dim, Elem, Expr, FlattenMap, NodeId, Op, Quantizer, Scale, UnaryOp};

impl Lowering<'_> {
    pub(super) fn nn_op(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let graph = self.graph;
        let name = graph.node(id).name.as_str();
        match &graph.node(id).op {
            Op::Softmax => {
                let x = self.value(operands[0]);
                let result = self.result(id);
                self.step(name, Kernel::Softmax, vec![x], vec![result]);
                Ok(())
            }
            Op::LayerNorm { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNormQuantize { .. }
            | Op::RmsNormQuantize { .. } => self.norm(id, operands),
            Op::Rope => self.rope(id, operands),
            Op::Attention { scale, causal } => self.attention(id, operands, *scale, *causal),
            Op::Flatten { threshold, map } => self.flatten(id, operands, *threshold, map),
            Op::Quantize(q) => {
                let x = self.value(operands[0]);
                self.quantize_rows(id, Expr::arg(0), vec![x], q)
            }
            Op::PointwiseQuantize { expr, out } => {
                let shape = self.float_shape(id, operands);
                let args =
                    operands.iter().map(|&o| view::broadcast(&self.value(o), &shape)).collect();
                self.quantize_rows(id, expr.clone(), args, out)
            }
            Op::Dequantize => self.dequantize(id, operands[0]),
            other => unreachable!("`{}` is not lowered here", other.mnemonic()),
        }
    }

    /// Shape of the float row that a fused quantisation reads: the broadcast of its operands.
    fn float_shape(&self, id: NodeId, operands: &[NodeId]) -> Vec<Dim> {
        let rank = self.ty(id).rank();
        let mut shape = self.ty(id).shape.clone();
        let last = operands.iter().map(|&o| self.ty(o).last()).find(|d| *d != Dim::one());
        shape[rank - 1] = last.unwrap_or_else(Dim::one);
        shape
    }

    /// The kind and epsilon of a norm, and its quantizer if it has one.
    fn norm_parts(op: &Op) -> Option<(NormKind, f32, Option<&Quantizer>)> {
        match op {
            Op::LayerNorm { epsilon } => Some((NormKind::Layer, *epsilon, None)),
            Op::RmsNorm { epsilon } => Some((NormKind::Rms, *epsilon, None)),
            Op::LayerNormQuantize { epsilon, out } => Some((NormKind::Layer, *epsilon, Some(out))),
            Op::RmsNormQuantize { epsilon, out } => Some((NormKind::Rms, *epsilon, Some(out))),
            _ => None,
        }
    }

    /// One step for a norm; if the same norm is wanted both as floats and as codes, one for both.
    fn norm(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let graph = self.graph;
        let (kind, epsilon, own) =
            Self::norm_parts(&graph.node(id).op).expect("called for norms only");
        let sibling = graph.users(operands[0]).into_iter().map(|u| u.0).find(|&other| {
            other != id
                && !self.values.contains_key(&other)
                && graph.operands(other) == operands
                && Self::norm_parts(&graph.node(other).op).is_some_and(|(k, e, q)| {
                    k == kind && e == epsilon && q.is_some() != own.is_some()
                })
        });
        let float = if own.is_none() { Some(id) } else { sibling };
        let codes = if own.is_some() { Some(id) } else { sibling };
        let x = self.value(operands[0]);
        let mut args = vec![self.materialise(id, x, view::unit_last)];
        args.push(self.value(operands[1]));
        if kind == NormKind::Layer {
            let beta = match operands.get(2) {
                Some(&beta) => self.value(beta),
                None => {
                    let n = self.ty(operands[1]).const_shape().ok_or("its gamma has no size")?;
                    let zeros = Const::f32(n.clone(), &vec![0.0; n.iter().product()]);
                    self.constant("zeros", zeros)
                }
            };
            args.push(beta);
        }
        let mut results = Vec::new();
        if let Some(float) = float {
            results.push(self.result(float));
        }
        let mut quantize = None;
        if let Some(codes) = codes {
            let (_, _, q) = Self::norm_parts(&graph.node(codes).op).expect("found as a norm");
            let q = q.expect("found as a norm that quantises");
            let base = self.ty(operands[0]).last();
            quantize = Some(self.row_quantize(codes, &base, q, &mut args)?);
            results.push(self.code_result(codes));
        }
        let kernel = Kernel::Norm { kind, epsilon, float: float.is_some(), quantize };
        self.step(graph.node(id).name.as_str(), kernel, args, results);
        Ok(())
    }

    /// The description of a quantise-and-flatten; pushes its tables.
    fn row_quantize(
        &mut self,
        id: NodeId,
        base: &Dim,
        q: &Quantizer,
        args: &mut Vec<View>,
    ) -> Result<RowQuantize, String> {
        let name = self.graph.node(id).name.clone();
        let base = base.as_const().and_then(|v| usize::try_from(v).ok());
        let base = base.ok_or("the number of channels is not constant")?;
        let tail: &[(u32, u16)] = q.quant.flatten.as_ref().map_or(&[], |f| &f.tail);
        let width = q.out_channels(base as i64);
        let padded = (width as usize).next_multiple_of(super::CODE_ALIGN as usize);
        let inverse: Vec<f32> = (0..base).map(|j| q.inverse(j)).collect();
        let source: Vec<u8> = tail.iter().flat_map(|t| t.0.to_le_bytes()).collect();
        let q_max = q.quant.q_max() as f32;
        let below: Vec<f32> = tail.iter().map(|t| f32::from(t.1 - 1) * q_max).collect();
        args.push(self.constant(&format!("{name}.inverse"), Const::f32(vec![base], &inverse)));
        let source = Const::new(Elem::I32, vec![tail.len()], source).expect("four bytes an index");
        args.push(self.constant(&format!("{name}.tail_source"), source));
        args.push(
            self.constant(&format!("{name}.tail_below"), Const::f32(vec![tail.len()], &below)),
        );
        Ok(RowQuantize {
            signed: q.quant.signed,
            bits: q.quant.bits,
            base,
            tail: tail.len(),
            padded,
        })
    }

    /// Codes of an expression over float views.
    pub(super) fn quantize_rows(
        &mut self,
        id: NodeId,
        expr: Expr,
        args: Vec<View>,
        q: &Quantizer,
    ) -> Lowered {
        let base = args[0].shape.last().cloned().ok_or("a scalar cannot be quantised")?;
        let mut args = args;
        let quantize = self.row_quantize(id, &base, q, &mut args)?;
        let result = self.code_result(id);
        let name = self.graph.node(id).name.clone();
        self.step(&name, Kernel::Quantize { expr, quantize }, args, vec![result]);
        Ok(())
    }

    fn dequantize(&mut self, id: NodeId, operand: NodeId) -> Lowered {
        let shape = self.ty(id).shape.clone();
        let quant = self.ty(operand).quant.clone().ok_or("its operand has no quantisation")?;
        let x = self.value(operand);
        let mut code = Expr::cast(Elem::F32, Expr::arg(0));
        if self.elem(&x) == Elem::U8 && quant.signed && self.const_of(operand).is_none() {
            code = with_literal(BinaryOp::Sub, code, 128.0);
        }
        let mut args = vec![view::broadcast(&x, &shape)];
        let expr = match &quant.scale {
            Scale::Tensor(scale) => with_literal(BinaryOp::Mul, code, *scale),
            Scale::Axis { axis, scales } => {
                let mut dims = vec![1; shape.len()];
                dims[*axis] = scales.len();
                let name = format!("{}.scale", self.graph.node(id).name);
                let table = self.constant(&name, Const::f32(dims, scales));
                args.push(view::broadcast(&table, &shape));
                Expr::binary(BinaryOp::Mul, code, Expr::arg(1))
            }
        };
        let result = self.result(id);
        let name = self.graph.node(id).name.clone();
        self.step(&name, Kernel::Pointwise(expr), args, vec![result]);
        Ok(())
    }

    /// Two element-wise steps, one for each half of the last axis.
    fn rope(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let shape = self.ty(id).shape.clone();
        let axis = shape.len() - 1;
        let half = shape[axis].floor_div(&Dim::from(2i64));
        let result = self.result(id);
        let views: Vec<View> =
            operands.iter().map(|&o| view::broadcast(&self.value(o), &shape)).collect();
        let part = |v: &View, i: usize| {
            let start = if i == 0 { Dim::zero() } else { half.clone() };
            view::narrow(v, axis, start, half.clone())
        };
        let name = self.graph.node(id).name.clone();
        for i in 0..2 {
            // First half: x1 cos - x2 sin; second half: x2 cos + x1 sin.
            let op = if i == 0 { BinaryOp::Sub } else { BinaryOp::Add };
            let product = |a, b| Expr::binary(BinaryOp::Mul, Expr::arg(a), Expr::arg(b));
            let expr = Expr::binary(op, product(0, 1), product(2, 3));
            let args = vec![
                part(&views[0], i),
                part(&views[1], i),
                part(&views[0], 1 - i),
                part(&views[2], i),
            ];
            self.step(&name, Kernel::Pointwise(expr), args, vec![part(&result, i)]);
        }
        Ok(())
    }

    fn attention(&mut self, id: NodeId, operands: &[NodeId], scale: f32, causal: bool) -> Lowered {
        let mut args = Vec::new();
        for &operand in &operands[..3] {
            let x = self.value(operand);
            args.push(self.materialise(id, x, view::unit_last));
        }
        let (b, h, s) = (&args[0].shape[0], &args[0].shape[1], &args[0].shape[2]);
        let t = &args[1].shape[2];
        let scores = vec![b.clone(), h.clone(), s.clone(), t.clone()];
        if let Some(&mask) = operands.get(3) {
            args.push(view::broadcast(&self.value(mask), &scores));
        }
        let result = if self.free_outputs.contains_key(&id) {
            self.result(id)
        } else {
            // Stored as [b, s, h, e], so that merging the heads again is a view.
            let logical = &self.ty(id).shape;
            let stored: Vec<Dim> = [0, 2, 1, 3].map(|axis: usize| logical[axis].clone()).into();
            let buffer = self.arena(id, Elem::F32, stored.clone());
            let result = view::transpose(&View::whole(buffer, &stored), &[0, 2, 1, 3]);
            self.values.insert(id, result.clone());
            result
        };
        let (mask, precision) = (operands.len() > 3, self.precision);
        let kernel = Kernel::Attention { scale, causal, mask, precision };
        let name = self.graph.node(id).name.clone();
        self.step(&name, kernel, args, vec![result]);
        Ok(())
    }

    /// The real slices: base channels, tail channels by a gather, zeros in the padding.
    fn flatten(
        &mut self,
        id: NodeId,
        operands: &[NodeId],
        threshold: f32,
        map: &FlattenMap,
    ) -> Lowered {
        let x = self.value(operands[0]);
        let result = self.result(id);
        let axis = result.shape.len() - 1;
        let name = self.graph.node(id).name.clone();
        let (base, tail) = (map.base as usize, map.tail.len());
        let copies = |j: u32| map.tail.iter().filter(|t| t.0 == j).count();
        let cap = |last: bool| if last { f32::INFINITY } else { threshold };
        let base_caps: Vec<f32> = (0..map.base).map(|j| cap(copies(j) == 0)).collect();
        let tail_caps: Vec<f32> =
            map.tail.iter().map(|&(j, k)| cap(usize::from(k) == copies(j) + 1)).collect();
        let below: Vec<f32> = map.tail.iter().map(|t| f32::from(t.1 - 1) * threshold).collect();
        let base_below = vec![0.0; base];
        let to = view::narrow(&result, axis, Dim::zero(), base.into());
        self.slices(&name, x.clone(), to, &base_below, &base_caps);
        if tail > 0 {
            let source: Vec<i64> = map.tail.iter().map(|t| i64::from(t.0)).collect();
            let source = self.constant(&format!("{name}.source"), Const::i64(vec![tail], &source));
            let mut shape = x.shape.clone();
            shape[axis] = tail.into();
            let buffer = self.arena(id, Elem::F32, shape.clone());
            let gathered = View::whole(buffer, &shape);
            let kernel = Kernel::Gather { axis, index_rank: 1 };
            self.step(&name, kernel, vec![x, source], vec![gathered.clone()]);
            let to = view::narrow(&result, axis, base.into(), tail.into());
            self.slices(&name, gathered, to, &below, &tail_caps);
        }
        let pad = map.padded as usize - base - tail;
        if pad > 0 {
            let to = view::narrow(&result, axis, (base + tail).into(), pad.into());
            let zero = self.constant("zero", Const::f32(vec![1], &[0.0]));
            self.copy(&name, splat(&zero, &to.shape), to);
        }
        Ok(())
    }

    /// `sgn(x) * min(max(|x| - below, 0), cap)` with a table entry for each channel.
    fn slices(&mut self, name: &str, x: View, to: View, below: &[f32], cap: &[f32]) {
        let table = |l: &mut Self, values: &[f32]| {
            let table = l.constant(name, Const::f32(vec![values.len()], values));
            view::broadcast(&table, &to.shape)
        };
        let args = vec![x, table(self, below), table(self, cap)];
        let above =
            Expr::binary(BinaryOp::Sub, Expr::unary(UnaryOp::Abs, Expr::arg(0)), Expr::arg(1));
        let positive = with_literal(BinaryOp::Max, above, 0.0);
        let cut = Expr::binary(BinaryOp::Min, positive, Expr::arg(2));
        let expr = Expr::binary(BinaryOp::Mul, Expr::unary(UnaryOp::Sign, Expr::arg(0)), cut);
        self.step(name, Kernel::Pointwise(expr), args, vec![to]);
    }
}
