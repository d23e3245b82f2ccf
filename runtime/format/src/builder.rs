//! A builder of programs for code generators. Expressions are folded and shared as they are made
//! (equal ones get equal ids), kernels are found by name, and the live ranges of arena buffers
//! follow from the steps that use them.

use std::collections::BTreeMap;

use crate::expr::{BinOp, Expr, ExprId, SymbolId};
use crate::program::{
    Access, Arg, Buffer, BufferId, Elem, Kernel, KernelId, Limit, Place, Port, Program, Relation,
    Step,
};

/// Makes a [`Program`] piece by piece.
#[derive(Clone, Debug, Default)]
pub struct ProgramBuilder {
    program: Program,
    exprs: BTreeMap<Expr, ExprId>,
    symbols: BTreeMap<String, SymbolId>,
    kernels: BTreeMap<String, KernelId>,
}

impl ProgramBuilder {
    pub fn new() -> ProgramBuilder {
        ProgramBuilder::default()
    }

    fn intern(&mut self, expr: Expr) -> ExprId {
        if let Some(&id) = self.exprs.get(&expr) {
            return id;
        }
        let id = ExprId(index(self.program.exprs.len()));
        self.program.exprs.push(expr);
        self.exprs.insert(expr, id);
        id
    }

    /// The symbol of this name, declared at its first use.
    pub fn sym(&mut self, name: &str) -> ExprId {
        let id = match self.symbols.get(name) {
            Some(&id) => id,
            None => {
                let id = SymbolId(index(self.program.symbols.len()));
                self.program.symbols.push(name.to_string());
                self.symbols.insert(name.to_string(), id);
                id
            }
        };
        self.intern(Expr::Sym(id))
    }

    pub fn int(&mut self, value: i64) -> ExprId {
        self.intern(Expr::Const(value))
    }

    /// The expression behind an id.
    pub fn expr(&self, id: ExprId) -> Expr {
        self.program.exprs[id.index()]
    }

    /// The value of an expression without symbols.
    pub fn const_value(&self, id: ExprId) -> Option<i64> {
        match self.expr(id) {
            Expr::Const(c) => Some(c),
            _ => None,
        }
    }

    /// Any binary operation, folded where it can be.
    pub fn bin(&mut self, op: BinOp, a: ExprId, b: ExprId) -> ExprId {
        let (ca, cb) = (self.const_value(a), self.const_value(b));
        if let (Some(x), Some(y)) = (ca, cb)
            && let Some(value) = op.apply(x, y)
        {
            return self.int(value);
        }
        match (op, ca, cb) {
            (BinOp::Add, Some(0), _) | (BinOp::Mul, Some(1), _) => return b,
            (BinOp::Add | BinOp::Sub, _, Some(0)) => return a,
            (BinOp::Mul | BinOp::FloorDiv | BinOp::CeilDiv, _, Some(1)) => return a,
            (BinOp::Mul, Some(0), _) => return a,
            (BinOp::Mul, _, Some(0)) => return b,
            (BinOp::Mod, _, Some(1)) => return self.int(0),
            (BinOp::Min | BinOp::Max, _, _) if a == b => return a,
            (BinOp::Sub, _, _) if a == b => return self.int(0),
            _ => {}
        }
        let commutes = matches!(op, BinOp::Add | BinOp::Mul | BinOp::Min | BinOp::Max);
        let (a, b) = if commutes && b < a { (b, a) } else { (a, b) };
        self.intern(Expr::Bin(op, a, b))
    }

