//! A float graph cut into parts that run one after another, so that only the weights of one part are
//! in memory as the kernels read them. Between the parts, the values that later ones read are kept
//! for each batch. A part is a graph of its own: its inputs are the model's and what it reads of the
//! parts before it.

use crate::data::Batch;
use crate::exit::{Exit, Failure};
use crate::host::SharedCode;
use crate::pipeline::{self, Context};
use fqc_ir::{Graph, NodeId, Op, Type, dim};
use fqrt::{Model, Session, SessionOptions, Tensor, TensorView};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of the constants that one part reads, unless a single operation reads more.
const PART_BYTES: usize = 64 << 20;

/// What an open size counts as where values are compared.
const OPEN_SIZE: i64 = 128;

/// One of them.
pub struct Part {
    graph: Graph,
    /// Names of the values asked for that it computes.
    pub observed: Vec<String>,
    /// Names of the values that later parts read, of this part and of those before.
    live: BTreeSet<String>,
}

impl Part {
    /// Whether anything in the part reads an input of the model.
    pub fn reads(&self, input: &str) -> bool {
        self.graph.find(input).is_some_and(|id| self.graph.use_count(id) > 0)
    }
}

/// Called with the index of a batch and the observed values by name.
pub type Seen<'a> = &'a mut dyn FnMut(usize, &[(&str, &Tensor)]) -> Result<(), Failure>;

/// A run of some batches through the parts of a graph.
pub struct Walk<'a> {
    runs: Vec<Run<'a>>,
    /// Index of the first batch.
    first: usize,
    code: SharedCode,
}

/// One batch on its way.
struct Run<'a> {
    batch: &'a Batch,
    /// What the parts so far left for later ones.
    carried: Vec<(String, Arc<Tensor>)>,
}

