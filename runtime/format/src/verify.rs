//! The plan verifier. It collects all faults of a program, each with the thing it is about, and
//! whoever executes a program relies on what is checked here:
//!
//! 1. every list and name is within [`LIMITS`](crate::LIMITS);
//! 2. expressions are SSA, and each symbol is the whole of some input dimension;
//! 3. ports and their buffers agree in place, element and shape, and their names are unique;
//! 4. weight buffers are aligned, constant in size and inside the weight section;
//! 5. arena buffers live within the steps, and every use lies inside the live range;
//! 6. steps name existing kernels, buffers and expressions, write to neither inputs nor weights,
//!    read only what an earlier step wrote, and never read and write the same bytes in two
//!    arguments unless one is declared as an update;
//! 7. every output is written;
//! 8. a batch symbol is the first dimension of every input and output, no other dimension of them
//!    depends on it, and their elements are whole bytes.
//!
//! Byte ranges depend on the bound symbols; the runtime proves them for each shape with
//! [`Binding::new`](crate::Binding::new) before a step runs.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::printable;
use crate::expr::{Expr, ExprId, SymbolId};
use crate::limits::LIMITS;
use crate::program::{Access, Arg, BufferId, Place, Port, Program, Step};

/// Faults listed before the verifier stops.
const MAX_FAULTS: usize = 100;

/// One fault of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The thing at fault, such as ``step 3 `%dense.out` ``.
    pub place: String,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Checks a program against everything in the head of this file. `weight_bytes` is the length of
/// the target's weight section.
pub fn verify(program: &Program, weight_bytes: u64) -> Result<(), Vec<Fault>> {
    let mut checker = Checker { program, weight_bytes, faults: Vec::new() };
    checker.counts();
    checker.exprs();
    checker.symbols();
    checker.buffers();
    checker.ports("input", &program.inputs);
    checker.ports("output", &program.outputs);
    checker.kernels();
    checker.limits();
    // What follows indexes by ids, so it needs all of the above.
    if checker.faults.is_empty() {
        checker.steps();
    }
    if checker.faults.is_empty() {
        checker.flow();
        checker.batch();
    }
    if checker.faults.is_empty() { Ok(()) } else { Err(checker.faults) }
}

struct Checker<'a> {
    program: &'a Program,
    weight_bytes: u64,
    faults: Vec<Fault>,
}

