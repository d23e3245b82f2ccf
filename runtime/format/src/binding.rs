//! A program bound to input shapes: the symbols' values, every expression's value, and the proof
//! that each argument of each step lies inside its buffer. A pure function of the program and
//! the shapes; the runtime caches the result and turns it into addresses.

use std::fmt;

use crate::arena::{ArenaLayout, Block, pack_arena, verify_arena};
use crate::error::printable;
use crate::expr::{Expr, ExprId, eval_all};
use crate::program::{Access, Place, Port, Program, Relation, Step};

/// Largest value of a symbol.
pub const MAX_DIM: i64 = 1 << 40;

/// Values of a program for given input shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Value of each expression.
    pub values: Vec<i64>,
    /// Size of each buffer in bytes.
    pub buffer_bytes: Vec<u64>,
    /// Offset of each buffer in the arena; 0 for those elsewhere.
    pub arena_offsets: Vec<u64>,
    /// Bytes that the arena needs.
    pub arena_bytes: u64,
    /// Largest scratch block of any step.
    pub scratch_bytes: u64,
}

/// Why a program cannot run on the given shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindError {
    /// The caller's shapes do not fit the program.
    Input { name: String, what: String },
    /// A condition of the model does not hold for these shapes.
    Limit(String),
    /// The program itself is wrong; it would touch memory outside its buffers.
    Program(String),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::Input { name, what } => write!(f, "input `{}`: {what}", printable(name)),
            BindError::Limit(what) => write!(f, "over a limit of the model: {what}"),
            BindError::Program(what) => write!(f, "the program is faulty: {what}"),
        }
    }
}

impl std::error::Error for BindError {}

impl Binding {
    /// Binds a verified program to the shapes of its inputs, in their order.
    pub fn new(program: &Program, shapes: &[&[usize]]) -> Result<Binding, BindError> {
        let symbols = bind_symbols(program, shapes)?;
        let mut binding = Binding::default();
        eval_all(&program.exprs, &program.symbols, &symbols, &mut binding.values)
            .map_err(|e| BindError::Limit(format!("{e} for {}", shapes_text(program, &symbols))))?;
        binding.check_inputs(program, shapes)?;
        binding.check_limits(program, &symbols)?;
        binding.size_buffers(program)?;
        for (i, step) in program.steps.iter().enumerate() {
            binding.check_step(program, step).map_err(|what| {
                BindError::Program(format!("step {i} `{}`: {what}", printable(&step.name)))
            })?;
        }
        binding.pack(program)?;
        Ok(binding)
    }

    /// Value of an expression.
    pub fn value(&self, id: ExprId) -> i64 {
        self.values[id.index()]
    }

    /// Shape of a port.
    pub fn shape(&self, port: &Port) -> Vec<usize> {
        port.shape.iter().map(|&d| self.value(d) as usize).collect()
    }

    fn check_inputs(&self, program: &Program, shapes: &[&[usize]]) -> Result<(), BindError> {
        for (port, shape) in program.inputs.iter().zip(shapes) {
            for (axis, (&dim, &got)) in port.shape.iter().zip(shape.iter()).enumerate() {
                let want = self.value(dim);
                if i64::try_from(got) != Ok(want) {
                    let text = program.expr_text(dim);
                    let meaning =
                        if text == want.to_string() { text } else { format!("{want} (`{text}`)") };
                    let what = format!("axis {axis} is {got} where the model has {meaning}");
                    return Err(BindError::Input { name: port.name.clone(), what });
                }
            }
        }
        Ok(())
    }

    fn check_limits(&self, program: &Program, symbols: &[i64]) -> Result<(), BindError> {
        for limit in &program.limits {
            let (left, right) = (self.value(limit.left), self.value(limit.right));
            let (holds, sign) = match limit.relation {
                Relation::Le => (left <= right, "<="),
                Relation::Eq => (left == right, "=="),
                Relation::Ge => (left >= right, ">="),
            };
            if !holds {
                let (l, r) = (program.expr_text(limit.left), program.expr_text(limit.right));
                let note = printable(&limit.note);
                let note = if note.is_empty() { note } else { format!(" ({note})") };
                let with = shapes_text(program, symbols);
                let what =
                    format!("`{l} {sign} {r}` must hold{note}, here {left} and {right} for {with}");
                return Err(BindError::Limit(what));
            }
        }
        Ok(())
    }

    fn size_buffers(&mut self, program: &Program) -> Result<(), BindError> {
        self.buffer_bytes = Vec::with_capacity(program.buffers.len());
        for buffer in &program.buffers {
            let name = printable(&buffer.name);
            let bytes = self.value(buffer.bytes);
            let dense = buffer.shape.iter().try_fold(1i64, |acc, &dim| {
                let dim = self.value(dim);
                acc.checked_mul(dim).filter(|_| dim >= 0)
            });
            let dense = dense
                .and_then(|n| n.checked_mul(i64::from(buffer.elem.bits())))
                .map(|bits| bits as u64)
                .map(|bits| bits.div_ceil(8));
            let exact = matches!(buffer.place, Place::Input(_) | Place::Output(_));
            match (u64::try_from(bytes), dense) {
                (Ok(bytes), Some(dense)) if bytes == dense || (!exact && bytes > dense) => {
                    self.buffer_bytes.push(bytes);
                }
                _ => {
                    let shape = program.shape_text(&buffer.shape);
                    let what = format!("buffer `{name}` has {bytes} bytes for {shape}");
                    return Err(BindError::Program(what));
                }
            }
        }
        Ok(())
    }

