//! The gemm family: a left operand of M rows (known at run time) times a packed constant weight,
//! with an epilogue. One description serves every code level.
//!
//! Work is cut into items of [`ROW_BLOCK`] rows by [`PANEL`] columns, columns fastest: a row block
//! stays in the second-level cache while the panels of the weight pass by, a thread with a part of the
//! items keeps to its rows, and a call with few rows still has one item for each panel to share. Weights
//! of floats, and of INT4 in tile registers, are walked by groups of row blocks, panel by panel.

use fqc_ir::plan::{self, Extra, GemmInput, GemmOutput, Step, View};
use fqc_ir::{Dim, Elem, Expr};

use crate::pack;

/// Columns of one work item.
pub const PANEL: usize = 2 * pack::GROUP;

/// Rows of one work item, at most.
pub const ROW_BLOCK: usize = 64;

/// Bytes of a call's scratch before the accumulator tile: room for an AMX tile configuration.
pub const SCRATCH_TILE: usize = 64;

/// Rows of the accumulator tile in a call's scratch; each has [`PANEL`] accumulators.
pub const SCRATCH_ROWS: usize = 32;

/// Rows of the left operand that the AVX2 code widens to sixteen bits at a time.
pub const WIDENED_ROWS: usize = 6;

/// Bytes of the left operand that several row blocks may take together to share a panel of the
/// weight: they stay in the second-level cache, as the panels do otherwise.
const SHARED_LEFT: usize = 1 << 19;

/// Most row blocks that share a panel.
const SHARED_BLOCKS: usize = 8;

/// Rows by which the tiles of a group of row blocks may be more than its share: one tile because
/// shares are rounded, one because the last is not full. No level has tiles of more than 32 rows.
const TILE_SLACK: usize = 64;

/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_MACS: usize = 32_768;

/// Distance between rows in elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stride {
    /// Known at compile time.
    Const(i64),
    /// Entry of the kernel's run-time dims.
    Dim(u32),
}

/// How an epilogue operand is read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operand {
    /// f32 \[N\], padded to whole groups.
    PerColumn,
    /// f32 \[M, N\] with this row stride.
    PerElement(Stride),
}

/// A gemm whose epilogue takes two columns of the weight at once and gives a row of codes with its
/// tail: the groups of a panel come from two places of the weight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pairs {
    /// First columns of the two arguments of the epilogue, multiples of [`pack::GROUP`].
    pub starts: [usize; 2],
    /// Entry of the kernel's run-time dims: codes of a row before the padding.
    pub end: u32,
}

/// Everything that the code of a gemm depends on. Equal descriptions share one kernel.
///
/// Buffers, in order: left operand, packed weight, for codes `scale` and `start`, the operands,
/// for code output `inverse` and `lo`, the result. Dim 0 is M. With pairs, `lo` is that of the tail's
/// codes alone, and behind it are their channels (i32, ascending) and the first of them in each panel
/// (i32, one entry more than there are panels).
#[derive(Clone, PartialEq, Debug)]
pub struct GemmDesc {
    /// Columns of the weight that are computed; with pairs two for each code before the tail.
    pub n: usize,
    /// Rows of the weight; for codes a multiple of [`pack::K_ALIGN`].
    pub k: usize,
    /// Rows up to the last that is not all zeros, at most `k`.
    pub depth: usize,
    pub input: GemmInput,
    /// f32 or bf16, or for codes i8 or i4.
    pub weight: Elem,
    pub row_stride: Stride,
    pub epilogue: Expr,
    pub operands: Vec<Operand>,
    pub output: GemmOutput,
    pub out_stride: Stride,
    pub pairs: Option<Pairs>,
}

/// A gemm step taken apart: the description of its code and what the call needs.
#[derive(Clone, PartialEq, Debug)]
pub struct GemmCall {
    pub desc: GemmDesc,
    /// The kernel's dims: M, then the strides that are not constant.
    pub dims: Vec<Dim>,
    /// Number of work items.
    pub work: Dim,
    /// Work items below which a task is not split.
    pub grain: u64,
    /// Arithmetic operations, two for each multiply-add.
    pub ops: Dim,
}

