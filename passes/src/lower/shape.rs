//! Shape operations: views where strides can say it, copies where not.

use super::{Lowered, Lowering, splat, view};
use fqc_ir::op::PadMode;
use fqc_ir::plan::{Kernel, View};
use fqc_ir::{Const, Dim, NodeId, Op};

/// No table of padding is longer than some of these.
const LONGEST: i64 = 1 << 20;

impl Lowering<'_> {
    pub(super) fn shape_op(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let node = self.graph.node(id);
        let x = self.value(operands[0]);
        let value = match &node.op {
            Op::Reshape(shape) => match view::reshape(&x, shape) {
                Some(value) => value,
                None => {
                    let copy = self.materialise(id, x, |v| v.is_contiguous());
                    view::reshape(&copy, shape).expect("a contiguous value takes any shape")
                }
            },
            Op::Transpose(perm) => view::transpose(&x, perm),
            Op::Broadcast(shape) => view::broadcast(&x, shape),
            Op::Slice { start, len, step } => self.slice(id, x, start, len, step),
            Op::Concat { axis } => return self.concat(id, operands, *axis),
            Op::Pad { before, mode: PadMode::Constant, .. } => {
                self.pad_constant(id, operands, before);
                return Ok(());
            }
            Op::Pad { before, after, mode } => return self.pad(id, x, before, after, *mode),
            other => unreachable!("`{}` is not a shape operation", other.mnemonic()),
        };
        self.values.insert(id, value);
        Ok(())
    }

    fn concat(&mut self, id: NodeId, operands: &[NodeId], axis: usize) -> Lowered {
        let result = self.result(id);
        let name = self.graph.node(id).name.clone();
        let mut start = Dim::zero();
        for &operand in operands {
            let part = self.value(operand);
            let len = part.shape[axis].clone();
            let target = view::narrow(&result, axis, start.clone(), len.clone());
            self.copy(&name, part, target);
            start = start + len;
        }
        Ok(())
    }

    /// A slice; axes that run backwards are copied, so that strides stay positive.
    fn slice(&mut self, id: NodeId, x: View, start: &[Dim], len: &[Dim], step: &[i64]) -> View {
        let backwards = |axis: &usize| step[*axis] < 0 && len[*axis].as_const() != Some(1);
        let (mut first, mut size, mut x) = (start.to_vec(), len.to_vec(), x);
        for axis in (0..len.len()).filter(backwards) {
            // The axis comes last in a copy, where its stride is a constant.
            let mut perm: Vec<usize> = (0..len.len()).filter(|&a| a != axis).collect();
            perm.push(axis);
            let fits = |v: &View| v.strides.last().is_some_and(Dim::is_const);
            let turned = self.materialise(id, view::transpose(&x, &perm), fits);
            let last = len.len() - 1;
            let mut reversed = view::narrow(&turned, last, start[axis].clone(), len[axis].clone());
            reversed.strides[last] = reversed.strides[last].clone() * Dim::from(step[axis]);
            let copy = self.materialise(id, reversed, |_| false);
            let back: Vec<usize> = (0..len.len())
                .map(|a| perm.iter().position(|&p| p == a).expect("a permutation has every axis"))
                .collect();
            x = view::transpose(&copy, &back);
            (first[axis], size[axis]) = (Dim::zero(), len[axis].clone());
        }
        let forward = |axis: usize| if backwards(&axis) { 1 } else { step[axis].saturating_abs() };
        let forward: Vec<i64> = (0..len.len()).map(forward).collect();
        view::slice(&x, &first, &size, &forward)
    }

    /// The fill everywhere, then x over it.
    fn pad_constant(&mut self, id: NodeId, operands: &[NodeId], before: &[Dim]) {
        let (x, fill) = (self.value(operands[0]), self.value(operands[1]));
        let result = self.result(id);
        let name = self.graph.node(id).name.clone();
        self.copy(&name, splat(&fill, &result.shape), result.clone());
        let mut target = result;
        for (axis, (start, len)) in before.iter().zip(&x.shape).enumerate() {
            target = view::narrow(&target, axis, start.clone(), len.clone());
        }
        self.copy(&name, x, target);
    }

    /// Edge, reflected and wrapped padding: a gather along each axis.
    fn pad(
        &mut self,
        id: NodeId,
        x: View,
        before: &[Dim],
        after: &[Dim],
        mode: PadMode,
    ) -> Lowered {
        let (name, mut x) = (self.graph.node(id).name.clone(), x);
        for (axis, (before, after)) in before.iter().zip(after).enumerate() {
            if *before == Dim::zero() && *after == Dim::zero() {
                continue;
            }
            let sizes = (before.as_const(), after.as_const(), x.shape[axis].as_const());
            let (Some(before @ 0..=LONGEST), Some(after @ 0..=LONGEST), Some(size @ 1..=LONGEST)) =
                sizes
            else {
                let (mode, size) = (mode.name(), &x.shape[axis]);
                return Err(format!("pad mode `{mode}` along axis {axis} of size {size}"));
            };
            let source = |i: i64| match mode {
                PadMode::Constant | PadMode::Edge => i.clamp(0, size - 1),
                PadMode::Wrap => i.rem_euclid(size),
                PadMode::Reflect => {
                    let turn = i.rem_euclid((2 * (size - 1)).max(1));
                    turn.min(2 * (size - 1) - turn)
                }
            };
            let table: Vec<i64> = (-before..size + after).map(source).collect();
            let mut shape = x.shape.clone();
            shape[axis] = Dim::from(table.len());
            let buffer = self.arena(id, self.elem(&x), shape.clone());
            let table = Const::i64(vec![table.len()], &table);
            let table = self.constant(&format!("{name}.source"), table);
            let gathered = View::whole(buffer, &shape);
            let kernel = Kernel::Gather { axis, index_rank: 1 };
            self.step(&name, kernel, vec![x, table], vec![gathered.clone()]);
            x = gathered;
        }
        self.values.insert(id, x);
        Ok(())
    }
}
