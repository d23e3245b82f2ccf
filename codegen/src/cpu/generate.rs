//! Plan to target image: the program, the weights, and one blob of code a level. Equal kernels are
//! emitted once.

use std::collections::BTreeMap;

use fqbin::{CodeImage, Level, TargetImage};
use fqc_ir::plan::{self, Plan, Step};
use inkwell::context::Context;

use super::CpuError;
use super::build::Code;
use super::call::{Call, Spec};
use super::object::Blob;
use super::pair;
use crate::program::{Launch, Lowering};

/// Generates everything for `levels`. Each level is compiled on its own thread.
pub fn generate(plan: &Plan, levels: &[Level]) -> Result<TargetImage, CpuError> {
    let (lowering, kernels) = lower(plan)?;
    let Lowering { program, constants, .. } = lowering;
    let (program, kernels) = (program.finish(), kernels.entries.as_slice());
    let code: Result<Vec<CodeImage>, CpuError> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            levels.iter().map(|&level| scope.spawn(move || compile(kernels, level))).collect();
        threads.into_iter().map(|thread| thread.join().expect("compiling does not panic")).collect()
    });
    let target = "cpu".to_owned();
    Ok(TargetImage { target, program, weights: constants.weights, code: code? })
}

/// The program of a plan and its kernels.
fn lower(plan: &Plan) -> Result<(Lowering, Kernels), CpuError> {
    let (joined, codes) = pair::join(plan);
    let mut lowering = Lowering::new(&joined, |_, _| None);
    let mut kernels = Kernels::default();
    for (step, codes) in joined.steps.iter().zip(&codes) {
        let call = match codes {
            Some(codes) => pair::call(step, codes)?,
            None => Call::of(&joined, step)?,
        };
        kernels.step(&mut lowering, &joined, step, call);
    }
    if let Some(symbol) = plan::batch(plan) {
        lowering.program.batch(&symbol);
    }
    Ok((lowering, kernels))
}

/// Code of one level for many programs in this process: a kernel that an earlier program had is not
/// compiled again.
pub struct SharedCode {
    level: Level,
    /// Blobs one after another.
    bytes: Vec<u8>,
    /// Where a kernel's entry is, by everything its code depends on.
    entries: BTreeMap<String, u32>,
}

impl SharedCode {
    pub fn new(level: Level) -> SharedCode {
        SharedCode { level, bytes: Vec::new(), entries: BTreeMap::new() }
    }

    /// Generates one program; its code holds those before too.
    pub fn generate(&mut self, plan: &Plan) -> Result<TargetImage, CpuError> {
        let (lowering, kernels) = lower(plan)?;
        let Lowering { program, constants, .. } = lowering;
        let is_new = |kernel: &Entry| !self.entries.contains_key(&kernel.key);
        let (new, old): (Vec<Entry>, Vec<Entry>) = kernels.entries.into_iter().partition(is_new);
        if !new.is_empty() {
            let code = compile(&new, self.level)?;
            let base = self.bytes.len().next_multiple_of(Blob::ALIGN as usize);
            self.bytes.resize(base, 0);
            self.bytes.extend_from_slice(&code.bytes);
            for (kernel, entry) in new.iter().zip(&code.entries) {
                let at = u32::try_from(base).ok().and_then(|base| base.checked_add(*entry));
                let at = at.ok_or_else(|| CpuError::Object {
                    module: self.level.name().to_owned(),
                    reason: "more than 4 GiB of code".to_owned(),
                })?;
                self.entries.insert(kernel.key.clone(), at);
            }
        }
        let program = program.finish();
        let entry = |kernel: &fqbin::Kernel| {
            let all = || new.iter().chain(&old);
            let entry = all().find(|e| e.name == kernel.name).expect("a kernel of this program");
            self.entries[&entry.key]
        };
        let entries = program.kernels.iter().map(entry).collect();
        let level = self.level.name().to_owned();
        let code = vec![CodeImage { level, entries, bytes: self.bytes.clone() }];
        Ok(TargetImage { target: "cpu".to_owned(), program, weights: constants.weights, code })
    }
}

/// A kernel of the program.
struct Entry {
    name: String,
    spec: Spec,
    /// Everything its code depends on.
    key: String,
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
    fn step(&mut self, lowering: &mut Lowering, plan: &Plan, step: &Step, call: Call) {
        let key = format!("{:?}", call.spec);
        let index = match self.known.get(&key) {
            Some(&index) => index,
            None => {
                let index = self.entries.len();
                let name = format!("{}_{index}", step.kernel.name());
                self.entries.push(Entry { name, spec: call.spec, key: key.clone() });
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
    }
}
