//! The `fqc` binary: reads the command line, runs one command, reports its failure.

use clap::{Parser, Subcommand};
use fqc::cmd::{
    analyze, bench, calibrate, compare, compile, doctor, eval, inspect, memory, methods, run, tune,
};
use fqc::interrupt::Interrupt;
use fqc::{Exit, Failure};
use std::process::ExitCode;

/// Compiles ONNX transformers into one small, fast file for CPUs, and runs it.
#[derive(Parser)]
#[command(name = "fqc", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Calibrate, smooth, flatten, quantise, fuse and generate machine code
    Compile(compile::Args),
    /// Keep what calibration sees of a model in a file, for any number of compilations
    Calibrate(calibrate::Args),
    /// Run a compiled model once
    Run(run::Args),
    /// Error of a compiled model against its float graph
    Compare(compare::Args),
    /// Perplexity on a text; divergence, agreement or cosine against the float model
    Eval(eval::Args),
    /// What quantisation does to each group of layers: losses, maxima, extra channels; plots
    Analyze(analyze::Args),
    /// Every method at every width side by side: perplexity, divergence, extra channels, size
    Methods(methods::Args),
    /// Time a model: median, spread, share of each kernel
    Bench(bench::Args),
    /// Time the tiles of a compiled model's gemms on a GPU, for `fqc compile --tuned`
    Tune(tune::Args),
    /// Show a model or a compiled file; executes nothing
    Inspect(inspect::Args),
    /// What weights take against FP16, and the share of work in INT4
    Memory(memory::Args),
    /// Show what this machine can run and what is missing
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    let interrupt = Interrupt::install()
        .map_err(|e| Failure::new(Exit::Internal, format!("cannot watch signals: {e}")))?;
    match command {
        Command::Compile(args) => compile::main(&args, &interrupt),
        Command::Calibrate(args) => calibrate::main(&args, &interrupt),
        Command::Run(args) => run::main(&args, &interrupt),
        Command::Compare(args) => compare::main(&args, &interrupt),
        Command::Eval(args) => eval::main(&args, &interrupt),
        Command::Analyze(args) => analyze::main(&args, &interrupt),
        Command::Methods(args) => methods::main(&args, &interrupt),
        Command::Bench(args) => bench::main(&args, &interrupt),
        Command::Tune(args) => tune::main(&args, &interrupt),
        Command::Inspect(args) => inspect::main(&args, &interrupt),
        Command::Memory(args) => memory::main(&args),
        Command::Doctor(args) => doctor::main(&args),
    }
}
