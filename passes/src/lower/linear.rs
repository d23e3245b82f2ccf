//! Matrix products: constant weights are packed here into the order the kernels read.

use super::{CODE_ALIGN, Lowered, Lowering, view};
use fqc_ir::plan::{Extra, Gemm, GemmInput, GemmOutput, Kernel, Precision, View};
use fqc_ir::{Const, Dim, Elem, Expr, NodeId, Op, Quantizer, Scale};
use fqc_kernels::pack;
use std::borrow::Cow;

impl Lowering<'_> {
    pub(super) fn linear_op(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        match &self.graph.node(id).op {
            Op::MatMul => self.matmul(id, operands),
            Op::Gemm { epilogue, out } => {
                let (epilogue, out) = (epilogue.clone(), out.clone());
                self.gemm(id, operands, epilogue, out.as_deref())
            }
            Op::GemmAccumulate => self.accumulate(id, operands),
            other => unreachable!("`{}` is not a linear operation", other.mnemonic()),
        }
    }

    fn matmul(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let result = self.result(id);
        let rank = result.shape.len();
        let mut args = Vec::new();
        for &operand in operands {
            let x = self.value(operand);
            let mut shape = result.shape[..rank - 2].to_vec();
            shape.extend_from_slice(&x.shape[x.shape.len() - 2..]);
            args.push(view::broadcast(&x, &shape));
        }
        let name = self.graph.node(id).name.clone();
        self.step(&name, Kernel::MatMul, args, vec![result]);
        Ok(())
    }

    fn gemm(
        &mut self,
        id: NodeId,
        operands: &[NodeId],
        epilogue: Expr,
        out: Option<&Quantizer>,
    ) -> Lowered {
        let w = self.weight(operands[1])?;
        let mut extras = Vec::new();
        for &operand in &operands[2..] {
            let per_column = self.ty(operand).rank() == 1 && self.const_of(operand).is_some();
            extras.push(if per_column { Extra::PerColumn } else { Extra::PerElement });
        }
        // Per-element operands are indexed by column, which may be repeated.
        let in_one_step = !extras.contains(&Extra::PerElement);
        // The source column of each result column, and for codes the digit it holds.
        let columns: Vec<Option<(usize, u32)>> = match out {
            Some(q) if in_one_step => code_columns(q, w.n),
            _ => (0..w.n).map(|o| Some((o, 1))).collect(),
        };
        let (input, mut args) = self.gemm_input(id, operands, &w, &columns)?;
        for (&operand, extra) in operands[2..].iter().zip(&extras) {
            let arg = match extra {
                Extra::PerColumn => {
                    let values = self.const_of(operand).and_then(Const::to_f32);
                    let values = values.ok_or("an epilogue operand is not f32")?;
                    let picked = pick(&columns, |o| values[o]);
                    let name = self.graph.node(operand).name.clone();
                    self.constant(&name, f32_table(&picked))
                }
                Extra::PerElement => {
                    let shape = self.ty(id).shape.clone();
                    let extra = view::broadcast(&self.value(operand), &shape);
                    self.matrix(id, extra)
                }
            };
            args.push(arg);
        }
        let name = self.graph.node(id).name.clone();
        let mut gemm = Gemm {
            n: columns.len(),
            k: w.k_packed,
            depth: w.depth,
            input,
            weight: w.elem(),
            epilogue,
            extras,
            output: GemmOutput::F32,
        };
        match out {
            None => {
                let result = self.result(id);
                let result = view::rows(&result).expect("a result buffer has even rows");
                self.step(&name, Kernel::Gemm(gemm), args, vec![result]);
            }
            Some(q) if in_one_step => {
                let q_max = q.quant.q_max() as f32;
                let inverse = pick(&columns, |o| q.inverse(o));
                let lo: Vec<f32> = columns
                    .iter()
                    .map(|c| c.map_or(0.0, |(_, k)| (k - 1) as f32 * q_max))
                    .collect();
                args.push(self.constant(&format!("{name}.inverse"), f32_table(&inverse)));
                args.push(self.constant(&format!("{name}.lo"), f32_table(&lo)));
                let (signed, bits) = (q.quant.signed, q.quant.bits);
                gemm.output = GemmOutput::Codes { signed, bits };
                let result = self.code_result(id);
                let result = view::rows(&result).expect("a result buffer has even rows");
                self.step(&name, Kernel::Gemm(gemm), args, vec![result]);
            }
            Some(q) => {
                let mut shape = self.ty(id).shape.clone();
                *shape.last_mut().expect("a gemm's result has columns") = Dim::from(w.n);
                let buffer = self.arena(id, Elem::F32, shape.clone());
                let float = View::whole(buffer, &shape);
                let rows = view::rows(&float).expect("a whole buffer has even rows");
                self.step(&name, Kernel::Gemm(gemm), args, vec![rows]);
                self.quantize_rows(id, Expr::arg(0), vec![float], q)?;
            }
        }
        Ok(())
    }

    fn accumulate(&mut self, id: NodeId, operands: &[NodeId]) -> Lowered {
        let w = self.weight(operands[1])?;
        let columns: Vec<Option<(usize, u32)>> = (0..w.n).map(|o| Some((o, 1))).collect();
        let (input, args) = self.gemm_input(id, operands, &w, &columns)?;
        let result = self.result(id);
        let result = view::rows(&result).expect("a result buffer has even rows");
        let gemm = Gemm {
            n: w.n,
            k: w.k_packed,
            depth: w.depth,
            input,
            weight: w.elem(),
            epilogue: Expr::arg(0),
            extras: vec![],
            output: GemmOutput::I32,
        };
        let name = self.graph.node(id).name.clone();
        self.step(&name, Kernel::Gemm(gemm), args, vec![result]);
        Ok(())
    }

    /// The left operand, the packed weight and, for codes, the tables of scales and first
    /// accumulators.
    fn gemm_input(
        &mut self,
        id: NodeId,
        operands: &[NodeId],
        w: &Weight,
        columns: &[Option<(usize, u32)>],
    ) -> Result<(GemmInput, Vec<View>), String> {
        let (x, w_name) = (self.value(operands[0]), self.graph.node(operands[1]).name.clone());
        match &w.data {
            WeightData::Float { values, .. } => {
                let a = self.matrix(id, x);
                let picked = pick_columns(values, w.k, w.n, columns);
                let packed = packed_floats(&picked, w.k, columns.len(), w.elem());
                let packed = self.constant(&w_name, packed);
                Ok((GemmInput::F32, vec![a, packed]))
            }
            WeightData::Codes { codes, scales, bits } => {
                let ty = self.ty(operands[0]);
                let quant = ty.quant.as_ref().ok_or("the left operand has no quantisation")?;
                let Scale::Tensor(s_x) = quant.scale else {
                    return Err("the left operand has a scale for each channel".into());
                };
                let a = self.code_matrix(&x)?;
                let picked = pick_columns(codes, w.k, w.n, columns);
                let n = columns.len();
                let packed = packed_codes(&picked, w.k, n, w.k_packed, *bits);
                let start = pack::accumulator_start(&picked, w.k, n, quant.signed);
                let scale = pick(columns, |o| s_x * scales[o]);
                let args = vec![
                    a,
                    self.constant(&w_name, packed),
                    self.constant(&format!("{w_name}.scale"), f32_table(&scale)),
                    self.constant(&format!("{w_name}.start"), i32_table(&start)),
                ];
                Ok((GemmInput::Codes { signed: quant.signed }, args))
            }
        }
    }

    /// Codes as a matrix of whole padded rows.
    fn code_matrix(&mut self, x: &View) -> Result<View, String> {
        let buffer = x.buffer;
        if self.elem(x) != Elem::U8 || x.offset != Dim::zero() {
            return Err("the left operand's codes are not a whole value".into());
        }
        let shape = self.plan.buffer(buffer).shape.clone();
        if shape.len() != x.shape.len() {
            return Err("the left operand's codes were reshaped".into());
        }
        view::rows(&View::whole(buffer, &shape)).ok_or_else(|| "codes lie in uneven rows".into())
    }

    /// The constant weight of a linear layer.
    fn weight(&self, id: NodeId) -> Result<Weight, String> {
        let value = self.const_of(id).ok_or("its weight is not a constant")?;
        let [k, n] = value.shape[..] else {
            return Err(format!("its weight has rank {}, not 2", value.shape.len()));
        };
        if let Some(values) = value.to_f32() {
            let data = WeightData::Float { values, precision: self.precision };
            return Ok(Weight { k, n, k_packed: k, depth: k, data });
        }
        let quant = self.ty(id).quant.as_ref().ok_or("its integer weight has no scale")?;
        let scales = match &quant.scale {
            Scale::Tensor(s) => vec![*s; n],
            Scale::Axis { axis: 1, scales } if scales.len() == n => scales.to_vec(),
            Scale::Axis { axis, .. } => {
                return Err(format!("its weight has scales along axis {axis}, not 1"));
            }
        };
        let codes = value.to_i64().ok_or("its weight is neither f32 nor integer")?;
        let codes: Vec<i8> = codes.into_iter().map(|c| c as i8).collect();
        let k_packed = k.next_multiple_of(CODE_ALIGN as usize);
        let last = codes.iter().rposition(|&c| c != 0);
        let depth = last.map_or(1, |at| at / n.max(1) + 1);
        // What has four bits is kept in four bits, if the kernels have room for such sums.
        let narrow = quant.bits == 4
            && k_packed <= pack::I4_K_MAX
            && codes.iter().all(|c| (-8..8).contains(c));
        let bits = if narrow { 4 } else { 8 };
        Ok(Weight { k, n, k_packed, depth, data: WeightData::Codes { codes, scales, bits } })
    }
}

