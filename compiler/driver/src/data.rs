//! Calibration data and text inputs: batches of named tensors from `.npz` files or from text.

use crate::exit::{Exit, Failure};
use crate::npz;
use crate::text::{self, Frame};
use fqbin::Elem;
use fqrt::{Model, Outputs, Session, Tensor, TensorView};
use std::path::{Path, PathBuf};

/// Tokens that samples lack, for each token that they have.
const RARE: usize = 2;

/// One run's inputs.
pub type Batch = Vec<(String, Tensor)>;

/// An input that the data must fill: name, element type and rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub name: String,
    pub elem: Elem,
    pub rank: usize,
}

/// The inputs of a compiled model.
pub fn model_inputs(model: &Model) -> Vec<Wanted> {
    let ports = model.program().inputs.iter();
    ports.map(|p| Wanted { name: p.name.clone(), elem: p.elem, rank: p.shape.len() }).collect()
}

/// Runs a batch.
pub fn infer(session: &mut Session, batch: &Batch) -> Result<Outputs, Failure> {
    Ok(session.run(&views(batch))?)
}

/// The views that a session takes.
pub fn views(batch: &Batch) -> Vec<(&str, TensorView<'_>)> {
    batch.iter().map(|(name, t)| (name.as_str(), t.view())).collect()
}

/// Where batches come from.
#[derive(Clone, Debug)]
pub struct Source {
    pub files: Vec<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    /// Text: tokens in a window, number of windows, and where to start, as a share of all tokens.
    pub window: usize,
    pub windows: usize,
    pub start: f64,
}

/// All batches of the source, one sample or window each.
pub fn batches(source: &Source, wanted: &[Wanted]) -> Result<Vec<Batch>, Failure> {
    let mut out = Vec::new();
    let mut texts = Vec::new();
    for file in &source.files {
        if file.extension().is_some_and(|e| e == "npz") {
            out.extend(samples(file, wanted)?);
        } else {
            texts.push(file);
        }
    }
    if !texts.is_empty() {
        let path = source.tokenizer.as_deref().ok_or_else(|| {
            let file = texts[0].display();
            Failure::usage(format!("`{file}` is text: give its tokenizer with `--tokenizer`"))
        })?;
        let tokenizer = text::load_tokenizer(path)?;
        let share = source.windows.div_ceil(texts.len());
        for file in texts {
            let frame = Frame::of(&tokenizer)?;
            let all = text::windows(&tokenizer, file, source.window, share, source.start)?;
            for (i, window) in all.into_iter().enumerate() {
                let row = if i % 2 == 0 { frame.put(window) } else { window };
                out.push(fill(&[row], wanted)?);
            }
        }
    }
    Ok(out)
}

/// Batches of tokens that samples of text lack.
#[derive(Debug, Default)]
pub struct Rare {
    pub batches: Vec<Batch>,
    /// The probability that a token of other text is one of them: the share of the samples' tokens
    /// that occur once (Good 1953, after Turing).
    pub share: f64,
}

