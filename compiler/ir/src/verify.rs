//! The verifier: one run lists every fault, each at its node. It runs after every pass in every
//! build and checks that
//!
//! - names are unique, not empty, and lead to their nodes;
//! - operands fill the slots 0, 1, …, there is no cycle, outputs are there and have unique names;
//! - the list of inputs is the set of input nodes;
//! - the type of every node is the one that its operation and operands give;
//! - sizes are not negative, quantisations have positive finite scales, axes in range and of the
//!   right length, codes of the right element type, digits in order;
//! - the bytes of constants fill their types;
//! - types and limits only name symbols of the inputs;
//! - the facts that passes have established, [`FACTS`], still hold.

use crate::data::Const;
use crate::dim::Dim;
use crate::expr::UnaryOp;
use crate::graph::{Graph, Limit, NodeId};
use crate::infer::{self, InferError, check_codes};
use crate::op::Op;
use crate::text::{self, Blobs};
use crate::types::Type;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::BitOr;

/// Something that is wrong, and the node it is wrong at.
#[derive(Clone, PartialEq, Debug)]
pub struct Fault {
    pub node: Option<NodeId>,
    pub message: String,
}

/// A set of facts about a graph that passes rely on.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts(u32);

/// One fact: its name and the check of one node.
pub struct Fact {
    pub name: &'static str,
    pub set: Facts,
    pub check: fn(&Graph, NodeId) -> Result<(), String>,
}

impl Facts {
    pub const NONE: Facts = Facts(0);
    /// Every node but an input is read by another or is an output.
    pub const NO_DEAD: Facts = Facts(1);
    /// No node does nothing, none computes a constant that could be one ([`is_identity`],
    /// [`is_foldable`]).
    pub const CANONICAL: Facts = Facts(2);
    /// A product with quantised weights has a quantised activation.
    pub const QDQ_COMPLETE: Facts = Facts(4);
    /// No product reads floats that have just been made from codes.
    pub const QDQ_FOLDED: Facts = Facts(8);

    pub fn contains(self, other: Facts) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn without(self, other: Facts) -> Facts {
        Facts(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The rows of the table in this set.
    pub fn iter(self) -> impl Iterator<Item = &'static Fact> {
        FACTS.iter().filter(move |fact| self.contains(fact.set))
    }
}

impl BitOr for Facts {
    type Output = Facts;
    fn bitor(self, other: Facts) -> Facts {
        Facts(self.0 | other.0)
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(|fact| fact.name).collect();
        f.write_str(&names.join(", "))
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Facts({self})")
    }
}

/// All facts there are.
pub const FACTS: &[Fact] = &[
    Fact { name: "no-dead", set: Facts::NO_DEAD, check: check_no_dead },
    Fact { name: "canonical", set: Facts::CANONICAL, check: check_canonical },
    Fact { name: "qdq-complete", set: Facts::QDQ_COMPLETE, check: check_qdq_complete },
    Fact { name: "qdq-folded", set: Facts::QDQ_FOLDED, check: check_qdq_folded },
];

fn check_no_dead(graph: &Graph, id: NodeId) -> Result<(), String> {
    if graph.use_count(id) == 0 && !matches!(graph.node(id).op, Op::Input(_)) {
        return Err("nothing reads it".to_owned());
    }
    Ok(())
}

fn check_canonical(graph: &Graph, id: NodeId) -> Result<(), String> {
    if is_identity(graph, id) {
        return Err(format!("`{}` changes nothing", graph.node(id).op.mnemonic()));
    }
    if is_foldable(graph, id) {
        return Err("reads nothing but constants: should be one".to_owned());
    }
    Ok(())
}

/// Whether the node gives its first operand unchanged, type and all.
pub fn is_identity(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let operands = graph.operands(id);
    let Some(&x) = operands.first() else { return false };
    let x = graph.node(x);
    if x.ty != node.ty {
        return false;
    }
    match &node.op {
        Op::Reshape(_) | Op::Broadcast(_) | Op::Cast(_) => true,
        Op::Transpose(perm) => perm.iter().enumerate().all(|(i, &p)| i == p),
        Op::Slice { start, step, .. } => {
            start.iter().all(|d| d.as_const() == Some(0)) && step.iter().all(|&s| s == 1)
        }
        Op::Concat { .. } => operands.len() == 1,
        Op::Pad { before, after, .. } => {
            before.iter().chain(after).all(|d| d.as_const() == Some(0))
        }
        Op::Reduce { axes, .. } => axes.is_empty(),
        Op::Unary(op) => {
            let idempotent = matches!(
                op,
                UnaryOp::Abs | UnaryOp::Relu | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round
            );
            idempotent && x.op == node.op
        }
        _ => false,
    }
}

/// A constant up to this many bytes may stand for anything.
const SMALL_BYTES: usize = 64 << 10;

/// Whether the node computes a constant that should stand in its place: every operand is one, all
/// sizes are known, and the model does not grow much by it: the result is small, or at most four
/// times as large as the operands. Not so for `dequantize` and `broadcast`, whose operands are smaller
/// than their results, and for `iota`, which has none.
pub fn is_foldable(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let operands = graph.operands(id);
    let by_kind = match &node.op {
        Op::Input(_) | Op::Const(_) | Op::Iota(_) | Op::Dequantize | Op::Broadcast(_) => false,
        Op::Dims(sizes) => sizes.iter().all(|d| d.is_const()),
        _ => !operands.is_empty(),
    };
    let mut given = 0usize;
    for operand in operands {
        let Op::Const(value) = &graph.node(operand).op else { return false };
        given = given.saturating_add(value.bytes.as_slice().len());
    }
    let count = node.ty.count().as_const().and_then(|n| usize::try_from(n).ok());
    let fits = |n: usize| node.ty.elem.bytes(n) <= SMALL_BYTES.max(given.saturating_mul(4));
    by_kind && node.ty.const_shape().is_some() && count.is_some_and(fits)
}

fn is_dequantized(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Dequantize)
}