impl<'a> Walk<'a> {
    pub fn new(batches: impl IntoIterator<Item = &'a Batch>) -> Result<Walk<'a>, Failure> {
        let code = SharedCode::new(pipeline::own_level()?)?;
        let mut walk = Walk { runs: Vec::new(), first: 0, code };
        walk.restart(0, batches);
        Ok(walk)
    }

    /// Starts from the first part again with other batches, the first of which has an index.
    pub fn restart(&mut self, first: usize, batches: impl IntoIterator<Item = &'a Batch>) {
        self.first = first;
        let batches = batches.into_iter();
        self.runs = batches.map(|batch| Run { batch, carried: Vec::new() }).collect();
    }

    /// Adds a batch that differs from an earlier one only in what the next part or those after it read.
    pub fn fork(&mut self, from: usize, batch: &'a Batch) {
        let carried = self.runs[from].carried.clone();
        self.runs.push(Run { batch, carried });
    }

    /// Runs the next part over all batches and shows some of its values. With `leave`, it is done with
    /// and the one after it is the next.
    pub fn run(
        &mut self,
        part: &Part,
        shown: &[String],
        leave: bool,
        cx: &mut Context<'_>,
        seen: Seen<'_>,
    ) -> Result<(), Failure> {
        let model = self.load(part, shown, leave, cx)?;
        let cancel = Some(cx.interrupt.flag());
        let options = SessionOptions { threads: cx.threads, cancel, ..Default::default() };
        let mut session = Session::new(&model, options)?;
        let ports = &model.program().inputs;
        let is_shown = |name: &str| shown.iter().any(|n| n == name);
        for (index, run) in (self.first..).zip(&mut self.runs) {
            let given = run.batch.iter().map(|(name, tensor)| (name.as_str(), tensor.view()));
            let carried = run.carried.iter().map(|(name, tensor)| (name.as_str(), tensor.view()));
            let is_read = |(name, _): &(&str, _)| ports.iter().any(|port| port.name == *name);
            let inputs: Vec<(&str, TensorView<'_>)> =
                given.chain(carried).filter(is_read).collect();
            let outputs = session.run(&inputs).map_err(|e| {
                cx.interrupt.check().err().unwrap_or_else(|| {
                    Failure::new(Exit::Data, format!("calibration run {index}: {e}"))
                })
            })?;
            let all: Vec<(&str, &Tensor)> = outputs.iter().filter(|(n, _)| is_shown(n)).collect();
            seen(index, &all)?;
            if leave {
                let left = outputs.into_vec().into_iter();
                run.carried.extend(left.map(|(name, tensor)| (name, Arc::new(tensor))));
                run.carried.retain(|(name, _)| part.live.contains(name));
            }
        }
        Ok(())
    }

    /// Code and weights of a part.
    fn load(
        &mut self,
        part: &Part,
        shown: &[String],
        leave: bool,
        cx: &mut Context<'_>,
    ) -> Result<Arc<Model>, Failure> {
        let mut graph = part.graph.clone();
        let computed = |name: &&String| {
            let id = graph.find(name);
            id.is_some_and(|id| !matches!(graph.node(id).op, Op::Input(_)))
        };
        let left = part.live.iter().filter(|_| leave).filter(computed);
        let outputs: BTreeSet<&String> = left.chain(shown).collect();
        let outputs = outputs.into_iter().filter_map(|n| Some((n.clone(), graph.find(n)?)));
        let outputs = outputs.collect();
        graph.set_outputs(outputs);
        graph.sweep();
        // Only the passes of the compilation itself are shown.
        let hook = cx.after_pass.take();
        let target = pipeline::float_program(graph, &mut self.code, cx);
        cx.after_pass = hook;
        let target = target?;
        Ok(Model::from_parts(target.program, &target.weights, &target.code, None)?)
    }
}

/// The parts that compute some values of a graph, in the order to run them.
pub fn cut(graph: &Graph, values: &[NodeId]) -> Result<Vec<Part>, Failure> {
    cut_at(graph, values, PART_BYTES)
}

fn cut_at(graph: &Graph, values: &[NodeId], bytes: usize) -> Result<Vec<Part>, Failure> {
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let mut needed = graph.clone();
    needed.set_outputs(values.iter().map(|&id| (graph.node(id).name.clone(), id)).collect());
    needed.sweep();
    let order = needed.topological().ok_or_else(|| Failure::internal("the graph has a cycle"))?;
    let is_leaf = |id: &NodeId| matches!(needed.node(*id).op, Op::Const(_) | Op::Input(_));
    let order: Vec<NodeId> = order.into_iter().filter(|id| !is_leaf(id)).collect();
    let places: BTreeMap<NodeId, usize> = order.iter().zip(0..).map(|(id, at)| (*id, at)).collect();
    let last_use = |id: NodeId| needed.users(id).iter().filter_map(|(u, _)| places.get(u)).max();
    let mut begin = 0;
    let mut parts = Vec::new();
    let ends = ends(&needed, &order, &last_use, bytes);
    for (i, &end) in ends.iter().enumerate() {
        let own = &order[begin..end];
        let ids = order[..end].iter().filter(|id| last_use(**id).is_some_and(|at| *at >= end));
        let live = ids.map(|id| needed.node(*id).name.clone()).collect();
        let here = |id: &&NodeId| own.contains(id) || (i == 0 && is_leaf(id));
        let observed = values.iter().filter(here).map(|id| needed.node(*id).name.clone()).collect();
        parts.push(Part { graph: extract(&needed, own)?, observed, live });
        begin = end;
    }
    Ok(parts)
}

/// Where parts end: within the bytes, where the fewest values have to be carried on.
fn ends<'a>(
    needed: &Graph,
    order: &[NodeId],
    last_use: &dyn Fn(NodeId) -> Option<&'a usize>,
    bytes: usize,
) -> Vec<usize> {
    let mut weights = vec![0usize; order.len()];
    // What is carried if a part ends after each operation.
    let mut carried = vec![0u64; order.len()];
    for (at, &id) in order.iter().enumerate() {
        let consts = needed.operands(id).into_iter().filter_map(|o| match &needed.node(o).op {
            Op::Const(value) => Some(value.bytes.as_slice().len()),
            _ => None,
        });
        weights[at] = consts.sum();
        let until = last_use(id).map_or(at, |until| *until);
        let size = size(&needed.node(id).ty);
        carried[at..until].iter_mut().for_each(|sum| *sum = sum.saturating_add(size));
    }
    let mut ends = Vec::new();
    let (mut sum, mut best) = (0usize, None);
    for at in 0..order.len() {
        let over = sum.saturating_add(weights[at]) > bytes;
        if let Some(end) = best.filter(|_| over) {
            ends.push(end);
            (sum, best) = (weights[end..at].iter().sum(), None);
        }
        sum = sum.saturating_add(weights[at]);
        let cheapest = best.map_or(u64::MAX, |end: usize| carried[end - 1]);
        if sum >= bytes / 2 && carried[at] <= cheapest && carried[at] < u64::MAX {
            best = Some(at + 1);
        }
    }
    if ends.last() != Some(&order.len()) {
        ends.push(order.len());
    }
    ends
}

/// Bytes of a value, roughly; more than any number where it is none of the runtime's inputs.
fn size(ty: &Type) -> u64 {
    if ty.quant.is_some() || ty.elem.bits() < 8 {
        return u64::MAX;
    }
    let count = dim::product(&ty.shape).eval(&|_| Some(OPEN_SIZE));
    let count = count.and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX);
    count.saturating_mul(u64::from(ty.elem.bits() / 8))
}

