//! The fusions on whole models: how many norms, activations, rotary embeddings, attentions and linear
//! layers each graph has is known, so all of them must be found and nothing of their pieces may be
//! left; items of a batch do not mix; and the interpreter gives the same numbers before and after.

use anyhow::{Context, Result, ensure};
use fqc_import::{ImportOptions, import};
use fqc_interp::{Tensor, evaluate};
use fqc_ir::plan::batch;
use fqc_ir::{Graph, Op};
use fqc_passes::{Runner, clean, fuse};
use fqc_tests::compare::{Tolerance, compare};
use fqc_tests::runtime::lower;
use fqc_tests::{npz, repository};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Rounding of two layers of f32, relative to the largest output.
const TOLERANCE: f64 = 1e-5;

/// How often each operation must be there after fusion; those not named here but in [`PIECES`] must
/// be gone.
type Counts = &'static [(&'static str, usize)];

/// What the fused operations are made of.
const PIECES: [&str; 9] =
    ["matmul", "softmax", "erf", "tanh", "sigmoid", "sqrt", "rsqrt", "reciprocal", "gather_nd"];

const BERT: Counts = &[("layer_norm", 5), ("attention", 2), ("gelu", 2), ("gemm", 8)];
const GPT2: Counts = &[("layer_norm", 5), ("attention", 2), ("gelu_tanh", 2), ("gemm", 9)];
const OPT: Counts = &[("layer_norm", 5), ("attention", 2), ("relu", 2), ("gemm", 9)];
const LLAMA: Counts = &[("rms_norm", 5), ("rope", 4), ("attention", 2), ("silu", 2), ("gemm", 9)];
/// The root is that of the embedding's length, at the end.
const MINILM: Counts =
    &[("layer_norm", 13), ("attention", 6), ("gelu", 6), ("gemm", 24), ("sqrt", 1)];
const SMOLLM2: Counts = &[
    ("rms_norm", 61),
    ("rope", 60),
    ("attention", 30),
    ("silu", 30),
    ("gemm", 121),
    ("broadcast", 0),
];

fn expected(name: &str) -> Option<Counts> {
    let families = [
        ("bert", BERT),
        ("gpt2", GPT2),
        ("opt", OPT),
        ("llama", LLAMA),
        ("qwen2", LLAMA),
        ("minilm", MINILM),
        ("smollm2", SMOLLM2),
    ];
    families.into_iter().find(|(prefix, _)| name.starts_with(prefix)).map(|f| f.1)
}

/// How often each operation occurs, those inside expressions included.
fn histogram(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in graph.ids() {
        let op = &graph.node(id).op;
        *counts.entry(op.mnemonic().to_owned()).or_insert(0) += 1;
        if let Op::Pointwise(expr) | Op::Gemm { epilogue: expr, .. } = op {
            let text = expr.to_string();
            let calls = text.split_inclusive('(').filter_map(|part| part.strip_suffix('('));
            for call in calls {
                let name = call.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next();
                *counts.entry(name.unwrap_or_default().to_owned()).or_insert(0) += 1;
            }
        }
    }
    counts
}

/// Imports and fuses; the graph before, the one after, and the time that the passes took.
fn fused(model: &Path) -> Result<(Graph, Graph, Duration)> {
    let before = import(model, &ImportOptions::default())?;
    let mut after = before.clone();
    let start = Instant::now();
    let mut runner = Runner::new();
    for passes in [clean::passes(), fuse::refuse(), fuse::fuse()] {
        runner.run(&mut after, &passes)?;
    }
    Ok((before, after, start.elapsed()))
}

/// Prints what is left and says what is not as expected.
fn check_counts(name: &str, graph: &Graph, time: Duration) -> Vec<String> {
    let counts = histogram(graph);
    let table: Vec<String> = counts.iter().map(|(op, n)| format!("{op} {n}")).collect();
    println!("{name}: {} nodes in {time:.0?}: {}", graph.len(), table.join(", "));
    let count = |op: &str| counts.get(op).copied().unwrap_or(0);
    let Some(wanted) = expected(name) else { return vec![format!("{name}: unknown family")] };
    let mut wrong = Vec::new();
    for &(op, n) in wanted {
        if count(op) != n {
            wrong.push(format!("{name}: {} `{op}`, want {n}", count(op)));
        }
    }
    for op in PIECES.into_iter().filter(|op| wanted.iter().all(|(w, _)| w != op)) {
        if count(op) != 0 {
            wrong.push(format!("{name}: {} `{op}` left", count(op)));
        }
    }
    wrong
}

/// The inputs of a golden case; their names begin with `in.`.
fn golden_inputs(case: &Path) -> Result<Vec<(String, Tensor)>> {
    let arrays = npz::read(case)?.into_iter();
    let input = |(name, tensor): (String, Tensor)| Some((name.strip_prefix("in.")?.into(), tensor));
    Ok(arrays.filter_map(input).collect())
}

/// Compares the graph before and after on every golden case in a folder.
fn check_values(before: &Graph, after: &Graph, cases: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cases)? {
        let inputs = golden_inputs(&entry?.path())?;
        let (want, got) = (evaluate(before, &inputs)?, evaluate(after, &inputs)?);
        ensure!(want.len() == got.len(), "{} outputs, want {}", got.len(), want.len());
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            compare(got, want, Tolerance::of_largest(TOLERANCE))
                .map_err(|e| anyhow::anyhow!("output `{name}`: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn tiny_models_are_fused_whole_and_stay_the_same() -> Result<()> {
    let mut wrong = Vec::new();
    let mut models = 0;
    for entry in std::fs::read_dir(repository("tests/models/tiny"))? {
        let path = entry?.path();
        let name = path.file_stem().context("a file has a name")?.to_string_lossy().into_owned();
        let (before, after, time) = fused(&path).with_context(|| name.clone())?;
        wrong.extend(check_counts(&name, &after, time));
        if !name.contains("_kv_") && batch(&lower(&after)?).as_deref() != Some("batch") {
            wrong.push(format!("{name}: the items of a batch are not apart"));
        }
        let cases = repository("tests/models/golden").join(&name);
        if let Err(error) = check_values(&before, &after, &cases) {
            wrong.push(format!("{name}: {error:#}"));
        }
        models += 1;
    }
    wrong.sort();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(models >= 16, "only {models} models were found");
    Ok(())
}

#[test]
fn real_models_are_fused_whole() -> Result<()> {
    let mut wrong = Vec::new();
    for name in ["minilm", "smollm2"] {
        let model = repository(".cache/models").join(name).join("model.onnx");
        if !model.exists() {
            println!("{name}: not here; `cargo xtask fetch` makes it");
            continue;
        }
        let (_, after, time) = fused(&model).with_context(|| name)?;
        wrong.extend(check_counts(name, &after, time));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
