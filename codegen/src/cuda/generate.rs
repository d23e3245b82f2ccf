//! Plan to target image for one architecture: the program, the weights, and the cubins. Equal
//! kernels are compiled once; every step that no kernel fits is named.

use std::collections::{BTreeMap, BTreeSet};

use fqbin::{CodeImage, KernelId, TargetImage};
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Gemm, Kernel, Place, Plan, Step, View};
use fqc_ir::types::Elem;

use super::attention::{self, Attention};
use super::fuse::{self, Kind, Unit};
use super::gemm::Instance;
use super::norm::{self, Norm};
use super::tuning::{Layer, Tuning};
use super::writer::Pairing;
use super::{
    Arch, Compiler, Error, attention_sm90, elementwise, gemm, gemm_sm80, halves, native, pair,
    products, rotary, rows,
};
use crate::program::{Launch, Lowering};

/// Alignment of a cubin within the code.
pub(super) const CUBIN_ALIGN: usize = 64;

/// Generates everything for `arch`.
///
/// # Errors
/// [`Error::Unsupported`] with every step that no kernel fits; those of the compiler.
pub fn generate(plan: &Plan, arch: Arch, compiler: &Compiler) -> Result<TargetImage, Error> {
    generate_tuned(plan, arch, &Tuning::default(), compiler)
}

/// The same with tiles that were measured, where `tuning` has any.
///
/// # Errors
/// Those of [`generate`].
pub fn generate_tuned(
    plan: &Plan,
    arch: Arch,
    tuning: &Tuning,
    compiler: &Compiler,
) -> Result<TargetImage, Error> {
    image(Launches::of(plan, arch), arch, tuning, compiler)
}

/// The image of launches.
pub(super) fn image(
    launches: Launches,
    arch: Arch,
    tuning: &Tuning,
    compiler: &Compiler,
) -> Result<TargetImage, Error> {
    let (kernels, lowering) = lower(launches, arch, tuning)?;
    let Lowering { program, constants, .. } = lowering;
    let code = kernels.compile(arch, compiler)?;
    Ok(TargetImage {
        target: format!("cuda:{arch}"),
        program: program.finish(),
        weights: constants.weights,
        code: vec![code],
    })
}

/// Name and text of every kernel of a plan, for reading.
///
/// # Errors
/// [`Error::Unsupported`] as for [`generate`].
pub fn sources(plan: &Plan, arch: Arch) -> Result<Vec<(String, String)>, Error> {
    let (kernels, _) = lower(Launches::of(plan, arch), arch, &Tuning::default())?;
    Ok(kernels.entries.into_iter().map(|e| (e.name, e.source)).collect())
}

/// A plan as launches; its steps are theirs.
#[derive(Default)]
pub(super) struct Launches {
    pub plan: Plan,
    pub units: Vec<Unit>,
    pub paired: pair::Columns,
    /// Weights of native INT4 products.
    pub native: BTreeSet<usize>,
}

impl Launches {
    pub fn of(plan: &Plan, arch: Arch) -> Launches {
        let mut plan = plan.clone();
        let mut paired = pair::Columns::new();
        halves::narrow(&mut plan, arch);
        let native = native::weights(&plan, arch);
        let turned = rotary::fold(&mut plan, arch, &mut paired);
        let units = fuse::units(&mut plan, arch, &mut paired, turned);
        Launches { plan, units, paired, native }
    }

    /// The gemms of tiles, in order: the step, the gemm, and what else is in the launch.
    pub fn gemms<'u>(&'u self, arch: Arch) -> Vec<(&'u Step, &'u Gemm, &'u Kind)> {
        let packed = hopper_weights(&self.plan, &self.units, arch);
        let gemm = |Unit { step, kind }: &'u Unit| match &step.kernel {
            Kernel::Gemm(own) => Some((step, own, kind)),
            _ => None,
        };
        let in_tiles =
            |(step, _, _): &(&Step, &Gemm, &Kind)| packed.contains_key(&step.args[1].buffer.0);
        self.units.iter().filter_map(gemm).filter(in_tiles).collect()
    }
}

