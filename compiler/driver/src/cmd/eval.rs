//! `fqc eval`: what a model makes of a text, and how far it is from its float model.

use super::{RunArgs, load, print, print_json, quiet};
use crate::evaluate::{self, Scores};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::progress::Verbosity;
use crate::text::{self, Text};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The compiled model (or an .onnx, which then runs in float)
    pub model: PathBuf,
    #[command(flatten)]
    pub text: TextArgs,
    /// The float model (.onnx), for KL divergence and top-1 agreement, or cosines
    #[arg(long, value_name = "MODEL.onnx")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
    /// Fail with exit code 4 if the perplexity is above this
    #[arg(long, value_name = "PERPLEXITY")]
    pub max_perplexity: Option<f64>,
    /// Fail with exit code 4 if the divergence from the float model is above this, in nats
    #[arg(long, value_name = "NATS", requires = "against")]
    pub max_kl: Option<f64>,
    /// Fail with exit code 4 if a row of an encoder's output has a smaller cosine than this
    #[arg(long, value_name = "COSINE", requires = "against")]
    pub min_cosine: Option<f64>,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Windows of a text: single line breaks joined into spaces, no special tokens, consecutive windows.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct TextArgs {
    /// The text, UTF-8
    #[arg(long, value_name = "F.txt")]
    pub text: PathBuf,
    /// Its tokenizer
    #[arg(long, value_name = "TOKENIZER.json")]
    pub tokenizer: PathBuf,
    /// Windows to evaluate
    #[arg(long, default_value_t = 12)]
    pub windows: usize,
    /// Tokens in a window
    #[arg(long, default_value_t = 256)]
    pub window: usize,
    /// Where in the text the windows start, as a share of its tokens
    #[arg(long, default_value_t = 0.1)]
    pub start: f64,
}

impl TextArgs {
    /// The windows' tokens.
    pub fn read(&self) -> Result<Text, Failure> {
        if !(0.0..1.0).contains(&self.start) || self.window < 2 || self.windows == 0 {
            return Err(Failure::usage(
                "`--start` is a share from 0 up to 1, `--window` at least 2, `--windows` at least 1",
            ));
        }
        let tokenizer = text::load_tokenizer(&self.tokenizer)?;
        let windows = text::windows(&tokenizer, &self.text, self.window, self.windows, self.start)?;
        Ok(Text { windows, vocabulary: tokenizer.get_vocab_size(true) })
    }
}

/// One evaluation.
#[derive(Serialize)]
struct Evaluation<'a> {
    model: &'a PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<&'a PathBuf>,
    text: &'a TextArgs,
    #[serde(flatten)]
    scores: &'a Scores,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    let text = args.text.read()?;
    let options = args.run.session(interrupt);
    let mut cx = quiet(interrupt, options.threads);
    let model = load(&args.model, &args.run, &mut cx)?;
    let against = args.against.as_ref().map(|path| load(path, &args.run, &mut cx)).transpose()?;
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let scores = evaluate::run(&model, against.as_ref(), &text, &options, verbosity)
        .map_err(|e| interrupt.check().err().unwrap_or(e))?;
    let (model, against) = (&args.model, args.against.as_ref());
    if args.json {
        print_json(&Evaluation { model, against, text: &args.text, scores: &scores })?;
    } else {
        print(&lines(&scores))?;
    }
    gate(args, &scores)
}

/// The scores in words.
fn lines(scores: &Scores) -> String {
    match scores {
        Scores::Language(s) => {
            let own = format!(
                "perplexity {:.3} (loss {:.5} nats) over {} tokens",
                s.perplexity, s.loss, s.tokens
            );
            match s.against {
                None => own,
                Some(a) => format!(
                    "{own}; the reference's {:.3}\nKL {:.5} nats, top-1 agreement {:.4} over {} \
                     positions",
                    a.perplexity, a.kl, a.top1, a.positions
                ),
            }
        }
        Scores::Encoder(outputs) => {
            let line = |c: &evaluate::Cosines| {
                format!(
                    "{:24} cosine min {:.6} mean {:.6} over {} rows",
                    c.output, c.min, c.mean, c.rows
                )
            };
            outputs.iter().map(line).collect::<Vec<_>>().join("\n")
        }
    }
}

/// An error if a bound that was asked for does not hold, or is of the other kind of model.
fn gate(args: &Args, scores: &Scores) -> Result<(), Failure> {
    let fail = |what: String| Err(Failure::new(Exit::Gate, what));
    // A comparison with NaN must fail the gate.
    let holds = |value: f64, bound: Option<f64>| bound.is_none_or(|b| value <= b);
    match scores {
        Scores::Language(s) => {
            let kl = s.against.map_or(0.0, |a| a.kl);
            if args.min_cosine.is_some() {
                return Err(Failure::usage("`--min-cosine` is for models without logits"));
            }
            if !holds(s.perplexity, args.max_perplexity) {
                return fail(format!("the perplexity is {:.3}", s.perplexity));
            }
            if !holds(kl, args.max_kl) {
                return fail(format!("the divergence is {kl:.5} nats"));
            }
        }
        Scores::Encoder(outputs) => {
            if args.max_perplexity.is_some() || args.max_kl.is_some() {
                return Err(Failure::usage(
                    "`--max-perplexity` and `--max-kl` are for models with logits",
                ));
            }
            for c in outputs {
                if !holds(-c.min, args.min_cosine.map(|b| -b)) {
                    return fail(format!("the smallest cosine of `{}` is {:.6}", c.output, c.min));
                }
            }
        }
    }
    Ok(())
}
