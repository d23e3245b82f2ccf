//! Whole decoder layers with random weights, made of our kernels, every activation flattened with a
//! tail of 5 %. `torch_baseline.py` times the same layers by PyTorch.

use crate::attention::{self, AttentionSm90, Strides};
use crate::device::{Buffer, Device, address};
use crate::gemm::{self, Gemm};
use crate::quantize::{self, Quantize, Rows};
use crate::random::{self, Random};
use crate::rotate::{self, Rotate};
use crate::timing::{self, Entry, round};
use anyhow::{Result, anyhow};
use fqc_kernels::cuda::attention_sm90::AttentionSm90Config;
use fqc_kernels::cuda::gemm::{Activation, GemmConfig, Output, Weights};
use fqc_kernels::cuda::pack::packed_bytes;
use fqc_kernels::cuda::quantize::{Codes, Combine, Element, Norm, QuantizeConfig, pack_tail};
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// LayerNorm, biases, ReLU.
    Opt,
    /// RMSNorm, rotary positions, SiLU gate.
    Llama,
}

#[derive(Clone, Copy)]
struct Layer {
    name: &'static str,
    kind: Kind,
    width: usize,
    heads: usize,
    inner: usize,
}

const LAYERS: [Layer; 3] = [
    Layer { name: "OPT-6.7B", kind: Kind::Opt, width: 4096, heads: 32, inner: 16384 },
    Layer { name: "OPT-66B", kind: Kind::Opt, width: 9216, heads: 72, inner: 36864 },
    Layer { name: "Llama-7B", kind: Kind::Llama, width: 4096, heads: 32, inner: 11008 },
];

/// (batch, length).
const SHAPES: [(usize, usize); 3] = [(1, 2048), (8, 256), (4, 2048)];

/// Extra channels of a flattened activation.
const TAIL: f64 = 0.05;

/// Channels after flattening.
fn padded(width: usize) -> usize {
    (width + (width as f64 * TAIL) as usize).next_multiple_of(64)
}

const GEMM: GemmConfig = GemmConfig {
    weights: Weights::Int8,
    blocks: 1,
    tokens: 256,
    stages: 8,
    cluster: 2,
    split: 1,
    output: Output::F16,
    activation: Activation::None,
    bias: false,
    residual: false,
    unsigned: false,
    digits: false,
};

const QUANTIZE: QuantizeConfig = QuantizeConfig {
    threads: 256,
    chunks: 2,
    element: Element::F16,
    norm: Norm::None,
    combine: Combine::None,
    activation: Activation::None,
    sum: false,
    float: false,
    tail: true,
    codes: Codes { bits: 8, signed: true, packed: false },
};

const ATTENTION: AttentionSm90Config =
    AttentionSm90Config { dim: 128, stages: 2, causal: true, output: Output::F16 };

/// The four products of a layer: (k, n, what its epilogue does).
fn products(layer: Layer) -> [(usize, usize, GemmConfig); 4] {
    let Layer { kind, width, inner, .. } = layer;
    let (plain, up) = match kind {
        Kind::Opt => {
            let plain = GemmConfig { bias: true, ..GEMM };
            let (output, activation) = (Output::U8, Activation::Relu);
            (plain, (padded(inner), GemmConfig { output, activation, digits: true, ..plain }))
        }
        Kind::Llama => (GEMM, (2 * inner, GEMM)),
    };
    let residual = GemmConfig { residual: true, ..plain };
    let unsigned = kind == Kind::Opt;
    [
        (padded(width), 3 * width, plain),
        (padded(width), width, residual),
        (padded(width), up.0, up.1),
        (padded(inner), width, GemmConfig { unsigned, ..residual }),
    ]
}

/// Tiles that are tried for each product, as (blocks, tokens, cluster).
const TILES: [(u32, u32, u32); 4] = [(1, 256, 2), (2, 128, 2), (1, 256, 1), (1, 128, 1)];

