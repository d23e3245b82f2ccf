//! OPT-shaped language models (Zhang et al. 2022) with random weights, of any size: pre-norm blocks,
//! learned positions, ReLU, biases, a tied head. As in trained ones, a few channels of every norm are
//! many times larger than the others. The weights go straight to the file of external data.

use crate::generate::Random;
use crate::proto::{self, BOOL, F32, I64, Message, inline, node, with_f32, with_int, with_ints};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// OPT keeps two positions before the first.
const POSITION_OFFSET: i64 = 2;

/// Standard deviation of OPT's weights at the start of its training.
const DEVIATION: f32 = 0.02;

/// Gain of the large channels of a norm; those of others are near 1.
const OUTLIER_GAIN: f32 = 24.0;

/// Alignment of a tensor in the file of data.
const ALIGN: u64 = 4096;

/// Sizes of a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub ffn: usize,
    pub vocabulary: usize,
    pub positions: usize,
    /// Large channels of each norm.
    pub outliers: usize,
    pub seed: u64,
}

impl Default for Sizes {
    /// OPT-1.3B.
    fn default() -> Self {
        Sizes {
            layers: 24,
            width: 2048,
            heads: 32,
            ffn: 8192,
            vocabulary: 50272,
            positions: 2048,
            outliers: 6,
            seed: 1,
        }
    }
}

/// Writes `model.onnx` and `model.onnx.data` into a folder; the number of parameters.
pub fn write(folder: &Path, sizes: Sizes) -> Result<u64> {
    let Sizes { width, heads, .. } = sizes;
    ensure!(heads > 0 && width.is_multiple_of(heads), "{width} channels in {heads} heads");
    let path = folder.join(format!("{}.data", MODEL));
    let at = || format!("cannot write `{}`", path.display());
    let file = BufWriter::with_capacity(1 << 20, File::create(&path).with_context(at)?);
    let random = Random::new(sizes.seed);
    let mut writer =
        Writer { sizes, random, file, end: 0, parameters: 0, graph: Message::default() };
    writer.model().with_context(at)?;
    writer.file.flush().with_context(at)?;
    let graph = std::mem::take(&mut writer.graph)
        .bytes(2, "opt")
        .message(11, &proto::value("input_ids", I64, &["batch", "seq"]))
        .message(11, &proto::value("attention_mask", I64, &["batch", "seq"]))
        .message(
            12,
            &proto::value("logits", F32, &["batch", "seq", &sizes.vocabulary.to_string()]),
        );
    let path = folder.join(MODEL);
    std::fs::write(&path, proto::model(&graph, 17).0)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(writer.parameters)
}

/// Name of the model's file.
pub const MODEL: &str = "model.onnx";

struct Writer {
    sizes: Sizes,
    random: Random,
    file: BufWriter<File>,
    /// Bytes of the data so far.
    end: u64,
    parameters: u64,
    graph: Message,
}

type Written = std::io::Result<()>;

impl Writer {
    fn model(&mut self) -> Written {
        let Sizes { layers, width, vocabulary, positions, .. } = self.sizes;
        self.weight("embed_tokens", &[vocabulary, width])?;
        self.weight("embed_positions", &[positions + POSITION_OFFSET as usize, width])?;
        for (name, values) in [
            ("zero", vec![0]),
            ("one", vec![1]),
            ("offset", vec![POSITION_OFFSET - 1]),
            ("axis1", vec![1]),
            ("row", vec![1, -1]),
            ("column", vec![-1, 1]),
            ("padding", vec![0, 1, 1, -1]),
            ("split", vec![0, 0, self.sizes.heads as i64, (width / self.sizes.heads) as i64]),
            ("join", vec![0, 0, width as i64]),
        ] {
            let scalar = matches!(name, "zero" | "one" | "offset");
            let shape = [values.len()];
            let bytes: Vec<u8> = values.iter().flat_map(|v: &i64| v.to_le_bytes()).collect();
            self.constant(name, I64, if scalar { &[] } else { &shape }, &bytes);
        }
        let scale = ((width / self.sizes.heads) as f32).sqrt().recip();
        for (name, value) in [("scale", scale), ("nothing", 0.0), ("never", f32::MIN)] {
            self.constant(name, F32, &[], &value.to_le_bytes());
        }
        self.positions_and_mask();
        self.put(node("Gather", &["embed_tokens", "input_ids"], "tokens"));
        self.put(node("Gather", &["embed_positions", "position_ids"], "positions"));
        self.put(node("Add", &["tokens", "positions"], "layers.0.input"));
        for layer in 0..layers {
            self.block(&format!("layers.{layer}"), &format!("layers.{}.input", layer + 1))?;
        }
        self.norm(&format!("layers.{layers}.input"), "final_norm")?;
        self.put(with_ints(node("Transpose", &["embed_tokens"], "lm_head"), "perm", &[1, 0]));
        self.put(node("MatMul", &["final_norm", "lm_head"], "logits"));
        Ok(())
    }

