//! The attributes of every operation in the text: always all of them, in the order of the tables
//! here. One function writes, one reads; a new operation means an arm in each.

use super::lex::{Cursor, Result, quoted};
use super::values::{self, BlobSource, Blobs};
use super::{expr, quants::Quants};
use crate::dim::Dim;
use crate::expr::{BinaryOp, UnaryOp};
use crate::op::{Op, PadMode, ReduceOp, ScatterOp};
use crate::quant::{FlattenMap, Quantizer};
use crate::types::{Elem, Type};
use std::fmt::Display;
use std::sync::Arc;

/// `[a, b]` of things that print.
fn list<T: Display>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    format!("[{}]", texts.join(", "))
}

pub(super) fn print_map(map: &FlattenMap) -> String {
    let tail: Vec<String> = map.tail.iter().map(|(s, d)| format!("{s}:{d}")).collect();
    format!("{{base={}, tail=[{}], padded={}}}", map.base, tail.join(", "), map.padded)
}

pub(super) fn read_map(cursor: &mut Cursor) -> Result<Arc<FlattenMap>> {
    let mut fields = Fields::new(cursor);
    fields.key("base")?;
    let base = fields.cursor.parsed("a number of channels")?;
    fields.key("tail")?;
    let tail = fields.cursor.list(|c| {
        let source = c.parsed("a channel")?;
        c.expect(":")?;
        Ok((source, c.parsed("a digit")?))
    })?;
    fields.key("padded")?;
    let padded = fields.cursor.parsed("a number of channels")?;
    fields.end()?;
    Ok(Arc::new(FlattenMap { base, tail: tail.into(), padded }))
}

fn print_quantizer(quantizer: &Quantizer, quants: &Quants, blobs: &mut Blobs) -> String {
    let inverse = values::print_floats(&quantizer.inverse, blobs);
    format!("{{quant={}, inverse={inverse}}}", quants.reference(&quantizer.quant))
}

/// The attributes of an operation, with braces; nothing if it has none.
pub(super) fn print(op: &Op, quants: &Quants, blobs: &mut Blobs) -> String {
    let mut quantizer = |q: &Quantizer| print_quantizer(q, quants, blobs);
    let fields: Vec<(&str, String)> = match op {
        Op::Const(value) => return format!("{{{}}}", values::print(value, blobs)),
        Op::Input(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Select
        | Op::MatMul
        | Op::Softmax
        | Op::Rope
        | Op::Dequantize
        | Op::GemmAccumulate => return String::new(),
        Op::Dims(sizes) => vec![("sizes", list(sizes))],
        Op::Iota(len) => vec![("len", len.to_string())],
        Op::Cast(to) => vec![("to", to.to_string())],
        Op::Pointwise(expr) => vec![("expr", expr.to_string())],
        Op::Reshape(shape) | Op::Broadcast(shape) => vec![("shape", list(shape))],
        Op::Transpose(perm) => vec![("perm", list(perm))],
        Op::Slice { start, len, step } => {
            vec![("start", list(start)), ("len", list(len)), ("step", list(step))]
        }
        Op::Pad { before, after, mode } => {
            vec![("before", list(before)), ("after", list(after)), ("mode", mode.name().into())]
        }
        Op::Concat { axis } | Op::Gather { axis } | Op::GatherElements { axis } => {
            vec![("axis", axis.to_string())]
        }
        Op::GatherNd { batch_dims } => vec![("batch_dims", batch_dims.to_string())],
        Op::ScatterElements { axis, reduction } => {
            vec![("axis", axis.to_string()), ("reduction", reduction.name().into())]
        }
        Op::ScatterNd { reduction } => vec![("reduction", reduction.name().into())],
        Op::Reduce { op, axes, keep_dims } => vec![
            ("op", op.name().into()),
            ("axes", list(axes)),
            ("keep_dims", keep_dims.to_string()),
        ],
        Op::ArgReduce { axis, keep_dims, largest, last } => vec![
            ("axis", axis.to_string()),
            ("keep_dims", keep_dims.to_string()),
            ("largest", largest.to_string()),
            ("last", last.to_string()),
        ],
        Op::CumSum { axis, exclusive, reverse } => vec![
            ("axis", axis.to_string()),
            ("exclusive", exclusive.to_string()),
            ("reverse", reverse.to_string()),
        ],
        Op::LayerNorm { epsilon } | Op::RmsNorm { epsilon } => {
            vec![("epsilon", format!("{epsilon:?}"))]
        }
        Op::Attention { scale, causal } => {
            vec![("scale", format!("{scale:?}")), ("causal", causal.to_string())]
        }
        Op::Flatten { threshold, map } => {
            vec![("threshold", format!("{threshold:?}")), ("map", print_map(map))]
        }
        Op::Quantize(out) => vec![("out", quantizer(out))],
        Op::Gemm { epilogue, out } => vec![
            ("epilogue", epilogue.to_string()),
            ("out", out.as_ref().map_or("none".into(), |out| quantizer(out))),
        ],
        Op::LayerNormQuantize { epsilon, out } | Op::RmsNormQuantize { epsilon, out } => {
            vec![("epsilon", format!("{epsilon:?}")), ("out", quantizer(out))]
        }
        Op::PointwiseQuantize { expr, out } => {
            vec![("expr", expr.to_string()), ("out", quantizer(out))]
        }
    };
    let texts: Vec<String> = fields.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    format!("{{{}}}", texts.join(", "))
}

/// `{key=value, …}`, read in a fixed order of keys.
struct Fields<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    opened: bool,
}

