//! Values of four bits. At the ports of a model they lie two a byte; between the steps each has a
//! byte of its own, so that views work as for every other type.

use super::Lowering;
use fqc_ir::plan::{Kernel, View};
use fqc_ir::{Const, Dim, Elem, Expr, NodeId, Op};

/// The type that values are kept as between steps.
pub(super) fn stored(elem: Elem) -> Elem {
    match elem {
        Elem::I4 => Elem::I8,
        Elem::U4 => Elem::U8,
        other => other,
    }
}

/// Whether values are kept as another type than their own.
pub(super) fn is_narrow(elem: Elem) -> bool {
    stored(elem) != elem
}

/// A constant as it is kept.
pub(super) fn stored_const(value: &Const) -> Const {
    match value.to_i64() {
        Some(values) if is_narrow(value.elem) => {
            let bytes: Vec<u8> = values.iter().map(|&v| v as u8).collect();
            let wide = Const::new(stored(value.elem), value.shape.clone(), bytes);
            wide.expect("a byte for each value")
        }
        _ => value.clone(),
    }
}

/// `expr` over arguments of these types, and of this result, as they are kept.
pub(super) fn over_stored(expr: &Expr, args: &[Elem], result: Elem) -> Expr {
    let own_type = |i: usize| match args.get(i) {
        Some(&elem) if is_narrow(elem) => Expr::cast(elem, Expr::arg(i)),
        _ => Expr::arg(i),
    };
    let expr = expr.map_args(&own_type);
    if is_narrow(result) { Expr::cast(stored(result), expr) } else { expr }
}

impl Lowering<'_> {
    /// The values of a port, a byte each.
    pub(super) fn unpack_port(&mut self, id: NodeId, port: View) -> View {
        let elem = stored(self.elem(&port));
        let buffer = self.arena(id, elem, port.shape.clone());
        let whole = View::whole(buffer, &port.shape);
        let name = self.graph.node(id).name.clone();
        let kernel = Kernel::Pointwise(Expr::cast(elem, Expr::arg(0)));
        self.step(&name, kernel, vec![port], vec![whole.clone()]);
        whole
    }

    /// Writes the values of a node to a port of its own type.
    pub(super) fn pack_port(&mut self, id: NodeId, port: View) {
        let value = self.value(id);
        let whole = |v: &View| v.is_contiguous() && v.offset == Dim::zero();
        let value = self.materialise(id, value, whole);
        let name = self.graph.node(id).name.clone();
        let kernel = Kernel::Pointwise(Expr::cast(self.elem(&port), Expr::arg(0)));
        self.step(&name, kernel, vec![value], vec![port]);
    }

    /// Refuses arithmetic that would have to wrap at four bits.
    pub(super) fn check_narrow(&self, id: NodeId) -> super::Lowered {
        let node = self.graph.node(id);
        let computes = matches!(
            node.op,
            Op::Reduce { .. }
                | Op::CumSum { .. }
                | Op::MatMul
                | Op::ScatterElements { .. }
                | Op::ScatterNd { .. }
        );
        if computes && is_narrow(node.ty.elem) {
            return Err(format!("computes in {}; cast its operands before", node.ty.elem));
        }
        Ok(())
    }
}
