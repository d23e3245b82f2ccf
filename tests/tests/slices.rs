//! Batches in slices: what the compiler takes for separable is, and whole models give the same bytes
//! however their batch is cut, in float and in INT8, at every level of this machine.

use anyhow::{Context as _, Result, ensure};
use fqbin::TargetImage;
use fqc::data::Batch;
use fqc::pipeline;
use fqc::settings::Settings;
use fqc_codegen::cpu::generate;
use fqc_interp::{Tensor, evaluate};
use fqc_ir::plan::batch;
use fqc_ir::testing::{random_graph, random_inputs};
use fqc_ir::text::print;
use fqc_ir::{Const, Elem, Graph};
use fqc_tests::calibrated::{quietly, real_model};
use fqc_tests::generate::Random;
use fqc_tests::opt;
use fqc_tests::runtime::{fused, levels, lower, to_runtime};
use fqrt::{Model, Session, SessionOptions, Slices, TensorView};
use std::collections::BTreeMap;

/// Items of a constant's first axis.
fn items(value: &Const, range: std::ops::Range<usize>) -> Const {
    let all = value.bytes.as_slice();
    let each = all.len() / value.shape[0];
    let bytes = all[range.start * each..range.end * each].to_vec();
    let shape = [&[range.len()], &value.shape[1..]].concat();
    Const::new(value.elem, shape, bytes).expect("some of the items")
}

/// Whether the interpreter gives the same for a batch of five as for its first two and last three.
fn is_separable(graph: &Graph, seed: u64) -> Result<bool> {
    let sizes = |name: &str| Some(if name == "b" { 5 } else { 3 });
    let all = random_inputs(graph, &sizes, seed).context("every size has a value")?;
    let run = |range: std::ops::Range<usize>| -> Result<Vec<Const>> {
        let some = all
            .iter()
            .map(|(name, value)| (name.clone(), Tensor::from_const(&items(value, range.clone()))));
        let outputs = evaluate(graph, &some.collect::<Vec<_>>())?;
        Ok(outputs.iter().map(|(_, tensor)| tensor.to_const()).collect())
    };
    let (whole, first, last) = (run(0..5)?, run(0..2)?, run(2..5)?);
    let equal = |(whole, (first, last)): (&Const, (&Const, &Const))| {
        let (a, b) = (items(whole, 0..2), items(whole, 2..5));
        a.bytes.as_slice() == first.bytes.as_slice() && b.bytes.as_slice() == last.bytes.as_slice()
    };
    Ok(whole.iter().zip(first.iter().zip(&last)).all(equal))
}

/// Random graphs, each with one of its values as output, that are taken for separable, and their seeds.
fn separable(seeds: u64) -> Result<Vec<(u64, Graph)>> {
    let (mut taken, mut others) = (Vec::new(), 0);
    for seed in 0..seeds {
        let mut graph = random_graph(seed, 3 + seed as usize % 12);
        for id in graph.ids() {
            // One output at a time, so that one that mixes items does not hide the others.
            graph.set_outputs(vec![("y".to_owned(), id)]);
            match lower(&graph) {
                Ok(plan) if batch(&plan).as_deref() == Some("b") => {
                    taken.push((seed, graph.clone()))
                }
                Ok(_) => others += 1,
                Err(_) => {}
            }
        }
    }
    println!("{} separable, {others} not", taken.len());
    ensure!(taken.len() >= 200 && others >= 200, "{} separable, {others} not", taken.len());
    Ok(taken)
}

#[test]
fn what_is_taken_for_separable_is() -> Result<()> {
    let mut operations = BTreeMap::new();
    for (seed, graph) in separable(600)? {
        ensure!(is_separable(&graph, seed)?, "seed {seed}: items are mixed in `{}`", print(&graph));
        for (_, id) in graph.outputs() {
            *operations.entry(graph.node(*id).op.mnemonic()).or_insert(0) += 1;
        }
    }
    println!("{operations:?}");
    ensure!(operations.len() >= 15, "only {operations:?}");
    Ok(())
}

