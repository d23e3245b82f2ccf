//! The pipeline, top to bottom: a model file in, an image out. Every step is a function from plain
//! data to plain data.

use crate::calibrate;
use crate::data::Batch;
use crate::exit::{Exit, Failure};
use crate::gptq;
use crate::host::{self, SharedCode};
use crate::interrupt::Interrupt;
use crate::progress::{Verbosity, warn};
use crate::quantise;
use crate::sensitivity;
use crate::settings::{Method, Rounding, Settings};
use fqbin::{Level, TargetImage};
use fqc_import::ImportOptions;
use fqc_ir::Graph;
use fqc_ir::plan::{Plan, Precision};
use fqc_passes::lower::{LowerError, lower};
use fqc_passes::quant::assign::Aim;
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::groups::Group;
use fqc_passes::quant::insert_qdq::RoundedWeights;
use fqc_passes::quant::passes::{self as quant, Choices};
use fqc_passes::quant::search::{Search, Sensitivity};
use fqc_passes::quant::stats::Statistics;
use fqc_passes::{Pass, Runner, clean, fuse};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Called with the name of each pass and the graph it left.
pub type AfterPass<'a> = &'a mut dyn FnMut(&str, &Graph);

/// What goes along with a compilation without deciding its result.
pub struct Context<'a> {
    pub interrupt: &'a Interrupt,
    pub verbosity: Verbosity,
    pub after_pass: Option<AfterPass<'a>>,
    /// Threads for calibration.
    pub threads: usize,
    /// Whether a warning ends the compilation.
    pub strict: bool,
}

impl<'a> Context<'a> {
    pub fn new(interrupt: &'a Interrupt, verbosity: Verbosity, threads: usize) -> Context<'a> {
        Context { interrupt, verbosity, after_pass: None, threads, strict: false }
    }

    /// Tells what is not as it might be expected, and what to do.
    pub fn warn(&self, message: &str) -> Result<(), Failure> {
        if self.strict {
            return Err(Failure::new(Exit::Gate, format!("{message} (`--strict`)")));
        }
        warn(message);
        Ok(())
    }
}

/// A compiled model and what was decided on the way.
pub struct Compiled {
    pub target: TargetImage,
    pub plan: Plan,
    pub graph: Graph,
    pub choices: Choices,
    /// The float graph that calibration ran, and what it saw.
    pub float: Graph,
    pub statistics: Statistics,
}

/// The same before there is code.
pub struct Planned {
    pub plan: Plan,
    pub graph: Graph,
    pub choices: Choices,
    pub float: Graph,
    pub statistics: Statistics,
}

/// Imports a model and brings it into fqc's own operations: norms, attention, activations.
pub fn import(path: &Path, cx: &mut Context<'_>) -> Result<Graph, Failure> {
    let mut graph = fqc_import::import(path, &ImportOptions::default()).map_err(|e| {
        let exit = match e.kind() {
            fqc_import::Kind::Io => Exit::Io,
            fqc_import::Kind::Limit => Exit::Limit,
            _ => Exit::Model,
        };
        Failure::new(exit, format!("{e}\n  in model `{}`", path.display()))
    })?;
    run(&mut graph, &clean::passes(), cx)?;
    run(&mut graph, &fuse::refuse(), cx)?;
    Ok(graph)
}

/// A quantised graph and what was decided on the way.
pub struct Quantised {
    pub graph: Graph,
    pub choices: Choices,
    /// The float graph that calibration ran, and what it saw.
    pub float: Graph,
    pub statistics: Statistics,
}

/// From the imported graph to code. `data` gives what to calibrate with, if the method needs it.
pub fn compile<D: Into<calibrate::Data>>(
    float: Graph,
    settings: &Settings,
    data: impl FnOnce(&Graph) -> Result<D, Failure>,
    cx: &mut Context<'_>,
) -> Result<Compiled, Failure> {
    quantise(float, settings, data, cx)?.compile(settings, cx)
}

/// The half of it that rounds.
pub fn quantise<D: Into<calibrate::Data>>(
    float: Graph,
    settings: &Settings,
    data: impl FnOnce(&Graph) -> Result<D, Failure>,
    cx: &mut Context<'_>,
) -> Result<Quantised, Failure> {
    levels(settings)?;
    let mut graph = float.clone();
    let mut choices = Choices::default();
    let mut seen = Statistics::new();
    settings.check(&float)?;
    if settings.method != Method::None {
        let calibrate::Data { batches, rare, statistics, choices: chosen } = data(&float)?.into();
        seen = match statistics {
            Some(statistics) => statistics,
            None => calibrate::run(&float, settings.heads(), &batches, &rare, cx)?,
        };
        if settings.rounding() == Rounding::Gptq && batches.is_empty() {
            return Err(no_samples());
        }
        choices = Arc::new(match chosen {
            Some(chosen) => chosen,
            None => choose(&float, &seen, &batches, settings, cx)?,
        });
        match settings.rounding() {
            Rounding::Nearest => {
                quantise::nearest(&float, &mut graph, &choices, &seen, settings, cx)?;
            }
            Rounding::Gptq => gptq::run(&float, &mut graph, &choices, &batches, settings, cx)?,
        }
    }
    Ok(Quantised { graph, choices, float, statistics: seen })
}

impl Quantised {
    /// The half that generates code, here for CPUs.
    pub fn compile(self, settings: &Settings, cx: &mut Context<'_>) -> Result<Compiled, Failure> {
        let Planned { plan, graph, choices, float, statistics } = self.plan(settings, cx)?;
        let target = cpu_image(&plan, settings, cx)?;
        Ok(Compiled { target, plan, graph, choices, float, statistics })
    }

