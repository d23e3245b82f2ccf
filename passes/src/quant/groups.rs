//! Linear layers that share an input: they share its smoothing, its threshold and its digits.

use fqc_ir::{Graph, NodeId, Op};

/// The matrix products of one value with constant weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// The shared input, f32 \[.., K\].
    pub input: NodeId,
    /// `matmul` nodes whose right operand is an f32 constant \[K, N\].
    pub linears: Vec<NodeId>,
}

/// All groups in topological order. A linear whose result is, but for a bias, an output of the model
/// (a language model's head) is left out unless `heads`.
pub fn find(graph: &Graph, heads: Heads) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for id in graph.topological().unwrap_or_default() {
        let Some((input, _)) = linear(graph, id) else { continue };
        if heads == Heads::Float && is_head(graph, id) {
            continue;
        }
        match groups.iter_mut().find(|g| g.input == input) {
            Some(group) => group.linears.push(id),
            None => groups.push(Group { input, linears: vec![id] }),
        }
    }
    groups
}

/// The group of one input, if any linear reads it.
pub fn of(graph: &Graph, input: NodeId, heads: Heads) -> Option<Group> {
    let mut linears = Vec::new();
    for (user, slot) in graph.users(input) {
        let reads = slot == 0 && linear(graph, user).is_some();
        if reads && (heads == Heads::Quantized || !is_head(graph, user)) {
            linears.push(user);
        }
    }
    (!linears.is_empty()).then_some(Group { input, linears })
}

/// Whether heads are quantised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heads {
    Float,
    Quantized,
}

/// Input and weight of a linear layer with a constant f32 weight of rank 2.
pub fn linear(graph: &Graph, id: NodeId) -> Option<(NodeId, NodeId)> {
    let Op::MatMul = graph.node(id).op else { return None };
    let [x, w] = graph.operands(id)[..] else { return None };
    let weight = graph.node(w);
    let Op::Const(value) = &weight.op else { return None };
    let float = weight.ty.elem == fqc_ir::Elem::F32 && graph.node(x).ty.elem == fqc_ir::Elem::F32;
    (value.shape.len() == 2 && float).then_some((x, w))
}

/// Whether a linear's result is, but for a bias, an output of the model. A residual is no bias.
pub fn is_head(graph: &Graph, id: NodeId) -> bool {
    let constant = |x: NodeId| matches!(graph.node(x).op, Op::Const(_));
    graph.is_output(id)
        || graph.single_user(id).is_some_and(|user| {
            matches!(graph.node(user).op, Op::Binary(fqc_ir::BinaryOp::Add))
                && graph.is_output(user)
                && graph.operands(user).into_iter().all(|x| x == id || constant(x))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fqc_ir::text;

    /// A linear whose result is an output after `other` was added.
    fn heads(other: &str) -> usize {
        let lines = [
            "graph @g {",
            "  %x: f32[2,2] = input",
            "  %w: f32[2,2] = const {dense=[1.0, 0.0, 0.0, 1.0]}",
            "  %bias: f32[2,2] = const {dense=[0.5, 0.5, 0.5, 0.5]}",
            "  %y: f32[2,2] = matmul %x, %w",
            &format!("  %z: f32[2,2] = add {other}, %y"),
            "  return %z as z",
            "}",
        ];
        let graph = text::parse(&lines.join("\n"), &text::Blobs::new()).expect("a graph");
        find(&graph, Heads::Quantized).len() - find(&graph, Heads::Float).len()
    }

    #[test]
    fn the_last_layer_of_a_residual_stream_is_no_head() {
        assert_eq!(heads("%bias"), 1);
        assert_eq!(heads("%x"), 0);
    }
}