struct Weight {
    k: usize,
    n: usize,
    /// Rows of the packed weight.
    k_packed: usize,
    /// Rows up to the last that is not all zeros.
    depth: usize,
    data: WeightData,
}

enum WeightData {
    Float {
        values: Vec<f32>,
        precision: Precision,
    },
    /// Codes of 8 or 4 bits and the scale of each column.
    Codes {
        codes: Vec<i8>,
        scales: Vec<f32>,
        bits: u8,
    },
}

impl Weight {
    /// The element type of the packed weight.
    fn elem(&self) -> Elem {
        match self.data {
            WeightData::Float { precision: Precision::Bf16, .. } => Elem::BF16,
            WeightData::Float { .. } => Elem::F32,
            WeightData::Codes { bits: 4, .. } => Elem::I4,
            WeightData::Codes { .. } => Elem::I8,
        }
    }
}

/// A float weight in the order of the kernels.
fn packed_floats(w: &[f32], k: usize, n: usize, elem: Elem) -> Const {
    let groups = pack::groups(n);
    if elem == Elem::F32 {
        return Const::f32(vec![groups, k, pack::GROUP], &pack::pack_f32(w, k, n));
    }
    let pairs = k.next_multiple_of(pack::BF16_K_ALIGN) / pack::PAIR;
    let shape = vec![groups, pairs, pack::GROUP, pack::PAIR];
    Const::new(Elem::BF16, shape, pack::pack_bf16(w, k, n)).expect("two bytes a value")
}