    /// The steps that code is generated for.
    pub fn plan(self, settings: &Settings, cx: &mut Context<'_>) -> Result<Planned, Failure> {
        let Quantised { mut graph, choices, float, statistics } = self;
        if settings.precision() == Precision::Bf16 {
            run(&mut graph, &[Box::new(quant::narrow_tables())], cx)?;
        }
        run(&mut graph, &fuse::fuse(), cx)?;
        run(&mut graph, &[Box::new(quant::fold_quantize())], cx)?;
        let plan = plan(&graph, settings.precision())?;
        Ok(Planned { plan, graph, choices, float, statistics })
    }
}

fn no_samples() -> Failure {
    Failure::data(
        "GPTQ wants the calibration samples themselves: give them beside the .fqcal, or round with \
         `--rounding nearest`",
    )
}

/// The choice for each group. Where groups compete, for extra channels or for widths, what an error of
/// each costs the model is measured, which takes a run for each; without batches to measure it on, all
/// cost the same.
pub fn choose(
    float: &Graph,
    statistics: &Statistics,
    batches: &[Batch],
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<BTreeMap<String, Choice>, Failure> {
    let aims = [settings.aim()];
    let all = choose_for(float, statistics, batches, settings, &aims, &mut None, cx)?;
    Ok(all.into_iter().next().unwrap_or_default())
}

/// The same for several aims, from one search. What errors cost is measured if `costs` has nothing yet.
pub fn choose_for(
    float: &Graph,
    statistics: &Statistics,
    batches: &[Batch],
    settings: &Settings,
    aims: &[Option<Aim>],
    costs: &mut Option<Sensitivity>,
    cx: &mut Context<'_>,
) -> Result<Vec<BTreeMap<String, Choice>>, Failure> {
    let (heads, space) = (settings.heads(), settings.search());
    let widths = |group: &Group| settings.candidates(float, group);
    let search = Search::new(float, heads, statistics, widths, &space, cx.threads);
    if let Some(first) = search.left().first() {
        let count = search.left().len();
        cx.warn(&format!(
            "{count} groups of linear layers stay float, `{first}` the first: calibration saw no values \
             of their inputs, or there are values or weights beyond what a scale fits",
        ))?;
    }
    let even = Sensitivity::new();
    let wanted = settings.method == Method::Flattenquant;
    if wanted && costs.is_none() {
        *costs = Some(if batches.is_empty() {
            cx.warn(
                "the statistics alone do not tell what an error in each layer costs the model, so all \
                 layers count the same; give the calibration samples beside the .fqcal",
            )?;
            Sensitivity::new()
        } else {
            let choices = Arc::new(search.choices(&even, None));
            sensitivity::measure(float, heads, &choices, statistics, batches, cx)?
        });
    }
    let costs = costs.as_ref().filter(|_| wanted).unwrap_or(&even);
    Ok(aims.iter().map(|aim| search.choices(costs, *aim)).collect())
}

/// Smoothing and flattening: the graph computes what it did before.
pub fn exact(choices: &Choices, settings: &Settings) -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(quant::Smooth { heads: settings.heads(), choices: choices.clone() }),
        Box::new(quant::Flatten { heads: settings.heads(), choices: choices.clone() }),
    ]
}

