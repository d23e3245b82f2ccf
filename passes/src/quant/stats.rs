//! Calibration statistics of one activation: streaming, of bounded size. Per channel the largest
//! absolute value and the sign, and a small deterministic sample of whole rows.

mod bytes;

pub use bytes::Fault;

use std::collections::BTreeMap;
use std::fmt;

/// Rows that a sample keeps at most.
pub const SAMPLE_ROWS: usize = 128;

/// What calibration saw of each group's input, by the name of the graph value.
pub type Statistics = BTreeMap<String, ChannelStats>;

/// Statistics of one activation with a constant number of channels. At most
/// `4 * channels * (SAMPLE_ROWS + 2)` bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelStats {
    channels: usize,
    /// Largest absolute value of each channel.
    absmax: Vec<f32>,
    /// Smallest value of all.
    min: f32,
    rows: u64,
    sample: Vec<f32>,
    /// One row in so many is kept.
    stride: u64,
}

/// A value that calibration cannot use.
#[derive(Clone, PartialEq, Debug)]
pub struct NotFinite {
    pub value: f32,
    /// Row since the first batch, and channel.
    pub at: (u64, usize),
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at row {}, channel {}", self.value, self.at.0, self.at.1)
    }
}

impl std::error::Error for NotFinite {}

impl ChannelStats {
    pub fn new(channels: usize) -> Self {
        ChannelStats {
            channels,
            absmax: vec![0.0; channels],
            min: f32::INFINITY,
            rows: 0,
            sample: Vec::new(),
            stride: 1,
        }
    }

    /// Takes in rows of `channels` values each; stops at the first NaN or infinity.
    pub fn update(&mut self, values: &[f32]) -> Result<(), NotFinite> {
        for row in values.chunks_exact(self.channels.max(1)) {
            for (j, &v) in row.iter().enumerate() {
                if !v.is_finite() {
                    return Err(NotFinite { value: v, at: (self.rows, j) });
                }
                self.absmax[j] = self.absmax[j].max(v.abs());
                self.min = self.min.min(v);
            }
            if self.rows.is_multiple_of(self.stride) {
                self.keep(row);
            }
            self.rows += 1;
        }
        Ok(())
    }

    /// Adds a row to the sample; a full sample first drops every second row.
    fn keep(&mut self, row: &[f32]) {
        if self.sample.len() >= SAMPLE_ROWS * self.channels {
            let thinned: Vec<f32> =
                self.sample.chunks_exact(self.channels).step_by(2).flatten().copied().collect();
            self.sample = thinned;
            self.stride *= 2;
            if !self.rows.is_multiple_of(self.stride) {
                return;
            }
        }
        self.sample.extend_from_slice(row);
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Largest absolute value of each channel.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Whether no value was negative.
    pub fn non_negative(&self) -> bool {
        self.rows > 0 && self.min >= 0.0
    }

    /// Rows seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The kept rows.
    pub fn sample(&self) -> impl Iterator<Item = &[f32]> {
        self.sample.chunks_exact(self.channels.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_stays_bounded_and_the_maxima_exact() {
        let mut stats = ChannelStats::new(3);
        for i in 0..10_000 {
            let v = i as f32;
            stats.update(&[v, -v, 1.0]).expect("finite");
        }
        assert_eq!(stats.absmax(), [9999.0, 9999.0, 1.0]);
        assert!(!stats.non_negative());
        let rows = stats.sample().count();
        assert!(rows > SAMPLE_ROWS / 2 && rows <= SAMPLE_ROWS, "{rows} rows kept");
        let steps: Vec<f32> = stats
            .sample()
            .map(|r| r[0])
            .collect::<Vec<_>>()
            .windows(2)
            .map(|w| w[1] - w[0])
            .collect();
        assert!(steps.iter().all(|s| *s == steps[0]), "evenly spaced");
    }

    #[test]
    fn a_nan_is_refused_with_its_place() {
        let mut stats = ChannelStats::new(2);
        stats.update(&[1.0, 2.0]).expect("finite");
        let error = stats.update(&[1.0, f32::NAN]).expect_err("not finite");
        assert_eq!(error.at, (1, 1));
    }
}
