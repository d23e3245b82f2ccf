//! Products of INT4 codes by INT4 weights before Hopper, whose instruction for them has twice the rate of the
//! one for bytes: which weights are multiplied so.

use std::collections::BTreeSet;

use fqc_ir::plan::{GemmInput, GemmOutput, Kernel, Plan, RowQuantize, Step};
use fqc_ir::types::Elem;

use super::text::divides;
use super::{Arch, gemm};

/// Codes that a thread packs at a time.
const PIECE: usize = 32;

/// The weights that nothing but such products read, by buffer.
pub fn weights(plan: &Plan, arch: Arch) -> BTreeSet<usize> {
    if !arch.multiplies_int4() {
        return BTreeSet::new();
    }
    let narrow = narrow(plan);
    let (mut native, mut others) = (BTreeSet::new(), BTreeSet::new());
    for step in &plan.steps {
        for (i, arg) in step.args.iter().enumerate() {
            let fits = i == 1 && is_native(step, &narrow);
            if fits { &mut native } else { &mut others }.insert(arg.buffer.0);
        }
    }
    &native - &others
}

/// Whether a step is such a product; `narrow` has the buffers of codes of four bits.
fn is_native(step: &Step, narrow: &BTreeSet<usize>) -> bool {
    let Kernel::Gemm(own) = &step.kernel else { return false };
    own.weight == Elem::I4
        && own.input != GemmInput::F32
        && own.k.is_multiple_of(PIECE)
        && gemm::fits(step, own)
        && divides(PIECE as i64, &step.args[0].strides[0])
        && narrow.contains(&step.args[0].buffer.0)
}

/// Buffers that hold nothing but codes of at most four bits.
fn narrow(plan: &Plan) -> BTreeSet<usize> {
    let (mut narrow, mut others) = (BTreeSet::new(), BTreeSet::new());
    for step in &plan.steps {
        for result in &step.results {
            let elem = plan.buffer(result.buffer).elem;
            let few = elem == Elem::U8 && bits(step).is_some_and(|bits| bits <= 4);
            if few { &mut narrow } else { &mut others }.insert(result.buffer.0);
        }
    }
    &narrow - &others
}

/// Bits of the codes that a step makes.
fn bits(step: &Step) -> Option<u8> {
    let of_rows = |quantize: &RowQuantize| quantize.bits;
    match &step.kernel {
        Kernel::Norm { quantize, .. } => quantize.as_ref().map(of_rows),
        Kernel::Quantize { quantize, .. } => Some(of_rows(quantize)),
        Kernel::Gemm(own) => match own.output {
            GemmOutput::Codes { bits, .. } => Some(bits),
            _ => None,
        },
        _ => None,
    }
}
