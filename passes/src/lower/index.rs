//! Indexed access, reductions and scans.

use super::{Lowered, Lowering, view};
use fqc_ir::plan::{Kernel, View};
use fqc_ir::{NodeId, Op};

impl Lowering<'_> {
    pub(super) fn index_op(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let node = self.graph.node(id);
        let name = node.name.clone();
        let mut args: Vec<View> = operands.iter().map(|&o| self.value(o)).collect();
        match &node.op {
            Op::Gather { axis } => {
                let index_rank = args[1].shape.len();
                let result = self.result(id);
                let kernel = Kernel::Gather { axis: *axis, index_rank };
                self.step(&name, kernel, args, vec![result]);
            }
            Op::GatherElements { axis } => {
                let result = self.result(id);
                self.step(&name, Kernel::GatherElements { axis: *axis }, args, vec![result]);
            }
            Op::GatherNd { batch_dims } => {
                args[0] = self.materialise(id, args[0].clone(), View::is_contiguous);
                args[1] = self.materialise(id, args[1].clone(), View::is_contiguous);
                let result = self.result(id);
                self.step(&name, Kernel::GatherNd { batch_dims: *batch_dims }, args, vec![result]);
            }
            Op::ScatterElements { axis, reduction } => {
                let result = self.result(id);
                self.copy(&name, args.remove(0), result.clone());
                let kernel = Kernel::ScatterElements { axis: *axis, op: *reduction };
                self.step(&name, kernel, args, vec![result]);
            }
            Op::ScatterNd { reduction } => {
                let result = self.result(id);
                self.copy(&name, args.remove(0), result.clone());
                args[0] = self.materialise(id, args[0].clone(), View::is_contiguous);
                args[1] = self.materialise(id, args[1].clone(), View::is_contiguous);
                self.step(&name, Kernel::ScatterNd { op: *reduction }, args, vec![result]);
            }
            Op::Reduce { op, axes, .. } => {
                let keep: Vec<usize> =
                    (0..args[0].shape.len()).filter(|a| !axes.contains(a)).collect();
                let perm: Vec<usize> = keep.iter().chain(axes).copied().collect();
                let arg = view::transpose(&args[0], &perm);
                let result = self.result(id);
                let kept = view::reshape(&result, &arg.shape[..keep.len()])
                    .expect("a result buffer is contiguous");
                let kernel = Kernel::Reduce { op: *op, keep: keep.len() };
                self.step(&name, kernel, vec![arg], vec![kept]);
            }
            Op::ArgReduce { axis, largest, last, .. } => {
                let arg = last_axis(&args[0], *axis);
                let result = self.result(id);
                let kept = view::reshape(&result, &arg.shape[..arg.shape.len() - 1])
                    .expect("a result buffer is contiguous");
                let kernel = Kernel::ArgReduce { largest: *largest, last: *last };
                self.step(&name, kernel, vec![arg], vec![kept]);
            }
            Op::CumSum { axis, exclusive, reverse } => {
                let result = self.result(id);
                let kernel = Kernel::CumSum { exclusive: *exclusive, reverse: *reverse };
                let (from, to) = (last_axis(&args[0], *axis), last_axis(&result, *axis));
                self.step(&name, kernel, vec![from], vec![to]);
            }
            other => unreachable!("`{}` is not an indexed operation", other.mnemonic()),
        }
        Ok(())
    }
}

/// The view with one axis moved to the end.
fn last_axis(x: &View, axis: usize) -> View {
    let mut perm: Vec<usize> = (0..x.shape.len()).filter(|&a| a != axis).collect();
    perm.push(axis);
    view::transpose(x, &perm)
}
