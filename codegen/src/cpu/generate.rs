//! Plan to target image: the program, the weights, and one blob of code a level. Equal kernels are
//! emitted once.

use std::collections::BTreeMap;

use fqbin::{CodeImage, Level, TargetImage};
use fqc_ir::plan::{Plan, Step};
use inkwell::context::Context;

use super::CpuError;
use super::build::Code;
use super::call::{Call, Spec};
use crate::program::{Launch, Lowering};

/// Generates everything for `levels`. Each level is compiled on its own thread.
pub fn generate(plan: &Plan, levels: &[Level]) -> Result<TargetImage, CpuError> {
    let mut lowering = Lowering::new(plan, |_, _| None);
    let mut kernels = Kernels::default();
    for step in &plan.steps {
        kernels.step(&mut lowering, plan, step)?;
    }
    let Lowering { program, weights, .. } = lowering;
    let (program, kernels) = (program.finish(), kernels.entries.as_slice());
    let code: Result<Vec<CodeImage>, CpuError> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            levels.iter().map(|&level| scope.spawn(move || compile(kernels, level))).collect();
        threads.into_iter().map(|thread| thread.join().expect("compiling does not panic")).collect()
    });
    let target = "cpu".to_owned();
    Ok(TargetImage { target, program, weights: weights.bytes, code: code? })
}

/// A kernel of the program.
struct Entry {
    name: String,
    spec: Spec,
}

/// All kernels at one level.
fn compile(kernels: &[Entry], level: Level) -> Result<CodeImage, CpuError> {
    let context = Context::create();
    let code = Code::new(&context, &format!("fqc_{}", level.name()), level)?;
    for kernel in kernels {
        kernel.spec.emit(&code, &kernel.name)?;
    }
    let blob = code.finish()?;
    let entry = |kernel: &Entry| {
        blob.entries.get(&kernel.name).copied().ok_or_else(|| CpuError::Object {
            module: level.name().to_owned(),
            reason: format!("kernel `{}` is missing", kernel.name),
        })
    };
    let entries = kernels.iter().map(entry).collect::<Result<Vec<u32>, CpuError>>()?;
    Ok(CodeImage { level: level.name().to_owned(), entries, bytes: blob.bytes })
}

/// The kernels of a program.
#[derive(Default)]
struct Kernels {
    entries: Vec<Entry>,
    /// Index of a kernel by everything its code depends on.
    known: BTreeMap<String, usize>,
}

impl Kernels {
    fn step(&mut self, lowering: &mut Lowering, plan: &Plan, step: &Step) -> Result<(), CpuError> {
        let call = Call::of(plan, step)?;
        let key = format!("{:?}", call.spec);
        let index = match self.known.get(&key) {
            Some(&index) => index,
            None => {
                let index = self.entries.len();
                let name = format!("{}_{index}", step.kernel.name());
                self.entries.push(Entry { name, spec: call.spec });
                self.known.insert(key, index);
                index
            }
        };
        let launch = Launch {
            kernel: lowering.program.kernel(&self.entries[index].name),
            dims: &call.dims,
            work: &call.work,
            grain: call.grain,
            scratch_bytes: &call.scratch_bytes,
            ops: &call.ops,
        };
        lowering.step(plan, step, &launch);
        Ok(())
    }
}