impl<'c, 'a> Fields<'c, 'a> {
    fn new(cursor: &'c mut Cursor<'a>) -> Self {
        Fields { cursor, opened: false }
    }

    /// Goes to the value of `key`.
    fn key(&mut self, key: &str) -> Result<()> {
        self.cursor.expect(if self.opened { "," } else { "{" })?;
        self.opened = true;
        self.cursor.expect_word(key)?;
        self.cursor.expect("=")
    }

    fn end(&mut self) -> Result<()> {
        if self.opened { self.cursor.expect("}") } else { Ok(()) }
    }

    fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<T> {
        self.key(key)?;
        self.cursor.parsed(&format!("the value of `{key}`"))
    }

    fn numbers<T: std::str::FromStr>(&mut self, key: &str) -> Result<Vec<T>> {
        self.key(key)?;
        self.cursor.list(|c| c.parsed("a number"))
    }

    fn dims(&mut self, key: &str) -> Result<Vec<Dim>> {
        self.key(key)?;
        self.cursor.list(Cursor::dim)
    }

    /// A word that `parse` knows.
    fn named<T>(&mut self, key: &str, parse: fn(&str) -> Option<T>) -> Result<T> {
        self.key(key)?;
        let word = self.cursor.word()?;
        parse(word).ok_or_else(|| format!("`{key}` cannot be `{word}`"))
    }

    fn expr(&mut self, key: &str) -> Result<crate::expr::Expr> {
        self.key(key)?;
        expr::read(self.cursor)
    }
}

/// What the attributes may refer to.
pub(super) struct Context<'a> {
    pub quants: &'a Quants,
    pub blobs: &'a dyn BlobSource,
}

impl Context<'_> {
    fn quantizer(&self, fields: &mut Fields) -> Result<Arc<Quantizer>> {
        let mut inner = Fields::new(fields.cursor);
        inner.key("quant")?;
        let quant = self.quants.read_reference(inner.cursor)?;
        inner.key("inverse")?;
        let inverse = values::read_floats(inner.cursor, self.blobs)?;
        inner.end()?;
        Ok(Arc::new(Quantizer { quant, inverse }))
    }

    fn out(&self, fields: &mut Fields) -> Result<Arc<Quantizer>> {
        fields.key("out")?;
        self.quantizer(fields)
    }
}

