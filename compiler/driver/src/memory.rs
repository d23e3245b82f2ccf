//! What a model's linear layers take and do, by arithmetic: bytes of their weights against FP16, and
//! the share of their multiplications in INT4. For one layer of K inputs and N outputs with b bits
//! and e extra channels these are `(K + e) N b / 8 + 4 N` bytes (the scales, and e with the padding)
//! against `2 K N`, and `K N` multiplications a token.

use fqc_ir::plan::Precision;
use fqc_ir::{Graph, NodeId, Op};
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::groups::{self, Heads, is_head, linear};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One linear layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Layer {
    pub inputs: u64,
    pub outputs: u64,
    /// Extra channels of its input, padding included.
    pub extra: u64,
    /// Bits of the weights: 4, 8, 16 or 32; those of 4 and 8 have a scale for each output.
    pub bits: u8,
}

impl Layer {
    /// Multiplications for one token; extra channels are not work that the model asked for.
    pub fn work(&self) -> u64 {
        self.inputs * self.outputs
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        let codes = (self.inputs + self.extra) * self.outputs * u64::from(self.bits) / 8;
        codes + if self.bits <= 8 { 4 * self.outputs } else { 0 }
    }
}

/// Layers of one kind, or everything else.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    pub layers: u64,
    /// Multiplications for one token.
    pub work: u64,
    pub fp16_bytes: u64,
    pub bytes: u64,
}

impl Part {
    fn add(&mut self, layer: &Layer) {
        self.layers += 1;
        self.work += layer.work();
        self.fp16_bytes += 2 * layer.work();
        self.bytes += layer.bytes();
    }
}

/// All of a model.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Linear layers by the width of their weights, without heads.
    pub int4: Part,
    pub int8: Part,
    pub float: Part,
    /// A language model's head. Its FP16 bytes are none if it shares the table of the embeddings.
    pub head: Part,
    /// Embeddings, norms, biases.
    pub rest: Part,
}

impl Memory {
    /// Adds a linear layer that is no head.
    pub fn add(&mut self, layer: &Layer) {
        match layer.bits {
            4 => self.int4.add(layer),
            8 => self.int8.add(layer),
            _ => self.float.add(layer),
        }
    }

    /// The linear layers without heads.
    pub fn linears(&self) -> Part {
        let parts = [&self.int4, &self.int8, &self.float];
        let sum =
            |of: fn(&Part) -> u64| parts.iter().fold(0u64, |sum, p| sum.saturating_add(of(p)));
        Part {
            layers: sum(|p| p.layers),
            work: sum(|p| p.work),
            fp16_bytes: sum(|p| p.fp16_bytes),
            bytes: sum(|p| p.bytes),
        }
    }

    /// Bytes of everything, in FP16 and as it is.
    pub fn total(&self) -> (u64, u64) {
        let linears = self.linears();
        let parts = [&linears, &self.head, &self.rest];
        let sum =
            |of: fn(&Part) -> u64| parts.iter().fold(0u64, |sum, p| sum.saturating_add(of(p)));
        (sum(|p| p.fp16_bytes), sum(|p| p.bytes))
    }

    /// Share of the linear layers' work in a part of them.
    pub fn share(&self, part: &Part) -> f64 {
        let all = self.linears().work;
        if all > 0 { part.work as f64 / all as f64 } else { 0.0 }
    }

    /// What a compilation made of a float graph, of whose linear layers some may be left float;
    /// `weight_bytes` is all that the file holds of it.
    pub fn of(
        float: &Graph,
        choices: &BTreeMap<String, Choice>,
        left: Precision,
        weight_bytes: u64,
    ) -> Memory {
        let left = match left {
            Precision::F32 => 32,
            Precision::Bf16 => 16,
        };
        let mut memory = Memory::default();
        for group in groups::find(float, Heads::Quantized) {
            let choice = choices.get(&float.node(group.input).name);
            for &id in &group.linears {
                let Some((_, weight)) = linear(float, id) else { continue };
                let Op::Const(value) = &float.node(weight).op else { continue };
                let (inputs, outputs) = (value.shape[0] as u64, value.shape[1] as u64);
                let layer = Layer {
                    inputs,
                    outputs,
                    extra: choice.map_or(0, |c| u64::from(c.map.padded - c.map.base)),
                    bits: choice.map_or(left, |c| c.widths.weights),
                };
                if is_head(float, id) {
                    memory.head.add(&layer);
                    if tied(float, weight) {
                        memory.head.fp16_bytes -= 2 * layer.work();
                    }
                } else {
                    memory.add(&layer);
                }
            }
        }
        let linears = memory.linears();
        let floats = float.ids().into_iter().filter_map(|id| match &float.node(id).op {
            Op::Const(value) if value.elem == fqc_ir::Elem::F32 => {
                Some(value.bytes.as_slice().len() as u64)
            }
            _ => None,
        });
        let read = linears.work + memory.head.work;
        memory.rest.fp16_bytes = (floats.sum::<u64>() / 2).saturating_sub(2 * read);
        memory.rest.bytes = weight_bytes.saturating_sub(linears.bytes + memory.head.bytes);
        memory
    }
}

