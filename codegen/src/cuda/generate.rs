//! Plan to target image for one architecture: the program, the weights, and the cubins. Equal
//! kernels are compiled once; every step that no kernel fits is named.

use std::collections::BTreeMap;

use fqbin::{CodeImage, KernelId, TargetImage};
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Kernel, Plan, Step, View};
use fqc_ir::types::Elem;

use super::attention::{Attention, attention};
use super::rows::{self, Norm};
use super::text::Call;
use super::{Arch, Compiler, Error, elementwise, products};
use crate::program::{Launch, Lowering};

/// Alignment of a cubin within the code.
const CUBIN_ALIGN: usize = 64;

/// Generates everything for `arch`.
///
/// # Errors
/// [`Error::Unsupported`] with every step that no kernel fits; those of the compiler.
pub fn generate(plan: &Plan, arch: Arch, compiler: &Compiler) -> Result<TargetImage, Error> {
    let mut image = Kernels::default();
    let mut lowering = Lowering::new(plan);
    let mut refused = Vec::new();
    for step in &plan.steps {
        match plain(plan, step) {
            Ok(call) => image.step(&mut lowering, plan, step, &call),
            Err(reason) => {
                refused.push(format!("{} `{}`: {reason}", step.kernel.name(), step.name));
            }
        }
    }
    if !refused.is_empty() {
        return Err(Error::Unsupported(refused));
    }
    let Lowering { program, weights, .. } = lowering;
    let code = image.compile(arch, compiler)?;
    Ok(TargetImage {
        target: format!("cuda:{arch}"),
        program: program.finish(),
        weights: weights.bytes,
        code: vec![code],
    })
}

/// The generated kernel of a step.
fn plain(plan: &Plan, step: &Step) -> Result<Call, String> {
    let elem = |view: &View| plan.buffer(view.buffer).elem;
    let elems: Vec<Elem> = step.args.iter().chain(&step.results).map(elem).collect();
    if let Some(narrow) = elems.iter().find(|e| e.bits() < 8)
        && !matches!(step.kernel, Kernel::Gemm(_))
    {
        return Err(format!("elements of {narrow} are not addressable on CUDA"));
    }
    match &step.kernel {
        Kernel::Gemm(gemm) => products::gemm(step, gemm),
        Kernel::MatMul => products::matmul(step, &elems),
        Kernel::Pointwise(expr) => elementwise::pointwise(step, expr, &elems),
        Kernel::Reduce { op, keep } => rows::reduce(step, *op, *keep, &elems),
        Kernel::ArgReduce { largest, last } => rows::arg_reduce(step, *largest, *last, &elems),
        Kernel::CumSum { exclusive, reverse } => rows::cumsum(step, *exclusive, *reverse, &elems),
        Kernel::Softmax => rows::softmax(step, &elems),
        Kernel::Norm { kind, epsilon, float, quantize } => {
            let (kind, epsilon, float) = (*kind, *epsilon, *float);
            let norm = Norm { kind, epsilon, float, quantize: quantize.as_ref() };
            rows::norm(step, &norm, &elems)
        }
        Kernel::Quantize { expr, quantize } => elementwise::quantize(step, expr, quantize, &elems),
        Kernel::Attention { scale, causal, mask, precision: _ } => {
            let spec = Attention { scale: *scale, causal: *causal, mask: *mask };
            attention(step, &spec, &elems)
        }
        Kernel::Gather { axis, index_rank } => {
            elementwise::gather(step, *axis, *index_rank, &elems)
        }
        Kernel::GatherElements { axis } => elementwise::gather_elements(step, *axis, &elems),
        Kernel::Iota => Ok(elementwise::iota(step)),
        Kernel::Dims(values) => Ok(elementwise::dims(step, values)),
        Kernel::GatherNd { .. } | Kernel::ScatterElements { .. } | Kernel::ScatterNd { .. } => {
            Err("there is no kernel of this family for CUDA yet".into())
        }
    }
}

/// A kernel of the program.
struct Entry {
    name: String,
    source: String,
}

/// The kernels of a program.
#[derive(Default)]
struct Kernels {
    entries: Vec<Entry>,
    /// Index of a kernel by its text.
    known: BTreeMap<String, usize>,
}

impl Kernels {
    fn step(&mut self, lowering: &mut Lowering, plan: &Plan, step: &Step, call: &Call) {
        let key = call.source("_");
        let index = match self.known.get(&key) {
            Some(&index) => index,
            None => {
                let index = self.entries.len();
                let name = format!("{}_{index}", step.kernel.name());
                self.entries.push(Entry { source: call.source(&name), name: name.clone() });
                self.known.insert(key, index);
                let kernel = lowering.program.kernel(&name);
                lowering.program.kernel_attr(kernel, "threads", call.threads.into());
                lowering.program.kernel_attr(kernel, "items", call.items.into());
                index
            }
        };
        let kernel: KernelId = lowering.program.kernel(&self.entries[index].name);
        let launch = Launch {
            kernel,
            dims: &call.dims,
            work: &call.work,
            grain: 1,
            scratch_bytes: &Dim::zero(),
            ops: &call.ops,
        };
        lowering.step(plan, step, &launch);
    }

    /// All generated kernels in one cubin.
    fn compile(&self, arch: Arch, compiler: &Compiler) -> Result<CodeImage, Error> {
        let mut source = String::from("#include \"scalar.cuh\"\n");
        for entry in &self.entries {
            source.push('\n');
            source.push_str(&entry.source);
        }
        let mut bytes = compiler.generated("generated", &source, arch)?;
        bytes.resize(bytes.len().next_multiple_of(CUBIN_ALIGN), 0);
        let entries = vec![0; self.entries.len()];
        Ok(CodeImage { level: String::new(), entries, bytes })
    }
}
