//! Quantisation passes with fixed choices, as a test file's header gives them:
//! `set choice x: smooth=[2.0, 0.5] threshold=1.0 tail=[1:2] padded=4 unsigned w4a8`.

use anyhow::{Context, Result, bail};
use fqc_ir::FlattenMap;
use fqc_passes::Pass;
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::groups::Heads;
use fqc_passes::quant::passes::{Choices, Flatten, InsertQdq, Smooth};
use fqc_passes::quant::round::Granularity;
use fqc_passes::quant::widths::Widths;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a group's input and the choice for it. What is left out: no smoothing, no tail, no
/// padding, signed codes of eight bits.
pub fn parse(text: &str) -> Result<(String, Choice)> {
    let (name, fields) = text.split_once(": ").context("`name: smooth=[…] threshold=…`")?;
    let (mut smooth, mut threshold, mut tail) = (Vec::new(), None, Vec::new());
    let (mut padded, mut signed, mut widths) = (None, true, Widths::W8A8);
    for field in fields.replace(", ", ",").split(' ') {
        match field.split_once('=') {
            Some(("smooth", value)) => smooth = list(value)?,
            Some(("threshold", value)) => threshold = Some(value.parse()?),
            Some(("tail", value)) => {
                for pair in list::<String>(value)? {
                    let (source, digit) = pair.split_once(':').context("`channel:digit`")?;
                    tail.push((source.parse()?, digit.parse()?));
                }
            }
            Some(("padded", value)) => padded = Some(value.parse()?),
            None if field == "unsigned" => signed = false,
            None if field == "w4a8" => widths = Widths::W4A8,
            None if field == "w4a4" => widths = Widths::W4A4,
            _ => bail!("a choice does not have `{field}`"),
        }
    }
    let base = u32::try_from(smooth.len())?;
    let padded = padded.unwrap_or(base + u32::try_from(tail.len())?);
    let choice = Choice {
        alpha: 0.0,
        smooth,
        threshold: threshold.context("`threshold=…`")?,
        map: Arc::new(FlattenMap { base, tail: tail.into(), padded }),
        signed,
        widths,
        typical_energy: 1.0,
        error: 0.0,
    };
    Ok((name.to_owned(), choice))
}

fn list<T: FromStr>(text: &str) -> Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).context("`[…]`")?;
    inner.split(',').filter(|t| !t.is_empty()).map(|t| Ok(t.parse()?)).collect()
}

/// The pass of a name that works by choices; heads stay in float.
pub fn pass(name: &str, choices: &Choices) -> Option<Box<dyn Pass>> {
    let (heads, choices) = (Heads::Float, choices.clone());
    let granularity = Granularity::PerChannel;
    match name {
        "smooth" => Some(Box::new(Smooth { heads, choices })),
        "flatten" => Some(Box::new(Flatten { heads, choices })),
        "insert-qdq" => Some(Box::new(InsertQdq { choices, rounded: Arc::default(), granularity })),
        _ => None,
    }
}
