//! Linear layers of one input become one with their columns side by side, and slices of its result:
//! queries, keys and values, or gate and up. The numbers stay the same.
//!
//! ```text
//! %q = gemm %x, %wq, %bq {epilogue=add(arg0, arg1)}
//! %k = gemm %x, %wk, %bk {epilogue=add(arg0, arg1)}
//!     ->
//! %m = gemm %x, %w, %b {epilogue=add(arg0, arg1)}
//! %q = slice %m {start=[0,0], len=[s,64], step=[1,1]}
//! %k = slice %m {start=[0,64], len=[s,64], step=[1,1]}
//! ```

use crate::facts::Facts;
use crate::pattern::{constant, ty};
use crate::rule::{Rule, RulePass};
use fqc_ir::{Const, Dim, Expr, Graph, NodeId, Op, Patch, Quant, Scale, Value};
use std::sync::Arc;

pub const PASS: RulePass = RulePass {
    name: "merge-gemms",
    rules: &[Rule { name: "merge-gemms", find }],
    needs: Facts::NONE,
    gives: Facts::NONE,
    breaks: Facts::CANONICAL,
};

/// A linear layer whose operands but the first are constants: weights \[K, N\], then rows \[N\].
struct Layer<'a> {
    id: NodeId,
    epilogue: &'a Expr,
    tables: Vec<&'a Const>,
}

fn layer(graph: &Graph, id: NodeId) -> Option<Layer<'_>> {
    let Op::Gemm { epilogue, out: None } = &graph.node(id).op else { return None };
    let operands = graph.operands(id);
    let tables = operands[1..].iter().map(|&x| constant(graph, x)).collect::<Option<Vec<_>>>()?;
    tables[1..].iter().all(|t| t.shape.len() == 1).then_some(Layer { id, epilogue, tables })
}

/// At the first of the layers, so that each group is found once.
fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let first = layer(graph, id)?;
    let readers = graph.users(graph.operand(id, 0)?);
    let layers = readers.into_iter().filter(|&(_, slot)| slot == 0);
    let group: Vec<Layer> = layers
        .filter_map(|(user, _)| layer(graph, user))
        .filter(|other| alike(&first, other))
        .collect();
    if group.len() < 2 || group[0].id != id {
        return None;
    }
    merge(graph, &group)
}

/// Whether two layers differ in their constants and their number of columns only.
fn alike(a: &Layer, b: &Layer) -> bool {
    let (v, w) = (a.tables[0], b.tables[0]);
    let codes = |c: &Const| c.quant.as_ref().map(|q| (q.bits, q.signed, q.flatten.clone()));
    let whole_bytes = |c: &Const| (c.shape[1] * c.elem.bits() as usize).is_multiple_of(8);
    a.epilogue == b.epilogue
        && a.tables.len() == b.tables.len()
        && (v.elem, v.shape[0], codes(v)) == (w.elem, w.shape[0], codes(w))
        && whole_bytes(v)
        && whole_bytes(w)
}

fn merge(graph: &Graph, group: &[Layer]) -> Option<Patch> {
    let first = group.first()?;
    let name = format!("{}.merged", graph.node(first.id).name);
    let mut patch = Patch::new();
    let mut operands: Vec<Value> = vec![graph.operand(first.id, 0)?.into()];
    for slot in 0..first.tables.len() {
        let parts: Vec<&Const> = group.iter().map(|l| l.tables[slot]).collect();
        let table = side_by_side(&parts)?;
        let what = if slot == 0 { "w".to_owned() } else { format!("row{slot}") };
        operands.push(patch.add(format!("{name}.{what}"), Op::Const(table), &[]));
    }
    let op = Op::Gemm { epilogue: first.epilogue.clone(), out: None };
    let merged = patch.add(name, op, &operands);
    let mut offset = Dim::zero();
    for layer in group {
        let len = ty(graph, layer.id).shape.clone();
        let mut start = vec![Dim::zero(); len.len()];
        *start.last_mut()? = offset.clone();
        offset = offset + len.last()?.clone();
        let slice = Op::Slice { start, step: vec![1; len.len()], len };
        let slice = patch.add(&graph.node(layer.id).name, slice, &[merged]);
        patch.replace(layer.id, slice);
    }
    Some(patch)
}

/// Constants joined along their last axis, scales included.
fn side_by_side(parts: &[&Const]) -> Option<Const> {
    let (first, rows) = (parts.first()?, parts.first()?.shape.split_last()?.1);
    let row_bytes = |c: &Const| c.elem.bytes(*c.shape.last().unwrap_or(&0));
    let mut bytes = Vec::with_capacity(parts.iter().map(|c| c.bytes.as_slice().len()).sum());
    for row in 0..rows.iter().product() {
        for part in parts {
            let len = row_bytes(part);
            bytes.extend_from_slice(&part.bytes.as_slice()[row * len..(row + 1) * len]);
        }
    }
    parts.iter().for_each(|part| part.bytes.release());
    let mut shape = rows.to_vec();
    shape.push(parts.iter().map(|c| *c.shape.last().unwrap_or(&0)).sum());
    let joined = Const::new(first.elem, shape, bytes)?;
    let Some(quant) = &first.quant else { return Some(joined) };
    let scales: Vec<f32> = parts.iter().flat_map(|c| column_scales(c)).collect();
    let scale = Scale::Axis { axis: rows.len(), scales: Arc::from(scales) };
    Some(joined.with_quant(Arc::new(Quant { scale, ..quant.as_ref().clone() })))
}

/// The scale of each column.
fn column_scales(part: &Const) -> Vec<f32> {
    match part.quant.as_deref().map(|q| &q.scale) {
        Some(Scale::Axis { scales, .. }) => scales.to_vec(),
        Some(Scale::Tensor(scale)) => vec![*scale; *part.shape.last().unwrap_or(&0)],
        None => Vec::new(),
    }
}
