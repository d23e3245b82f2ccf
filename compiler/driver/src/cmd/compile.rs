//! `fqc compile`: the whole way from a model file to a `.fqbin`.

use super::calib::CalibArgs;
use super::{check_folder, context, print, print_json};
use crate::analyze;
use crate::exit::{Failure, file_failure};
use crate::hash;
use crate::host;
use crate::interrupt::Interrupt;
use crate::key;
use crate::pipeline::{self, Context, Planned};
use crate::report::{GemmReport, Report};
use crate::settings::{Float, LmHead, Method, Rounding, Scheme, Settings};
use crate::target::{self, Target};
use crate::tuned::Tuned;
use fqbin::Image;
use fqc_codegen::cuda::{Arch, Layer, tuning};
use fqc_ir::{Graph, text};
use std::path::PathBuf;

/// Groups in the table at the end.
const SHOWN: usize = 5;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model
    pub model: PathBuf,
    /// The compiled file
    #[arg(short, long, value_name = "MODEL.fqbin")]
    pub output: PathBuf,
    #[command(flatten)]
    pub calib: CalibArgs,
    /// What to compile for: `cpu`, `cuda` (sm_90a), `cuda:ARCH`, `cuda:ptx`; several separated by commas
    #[arg(long, value_delimiter = ',', default_value = "cpu", value_parser = Target::parse)]
    pub target: Vec<Target>,
    /// Tiles that `fqc tune` measured, for `cuda:sm_90a`
    #[arg(long, value_name = "TUNED.json")]
    pub tuned: Option<PathBuf>,
    /// Settings in TOML, by the names in the file's manifest; options on the command line win
    #[arg(long, value_name = "F.toml")]
    pub config: Option<PathBuf>,
    /// How to quantise [default: flattenquant]
    #[arg(long, value_enum)]
    pub method: Option<Method>,
    /// Extra channels at most, in percent of a layer's channels, in the mean over all groups
    /// [default: 8]
    #[arg(long)]
    pub max_extra: Option<f32>,
    /// More extra channels where rows are filled up to a multiple of 64 anyway: nothing to AMX and GPUs,
    /// work to AVX-512 and AVX2
    #[arg(long)]
    pub headroom: bool,
    /// What a language model's head is computed in [default: float]
    #[arg(long, value_enum)]
    pub lm_head: Option<LmHead>,
    /// Bits of weights and activations [default: w8a8]
    #[arg(long, value_enum)]
    pub scheme: Option<Scheme>,
    /// Bits of the layers whose name fits, where `*` stands for anything; may be repeated
    #[arg(long, value_name = "NAME=SCHEME", value_parser = layer_scheme)]
    pub layer: Vec<(String, Scheme)>,
    /// At least this share of the linear layers' work in INT4, where it costs least
    #[arg(long, group = "aim", value_name = "SHARE")]
    pub int4_share: Option<f64>,
    /// INT4 for every group of layers that alone diverges by at most this
    #[arg(long, group = "aim", value_name = "LOSS")]
    pub gamma: Option<f64>,
    /// INT4 for as many layers as this divergence of all together allows
    #[arg(long, group = "aim", value_name = "LOSS")]
    pub max_drop: Option<f64>,
    /// Bits of the activations of INT4 layers chosen by one of these, 8 or 4; 4 is faster
    /// for GPUs from sm_80 to sm_89 alone
    /// [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u8).range(4..=8))]
    pub int4_activations: Option<u8>,
    /// How to round weights [default: gptq]
    #[arg(long, value_enum)]
    pub rounding: Option<Rounding>,
    /// GPTQ shows each layer the quantised outputs of those before it; takes longer
    #[arg(long)]
    pub sequential: bool,
    /// One scale for each weight instead of one for each output channel
    #[arg(long)]
    pub per_tensor_weights: bool,
    /// Products that stay float, a head above all, with tables of embeddings in f16 beside bf16
    /// [default: bf16; f32 with `--method none`]
    #[arg(long, value_enum)]
    pub float: Option<Float>,
    /// CPU levels to generate code for [default: avx2,avx512-vnni,avx512-bf16,amx-int8]
    #[arg(long, value_delimiter = ',')]
    pub levels: Option<Vec<String>>,
    /// Threads for calibration; all processors by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print the graph after this pass, or after every pass with `all`
    #[arg(long, value_name = "PASS")]
    pub print_after: Option<String>,
    /// Warnings are errors
    #[arg(long)]
    pub strict: bool,
    /// The report as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    check(args)?;
    let toolchains = target::toolchains(&args.target)?;
    let tuned = args.tuned.as_deref().map(Tuned::read).transpose()?.unwrap_or_default();
    let mut show = |name: &str, graph: &Graph| {
        if args.print_after.as_deref().is_some_and(|p| p == "all" || p == name) {
            eprintln!("; after {name}\n{}", text::print(graph));
        }
    };
    let cx = context(interrupt, args.quiet, args.threads);
    let mut cx = Context { after_pass: Some(&mut show), strict: args.strict, ..cx };
    let settings = settings(args)?;
    check_host(args, &settings)?;
    let as_eight = args.target.iter().find(|target| !target.multiplies_int4());
    if let (true, Some(target)) = (settings.asks_int4_activations(), as_eight) {
        cx.warn(&format!(
            "`{target}` multiplies activations of four bits as eight: `w4a8` for `w4a4`, and \
             `--int4-activations 8`, are as fast and lose less; `fqc analyze` shows both losses"
        ))?;
    }
    let float = pipeline::import(&args.model, &mut cx)?;
    let mut origin = None;
    let data = |graph: &Graph| {
        let (data, from) = args.calib.data(graph)?;
        origin = Some(from);
        Ok(data)
    };
    let mut quantised = pipeline::quantise(float, &settings, data, &mut cx)?;
    let (float, statistics) = (&quantised.float, &quantised.statistics);
    let groups = analyze::measure(float, statistics, &settings, &quantised.choices, &[], &mut cx)?;
    quantised.statistics.clear();
    let planned = quantised.plan(&settings, &mut cx)?;
    let file_name = args.model.file_name().map(|n| n.to_string_lossy().into_owned());
    let mut report = Report::new(&planned, &settings, file_name.unwrap_or_default());
    report.model_hash = hash::file(&args.model)?;
    report.calibration = origin;
    // Of all that was decided, code is generated for the plan alone.
    let Planned { plan, graph, float, .. } = planned;
    drop((graph, float));
    if args.target.contains(&Target::Cuda(Arch::Sm90a)) {
        let layers = tuning::layers(&plan);
        tuned.check(layers.iter().map(|(layer, _)| layer), &cx)?;
        let gemm =
            |(layer, steps): &(Layer, usize)| GemmReport { gemm: layer.to_string(), steps: *steps };
        report.gemms = layers.iter().map(gemm).collect();
    }
    let targets = target::images(&plan, &toolchains, &settings, &tuned.tuning, &cx)?;
    drop(plan);
    report.tuned = tuned.file;
    let code = targets.iter().flat_map(|target| &target.code);
    report.code_bytes = code.map(|code| code.bytes.len() as u64).sum();
    let image = Image {
        producer: report.producer.clone(),
        manifest: serde_json::to_vec_pretty(&report).map_err(Failure::internal)?,
        targets,
    };
    interrupt.check()?;
    let written = fqbin::write_file(&args.output, &image, Some(&key::own()?))
        .map_err(|e| file_failure(&e, e.to_string()))?;
    if args.json {
        return print_json(&report);
    }
    if !groups.is_empty() {
        print(&analyze::table(&groups, SHOWN))?;
        if settings.rounding() == Rounding::Gptq && report.memory.int4.layers > 0 {
            print(analyze::WEIGHTS)?;
        }
    }
    let mb = |bytes: u64| bytes as f64 / 1e6;
    print(&format!(
        "{report}\nwrote `{}`: {:.1} MB; the model in FP16 has {:.1} MB",
        args.output.display(),
        mb(written.bytes),
        mb(report.memory.total().0)
    ))
}

