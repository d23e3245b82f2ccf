//! Shape operations: views where strides can say it, copies where not.

use super::{Lowered, Lowering, splat, view};
use fqc_ir::op::PadMode;
use fqc_ir::{Dim, NodeId, Op, Shape};

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
            Op::Slice { start, len, step } => {
                if step.iter().any(|&s| s < 0) {
                    return Err("a negative step is not supported".into());
                }
                view::slice(&x, start, len, step)
            }
            Op::Concat { axis } => return self.concat(id, operands, *axis),
            Op::Pad { before, mode, .. } => {
                let before = before.clone();
                return match mode {
                    PadMode::Constant => self.pad_constant(id, operands, &before),
                    _ => Err(format!("pad mode `{}` is not supported", mode.name())),
                };
            }
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

    fn pad_constant(&mut self, id: NodeId, operands: &[NodeId], before: &[Dim]) -> Lowered {
        if before.iter().any(|d| d.as_const().is_some_and(|v| v < 0)) {
            return Err("negative padding is not supported".into());
        }
        let (x, fill) = (self.value(operands[0]), self.value(operands[1]));
        let result = self.result(id);
        let name = self.graph.node(id).name.clone();
        self.copy(&name, splat(&fill, &result.shape), result.clone());
        let inner: Shape = x.shape.clone();
        let mut target = result;
        for (axis, (start, len)) in before.iter().zip(inner).enumerate() {
            target = view::narrow(&target, axis, start.clone(), len);
        }
        self.copy(&name, x, target);
        Ok(())
    }
}