/// Tokens that samples of text lack, [`RARE`] times as many as they have, in windows of the same size:
/// those of low numbers, which tokenizers give to what is frequent. None where there is no text.
pub fn rare(source: &Source, batches: &[Batch], wanted: &[Wanted]) -> Result<Rare, Failure> {
    let Some(path) = source.tokenizer.as_deref() else { return Ok(Rare::default()) };
    let tokenizer = text::load_tokenizer(path)?;
    let mut counts = vec![0u32; tokenizer.get_vocab_size(true)];
    let mut total = 0usize;
    let ids = batches.iter().flatten().filter(|(name, _)| name.contains("input_ids"));
    for tensor in ids.map(|(_, tensor)| tensor) {
        let wide = tensor.numbers::<i64>().map(<[i64]>::to_vec);
        let narrow = || tensor.numbers::<i32>().map(|v| v.iter().map(|&v| v.into()).collect());
        for token in wide.or_else(narrow).unwrap_or_default() {
            if let Some(count) = usize::try_from(token).ok().and_then(|t| counts.get_mut(t)) {
                *count += 1;
                total += 1;
            }
        }
    }
    let special = tokenizer.get_added_tokens_decoder();
    let absent = |token: &usize| counts[*token] == 0 && !special.contains_key(&(*token as u32));
    let mut tokens: Vec<usize> = (0..counts.len()).filter(absent).take(RARE * total).collect();
    // Neighbours are alike; any fixed order that parts them will do.
    tokens.sort_by_key(|&token| (token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let once = counts.iter().filter(|&&c| c == 1).count();
    let window = |tokens: &[usize]| fill(&[tokens.iter().map(|&t| t as i64).collect()], wanted);
    Ok(Rare {
        batches: tokens.chunks(source.window.max(1)).map(window).collect::<Result<_, Failure>>()?,
        share: once as f64 / total.max(1) as f64,
    })
}

/// The samples of a file: the first axis of every array.
fn samples(path: &Path, wanted: &[Wanted]) -> Result<Vec<Batch>, Failure> {
    let arrays = npz::read(path)?;
    let bad = |what: String| Failure::data(format!("`{}`: {what}", path.display()));
    let mut count = None;
    let mut chosen = Vec::new();
    for want in wanted {
        let Some((_, tensor)) = arrays.iter().find(|(name, _)| *name == want.name) else {
            let have: Vec<&str> = arrays.iter().map(|a| a.0.as_str()).collect();
            return Err(bad(format!("has no array `{}`, only {have:?}", want.name)));
        };
        if tensor.elem() != want.elem || tensor.shape().len() != want.rank || want.rank == 0 {
            return Err(bad(format!(
                "array `{}` is {}{:?}; the model wants {} of rank {}",
                want.name,
                tensor.elem().name(),
                tensor.shape(),
                want.elem.name(),
                want.rank
            )));
        }
        let n = tensor.shape()[0];
        if *count.get_or_insert(n) != n {
            return Err(bad(format!("array `{}` has {n} samples, others {count:?}", want.name)));
        }
        check_finite(tensor).map_err(|what| bad(format!("array `{}`: {what}", want.name)))?;
        chosen.push((want.name.clone(), tensor));
    }
    let n = count.unwrap_or(0);
    if n == 0 {
        return Err(bad("holds no samples".to_owned()));
    }
    (0..n)
        .map(|i| {
            chosen
                .iter()
                .map(|(name, t)| Ok((name.clone(), sample(t, i).map_err(bad)?)))
                .collect::<Result<Batch, Failure>>()
        })
        .collect()
}

fn sample(tensor: &Tensor, index: usize) -> Result<Tensor, String> {
    let mut shape = tensor.shape().to_vec();
    let size = tensor.bytes().len() / shape[0];
    shape[0] = 1;
    npz::filled(tensor.elem(), &shape, &tensor.bytes()[index * size..(index + 1) * size])
}

fn check_finite(tensor: &Tensor) -> Result<(), String> {
    let Some(values) = tensor.numbers::<f32>() else { return Ok(()) };
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(format!("element {at} is {}", values[at])),
        None => Ok(()),
    }
}

/// The inputs of a text model for rows of tokens, padded with zeros to the longest: token ids,
/// attention mask, token types, positions, by the inputs' names.
pub fn fill(rows: &[Vec<i64>], wanted: &[Wanted]) -> Result<Batch, Failure> {
    let length = rows.iter().map(Vec::len).max().unwrap_or(0);
    let value = |name: &str, row: &[i64], i: usize| -> Option<i64> {
        let inside = i < row.len();
        Some(match name {
            n if n.contains("input_ids") => row.get(i).copied().unwrap_or(0),
            n if n.contains("mask") => i64::from(inside),
            n if n.contains("token_type") => 0,
            n if n.contains("position") => i as i64,
            _ => return None,
        })
    };
    let mut batch = Vec::new();
    for want in wanted {
        let mut values = Vec::with_capacity(rows.len() * length);
        for row in rows {
            for i in 0..length {
                values.push(value(&want.name, row, i).ok_or_else(|| unfilled(want))?);
            }
        }
        let bytes: Vec<u8> = match (want.elem, want.rank) {
            (Elem::I64, 2) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            (Elem::I32, 2) => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            _ => return Err(unfilled(want)),
        };
        let tensor = npz::filled(want.elem, &[rows.len(), length], &bytes);
        batch.push((want.name.clone(), tensor.map_err(Failure::internal)?));
    }
    Ok(batch)
}

/// Made-up tokens below 500, the same every time; a stand-in where no data is at hand.
pub fn random(windows: usize, window: usize, wanted: &[Wanted]) -> Result<Vec<Batch>, Failure> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % 500) as i64
    };
    (0..windows).map(|_| fill(&[(0..window).map(|_| token()).collect()], wanted)).collect()
}

fn unfilled(want: &Wanted) -> Failure {
    let (name, elem, rank) = (&want.name, want.elem.name(), want.rank);
    Failure::new(
        Exit::Usage,
        format!("text does not say what input `{name}` ({elem}, rank {rank}) is; use an .npz file"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_inputs_are_filled_by_name_and_padded() {
        let want = |name: &str| Wanted { name: name.into(), elem: Elem::I64, rank: 2 };
        let wanted = [want("input_ids"), want("attention_mask"), want("token_type_ids")];
        let batch = fill(&[vec![5, 6, 7], vec![8]], &wanted).expect("known names");
        assert_eq!(batch[0].1.numbers::<i64>(), Some([5, 6, 7, 8, 0, 0].as_slice()));
        assert_eq!(batch[1].1.numbers::<i64>(), Some([1, 1, 1, 1, 0, 0].as_slice()));
        assert_eq!(fill(&[vec![1]], &[want("pixels")]).expect_err("unknown").exit, Exit::Usage);
    }
}
