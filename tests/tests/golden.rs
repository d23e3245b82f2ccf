//! Models against what ONNX Runtime computes from the same inputs, at two batch and sequence sizes:
//! the tiny ones on the interpreter and on the CPU backend at each level that this machine has, the
//! real ones on the CPU backend.

use anyhow::{Context, Result, ensure};
use fqc_import::{ImportOptions, import};
use fqc_interp::Tensor;
use fqc_tests::compare::{Report, Tolerance, compare};
use fqc_tests::runtime::{self, Runtime};
use fqc_tests::{cache, npz, repository, sorted};
use std::path::Path;

/// ONNX Runtime sums in f32, in an order of its own.
const TOLERANCE: Tolerance = Tolerance { absolute: 0.0, relative: 0.0, of_largest: 1e-4 };

/// For the logits of thirty layers.
const LOGITS: Tolerance = Tolerance { absolute: 2e-3, relative: 0.0, of_largest: 0.0 };

/// The arrays whose name begins with the prefix, without it.
fn part(arrays: &[(String, Tensor)], prefix: &str) -> Vec<(String, Tensor)> {
    let strip = |(name, t): &(String, Tensor)| Some((name.strip_prefix(prefix)?.into(), t.clone()));
    arrays.iter().filter_map(strip).collect()
}

/// The worst report of all outputs.
fn check(runtime: &mut dyn Runtime, case: &Path, tolerance: Tolerance) -> Result<Report> {
    let arrays: Vec<(String, Tensor)> = npz::read(case)?.into_iter().collect();
    let outputs = runtime.run(&part(&arrays, "in."))?;
    let wanted = part(&arrays, "out.");
    ensure!(outputs.len() == wanted.len(), "{} outputs, want {}", outputs.len(), wanted.len());
    let mut worst: Option<Report> = None;
    for (name, want) in wanted {
        let (_, got) = outputs
            .iter()
            .find(|(n, _)| *n == name)
            .with_context(|| format!("no output `{name}`"))?;
        let report =
            compare(got, &want, tolerance).map_err(|e| anyhow::anyhow!("output `{name}`: {e}"))?;
        if worst.as_ref().is_none_or(|w| report.max_relative > w.max_relative) {
            worst = Some(report);
        }
    }
    worst.context("the case has no outputs")
}

/// How many runs a model had, and what was wrong with them.
#[derive(Default)]
struct Outcome {
    runs: usize,
    failed: Vec<String>,
}

impl Outcome {
    /// Every case of a folder on every runtime.
    fn add(
        &mut self,
        name: &str,
        runtimes: &mut [Box<dyn Runtime + '_>],
        cases: &Path,
        tolerance: Tolerance,
    ) -> Result<()> {
        for case in sorted(cases)? {
            let label = case.file_stem().context("a file has a name")?.to_string_lossy();
            for runtime in &mut *runtimes {
                self.runs += 1;
                match check(&mut **runtime, &case, tolerance) {
                    Ok(report) => println!("{name} {label} {}: {report}", runtime.name()),
                    Err(e) => self.failed.push(format!("{name} {label} {}: {e:#}", runtime.name())),
                }
            }
        }
        Ok(())
    }

    fn finish(self, at_least: usize) -> Result<()> {
        let Outcome { runs, failed } = self;
        ensure!(failed.is_empty(), "{} of {runs} runs:\n{}", failed.len(), failed.join("\n"));
        ensure!(runs >= at_least, "only {runs} runs, want {at_least}");
        Ok(())
    }
}

#[test]
fn tiny_models_agree_with_onnx_runtime() -> Result<()> {
    let mut outcome = Outcome::default();
    for folder in sorted(&repository("tests/models/golden"))? {
        let name = folder.file_name().context("a folder has a name")?.to_string_lossy();
        let model = repository("tests/models/tiny").join(format!("{name}.onnx"));
        let mut all = || -> Result<()> {
            let graph = import(&model, &ImportOptions::default())?;
            outcome.add(&name, &mut runtime::all(&graph)?, &folder, TOLERANCE)
        };
        if let Err(error) = all() {
            outcome.failed.push(format!("{name}: {error:#}"));
        }
    }
    let runtimes = 1 + runtime::levels()?.len();
    outcome.finish(16 * 2 * runtimes)
}

/// A model that is fetched, at every level.
fn real_model(name: &str, tolerance: Tolerance) -> Result<()> {
    let model = cache("models").join(name).join("model.onnx");
    let cases = cache("golden").join(name);
    ensure!(
        model.exists() && cases.exists(),
        "`{}` or `{}` is not there; run `cargo xtask fetch {name}` and `cargo xtask golden`",
        model.display(),
        cases.display()
    );
    let graph = runtime::fused(&import(&model, &ImportOptions::default())?)?;
    let mut runtimes: Vec<Box<dyn Runtime>> = Vec::new();
    for cpu in runtime::cpu(&graph)? {
        runtimes.push(Box::new(cpu));
    }
    let mut outcome = Outcome::default();
    outcome.add(name, &mut runtimes, &cases, tolerance)?;
    outcome.finish(2 * runtimes.len())
}

#[test]
fn minilm_agrees_with_onnx_runtime() -> Result<()> {
    real_model("minilm", TOLERANCE)
}

#[test]
fn smollm2_agrees_with_onnx_runtime() -> Result<()> {
    real_model("smollm2", LOGITS)
}
