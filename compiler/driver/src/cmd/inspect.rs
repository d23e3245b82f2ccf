//! `fqc inspect`: what is in a model, a compiled file or a file of statistics. Executes nothing.

use super::{print, print_json, quiet};
use crate::exit::{Exit, Failure, file_failure};
use crate::fqcal::Calibration;
use crate::interrupt::Interrupt;
use crate::pipeline::{self, Context};
use fqbin::File;
use fqc_ir::plan::Precision;
use fqc_ir::{Graph, text};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// A model (.onnx), a compiled file, or statistics (.fqcal)
    pub file: PathBuf,
    /// JSON
    #[arg(long)]
    pub json: bool,
    /// For a model: print the graph after this pass, or after every pass with `all`
    #[arg(long, value_name = "PASS")]
    pub print_after: Option<String>,
    /// For a model: print the plan of the float graph
    #[arg(long)]
    pub plan: bool,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    if args.file.extension().is_some_and(|e| e == "onnx") {
        return graph(args, interrupt);
    }
    if args.file.extension().is_some_and(|e| e == "fqcal" || e == "part") {
        let header = Calibration::read(&args.file)?.header();
        let pretty = serde_json::to_string_pretty(&header).map_err(Failure::internal)?;
        return if args.json { print_json(&header) } else { print(&pretty) };
    }
    let bytes = std::fs::read(&args.file).map_err(|e| Failure::io("read", &args.file, &e))?;
    let in_file = |e: fqbin::Error| file_failure(&e, format!("`{}`: {e}", args.file.display()));
    let file = File::open(&bytes).map_err(in_file)?;
    let manifest = file.manifest().map_err(in_file)?;
    let manifest: serde_json::Value = serde_json::from_slice(manifest)
        .map_err(|e| Failure::new(Exit::Model, format!("the manifest is not JSON: {e}")))?;
    let summary = Summary::new(&file, manifest);
    if args.json { print_json(&summary) } else { print(&summary.text()) }
}

fn graph(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    let mut shown = Vec::new();
    let mut show = |name: &str, graph: &Graph| {
        if args.print_after.as_deref().is_some_and(|p| p == "all" || p == name) {
            shown.push(format!("; after {name}\n{}", text::print(graph)));
        }
    };
    let mut cx = Context { after_pass: Some(&mut show), ..quiet(interrupt, 1) };
    let mut graph = pipeline::import(&args.file, &mut cx)?;
    if args.plan {
        pipeline::run(&mut graph, &fqc_passes::fuse::fuse(), &mut cx)?;
        return print(&text::print_plan(&pipeline::plan(&graph, Precision::F32)?));
    }
    if args.print_after.is_none() {
        shown.push(text::print(&graph));
    }
    print(&shown.join("\n"))
}

/// A compiled file in short.
#[derive(Serialize)]
struct Summary {
    content_id: String,
    signed_by: Option<String>,
    targets: Vec<TargetSummary>,
    manifest: serde_json::Value,
}

#[derive(Serialize)]
struct TargetSummary {
    target: String,
    levels: Vec<String>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    steps: usize,
    kernels: usize,
    /// The size along which a CPU may cut a run into slices.
    batch: Option<String>,
}

impl Summary {
    fn new(file: &File<'_>, manifest: serde_json::Value) -> Summary {
        let layout = file.layout();
        let targets = layout.targets.iter().map(|t| {
            let port = |p: &fqbin::Port| {
                format!("{}: {}{}", p.name, p.elem.name(), t.program.shape_text(&p.shape))
            };
            TargetSummary {
                target: t.name.clone(),
                levels: t.code.iter().map(|&i| layout.table.sections[i].level.clone()).collect(),
                inputs: t.program.inputs.iter().map(port).collect(),
                outputs: t.program.outputs.iter().map(port).collect(),
                steps: t.program.steps.len(),
                kernels: t.program.kernels.len(),
                batch: t.program.batch.map(|s| t.program.symbols[s.index()].clone()),
            }
        });
        Summary {
            content_id: layout.table.content_id.iter().map(|b| format!("{b:02x}")).collect(),
            signed_by: layout.signature.map(|s| s.key.to_string()),
            targets: targets.collect(),
            manifest,
        }
    }

    fn text(&self) -> String {
        let mut out = format!("content {}\n", self.content_id);
        match &self.signed_by {
            Some(key) => out.push_str(&format!("signed by {key}\n")),
            None => out.push_str("not signed\n"),
        }
        for t in &self.targets {
            out.push_str(&format!(
                "target {} ({}): {} steps, {} kernels",
                t.target,
                t.levels.join(", "),
                t.steps,
                t.kernels
            ));
            if let Some(batch) = &t.batch {
                out.push_str(&format!(", items of `{}` apart", fqbin::printable(batch)));
            }
            out.push('\n');
            for line in t.inputs.iter().map(|p| format!("  input {p}\n")) {
                out.push_str(&line);
            }
            for line in t.outputs.iter().map(|p| format!("  output {p}\n")) {
                out.push_str(&line);
            }
        }
        out.push_str(&serde_json::to_string_pretty(&self.manifest).unwrap_or_default());
        out
    }
}