impl Checker<'_> {
    fn fault(&mut self, place: impl Into<String>, what: impl Into<String>) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault { place: place.into(), what: what.into() });
        }
    }

    fn count(&mut self, what: &str, count: usize, max: u32) {
        if count as u64 > u64::from(max) {
            self.fault("program", format!("{count} {what}, at most {max} are allowed"));
        }
    }

    fn name(&mut self, place: &str, name: &str) {
        if name.len() as u64 > u64::from(LIMITS.name_bytes) {
            let len = name.len();
            self.fault(place, format!("name of {len} bytes, at most {}", LIMITS.name_bytes));
        }
    }

    fn id(&mut self, place: &str, what: &str, id: ExprId) {
        if id.index() >= self.program.exprs.len() {
            self.fault(place, format!("{what} is expression {}, which does not exist", id.0));
        }
    }

    fn shape(&mut self, place: &str, shape: &[ExprId]) {
        if shape.len() as u64 > u64::from(LIMITS.rank) {
            self.fault(place, format!("rank {}, at most {}", shape.len(), LIMITS.rank));
        }
        for &dim in shape {
            self.id(place, "a dimension", dim);
        }
    }

    fn counts(&mut self) {
        let p = self.program;
        self.count("symbols", p.symbols.len(), LIMITS.symbols);
        self.count("expressions", p.exprs.len(), LIMITS.exprs);
        self.count("buffers", p.buffers.len(), LIMITS.buffers);
        self.count("inputs", p.inputs.len(), LIMITS.ports);
        self.count("outputs", p.outputs.len(), LIMITS.ports);
        self.count("conditions", p.limits.len(), LIMITS.conditions);
        self.count("kernels", p.kernels.len(), LIMITS.kernels);
        self.count("steps", p.steps.len(), LIMITS.steps);
        if p.outputs.is_empty() {
            self.fault("program", "there are no outputs");
        }
    }

    fn exprs(&mut self) {
        for (i, expr) in self.program.exprs.iter().enumerate() {
            let bad = match *expr {
                Expr::Const(_) => false,
                Expr::Sym(s) => s.index() >= self.program.symbols.len(),
                Expr::Bin(_, a, b) => a.index() >= i || b.index() >= i,
            };
            if bad {
                self.fault(format!("expression {i}"), "its operand does not come before it");
            }
        }
    }

    fn symbols(&mut self) {
        let p = self.program;
        let mut bound = vec![false; p.symbols.len()];
        for dim in p.inputs.iter().flat_map(|port| &port.shape) {
            if let Some(&Expr::Sym(s)) = p.exprs.get(dim.index())
                && let Some(flag) = bound.get_mut(s.index())
            {
                *flag = true;
            }
        }
        let mut seen = BTreeMap::new();
        for (i, name) in p.symbols.iter().enumerate() {
            let place = format!("symbol `{}`", printable(name));
            self.name(&place, name);
            if !bound[i] {
                self.fault(&place, "it is not the whole of any input dimension");
            }
            if seen.insert(name, i).is_some() {
                self.fault(&place, "it is declared twice");
            }
        }
    }

    fn buffers(&mut self) {
        let p = self.program;
        for (i, buffer) in p.buffers.iter().enumerate() {
            let place = format!("buffer {i} `{}`", printable(&buffer.name));
            let id = BufferId(i as u32);
            self.name(&place, &buffer.name);
            self.shape(&place, &buffer.shape);
            self.id(&place, "its size", buffer.bytes);
            match buffer.place {
                Place::Input(n) => {
                    if p.inputs.get(n as usize).is_none_or(|port| port.buffer != id) {
                        self.fault(&place, format!("it is not the buffer of input {n}"));
                    }
                }
                Place::Output(n) => {
                    if p.outputs.get(n as usize).is_none_or(|port| port.buffer != id) {
                        self.fault(&place, format!("it is not the buffer of output {n}"));
                    }
                }
                Place::Arena { first, last } => {
                    if first > last || last as usize >= p.steps.len() {
                        let steps = p.steps.len();
                        self.fault(&place, format!("it lives from {first} to {last} of {steps}"));
                    }
                }
                Place::Weight { offset, len } => self.weight(&place, buffer.bytes, offset, len),
            }
        }
    }

    fn weight(&mut self, place: &str, bytes: ExprId, offset: u64, len: u64) {
        if !offset.is_multiple_of(64) {
            self.fault(place, format!("weight offset {offset} is not a multiple of 64"));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.weight_bytes) {
            let total = self.weight_bytes;
            let what = format!("weight range {offset} + {len} is outside the {total} bytes");
            self.fault(place, what);
        }
        match self.program.exprs.get(bytes.index()) {
            Some(&Expr::Const(c)) if u64::try_from(c) == Ok(len) => {}
            _ => self.fault(place, format!("its size is not the constant {len}")),
        }
    }

    fn ports(&mut self, kind: &str, ports: &[Port]) {
        let mut seen = BTreeMap::new();
        for (i, port) in ports.iter().enumerate() {
            let place = format!("{kind} `{}`", printable(&port.name));
            self.name(&place, &port.name);
            self.shape(&place, &port.shape);
            if seen.insert(&port.name, i).is_some() {
                self.fault(&place, "the name appears twice");
            }
            let Some(buffer) = self.program.buffer(port.buffer) else {
                self.fault(&place, format!("buffer {} does not exist", port.buffer.0));
                continue;
            };
            let i = i as u32;
            let wanted = if kind == "input" { Place::Input(i) } else { Place::Output(i) };
            if buffer.place != wanted {
                self.fault(&place, "its buffer lies elsewhere");
            }
            if buffer.elem != port.elem || buffer.shape != port.shape {
                self.fault(&place, "its buffer has another type");
            }
        }
    }

    fn kernels(&mut self) {
        let mut seen = BTreeMap::new();
        for (i, kernel) in self.program.kernels.iter().enumerate() {
            let place = format!("kernel {i} `{}`", printable(&kernel.name));
            self.name(&place, &kernel.name);
            self.count("attributes of a kernel", kernel.attrs.len(), LIMITS.attrs);
            for (name, _) in &kernel.attrs {
                self.name(&place, name);
            }
            if seen.insert(&kernel.name, i).is_some() {
                self.fault(&place, "the name appears twice");
            }
        }
    }

    fn limits(&mut self) {
        for (i, limit) in self.program.limits.iter().enumerate() {
            let place = format!("condition {i}");
            self.name(&place, &limit.note);
            self.id(&place, "its left side", limit.left);
            self.id(&place, "its right side", limit.right);
        }
    }

    fn steps(&mut self) {
        for (i, step) in self.program.steps.iter().enumerate() {
            let place = step_place(i, step);
            self.name(&place, &step.name);
            self.name(&place, &step.family);
            self.count("arguments of a step", step.args.len(), LIMITS.args);
            self.count("dimensions of a step", step.dims.len(), LIMITS.dims);
            if step.kernel.index() >= self.program.kernels.len() {
                self.fault(&place, format!("kernel {} does not exist", step.kernel.0));
            }
            let own = [step.work, step.grain, step.scratch_bytes, step.ops, step.bytes];
            for id in own.into_iter().chain(step.dims.iter().copied()) {
                self.id(&place, "a number", id);
            }
            for (what, id) in [("work", step.work), ("scratch size", step.scratch_bytes)] {
                self.at_least(&place, what, id, 0);
            }
            self.at_least(&place, "grain", step.grain, 1);
            for (a, arg) in step.args.iter().enumerate() {
                let place = format!("{place}, argument {a}");
                self.arg(&place, arg);
            }
        }
    }

    fn at_least(&mut self, place: &str, what: &str, id: ExprId, least: i64) {
        if let Some(&Expr::Const(c)) = self.program.exprs.get(id.index())
            && c < least
        {
            self.fault(place, format!("its {what} is {c}, below {least}"));
        }
    }

    fn arg(&mut self, place: &str, arg: &Arg) {
        self.id(place, "its offset", arg.offset);
        self.id(place, "its extent", arg.extent);
        let Some(buffer) = self.program.buffer(arg.buffer) else {
            self.fault(place, format!("buffer {} does not exist", arg.buffer.0));
            return;
        };
        let fixed = matches!(buffer.place, Place::Input(_) | Place::Weight { .. });
        if fixed && arg.access.writes() {
            self.fault(place, format!("it writes to `{}`, which is read only", buffer.name));
        }
    }

    /// Order of reads and writes, live ranges, aliases inside a step, outputs.
    fn flow(&mut self) {
        let p = self.program;
        let mut written: Vec<bool> = p
            .buffers
            .iter()
            .map(|b| matches!(b.place, Place::Input(_) | Place::Weight { .. }))
            .collect();
        for (i, step) in p.steps.iter().enumerate() {
            let place = step_place(i, step);
            for arg in &step.args {
                let buffer = &p.buffers[arg.buffer.index()];
                let name = printable(&buffer.name);
                if arg.access.reads() && !written[arg.buffer.index()] {
                    self.fault(&place, format!("it reads `{name}` before any step wrote it"));
                }
                if let Place::Arena { first, last } = buffer.place
                    && !(first as usize <= i && i <= last as usize)
                {
                    let what = format!("it uses `{name}`, which lives from {first} to {last}");
                    self.fault(&place, what);
                }
            }
            self.aliases(&place, step);
            for arg in step.args.iter().filter(|a| a.access.writes()) {
                written[arg.buffer.index()] = true;
            }
        }
        for port in &p.outputs {
            if !written[port.buffer.index()] {
                let place = format!("output `{}`", printable(&port.name));
                self.fault(place, "no step writes it");
            }
        }
    }

    fn batch(&mut self) {
        let Some(symbol) = self.program.batch else { return };
        if symbol.index() >= self.program.symbols.len() {
            let what = format!("its batch is symbol {}, which does not exist", symbol.0);
            return self.fault("program", what);
        }
        let depends = depending(&self.program.exprs, symbol);
        for port in self.program.inputs.iter().chain(&self.program.outputs) {
            let first = port.shape.first().map(|dim| self.program.exprs[dim.index()]);
            let apart = first == Some(Expr::Sym(symbol))
                && port.shape[1..].iter().all(|dim| !depends[dim.index()]);
            if !apart || port.elem.bits() < 8 {
                let place = format!("`{}`", printable(&port.name));
                self.fault(place, "it cannot be cut along the batch that the program names");
            }
        }
    }

    fn aliases(&mut self, place: &str, step: &Step) {
        for (i, a) in step.args.iter().enumerate() {
            for b in &step.args[i + 1..] {
                let same = a.buffer == b.buffer && a.offset == b.offset;
                let declared = a.access == Access::Update || b.access == Access::Update;
                if same && (a.access.writes() || b.access.writes()) && !declared {
                    let name = printable(&self.program.buffers[a.buffer.index()].name);
                    self.fault(place, format!("two arguments touch `{name}`, one writes"));
                }
            }
        }
    }
}

/// Which expressions depend on a symbol.
fn depending(exprs: &[Expr], symbol: SymbolId) -> Vec<bool> {
    let mut depends = Vec::with_capacity(exprs.len());
    for expr in exprs {
        depends.push(match *expr {
            Expr::Const(_) => false,
            Expr::Sym(own) => own == symbol,
            Expr::Bin(_, a, b) => depends[a.index()] || depends[b.index()],
        });
    }
    depends
}

fn step_place(index: usize, step: &Step) -> String {
    format!("step {index} `{}`", printable(&step.name))
}