/// The kernels of a plan, and the program that launches them.
fn lower(launches: Launches, arch: Arch, tuning: &Tuning) -> Result<(Kernels, Lowering), Error> {
    let Launches { plan, units, paired, native } = launches;
    let packed = hopper_weights(&plan, &units, arch);
    let mut image = Kernels::default();
    let mut lowering = Lowering::new(&plan, |index, constant| {
        let columns = paired.get(&index).map(Vec::as_slice);
        Some(gemm::repack(constant, packed.get(&index)?, columns, native.contains(&index)))
    });
    let mut refused = Vec::new();
    for unit in &units {
        let step = &unit.step;
        let done = match (&step.kernel, &unit.kind) {
            (Kernel::Gemm(own), kind) if packed.contains_key(&step.args[1].buffer.0) => {
                let native = native.contains(&step.args[1].buffer.0);
                packed_gemm(&plan, step, own, kind, arch, native, tuning)
                    .map(|call| image.gemm(&mut lowering, &plan, step, &call))
            }
            _ => launch(&plan, unit, arch)
                .map(|forms| image.step(&mut lowering, &plan, step, &forms)),
        };
        if let Err(reason) = done {
            refused.push(format!("{} `{}`: {reason}", step.kernel.name(), step.name));
        }
    }
    if !refused.is_empty() {
        return Err(Error::Unsupported(refused));
    }
    Ok((image, lowering))
}

/// Element types of a step's arguments and results.
fn elems(plan: &Plan, step: &Step) -> Vec<Elem> {
    step.args.iter().chain(&step.results).map(|view| plan.buffer(view.buffer).elem).collect()
}

/// A gemm of weights in Hopper's order.
fn packed_gemm(
    plan: &Plan,
    step: &Step,
    own: &Gemm,
    kind: &Kind,
    arch: Arch,
    native: bool,
    tuning: &Tuning,
) -> Result<gemm::Call, String> {
    let stored = plan.buffer(step.results[0].buffer).elem;
    if arch != Arch::Sm90a {
        return gemm_sm80::gemm(step, own, stored, native);
    }
    let pairing = pairing(step, kind);
    let rotary = if let Kind::Turned(rotary) = kind { Some(rotary) } else { None };
    let layer = Layer::of(own, stored, pairing.as_ref());
    // Tiles were timed without a rotation.
    let tiles =
        if rotary.is_some() { Tuning::default().tiles(&layer) } else { tuning.tiles(&layer) };
    gemm::gemm(step, own, stored, pairing.as_ref(), rotary, tiles)
}

/// What makes codes of a gemm's pairs, if it has any.
pub(super) fn pairing<'u>(step: &Step, kind: &'u Kind) -> Option<Pairing<'u>> {
    let Kind::Pairs { expr, codes } = kind else { return None };
    let tables = [step.args.len() - 2, step.args.len() - 1];
    Some(Pairing { expr, quantize: codes, tables })
}

/// The generated kernels of a launch.
fn launch(plan: &Plan, unit: &Unit, arch: Arch) -> Result<attention::Forms, String> {
    match &unit.kind {
        Kind::Alone => plain(plan, &unit.step, arch),
        Kind::Together(parts) => {
            let parts: Vec<_> = parts
                .iter()
                .filter_map(|p| Some((p, fuse::expression(p)?, elems(plan, p))))
                .collect();
            elementwise::together(&unit.step, &parts).map(Into::into)
        }
        Kind::AttentionCodes { attention: own, codes } => {
            let elem = plan.buffer(own.args[0].buffer).elem;
            attention::with_codes(own, &unit.step.results[0], codes, elem, arch)
        }
        Kind::Pairs { .. } | Kind::Turned(_) => Err("its weight is not packed for Hopper".into()),
    }
}