    /// Positions count the tokens that the mask lets through; a token sees those before it, if they
    /// are not padding.
    fn positions_and_mask(&mut self) {
        let nodes = [
            node("CumSum", &["attention_mask", "axis"], "count"),
            node("Mul", &["count", "attention_mask"], "counted"),
            node("Add", &["counted", "offset"], "position_ids"),
            node("Shape", &["input_ids"], "shape"),
            with_int(node("Gather", &["shape", "one"], "length"), "axis", 0),
            node("Range", &["zero", "length", "one"], "places"),
            node("Reshape", &["places", "row"], "keys"),
            node("Reshape", &["places", "column"], "queries"),
            node("LessOrEqual", &["keys", "queries"], "before"),
            with_int(node("Cast", &["attention_mask"], "tokens_only"), "to", BOOL as i64),
            node("Unsqueeze", &["tokens_only", "axes12"], "padding_mask"),
            node("And", &["before", "padding_mask"], "seen"),
            node("Where", &["seen", "nothing", "never"], "mask"),
        ];
        self.constant("axis", I64, &[], &1i64.to_le_bytes());
        let axes: Vec<u8> = [1i64, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant("axes12", I64, &[2], &axes);
        nodes.into_iter().for_each(|node| self.put(node));
    }

    fn block(&mut self, layer: &str, output: &str) -> Written {
        let Sizes { width, ffn, .. } = self.sizes;
        let name = |part: &str| format!("{layer}.{part}");
        let (input, normed) = (name("input"), name("self_attn_norm"));
        self.norm(&input, &normed)?;
        for part in ["q", "k", "v"] {
            let (linear, value) = (name(&format!("{part}_proj")), name(part));
            self.linear(&normed, &linear, width, width)?;
            self.put(node("Reshape", &[&linear, "split"], &name(&format!("{part}.split"))));
            // Keys are transposed for the product.
            let perm = if part == "k" { [0, 2, 3, 1] } else { [0, 2, 1, 3] };
            let split = node("Transpose", &[&name(&format!("{part}.split"))], &value);
            self.put(with_ints(split, "perm", &perm));
        }
        self.put(node("Mul", &[&name("q"), "scale"], &name("q.scaled")));
        self.put(node("MatMul", &[&name("q.scaled"), &name("k")], &name("scores")));
        self.put(node("Add", &[&name("scores"), "mask"], &name("scores.masked")));
        let softmax = node("Softmax", &[&name("scores.masked")], &name("attention"));
        self.put(with_int(softmax, "axis", -1));
        self.put(node("MatMul", &[&name("attention"), &name("v")], &name("context")));
        let joined = node("Transpose", &[&name("context")], &name("context.rows"));
        self.put(with_ints(joined, "perm", &[0, 2, 1, 3]));
        self.put(node("Reshape", &[&name("context.rows"), "join"], &name("context.joined")));
        self.linear(&name("context.joined"), &name("out_proj"), width, width)?;
        self.put(node("Add", &[&input, &name("out_proj")], &name("middle")));
        self.norm(&name("middle"), &name("final_layer_norm"))?;
        self.linear(&name("final_layer_norm"), &name("fc1"), width, ffn)?;
        self.put(node("Relu", &[&name("fc1")], &name("relu")));
        self.linear(&name("relu"), &name("fc2"), ffn, width)?;
        self.put(node("Add", &[&name("middle"), &name("fc2")], output));
        Ok(())
    }

    fn linear(&mut self, input: &str, name: &str, rows: usize, columns: usize) -> Written {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.weight(&weight, &[rows, columns])?;
        self.weight(&bias, &[columns])?;
        let product = format!("{name}.product");
        self.put(node("MatMul", &[input, &weight], &product));
        self.put(node("Add", &[&bias, &product], name));
        Ok(())
    }

    /// Layer normalisation whose gains have large channels.
    fn norm(&mut self, input: &str, name: &str) -> Written {
        let width = self.sizes.width;
        let (gain, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let mut gains: Vec<f32> = (0..width).map(|_| 1.0 + self.normal() * DEVIATION).collect();
        for _ in 0..self.sizes.outliers {
            let channel = self.random.below(width as u64) as usize;
            gains[channel] = OUTLIER_GAIN * (1.0 + self.random.unit() as f32);
        }
        self.external(&gain, &[width], gains.into_iter())?;
        self.weight(&bias, &[width])?;
        let norm = node("LayerNormalization", &[input, &gain, &bias], name);
        self.put(with_f32(with_int(norm, "axis", -1), "epsilon", 1e-5));
        Ok(())
    }

    /// A random weight.
    fn weight(&mut self, name: &str, shape: &[usize]) -> Written {
        let mut random = Random::new(self.random.bits());
        let count = shape.iter().product();
        let values = (0..count).map(move |_| normal(random.bits()) * DEVIATION);
        self.external(name, shape, values)
    }

    fn normal(&mut self) -> f32 {
        normal(self.random.bits())
    }

    /// Values for the file of data, at the next multiple of its alignment.
    fn external(
        &mut self,
        name: &str,
        shape: &[usize],
        values: impl Iterator<Item = f32>,
    ) -> Written {
        let offset = self.end.next_multiple_of(ALIGN);
        self.file.write_all(&vec![0; (offset - self.end) as usize])?;
        let mut count = 0;
        for value in values {
            self.file.write_all(&value.to_le_bytes())?;
            count += 1;
        }
        self.end = offset + 4 * count;
        self.parameters += count;
        let tensor = proto::external(name, F32, shape, "model.onnx.data", offset, 4 * count);
        self.initializer(&tensor);
        Ok(())
    }

    fn constant(&mut self, name: &str, elem: u64, shape: &[usize], data: &[u8]) {
        self.initializer(&inline(name, elem, shape, data));
    }

    fn initializer(&mut self, tensor: &Message) {
        self.graph = std::mem::take(&mut self.graph).message(5, tensor);
    }

    fn put(&mut self, node: Message) {
        self.graph = std::mem::take(&mut self.graph).message(1, &node);
    }
}

/// Nearly normal, mean 0 and deviation 1: the sum of four uniform numbers. Fast enough for billions.
fn normal(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    (sum as f32 - 131_070.0) / 37_837.23
}
