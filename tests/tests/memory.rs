//! That the memory of a compilation is bounded by parts of a model, not by copies of all of it. Two
//! models that differ in depth alone are compiled, each in a process of its own; how much higher the
//! peak of the deeper one is says what a byte of weights costs, whatever the compiler itself takes.

use anyhow::{Context, Result, ensure};
use fqc::interrupt::Interrupt;
use fqc::pipeline::{self, Context as Compilation};
use fqc::progress::Verbosity;
use fqc::settings::Settings;
use fqc::{calibrate, data};
use fqc_tests::opt::{self, Sizes};
use std::path::Path;
use std::process::Command;

/// Tells the child which model to compile.
const MODEL: &str = "FQC_TEST_MEMORY_MODEL";

/// Bytes of memory for each byte of float weights. Their codes take a quarter, as does each of the two
/// orders of them that exist at once; statistics a fifth in so narrow a model. A single further copy
/// of the float weights would make it one more.
const MOST: f64 = 1.6;

/// The codes alone, which are there when the file is written.
const LEAST: f64 = 0.25;

#[test]
fn the_peak_grows_by_little_more_than_the_weights() -> Result<()> {
    if let Some(model) = std::env::var_os(MODEL) {
        return compile(Path::new(&model));
    }
    let small = Sizes {
        width: 1024,
        heads: 16,
        ffn: 1024,
        vocabulary: 512,
        positions: 64,
        ..Sizes::default()
    };
    let (few, many) = (peak(Sizes { layers: 4, ..small })?, peak(Sizes { layers: 12, ..small })?);
    let (weights, memory) = (many.0 - few.0, many.1.saturating_sub(few.1));
    let ratio = memory as f64 / weights as f64;
    println!("{:.0} MB of weights more: {:.0} MB", weights as f64 / 1e6, memory as f64 / 1e6);
    let likely = (LEAST..=MOST).contains(&ratio);
    ensure!(likely, "{ratio:.2} bytes of memory for each byte of float weights");
    Ok(())
}

/// Bytes of a model's weights, and of memory that its compilation had at most.
fn peak(sizes: Sizes) -> Result<(u64, u64)> {
    let folder = tempfile::tempdir()?;
    let weights = 4 * opt::write(folder.path(), sizes)?;
    let mut child = Command::new(std::env::current_exe()?);
    let name = "the_peak_grows_by_little_more_than_the_weights";
    child.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = child.env(MODEL, folder.path().join(opt::MODEL)).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.trim().strip_prefix("VmHWM:"));
    let kilobytes: u64 = line
        .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
        .with_context(|| format!("no VmHWM in:\n{text}"))?;
    Ok((weights, 1024 * kilobytes))
}

/// Compiles as the command does, to a file, and prints the most memory that this process had.
fn compile(model: &Path) -> Result<()> {
    let interrupt = Interrupt::default();
    let mut cx = Compilation::new(&interrupt, Verbosity::Quiet, 2);
    let float = pipeline::import(model, &mut cx)?;
    let settings = Settings { levels: vec!["avx2".to_owned()], ..Settings::default() };
    let data = |graph: &_| data::random(4, 32, &calibrate::wanted(graph));
    let compiled = pipeline::compile(float, &settings, data, &mut cx)?;
    let image = fqbin::Image {
        producer: "fqc-tests".to_owned(),
        manifest: b"{}".to_vec(),
        targets: vec![compiled.target],
    };
    fqbin::write_file(&model.with_extension("fqbin"), &image, None)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM:"));
    println!("\n{}", peak.context("the system tells no peak of memory")?);
    Ok(())
}