fn layer_scheme(text: &str) -> Result<(String, Scheme), String> {
    let (name, scheme) = text.rsplit_once('=').ok_or("want NAME=SCHEME")?;
    Ok((name.to_owned(), clap::ValueEnum::from_str(scheme, true)?))
}

/// Refuses what cannot work before anything long begins.
fn check(args: &Args) -> Result<(), Failure> {
    args.calib.check()?;
    if args.tuned.is_some() && !args.target.contains(&Target::Cuda(Arch::Sm90a)) {
        return Err(Failure::usage("`--tuned` goes with `--target cuda:sm_90a`"));
    }
    check_folder(&args.output)
}

/// Where nothing generates code for the CPU, statistics that were kept and plain rounding will do.
fn check_host(args: &Args, settings: &Settings) -> Result<(), Failure> {
    if settings.method == Method::None {
        return Ok(());
    }
    if !args.calib.has_statistics() {
        return host::wants("calibration (unless `--calib M.fqcal` has its statistics)");
    }
    match settings.rounding() {
        Rounding::Gptq => host::wants("GPTQ (but not `--rounding nearest`)"),
        Rounding::Nearest => Ok(()),
    }
}

/// The configuration file, if any, overruled by the command line.
fn settings(args: &Args) -> Result<Settings, Failure> {
    let mut settings = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    if let Some(method) = args.method {
        settings.method = method;
    }
    if let Some(levels) = &args.levels {
        settings.levels.clone_from(levels);
    }
    if let Some(percent) = args.max_extra {
        settings.max_extra = percent / 100.0;
    }
    settings.headroom |= args.headroom;
    if let Some(scheme) = args.scheme {
        settings.scheme = scheme;
    }
    settings.groups.splice(0..0, args.layer.iter().cloned());
    if let Some(rounding) = args.rounding {
        settings.rounding = rounding;
    }
    if args.int4_share.or(args.gamma).or(args.max_drop).is_some() {
        settings.int4_share = args.int4_share;
        settings.gamma = args.gamma;
        settings.max_drop = args.max_drop;
    }
    if let Some(bits) = args.int4_activations {
        settings.int4_activations = bits;
    }
    settings.sequential |= args.sequential;
    settings.lm_head = args.lm_head.unwrap_or(settings.lm_head);
    settings.per_tensor_weights |= args.per_tensor_weights;
    settings.float = args.float.or(settings.float);
    if args.rounding.is_some_and(|wanted| wanted != settings.rounding()) {
        return Err(Failure::usage("`--rounding gptq` goes with `--method flattenquant`"));
    }
    Ok(settings)
}
