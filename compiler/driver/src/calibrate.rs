//! Calibration: the float graph runs on fqc's own CPU backend with the inputs of all linear groups
//! as outputs; their statistics are updated run by run, so memory is bounded by one run plus
//! `ChannelStats` of each group.

use crate::data::{Batch, Wanted};
use crate::exit::{Exit, Failure};
use crate::pipeline::{self, Context};
use crate::progress::Stage;
use fqc_ir::{Graph, NodeId};
use fqc_passes::quant::groups::{self, Heads};
use fqc_passes::quant::stats::{ChannelStats, Statistics};
use fqrt::{Model, Session, SessionOptions, TensorView};

/// What the model's inputs are, for reading data.
pub fn wanted(graph: &Graph) -> Vec<Wanted> {
    graph
        .inputs()
        .iter()
        .map(|&id| {
            let node = graph.node(id);
            Wanted { name: node.name.clone(), elem: element(node.ty.elem), rank: node.ty.rank() }
        })
        .collect()
}

/// The file format's name for an element type; both tables use the same names.
fn element(elem: fqc_ir::Elem) -> fqbin::Elem {
    fqbin::Elem::ALL
        .into_iter()
        .find(|e| e.name() == elem.name())
        .expect("both tables have the same element types")
}

/// Statistics of every group's input over all batches.
pub fn run(
    float: &Graph,
    heads: Heads,
    batches: &[Batch],
    cx: &mut Context<'_>,
) -> Result<Statistics, Failure> {
    if batches.is_empty() {
        return Err(Failure::data(
            "static quantisation needs calibration data: give `--calib FILE` (an .npz, or text \
             with `--tokenizer`), or `--calib random` to try without",
        ));
    }
    let observed: Vec<NodeId> = groups::find(float, heads).iter().map(|g| g.input).collect();
    let mut statistics = Statistics::new();
    for &id in &observed {
        let node = float.node(id);
        let channels = node.ty.last().as_const().and_then(|c| usize::try_from(c).ok());
        let channels = channels.ok_or_else(|| {
            Failure::internal(format!(
                "the input `{}` of a linear has no constant width",
                node.name
            ))
        })?;
        statistics.insert(node.name.clone(), ChannelStats::new(channels));
    }
    let mut stage = Stage::new("calibrate", batches.len() as u64, cx.verbosity);
    observe(float, &observed, batches, cx, &mut |index, values| {
        for (name, values) in values {
            let stats = statistics.get_mut(*name).expect("every output is an observed value");
            stats.update(values).map_err(|e| {
                Failure::data(format!("calibration sample {index}: value `{name}` is {e}"))
            })?;
        }
        stage.step();
        Ok(())
    })?;
    Ok(statistics)
}

/// Called with the index of a batch and the observed values by name.
pub type Seen<'a> = &'a mut dyn FnMut(usize, &[(&str, &[f32])]) -> Result<(), Failure>;

/// Runs as much of a graph as some of its f32 values need and shows them, batch by batch.
pub fn observe(
    graph: &Graph,
    values: &[NodeId],
    batches: &[Batch],
    cx: &mut Context<'_>,
    seen: Seen<'_>,
) -> Result<(), Failure> {
    if values.is_empty() {
        return Ok(());
    }
    let mut part = graph.clone();
    part.set_outputs(values.iter().map(|&id| (graph.node(id).name.clone(), id)).collect());
    part.sweep();
    let target = pipeline::float_target(&part, cx)?;
    let model = Model::from_parts(target.program, &target.weights, &target.code, None)?;
    let cancel = Some(cx.interrupt.flag());
    let options = SessionOptions { threads: cx.threads, cancel, ..Default::default() };
    let mut session = Session::new(&model, options)?;
    for (index, batch) in batches.iter().enumerate() {
        let inputs: Vec<(&str, TensorView<'_>)> =
            batch.iter().map(|(name, t)| (name.as_str(), t.view())).collect();
        let outputs = session.run(&inputs).map_err(|e| {
            cx.interrupt.check().err().unwrap_or_else(|| {
                Failure::new(Exit::Data, format!("calibration sample {index}: {e}"))
            })
        })?;
        let all: Vec<(&str, &[f32])> = outputs
            .iter()
            .map(|(name, tensor)| (name, tensor.numbers::<f32>().unwrap_or_default()))
            .collect();
        seen(index, &all)?;
    }
    Ok(())
}