/// The generated kernels of a step.
fn plain(plan: &Plan, step: &Step, arch: Arch) -> Result<attention::Forms, String> {
    let elems = elems(plan, step);
    if let Some(narrow) = elems.iter().find(|e| e.bits() < 8)
        && !matches!(step.kernel, Kernel::Gemm(_))
    {
        return Err(format!("elements of {narrow} are not addressable on CUDA"));
    }
    let call = match &step.kernel {
        Kernel::Gemm(gemm) => products::gemm(step, gemm, elems[elems.len() - 1]),
        Kernel::MatMul => products::matmul(step, &elems),
        Kernel::Pointwise(expr) => elementwise::pointwise(step, expr, &elems),
        Kernel::Reduce { op, keep } => rows::reduce(step, *op, *keep, &elems),
        Kernel::ArgReduce { largest, last } => rows::arg_reduce(step, *largest, *last, &elems),
        Kernel::CumSum { exclusive, reverse } => rows::cumsum(step, *exclusive, *reverse, &elems),
        Kernel::Softmax => rows::softmax(step, &elems),
        Kernel::Norm { kind, epsilon, float, quantize } => {
            let (kind, epsilon, float) = (*kind, *epsilon, *float);
            let fixed = |view: &View| matches!(plan.buffer(view.buffer).place, Place::Const(_));
            let constant = step.args[1..].iter().all(fixed);
            let quantize = quantize.as_ref();
            let spec = Norm { kind, epsilon, float, quantize, constant };
            norm::norm(step, &spec, &elems)
        }
        Kernel::Quantize { expr, quantize } => elementwise::quantize(step, expr, quantize, &elems),
        Kernel::Attention { scale, causal, mask, precision } => {
            let (scale, causal, mask) = (*scale, *causal, *mask);
            let spec = Attention { scale, causal, mask, precision: *precision };
            return attention::attention(step, &spec, &elems, arch);
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
    };
    call.map(Into::into)
}

/// The weights that lie in Hopper's order, with a gemm that reads them: those of which every user fits.
fn hopper_weights<'u>(plan: &Plan, units: &'u [Unit], arch: Arch) -> BTreeMap<usize, &'u Gemm> {
    let mut weights = BTreeMap::new();
    let mut others = BTreeSet::new();
    for Unit { step, .. } in units {
        for (i, arg) in step.args.iter().enumerate() {
            match &step.kernel {
                Kernel::Gemm(g) if i == 1 && tiles_fit(plan, step, g, arch) => {
                    weights.insert(arg.buffer.0, g);
                }
                _ => {
                    others.insert(arg.buffer.0);
                }
            }
        }
    }
    weights.retain(|buffer, _| !others.contains(buffer));
    weights
}

/// Whether the gemms of tiles take a step's codes, or on Hopper halves.
fn tiles_fit(plan: &Plan, step: &Step, own: &Gemm, arch: Arch) -> bool {
    let halves = arch == Arch::Sm90a && plan.buffer(step.args[0].buffer).elem == Elem::BF16;
    gemm::fits(step, own) || halves && gemm::in_halves(step, own)
}

/// The symbol of a kernel that has a cubin of its own.
fn hashed(family: &str, source: &str) -> String {
    format!("{family}_{}", &blake3::hash(source.as_bytes()).to_hex()[..8])
}

/// A kernel of the program, and whether it shares a cubin with all generated ones.
struct Entry {
    name: String,
    source: String,
    shared: bool,
}

/// The kernels of a program.
#[derive(Default)]
struct Kernels {
    entries: Vec<Entry>,
    /// Index of a kernel, the first of several that follow each other, by their texts and attributes.
    known: BTreeMap<String, usize>,
}