/// Whether a weight is another constant's transpose, as a language model's head is that of its
/// embeddings.
fn tied(graph: &Graph, weight: NodeId) -> bool {
    let Op::Const(w) = &graph.node(weight).op else { return false };
    let [k, n] = w.shape[..] else { return false };
    graph.ids().into_iter().any(|id| {
        let Op::Const(table) = &graph.node(id).op else { return false };
        if id == weight || table.elem != w.elem || table.shape[..] != [n, k] {
            return false;
        }
        let (rows, _) = table.bytes.as_slice().as_chunks::<4>();
        let (columns, _) = w.bytes.as_slice().as_chunks::<4>();
        rows.iter().enumerate().all(|(i, v)| columns[i % k * n + i / k] == *v)
    })
}

/// A decoder whose blocks have four square projections and two of a feed-forward layer, as OPT's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Decoder {
    pub hidden: u64,
    pub feed_forward: u64,
    pub blocks: u64,
    /// Rows of the embeddings: tokens, and positions if they are learnt.
    pub vocabulary: u64,
    pub positions: u64,
}

impl Decoder {
    /// With the same share of extra channels everywhere, a share of the work in INT4 weights and the
    /// rest in INT8, and embeddings and a head of so many bits; a head of none shares the table of the
    /// embeddings.
    pub fn memory(&self, int4_share: f64, extra: f64, table_bits: u64, head_bits: u8) -> Memory {
        let mut memory = Memory::default();
        let (d, f) = (self.hidden, self.feed_forward);
        let part = |bits: u8, share: f64| {
            let mut part = Part::default();
            let shapes = [(d, d), (d, d), (d, d), (d, d), (d, f), (f, d)];
            for (inputs, outputs) in shapes {
                let extra = (extra * inputs as f64).round() as u64;
                part.add(&Layer { inputs, outputs, extra, bits });
            }
            let times = share * self.blocks as f64;
            let scaled = |v: u64| (v as f64 * times).round() as u64;
            Part {
                layers: scaled(part.layers),
                work: scaled(part.work),
                fp16_bytes: scaled(part.fp16_bytes),
                bytes: scaled(part.bytes),
            }
        };
        memory.int4 = part(4, int4_share);
        memory.int8 = part(8, 1.0 - int4_share);
        let table = (self.vocabulary + self.positions) * d;
        memory.rest = Part { fp16_bytes: 2 * table, bytes: table * table_bits / 8, ..memory.rest };
        let outputs = self.vocabulary;
        let extra = (extra * d as f64).round() as u64;
        let head = Layer { inputs: d, outputs, extra, bits: head_bits };
        let bytes = if head_bits == 0 { 0 } else { head.bytes() };
        memory.head = Part { layers: 1, work: head.work(), fp16_bytes: 0, bytes };
        memory
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let ratio = |(fp16, bytes): (u64, u64)| fp16 as f64 / bytes.max(1) as f64;
        writeln!(f, "                     layers     work   FP16, MB   here, MB   times less")?;
        let linears = self.linears();
        let parts = [
            ("linears in INT4", &self.int4),
            ("linears in INT8", &self.int8),
            ("linears in float", &self.float),
            ("all linears", &linears),
            ("head", &self.head),
            ("all else", &self.rest),
        ];
        for (name, part) in parts {
            if [part.bytes, part.fp16_bytes, part.layers] == [0; 3] {
                continue;
            }
            let (layers, share) = match name {
                "all else" => (String::new(), String::new()),
                "head" => (part.layers.to_string(), String::new()),
                _ => (part.layers.to_string(), format!("{:.2} %", 100.0 * self.share(part))),
            };
            let less = match part.fp16_bytes.min(part.bytes) {
                0 => String::new(),
                _ => format!("{:.2}", ratio((part.fp16_bytes, part.bytes))),
            };
            writeln!(
                f,
                "{name:18} {layers:>8} {share:>8} {:10.1} {:10.1} {less:>12}",
                mb(part.fp16_bytes),
                mb(part.bytes)
            )?;
        }
        let total = self.total();
        let (name, less) = ("together", ratio(total));
        write!(f, "{name:36} {:10.1} {:10.1} {less:12.2}", mb(total.0), mb(total.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OPT-6.7B: 12 d² weights a block, 6,442 million in all. With 48.29 % of them in INT4, 8 % extra
    /// channels and the embeddings in FP16, that is the 2.3 times of FlattenQuant's abstract.
    #[test]
    fn opt_has_the_memory_that_the_paper_claims() {
        let sizes = (4096, 16384, 32, 50272);
        let (hidden, feed_forward, blocks, vocabulary) = sizes;
        let opt = Decoder { hidden, feed_forward, blocks, vocabulary, positions: 2050 };
        let memory = opt.memory(0.4829, 0.08, 16, 0);
        let linears = memory.linears();
        assert_eq!(linears.layers, 6 * 32);
        assert_eq!(linears.work, 12 * 4096 * 4096 * 32);
        assert_eq!(linears.fp16_bytes, 2 * linears.work);
        assert!((memory.share(&memory.int4) - 0.4829).abs() < 1e-9);
        let (fp16, bytes) = memory.total();
        assert_eq!(fp16, 2 * (linears.work + 52322 * 4096));
        let times = fp16 as f64 / bytes as f64;
        assert!((2.3..2.35).contains(&times), "{times}");
        let all_int8 = opt.memory(0.0, 0.0, 16, 8);
        let scales = 4 * (5 * 4096 + 16384) * 32;
        assert_eq!(all_int8.linears().bytes, linears.work + scales);
        assert_eq!(all_int8.head.bytes, 50272 * 4096 + 4 * 50272);
    }
}
