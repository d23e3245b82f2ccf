//! Models with data to calibrate them on, through the compiler's own pipeline.

use crate::runtime::{Named, to_runtime};
use crate::{cache, generate, npz, repository, sorted};
use anyhow::{Context as _, Result, ensure};
use fqc::data::{Batch, Rare, Source, batches};
use fqc::interrupt::Interrupt;
use fqc::pipeline::{self, Context};
use fqc::progress::Verbosity;
use fqc::settings::Settings;
use fqc::{Failure, calibrate};
use fqc_interp::bind;
use fqc_ir::Graph;
use fqc_passes::quant::passes::Choices;
use std::path::PathBuf;
use std::sync::Arc;

/// Calls the pipeline with nobody to interrupt it.
pub fn quietly<T>(call: impl FnOnce(&mut Context<'_>) -> Result<T, Failure>) -> Result<T> {
    let interrupt = Interrupt::default();
    let verbosity = Verbosity::Quiet;
    let mut cx = Context::new(&interrupt, verbosity, 2);
    call(&mut cx).map_err(|failure| anyhow::anyhow!("{failure}"))
}

/// A fetched file; if it is not there, the error says how to get it.
pub fn fetched(path: &str) -> Result<PathBuf> {
    let path = cache(path);
    ensure!(path.exists(), "`{}` is not there; run `cargo xtask fetch`", path.display());
    Ok(path)
}

/// A fetched model in float, as every method starts from it.
pub fn real_model(name: &str) -> Result<Graph> {
    let path = fetched(&format!("models/{name}/model.onnx"))?;
    quietly(|cx| pipeline::import(&path, cx))
}

/// Windows of a fetched novel, from a tenth of it on, in the tokens of a fetched model.
pub fn text(
    graph: &Graph,
    model: &str,
    novel: &str,
    windows: usize,
    window: usize,
) -> Result<Vec<Batch>> {
    let source = Source {
        files: vec![fetched(&format!("text/{novel}.txt"))?],
        tokenizer: Some(fetched(&format!("models/{model}/tokenizer.json"))?),
        window,
        windows,
        start: 0.1,
    };
    quietly(|_| batches(&source, &calibrate::wanted(graph)))
}

/// The tiny models by name.
pub fn tiny_models() -> Result<Vec<(String, Graph)>> {
    let files = sorted(&repository("tests/models/tiny"))?;
    let mut models = Vec::new();
    for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "onnx")) {
        let name = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
        let graph = quietly(|cx| pipeline::import(path, cx)).context(name.clone())?;
        models.push((name, graph));
    }
    Ok(models)
}

/// Random inputs of a tiny model, of the sizes of its golden cases.
pub fn tiny_inputs(name: &str, graph: &Graph, seed: u64) -> Result<Vec<Named>> {
    let mut all = Vec::new();
    for case in sorted(&repository("tests/models/golden").join(name))? {
        let arrays = npz::read(&case)?.into_iter();
        let given: Named =
            arrays.filter_map(|(n, t)| Some((n.strip_prefix("in.")?.to_owned(), t))).collect();
        all.push(generate::inputs(graph, &bind(graph, &given)?, seed));
    }
    Ok(all)
}

/// The same for the runtime.
pub fn as_batches(inputs: &[Named]) -> Result<Vec<Batch>> {
    let one = |(name, tensor): &(String, _)| Ok((name.clone(), to_runtime(tensor)?));
    inputs.iter().map(|named| named.iter().map(one).collect()).collect()
}

/// What the compiler chooses for each group of linears from statistics alone: errors of all groups cost
/// the same, and no time goes into measuring them.
pub fn choices(float: &Graph, settings: &Settings, data: &[Batch]) -> Result<Choices> {
    let heads = settings.heads();
    let statistics = quietly(|cx| calibrate::run(float, heads, data, &Rare::default(), cx))?;
    Ok(Arc::new(quietly(|cx| pipeline::choose(float, &statistics, &[], settings, cx))?))
}
