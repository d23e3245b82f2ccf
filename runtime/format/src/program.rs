//! The program of one target: what the runtime executes. It is plain data: symbols and integer
//! expressions over them, buffers, and a straight line of steps, each a kernel with arguments.
//! [`ProgramBuilder`](crate::ProgramBuilder) makes one, [`verify`](crate::verify) proves that it
//! is well formed, and [`Program::encode`]/[`Program::decode`] are its bytes.
//!
//! The CPU kernel ABI, at every level:
//! `extern "C" fn(bufs: *const *mut u8, dims: *const i64, begin: i64, end: i64, scratch: *mut u8) -> i32`.
//! `bufs[i]` is the address of argument `i`, its byte offset included; `dims[i]` the value of
//! `Step::dims[i]`; `[begin, end)` a range of the step's work items, of which any split gives the
//! same bytes; `scratch` a 64-byte aligned block of `Step::scratch_bytes` bytes for this call
//! alone. The kernel returns 0 on success, 1 for an index out of range, and any other number for
//! another error.
//!
//! A CUDA kernel has one parameter of 64-bit words: `bufs`, `dims`, the number of work items, the
//! address of a 32-bit status word that it sets to 1 for an index out of range. Those that read
//! through a tensor map have `GemmArguments` of `kernels/cuda/layout_sm90.cuh` before it, their first
//! dim is the distance between rows in bytes, and their work items are rows. A kernel with the attribute
//! `max_queries` is followed by the one that more queries take (twice as many, where the heads of all batches are
//! more than `crowd`), which has `AttentionSm90Arguments` of
//! `kernels/cuda/attention_sm90.cuh` before the words; the first dims of both are batches, heads, key heads,
//! queries, keys, and the elements from one batch, head and row to the next of each operand. Of one with the
//! attribute `resident` no more blocks are launched than so many a multiprocessor.

use crate::expr::{Expr, ExprId, SymbolId, display};

/// Element type of a buffer, with the number that stands for it in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Elem {
    Bool = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    U32 = 6,
    I32 = 7,
    U64 = 8,
    I64 = 9,
    F16 = 10,
    Bf16 = 11,
    F32 = 12,
    F64 = 13,
    /// Two codes a byte, even index low.
    U4 = 14,
    /// Two codes a byte, even index low.
    I4 = 15,
}

impl Elem {
    pub const ALL: [Elem; 15] = [
        Elem::Bool,
        Elem::U8,
        Elem::I8,
        Elem::U16,
        Elem::I16,
        Elem::U32,
        Elem::I32,
        Elem::U64,
        Elem::I64,
        Elem::F16,
        Elem::Bf16,
        Elem::F32,
        Elem::F64,
        Elem::U4,
        Elem::I4,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Elem> {
        Elem::ALL.into_iter().find(|e| e.code() == code)
    }

    /// Size of one element in bits.
    pub fn bits(self) -> u32 {
        match self {
            Elem::U4 | Elem::I4 => 4,
            Elem::Bool | Elem::U8 | Elem::I8 => 8,
            Elem::U16 | Elem::I16 | Elem::F16 | Elem::Bf16 => 16,
            Elem::U32 | Elem::I32 | Elem::F32 => 32,
            Elem::U64 | Elem::I64 | Elem::F64 => 64,
        }
    }

    /// Size of one element in bytes; 1 for the types below a byte.
    pub fn bytes(self) -> usize {
        (self.bits() as usize).div_ceil(8)
    }

    pub fn name(self) -> &'static str {
        match self {
            Elem::Bool => "bool",
            Elem::U8 => "u8",
            Elem::I8 => "i8",
            Elem::U16 => "u16",
            Elem::I16 => "i16",
            Elem::U32 => "u32",
            Elem::I32 => "i32",
            Elem::U64 => "u64",
            Elem::I64 => "i64",
            Elem::F16 => "f16",
            Elem::Bf16 => "bf16",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
            Elem::U4 => "u4",
            Elem::I4 => "i4",
        }
    }
}

/// Index of a buffer in [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u32);

/// Index of a kernel in [`Program::kernels`] and in the entry table of every code section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelId(pub u32);

impl BufferId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl KernelId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the bytes of a buffer lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The caller's tensor for input `n`. Read only.
    Input(u32),
    /// The caller's (or the session's) tensor for output `n`.
    Output(u32),
    /// The session's arena, alive from step `first` to step `last`, both included.
    Arena { first: u32, last: u32 },
    /// A 64-byte aligned range of the weight section. Read only.
    Weight { offset: u64, len: u64 },
}

/// A block of bytes that steps read and write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub name: String,
    pub elem: Elem,
    pub shape: Vec<ExprId>,
    /// Size in bytes; may exceed what the shape needs (padding).
    pub bytes: ExprId,
    pub place: Place,
}

/// An input or output of the model. Its bytes are dense and row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub elem: Elem,
    pub shape: Vec<ExprId>,
    pub buffer: BufferId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    Le,
    Eq,
    Ge,
}

/// A condition on the bound symbols, checked before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub left: ExprId,
    pub relation: Relation,
    pub right: ExprId,
    /// Where the condition comes from, for the message; may be empty.
    pub note: String,
}

/// A kernel by name. The position in the list is its index in every code section's entry table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    /// Integers that this target's launcher needs, such as threads a block; empty on the CPU.
    pub attrs: Vec<(String, i64)>,
}

/// What a step does with an argument's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    Read,
    Write,
    /// Reads and writes in place; other arguments of the step may overlap it.
    Update,
}

impl Access {
    pub fn reads(self) -> bool {
        self != Access::Write
    }

    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// A byte range of a buffer, handed to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    pub buffer: BufferId,
    pub offset: ExprId,
    /// Bytes from `offset` that the kernel may touch (first to last, gaps of strides included).
    pub extent: ExprId,
    pub access: Access,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Name of the value it makes, for reports and errors.
    pub name: String,
    /// Kernel family (`gemm`, `rowwise`, …), for reports.
    pub family: String,
    pub kernel: KernelId,
    pub args: Vec<Arg>,
    pub dims: Vec<ExprId>,
    /// Number of work items; none means that the step is skipped.
    pub work: ExprId,
    /// Work items that are worth a task of their own, at least 1.
    pub grain: ExprId,
    /// Scratch bytes for each concurrent call.
    pub scratch_bytes: ExprId,
    /// Arithmetic operations and bytes moved, for reports.
    pub ops: ExprId,
    pub bytes: ExprId,
}

/// The program of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Names of the symbolic dimensions. Each is bound by the shape of an input.
    pub symbols: Vec<String>,
    pub exprs: Vec<Expr>,
    pub buffers: Vec<Buffer>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub limits: Vec<Limit>,
    pub kernels: Vec<Kernel>,
    pub steps: Vec<Step>,
    /// The symbol that leads every input and output, if a run on some of its items gives the bytes
    /// that a run on all gives for them. The compiler says so; nothing but results rests on it.
    pub batch: Option<SymbolId>,
}

impl Program {
    /// Text of an expression, for messages and `inspect`.
    pub fn expr_text(&self, id: ExprId) -> String {
        display(&self.exprs, &self.symbols, id)
    }

    /// Text of a shape, such as `[batch, seq, 384]`.
    pub fn shape_text(&self, shape: &[ExprId]) -> String {
        let dims: Vec<String> = shape.iter().map(|&d| self.expr_text(d)).collect();
        format!("[{}]", dims.join(", "))
    }

    pub fn buffer(&self, id: BufferId) -> Option<&Buffer> {
        self.buffers.get(id.index())
    }
}