/// Some operations as a graph of their own; what they read of others becomes an input. All inputs of
/// the model stay, because they say what the symbolic sizes are.
fn extract(needed: &Graph, operations: &[NodeId]) -> Result<Graph, Failure> {
    let mut graph = Graph::new(needed.name.clone());
    let add = |graph: &mut Graph, id: NodeId, op: Op, operands: &[NodeId]| {
        let node = needed.node(id);
        let new = graph.add(node.name.clone(), op, operands).map_err(Failure::internal)?;
        graph.set_origin(new, node.origin.clone());
        Ok::<NodeId, Failure>(new)
    };
    for &id in needed.inputs() {
        add(&mut graph, id, needed.node(id).op.clone(), &[])?;
    }
    for limit in needed.limits() {
        graph.add_limit(limit.clone());
    }
    for &id in operations {
        let mut operands = Vec::new();
        for operand in needed.operands(id) {
            let node = needed.node(operand);
            operands.push(match (graph.find(&node.name), &node.op) {
                (Some(known), _) => known,
                (None, Op::Const(_)) => add(&mut graph, operand, node.op.clone(), &[])?,
                (None, _) => add(&mut graph, operand, Op::Input(node.ty.clone()), &[])?,
            });
        }
        add(&mut graph, id, needed.node(id).op.clone(), &operands)?;
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupt;
    use crate::progress::Verbosity;
    use crate::{calibrate, data};
    use fqc_passes::quant::groups::{self, Heads};
    use std::path::Path;

    const MODEL: &str = "../../tests/models/tiny/gpt2_ts_op17_eager.onnx";

    /// Bits of the values by batch and name.
    type Bits = BTreeMap<(usize, String), Vec<u32>>;

    fn bits<'a>(
        parts: &[Part],
        mut walk: Walk<'a>,
        late: &'a [Batch],
        cx: &mut Context<'_>,
    ) -> Bits {
        let mut all = Bits::new();
        for (at, part) in parts.iter().enumerate() {
            walk.run(part, &part.observed, true, cx, &mut |index, values| {
                for (name, tensor) in values {
                    let numbers = tensor.numbers::<f32>().expect("floats").iter();
                    let numbers = numbers.map(|v| v.to_bits()).collect();
                    assert_eq!(all.insert((index, (*name).to_owned()), numbers), None, "{name}");
                }
                Ok(())
            })
            .expect("a part runs");
            if at == 0 {
                late.iter().for_each(|batch| walk.fork(0, batch));
            }
        }
        all
    }

    #[test]
    fn parts_give_the_values_of_the_whole_bit_for_bit() {
        let interrupt = Interrupt::default();
        let verbosity = Verbosity::Quiet;
        let mut cx = Context::new(&interrupt, verbosity, 1);
        let graph = pipeline::import(Path::new(MODEL), &mut cx).expect("imports");
        let batches = data::random(2, 12, &calibrate::wanted(&graph)).expect("fills");
        let values: Vec<NodeId> =
            groups::find(&graph, Heads::Quantized).into_iter().map(|g| g.input).collect();
        let whole = cut(&graph, &values).expect("is cut");
        assert_eq!((whole.len(), whole[0].observed.len()), (1, values.len()));
        let want = bits(&whole, Walk::new(&batches).expect("a level"), &[], &mut cx);
        assert_eq!(want.len(), 2 * values.len());
        for bytes in [1, 20_000, 60_000] {
            let parts = cut_at(&graph, &values, bytes).expect("is cut");
            assert!(parts.len() > 2, "{} parts of {bytes} bytes", parts.len());
            let got = bits(&parts, Walk::new(&batches).expect("a level"), &[], &mut cx);
            assert!(got == want, "parts of {bytes} bytes");
            // A run that begins after the first part as a copy of the first.
            let walk = Walk::new(&batches[..1]).expect("a level");
            let got = bits(&parts, walk, &batches[..1], &mut cx);
            let late = got.iter().filter(|((index, _), _)| *index == 1);
            let late: Vec<_> = late.map(|((_, name), bits)| (name, bits)).collect();
            assert!(late.iter().all(|(name, bits)| want[&(0, (*name).clone())] == **bits));
            assert_eq!(late.len(), values.len() - parts[0].observed.len());
        }
    }
}
