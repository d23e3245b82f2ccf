//! The plan: steps over strided views of buffers, in order, with nothing left to decide but code.
//! Reshapes, transposes, slices and broadcasts have become views. Data only; codegen reads it and
//! never sees the graph.

mod batch;
mod verify;

use crate::data::Const;
use crate::dim::{self, Dim};
use crate::expr::Expr;
use crate::graph::Limit;
use crate::op::{ReduceOp, ScatterOp};
use crate::types::{Elem, Shape};

pub use batch::batch;
pub use verify::verify;

/// Index into [`Plan::buffers`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BufferId(pub usize);

/// Where a buffer's bytes are.
#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    /// The caller's input of this index.
    Input(usize),
    /// The caller's output of this index.
    Output(usize),
    /// In the session's arena, alive from its first writer to its last reader.
    Arena,
    /// In the file, already in the layout the kernel reads.
    Const(Const),
}

/// Contiguous row-major memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    pub name: String,
    pub elem: Elem,
    pub shape: Shape,
    pub place: Place,
}

/// Part of a buffer: element `(i0, i1, …)` lies at `offset + Σ i * stride`, in elements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    pub buffer: BufferId,
    pub offset: Dim,
    pub shape: Shape,
    pub strides: Vec<Dim>,
}

/// An input or output of the model.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    pub name: String,
    pub elem: Elem,
    pub shape: Shape,
    pub buffer: BufferId,
}

/// How an epilogue operand of a gemm is indexed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extra {
    /// f32 \[N\]; in the plan padded to a multiple of 16.
    PerColumn,
    /// f32 view \[M, N\], last stride 1.
    PerElement,
}

/// Element type and meaning of a gemm's left operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GemmInput {
    F32,
    /// Codes as bytes: `code + 128` if signed, else the code itself.
    Codes {
        signed: bool,
    },
}

/// What a gemm writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GemmOutput {
    F32,
    /// The integer accumulators, no epilogue.
    I32,
    /// Codes as bytes, one digit a column: `digit = sgn(c) * clamp(|c| - lo[o], 0, q_max)` with
    /// `c = wide_code(y * inverse[o])`. Two more operands: `inverse` f32 \[N\], `lo` f32 \[N\].
    Codes {
        signed: bool,
        /// Width of a digit, 8 or 4, which is still written as a byte.
        bits: u8,
    },
}

/// A linear layer. Arguments: a \[M, K\] (last stride 1), w (packed, see `fqc-kernels`), then for codes
/// `scale` f32 \[N\] and `start` i32 \[N\] (the accumulator's first value), then the extras, then for
/// code output `inverse` and `lo`; all per-column tables are padded to a multiple of 16. Then the
/// result \[M, N\].
#[derive(Clone, PartialEq, Debug)]
pub struct Gemm {
    pub n: usize,
    pub k: usize,
    /// Rows of the weight up to the last that is not all zeros; a kernel may stop there.
    pub depth: usize,
    pub input: GemmInput,
    /// f32 or bf16, or for codes i8 or i4 (two codes a byte). Where it is bf16, the left operand is
    /// rounded to bf16 too: products are exact, and sums f32. Numbers below 2^-126 may count as zero.
    pub weight: Elem,
    pub epilogue: Expr,
    pub extras: Vec<Extra>,
    pub output: GemmOutput,
}

/// Which normalisation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NormKind {
    /// Mean and variance, gamma and beta.
    Layer,
    /// Root of the mean square, gamma.
    Rms,
}

/// Quantise-and-flatten of a row of f32: three tables follow among the arguments, `inverse` f32
/// \[base\], `tail_source` i32 \[tail\], `tail_below` f32 \[tail\] (`(digit-1) * q_max`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowQuantize {
    pub signed: bool,
    pub bits: u8,
    /// Channels before flattening.
    pub base: usize,
    /// Extra channels.
    pub tail: usize,
    /// Channels after flattening; those past `base + tail` hold code 0.
    pub padded: usize,
}

/// How exact the operands of a product of floats have to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    #[default]
    F32,
    /// They may be rounded to bf16, where that is faster; sums stay f32.
    Bf16,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// The kernel families.
