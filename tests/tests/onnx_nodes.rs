//! The standard's own test cases, one operator each: import, interpreter, comparison with the given
//! outputs. `tests/onnx/passing.txt` lists the cases that pass and may only grow
//! (`FQC_BLESS=1` adds to it); a case whose operators are all in `tests/onnx/claimed-ops.txt` must
//! pass; and no case at all may panic or hang.

use anyhow::{Context, Result, ensure};
use fqc_import::{ImportError, ImportOptions, import, operators, read_tensor};
use fqc_interp::{Tensor, evaluate};
use fqc_ir::verify::{Facts, render, verify};
use fqc_ir::{Const, Elem, Graph};
use fqc_tests::compare::{Tolerance, compare};
use fqc_tests::repository;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// No case takes more than a moment; this is for a machine under load.
const TIME_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
enum Outcome {
    Pass,
    /// The importer refuses the model, and says why.
    Refused(ImportError),
    /// The interpreter fails or the numbers differ.
    Wrong(String),
    Panic(String),
    Hang,
}

fn cases() -> PathBuf {
    let cache = std::env::var_os("FQC_CACHE").map_or_else(|| repository(".cache"), PathBuf::from);
    cache.join("onnx-node")
}

/// Lines of a list, without comments.
fn list(name: &str) -> Result<Vec<String>> {
    let path = repository("tests/onnx").join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    let lines = text.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|l| !l.is_empty()).map(str::to_owned).collect())
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
fn load(folder: &Path, inputs: &BTreeMap<String, Const>) -> Result<Graph, ImportError> {
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

fn run(folder: &Path) -> Outcome {
    let set = folder.join("test_data_set_0");
    let inputs: BTreeMap<_, _> = tensors(&set, "input").unwrap_or_default().into_iter().collect();
    let graph = match load(folder, &inputs) {
        Ok(graph) => graph,
        Err(error) => return Outcome::Refused(error),
    };
    let outputs = || -> Result<()> {
        let sound = verify(&graph, Facts::default());
        sound.map_err(|faults| anyhow::anyhow!("{}", render(&graph, &faults)))?;
        let is_input = |name: &str| graph.inputs().iter().any(|&id| graph.node(id).name == *name);
        let given: Vec<(String, Tensor)> = inputs
            .iter()
            .filter(|(name, _)| is_input(name))
            .map(|(name, c)| (name.clone(), Tensor::from_const(c)))
            .collect();
        let got = evaluate(&graph, &given).map_err(|e| anyhow::anyhow!("{e}"))?;
        let want = tensors(&set, "output")?;
        ensure!(got.len() == want.len(), "{} outputs, want {}", got.len(), want.len());
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            let want = Tensor::from_const(want);
            compare(got, &want, tolerance(want.elem()))
                .map_err(|e| anyhow::anyhow!("output `{name}`: {e}"))?;
        }
        Ok(())
    };
    outputs().map_or_else(|e| Outcome::Wrong(format!("{e:#}")), |()| Outcome::Pass)
}

/// Runs a case in a thread of its own, so that a panic or a hang is a result.
fn guarded(folder: PathBuf) -> Outcome {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let outcome = run(&folder);
        // The receiver is gone only after a hang, which is reported there.
        let _ = send.send(outcome);
    });
    match receive.recv_timeout(TIME_LIMIT) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Outcome::Hang,
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let payload = thread.join().err();
            let text = payload.as_ref().and_then(|p| {
                p.downcast_ref::<String>()
                    .cloned()
                    .or(p.downcast_ref::<&str>().map(|s| (*s).into()))
            });
            Outcome::Panic(text.unwrap_or_default())
        }
    }
}

/// Whether the case uses only what is claimed: then the importer must take it. Refusing an element
/// type that the IR does not have is what the list documents.
fn is_claimed(folder: &Path, claimed: &BTreeSet<String>, outcome: &Outcome) -> Result<bool> {
    let used = operators(&std::fs::read(folder.join("model.onnx"))?)?;
    let foreign = match outcome {
        Outcome::Refused(e) => e.problems.iter().any(|p| p.message.contains("element type `")),
        _ => false,
    };
    Ok(used.iter().all(|op| claimed.contains(op)) && !foreign)
}

#[test]
fn node_cases_of_claimed_operators_pass_and_none_panics() -> Result<()> {
    let root = cases();
    let entries = std::fs::read_dir(&root).with_context(|| {
        format!("no cases in `{}`; run `cargo xtask fetch onnx-node-tests`", root.display())
    })?;
    let mut names: Vec<String> = entries
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let claims = list("claimed-ops.txt")?;
    let (exempt, claimed): (Vec<String>, Vec<String>) =
        claims.into_iter().partition(|l| l.starts_with("test_"));
    let claimed: BTreeSet<String> = claimed.into_iter().collect();

    let mut passing = BTreeSet::new();
    let mut faults = Vec::new();
    let mut counts = BTreeMap::from([("passed", 0), ("refused", 0), ("wrong", 0)]);
    let verbose = std::env::var_os("FQC_VERBOSE").is_some();
    for name in &names {
        let folder = root.join(name);
        let outcome = guarded(folder.clone());
        let (kind, text) = match &outcome {
            Outcome::Pass => {
                passing.insert(name.clone());
                ("passed", String::new())
            }
            Outcome::Refused(e) => ("refused", e.to_string()),
            Outcome::Wrong(text) => ("wrong", text.clone()),
            Outcome::Panic(text) => ("panicked", text.clone()),
            Outcome::Hang => ("hung", String::new()),
        };
        *counts.entry(kind).or_insert(0) += 1;
        if verbose && kind != "passed" {
            println!("{name}: {kind}: {}", text.replace('\n', " "));
        }
        match outcome {
            Outcome::Pass => {}
            Outcome::Panic(_) | Outcome::Hang => faults.push(format!("{name} {kind}: {text}")),
            _ if !exempt.contains(name) && is_claimed(&folder, &claimed, &outcome)? => {
                faults.push(format!("{name} is claimed, but {kind}: {text}"));
            }
            _ => {}
        }
    }
    let listed = list("passing.txt").unwrap_or_default();
    let lost: Vec<&String> = listed.iter().filter(|n| !passing.contains(*n)).collect();
    if std::env::var_os("FQC_BLESS").is_some() && lost.is_empty() {
        let lines: String = passing.iter().map(|n| format!("{n}\n")).collect();
        std::fs::write(repository("tests/onnx/passing.txt"), lines)?;
    }
    let subset = list("transformer-cases.txt")?;
    let inside = subset.iter().filter(|n| passing.contains(*n)).count();
    println!("onnx node cases: {counts:?} of {}", names.len());
    println!("transformer subset: {inside} of {} pass", subset.len());
    ensure!(lost.is_empty(), "{} listed cases no longer pass: {lost:?}", lost.len());
    ensure!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}