impl GemmCall {
    /// The call of a gemm whose result is that of `quantize`, over the two parts that begin at
    /// `starts`; the step's arguments are those of [`GemmDesc`].
    pub fn pairs(
        step: &Step,
        gemm: &plan::Gemm,
        starts: [usize; 2],
        quantize: &plan::RowQuantize,
    ) -> Result<GemmCall, String> {
        let mut call = GemmCall::unchecked(step, gemm)?;
        let dims = &mut call.dims;
        // Run-time numbers, so that layers whose tails differ share a kernel.
        let mut number = |value: usize| {
            dims.push(Dim::from(value));
            (dims.len() - 1) as u32
        };
        let (end, padded) = (number(quantize.base + quantize.tail), number(quantize.padded));
        call.desc.out_stride = Stride::Dim(padded);
        call.desc.pairs = Some(Pairs { starts, end });
        call.desc.check()?;
        Ok(call)
    }

    /// Takes a gemm step apart; the error says what does not fit.
    pub fn new(step: &Step, gemm: &plan::Gemm) -> Result<GemmCall, String> {
        let call = GemmCall::unchecked(step, gemm)?;
        call.desc.check()?;
        Ok(call)
    }

    fn unchecked(step: &Step, gemm: &plan::Gemm) -> Result<GemmCall, String> {
        let a = step.args.first().ok_or("has no left operand")?;
        let result = step.results.first().ok_or("has no result")?;
        let rows = row_count(a)?;
        let mut dims = vec![rows.clone()];
        let row_stride = row_stride(a, &mut dims)?;
        let first_extra = if gemm.input == GemmInput::F32 { 2 } else { 4 };
        let mut operands = Vec::new();
        for (i, extra) in gemm.extras.iter().enumerate() {
            let view = step.args.get(first_extra + i);
            let view = view.ok_or_else(|| format!("extra {i} has no argument"))?;
            operands.push(match extra {
                Extra::PerColumn => Operand::PerColumn,
                Extra::PerElement => Operand::PerElement(self::row_stride(view, &mut dims)?),
            });
        }
        let out_stride = self::row_stride(result, &mut dims)?;
        let desc = GemmDesc {
            n: gemm.n,
            k: gemm.k,
            depth: gemm.depth,
            input: gemm.input,
            weight: gemm.weight,
            row_stride,
            epilogue: gemm.epilogue.clone(),
            operands,
            output: gemm.output,
            out_stride,
            pairs: None,
        };
        let ops = rows.clone() * Dim::from((2 * desc.n * desc.depth) as i64);
        Ok(GemmCall { work: desc.work(&rows), grain: desc.grain(), ops, dims, desc })
    }
}

impl GemmDesc {
    /// Whether the left operand is codes.
    pub fn is_quantized(&self) -> bool {
        self.input != GemmInput::F32
    }

    /// Thirty-two-column panels of the weight.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Number of work items for `rows` rows.
    pub fn work(&self, rows: &Dim) -> Dim {
        rows.ceil_div(ROW_BLOCK as i64) * Dim::from(self.panels() as i64)
    }

    /// Work items that a task should have at least.
    pub fn grain(&self) -> u64 {
        (TASK_MACS.div_ceil(self.k.max(1) * PANEL)).max(1) as u64
    }

    /// Where the widened rows of the left operand begin in a call's scratch.
    pub fn scratch_widened(&self) -> usize {
        SCRATCH_TILE + SCRATCH_ROWS * PANEL * 4
    }

    /// Where an unpacked panel of an INT4 weight begins in a call's scratch.
    pub fn scratch_panel(&self) -> usize {
        let widened = if self.is_quantized() { WIDENED_ROWS * self.k * 2 } else { 0 };
        self.scratch_widened() + widened
    }

    /// Rows of the packed weight.
    pub fn packed_rows(&self) -> usize {
        match self.weight {
            Elem::BF16 => self.k.next_multiple_of(pack::BF16_K_ALIGN),
            _ => self.k,
        }
    }

    /// Where the rounded rows of the left operand of a bf16 weight begin in a call's scratch.
    pub fn scratch_rounded(&self) -> usize {
        self.scratch_widened()
    }

    /// Scratch of a call in bytes, the same at every level.
    pub fn scratch_bytes(&self) -> u64 {
        let more = match self.weight {
            Elem::I4 => PANEL * self.k,
            // Levels without products of bf16 keep what they round as f32. Behind the rows of the
            // blocks is room for those that tiles reach.
            Elem::BF16 => (self.shared_blocks() * ROW_BLOCK + TILE_SLACK) * self.packed_rows() * 4,
            _ => 0,
        };
        (self.scratch_panel() + more) as u64
    }

    /// Most row blocks that pass by one panel of the weight before the next one comes.
    pub fn shared_blocks(&self) -> usize {
        let row = self.k.max(1) * if self.is_quantized() { 1 } else { self.weight.bytes(1) };
        (SHARED_LEFT / (ROW_BLOCK * row)).clamp(1, SHARED_BLOCKS)
    }

