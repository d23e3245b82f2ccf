//! The operations of the graph: one closed set. Every node has exactly one result; an ONNX operator
//! with several is decomposed by the importer. Adding one means a row here, an arm in `infer`, the
//! text, the interpreter and the lowering; the exhaustive matches lead there.

use crate::data::Const;
use crate::dim::Dim;
use crate::expr::{BinaryOp, Expr, UnaryOp, names};
use crate::quant::{FlattenMap, Quantizer};
use crate::types::{Elem, Shape, Type};
use std::sync::Arc;

/// What a reduction computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReduceOp {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
}

names!(ReduceOp { Sum = "sum", Mean = "mean", Max = "max", Min = "min", Prod = "prod" });

/// How a scatter combines an update with what is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScatterOp {
    Set,
    Add,
    Mul,
    Max,
    Min,
}

names!(ScatterOp { Set = "set", Add = "add", Mul = "mul", Max = "max", Min = "min" });

/// What the padding of `pad` holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PadMode {
    /// The second operand, a scalar.
    Constant,
    Edge,
    Reflect,
    Wrap,
}

names!(PadMode { Constant = "constant", Edge = "edge", Reflect = "reflect", Wrap = "wrap" });

#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// A graph input of the given type.
    Input(Type),
    Const(Const),
    /// Sizes as data: i64\[n\].
    Dims(Vec<Dim>),
    /// 0, 1, … len-1: i64\[len\].
    Iota(Dim),

    // Element-wise; operands broadcast as in NumPy.
    Unary(UnaryOp),
    Binary(BinaryOp),
    /// Condition, then, else.
    Select,
    /// To a float: round to nearest even; to an integer from a float: truncate, hold within i64 (u64),
    /// NaN to 0, then wrap; from an integer: wrap; to bool: `!= 0`.
    Cast(Elem),
    /// A fused tree of the above.
    Pointwise(Expr),

    // Shape; no arithmetic.
    /// Same elements in row-major order.
    Reshape(Shape),
    Transpose(Vec<usize>),
    /// NumPy broadcast to exactly this shape.
    Broadcast(Shape),
    /// `out[i] = in[start + i * step]` along each axis, `len` elements. All operands of the axis
    /// lists have the rank of the input.
    Slice {
        start: Vec<Dim>,
        len: Vec<Dim>,
        step: Vec<i64>,
    },
    Concat {
        axis: usize,
    },
    /// Operands: x, and for `Constant` a scalar fill value of x's type.
    Pad {
        before: Vec<Dim>,
        after: Vec<Dim>,
        mode: PadMode,
    },

    // Indexed; indices are i64 or i32, negative ones count from the end.
    /// ONNX Gather: operands data, indices.
    Gather {
        axis: usize,
    },
    GatherElements {
        axis: usize,
    },
    GatherNd {
        batch_dims: usize,
    },
    /// Operands data, indices, updates.
    ScatterElements {
        axis: usize,
        reduction: ScatterOp,
    },
    ScatterNd {
        reduction: ScatterOp,
    },

    // Reductions along axes.
    Reduce {
        op: ReduceOp,
        axes: Vec<usize>,
        keep_dims: bool,
    },
    /// Index of the largest (`largest`) or smallest element, i64; ties go to the first, or to the
    /// last if `last`.
    ArgReduce {
        axis: usize,
        keep_dims: bool,
        largest: bool,
        last: bool,
    },
    CumSum {
        axis: usize,
        exclusive: bool,
        reverse: bool,
    },

    // Linear algebra and the transformer's own.
    /// NumPy matmul of two values of rank >= 2, batch axes broadcast; floats, or integers with a
    /// wrapping sum in their own type.
    MatMul,
    /// Along the last axis.
    Softmax,
    /// Over the last axis: operands x, gamma, optionally beta.
    LayerNorm {
        epsilon: f32,
    },
    /// Over the last axis: operands x, gamma.
    RmsNorm {
        epsilon: f32,
    },
    /// Rotary embedding, halves rotated: `x * cos + concat(-x2, x1) * sin` with x1, x2 the halves of
    /// the last axis. Operands x, cos, sin; the last two broadcast to x.
    Rope,
    /// Operands q \[b,h,s,d\], k \[b,g,t,d\], v \[b,g,t,e\], optionally an f32 mask that is added to the
    /// scaled scores and broadcasts to \[b,h,s,t\]; h is a multiple of g, head i reads group
    /// `i / (h/g)`. Result \[b,h,s,e\]. `causal` hides key j from query i where j > i + t - s. A row
    /// without any visible key gives zeros if `causal` hid them.
    Attention {
        scale: f32,
        causal: bool,
    },

    // Quantisation.
    /// Real slices of large channels: operand x \[.., base\], result \[.., padded\]. Channel `(j, k)`
    /// holds `sgn(x) * min(max(|x| - (k-1) * threshold, 0), threshold)`, except that the last copy of a
    /// channel is not cut off, so that the sum over the copies is x exactly.
    Flatten {
        threshold: f32,
        map: Arc<FlattenMap>,
    },
    /// f32 \[.., K\] to codes (i8 \[.., K̂\]), quantisation in the type.
    Quantize(Arc<Quantizer>),
    /// Codes to f32, each element by its scale; keeps the (flattened) shape.
    Dequantize,
    /// A linear layer with constant weights: operands x \[.., K\], w \[K, N\], then the epilogue's
    /// extra operands (f32, of shape \[N\], or of the result's shape). Epilogue argument 0 is the
    /// accumulator: f32, or for codes `(acc as f32) * (s_x * s_w[o])`; the others follow. Without
    /// `out` the result is f32 \[.., N\]; with it, its codes.
    Gemm {
        epilogue: Expr,
        out: Option<Arc<Quantizer>>,
    },
    /// The bare integer accumulator of a quantised linear layer: operands x codes, w codes; i32.
    GemmAccumulate,
    /// `Quantize` of `LayerNorm` in one pass.
    LayerNormQuantize {
        epsilon: f32,
        out: Arc<Quantizer>,
    },
    /// `Quantize` of `RmsNorm` in one pass.
    RmsNormQuantize {
        epsilon: f32,
        out: Arc<Quantizer>,
    },
    /// `Quantize` of `Pointwise` in one pass.
    PointwiseQuantize {
        expr: Expr,
        out: Arc<Quantizer>,
    },
}