    fn check_step(&mut self, program: &Program, step: &Step) -> Result<(), String> {
        if self.value(step.work) < 0 || self.value(step.grain) < 1 {
            let (work, grain) = (self.value(step.work), self.value(step.grain));
            return Err(format!("{work} work items in grains of {grain}"));
        }
        let scratch = u64::try_from(self.value(step.scratch_bytes))
            .map_err(|_| "negative scratch size".to_string())?;
        self.scratch_bytes = self.scratch_bytes.max(scratch);
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(step.args.len());
        for (i, arg) in step.args.iter().enumerate() {
            let (offset, extent) = (self.value(arg.offset), self.value(arg.extent));
            let size = self.buffer_bytes[arg.buffer.index()];
            let range = u64::try_from(offset).ok().zip(u64::try_from(extent).ok());
            let inside = |&(o, e): &(u64, u64)| o.checked_add(e).is_some_and(|end| end <= size);
            let Some((offset, extent)) = range.filter(inside) else {
                let name = printable(&program.buffers[arg.buffer.index()].name);
                return Err(format!(
                    "argument {i} covers {offset} + {extent} of the {size} bytes of `{name}`"
                ));
            };
            ranges.push((offset, offset + extent));
        }
        for (i, a) in step.args.iter().enumerate().filter(|(_, a)| a.access.writes()) {
            for (j, b) in step.args.iter().enumerate() {
                let declared = a.access == Access::Update || b.access == Access::Update;
                let ((a0, a1), (b0, b1)) = (ranges[i], ranges[j]);
                let meets = a0 < b1 && b0 < a1;
                if i != j && a.buffer == b.buffer && meets && !declared {
                    let name = printable(&program.buffers[a.buffer.index()].name);
                    return Err(format!("arguments {i} and {j} overlap in `{name}`, one writes"));
                }
            }
        }
        Ok(())
    }

    fn pack(&mut self, program: &Program) -> Result<(), BindError> {
        let mut owners = Vec::new();
        let mut blocks = Vec::new();
        for (i, buffer) in program.buffers.iter().enumerate() {
            if let Place::Arena { first, last } = buffer.place {
                owners.push(i);
                blocks.push(Block { bytes: self.buffer_bytes[i], first, last });
            }
        }
        let layout: ArenaLayout = pack_arena(&blocks)
            .and_then(|layout| verify_arena(&blocks, &layout).map(|()| layout))
            .map_err(|e| BindError::Limit(e.to_string()))?;
        self.arena_offsets = vec![0; program.buffers.len()];
        for (owner, offset) in owners.into_iter().zip(layout.offsets) {
            self.arena_offsets[owner] = offset;
        }
        self.arena_bytes = layout.total;
        Ok(())
    }
}

/// Values of the symbols, each from the first input dimension that is that symbol.
fn bind_symbols(program: &Program, shapes: &[&[usize]]) -> Result<Vec<i64>, BindError> {
    if shapes.len() != program.inputs.len() {
        let (want, got) = (program.inputs.len(), shapes.len());
        return Err(BindError::Program(format!("{got} shapes for {want} inputs")));
    }
    let mut values = vec![None; program.symbols.len()];
    for (port, shape) in program.inputs.iter().zip(shapes) {
        let fail = |what| BindError::Input { name: port.name.clone(), what };
        if port.shape.len() != shape.len() {
            let want = program.shape_text(&port.shape);
            return Err(fail(format!("shape {shape:?} where the model has {want}")));
        }
        for (axis, (&dim, &got)) in port.shape.iter().zip(shape.iter()).enumerate() {
            let got = i64::try_from(got)
                .ok()
                .filter(|&d| d <= MAX_DIM)
                .ok_or_else(|| fail(format!("axis {axis} is {got}, at most {MAX_DIM}")))?;
            if let Expr::Sym(s) = program.exprs[dim.index()] {
                values[s.index()].get_or_insert(got);
            }
        }
    }
    // Verified programs bind every symbol.
    values
        .into_iter()
        .zip(&program.symbols)
        .map(|(v, name)| v.ok_or_else(|| BindError::Program(format!("no input binds `{name}`"))))
        .collect()
}

fn shapes_text(program: &Program, symbols: &[i64]) -> String {
    let all: Vec<String> = program
        .symbols
        .iter()
        .zip(symbols)
        .map(|(name, value)| format!("{}={value}", printable(name)))
        .collect();
    if all.is_empty() { "these shapes".to_string() } else { all.join(", ") }
}
