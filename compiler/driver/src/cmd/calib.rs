//! What `--calib` and its companions mean.

use crate::calibrate::{self, Data};
use crate::data::{self, Batch, Rare, Source};
use crate::exit::Failure;
use crate::fqcal::{Calibration, DataFile, Origin, Windows};
use crate::hash;
use fqc_ir::Graph;
use fqc_passes::quant::groups::Heads;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which groups calibration looks at: all, so that one file serves compilations with and without a
/// quantised head.
pub const OBSERVED: Heads = Heads::Quantized;

/// Calibration data.
#[derive(clap::Args, Clone, Debug)]
pub struct CalibArgs {
    /// Calibration data: .npz (one array an input, samples along the first axis), text, or statistics
    /// that `fqc calibrate` kept (.fqcal); may be repeated. `random` makes up tokens
    #[arg(long, value_name = "DATA")]
    pub calib: Vec<PathBuf>,
    /// Tokenizer for text
    #[arg(long, value_name = "TOKENIZER.json")]
    pub tokenizer: Option<PathBuf>,
    /// Text windows to calibrate on
    #[arg(long, default_value_t = 64)]
    pub windows: usize,
    /// Tokens in a window
    #[arg(long, default_value_t = 128)]
    pub window: usize,
    /// Where in the text the windows start, as a share of its tokens
    #[arg(long, default_value_t = 0.1)]
    pub start: f64,
}

impl CalibArgs {
    /// Refuses what cannot work before anything long begins.
    pub fn check(&self) -> Result<(), Failure> {
        if !(0.0..1.0).contains(&self.start) || self.window == 0 || self.windows == 0 {
            return Err(Failure::usage(
                "`--start` is a share from 0 up to 1, `--window` and `--windows` are at least 1",
            ));
        }
        if self.kept().count() > 1 {
            return Err(Failure::usage("one .fqcal at most; it holds all of a model's statistics"));
        }
        if self.calib.iter().any(|c| is_random(c)) && self.samples().count() > 0 {
            return Err(Failure::usage("`--calib random` goes without other samples"));
        }
        Ok(())
    }

    /// What to calibrate a model with, and where it comes from. Statistics of another model or data
    /// are refused.
    pub fn data(&self, graph: &Graph) -> Result<(Data, Origin), Failure> {
        let Some(path) = self.kept().next() else {
            let batches = Arc::new(self.batches(graph)?);
            let rare = self.rare(graph, &batches)?;
            return Ok((Data { batches, rare, ..Data::default() }, self.origin()?));
        };
        let calibration = Calibration::read(path)?;
        let bad = |what: String| Failure::data(format!("`{}` {what}", path.display()));
        if calibration.graph_hash != hash::graph(graph) {
            return Err(bad(
                "is of another model, or of another version of fqc; calibrate again".to_owned()
            ));
        }
        if calibration.done < calibration.total {
            let Calibration { done, total, .. } = calibration;
            return Err(bad(format!(
                "has seen {done} of {total} samples; finish it with `fqc calibrate --resume`"
            )));
        }
        calibrate::check(graph, OBSERVED, &calibration.statistics)
            .map_err(|e| bad(e.to_string()))?;
        let mut batches = Arc::default();
        if self.calib.len() > 1 {
            if self.origin()? != calibration.origin {
                return Err(bad("is of other data than what is given beside it".to_owned()));
            }
            batches = Arc::new(self.batches(graph)?);
        }
        let data = Data { batches, statistics: Some(calibration.statistics), ..Data::default() };
        Ok((data, calibration.origin))
    }

    /// The samples.
    pub fn batches(&self, graph: &Graph) -> Result<Vec<Batch>, Failure> {
        let wanted = calibrate::wanted(graph);
        if self.calib.iter().any(|c| is_random(c)) {
            return data::random(self.windows, self.window, &wanted);
        }
        data::batches(&self.source(), &wanted)
    }

    /// Tokens that samples of text lack.
    pub fn rare(&self, graph: &Graph, batches: &[Batch]) -> Result<Rare, Failure> {
        if self.samples().all(|f| has_extension(f, "npz")) {
            return Ok(Rare::default());
        }
        data::rare(&self.source(), batches, &calibrate::wanted(graph))
    }

    fn source(&self) -> Source {
        Source {
            files: self.samples().cloned().collect(),
            tokenizer: self.tokenizer.clone(),
            window: self.window,
            windows: self.windows,
            start: self.start,
        }
    }

    /// Where the samples come from.
    pub fn origin(&self) -> Result<Origin, Failure> {
        let files: Vec<&PathBuf> = self.samples().collect();
        let text = files.iter().any(|f| !has_extension(f, "npz"));
        let made_up = self.calib.iter().any(|c| is_random(c));
        let windows = Windows { count: self.windows, tokens: self.window, start: self.start };
        let file = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(DataFile { name, hash: hash::file(path)? })
        };
        let tokenizer = self.tokenizer.as_deref().filter(|_| text);
        Ok(Origin {
            files: files.iter().map(file).collect::<Result<_, Failure>>()?,
            tokenizer_hash: tokenizer.map(hash::file).transpose()?,
            windows: (text || made_up).then_some(windows),
        })
    }

    /// Whether statistics are given.
    pub fn has_statistics(&self) -> bool {
        self.kept().next().is_some()
    }

    /// Files of statistics.
    fn kept(&self) -> impl Iterator<Item = &PathBuf> {
        self.calib.iter().filter(|c| has_extension(c, "fqcal") || has_extension(c, "part"))
    }

    /// Files of samples.
    fn samples(&self) -> impl Iterator<Item = &PathBuf> {
        let kept: Vec<&PathBuf> = self.kept().collect();
        self.calib.iter().filter(move |c| !is_random(c) && !kept.contains(c))
    }
}

fn is_random(path: &Path) -> bool {
    path.as_os_str() == "random"
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}