fn candidates(config: GemmConfig) -> Vec<GemmConfig> {
    let tile = |(blocks, tokens, cluster)| {
        GemmConfig { blocks, tokens, cluster, ..config }.with_stages_up_to(8)
    };
    TILES.map(tile).into_iter().filter(|config| config.fault().is_none()).collect()
}

/// Every kernel that the layers use, by name.
pub fn all() -> Vec<(String, String)> {
    let mut all = vec![
        (ATTENTION.to_string(), ATTENTION.source()),
        (rotate::F16.to_string(), rotate::F16.source()),
    ];
    for layer in LAYERS {
        for weights in [Weights::Int8, Weights::Int4] {
            for (_, _, config) in products(layer) {
                let candidates = candidates(GemmConfig { weights, ..config });
                all.extend(candidates.iter().map(|c| (c.to_string(), c.source())));
            }
        }
        let used = if layer.kind == Kind::Llama { 3 } else { 2 };
        let used = quantizers(layer).into_iter().take(used);
        all.extend(used.map(|c| (c.to_string(), c.source())));
    }
    all
}

/// What quantises the normalised rows, the attention's result and, of Llama, the gated ones.
fn quantizers(layer: Layer) -> [QuantizeConfig; 3] {
    let norm = if layer.kind == Kind::Opt { Norm::Layer } else { Norm::Rms };
    let gate =
        QuantizeConfig { activation: Activation::Silu, combine: Combine::Multiply, ..QUANTIZE };
    [
        QuantizeConfig { norm, ..QUANTIZE }.for_width(layer.width),
        QUANTIZE.for_width(layer.width),
        gate.for_width(layer.inner),
    ]
}

/// A packed weight with its vectors.
struct Weight {
    packed: Buffer,
    scale: Buffer,
    bias: Buffer,
    inverse: Buffer,
    below: Buffer,
}

impl Weight {
    fn new(
        device: &Device,
        k: usize,
        n: usize,
        base: usize,
        int4: bool,
        seed: u64,
    ) -> Result<Self> {
        let packed = device.filled(packed_bytes(n, k, int4), 0)?;
        random::fill(device, &packed, seed, false)?;
        let largest = if int4 { 8.0 } else { 128.0 };
        // Uniform codes on both sides: results of about the size 1.
        let size = 3.0 / (128.0 * largest * (k as f32).sqrt());
        let digit = |channel: usize| if channel < base { 0.0 } else { 255.0 };
        Ok(Self {
            packed,
            scale: device.upload(&vec![size; n])?,
            bias: device.upload(&Random::new(seed + 9).floats(n, -0.1, 0.1))?,
            inverse: device.upload(&vec![80.0f32; n])?,
            below: device.upload(&(0..n).map(digit).collect::<Vec<_>>())?,
        })
    }
}

/// A row quantiser's vectors.
struct Columns {
    gamma: Buffer,
    beta: Buffer,
    inverse: Buffer,
    tail: Buffer,
}

impl Columns {
    fn new(device: &Device, width: usize) -> Result<Self> {
        let padded = padded(width);
        let tail: Vec<(u32, u16)> =
            (0..(width as f64 * TAIL) as u32).map(|i| (i * 20 + 3, 2)).collect();
        let tail = pack_tail(&tail, width, padded, QUANTIZE.codes).map_err(|e| anyhow!("{e}"))?;
        Ok(Self {
            gamma: device.upload(&vec![1.0f32; width])?,
            beta: device.upload(&vec![0.0f32; width])?,
            inverse: device.upload(&vec![45.0f32; width])?,
            tail: device.upload(&tail)?,
        })
    }
}

/// One step of a layer.
enum Step {
    Gemm(Box<Gemm>),
    Quantize(Quantize),
    Attention(Box<AttentionSm90>),
    Rotate(Rotate),
}

