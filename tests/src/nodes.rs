//! The standard's own test cases, one operator each, as `cargo xtask fetch onnx-node-tests` lays
//! them out, and the lists about them in `tests/onnx`.

use crate::compare::{Tolerance, compare};
use crate::{cache, repository};
use anyhow::{Context, Result, anyhow, ensure};
use fqc_import::{ImportError, ImportOptions, import, read_tensor};
use fqc_interp::Tensor;
use fqc_ir::{Const, Elem, Graph};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of all cases.
pub fn cases() -> PathBuf {
    cache("onnx-node")
}

/// Lines of a list in `tests/onnx`, without comments.
pub fn list(name: &str) -> Result<Vec<String>> {
    let path = repository("tests/onnx").join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    let lines = text.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|l| !l.is_empty()).map(str::to_owned).collect())
}

/// A case that the importer takes.
pub struct Case {
    pub graph: Graph,
    /// Values of the graph's inputs.
    pub inputs: Vec<(String, Tensor)>,
    outputs: Vec<(String, Const)>,
}

/// Why there is none.
#[derive(Debug)]
pub enum NoCase {
    /// The importer refuses the model, and says why.
    Refused(ImportError),
    /// The files of the case cannot be read.
    Broken(anyhow::Error),
}

impl Case {
    /// Reads a case's folder.
    pub fn load(folder: &Path) -> Result<Case, NoCase> {
        let set = folder.join("test_data_set_0");
        let given = tensors(&set, "input").unwrap_or_default().into_iter().collect();
        let graph = graph(folder, &given).map_err(NoCase::Refused)?;
        let outputs = tensors(&set, "output").map_err(NoCase::Broken)?;
        let is_input = |name: &str| graph.inputs().iter().any(|&id| graph.node(id).name == *name);
        let inputs = given
            .iter()
            .filter(|(name, _)| is_input(name))
            .map(|(name, c)| (name.clone(), Tensor::from_const(c)))
            .collect();
        Ok(Case { graph, inputs, outputs })
    }

    /// Compares a runtime's outputs with the case's.
    pub fn check(&self, got: &[(String, Tensor)]) -> Result<()> {
        let want = &self.outputs;
        ensure!(got.len() == want.len(), "{} outputs, want {}", got.len(), want.len());
        for ((name, got), (_, want)) in got.iter().zip(want) {
            let want = Tensor::from_const(want);
            compare(got, &want, tolerance(want.elem()))
                .map_err(|e| anyhow!("output `{name}`: {e}"))?;
        }
        Ok(())
    }
}

/// As ONNX's own runner compares; half floats carry three (bf16: two) digits.
fn tolerance(elem: Elem) -> Tolerance {
    match elem {
        Elem::F32 | Elem::F64 => Tolerance::each(1e-5, 1e-3),
        Elem::F16 => Tolerance::each(2e-3, 1e-2),
        Elem::BF16 => Tolerance::each(1e-2, 2e-2),
        _ => Tolerance::EXACT,
    }
}

/// Imports; inputs that decide shapes become constants of the case's values.
fn graph(folder: &Path, inputs: &BTreeMap<String, Const>) -> Result<Graph, ImportError> {
    let mut options = ImportOptions::default();
    loop {
        match import(&folder.join("model.onnx"), &options) {
            Err(error) => {
                let before = options.bind.len();
                for name in &error.needs {
                    let value = inputs.get(name).map(|c| (name.clone(), c.clone()));
                    options.bind.extend(value);
                }
                if options.bind.len() == before {
                    return Err(error);
                }
            }
            done => return done,
        }
    }
}

/// The tensors of a case's files `input_0.pb`, `input_1.pb`, …
fn tensors(set: &Path, kind: &str) -> Result<Vec<(String, Const)>> {
    let mut out = Vec::new();
    for i in 0.. {
        let path = set.join(format!("{kind}_{i}.pb"));
        let Ok(bytes) = std::fs::read(&path) else { break };
        out.push(read_tensor(&bytes)?);
    }
    Ok(out)
}