/// The outputs' bytes of a batch, cut or not.
fn run(
    target: &TargetImage,
    data: &Batch,
    level: fqbin::Level,
    options: SessionOptions,
) -> Result<Vec<Vec<u8>>> {
    let model =
        Model::from_parts(target.program.clone(), &target.weights, &target.code, Some(level))?;
    let inputs: Vec<(&str, TensorView<'_>)> =
        data.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
    let outputs = Session::new(&model, options)?.run(&inputs)?;
    Ok(outputs.iter().map(|(_, tensor)| tensor.bytes().to_vec()).collect())
}

fn check(name: &str, target: &TargetImage, data: &Batch) -> Result<()> {
    for level in levels()? {
        let options =
            |threads, slices| SessionOptions { slices, ..SessionOptions::threads(threads) };
        let whole = run(target, data, level, options(2, Slices::Whole))?;
        for (threads, slices) in [(1, 1), (2, 1), (2, 2), (3, 3), (2, 5)] {
            let cut = run(target, data, level, options(threads, Slices::Of(slices)))?;
            ensure!(
                whole == cut,
                "{name} at {level}: slices of {slices} on {threads} threads differ"
            );
        }
    }
    Ok(())
}

#[test]
fn kernels_give_the_same_bytes_however_a_batch_is_cut() -> Result<()> {
    let mut operations = BTreeMap::new();
    for (seed, graph) in separable(400)?.into_iter().step_by(24) {
        let sizes = |name: &str| Some(if name == "b" { 7 } else { 19 });
        let given = random_inputs(&graph, &sizes, seed).context("every size has a value")?;
        let data: Result<Batch> = given
            .iter()
            .map(|(name, value)| Ok((name.clone(), to_runtime(&Tensor::from_const(value))?)))
            .collect();
        let target = generate(&lower(&graph)?, &levels()?)?;
        ensure!(target.program.batch.is_some(), "seed {seed}: the program does not say so");
        check(&format!("seed {seed}"), &target, &data?)?;
        for id in graph.ids() {
            *operations.entry(graph.node(id).op.mnemonic()).or_insert(0) += 1;
        }
    }
    println!("{operations:?}");
    ensure!(operations.len() >= 20, "only {operations:?}");
    Ok(())
}

/// Ids of tokens, masks of ones with zeros at the end of each third item.
fn tokens(names: &[&str], [batch, seq]: [usize; 2], vocabulary: u64) -> Result<Batch> {
    let mut random = Random::new(5);
    let mut one = |name: &&str| {
        let value = |i: usize| match *name {
            "attention_mask" => i64::from(!(i / seq).is_multiple_of(3) || i % seq < seq / 2),
            "token_type_ids" => 0,
            _ => random.below(vocabulary) as i64,
        };
        let values: Vec<i64> = (0..batch * seq).map(value).collect();
        Ok(((*name).to_owned(), to_runtime(&Tensor::from_ints(Elem::I64, &[batch, seq], &values))?))
    };
    names.iter().map(&mut one).collect()
}

fn compiled(float: Graph, data: Vec<Batch>) -> Result<TargetImage> {
    let levels = levels()?.iter().map(|level| level.name().to_owned()).collect();
    let settings = Settings { levels, ..Settings::default() };
    Ok(quietly(|cx| pipeline::compile(float, &settings, |_| Ok(data), cx))?.target)
}

#[test]
fn a_small_decoder_gives_the_same_bytes_however_its_batch_is_cut() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sizes = opt::Sizes {
        layers: 2,
        width: 64,
        heads: 4,
        ffn: 256,
        vocabulary: 512,
        positions: 64,
        outliers: 2,
        seed: 3,
    };
    opt::write(folder.path(), sizes)?;
    let float = quietly(|cx| pipeline::import(&folder.path().join(opt::MODEL), cx))?;
    let names = ["input_ids", "attention_mask"];
    let data = tokens(&names, [7, 33], 512)?;
    check("float", &generate(&lower(&fused(&float)?)?, &levels()?)?, &data)?;
    check("INT8", &compiled(float, vec![tokens(&names, [4, 32], 512)?])?, &data)
}

#[test]
fn minilm_gives_the_same_bytes_however_its_batch_is_cut() -> Result<()> {
    let float = real_model("minilm")?;
    let names = ["input_ids", "attention_mask", "token_type_ids"];
    let target = compiled(float, vec![tokens(&names, [8, 32], 30_000)?])?;
    check("MiniLM", &target, &tokens(&names, [7, 37], 30_000)?)
}