impl Step {
    fn launch(&self, device: &Device) -> Result<()> {
        match self {
            Self::Gemm(step) => step.launch(device),
            Self::Quantize(step) => step.launch(device),
            Self::Attention(step) => step.launch(device),
            Self::Rotate(step) => step.launch(device),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Gemm(_) => "gemm",
            Self::Quantize(_) => "quantize",
            Self::Attention(_) => "attention",
            Self::Rotate(_) => "rotate",
        }
    }
}

/// Times every layer at every shape, with INT8 and with INT4 weights.
pub fn bench(device: &Device, only: &str) -> Result<Vec<Value>> {
    let mut records = Vec::new();
    for layer in LAYERS.into_iter().filter(|layer| timing::wanted(layer.name, only)) {
        for (batch, length) in SHAPES {
            let mut bits = Vec::new();
            for weights in [Weights::Int8, Weights::Int4] {
                let record = bench_one(device, layer, batch, length, weights)?;
                println!("{record}");
                bits.push(record.clone());
                records.push(record);
            }
        }
    }
    Ok(records)
}

fn bench_one(
    device: &Device,
    layer: Layer,
    batch: usize,
    length: usize,
    weights: Weights,
) -> Result<Value> {
    let Layer { kind, width, heads, inner, .. } = layer;
    let m = batch * length;
    let int4 = weights == Weights::Int4;
    let products = products(layer).map(|(k, n, c)| (k, n, GemmConfig { weights, ..c }));
    let own: Vec<Weight> = products
        .iter()
        .zip(0..)
        .map(|(&(k, n, config), seed)| {
            let base = if config.digits { inner } else { n };
            Weight::new(device, k, n, base, int4, seed * 31)
        })
        .collect::<Result<_>>()?;
    let columns = [Columns::new(device, width)?, Columns::new(device, inner)?];
    let angles = Random::new(5).floats(length * width / heads / 2, 0.0, 6.0);
    let table = [
        device.upload(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>())?,
        device.upload(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>())?,
    ];
    let empty = device.filled(16, 0)?;
    let halves = |columns: usize| device.filled(m * columns * 2, 0);
    let (x, middle, out) = (halves(width)?, halves(width)?, halves(width)?);
    random::fill(device, &x, 77, true)?;
    let (qkv, attended) = (halves(3 * width)?, halves(width)?);
    let gated = halves(if kind == Kind::Llama { 2 * inner } else { 8 })?;
    let codes = device.filled(m * padded(width), 0)?;
    let inner_codes = device.filled(m * padded(inner), 0)?;

    let product = |i: usize, input: &Buffer, residual: &Buffer, output: &Buffer| -> Result<Step> {
        let (k, n, config) = products[i];
        let operands = gemm::Operands {
            x: input,
            weights: &own[i].packed,
            scale: &own[i].scale,
            bias: &own[i].bias,
            residual,
            inverse: &own[i].inverse,
            below: &own[i].below,
            out: output,
        };
        let shape = gemm::Shape { m, n, k };
        fastest(device, &candidates(config), shape, &operands)
            .map(|gemm| Step::Gemm(Box::new(gemm)))
    };
    let quantizers = quantizers(layer);
    let quantise = |config: &QuantizeConfig, x: &Buffer, codes: &Buffer| -> Result<Step> {
        let operands = quantize_operands(&columns[0], x, &empty, codes, 0);
        let rows = Rows { rows: m, width, pitch: width, padded: padded(width) };
        Ok(Step::Quantize(Quantize::new(device, config, rows, &operands)?))
    };

    let mut steps = vec![quantise(&quantizers[0], &x, &codes)?, product(0, &codes, &empty, &qkv)?];
    let dim = width / heads;
    if kind == Kind::Llama {
        let shape = rotate::Shape { rows: m, heads: 2 * heads, dim, pitch: 3 * width, length };
        steps.push(Step::Rotate(Rotate::new(device, &qkv, [&table[0], &table[1]], shape)?));
    }
    let start = address(&qkv, &device.stream);
    let part = |i: usize| start + (i * width * 2) as u64;
    let strides =
        |row: usize| Strides { batch: (length * row) as i64, head: dim as i64, row: row as i64 };
    let operands = attention::Operands {
        addresses: [part(0), part(1), part(2), address(&attended, &device.stream)],
        strides: [strides(3 * width), strides(3 * width), strides(3 * width), strides(width)],
        mask: None,
        inverse: None,
        partial: &empty,
    };
    let shape = attention::Shape { batch, heads, group: 1, queries: length, keys: length, dim };
    steps
        .push(Step::Attention(Box::new(AttentionSm90::new(device, &ATTENTION, shape, &operands)?)));
    steps.push(quantise(&quantizers[1], &attended, &codes)?);
    steps.push(product(1, &codes, &x, &middle)?);
    steps.push(quantise(&quantizers[0], &middle, &codes)?);
    if kind == Kind::Llama {
        steps.push(product(2, &codes, &empty, &gated)?);
        let operands = quantize_operands(&columns[1], &gated, &gated, &inner_codes, inner);
        let rows = Rows { rows: m, width: inner, pitch: 2 * inner, padded: padded(inner) };
        steps.push(Step::Quantize(Quantize::new(device, &quantizers[2], rows, &operands)?));
    } else {
        steps.push(product(2, &codes, &empty, &inner_codes)?);
    }
    steps.push(product(3, &inner_codes, &middle, &out)?);

    let repeats = 4;
    let whole = |_: usize| steps.iter().try_for_each(|step| step.launch(device));
    let mut entries = vec![Entry::new(device, "layer".into(), repeats, whole)?];
    for step in &steps {
        entries.push(Entry::new(device, step.name().into(), repeats, |_| step.launch(device))?);
    }
    timing::time(device, &mut entries)?;
    let parts: Vec<(String, f64)> = entries[1..]
        .iter()
        .map(|entry| (entry.name.clone(), round(entry.median() * 1e3, 10.0)))
        .collect();
    let bytes: usize = own
        .iter()
        .map(|w| w.packed.len() + w.scale.len() + w.bias.len())
        .chain([width * 4 * 4])
        .sum();
    let values = device.download(&out)?;
    let finite = values.chunks_exact(2).all(|b| half::f16::from_le_bytes([b[0], b[1]]).is_finite());
    Ok(json!({
        "layer": layer.name, "batch": batch, "length": length,
        "name": if int4 { "INT4 weights" } else { "INT8 weights" },
        "us": round(entries[0].median() * 1e3, 10.0), "parts": parts, "weight_bytes": bytes,
        "finite": finite,
    }))
}