impl Op {
    /// The name in the text form.
    pub fn mnemonic(&self) -> &'static str {
        match self {
            Op::Input(_) => "input",
            Op::Const(_) => "const",
            Op::Dims(_) => "dims",
            Op::Iota(_) => "iota",
            Op::Unary(op) => op.name(),
            Op::Binary(op) => op.name(),
            Op::Select => "select",
            Op::Cast(_) => "cast",
            Op::Pointwise(_) => "pointwise",
            Op::Reshape(_) => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Broadcast(_) => "broadcast",
            Op::Slice { .. } => "slice",
            Op::Concat { .. } => "concat",
            Op::Pad { .. } => "pad",
            Op::Gather { .. } => "gather",
            Op::GatherElements { .. } => "gather_elements",
            Op::GatherNd { .. } => "gather_nd",
            Op::ScatterElements { .. } => "scatter_elements",
            Op::ScatterNd { .. } => "scatter_nd",
            Op::Reduce { .. } => "reduce",
            Op::ArgReduce { .. } => "arg_reduce",
            Op::CumSum { .. } => "cum_sum",
            Op::MatMul => "matmul",
            Op::Softmax => "softmax",
            Op::LayerNorm { .. } => "layer_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Rope => "rope",
            Op::Attention { .. } => "attention",
            Op::Flatten { .. } => "flatten",
            Op::Quantize(_) => "quantize",
            Op::Dequantize => "dequantize",
            Op::Gemm { .. } => "gemm",
            Op::GemmAccumulate => "gemm_accumulate",
            Op::LayerNormQuantize { .. } => "layer_norm_quantize",
            Op::RmsNormQuantize { .. } => "rms_norm_quantize",
            Op::PointwiseQuantize { .. } => "pointwise_quantize",
        }
    }
}