/// A weight of codes in the order of the kernels.
fn packed_codes(w: &[i8], k: usize, n: usize, k_packed: usize, bits: u8) -> Const {
    let mut shape = vec![pack::groups(n), k_packed / pack::DOT, pack::GROUP, pack::DOT];
    if bits == 8 {
        return Const::i8(shape, &pack::pack_i8(w, k, n, k_packed));
    }
    shape[1] /= pack::HALVES;
    shape.push(pack::HALVES);
    let bytes = pack::pack_i4(w, k, n, k_packed);
    Const::new(Elem::I4, shape, bytes).expect("two codes a byte")
}

/// For each byte of a padded row of codes: the column it comes from and its digit. A producing gemm
/// repeats the columns of flattened channels, so that its epilogue writes the tail like the base.
fn code_columns(q: &Quantizer, n: usize) -> Vec<Option<(usize, u32)>> {
    let width = q.out_channels(n as i64) as usize;
    let padded = width.next_multiple_of(CODE_ALIGN as usize);
    (0..padded)
        .map(|i| match &q.quant.flatten {
            Some(map) if i < width => map.source(i),
            _ => (i < n).then_some((i, 1)),
        })
        .collect()
}

/// A value for each column, zero for padding.
fn pick(columns: &[Option<(usize, u32)>], value: impl Fn(usize) -> f32) -> Vec<f32> {
    columns.iter().map(|c| c.map_or(0.0, |(o, _)| value(o))).collect()
}

/// The columns of a row-major `[k, n]` matrix in the given order, zeros for padding.
fn pick_columns<'w, T: Copy + Default>(
    w: &'w [T],
    k: usize,
    n: usize,
    columns: &[Option<(usize, u32)>],
) -> Cow<'w, [T]> {
    let in_place = |(i, column): (usize, &Option<(usize, u32)>)| column.is_some_and(|c| c.0 == i);
    if columns.len() == n && columns.iter().enumerate().all(in_place) {
        return Cow::Borrowed(w);
    }
    let mut out = Vec::with_capacity(k * columns.len());
    for row in w.chunks_exact(n.max(1)) {
        out.extend(columns.iter().map(|c| c.map_or(T::default(), |(o, _)| row[o])));
    }
    Cow::Owned(out)
}

/// A per-column table, padded to whole groups of columns.
fn f32_table(values: &[f32]) -> Const {
    let padded = pack::pad_columns(values);
    Const::f32(vec![padded.len()], &padded)
}

fn i32_table(values: &[i32]) -> Const {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Const::new(Elem::I32, vec![values.len()], bytes).expect("four bytes a value")
}
