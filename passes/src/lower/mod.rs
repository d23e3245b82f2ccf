//! Graph to plan: every node becomes a view of what is there, or steps that write a new buffer.
//! Reshape, transpose, broadcast and slice move nothing where strides can say it. Codes get their
//! physical form here (bytes, `code + 128` if signed, rows padded to [`CODE_ALIGN`]).

mod index;
mod linear;
mod narrow;
mod nn;
mod shape;
pub mod view;

use fqc_ir::expr::Literal;
use fqc_ir::plan::{Buffer, BufferId, Kernel, Place, Plan, Port, Precision, Step, View};
use fqc_ir::{BinaryOp, Const, Dim, Elem, Expr, Graph, NodeId, Op, Shape, Type};
use narrow::{is_narrow, over_stored, stored, stored_const};
use std::collections::BTreeMap;
use std::fmt;

/// Rows of codes are padded to this many channels, so that every kernel may read whole vectors.
pub const CODE_ALIGN: i64 = 64;

/// Why a graph has no plan.
#[derive(Clone, PartialEq, Debug)]
pub enum LowerError {
    /// A node that no kernel computes: the name of its value, its operation, the reason.
    NoKernel { node: String, op: &'static str, reason: String },
    /// An output of codes: how they lie in memory is the backend's own affair.
    QuantisedOutput { name: String, ty: Type },
    /// The plan is not sound. A fault of this crate, never of the model.
    Faulty(String),
}

impl fmt::Display for LowerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LowerError::NoKernel { node, op, reason } => {
                write!(f, "`{node}` ({op}) has no kernel: {reason}")
            }
            LowerError::QuantisedOutput { name, ty } => {
                write!(f, "output `{name}` is quantised ({ty}); dequantise it in the model")
            }
            LowerError::Faulty(fault) => write!(f, "the plan is faulty: {fault}"),
        }
    }
}

impl std::error::Error for LowerError {}

/// Result of lowering one node: the error is the reason.
type Lowered = Result<(), String>;

