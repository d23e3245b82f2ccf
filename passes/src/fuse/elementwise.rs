//! Element-wise nodes as expressions over their operands; constants of one element become literals.

use crate::pattern::constant;
use fqc_ir::expr::Literal;
use fqc_ir::{Const, Elem, Expr, Graph, NodeId, Op};

/// The node as an expression of its operands; `None` if it is not element-wise.
pub fn expr_of(graph: &Graph, id: NodeId) -> Option<Expr> {
    let arg = Expr::arg;
    match &graph.node(id).op {
        Op::Unary(op) => Some(Expr::unary(*op, arg(0))),
        Op::Binary(op) => Some(Expr::binary(*op, arg(0), arg(1))),
        Op::Select => Some(Expr::select(arg(0), arg(1), arg(2))),
        Op::Cast(elem) => Some(Expr::cast(*elem, arg(0))),
        Op::Pointwise(expr) => Some(expr.clone()),
        _ => None,
    }
}

/// The value of a constant of one element.
fn literal(value: &Const) -> Option<Literal> {
    if value.count() != 1 || value.quant.is_some() {
        return None;
    }
    match value.elem {
        Elem::F32 => value.to_f32().map(|v| Literal::F32(v[0])),
        Elem::I64 => value.to_i64().map(|v| Literal::I64(v[0])),
        Elem::Bool => value.to_i64().map(|v| Literal::Bool(v[0] != 0)),
        _ => None,
    }
}

/// The operands of an expression under construction, each value once.
#[derive(Default)]
pub struct Args(pub Vec<NodeId>);

impl Args {
    /// How the expression reads the value.
    pub fn read(&mut self, graph: &Graph, id: NodeId) -> Expr {
        if let Some(literal) = constant(graph, id).and_then(literal) {
            return Expr::Literal(literal);
        }
        let known = self.0.iter().position(|&x| x == id);
        Expr::arg(known.unwrap_or_else(|| {
            self.0.push(id);
            self.0.len() - 1
        }))
    }

    /// The node's expression over these operands.
    pub fn inline(&mut self, graph: &Graph, id: NodeId) -> Option<Expr> {
        let expr = expr_of(graph, id)?;
        let operands = graph.operands(id);
        let reads: Vec<Expr> = operands.iter().map(|&x| self.read(graph, x)).collect();
        Some(expr.map_args(&|i| reads[i].clone()))
    }
}