    pub fn add(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::Add, a, b)
    }

    pub fn sub(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::Sub, a, b)
    }

    pub fn mul(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::Mul, a, b)
    }

    pub fn floor_div(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::FloorDiv, a, b)
    }

    pub fn ceil_div(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::CeilDiv, a, b)
    }

    pub fn modulo(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::Mod, a, b)
    }

    pub fn min(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::Min, a, b)
    }

    pub fn max(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.bin(BinOp::Max, a, b)
    }

    /// `a * factor`.
    pub fn scale(&mut self, a: ExprId, factor: i64) -> ExprId {
        let factor = self.int(factor);
        self.mul(a, factor)
    }

    /// `ceil_div(a, multiple) * multiple`.
    pub fn round_up(&mut self, a: ExprId, multiple: i64) -> ExprId {
        let m = self.int(multiple);
        let blocks = self.ceil_div(a, m);
        self.mul(blocks, m)
    }

    /// The product of all; 1 for none.
    pub fn product(&mut self, factors: &[ExprId]) -> ExprId {
        let one = self.int(1);
        factors.iter().fold(one, |acc, &f| self.mul(acc, f))
    }

    /// Bytes of a dense tensor.
    pub fn dense_bytes(&mut self, elem: Elem, shape: &[ExprId]) -> ExprId {
        let elements = self.product(shape);
        if elem.bits() < 8 {
            let bits = self.scale(elements, i64::from(elem.bits()));
            let eight = self.int(8);
            return self.ceil_div(bits, eight);
        }
        self.scale(elements, i64::from(elem.bits() / 8))
    }

    fn push_buffer(&mut self, buffer: Buffer) -> BufferId {
        let id = BufferId(index(self.program.buffers.len()));
        self.program.buffers.push(buffer);
        id
    }

    fn dense(&mut self, name: &str, elem: Elem, shape: &[ExprId], place: Place) -> BufferId {
        let bytes = self.dense_bytes(elem, shape);
        self.push_buffer(Buffer { name: name.into(), elem, shape: shape.into(), bytes, place })
    }

    /// Declares the next input and its buffer.
    pub fn input(&mut self, name: &str, elem: Elem, shape: &[ExprId]) -> BufferId {
        let place = Place::Input(index(self.program.inputs.len()));
        let buffer = self.dense(name, elem, shape, place);
        self.program.inputs.push(Port { name: name.into(), elem, shape: shape.into(), buffer });
        buffer
    }

    /// Declares the next output and its buffer.
    pub fn output(&mut self, name: &str, elem: Elem, shape: &[ExprId]) -> BufferId {
        let place = Place::Output(index(self.program.outputs.len()));
        let buffer = self.dense(name, elem, shape, place);
        self.program.outputs.push(Port { name: name.into(), elem, shape: shape.into(), buffer });
        buffer
    }

    /// A range of the weight section; `offset` must be a multiple of 64.
    pub fn weight(
        &mut self,
        name: &str,
        elem: Elem,
        shape: &[ExprId],
        offset: u64,
        len: u64,
    ) -> BufferId {
        let bytes = self.int(i64::try_from(len).expect("a weight is shorter than 2^63 bytes"));
        let place = Place::Weight { offset, len };
        self.push_buffer(Buffer { name: name.into(), elem, shape: shape.into(), bytes, place })
    }

    /// A dense intermediate buffer. Its live range is worked out by [`finish`](Self::finish).
    pub fn arena(&mut self, name: &str, elem: Elem, shape: &[ExprId]) -> BufferId {
        self.dense(name, elem, shape, Place::Arena { first: 0, last: 0 })
    }

    /// An intermediate buffer of a given size, for padded layouts.
    pub fn arena_sized(
        &mut self,
        name: &str,
        elem: Elem,
        shape: &[ExprId],
        bytes: ExprId,
    ) -> BufferId {
        let place = Place::Arena { first: 0, last: 0 };
        self.push_buffer(Buffer { name: name.into(), elem, shape: shape.into(), bytes, place })
    }

    /// A buffer as declared so far.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.program.buffers[id.index()]
    }

    /// The kernel of this name, declared at its first use.
    pub fn kernel(&mut self, name: &str) -> KernelId {
        if let Some(&id) = self.kernels.get(name) {
            return id;
        }
        let id = KernelId(index(self.program.kernels.len()));
        self.program.kernels.push(Kernel { name: name.into(), attrs: Vec::new() });
        self.kernels.insert(name.into(), id);
        id
    }

    /// Sets a launcher attribute of a kernel.
    pub fn kernel_attr(&mut self, kernel: KernelId, name: &str, value: i64) {
        self.program.kernels[kernel.index()].attrs.push((name.into(), value));
    }

    pub fn limit(&mut self, left: ExprId, relation: Relation, right: ExprId, note: &str) {
        self.program.limits.push(Limit { left, relation, right, note: note.into() });
    }

    /// Promises that the work can be cut along a symbol; see [`Program::batch`].
    pub fn batch(&mut self, symbol: &str) {
        self.program.batch = self.symbols.get(symbol).copied();
    }

    /// An argument that covers its whole buffer.
    pub fn whole(&mut self, buffer: BufferId, access: Access) -> Arg {
        let offset = self.int(0);
        Arg { buffer, offset, extent: self.buffer(buffer).bytes, access }
    }

    /// A step with empty `dims`, no scratch and no figures for reports; set the rest by field.
    pub fn simple_step(
        &mut self,
        name: &str,
        family: &str,
        kernel: KernelId,
        args: Vec<Arg>,
        work: ExprId,
    ) -> Step {
        let (zero, one) = (self.int(0), self.int(1));
        Step {
            name: name.into(),
            family: family.into(),
            kernel,
            args,
            dims: Vec::new(),
            work,
            grain: one,
            scratch_bytes: zero,
            ops: zero,
            bytes: zero,
        }
    }

    /// Appends a step and returns its index.
    pub fn step(&mut self, step: Step) -> usize {
        self.program.steps.push(step);
        self.program.steps.len() - 1
    }

    /// The finished program. Arena buffers live from their first to their last use; those that no
    /// step uses are dropped.
    pub fn finish(self) -> Program {
        let mut program = self.program;
        let mut ranges: Vec<Option<(u32, u32)>> = vec![None; program.buffers.len()];
        for (i, step) in program.steps.iter().enumerate() {
            for arg in &step.args {
                let i = index(i);
                let range = ranges[arg.buffer.index()].get_or_insert((i, i));
                range.1 = i;
            }
        }
        let mut renamed = Vec::with_capacity(ranges.len());
        let mut kept = Vec::with_capacity(ranges.len());
        for (mut buffer, range) in program.buffers.drain(..).zip(ranges) {
            renamed.push(BufferId(index(kept.len())));
            if let Place::Arena { .. } = buffer.place {
                let Some((first, last)) = range else { continue };
                buffer.place = Place::Arena { first, last };
            }
            kept.push(buffer);
        }
        program.buffers = kept;
        for arg in program.steps.iter_mut().flat_map(|s| s.args.iter_mut()) {
            arg.buffer = renamed[arg.buffer.index()];
        }
        for port in program.inputs.iter_mut().chain(program.outputs.iter_mut()) {
            port.buffer = renamed[port.buffer.index()];
        }
        program
    }
}