/// Rounding to codes, and the first fold.
pub fn rounding(
    choices: &Choices,
    rounded: &RoundedWeights,
    settings: &Settings,
) -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(quant::InsertQdq {
            choices: choices.clone(),
            rounded: rounded.clone(),
            granularity: settings.granularity(),
        }),
        Box::new(quant::fold_qdq()),
    ]
}

/// Float code for this machine, in memory: calibration and comparison run it.
pub fn float_target(float: &Graph, cx: &mut Context<'_>) -> Result<TargetImage, Failure> {
    let mut graph = float.clone();
    run(&mut graph, &fuse::fuse(), cx)?;
    generate(&plan(&graph, Precision::F32)?, &[own_level()?], cx)
}

/// The same, with code that several graphs share.
pub fn float_program(
    mut graph: Graph,
    code: &mut SharedCode,
    cx: &mut Context<'_>,
) -> Result<TargetImage, Failure> {
    run(&mut graph, &fuse::fuse(), cx)?;
    let plan = plan(&graph, Precision::F32)?;
    cx.interrupt.check()?;
    code.generate(&plan)
}

/// The level of this machine, or the forced one.
pub fn own_level() -> Result<Level, Failure> {
    forced_level()?.or_else(fqrt::best_level).ok_or_else(no_level)
}

/// The level that `FQC_CPU_LEVEL` forces.
pub fn forced_level() -> Result<Option<Level>, Failure> {
    Level::from_env().map_err(Failure::usage)
}

/// What a machine without any level is told.
pub fn no_level() -> Failure {
    Failure::new(Exit::CannotRun, "this processor has no AVX2; fqc needs at least that")
}

fn levels(settings: &Settings) -> Result<Vec<Level>, Failure> {
    let parse = |name: &String| {
        Level::ALL.into_iter().find(|l| l.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Level::ALL.iter().map(|l| l.name()).collect();
            Failure::usage(format!("no CPU level `{name}`; there are {}", known.join(", ")))
        })
    };
    settings.levels.iter().map(parse).collect()
}

/// Runs passes; a failure is a fault of fqc and leaves the graph before it as a file.
pub fn run(
    graph: &mut Graph,
    passes: &[Box<dyn Pass>],
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    cx.interrupt.check()?;
    let mut runner = Runner::new();
    if let Some(after) = &mut cx.after_pass {
        runner = runner.after_each(Box::new(|name, graph| after(name, graph)));
    }
    runner.run(graph, passes).map_err(|failure| {
        let dump = std::env::temp_dir().join("fqc-crash.fqt");
        let kept = match std::fs::write(&dump, &failure.dump) {
            Ok(()) => format!("; the graph before it is in `{}`", dump.display()),
            Err(_) => String::new(),
        };
        Failure::internal(format!("{failure}{kept}"))
    })
}

/// The image of a plan for CPUs.
pub fn cpu_image(
    plan: &Plan,
    settings: &Settings,
    cx: &Context<'_>,
) -> Result<TargetImage, Failure> {
    generate(plan, &levels(settings)?, cx)
}

/// The plan of a finished graph.
pub fn plan(graph: &Graph, precision: Precision) -> Result<Plan, Failure> {
    lower(graph, precision).map_err(|errors: Vec<LowerError>| {
        let lines: Vec<String> = errors.iter().map(LowerError::to_string).collect();
        let lines = lines.join("\n");
        match errors.iter().any(|e| matches!(e, LowerError::Faulty(_))) {
            true => Failure::internal(lines),
            false => Failure::new(Exit::Model, lines),
        }
    })
}

fn generate(plan: &Plan, levels: &[Level], cx: &Context<'_>) -> Result<TargetImage, Failure> {
    cx.interrupt.check()?;
    let target = host::generate(plan, levels)?;
    cx.interrupt.check()?;
    Ok(target)
}
