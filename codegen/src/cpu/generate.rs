//! Plan to target image: the program with its expressions, buffers and steps, the weights, and one
//! blob of code a level. Equal kernels are emitted once; equal constants are stored once.

use std::collections::BTreeMap;
use std::sync::Arc;

use fqbin::{
    Access, Arg, BinOp, BufferId, CodeImage, ExprId, Level, ProgramBuilder, Relation, TargetImage,
    Weights,
};
use fqc_ir::data::Const;
use fqc_ir::dim::{Atom, Dim};
use fqc_ir::graph::Limit;
use fqc_ir::plan::{Kernel, Place, Plan, Step, View};
use fqc_ir::types::Elem;
use inkwell::context::Context;

use super::CpuError;
use super::build::Code;
use super::call::{Call, Spec};
use super::object::Blob;
use super::spec::{extent, reach_below};

/// Generates everything for `levels`. Each level is compiled on its own thread.
pub fn generate(plan: &Plan, levels: &[Level]) -> Result<TargetImage, CpuError> {
    let mut lowering = Lowering::new(plan);
    for step in &plan.steps {
        lowering.step(plan, step)?;
    }
    let Lowering { program, constants, kernels, .. } = lowering;
    let (program, kernels) = (program.finish(), kernels.as_slice());
    let code: Result<Vec<CodeImage>, CpuError> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            levels.iter().map(|&level| scope.spawn(move || compile(kernels, level))).collect();
        threads.into_iter().map(|thread| thread.join().expect("compiling does not panic")).collect()
    });
    let target = "cpu".to_owned();
    Ok(TargetImage { target, program, weights: constants.weights, code: code? })
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
        let mut lowering = Lowering::new(plan);
        for step in &plan.steps {
            lowering.step(plan, step)?;
        }
        let Lowering { program, constants, kernels, .. } = lowering;
        let is_new = |kernel: &Entry| !self.entries.contains_key(&kernel.key);
        let (new, old): (Vec<Entry>, Vec<Entry>) = kernels.into_iter().partition(is_new);
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

/// The constants of the program, each content once.
#[derive(Default)]
struct Constants {
    weights: Weights,
    known: BTreeMap<[u8; 32], u64>,
}

impl Constants {
    /// Offset of the constant's bytes.
    fn place(&mut self, constant: &Const) -> u64 {
        let hash = *blake3::hash(constant.bytes.as_slice()).as_bytes();
        constant.bytes.release();
        let weights = &mut self.weights;
        *self.known.entry(hash).or_insert_with(|| weights.push(Arc::new(constant.bytes.clone())))
    }
}

/// A program under construction.
struct Lowering {
    program: ProgramBuilder,
    exprs: BTreeMap<Dim, ExprId>,
    /// The program's buffer for each of the plan's.
    buffers: Vec<BufferId>,
    constants: Constants,
    kernels: Vec<Entry>,
    /// Index of a kernel by everything its code depends on.
    known: BTreeMap<String, usize>,
}

impl Lowering {
    /// Declares ports, buffers and limits.
    fn new(plan: &Plan) -> Lowering {
        let mut this = Lowering {
            program: ProgramBuilder::new(),
            exprs: BTreeMap::new(),
            buffers: Vec::new(),
            constants: Constants::default(),
            kernels: Vec::new(),
            known: BTreeMap::new(),
        };
        let mut ids: Vec<Option<BufferId>> = vec![None; plan.buffers.len()];
        for port in &plan.inputs {
            let shape = this.dims(&port.shape);
            ids[port.buffer.0] = Some(this.program.input(&port.name, elem(port.elem), &shape));
        }
        for port in &plan.outputs {
            let shape = this.dims(&port.shape);
            ids[port.buffer.0] = Some(this.program.output(&port.name, elem(port.elem), &shape));
        }
        for (buffer, id) in plan.buffers.iter().zip(ids) {
            let shape = this.dims(&buffer.shape);
            let kind = elem(buffer.elem);
            let id = id.unwrap_or_else(|| match &buffer.place {
                Place::Const(constant) => {
                    let offset = this.constants.place(constant);
                    let len = constant.bytes.as_slice().len() as u64;
                    this.program.weight(&buffer.name, kind, &shape, offset, len)
                }
                _ => this.program.arena(&buffer.name, kind, &shape),
            });
            this.buffers.push(id);
        }
        for limit in &plan.limits {
            let (left, relation, right) = match limit {
                Limit::AtMost(size, max) => (size.clone(), Relation::Le, Dim::from(*max)),
                Limit::Equal(a, b) => (a.clone(), Relation::Eq, b.clone()),
            };
            let (left, right) = (this.dim(&left), this.dim(&right));
            this.program.limit(left, relation, right, "");
        }
        this
    }

