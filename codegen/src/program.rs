//! Plan to program, whatever the target: ports, buffers, constants, limits, and for each step the
//! byte ranges that its views cover. Equal constants are stored once.

use std::collections::BTreeMap;
use std::sync::Arc;

use fqbin::{Access, Arg, BinOp, BufferId, ExprId, KernelId, ProgramBuilder, Relation, Weights};
use fqc_ir::data::Const;
use fqc_ir::dim::{self, Atom, Dim};
use fqc_ir::graph::Limit;
use fqc_ir::plan::{Kernel, Place, Plan, Step, View};
use fqc_ir::types::Elem;

use crate::spec::{extent, reach_below};

/// What keeps the bytes of a constant.
type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The constants of the program, each content once.
#[derive(Default)]
pub(crate) struct Constants {
    pub weights: Weights,
    known: BTreeMap<[u8; 32], u64>,
}

impl Constants {
    /// Offset of these bytes.
    fn place(&mut self, bytes: Owner) -> u64 {
        let hash = *blake3::hash((*bytes).as_ref()).as_bytes();
        let weights = &mut self.weights;
        *self.known.entry(hash).or_insert_with(|| weights.push(bytes))
    }
}

/// A program under construction.
pub(crate) struct Lowering {
    pub program: ProgramBuilder,
    pub constants: Constants,
    exprs: BTreeMap<Dim, ExprId>,
    /// The program's buffer for each of the plan's.
    buffers: Vec<BufferId>,
}

/// What a program says about a step beside its views.
pub(crate) struct Launch<'a> {
    pub kernel: KernelId,
    pub dims: &'a [Dim],
    pub work: &'a Dim,
    pub grain: i64,
    pub scratch_bytes: &'a Dim,
    pub ops: &'a Dim,
}

impl Lowering {
    /// Declares ports, buffers and limits. `other` may give other bytes, at least as many, for the
    /// constant of a buffer of this index.
    pub fn new(plan: &Plan, other: impl Fn(usize, &Const) -> Option<Vec<u8>>) -> Lowering {
        let mut this = Lowering {
            program: ProgramBuilder::new(),
            exprs: BTreeMap::new(),
            buffers: Vec::new(),
            constants: Constants::default(),
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
        for (index, (buffer, id)) in plan.buffers.iter().zip(ids).enumerate() {
            let shape = this.dims(&buffer.shape);
            let kind = elem(buffer.elem);
            let id = id.unwrap_or_else(|| match &buffer.place {
                Place::Const(constant) => {
                    let bytes: Owner = match other(index, constant) {
                        Some(bytes) => Arc::new(bytes),
                        None => Arc::new(constant.bytes.clone()),
                    };
                    let len = (*bytes).as_ref().len() as u64;
                    let offset = this.constants.place(bytes);
                    constant.bytes.release();
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

    /// Appends a step.
    pub fn step(&mut self, plan: &Plan, step: &Step, launch: &Launch<'_>) {
        let updates =
            matches!(step.kernel, Kernel::ScatterElements { .. } | Kernel::ScatterNd { .. });
        let access = if updates { Access::Update } else { Access::Write };
        let reads = step.args.iter().map(|view| (view, Access::Read));
        let views: Vec<_> = reads.chain(step.results.iter().map(|view| (view, access))).collect();
        let mut moved = self.program.int(0);
        for (index, (view, _)) in views.iter().enumerate() {
            // Of a table only the rows that are looked up are read.
            let looked_up = index == 0 && matches!(step.kernel, Kernel::Gather { .. });
            let count = if looked_up { step.results[0].count() } else { distinct(view) };
            let bytes = self.bytes(plan.buffer(view.buffer).elem, &count);
            moved = self.program.add(moved, bytes);
        }
        let args: Vec<Arg> =
            views.into_iter().map(|(view, access)| self.arg(plan, view, access)).collect();
        let (family, work) = (step.kernel.name(), self.dim(launch.work));
        let mut lowered = self.program.simple_step(&step.name, family, launch.kernel, args, work);
        lowered.dims = self.dims(launch.dims);
        lowered.grain = self.program.int(launch.grain.max(1));
        lowered.scratch_bytes = self.dim(launch.scratch_bytes);
        lowered.ops = self.dim(launch.ops);
        lowered.bytes = moved;
        self.program.step(lowered);
    }
}

/// Elements of a view, those that are repeated along an axis counted once.
fn distinct(view: &View) -> Dim {
    let axes = view.shape.iter().zip(&view.strides);
    dim::product(axes.filter(|(_, stride)| stride.as_const() != Some(0)).map(|(size, _)| size))
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
