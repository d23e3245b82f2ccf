//! Evaluation on text: perplexity and distance from a reference for language models, cosines for
//! encoders. One window at a time goes through both models, so that no more than one window's
//! outputs of each are in memory.

use crate::data::{Wanted, fill, infer, model_inputs};
use crate::exit::{Exit, Failure};
use crate::metrics::cosine;
use crate::progress::{Stage, Verbosity};
use crate::score::{Language, NotANumber, Sums};
use crate::text::Text;
use fqrt::{Model, Outputs, Session, SessionOptions, Tensor};
use serde::Serialize;
use std::sync::Arc;

/// What an evaluation found.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scores {
    /// A model with logits.
    Language(Language),
    /// Every f32 output of a model without.
    Encoder(Vec<Cosines>),
}

/// How far the rows (the last axis) of one output are from the reference's.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cosines {
    pub output: String,
    pub rows: u64,
    pub min: f64,
    pub mean: f64,
}

/// Scores of a model over the windows of a text.
pub fn run(
    model: &Arc<Model>,
    reference: Option<&Arc<Model>>,
    text: &Text,
    options: &SessionOptions,
    verbosity: Verbosity,
) -> Result<Scores, Failure> {
    let mut model = Runner::new(model, options)?;
    let mut reference = reference.map(|r| Runner::new(r, options)).transpose()?;
    let mut stage = Stage::new("evaluate", text.windows.len() as u64, verbosity);
    let mut sums = Sums::default();
    let mut cosines: Vec<Cosines> = Vec::new();
    for (index, window) in text.windows.iter().enumerate() {
        // The reference runs first and keeps no more than its outputs.
        let want = reference.as_mut().map(|r| r.run(window, index)).transpose()?;
        let got = model.run(window, index)?;
        match (logits(&got, text.vocabulary), &want) {
            (Some(name), want) => language(&mut sums, name, window, &got, want.as_ref(), index)?,
            (None, Some(want)) => encoder(&mut cosines, &got, want)?,
            (None, None) => return Err(no_logits()),
        }
        stage.step();
    }
    if cosines.is_empty() {
        return Ok(Scores::Language(sums.scores()));
    }
    cosines.iter_mut().for_each(|c| c.mean /= c.rows.max(1) as f64);
    Ok(Scores::Encoder(cosines))
}

fn no_logits() -> Failure {
    Failure::usage(
        "the model has no logits (an f32 output of rank 3, named `logits` or as wide as the \
         vocabulary), so there is no perplexity; give its float model with `--against` for cosines",
    )
}

/// A model with its session and what it wants.
struct Runner {
    session: Session,
    wanted: Vec<Wanted>,
}

impl Runner {
    fn new(model: &Arc<Model>, options: &SessionOptions) -> Result<Runner, Failure> {
        Ok(Runner { session: Session::new(model, options.clone())?, wanted: model_inputs(model) })
    }

    fn run(&mut self, window: &[i64], index: usize) -> Result<Outputs, Failure> {
        let batch = fill(&[window.to_vec()], &self.wanted)?;
        infer(&mut self.session, &batch)
            .map_err(|e| Failure::new(e.exit, format!("window {index}: {e}")))
    }
}

/// The output with a language model's logits: of the f32 outputs of rank 3 the one named `logits`,
/// else the first that is at least as wide as the vocabulary.
fn logits(outputs: &Outputs, vocabulary: usize) -> Option<&str> {
    let wide = |t: &Tensor| matches!(t.shape(), [_, _, width] if *width >= vocabulary);
    let matrix = |t: &Tensor| t.elem() == fqbin::Elem::F32 && t.shape().len() == 3;
    let mut all = outputs.iter().filter(|(_, t)| matrix(t));
    let named = outputs.get("logits").filter(|t| matrix(t)).map(|_| "logits");
    named.or_else(|| all.find(|(_, t)| wide(t)).map(|(name, _)| name))
}

fn language(
    sums: &mut Sums,
    name: &str,
    window: &[i64],
    got: &Outputs,
    want: Option<&Outputs>,
    index: usize,
) -> Result<(), Failure> {
    let (shape, got) = floats(got, name)?;
    let want = want.map(|w| floats(w, name)).transpose()?;
    if let Some((other, _)) = want
        && other != shape
    {
        return Err(differ(name, shape, other));
    }
    let vocabulary = match *shape {
        [1, rows, vocabulary] if rows == window.len() => vocabulary,
        _ => {
            let message = format!("`{name}` is {shape:?} for {} tokens", window.len());
            return Err(Failure::new(Exit::Model, message));
        }
    };
    let tokens: Vec<usize> = window.iter().filter_map(|&t| usize::try_from(t).ok()).collect();
    if let Some(token) = tokens.iter().find(|t| **t >= vocabulary) {
        return Err(Failure::data(format!(
            "window {index}: token {token} is not among the {vocabulary} of `{name}`; is the \
             tokenizer another model's?"
        )));
    }
    sums.add(&tokens, got, want.map(|w| w.1)).map_err(|NotANumber { position, value }| {
        let place = format!("window {index}, position {position}");
        Failure::new(Exit::Model, format!("{place}: `{name}` or its reference is {value}"))
    })
}

fn encoder(cosines: &mut Vec<Cosines>, got: &Outputs, want: &Outputs) -> Result<(), Failure> {
    for (name, tensor) in got.iter() {
        let Some(values) = tensor.numbers::<f32>() else { continue };
        let (shape, want) = floats(want, name)?;
        if shape != tensor.shape() {
            return Err(differ(name, tensor.shape(), shape));
        }
        let at = cosines.iter().position(|c| c.output == name).unwrap_or_else(|| {
            cosines.push(Cosines { output: name.to_owned(), rows: 0, min: 1.0, mean: 0.0 });
            cosines.len() - 1
        });
        let width = shape.last().copied().unwrap_or(1).max(1);
        for (got, want) in values.chunks_exact(width).zip(want.chunks_exact(width)) {
            let cosine = cosine(got, want);
            let entry = &mut cosines[at];
            entry.rows += 1;
            entry.min = if cosine < entry.min || cosine.is_nan() { cosine } else { entry.min };
            // A sum until the end.
            entry.mean += cosine;
        }
    }
    Ok(())
}

/// Shape and values of an f32 output.
fn floats<'a>(outputs: &'a Outputs, name: &str) -> Result<(&'a [usize], &'a [f32]), Failure> {
    let found = outputs.get(name).and_then(|t: &Tensor| Some((t.shape(), t.numbers::<f32>()?)));
    found.ok_or_else(|| {
        Failure::usage(format!("the reference has no f32 output `{name}`; is it another model?"))
    })
}

fn differ(name: &str, got: &[usize], want: &[usize]) -> Failure {
    Failure::usage(format!(
        "`{name}` is {got:?}, the reference's is {want:?}; is it another model?"
    ))
}