impl Kernels {
    /// A step of a generated kernel; where many queries have another, it follows the first.
    fn step(
        &mut self,
        lowering: &mut Lowering,
        plan: &Plan,
        step: &Step,
        attention::Forms { call, many }: &attention::Forms,
    ) {
        let mut attrs = vec![("threads", call.threads.into()), ("items", call.items.into())];
        attrs.extend(call.resident.map(|blocks| ("resident", blocks.into())));
        let family = step.kernel.name();
        let mut key = call.source("@");
        if let Some(instance) = many {
            attrs.extend(attention_sm90::FEW);
            key.push_str(&instance.source);
        }
        let kernel = match self.known.get(&key) {
            Some(&index) => lowering.program.kernel(&self.entries[index].name),
            None => {
                self.known.insert(key, self.entries.len());
                let kernel = self.add(lowering, family, &call.source("@"), &attrs, true);
                if let Some(Instance { source, attrs }) = many {
                    self.add(lowering, &hashed(family, source), source, attrs, false);
                }
                kernel
            }
        };
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

    /// A gemm: its instances follow each other, so that a launch finds the one for its rows.
    fn gemm(&mut self, lowering: &mut Lowering, plan: &Plan, step: &Step, call: &gemm::Call) {
        let key: String =
            call.instances.iter().map(|i| format!("{:?}{}", i.attrs, i.source)).collect();
        let kernel = match self.known.get(&key) {
            Some(&index) => lowering.program.kernel(&self.entries[index].name),
            None => {
                let first = self.entries.len();
                for instance in &call.instances {
                    let family = step.kernel.name();
                    let symbol = hashed(family, &instance.source);
                    self.add(lowering, &symbol, &instance.source, &instance.attrs, false);
                }
                self.known.insert(key, first);
                lowering.program.kernel(&self.entries[first].name)
            }
        };
        let launch = Launch {
            kernel,
            dims: &call.dims,
            work: &call.rows,
            grain: 1,
            scratch_bytes: &Dim::zero(),
            ops: &call.ops,
        };
        lowering.step(plan, step, &launch);
    }

    /// A new kernel; `source` has `@` for its symbol. Kernels of one symbol differ in attributes.
    fn add(
        &mut self,
        lowering: &mut Lowering,
        symbol: &str,
        source: &str,
        attrs: &[(&str, i64)],
        shared: bool,
    ) -> KernelId {
        let index = self.entries.len();
        let (symbol, name) = match shared {
            true => (format!("{symbol}_{index}"), format!("{symbol}_{index}")),
            false => (symbol.to_owned(), format!("{symbol}.{index}")),
        };
        let kernel = lowering.program.kernel(&name);
        for &(attr, value) in attrs {
            lowering.program.kernel_attr(kernel, attr, value);
        }
        self.entries.push(Entry { source: source.replace('@', &symbol), name, shared });
        kernel
    }

    /// The generated kernels in one cubin, each gemm and each attention of Hopper in its own. The entry of a kernel is where its
    /// cubin begins.
    fn compile(&self, arch: Arch, compiler: &Compiler) -> Result<CodeImage, Error> {
        let mut common = String::from("#include \"attention_bf16.cuh\"\n\nnamespace scalar {\n");
        for entry in self.entries.iter().filter(|e| e.shared) {
            common.push('\n');
            common.push_str(&entry.source);
        }
        common.push_str("\n}  // namespace scalar\n");
        let mut bytes = compiler.generated("generated", &common, arch)?;
        // The same gemm under another name, and for another size, is one cubin.
        let mut known: BTreeMap<&str, u32> = BTreeMap::new();
        let mut entries = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            if entry.shared {
                entries.push(0);
                continue;
            }
            if !known.contains_key(entry.source.as_str()) {
                let family = entry.name.split('_').next().unwrap_or_default();
                let cubin = compiler.tuned(family, &entry.source, arch)?;
                bytes.resize(bytes.len().next_multiple_of(CUBIN_ALIGN), 0);
                let offset = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge)?;
                known.insert(&entry.source, offset);
                bytes.extend_from_slice(&cubin);
            }
            entries.push(known[entry.source.as_str()]);
        }
        bytes.resize(bytes.len().next_multiple_of(CUBIN_ALIGN), 0);
        Ok(CodeImage { level: String::new(), entries, bytes })
    }
}