    /// Buffers of a call, the result included.
    pub fn buffers(&self) -> usize {
        let tables = if self.is_quantized() { 2 } else { 0 };
        let codes = if matches!(self.output, GemmOutput::Codes { .. }) { 2 } else { 0 };
        let tail = if self.pairs.is_some() { 2 } else { 0 };
        2 + tables + self.operands.len() + codes + tail + 1
    }

    /// What no kernel can be made for, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.n == 0 || self.k == 0 {
            return Err(format!("a gemm of {} columns and depth {}", self.n, self.k));
        }
        if self.is_quantized() && !self.k.is_multiple_of(pack::K_ALIGN) {
            return Err(format!("depth {} is not a multiple of {}", self.k, pack::K_ALIGN));
        }
        match (self.is_quantized(), self.weight) {
            (false, Elem::F32 | Elem::BF16) | (true, Elem::I8) => {}
            (true, Elem::I4) if self.k <= pack::I4_K_MAX => {}
            (true, Elem::I4) => return Err(format!("depth {} of a weight of i4", self.k)),
            (_, elem) => return Err(format!("a weight of {elem} for {:?}", self.input)),
        }
        if !self.is_quantized() && self.output == GemmOutput::I32 {
            return Err("a float gemm has no integer accumulators".to_owned());
        }
        let sums = if self.pairs.is_some() { 2 } else { 1 };
        if self.epilogue.arity() > sums + self.operands.len() {
            return Err(format!(
                "the epilogue uses {} arguments of {}",
                self.epilogue.arity(),
                sums + self.operands.len()
            ));
        }
        if let Some(Pairs { starts, .. }) = self.pairs {
            let codes = matches!(self.output, GemmOutput::Codes { .. }) && self.weight == Elem::I8;
            if !codes || !self.operands.is_empty() || !self.n.is_multiple_of(PANEL) {
                return Err(format!("pairs of {} columns of {}", self.n, self.weight));
            }
            if starts.iter().any(|start| !start.is_multiple_of(pack::GROUP)) {
                return Err(format!("parts that begin at columns {starts:?}"));
            }
        }
        Ok(())
    }
}

fn row_count(view: &View) -> Result<Dim, String> {
    match view.shape.as_slice() {
        [rows, _] => Ok(rows.clone()),
        shape => Err(format!("the left operand has {} axes, not 2", shape.len())),
    }
}

fn row_stride(view: &View, dims: &mut Vec<Dim>) -> Result<Stride, String> {
    let [stride, last] = view.strides.as_slice() else {
        return Err(format!("an operand has {} axes, not 2", view.strides.len()));
    };
    let columns = view.shape.last().and_then(Dim::as_const);
    if last.as_const() != Some(1) && columns != Some(1) {
        return Err(format!("the last stride of an operand is {last}, not 1"));
    }
    Ok(match stride.as_const() {
        Some(stride) => Stride::Const(stride),
        None => {
            dims.push(stride.clone());
            Stride::Dim((dims.len() - 1) as u32)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(n: usize, k: usize) -> GemmDesc {
        GemmDesc {
            n,
            k,
            depth: k,
            input: GemmInput::Codes { signed: true },
            weight: Elem::I8,
            row_stride: Stride::Const(k as i64),
            epilogue: Expr::arg(0),
            operands: Vec::new(),
            output: GemmOutput::F32,
            out_stride: Stride::Const(n as i64),
            pairs: None,
        }
    }

    #[test]
    fn items_are_row_blocks_times_panels() {
        for (rows, n, expected) in
            [(1i64, 384, 12), (64, 33, 2), (65, 33, 4), (4096, 1536, 64 * 48)]
        {
            assert_eq!(desc(n, 384).work(&Dim::from(rows)).as_const(), Some(expected));
        }
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(desc(3, 65).check(), Err("depth 65 is not a multiple of 64".to_owned()));
        let mut wide = desc(3, 128);
        wide.weight = Elem::I16;
        let fault = "a weight of i16 for Codes { signed: true }";
        assert_eq!(wide.check(), Err(fault.to_owned()));
        let deep = GemmDesc { weight: Elem::I4, ..desc(3, pack::I4_K_MAX + 64) };
        assert_eq!(deep.check(), Err("depth 65600 of a weight of i4".to_owned()));
        let mut lacking = desc(3, 64);
        lacking.epilogue = Expr::arg(1);
        assert_eq!(lacking.check(), Err("the epilogue uses 2 arguments of 1".to_owned()));
    }
}
