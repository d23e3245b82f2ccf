//! Times: rotated buffers beyond L2, CUDA-graph replay, medians, all contenders in turn.

use crate::device::{Buffer, Device};
use crate::gemm::{Gemm, Operands, Parts, Shape};
use crate::random;
use crate::timing::{self, Entry, ROTATION, round};
use crate::vendor::{Kind, Plan, Vendor};
use anyhow::{Context as _, Result};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::CUevent_flags;
use fqc_kernels::cuda::gemm::GemmConfig;
use fqc_kernels::cuda::pack::packed_bytes;
use serde_json::{Value, json};

const TIMING: Option<CUevent_flags> = Some(CUevent_flags::CU_EVENT_DEFAULT);

/// Buffers of one rotation.
struct Set {
    x: Buffer,
    w: Buffer,
    x_half: Buffer,
    w_half: Buffer,
    y: Buffer,
    scale: Buffer,
    bias: Buffer,
    inverse: Buffer,
}

/// What an entry is an instance of: its name without the tile.
fn family(name: &str) -> (&str, &str) {
    let Some((weights, tile)) = name.split_once("a8_") else {
        return (name, "");
    };
    (weights, tile.split_once("_k").map_or("", |(_, rest)| &rest[1..]))
}

pub struct Bench<'a> {
    device: &'a Device,
    vendor: Vendor,
}

impl<'a> Bench<'a> {
    pub fn new(device: &'a Device) -> Result<Self> {
        Ok(Self { device, vendor: Vendor::new(device)? })
    }

    /// Bytes per second that a large copy on the device reads and writes, together.
    pub fn copy_bandwidth(&self) -> Result<f64> {
        const BYTES: usize = 1 << 30;
        let (from, mut to) = (self.device.filled(BYTES, 1)?, self.device.filled(BYTES, 2)?);
        let stream = &self.device.stream;
        let mut times = Vec::new();
        for _ in 0..20 {
            let start = stream.record_event(TIMING)?;
            stream.memcpy_dtod(&from, &mut to)?;
            let end = stream.record_event(TIMING)?;
            times.push(f64::from(start.elapsed_ms(&end)?));
        }
        times.sort_by(f64::total_cmp);
        Ok(2.0 * BYTES as f64 / times[times.len() / 2] * 1e3)
    }

    /// Times the contenders beside cublasLt on one shape; one JSON object an entry.
    pub fn shape(&self, shape: Shape, contenders: &[GemmConfig]) -> Result<Vec<Value>> {
        let sets = self.sets(shape)?;
        let repeats = timing::repeats(expected_ms(shape), sets.len());
        let mut entries = Vec::new();
        for kind in [Kind::S32, Kind::S8, Kind::F16] {
            let plan = self.vendor.plan(kind, shape)?;
            for algorithm in self.best(&plan, &sets, shape)? {
                let launch = |i: usize| self.vendor_gemm(&plan, algorithm, &sets[i % sets.len()]);
                let name = format!("cublasLt {kind:?}");
                entries.push(Entry::new(self.device, name, repeats, launch)?);
            }
        }
        for config in contenders {
            let (mut gemms, mut parts) = (Vec::new(), Vec::new());
            for set in &sets {
                let operands = Operands {
                    x: &set.x,
                    weights: &set.w,
                    scale: &set.scale,
                    bias: &set.bias,
                    residual: &set.x_half,
                    inverse: &set.inverse,
                    below: &set.bias,
                    out: &set.y,
                };
                gemms.push(Gemm::new(self.device, config, shape, &operands)?);
                parts.extend(Parts::new(self.device, config, shape, &operands)?);
            }
            let launch = |i: usize| gemms[i % gemms.len()].launch(self.device);
            entries.push(Entry::new(self.device, config.to_string(), repeats, launch)?);
            if !parts.is_empty() {
                let launch = |i: usize| parts[i % parts.len()].launch(self.device);
                let name = config.to_string().replace("_c1_", "_c1+128x128_");
                entries.push(Entry::new(self.device, name, repeats, launch)?);
            }
        }
        timing::time(self.device, &mut entries)?;
        let best = |entry: &Entry| {
            let alike = entries.iter().filter(|other| family(&other.name) == family(&entry.name));
            alike.map(Entry::median).fold(f64::INFINITY, f64::min) == entry.median()
        };
        Ok(entries.iter().map(|entry| record(shape, entry, best(entry))).collect())
    }

