//! How things are timed: CUDA-graph replay, warmed up, medians, all contenders in turn.

use crate::device::Device;
use anyhow::Result;
use cudarc::driver::CudaGraph;

/// Bytes that one round through the buffers reads at least: more than twice any L2.
pub const ROTATION: usize = 160 << 20;
/// Milliseconds of one replay, about.
const REPLAY_MS: f64 = 8.0;
const ROUNDS: usize = 2;
/// Milliseconds of replays before the timed ones: under its power limit a GPU takes that long to
/// settle on the clock that a kernel allows.
const WARM_MS: f64 = 100.0;
const TIMED: usize = 5;

/// One thing that is timed.
pub struct Entry {
    pub name: String,
    graph: CudaGraph,
    repeats: usize,
    times: Vec<f64>,
}

impl Entry {
    /// `work(i)` puts the i-th repetition on the stream.
    pub fn new(
        device: &Device,
        name: String,
        repeats: usize,
        work: impl Fn(usize) -> Result<()>,
    ) -> Result<Self> {
        let graph = device.graph(|| (0..repeats).try_for_each(work))?;
        Ok(Self { name, graph, repeats, times: Vec::new() })
    }

    /// Milliseconds of one repetition.
    pub fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    /// The slowest time over the quickest.
    pub fn spread(&self) -> f64 {
        let slowest = self.times.iter().copied().fold(0.0, f64::max);
        slowest / self.times.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Repetitions of a replay, of something that takes about so many milliseconds; a multiple of the
/// number of buffers.
pub fn repeats(expected_ms: f64, sets: usize) -> usize {
    ((REPLAY_MS / expected_ms) as usize).clamp(1, 400).div_ceil(sets) * sets
}

/// Times all of them, forth and back, so that nobody always follows the same neighbour.
pub fn time(device: &Device, entries: &mut [Entry]) -> Result<()> {
    for _ in 0..ROUNDS {
        entries.reverse();
        for entry in &mut *entries {
            let mut warm = 0.0;
            while warm < WARM_MS {
                warm += device.time(&entry.graph)?;
            }
            for _ in 0..TIMED {
                entry.times.push(device.time(&entry.graph)? / entry.repeats as f64);
            }
        }
    }
    Ok(())
}

/// Rounds to so many steps a unit.
pub fn round(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

/// Whether a name contains every one of some texts with commas between.
pub fn wanted(name: &str, only: &str) -> bool {
    only.split(',').all(|text| name.contains(text))
}
