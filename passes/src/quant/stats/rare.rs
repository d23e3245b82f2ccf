//! What tokens that the samples lack do to an activation. A few thousand tokens of text hold a small part
//! of a vocabulary, and a single token can carry a channel far beyond all that was seen: in the first
//! layers a value depends on little more than the token itself.

use super::{NotFinite, Peak, insert};

/// The largest values of each channel over rows of such tokens.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rare {
    /// The probability that a token of other data is one of them.
    pub share: f64,
    pub(super) rows: u64,
    pub(super) peaks: Vec<Vec<Peak>>,
}

impl Rare {
    /// The largest values of each channel, largest first, at most [`PEAKS`](super::PEAKS); none if there
    /// were no such rows.
    pub fn peaks(&self) -> &[Vec<Peak>] {
        &self.peaks
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes in rows of `channels` values each.
    pub(super) fn update(&mut self, values: &[f32], channels: usize) -> Result<(), NotFinite> {
        self.peaks.resize(channels, Vec::new());
        for row in values.chunks_exact(channels.max(1)) {
            if let Some(j) = row.iter().position(|v| !v.is_finite()) {
                return Err(NotFinite { value: row[j], at: (self.rows, j) });
            }
            let row_energy = row.iter().map(|v| v * v).sum::<f32>();
            for (peaks, v) in self.peaks.iter_mut().zip(row) {
                insert(peaks, Peak { value: v.abs(), row_energy });
            }
            self.rows += 1;
        }
        Ok(())
    }
}