/// The plan of a graph, verified; every node without a kernel is reported.
pub fn lower(graph: &Graph, precision: Precision) -> Result<Plan, Vec<LowerError>> {
    let mut lowering = Lowering::new(graph, precision);
    let mut errors = Vec::new();
    for (name, id) in graph.outputs() {
        let ty = &graph.node(*id).ty;
        if ty.quant.is_some() {
            errors.push(LowerError::QuantisedOutput { name: name.clone(), ty: ty.clone() });
        }
    }
    for id in graph.topological().expect("the verifier has refused cycles") {
        if let Err(reason) = lowering.node(id) {
            let node = graph.node(id);
            let (node, op) = (node.name.clone(), node.op.mnemonic());
            errors.push(LowerError::NoKernel { node, op, reason });
            // A stand-in, so that the nodes behind it can be checked too.
            let ty = &graph.node(id).ty;
            let buffer = lowering.arena(id, ty.elem, ty.shape.clone());
            lowering.values.insert(id, View::whole(buffer, &ty.shape));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    lowering.finish();
    match fqc_ir::plan::verify(&lowering.plan) {
        Ok(()) => Ok(lowering.plan),
        Err(faults) => Err(faults.into_iter().map(LowerError::Faulty).collect()),
    }
}

struct Lowering<'g> {
    graph: &'g Graph,
    precision: Precision,
    plan: Plan,
    /// Where the value of each lowered node is.
    values: BTreeMap<NodeId, View>,
    /// Outputs that no step has taken as its result buffer yet, by node.
    free_outputs: BTreeMap<NodeId, usize>,
}

impl<'g> Lowering<'g> {
    fn new(graph: &'g Graph, precision: Precision) -> Self {
        let plan = Plan {
            name: graph.name.clone(),
            limits: graph.limits().cloned().collect(),
            ..Plan::default()
        };
        let mut free_outputs = BTreeMap::new();
        for (i, (_, id)) in graph.outputs().iter().enumerate() {
            free_outputs.entry(*id).or_insert(i);
        }
        let mut lowering =
            Lowering { graph, precision, plan, values: BTreeMap::new(), free_outputs };
        for (i, &id) in graph.inputs().iter().enumerate() {
            let node = graph.node(id);
            let (elem, shape) = (node.ty.elem, node.ty.shape.clone());
            let buffer = lowering.buffer(&node.name, elem, shape.clone(), Place::Input(i));
            let port = View::whole(buffer, &shape);
            let value = if is_narrow(elem) { lowering.unpack_port(id, port) } else { port };
            lowering.values.insert(id, value);
            lowering.plan.inputs.push(Port { name: node.name.clone(), elem, shape, buffer });
        }
        lowering
    }

    /// Copies outputs that are views, constants, inputs or named twice into buffers of their own.
    fn finish(&mut self) {
        let outputs: Vec<(String, NodeId)> = self.graph.outputs().to_vec();
        for (i, (name, id)) in outputs.into_iter().enumerate() {
            let ty = self.graph.node(id).ty.clone();
            let made = self.plan.buffers.iter().position(|b| b.place == Place::Output(i));
            let buffer = match made {
                Some(at) => BufferId(at),
                None => {
                    let place = Place::Output(i);
                    let buffer = self.buffer(&name, ty.elem, ty.shape.clone(), place);
                    let port = View::whole(buffer, &ty.shape);
                    if is_narrow(ty.elem) {
                        self.pack_port(id, port);
                    } else {
                        let value = self.value(id);
                        self.copy(&name, value, port);
                    }
                    buffer
                }
            };
            self.plan.outputs.push(Port { name, elem: ty.elem, shape: ty.shape, buffer });
        }
    }

    fn buffer(&mut self, name: &str, elem: Elem, shape: Shape, place: Place) -> BufferId {
        self.plan.buffers.push(Buffer { name: name.to_owned(), elem, shape, place });
        BufferId(self.plan.buffers.len() - 1)
    }

    /// A new arena buffer for a part of node `id`.
    fn arena(&mut self, id: NodeId, elem: Elem, shape: Shape) -> BufferId {
        let name = self.graph.node(id).name.clone();
        self.buffer(&name, stored(elem), shape, Place::Arena)
    }

    /// A constant as a whole view.
    fn constant(&mut self, name: &str, value: Const) -> View {
        let shape: Shape = value.shape.iter().map(|&d| Dim::from(d)).collect();
        let buffer = self.buffer(name, value.elem, shape.clone(), Place::Const(value));
        View::whole(buffer, &shape)
    }

    /// The result of node `id` as a whole buffer of its own type: an output of the model if it is
    /// one, else in the arena. The value is registered.
    fn result(&mut self, id: NodeId) -> View {
        let ty = self.graph.node(id).ty.clone();
        let buffer = match self.free_outputs.remove(&id) {
            Some(i) if !is_narrow(ty.elem) => {
                let name = self.graph.node(id).name.clone();
                self.buffer(&name, ty.elem, ty.shape.clone(), Place::Output(i))
            }
            _ => self.arena(id, ty.elem, ty.shape.clone()),
        };
        let view = View::whole(buffer, &ty.shape);
        self.values.insert(id, view.clone());
        view
    }

    /// A result that is codes: bytes in rows padded to [`CODE_ALIGN`]. Returns the whole padded view;
    /// the registered value has the type's own width.
    fn code_result(&mut self, id: NodeId) -> View {
        let mut shape = self.graph.node(id).ty.shape.clone();
        let width = shape.last().cloned().unwrap_or_else(Dim::one);
        if let Some(last) = shape.last_mut() {
            *last = width.ceil_div(CODE_ALIGN) * Dim::from(CODE_ALIGN);
        }
        let buffer = self.arena(id, Elem::U8, shape.clone());
        let whole = View::whole(buffer, &shape);
        let axis = shape.len() - 1;
        self.values.insert(id, view::narrow(&whole, axis, Dim::zero(), width));
        whole
    }

    /// Where a value is; a constant gets its buffer at its first use as data (the weight of a gemm
    /// is packed instead).
    fn value(&mut self, id: NodeId) -> View {
        if let (false, Some(value)) = (self.values.contains_key(&id), self.const_of(id)) {
            let view = self.constant(&self.graph.node(id).name, stored_const(value));
            self.values.insert(id, view);
        }
        self.values[&id].clone()
    }

    fn ty(&self, id: NodeId) -> &'g Type {
        &self.graph.node(id).ty
    }

    /// The constant behind a value, if it is one.
    fn const_of(&self, id: NodeId) -> Option<&'g Const> {
        match &self.graph.node(id).op {
            Op::Const(value) => Some(value),
            _ => None,
        }
    }

    fn step(&mut self, name: &str, kernel: Kernel, args: Vec<View>, results: Vec<View>) {
        self.plan.steps.push(Step { name: name.to_owned(), kernel, args, results });
    }

    fn copy(&mut self, name: &str, from: View, to: View) {
        self.step(name, Kernel::Pointwise(Expr::arg(0)), vec![from], vec![to]);
    }

    /// The element type a view's bytes have.
    fn elem(&self, view: &View) -> Elem {
        self.plan.buffer(view.buffer).elem
    }

    /// The view, copied to a buffer of its own if `fits` refuses it.
    fn materialise(&mut self, id: NodeId, view: View, fits: impl Fn(&View) -> bool) -> View {
        if fits(&view) {
            return view;
        }
        let elem = self.elem(&view);
        let buffer = self.arena(id, elem, view.shape.clone());
        let whole = View::whole(buffer, &view.shape);
        let name = self.graph.node(id).name.clone();
        self.copy(&name, view, whole.clone());
        whole
    }

    /// The view as evenly spaced rows `[M, K]` with neighbours in memory along the last axis.
    fn matrix(&mut self, id: NodeId, view: View) -> View {
        let fits = |v: &View| view::unit_last(v) && view::rows(v).is_some();
        let view = self.materialise(id, view, fits);
        view::rows(&view).expect("a contiguous copy has even rows")
    }

    /// An element-wise step over operands broadcast to the result.
    fn pointwise(&mut self, id: NodeId, expr: Expr, operands: &[NodeId]) {
        let shape = self.ty(id).shape.clone();
        let elems: Vec<Elem> = operands.iter().map(|&o| self.ty(o).elem).collect();
        let expr = over_stored(&expr, &elems, self.ty(id).elem);
        let args = operands.iter().map(|&o| view::broadcast(&self.value(o), &shape)).collect();
        let result = self.result(id);
        let name = self.graph.node(id).name.clone();
        self.step(&name, Kernel::Pointwise(expr), args, vec![result]);
    }

    fn node(&mut self, id: NodeId) -> Lowered {
        if self.values.contains_key(&id) {
            return Ok(());
        }
        self.check_narrow(id)?;
        let graph = self.graph;
        let node = graph.node(id);
        let operands = graph.operands(id);
        let name = node.name.as_str();
        match &node.op {
            Op::Input(_) | Op::Const(_) => {}
            Op::Dims(values) => {
                let result = self.result(id);
                self.step(name, Kernel::Dims(values.clone()), vec![], vec![result]);
            }
            Op::Iota(_) => {
                let result = self.result(id);
                self.step(name, Kernel::Iota, vec![], vec![result]);
            }
            Op::Unary(op) => self.pointwise(id, Expr::unary(*op, Expr::arg(0)), &operands),
            Op::Binary(op) => {
                self.pointwise(id, Expr::binary(*op, Expr::arg(0), Expr::arg(1)), &operands);
            }
            Op::Select => {
                let expr = Expr::select(Expr::arg(0), Expr::arg(1), Expr::arg(2));
                self.pointwise(id, expr, &operands);
            }
            Op::Cast(elem) => self.pointwise(id, Expr::cast(*elem, Expr::arg(0)), &operands),
            Op::Pointwise(expr) => self.pointwise(id, expr.clone(), &operands),
            Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Pad { .. } => self.shape_op(id, &operands)?,
            Op::Gather { .. }
            | Op::GatherElements { .. }
            | Op::GatherNd { .. }
            | Op::ScatterElements { .. }
            | Op::ScatterNd { .. }
            | Op::Reduce { .. }
            | Op::ArgReduce { .. }
            | Op::CumSum { .. } => self.index_op(id, &operands)?,
            Op::MatMul | Op::Gemm { .. } | Op::GemmAccumulate => self.linear_op(id, &operands)?,
            Op::Softmax
            | Op::LayerNorm { .. }
            | Op::RmsNorm { .. }
            | Op::Rope
            | Op::Attention { .. }
            | Op::Flatten { .. }
            | Op::Quantize(_)
            | Op::Dequantize
            | Op::LayerNormQuantize { .. }
            | Op::RmsNormQuantize { .. }
            | Op::PointwiseQuantize { .. } => self.nn_op(id, &operands)?,
        }
        Ok(())
    }
}

/// `a op literal`.
fn with_literal(op: BinaryOp, a: Expr, value: f32) -> Expr {
    Expr::binary(op, a, Expr::Literal(Literal::F32(value)))
}

/// A scalar view repeated over a shape.
fn splat(view: &View, shape: &[Dim]) -> View {
    View {
        buffer: view.buffer,
        offset: view.offset.clone(),
        shape: shape.to_vec(),
        strides: vec![Dim::zero(); shape.len()],
    }
}
