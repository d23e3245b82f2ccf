//! The table of quantisations at the head of a text, and references into it.

use super::attrs;
use super::lex::{Cursor, Result};
use super::values::{self, BlobSource, Blobs};
use crate::graph::{Graph, NodeId};
use crate::op::Op;
use crate::quant::{Quant, Quantizer, Scale};
use crate::types::{Elem, Type};
use std::sync::Arc;

/// Every quantisation of a graph once, each with the name it has in the text.
#[derive(Default)]
pub(super) struct Quants {
    entries: Vec<(String, Arc<Quant>)>,
}

fn quantizer(op: &Op) -> Option<&Quantizer> {
    match op {
        Op::Quantize(out)
        | Op::LayerNormQuantize { out, .. }
        | Op::RmsNormQuantize { out, .. }
        | Op::PointwiseQuantize { out, .. }
        | Op::Gemm { out: Some(out), .. } => Some(out),
        _ => None,
    }
}

impl Quants {
    /// Those of the nodes, in order: `!q0`, `!q1`, ….
    pub fn of(graph: &Graph, order: &[NodeId]) -> Self {
        let mut quants = Quants::default();
        for &id in order {
            let node = graph.node(id);
            if let Some(quant) = &node.ty.quant {
                quants.add(quant);
            }
            if let Some(quantizer) = quantizer(&node.op) {
                quants.add(&quantizer.quant);
            }
        }
        quants
    }

    fn add(&mut self, quant: &Arc<Quant>) {
        if self.find(quant).is_none() {
            self.entries.push((format!("!q{}", self.entries.len()), quant.clone()));
        }
    }

    fn find(&self, quant: &Arc<Quant>) -> Option<&str> {
        let is = |other: &Arc<Quant>| Arc::ptr_eq(quant, other) || quant == other;
        self.entries.iter().find(|(_, q)| is(q)).map(|(name, _)| name.as_str())
    }

    pub fn reference(&self, quant: &Arc<Quant>) -> String {
        self.find(quant).expect("the table holds every quantisation of the graph").to_owned()
    }

    /// `f32[b,s]`, and for codes the reference.
    pub fn print_type(&self, ty: &Type) -> String {
        match &ty.quant {
            Some(quant) => format!("{ty} {}", self.reference(quant)),
            None => ty.to_string(),
        }
    }

    /// One line for each quantisation.
    pub fn print(&self, blobs: &mut Blobs) -> Vec<String> {
        let mut line = |(name, quant): &(String, Arc<Quant>)| {
            let sign = if quant.signed { 'i' } else { 'u' };
            let scale = match &quant.scale {
                Scale::Tensor(scale) => format!("scale={scale:?}"),
                Scale::Axis { axis, scales } => {
                    format!("axis={axis} scales={}", values::print_floats(scales, blobs))
                }
            };
            let flatten = match &quant.flatten {
                Some(map) => format!(" flatten={}", attrs::print_map(map)),
                None => String::new(),
            };
            format!("{name} = quant {sign}{} {scale}{flatten}", quant.bits)
        };
        self.entries.iter().map(&mut line).collect()
    }

    /// Reads one line of the table.
    pub fn read(&mut self, cursor: &mut Cursor, blobs: &dyn BlobSource) -> Result<()> {
        let name = reference(cursor)?;
        if self.entries.iter().any(|(n, _)| *n == name) {
            return Err(format!("`{name}` is defined twice"));
        }
        cursor.expect("=")?;
        cursor.expect_word("quant")?;
        let (signed, bits) = match cursor.word()? {
            "i8" => (true, 8),
            "i4" => (true, 4),
            "u8" => (false, 8),
            "u4" => (false, 4),
            word => return Err(format!("codes are i8, i4, u8 or u4, not `{word}`")),
        };
        let scale = if cursor.eat_word("scale") {
            cursor.expect("=")?;
            Scale::Tensor(cursor.parsed("a scale")?)
        } else {
            cursor.expect_word("axis")?;
            cursor.expect("=")?;
            let axis = cursor.parsed("an axis")?;
            cursor.expect_word("scales")?;
            cursor.expect("=")?;
            Scale::Axis { axis, scales: values::read_floats(cursor, blobs)? }
        };
        let flatten = if cursor.eat_word("flatten") {
            cursor.expect("=")?;
            Some(attrs::read_map(cursor)?)
        } else {
            None
        };
        self.entries.push((name, Arc::new(Quant { scale, bits, signed, flatten })));
        Ok(())
    }

    pub fn read_reference(&self, cursor: &mut Cursor) -> Result<Arc<Quant>> {
        let name = reference(cursor)?;
        let found = self.entries.iter().find(|(n, _)| *n == name);
        found.map(|(_, q)| q.clone()).ok_or_else(|| format!("`{name}` is not defined"))
    }

    /// Reads a type and, if there is one, the reference behind it.
    pub fn read_type(&self, cursor: &mut Cursor) -> Result<Type> {
        let word = cursor.word()?;
        let elem = Elem::parse(word).ok_or_else(|| format!("no element type `{word}`"))?;
        let shape = cursor.list(Cursor::dim)?;
        let terms = shape.iter().try_fold(1usize, |n, d| n.checked_mul(d.terms().count().max(1)));
        if shape.len() > MAX_RANK || terms.is_none_or(|n| n > MAX_TERMS) {
            return Err("the shape is too large".to_owned());
        }
        let quant = match cursor.peek() {
            Some('!') => Some(self.read_reference(cursor)?),
            _ => None,
        };
        Ok(Type { elem, shape, quant })
    }
}

/// Axes that a type may have in a text.
const MAX_RANK: usize = 32;
/// Terms that the product of the sizes of a type may have in a text.
const MAX_TERMS: usize = 1 << 12;

fn reference(cursor: &mut Cursor) -> Result<String> {
    cursor.expect("!")?;
    cursor.word().map(|word| format!("!{word}"))
}