#[derive(Clone, PartialEq, Debug)]
pub enum Kernel {
    Gemm(Gemm),
    /// Batched product of two computed values: a \[batch.., M, K\], b \[batch.., K, N\], result
    /// \[batch.., M, N\]; any strides, batch axes already broadcast.
    MatMul,
    /// All arguments and the result have the result's shape (broadcast: stride 0).
    Pointwise(Expr),
    /// Argument \[keep.., reduced..\], result \[keep..\]; `keep` is the number of kept axes.
    Reduce {
        op: ReduceOp,
        keep: usize,
    },
    /// Argument \[keep.., n\], result i64 \[keep..\].
    ArgReduce {
        largest: bool,
        last: bool,
    },
    /// Along the last axis of both.
    CumSum {
        exclusive: bool,
        reverse: bool,
    },
    /// Along the last axis of both.
    Softmax,
    /// Arguments x \[rows.., n\], gamma \[n\], for `Layer` beta \[n\], then the tables of `quantize`;
    /// results: f32 \[rows.., n\] if `float`, then codes \[rows.., padded\] if `quantize`.
    Norm {
        kind: NormKind,
        epsilon: f32,
        float: bool,
        quantize: Option<RowQuantize>,
    },
    /// Arguments of the expression as views \[rows.., base\], then the tables; result codes
    /// \[rows.., padded\].
    Quantize {
        expr: Expr,
        quantize: RowQuantize,
    },
    /// Arguments q \[b,h,s,d\], k \[b,g,t,d\], v \[b,g,t,e\] and, if `mask`, f32 \[b,h,s,t\] (broadcast
    /// by stride 0); result \[b,h,s,e\]. Last strides of q, k, v and the result are 1.
    Attention {
        scale: f32,
        causal: bool,
        mask: bool,
        precision: Precision,
    },
    /// Arguments data \[pre.., n, post..\], indices \[idx..\]; result \[pre.., idx.., post..\]; `axis` is
    /// the number of pre axes, `index_rank` that of index axes.
    Gather {
        axis: usize,
        index_rank: usize,
    },
    /// Arguments data, indices of the result's shape; along `axis`.
    GatherElements {
        axis: usize,
    },
    /// Arguments data (contiguous), indices \[batch.., idx.., depth\]; result \[batch.., idx.., post..\].
    GatherNd {
        batch_dims: usize,
    },
    /// Arguments indices, updates; the result already holds the data.
    ScatterElements {
        axis: usize,
        op: ScatterOp,
    },
    /// Arguments indices \[idx.., depth\], updates; the result already holds the data.
    ScatterNd {
        op: ScatterOp,
    },
    /// Result i64 \[n\] = 0, 1, ….
    Iota,
    /// Result i64 \[values.len()\].
    Dims(Vec<Dim>),
}

impl Kernel {
    /// The family's name in the text and in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Kernel::Gemm(g) if g.weight == Elem::BF16 => "gemm_bf16",
            Kernel::Gemm(g) if g.input == GemmInput::F32 => "gemm_f32",
            Kernel::Gemm(g) if g.weight == Elem::I4 => "gemm_i4",
            Kernel::Gemm(_) => "gemm_i8",
            Kernel::MatMul => "matmul",
            Kernel::Pointwise(_) => "pointwise",
            Kernel::Reduce { .. } => "reduce",
            Kernel::ArgReduce { .. } => "arg_reduce",
            Kernel::CumSum { .. } => "cum_sum",
            Kernel::Softmax => "softmax",
            Kernel::Norm { kind: NormKind::Layer, .. } => "layer_norm",
            Kernel::Norm { kind: NormKind::Rms, .. } => "rms_norm",
            Kernel::Quantize { .. } => "quantize",
            Kernel::Attention { .. } => "attention",
            Kernel::Gather { .. } => "gather",
            Kernel::GatherElements { .. } => "gather_elements",
            Kernel::GatherNd { .. } => "gather_nd",
            Kernel::ScatterElements { .. } => "scatter_elements",
            Kernel::ScatterNd { .. } => "scatter_nd",
            Kernel::Iota => "iota",
            Kernel::Dims(_) => "dims",
        }
    }
}

/// One kernel over views. Arguments are only read, except by the scatters, whose result is updated
/// in place.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Name of the graph value it computes.
    pub name: String,
    pub kernel: Kernel,
    pub args: Vec<View>,
    pub results: Vec<View>,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    pub name: String,
    pub limits: Vec<Limit>,
    pub buffers: Vec<Buffer>,
    pub steps: Vec<Step>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// Row-major strides of a shape.
pub fn row_major(shape: &[Dim]) -> Vec<Dim> {
    let mut strides = vec![Dim::one(); shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].clone() * shape[i].clone();
    }
    strides
}

impl View {
    /// All of a buffer.
    pub fn whole(id: BufferId, shape: &[Dim]) -> Self {
        View { buffer: id, offset: Dim::zero(), shape: shape.to_vec(), strides: row_major(shape) }
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let expected = row_major(&self.shape);
        self.shape
            .iter()
            .zip(self.strides.iter().zip(&expected))
            .all(|(d, (s, e))| s == e || d.as_const() == Some(1))
    }

    pub fn count(&self) -> Dim {
        dim::product(&self.shape)
    }
}

impl Plan {
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }
}

#[cfg(test)]
mod tests;
