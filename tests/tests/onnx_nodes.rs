//! The standard's own test cases, one operator each: import, interpreter, comparison with the given
//! outputs. `tests/onnx/passing.txt` lists the cases that pass and may only grow
//! (`FQC_BLESS=1` adds to it); a case whose operators are all in `tests/onnx/claimed-ops.txt` must
//! pass; and no case at all may panic or hang.

use anyhow::{Context, Result, ensure};
use fqc_import::{ImportError, operators};
use fqc_interp::evaluate;
use fqc_ir::verify::{Facts, render, verify};
use fqc_tests::nodes::{Case, NoCase, cases, list};
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

fn run(folder: &Path) -> Outcome {
    let case = match Case::load(folder) {
        Ok(case) => case,
        Err(NoCase::Refused(error)) => return Outcome::Refused(error),
        Err(NoCase::Broken(error)) => return Outcome::Wrong(format!("{error:#}")),
    };
    let outputs = || -> Result<()> {
        let sound = verify(&case.graph, Facts::default());
        sound.map_err(|faults| anyhow::anyhow!("{}", render(&case.graph, &faults)))?;
        case.check(&evaluate(&case.graph, &case.inputs)?)
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