    fn dims(&mut self, dims: &[Dim]) -> Vec<ExprId> {
        dims.iter().map(|d| self.dim(d)).collect()
    }

    fn dim(&mut self, dim: &Dim) -> ExprId {
        if let Some(&id) = self.exprs.get(dim) {
            return id;
        }
        let mut sum = self.program.int(0);
        for (atoms, factor) in dim.terms() {
            let mut product = self.program.int(factor);
            for atom in atoms {
                let value = self.atom(atom);
                product = self.program.mul(product, value);
            }
            sum = self.program.add(sum, product);
        }
        self.exprs.insert(dim.clone(), sum);
        sum
    }

    fn atom(&mut self, atom: &Atom) -> ExprId {
        let (op, a, b) = match atom {
            Atom::Sym(name) => return self.program.sym(name),
            Atom::FloorDiv(a, b) => (BinOp::FloorDiv, a, b),
            Atom::Min(a, b) => (BinOp::Min, a, b),
            Atom::Max(a, b) => (BinOp::Max, a, b),
        };
        let (a, b) = (self.dim(a), self.dim(b));
        self.program.bin(op, a, b)
    }

    /// Bytes of `count` elements.
    fn bytes(&mut self, elem: Elem, count: &Dim) -> ExprId {
        let bits = count.clone() * Dim::from(i64::from(elem.bits()));
        self.dim(&bits.ceil_div(8))
    }

    fn arg(&mut self, plan: &Plan, view: &View, access: Access) -> Arg {
        let kind = plan.buffer(view.buffer).elem;
        let offset = view.offset.clone() - reach_below(view);
        let extent = extent(view);
        let extent = if extent.is_const() { extent } else { extent.larger(&Dim::zero()) };
        Arg {
            buffer: self.buffers[view.buffer.0],
            offset: self.bytes(kind, &offset),
            extent: self.bytes(kind, &extent),
            access,
        }
    }

    fn step(&mut self, plan: &Plan, step: &Step) -> Result<(), CpuError> {
        let call = Call::of(plan, step)?;
        let family = step.kernel.name();
        let key = format!("{:?}", call.spec);
        let index = match self.known.get(&key) {
            Some(&index) => index,
            None => {
                let index = self.kernels.len();
                let name = format!("{family}_{index}");
                self.kernels.push(Entry { name, spec: call.spec, key: key.clone() });
                self.known.insert(key, index);
                index
            }
        };
        let kernel = self.program.kernel(&self.kernels[index].name);
        let updates =
            matches!(step.kernel, Kernel::ScatterElements { .. } | Kernel::ScatterNd { .. });
        let access = if updates { Access::Update } else { Access::Write };
        let reads = step.args.iter().map(|view| (view, Access::Read));
        let views: Vec<_> = reads.chain(step.results.iter().map(|view| (view, access))).collect();
        let args: Vec<Arg> =
            views.into_iter().map(|(view, access)| self.arg(plan, view, access)).collect();
        let mut moved = self.program.int(0);
        for arg in &args {
            moved = self.program.add(moved, arg.extent);
        }
        let work = self.dim(&call.work);
        let mut lowered = self.program.simple_step(&step.name, family, kernel, args, work);
        lowered.dims = self.dims(&call.dims);
        lowered.grain = self.program.int(call.grain.max(1));
        lowered.scratch_bytes = self.dim(&call.scratch_bytes);
        lowered.ops = self.dim(&call.ops);
        lowered.bytes = moved;
        self.program.step(lowered);
        Ok(())
    }
}

/// The file's name for an element type.
fn elem(elem: Elem) -> fqbin::Elem {
    match elem {
        Elem::Bool => fqbin::Elem::Bool,
        Elem::I4 => fqbin::Elem::I4,
        Elem::U4 => fqbin::Elem::U4,
        Elem::I8 => fqbin::Elem::I8,
        Elem::U8 => fqbin::Elem::U8,
        Elem::I16 => fqbin::Elem::I16,
        Elem::U16 => fqbin::Elem::U16,
        Elem::I32 => fqbin::Elem::I32,
        Elem::U32 => fqbin::Elem::U32,
        Elem::I64 => fqbin::Elem::I64,
        Elem::U64 => fqbin::Elem::U64,
        Elem::F16 => fqbin::Elem::F16,
        Elem::BF16 => fqbin::Elem::Bf16,
        Elem::F32 => fqbin::Elem::F32,
        Elem::F64 => fqbin::Elem::F64,
    }
}
