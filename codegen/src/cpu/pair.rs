//! A gemm and the quantisation of two of its parts (`silu(gate) * up`) as one step: the floats between
//! the two, twice as many as anything else in a transformer's block, are never written.

use std::borrow::Cow;

use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::expr::Expr;
use fqc_ir::plan::{
    Buffer, BufferId, Gemm, GemmOutput, Kernel, Place, Plan, RowQuantize, Step, View,
};
use fqc_ir::types::Elem;
use fqc_kernels::gemm::GemmCall;
use fqc_kernels::pack::GROUP;

use super::CpuError;
use super::call::{Call, unsupported};
use crate::parts::{numbers, parts, rows_of_codes};

/// What a step is beside what the plan says of it.
pub type Codes = Option<([usize; 2], RowQuantize)>;

/// The plan with such steps as one, and for each of its steps whether it is one.
pub fn join(plan: &Plan) -> (Cow<'_, Plan>, Vec<Codes>) {
    let mut readers = vec![0; plan.buffers.len()];
    plan.steps.iter().flat_map(|s| &s.args).for_each(|arg| readers[arg.buffer.0] += 1);
    let mut joined = Cow::Borrowed(plan);
    let (mut steps, mut kinds) = (Vec::new(), Vec::new());
    let mut rest = &plan.steps[..];
    while let [step, after @ ..] = rest {
        let pair = after.first().and_then(|codes| pair(plan, &readers, step, codes));
        rest = &after[usize::from(pair.is_some())..];
        match pair {
            None => {
                steps.push(step.clone());
                kinds.push(None);
            }
            Some(Pair { mut step, first, codes }) => {
                let plan = joined.to_mut();
                let shape = vec![Dim::from(first.shape[0])];
                let (name, elem) = (format!("{}.tail_first", step.name), first.elem);
                let (id, place) = (BufferId(plan.buffers.len()), Place::Const(first));
                plan.buffers.push(Buffer { name, elem, shape: shape.clone(), place });
                step.args.push(View::whole(id, &shape));
                steps.push(step);
                kinds.push(Some(codes));
            }
        }
    }
    if let Cow::Owned(plan) = &mut joined {
        plan.steps = steps;
    }
    (joined, kinds)
}

/// Two steps as one, but for its last argument, a table that is not in the plan.
struct Pair {
    step: Step,
    first: Const,
    codes: ([usize; 2], RowQuantize),
}

fn pair(plan: &Plan, readers: &[usize], step: &Step, codes: &Step) -> Option<Pair> {
    let (Kernel::Gemm(own), Kernel::Quantize { expr, quantize }) = (&step.kernel, &codes.kernel)
    else {
        return None;
    };
    let starts = parts(plan, step, own, codes, quantize)?;
    let whole = |start: &usize| start.is_multiple_of(GROUP);
    let fits = own.weight == Elem::I8
        && own.extras.is_empty()
        && own.epilogue == Expr::Arg(0)
        && readers[step.results[0].buffer.0] == 2
        && starts.iter().all(whole)
        && whole(&quantize.base);
    let channels = numbers(plan, &codes.args[3], i32::from_le_bytes)?;
    if !fits || !channels.is_sorted() {
        return None;
    }
    let first = (0..=quantize.base / GROUP)
        .map(|panel| channels.partition_point(|&c| (c as usize) < panel * GROUP) as i32);
    let bytes: Vec<u8> = first.flat_map(i32::to_le_bytes).collect();
    let first = Const::new(Elem::I32, vec![bytes.len() / 4], bytes)?;
    let RowQuantize { signed, bits, base, .. } = *quantize;
    let output = GemmOutput::Codes { signed, bits };
    let gemm = Gemm { n: 2 * base, epilogue: expr.clone(), output, ..own.clone() };
    let [_, _, inverse, source, below] = &codes.args[..] else { return None };
    let mut args = step.args.clone();
    args.extend([inverse, below, source].map(View::clone));
    let results = vec![rows_of_codes(&codes.results[0])?];
    let step = Step { kernel: Kernel::Gemm(gemm), args, results, ..codes.clone() };
    Some(Pair { step, first, codes: (starts, quantize.clone()) })
}

/// Takes such a step apart.
pub fn call(step: &Step, (starts, quantize): &([usize; 2], RowQuantize)) -> Result<Call, CpuError> {
    let Kernel::Gemm(gemm) = &step.kernel else {
        return Err(unsupported(step, "is no gemm"));
    };
    let call = GemmCall::pairs(step, gemm, *starts, quantize);
    Ok(Call::gemm(call.map_err(|reason| unsupported(step, reason))?))
}
