//! Prints a graph: one line an entity, types and attributes always in full, constants first, then
//! inputs, then every node after its operands.

use super::attrs;
use super::lex::name;
use super::quants::Quants;
use super::values::Blobs;
use crate::graph::{Graph, Limit, NodeId};

/// The text of a graph. Large constants appear by hash; see [`print_with_blobs`].
pub fn print(graph: &Graph) -> String {
    print_with_blobs(graph).0
}

/// The text of a graph and the data that it names by hash.
pub fn print_with_blobs(graph: &Graph) -> (String, Blobs) {
    let mut blobs = Blobs::new();
    let lines = lines(graph, &mut blobs);
    (join(lines.into_iter().map(|(_, line)| line)), blobs)
}

/// The text with a comment on each line that tells which ONNX nodes it comes from.
pub fn print_with_origins(graph: &Graph) -> String {
    let with_origin = |(id, line): (Option<NodeId>, String)| match id {
        Some(id) if !graph.node(id).origin.is_empty() => {
            let origin: Vec<String> = graph.node(id).origin.iter().map(|o| name(o)).collect();
            format!("{line} ; {}", origin.join(" + "))
        }
        _ => line,
    };
    join(lines(graph, &mut Blobs::new()).into_iter().map(with_origin))
}

pub(crate) fn join(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| line + "\n").collect()
}

pub(super) fn print_limit(limit: &Limit) -> String {
    match limit {
        Limit::AtMost(size, most) => format!("limit {size} <= {most}"),
        Limit::Equal(a, b) => format!("limit {a} == {b}"),
    }
}

/// The lines, each with the node it shows; in creation order if there is a cycle.
pub(crate) fn lines(graph: &Graph, blobs: &mut Blobs) -> Vec<(Option<NodeId>, String)> {
    let order = graph.topological().unwrap_or_else(|| graph.ids());
    let quants = Quants::of(graph, &order);
    let mut out = vec![(None, format!("graph @{} {{", name(&graph.name)))];
    out.extend(graph.limits().map(|limit| (None, format!("  {}", print_limit(limit)))));
    out.extend(quants.print(blobs).into_iter().map(|line| (None, format!("  {line}"))));
    for id in order {
        out.push((Some(id), format!("  {}", print_node(graph, id, &quants, blobs))));
    }
    let output = |(public, id): &(String, NodeId)| {
        let value = if graph.contains(*id) { &graph.node(*id).name } else { "" };
        format!(" %{} as {}", name(value), name(public))
    };
    let outputs: Vec<String> = graph.outputs().iter().map(output).collect();
    out.push((None, format!("  return{}", outputs.join(","))));
    out.push((None, "}".to_owned()));
    out
}

fn print_node(graph: &Graph, id: NodeId, quants: &Quants, blobs: &mut Blobs) -> String {
    let node = graph.node(id);
    let operands = graph.operands(id);
    let operands: Vec<String> =
        operands.iter().map(|&o| format!("%{}", name(&graph.node(o).name))).collect();
    let mut line =
        format!("%{}: {} = {}", name(&node.name), quants.print_type(&node.ty), node.op.mnemonic());
    for part in [operands.join(", "), attrs::print(&node.op, quants, blobs)] {
        if !part.is_empty() {
            line.push(' ');
            line.push_str(&part);
        }
    }
    line
}