fn quantize_operands<'a>(
    columns: &'a Columns,
    x: &'a Buffer,
    other: &'a Buffer,
    codes: &'a Buffer,
    other_at: usize,
) -> quantize::Operands<'a> {
    quantize::Operands {
        x,
        other,
        other_at,
        sum: other,
        normal: other,
        codes,
        gamma: &columns.gamma,
        beta: &columns.beta,
        inverse: &columns.inverse,
        tail: &columns.tail,
    }
}

/// The fastest of the candidates, by a short timing.
fn fastest(
    device: &Device,
    candidates: &[GemmConfig],
    shape: gemm::Shape,
    operands: &gemm::Operands,
) -> Result<Gemm> {
    let mut best: Option<(f64, Gemm)> = None;
    for config in candidates {
        let gemm = Gemm::new(device, config, shape, operands)?;
        let graph = device.graph(|| (0..8).try_for_each(|_| gemm.launch(device)))?;
        graph.launch()?;
        let mut times = [device.time(&graph)?, device.time(&graph)?, device.time(&graph)?];
        times.sort_by(f64::total_cmp);
        if best.as_ref().is_none_or(|(time, _)| times[1] < *time) {
            best = Some((times[1], gemm));
        }
    }
    best.map(|(_, gemm)| gemm).ok_or_else(|| anyhow!("no candidate for {shape:?}"))
}
