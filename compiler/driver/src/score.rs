//! What a language model's logits say about a text, and how far two models' logits are apart.
//!
//! A row of logits `z` means the distribution `p_i = exp(z_i) / Σ exp(z)`. The loss of a window is
//! `-log p(next token)` at every position but the last, perplexity `exp` of the mean loss. The
//! divergence of `q` from the reference `p` is `Σ p_i (log p_i - log q_i)`, at every position. All in
//! nats and in f64.

use serde::Serialize;

/// Scores of a language model over windows of text.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Language {
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Mean loss of a token, in nats.
    pub loss: f64,
    pub perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// The distance of a language model from its reference.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Against {
    /// The reference's own perplexity.
    pub perplexity: f64,
    /// Positions that were compared.
    pub positions: u64,
    /// Mean divergence from the reference, in nats.
    pub kl: f64,
    /// Share of positions where both hold the same token for the likeliest.
    pub top1: f64,
}

/// Sums over windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    tokens: u64,
    loss: f64,
    reference_loss: f64,
    positions: u64,
    kl: f64,
    agreements: u64,
}

/// A logit that is NaN or positive infinity.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NotANumber {
    pub position: usize,
    pub value: f32,
}

impl Sums {
    /// Takes in one window: its tokens, and logits \[tokens, vocabulary\] of the model and of its
    /// reference.
    ///
    /// # Panics
    /// If the logits are not `tokens.len()` rows, or a token is not below the vocabulary's size.
    pub fn add(
        &mut self,
        tokens: &[usize],
        logits: &[f32],
        reference: Option<&[f32]>,
    ) -> Result<(), NotANumber> {
        let width = logits.len() / tokens.len().max(1);
        assert_eq!(logits.len(), width * tokens.len(), "a row of logits for each token");
        for (position, row) in logits.chunks_exact(width.max(1)).enumerate() {
            let next = tokens.get(position + 1);
            let sum = log_sum(row).map_err(|value| NotANumber { position, value })?;
            if let Some(&next) = next {
                self.tokens += 1;
                self.loss += sum - f64::from(row[next]);
            }
            let Some(reference) = reference else { continue };
            let want = &reference[position * width..(position + 1) * width];
            let want_sum = log_sum(want).map_err(|value| NotANumber { position, value })?;
            if let Some(&next) = next {
                self.reference_loss += want_sum - f64::from(want[next]);
            }
            self.positions += 1;
            self.kl += divergence(want, want_sum, row, sum);
            self.agreements += u64::from(largest(want) == largest(row));
        }
        Ok(())
    }

    /// The means so far.
    pub fn scores(&self) -> Language {
        let tokens = self.tokens.max(1) as f64;
        let positions = self.positions.max(1) as f64;
        Language {
            tokens: self.tokens,
            loss: self.loss / tokens,
            perplexity: (self.loss / tokens).exp(),
            against: (self.positions > 0).then(|| Against {
                perplexity: (self.reference_loss / tokens).exp(),
                positions: self.positions,
                kl: self.kl / positions,
                top1: self.agreements as f64 / positions,
            }),
        }
    }
}

/// `log Σ exp(z)`; the value itself if one is NaN or positive infinity. Negative infinity is a token
/// that cannot be.
fn log_sum(row: &[f32]) -> Result<f64, f32> {
    if let Some(&bad) = row.iter().find(|v| v.is_nan() || **v == f32::INFINITY) {
        return Err(bad);
    }
    let max = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
    Ok(max + row.iter().map(|v| (f64::from(*v) - max).exp()).sum::<f64>().ln())
}

/// `Σ p (log p - log q)` of two rows with their `log_sum`s.
fn divergence(p: &[f32], p_sum: f64, q: &[f32], q_sum: f64) -> f64 {
    let term = |(&p, &q): (&f32, &f32)| {
        let log_p = f64::from(p) - p_sum;
        let share = log_p.exp();
        if share > 0.0 { share * (log_p - (f64::from(q) - q_sum)) } else { 0.0 }
    };
    p.iter().zip(q).map(term).sum()
}

/// Index of the first of the largest values.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in row.iter().enumerate() {
        if *v > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_logits_have_the_vocabulary_as_perplexity() {
        let mut sums = Sums::default();
        sums.add(&[0, 3, 1], &[2.5; 12], Some(&[-1.0; 12])).expect("numbers");
        let scores = sums.scores();
        let against = scores.against.expect("a reference");
        assert_eq!((scores.tokens, against.positions), (2, 3));
        assert!((scores.perplexity - 4.0).abs() < 1e-12);
        assert!((against.perplexity - 4.0).abs() < 1e-12);
        assert!(against.kl.abs() < 1e-12 && against.top1 == 1.0);
    }

    #[test]
    fn loss_and_divergence_of_two_known_distributions() {
        // p = (3/4, 1/4), q = (1/4, 3/4), shifted by constants that must not matter.
        let (three, one) = (3f32.ln(), 0f32);
        let (p, q) = ([three + 70.0, one + 70.0], [one - 300.0, three - 300.0]);
        let mut sums = Sums::default();
        sums.add(&[1, 0], &[q, q].concat(), Some(&[p, p].concat())).expect("numbers");
        let scores = sums.scores();
        let against = scores.against.expect("a reference");
        assert!((scores.loss - 4f64.ln()).abs() < 1e-4, "{scores:?}");
        assert!((against.perplexity - 4.0 / 3.0).abs() < 1e-4);
        assert!((against.kl - 0.5 * 3f64.ln()).abs() < 1e-4, "{against:?}");
        assert_eq!(against.top1, 0.0);
    }

    #[test]
    fn impossible_tokens_are_fine_and_nan_is_not() {
        let none = f32::NEG_INFINITY;
        let mut sums = Sums::default();
        sums.add(&[0, 0], &[0.0, none, 0.0, none], Some(&[1.0, none, 1.0, none])).expect("fine");
        assert!(sums.scores().loss.abs() < 1e-12);
        assert!(sums.scores().against.expect("a reference").kl.abs() < 1e-12);
        let bad = sums.add(&[0, 0], &[0.0, 0.0, f32::NAN, 0.0], None).expect_err("NaN");
        assert_eq!(bad.position, 1);
        assert!(sums.add(&[0], &[0.0, f32::INFINITY], None).is_err());
    }
}