fn index(len: usize) -> u32 {
    u32::try_from(len).expect("a program has fewer than 2^32 of anything")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_expressions_share_an_id() {
        let mut b = ProgramBuilder::new();
        let (x, y) = (b.sym("x"), b.sym("y"));
        assert_eq!(b.mul(x, y), b.mul(y, x));
        let (two, three) = (b.int(2), b.int(3));
        assert_eq!(b.mul(two, three), b.int(6));
        assert_eq!(b.round_up(three, 64), b.int(64));
        assert_eq!(b.product(&[]), b.int(1));
        let zero = b.int(0);
        assert_eq!(b.add(x, zero), x);
        assert_eq!(b.sub(x, x), zero);
    }

    #[test]
    fn live_ranges_follow_the_steps() {
        let mut b = ProgramBuilder::new();
        let n = b.sym("n");
        let x = b.input("x", Elem::F32, &[n]);
        let unused = b.arena("unused", Elem::F32, &[n]);
        let t = b.arena("t", Elem::F32, &[n]);
        let y = b.output("y", Elem::F32, &[n]);
        let k = b.kernel("copy");
        for (name, from, to) in [("t", x, t), ("y", t, y)] {
            let args = vec![b.whole(from, Access::Read), b.whole(to, Access::Write)];
            let step = b.simple_step(name, "move", k, args, n);
            b.step(step);
        }
        assert_eq!(b.buffer(unused).name, "unused");
        let program = b.finish();
        let names: Vec<&str> = program.buffers.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(names, ["x", "t", "y"]);
        assert_eq!(program.buffers[1].place, Place::Arena { first: 0, last: 1 });
        assert_eq!(program.outputs[0].buffer, BufferId(2));
    }
}
