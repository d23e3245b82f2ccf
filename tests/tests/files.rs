//! The file tests: each text under `files/passes` is a small graph, the passes to run on it, and either
//! a snapshot of what comes out or the claim that nothing changes. The interpreter evaluates the graph
//! before and after on seeded inputs, so that no reviewed snapshot can bless a wrong rewrite.

use anyhow::{Context, Result, bail, ensure};
use fqc_interp::{Binding, Tensor, evaluate};
use fqc_ir::Graph;
use fqc_ir::text::{Blobs, parse, print, print_with_blobs};
use fqc_passes::{Pass, Runner, named, rule_passes};
use fqc_tests::choice;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the lines before the graph say.
struct Header {
    passes: Vec<Box<dyn Pass>>,
    sizes: Binding,
    /// Largest allowed difference, relative to the larger of 1 and the number itself.
    tolerance: f64,
    /// The passes must not find anything.
    unchanged: bool,
}

fn header(text: &str) -> Result<Header> {
    let mut header =
        Header { passes: Vec::new(), sizes: Binding::new(), tolerance: 0.0, unchanged: false };
    let (mut passes, mut choices) = (Vec::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(names) = line.strip_prefix("test pass ") {
            passes.extend(names.split(", "));
        } else if let Some(text) = line.strip_prefix("set choice ") {
            choices.extend([choice::parse(text).with_context(|| line.to_owned())?]);
        } else if let Some(sizes) = line.strip_prefix("set sizes ") {
            for pair in sizes.split(", ") {
                let (symbol, value) = pair.split_once('=').context("`symbol=value`")?;
                header.sizes.set(symbol, value.parse()?);
            }
        } else if let Some(value) = line.strip_prefix("set tolerance=") {
            header.tolerance = value.parse()?;
        } else if line == "set unchanged" {
            header.unchanged = true;
        } else {
            bail!("a header does not have `{line}`");
        }
    }
    let choices = Arc::new(choices);
    for name in passes {
        let pass = named(name).or_else(|| choice::pass(name, &choices));
        header.passes.push(pass.with_context(|| format!("no pass `{name}`"))?);
    }
    ensure!(!header.passes.is_empty(), "the file names no pass");
    Ok(header)
}

/// Seeded values for every input: floats in -2..2, integers and bools 0 or 1.
fn inputs(graph: &Graph, sizes: &Binding) -> Result<Vec<(String, Tensor)>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f64 / f64::from(1 << 24)
    };
    let one = |&id| {
        let node = graph.node(id);
        let shape = sizes.shape(&node.ty.shape).context("a size without a value")?;
        let count = shape.iter().product();
        let is_float = node.ty.elem.is_float();
        let values: Vec<f64> = (0..count)
            .map(|_| if is_float { next() * 4.0 - 2.0 } else { next().round() })
            .collect();
        Ok((node.name.clone(), Tensor::from_floats(node.ty.elem, &shape, &values)))
    };
    graph.inputs().iter().map(one).collect()
}

/// Compares all outputs; says how many numbers differ and where the first is.
fn compare(before: &[(String, Tensor)], after: &[(String, Tensor)], tolerance: f64) -> Result<()> {
    ensure!(before.len() == after.len(), "{} outputs became {}", before.len(), after.len());
    for ((name, a), (_, b)) in before.iter().zip(after) {
        ensure!(a.ty() == b.ty(), "output `{name}` was {} and is {}", a.ty(), b.ty());
        let (x, y) = (a.to_f64(), b.to_f64());
        let differ = |i: &usize| {
            let (x, y) = (x[*i], y[*i]);
            let same = x == y || (x.is_nan() && y.is_nan());
            let near = (x - y).abs() <= tolerance * x.abs().max(1.0);
            !same && !near
        };
        let wrong: Vec<usize> = (0..x.len()).filter(differ).collect();
        if let Some(&i) = wrong.first() {
            let (wrong, all, x, y) = (wrong.len(), x.len(), x[i], y[i]);
            bail!("output `{name}`: {wrong} of {all} differ, first {i}: {x} and {y}");
        }
    }
    Ok(())
}

/// What running one file gave.
struct Ran {
    unchanged: bool,
    /// The text of the graph after the passes.
    after: String,
    /// The rules that matched.
    rules: BTreeSet<&'static str>,
}

fn run(text: &str) -> Result<Ran> {
    let (head, body) = text.split_once("\n\n").context("an empty line after the header")?;
    let header = header(head)?;
    let mut graph = parse(body, &Blobs::new())?;
    let given = if header.unchanged { Vec::new() } else { inputs(&graph, &header.sizes)? };
    let original = print(&graph);
    let before = if header.unchanged { Vec::new() } else { evaluate(&graph, &given)? };
    let mut runner = Runner::new();
    runner.run(&mut graph, &header.passes)?;
    let after = print(&graph);
    if header.unchanged {
        ensure!(after == original, "must not match anything, but gives\n{after}");
    } else {
        ensure!(after != original, "nothing was found");
        compare(&before, &evaluate(&graph, &given)?, header.tolerance)?;
    }
    let (text, blobs) = print_with_blobs(&graph);
    ensure!(print(&parse(&text, &blobs)?) == after, "the text does not read back");
    let rules = runner.reports().iter().flat_map(|r| r.counts.keys().copied()).collect();
    Ok(Ran { unchanged: header.unchanged, after, rules })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "fqt") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[test]
fn passes_do_what_their_files_say() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("files/passes");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let (mut faults, mut matched) = (Vec::new(), BTreeSet::new());
    for path in files(&folder)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.lines().count() <= 60, "{name}: longer than 60 lines");
        match run(&text) {
            Ok(ran) => {
                matched.extend(ran.rules);
                if !ran.unchanged {
                    settings.bind(|| insta::assert_snapshot!(name, ran.after));
                }
            }
            Err(error) => faults.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    for rule in rule_passes().iter().flat_map(|p| p.rules) {
        ensure!(matched.contains(rule.name), "no file in which rule `{}` matches", rule.name);
    }
    Ok(())
}

/// A pass without a file that changes something and one that does not is not tested.
#[test]
fn every_rewrite_has_a_file_and_a_negative_one() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("files/passes");
    let names: Vec<String> = files(&folder)?
        .iter()
        .map(|p| p.file_stem().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    for name in names.iter().filter(|n| !n.ends_with("-not")) {
        ensure!(names.contains(&format!("{name}-not")), "`{name}` has no negative file");
    }
    Ok(())
}
