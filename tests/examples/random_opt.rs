//! Writes an OPT-shaped model with random weights as ONNX with external data, to try compilation of
//! large models without fetching one: `random_opt FOLDER [--layers 24] [--width 2048] [--heads 32]
//! [--ffn 8192] [--vocabulary 50272] [--positions 2048] [--outliers 6] [--seed 1]`. The defaults are
//! OPT-1.3B's sizes: 5.3 GB.

use anyhow::{Context, Result, bail};
use fqc_tests::opt::{Sizes, write};
use std::path::PathBuf;

fn main() -> Result<()> {
    let mut folder = None;
    let mut sizes = Sizes::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let Some(option) = argument.strip_prefix("--") else {
            folder = Some(PathBuf::from(argument));
            continue;
        };
        let value = arguments.next().and_then(|v| v.parse().ok());
        let value: usize = value.with_context(|| format!("`--{option}` wants a number"))?;
        match option {
            "layers" => sizes.layers = value,
            "width" => sizes.width = value,
            "heads" => sizes.heads = value,
            "ffn" => sizes.ffn = value,
            "vocabulary" => sizes.vocabulary = value,
            "positions" => sizes.positions = value,
            "outliers" => sizes.outliers = value,
            "seed" => sizes.seed = value as u64,
            _ => bail!("no option `--{option}`; see the head of tests/examples/random_opt.rs"),
        }
    }
    let folder = folder.context("usage: random_opt FOLDER [--layers N]…")?;
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make `{}`", folder.display()))?;
    let parameters = write(&folder, sizes)?;
    println!("{parameters} parameters in `{}`", folder.display());
    Ok(())
}
