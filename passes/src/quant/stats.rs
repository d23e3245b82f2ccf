//! Calibration statistics of one activation: streaming, of bounded size. Per channel the largest
//! values with the size of the row they stood in, and the sign; and a small random sample of whole
//! rows, the same in every run.

mod bytes;
mod rare;

pub use bytes::Fault;
pub use rare::Rare;

use std::collections::BTreeMap;
use std::fmt;

/// Rows that a sample keeps at most.
pub const SAMPLE_ROWS: usize = 256;

/// Largest absolute values that are kept of each channel.
pub const PEAKS: usize = 32;

/// Quantiles of the ratio between two halves.
const RATIOS: usize = 128;

/// What calibration saw of each group's input, by the name of the graph value.
pub type Statistics = BTreeMap<String, ChannelStats>;

/// One of a channel's largest values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Peak {
    /// Absolute value.
    pub value: f32,
    /// Sum of the squares of its row.
    pub row_energy: f32,
}

/// Statistics of one activation with a constant number of channels. At most
/// `channels * (4 * SAMPLE_ROWS + 8 * PEAKS + 12)` bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelStats {
    channels: usize,
    /// Largest absolute value of each channel.
    absmax: Vec<f32>,
    /// The same over every second run.
    halves: [Vec<f32>; 2],
    runs: usize,
    /// Smallest value of all.
    min: f32,
    rows: u64,
    /// Largest values of each channel, largest first.
    peaks: Vec<Vec<Peak>>,
    sample: Vec<f32>,
    /// The places of the sample's rows, in order.
    places: Vec<u64>,
    /// Rows whose hash is below this are kept.
    limit: u64,
    rare: Rare,
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
            halves: [vec![0.0; channels], vec![0.0; channels]],
            runs: 0,
            min: f32::INFINITY,
            rows: 0,
            peaks: vec![Vec::new(); channels],
            sample: Vec::new(),
            places: Vec::new(),
            limit: u64::MAX,
            rare: Rare::default(),
        }
    }

    /// Takes in one run's rows of `channels` values each; stops at the first NaN or infinity.
    pub fn update(&mut self, values: &[f32]) -> Result<(), NotFinite> {
        let mut half = std::mem::take(&mut self.halves[self.runs % 2]);
        for row in values.chunks_exact(self.channels.max(1)) {
            if let Some(j) = row.iter().position(|v| !v.is_finite()) {
                return Err(NotFinite { value: row[j], at: (self.rows, j) });
            }
            let row_energy = row.iter().map(|v| v * v).sum::<f32>();
            for (j, &v) in row.iter().enumerate() {
                half[j] = half[j].max(v.abs());
                self.absmax[j] = self.absmax[j].max(v.abs());
                self.min = self.min.min(v);
                insert(&mut self.peaks[j], Peak { value: v.abs(), row_energy });
            }
            if hash(self.rows) < self.limit {
                self.keep(row);
            }
            self.rows += 1;
        }
        self.halves[self.runs % 2] = half;
        self.runs += 1;
        Ok(())
    }

    /// Takes in one run's rows of tokens that the samples lack, of which other data has a share.
    pub fn update_rare(&mut self, values: &[f32], share: f64) -> Result<(), NotFinite> {
        self.rare.share = share;
        self.rare.update(values, self.channels)
    }

    /// What those tokens did.
    pub fn rare(&self) -> &Rare {
        &self.rare
    }

    /// Adds a row to the sample; a full sample first drops about half of its rows.
    fn keep(&mut self, row: &[f32]) {
        while self.places.len() >= SAMPLE_ROWS {
            self.limit /= 2;
            let (limit, places) = (self.limit, &self.places);
            let rows = self.sample.chunks_exact(self.channels).zip(places);
            let kept = rows.filter(|(_, place)| hash(**place) < limit);
            self.sample = kept.flat_map(|(row, _)| row).copied().collect();
            self.places.retain(|place| hash(*place) < limit);
        }
        if hash(self.rows) < self.limit {
            self.sample.extend_from_slice(row);
            self.places.push(self.rows);
        }
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Largest absolute value of each channel.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The largest values of each channel, largest first, at most [`PEAKS`].
    pub fn peaks(&self) -> &[Vec<Peak>] {
        &self.peaks
    }

    /// How far unseen data may go beyond the largest value seen: the larger of the two halves' maxima
    /// over the smaller, at evenly spaced quantiles over the channels. About one row in [`rows`](Self::rows)
    /// sets a new record for a channel.
    pub fn record_ratios(&self) -> Vec<f32> {
        let both = self.halves[0].iter().zip(&self.halves[1]);
        let mut ratios: Vec<f32> = both
            .filter(|(a, b)| **a > 0.0 && **b > 0.0)
            .map(|(a, b)| a.max(*b) / a.min(*b))
            .collect();
        ratios.sort_by(f32::total_cmp);
        let quantile = |i: usize| ratios[(2 * i + 1) * ratios.len() / (2 * RATIOS)];
        if ratios.is_empty() { Vec::new() } else { (0..RATIOS).map(quantile).collect() }
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
    pub fn sample(&self) -> impl Iterator<Item = &[f32]> + Clone {
        self.sample.chunks_exact(self.channels.max(1))
    }
}

/// Keeps the largest, in order.
fn insert(peaks: &mut Vec<Peak>, peak: Peak) {
    if peaks.len() == PEAKS {
        if peak.value <= peaks[PEAKS - 1].value {
            return;
        }
        peaks.pop();
    }
    let at = peaks.partition_point(|p| p.value >= peak.value);
    peaks.insert(at, peak);
}

/// SplitMix64's output function (Steele, Lea and Flood 2014).
fn hash(place: u64) -> u64 {
    let mut z = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_stays_bounded_and_even_and_the_peaks_exact() {
        let mut stats = ChannelStats::new(3);
        for i in 0..10_000 {
            let v = i as f32;
            stats.update(&[v, -v, 1.0]).expect("finite");
        }
        assert_eq!(stats.absmax(), [9999.0, 9999.0, 1.0]);
        assert!(!stats.non_negative());
        let peaks: Vec<f32> = stats.peaks()[1].iter().map(|p| p.value).collect();
        assert_eq!(peaks, (0..PEAKS).map(|i| 9999.0 - i as f32).collect::<Vec<_>>());
        let rows = stats.sample().count();
        assert!(rows > SAMPLE_ROWS / 4 && rows <= SAMPLE_ROWS, "{rows} rows kept");
        let mean = stats.sample().map(|r| r[0]).sum::<f32>() / rows as f32;
        assert!((4000.0..6000.0).contains(&mean), "evenly spread: mean {mean}");
    }

    #[test]
    fn a_nan_is_refused_with_its_place() {
        let mut stats = ChannelStats::new(2);
        stats.update(&[1.0, 2.0]).expect("finite");
        let error = stats.update(&[1.0, f32::NAN]).expect_err("not finite");
        assert_eq!(error.at, (1, 1));
    }
}
