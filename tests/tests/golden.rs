//! The tiny models against what ONNX Runtime computes from the same inputs, at two batch and
//! sequence sizes, on every runtime.

use anyhow::{Context, Result, ensure};
use fqc_import::{ImportOptions, import};
use fqc_interp::Tensor;
use fqc_ir::Graph;
use fqc_tests::compare::{Report, Tolerance, compare};
use fqc_tests::runtime::{self, Runtime};
use fqc_tests::{npz, repository};
use std::path::{Path, PathBuf};

/// ONNX Runtime sums in f32, in an order of its own.
const TOLERANCE: f64 = 1e-4;

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The arrays whose name begins with the prefix, without it.
fn part(arrays: &[(String, Tensor)], prefix: &str) -> Vec<(String, Tensor)> {
    let strip = |(name, t): &(String, Tensor)| Some((name.strip_prefix(prefix)?.into(), t.clone()));
    arrays.iter().filter_map(strip).collect()
}

/// The worst report of all outputs.
fn check(runtime: &dyn Runtime, graph: &Graph, case: &Path) -> Result<Report> {
    let arrays: Vec<(String, Tensor)> = npz::read(case)?.into_iter().collect();
    let outputs = runtime.run(graph, &part(&arrays, "in."))?;
    let wanted = part(&arrays, "out.");
    ensure!(outputs.len() == wanted.len(), "{} outputs, want {}", outputs.len(), wanted.len());
    let mut worst: Option<Report> = None;
    for (name, want) in wanted {
        let (_, got) = outputs
            .iter()
            .find(|(n, _)| *n == name)
            .with_context(|| format!("no output `{name}`"))?;
        let report = compare(got, &want, Tolerance::of_largest(TOLERANCE))
            .map_err(|e| anyhow::anyhow!("output `{name}`: {e}"))?;
        if worst.as_ref().is_none_or(|w| report.max_relative > w.max_relative) {
            worst = Some(report);
        }
    }
    worst.context("the case has no outputs")
}

#[test]
fn tiny_models_agree_with_onnx_runtime() -> Result<()> {
    let (mut cases, mut failed) = (0, Vec::new());
    for folder in sorted(&repository("tests/models/golden"))? {
        let name = folder.file_name().context("a folder has a name")?.to_string_lossy();
        let model = repository("tests/models/tiny").join(format!("{name}.onnx"));
        let graph = match import(&model, &ImportOptions::default()) {
            Ok(graph) => graph,
            Err(error) => {
                failed.push(format!("{name}: {error}"));
                continue;
            }
        };
        for case in sorted(&folder)? {
            let label = case.file_stem().context("a file has a name")?.to_string_lossy();
            for runtime in runtime::all() {
                cases += 1;
                match check(&*runtime, &graph, &case) {
                    Ok(report) => println!("{name} {label} {}: {report}", runtime.name()),
                    Err(e) => failed.push(format!("{name} {label} {}: {e:#}", runtime.name())),
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{} of {cases} cases:\n{}", failed.len(), failed.join("\n"));
    ensure!(cases >= 32, "only {cases} cases were found");
    Ok(())
}
