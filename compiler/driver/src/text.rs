//! Text as windows of tokens: single line breaks joined, no special tokens, consecutive windows from a
//! share of the text on.

use crate::exit::Failure;
use std::path::Path;
use tokenizers::Tokenizer;

/// Windows of one length to evaluate on.
#[derive(Clone, PartialEq, Debug)]
pub struct Text {
    pub windows: Vec<Vec<i64>>,
    /// Tokens that the tokenizer knows.
    pub vocabulary: usize,
}

/// The tokenizer in a `tokenizer.json`, without truncation or padding.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer, Failure> {
    std::fs::metadata(path).map_err(|e| Failure::io("read", path, &e))?;
    let mut tokenizer = Tokenizer::from_file(path)
        .map_err(|e| Failure::data(format!("`{}` is no tokenizer: {e}", path.display())))?;
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|e| Failure::data(format!("`{}`: {e}", path.display())))?;
    Ok(tokenizer)
}

/// The special tokens that a tokenizer puts round a text, such as `[CLS]` and `[SEP]`. Their
/// activations can be far from those of words, so every second calibration window has them; the
/// others are bare text, as in the middle of a long one.
pub struct Frame {
    before: Vec<i64>,
    after: Vec<i64>,
}

impl Frame {
    pub fn of(tokenizer: &Tokenizer) -> Result<Frame, Failure> {
        let ids = |special| {
            let encoding = tokenizer.encode("a", special);
            encoding.map(|e| e.get_ids().iter().map(|&id| i64::from(id)).collect::<Vec<i64>>())
        };
        let bad = |e| Failure::data(format!("the tokenizer cannot encode `a`: {e}"));
        let (bare, framed) = (ids(false).map_err(bad)?, ids(true).map_err(bad)?);
        let found = framed.windows(bare.len().max(1)).position(|w| w == bare);
        Ok(match found {
            Some(at) => {
                Frame { before: framed[..at].to_vec(), after: framed[at + bare.len()..].to_vec() }
            }
            None => Frame { before: Vec::new(), after: Vec::new() },
        })
    }

    /// The window with its ends replaced by the special tokens; as it is if it is too short.
    pub fn put(&self, mut window: Vec<i64>) -> Vec<i64> {
        let (size, a, b) = (window.len(), self.before.len(), self.after.len());
        if size > a + b {
            window[..a].copy_from_slice(&self.before);
            window[size - b..].copy_from_slice(&self.after);
        }
        window
    }
}

/// The tokens of a text file, single line breaks joined into spaces, no special tokens.
fn tokens(tokenizer: &Tokenizer, path: &Path) -> Result<Vec<i64>, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Failure::data(format!("`{}` is not UTF-8: {e}", path.display())))?;
    let encoding = tokenizer
        .encode(join_lines(&text), false)
        .map_err(|e| Failure::data(format!("`{}`: {e}", path.display())))?;
    Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
}

/// Replaces every line break that stands alone by a space.
fn join_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let chars: Vec<char> = text.chars().collect();
    for (i, &c) in chars.iter().enumerate() {
        let alone = c == '\n'
            && (i == 0 || chars[i - 1] != '\n')
            && chars.get(i + 1).is_none_or(|n| *n != '\n');
        out.push(if alone { ' ' } else { c });
    }
    out
}

/// Consecutive windows of `size` tokens of a text file, from a share of its tokens on.
pub fn windows(
    tokenizer: &Tokenizer,
    path: &Path,
    size: usize,
    count: usize,
    start: f64,
) -> Result<Vec<Vec<i64>>, Failure> {
    let tokens = tokens(tokenizer, path)?;
    let first = (tokens.len() as f64 * start) as usize;
    let rest = tokens.get(first..).unwrap_or_default();
    let all: Vec<Vec<i64>> =
        rest.chunks_exact(size.max(1)).take(count).map(<[i64]>::to_vec).collect();
    if all.len() < count {
        let (have, path) = (all.len(), path.display());
        return Err(Failure::data(format!(
            "`{path}` has {have} windows of {size} tokens from {:.0} % on, {count} are wanted",
            start * 100.0
        )));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_line_breaks_are_joined() {
        assert_eq!(join_lines("a\nb\n\nc\n"), "a b\n\nc ");
    }
}