fn check_qdq_complete(graph: &Graph, id: NodeId) -> Result<(), String> {
    let (Op::MatMul | Op::Gemm { .. }) = graph.node(id).op else { return Ok(()) };
    match graph.operands(id)[..] {
        [x, w, ..] if is_dequantized(graph, w) && !is_dequantized(graph, x) => Err(format!(
            "the weights `%{}` are quantised, the activation `%{}` is not",
            graph.node(w).name,
            graph.node(x).name
        )),
        _ => Ok(()),
    }
}

fn check_qdq_folded(graph: &Graph, id: NodeId) -> Result<(), String> {
    let (Op::MatMul | Op::Gemm { .. }) = graph.node(id).op else { return Ok(()) };
    match graph.operands(id).into_iter().take(2).find(|&o| is_dequantized(graph, o)) {
        Some(o) => Err(format!(
            "has the dequantised operand `%{}`: expected a gemm of codes",
            graph.node(o).name
        )),
        None => Ok(()),
    }
}

/// Checks the graph and the facts; lists all faults.
pub fn verify(graph: &Graph, facts: Facts) -> Result<(), Vec<Fault>> {
    let mut faults = Vec::new();
    check_whole(graph, &mut faults);
    for id in graph.ids() {
        let mut fault = |message: String| faults.push(Fault { node: Some(id), message });
        if check_node(graph, id, &mut fault) {
            for fact in facts.iter() {
                if let Err(message) = (fact.check)(graph, id) {
                    fault(format!("{message} (`{}`)", fact.name));
                }
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// What is not the matter of one node: inputs, outputs, limits, cycles.
fn check_whole(graph: &Graph, faults: &mut Vec<Fault>) {
    let mut fault = |node: Option<NodeId>, message: String| faults.push(Fault { node, message });
    if graph.topological().is_none() {
        graph.cyclic().into_iter().for_each(|id| fault(Some(id), "depends on itself".to_owned()));
    }
    let mut removed = false;
    let mut seen = BTreeSet::new();
    for (name, id) in graph.outputs() {
        if !seen.insert(name) {
            fault(None, format!("two outputs are called `{name}`"));
        }
        if !graph.contains(*id) {
            fault(None, format!("output `{name}` is a node that was removed"));
        }
    }
    let mut listed = BTreeSet::new();
    for &id in graph.inputs() {
        if !graph.contains(id) {
            removed = true;
            fault(None, "the list of inputs names a node that was removed".to_owned());
        } else if !matches!(graph.node(id).op, Op::Input(_)) || !listed.insert(id) {
            fault(Some(id), "is listed as an input and is none, or twice".to_owned());
        }
    }
    for id in graph.ids() {
        if matches!(graph.node(id).op, Op::Input(_)) && !listed.contains(&id) {
            fault(Some(id), "is missing in the list of inputs".to_owned());
        }
    }
    if !removed {
        check_symbols(graph, faults);
    }
}

/// That nothing depends on a size which no input tells.
fn check_symbols(graph: &Graph, faults: &mut Vec<Fault>) {
    let symbols = graph.symbols();
    for id in graph.ids() {
        let shape = &graph.node(id).ty.shape;
        let used = shape.iter().flat_map(Dim::symbols).find(|s| !symbols.contains(s));
        if let Some(symbol) = used {
            let message = format!("its type names the size `{symbol}`, which no input has");
            faults.push(Fault { node: Some(id), message });
        }
    }
    for limit in graph.limits() {
        let used = match limit {
            Limit::AtMost(size, _) => size.symbols(),
            Limit::Equal(a, b) => (a.clone() + b.clone()).symbols(),
        };
        for symbol in used.iter().filter(|s| !symbols.contains(s)) {
            let message = format!("a limit names `{symbol}`, which no input has");
            faults.push(Fault { node: None, message });
        }
    }
}

/// One node; whether its operands are sound enough to look further.
fn check_node(graph: &Graph, id: NodeId, fault: &mut impl FnMut(String)) -> bool {
    let node = graph.node(id);
    if node.name.is_empty() {
        fault("has no name".to_owned());
    }
    if graph.find(&node.name) != Some(id) {
        fault(format!("the name `{}` leads to another node", node.name));
    }
    let slots = graph.slots(id);
    if !slots.iter().copied().eq(0..slots.len()) {
        fault(format!("operands in slots {slots:?}"));
        return false;
    }
    if let Op::Const(value) = &node.op
        && let Err(message) = check_const(value)
    {
        fault(message);
    }
    if let Err(error) = check_type(&node.ty) {
        fault(error.to_string());
    }
    let operands = graph.operands(id);
    let types: Vec<&Type> = operands.iter().map(|&o| &graph.node(o).ty).collect();
    match infer::infer(&node.op, &types) {
        Err(error) => fault(error.to_string()),
        Ok(ty) if ty == node.ty => {}
        Ok(ty) if ty.to_string() == node.ty.to_string() => {
            fault("its operands give another quantisation".to_owned());
        }
        Ok(ty) => fault(format!("is {}, its operands give {ty}", node.ty)),
    }
    true
}

fn check_const(value: &Const) -> Result<(), String> {
    let count = value.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let bits = count.and_then(|n| n.checked_mul(value.elem.bits() as usize));
    let (got, want) = (value.bytes.as_slice().len(), bits.map(|b| b.div_ceil(8)));
    if want != Some(got) {
        return Err(format!("holds {got} bytes, its type {} wants another number", value.ty()));
    }
    Ok(())
}

fn check_type(ty: &Type) -> Result<(), InferError> {
    if let Some(d) = ty.shape.iter().find(|d| d.as_const().is_some_and(|v| v < 0)) {
        return Err(InferError::Invalid(format!("negative size {d}")));
    }
    check_codes(ty)
}

/// The text of the graph with every fault under its line.
pub fn render(graph: &Graph, faults: &[Fault]) -> String {
    let lines = text::lines(graph, &mut Blobs::new());
    let mut out = Vec::new();
    let mut shown = BTreeSet::new();
    for (id, line) in lines {
        out.push(line);
        for (i, fault) in faults.iter().enumerate() {
            if id.is_some() && fault.node == id {
                out.push(format!("  ^ error: {}", fault.message));
                shown.insert(i);
            }
        }
    }
    let rest = faults.iter().enumerate().filter(|(i, _)| !shown.contains(i));
    out.extend(rest.map(|(_, fault)| format!("error: {}", fault.message)));
    text::join(out.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Blobs, parse};

    fn check(facts: Facts, text: &str, expected: &str) {
        let graph = parse(text, &Blobs::new()).expect("the test's graph is well formed");
        let got = match verify(&graph, facts) {
            Ok(()) => String::new(),
            Err(faults) => render(&graph, &faults)
                .lines()
                .filter(|l| l.contains("error: "))
                .map(|l| l.trim_start().to_owned() + "\n")
                .collect(),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn facts_are_checked_node_by_node() {
        let text = "graph @t {
            !q0 = quant i8 scale=0.5
            %w: i8[2,2] !q0 = const {dense=[1, 2, 3, 4]}
            %c: f32[2] = const {splat=1.0}
            %x: f32[b,2] = input
            %same: f32[b,2] = reshape %x {shape=[b, 2]}
            %two: f32[2] = add %c, %c
            %w.f: f32[2,2] = dequantize %w
            %y: f32[b,2] = matmul %same, %w.f
            return %y as y
        }";
        check(
            Facts::CANONICAL | Facts::NO_DEAD | Facts::QDQ_COMPLETE | Facts::QDQ_FOLDED,
            text,
            "^ error: `reshape` changes nothing (`canonical`)\n\
             ^ error: nothing reads it (`no-dead`)\n\
             ^ error: reads nothing but constants: should be one (`canonical`)\n\
             ^ error: the weights `%w.f` are quantised, the activation `%same` is not (`qdq-complete`)\n\
             ^ error: has the dequantised operand `%w.f`: expected a gemm of codes (`qdq-folded`)\n",
        );
        check(Facts::NONE, text, "");
    }

    #[test]
    fn all_faults_of_a_broken_graph_are_listed() {
        let text = "graph @t {
            limit b*t <= 4
            !q0 = quant i4 axis=1 scales=[0.5, -1.0]
            %x: i8[b,2] !q0 = input
            %y: f32[-3] = input
            return %x as out, %y as out
        }";
        check(
            Facts::NONE,
            text,
            "^ error: scale -1.0 is not positive and finite\n\
             ^ error: negative size -3\n\
             error: two outputs are called `out`\n\
             error: a limit names `t`, which no input has\n",
        );
    }

    #[test]
    fn a_cycle_is_shown_where_it_is() {
        let text = "graph @t {
            %x: f32[b] = input
            %a: f32[b] = neg %x
            %b: f32[b] = exp %a
            return %b as y
        }";
        let mut graph = parse(text, &Blobs::new()).expect("the test's graph is well formed");
        let find = |name: &str| graph.find(name).expect("the text has it");
        let (x, b) = (find("x"), find("b"));
        graph.redirect(x, b, &[]);
        let faults = verify(&graph, Facts::NONE).expect_err("a depends on b");
        assert_eq!(faults.len(), 2);
        assert!(render(&graph, &faults).contains("neg %b\n  ^ error: depends on itself"));
    }
}