    fn sets(&self, shape: Shape) -> Result<Vec<Set>> {
        let Shape { m, n, k } = shape;
        // INT4 weights are the smallest of what is read.
        let bytes = m * k + n * k / 2;
        let count = ROTATION.div_ceil(bytes).clamp(2, 24);
        let make = |index: usize| -> Result<Set> {
            let size = 1.0 / (5400.0 * (k as f32).sqrt());
            let set = Set {
                x: self.device.filled(m * k, 0)?,
                w: self.device.filled(packed_bytes(n, k, false), 0)?,
                x_half: self.device.filled((m * k).max(m * n) * 2, 0)?,
                w_half: self.device.filled(n * k * 2, 0)?,
                y: self.device.filled(m * n * 4, 0)?,
                scale: self.device.upload(&vec![size; n])?,
                bias: self.device.upload(&vec![0.125f32; n])?,
                inverse: self.device.upload(&vec![30.0f32; n])?,
            };
            let seed = index as u64 * 4;
            random::fill(self.device, &set.x, seed + 1, false)?;
            random::fill(self.device, &set.w, seed + 2, false)?;
            random::fill(self.device, &set.x_half, seed + 3, true)?;
            random::fill(self.device, &set.w_half, seed + 4, true)?;
            Ok(set)
        };
        (0..count).map(make).collect()
    }

    /// Launches of one of cublasLt's algorithms on the sets in turn.
    fn vendor_graph(
        &self,
        plan: &Plan,
        algorithm: &cudarc::cublaslt::sys::cublasLtMatmulAlgo_t,
        sets: &[Set],
        repeats: usize,
    ) -> Result<CudaGraph> {
        let launch = |i: usize| self.vendor_gemm(plan, algorithm, &sets[i % sets.len()]);
        self.device.graph(|| (0..repeats).try_for_each(launch))
    }

    fn vendor_gemm(
        &self,
        plan: &Plan,
        algorithm: &cudarc::cublaslt::sys::cublasLtMatmulAlgo_t,
        set: &Set,
    ) -> Result<()> {
        let (x, w) = match plan.kind() {
            Kind::F16 => (&set.x_half, &set.w_half),
            Kind::S32 | Kind::S8 => (&set.x, &set.w),
        };
        self.vendor.launch(self.device, plan, algorithm, x, w, &set.y)
    }

    /// The two fastest of cublasLt's candidates, by a first short timing.
    fn best<'p>(
        &self,
        plan: &'p Plan,
        sets: &[Set],
        shape: Shape,
    ) -> Result<Vec<&'p cudarc::cublaslt::sys::cublasLtMatmulAlgo_t>> {
        let repeats = ((1.5 / expected_ms(shape)) as usize).clamp(2, 60);
        let mut timed = Vec::new();
        for algorithm in &plan.algorithms {
            // Some candidates refuse the shape only when they are launched.
            if self.vendor_gemm(plan, algorithm, &sets[0]).is_err() {
                continue;
            }
            let graph = self.vendor_graph(plan, algorithm, sets, repeats)?;
            graph.launch()?;
            let times = [self.device.time(&graph)?, self.device.time(&graph)?];
            timed.push((times[0].min(times[1]), algorithm));
        }
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        timed.first().context("cublasLt has no algorithm for this product")?;
        Ok(timed.into_iter().take(2).map(|(_, algorithm)| algorithm).collect())
    }
}

/// About what a product takes at 1200 TOPS, with 8 us for a launch.
fn expected_ms(shape: Shape) -> f64 {
    2.0 * (shape.m * shape.n * shape.k) as f64 / 1.2e15 * 1e3 + 0.008
}

fn record(shape: Shape, entry: &Entry, best: bool) -> Value {
    let median = entry.median();
    let operations = 2.0 * (shape.m * shape.n * shape.k) as f64;
    json!({
        "m": shape.m, "n": shape.n, "k": shape.k,
        "name": entry.name,
        "us": round(median * 1e3, 100.0),
        "tops": round(operations / median / 1e9, 10.0),
        "spread": round(entry.spread(), 1000.0),
        "best": best,
    })
}

/// The fastest of the records whose names `wanted` accepts, in microseconds.
pub fn fastest(records: &[Value], wanted: impl Fn(&str) -> bool) -> Option<f64> {
    let times = records
        .iter()
        .filter(|record| record["name"].as_str().is_some_and(&wanted))
        .filter_map(|record| record["us"].as_f64());
    times.min_by(f64::total_cmp)
}
