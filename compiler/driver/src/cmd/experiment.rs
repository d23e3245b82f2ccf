//! What `analyze` and `methods` have in common: a model, calibration data, and a text to evaluate on.

use super::calib::CalibArgs;
use super::context;
use crate::calibrate::{self, Data};
use crate::exit::Failure;
use crate::fqcal::Origin;
use crate::interrupt::Interrupt;
use crate::pipeline::{self, Context};
use crate::settings::Settings;
use crate::text::{self, Text};
use fqc_ir::Graph;
use std::path::PathBuf;

#[derive(clap::Args, Clone, Debug)]
pub struct ExperimentArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub calib: CalibArgs,
    /// Settings in TOML, by the names in a compiled file's manifest
    #[arg(long, value_name = "F.toml")]
    pub config: Option<PathBuf>,
    /// Text windows to evaluate on
    #[arg(long, default_value_t = 12)]
    pub eval_windows: usize,
    /// Tokens in such a window
    #[arg(long, default_value_t = 256)]
    pub eval_window: usize,
    /// Where in that text the windows start, as a share of its tokens
    #[arg(long, default_value_t = 0.1)]
    pub eval_start: f64,
    /// Threads; all processors by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// JSON
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

impl ExperimentArgs {
    /// Refuses what cannot work before anything long begins.
    pub fn check(&self) -> Result<(), Failure> {
        self.calib.check()?;
        let start = (0.0..1.0).contains(&self.eval_start);
        if !start || self.eval_window < 2 || self.eval_windows == 0 {
            return Err(Failure::usage(
                "`--eval-start` is a share from 0 up to 1, `--eval-window` at least 2, \
                 `--eval-windows` at least 1",
            ));
        }
        Ok(())
    }

    /// The settings of the configuration file, or the defaults.
    pub fn settings(&self) -> Result<Settings, Failure> {
        self.config.as_deref().map_or_else(|| Ok(Settings::default()), Settings::read)
    }

    pub fn context<'a>(&self, interrupt: &'a Interrupt) -> Context<'a> {
        context(interrupt, self.quiet, self.threads)
    }

    /// The windows of the text to evaluate on.
    pub fn text(&self, file: &std::path::Path) -> Result<Text, Failure> {
        let tokenizer = self.calib.tokenizer.as_deref().ok_or_else(|| {
            Failure::usage("a text to evaluate on wants its tokenizer: give `--tokenizer`")
        })?;
        let tokenizer = text::load_tokenizer(tokenizer)?;
        let (size, count) = (self.eval_window, self.eval_windows);
        let windows = text::windows(&tokenizer, file, size, count, self.eval_start)?;
        Ok(Text { windows, vocabulary: tokenizer.get_vocab_size(true) })
    }

    /// The imported model and its calibration; the data of the result has statistics.
    pub fn calibrated(&self, cx: &mut Context<'_>) -> Result<(Graph, Data, Origin), Failure> {
        let float = pipeline::import(&self.model, cx)?;
        let (mut data, origin) = self.calib.data(&float)?;
        if data.statistics.is_none() {
            let statistics =
                calibrate::run(&float, super::calib::OBSERVED, &data.batches, &data.rare, cx)?;
            data.statistics = Some(statistics);
        }
        Ok((float, data, origin))
    }
}
