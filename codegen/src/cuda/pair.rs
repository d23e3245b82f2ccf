//! A gemm of two parts, an expression over both and a quantisation of the result (`silu(gate) * up`) as one
//! launch: columns that belong together become neighbours, so that one thread has both sums, and those
//! of flattened channels are repeated, so that a tail is written like the base.

use std::collections::BTreeMap;

use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Extra, Gemm, Kernel, Place, Plan, Step, View};
use fqc_ir::types::Elem;

use super::fuse::{Kind, Unit};
use super::{Arch, gemm};
use crate::parts::{numbers, parts, rows_of_codes};
use fqc_kernels::pack::GROUP;

/// Sources of the columns of a weight, by its buffer; none for zeros.
pub type Columns = BTreeMap<usize, Vec<Option<usize>>>;

/// The launch of a gemm and the quantisation that alone reads its result, where the kernel is there.
pub fn unit(
    plan: &mut Plan,
    readers: &[usize],
    arch: Arch,
    step: &Step,
    codes: &Step,
    paired: &mut Columns,
) -> Option<Unit> {
    let (Kernel::Gemm(own), Kernel::Quantize { expr, quantize }) = (&step.kernel, &codes.kernel)
    else {
        return None;
    };
    let starts = parts(plan, step, own, codes, quantize)?;
    let constants: Vec<usize> = (1..step.args.len())
        .map(|i| step.args[i].buffer.0)
        .chain([codes.args[2].buffer.0, codes.args[4].buffer.0])
        .collect();
    let plain = own.extras.iter().all(|e| *e == Extra::PerColumn);
    let alone = readers[step.results[0].buffer.0] == 2
        && constants.iter().all(|&buffer| readers[buffer] == 1);
    if arch != Arch::Sm90a || !gemm::fits(step, own) || !plain || !alone {
        return None;
    }
    // Source channel and what lies below its digit, of every code.
    let sources = numbers(plan, &codes.args[3], i32::from_le_bytes)?;
    let below = numbers(plan, &codes.args[4], f32::from_le_bytes)?;
    let inverse = numbers(plan, &codes.args[2], f32::from_le_bytes)?;
    let tail = sources.iter().zip(&below).map(|(&s, &b)| Some((s as usize, b)));
    let mut channels: Vec<Option<(usize, f32)>> =
        (0..quantize.base).map(|j| Some((j, 0.0))).collect();
    channels.extend(tail);
    channels.resize(quantize.padded, None);
    let columns: Vec<Option<usize>> = channels
        .iter()
        .flat_map(|c| starts.map(|start| c.map(|(channel, _)| start + channel)))
        .collect();
    let of_code = |value: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
        channels.iter().map(|c| c.map_or(0.0, |(j, below)| value(j, below))).collect()
    };
    let (inverse, below) = (of_code(&|j, _| inverse[j]), of_code(&|_, below| below));
    let mut args = step.args.clone();
    for arg in args.iter_mut().skip(2) {
        *arg = by_column(plan, arg, &columns)?;
    }
    for (view, values) in [(&codes.args[2], inverse), (&codes.args[4], below)] {
        let table = Const::f32(vec![values.len()], &values);
        args.push(replace(plan, view, table));
    }
    let gemm = Gemm { n: columns.len(), ..own.clone() };
    args[1] = packed(plan, &args[1], &gemm);
    paired.insert(args[1].buffer.0, columns);
    let kind = Kind::Pairs { expr: expr.clone(), codes: quantize.clone() };
    let results = vec![rows_of_codes(&codes.results[0])?];
    Some(Unit { step: Step { kernel: Kernel::Gemm(gemm), args, results, ..codes.clone() }, kind })
}

/// A table by column, in the order of `columns`, which no other step reads.
pub(super) fn by_column(plan: &mut Plan, view: &View, columns: &[Option<usize>]) -> Option<View> {
    let Place::Const(table) = &plan.buffer(view.buffer).place else { return None };
    let words: Vec<[u8; 4]> =
        table.bytes.as_slice().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    let picked = columns.iter().map(|c| c.map_or([0; 4], |c| words[c]));
    let mut bytes: Vec<u8> = picked.flatten().collect();
    let count = columns.len().next_multiple_of(GROUP);
    bytes.resize(4 * count, 0);
    let table = Const::new(table.elem, vec![count], bytes)?;
    Some(replace(plan, view, table))
}

/// Puts another constant in the place of one that no other step reads.
fn replace(plan: &mut Plan, view: &View, table: Const) -> View {
    let shape: Vec<Dim> = table.shape.iter().map(|&d| Dim::from(d)).collect();
    let buffer = &mut plan.buffers[view.buffer.0];
    buffer.shape = shape.clone();
    buffer.elem = table.elem;
    buffer.place = Place::Const(table);
    View::whole(view.buffer, &shape)
}

/// The view of a weight that has as many columns as `gemm`; its bytes are packed later.
fn packed(plan: &mut Plan, view: &View, gemm: &Gemm) -> View {
    let buffer = &mut plan.buffers[view.buffer.0];
    let columns = gemm.n.next_multiple_of(GROUP);
    buffer.shape = vec![Dim::from(columns), Dim::from(gemm.k)];
    let shape = buffer.shape.clone();
    debug_assert!(matches!(gemm.weight, Elem::I8 | Elem::I4), "only codes are packed anew");
    View::whole(view.buffer, &shape)
}