/// Reads the attributes of the operation called `mnemonic`, whose result is written as `ty`.
pub(super) fn read(mnemonic: &str, ty: &Type, cursor: &mut Cursor, cx: &Context) -> Result<Op> {
    let mut f = Fields::new(cursor);
    let op = match mnemonic {
        "input" => Op::Input(ty.clone()),
        "const" => {
            f.cursor.expect("{")?;
            let value = values::read(f.cursor, ty, cx.blobs)?;
            f.cursor.expect("}")?;
            Op::Const(value)
        }
        "dims" => Op::Dims(f.dims("sizes")?),
        "iota" => {
            f.key("len")?;
            Op::Iota(f.cursor.dim()?)
        }
        "select" => Op::Select,
        "cast" => Op::Cast(f.named("to", Elem::parse)?),
        "pointwise" => Op::Pointwise(f.expr("expr")?),
        "reshape" => Op::Reshape(f.dims("shape")?),
        "transpose" => Op::Transpose(f.numbers("perm")?),
        "broadcast" => Op::Broadcast(f.dims("shape")?),
        "slice" => {
            Op::Slice { start: f.dims("start")?, len: f.dims("len")?, step: f.numbers("step")? }
        }
        "concat" => Op::Concat { axis: f.number("axis")? },
        "pad" => Op::Pad {
            before: f.dims("before")?,
            after: f.dims("after")?,
            mode: f.named("mode", PadMode::parse)?,
        },
        "gather" => Op::Gather { axis: f.number("axis")? },
        "gather_elements" => Op::GatherElements { axis: f.number("axis")? },
        "gather_nd" => Op::GatherNd { batch_dims: f.number("batch_dims")? },
        "scatter_elements" => Op::ScatterElements {
            axis: f.number("axis")?,
            reduction: f.named("reduction", ScatterOp::parse)?,
        },
        "scatter_nd" => Op::ScatterNd { reduction: f.named("reduction", ScatterOp::parse)? },
        _ => match computation(mnemonic, &mut f, cx)? {
            Some(op) => op,
            None => return Err(format!("there is no operation {}", quoted(mnemonic))),
        },
    };
    f.end()?;
    Ok(op)
}

/// The second half of [`read`]: what computes; `None` for an unknown name.
fn computation(mnemonic: &str, f: &mut Fields, cx: &Context) -> Result<Option<Op>> {
    let op = match mnemonic {
        "reduce" => Op::Reduce {
            op: f.named("op", ReduceOp::parse)?,
            axes: f.numbers("axes")?,
            keep_dims: f.number("keep_dims")?,
        },
        "arg_reduce" => Op::ArgReduce {
            axis: f.number("axis")?,
            keep_dims: f.number("keep_dims")?,
            largest: f.number("largest")?,
            last: f.number("last")?,
        },
        "cum_sum" => Op::CumSum {
            axis: f.number("axis")?,
            exclusive: f.number("exclusive")?,
            reverse: f.number("reverse")?,
        },
        "matmul" => Op::MatMul,
        "softmax" => Op::Softmax,
        "layer_norm" => Op::LayerNorm { epsilon: f.number("epsilon")? },
        "rms_norm" => Op::RmsNorm { epsilon: f.number("epsilon")? },
        "rope" => Op::Rope,
        "attention" => Op::Attention { scale: f.number("scale")?, causal: f.number("causal")? },
        "flatten" => {
            let threshold = f.number("threshold")?;
            f.key("map")?;
            Op::Flatten { threshold, map: read_map(f.cursor)? }
        }
        "quantize" => Op::Quantize(cx.out(f)?),
        "dequantize" => Op::Dequantize,
        "gemm" => {
            let epilogue = f.expr("epilogue")?;
            f.key("out")?;
            let out = match f.cursor.eat_word("none") {
                true => None,
                false => Some(cx.quantizer(f)?),
            };
            Op::Gemm { epilogue, out }
        }
        "gemm_accumulate" => Op::GemmAccumulate,
        "layer_norm_quantize" => {
            Op::LayerNormQuantize { epsilon: f.number("epsilon")?, out: cx.out(f)? }
        }
        "rms_norm_quantize" => {
            Op::RmsNormQuantize { epsilon: f.number("epsilon")?, out: cx.out(f)? }
        }
        "pointwise_quantize" => Op::PointwiseQuantize { expr: f.expr("expr")?, out: cx.out(f)? },
        _ => match (UnaryOp::parse(mnemonic), BinaryOp::parse(mnemonic)) {
            (Some(op), _) => Op::Unary(op),
            (None, Some(op)) => Op::Binary(op),
            (None, None) => return Ok(None),
        },
    };
    Ok(Some(op))
}
