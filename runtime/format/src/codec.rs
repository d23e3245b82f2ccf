//! The bytes of a program: little-endian, fixed-width numbers, strings and lists with a 32-bit
//! count before them. Decoding checks every count against the bytes that are left before it
//! allocates, so memory use is bounded by a small multiple of the section's length.

use crate::error::{Error, Result};
use crate::expr::{BinOp, Expr, ExprId, SymbolId};
use crate::limits::LIMITS;
use crate::program::{
    Access, Arg, Buffer, BufferId, Elem, Kernel, KernelId, Limit, Place, Port, Program, Relation,
    Step,
};

impl Program {
    /// The program as bytes. Equal programs have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.list(&self.symbols, |w, s| w.str(s));
        w.list(&self.exprs, Writer::expr);
        w.list(&self.buffers, Writer::buffer);
        w.list(&self.inputs, Writer::port);
        w.list(&self.outputs, Writer::port);
        w.list(&self.limits, |w, l| {
            w.u32(l.left.0);
            w.u8(l.relation as u8);
            w.u32(l.right.0);
            w.str(&l.note);
        });
        w.list(&self.kernels, |w, k| {
            w.str(&k.name);
            w.list(&k.attrs, |w, (name, value)| {
                w.str(name);
                w.i64(*value);
            });
        });
        w.list(&self.steps, Writer::step);
        w.u32(self.batch.map_or(0, |symbol| symbol.0.saturating_add(1)));
        w.bytes
    }

    /// Reads a program of a file of version `format` back. What it returns is well formed as data
    /// only; see [`verify`](crate::verify).
    pub fn decode(bytes: &[u8], format: u32) -> Result<Program> {
        let mut r = Reader::new(bytes, "plan");
        let program = Program {
            symbols: r.list("symbols", LIMITS.symbols, 4, Reader::str)?,
            exprs: r.list("expressions", LIMITS.exprs, 5, Reader::expr)?,
            buffers: r.list("buffers", LIMITS.buffers, 18, Reader::buffer)?,
            inputs: r.list("inputs", LIMITS.ports, 13, Reader::port)?,
            outputs: r.list("outputs", LIMITS.ports, 13, Reader::port)?,
            limits: r.list("conditions", LIMITS.conditions, 13, Reader::limit)?,
            kernels: r.list("kernels", LIMITS.kernels, 8, |r| {
                let name = r.str()?;
                let attrs = r.list("attributes", LIMITS.attrs, 12, |r| Ok((r.str()?, r.i64()?)))?;
                Ok(Kernel { name, attrs })
            })?,
            steps: r.list("steps", LIMITS.steps, 40, Reader::step)?,
            batch: if format < 2 { None } else { r.u32()?.checked_sub(1).map(SymbolId) },
        };
        r.finish()?;
        Ok(program)
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u8(&mut self, v: u8) {
        self.bytes.push(v);
    }

    fn u32(&mut self, v: u32) {
        self.bytes.extend(v.to_le_bytes());
    }

    fn u64(&mut self, v: u64) {
        self.bytes.extend(v.to_le_bytes());
    }

    fn i64(&mut self, v: i64) {
        self.bytes.extend(v.to_le_bytes());
    }

    fn str(&mut self, s: &str) {
        self.u32(s.len() as u32);
        self.bytes.extend(s.as_bytes());
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Writer, &T)) {
        self.u32(items.len() as u32);
        for item in items {
            each(self, item);
        }
    }

    fn ids(&mut self, ids: &[ExprId]) {
        self.list(ids, |w, id| w.u32(id.0));
    }

    fn expr(&mut self, expr: &Expr) {
        match *expr {
            Expr::Const(c) => {
                self.u8(0);
                self.i64(c);
            }
            Expr::Sym(s) => {
                self.u8(1);
                self.u32(s.0);
            }
            Expr::Bin(op, a, b) => {
                self.u8(2 + op as u8);
                self.u32(a.0);
                self.u32(b.0);
            }
        }
    }

    fn buffer(&mut self, buffer: &Buffer) {
        self.str(&buffer.name);
        self.u8(buffer.elem.code());
        self.ids(&buffer.shape);
        self.u32(buffer.bytes.0);
        match buffer.place {
            Place::Input(n) => {
                self.u8(0);
                self.u32(n);
            }
            Place::Output(n) => {
                self.u8(1);
                self.u32(n);
            }
            Place::Arena { first, last } => {
                self.u8(2);
                self.u32(first);
                self.u32(last);
            }
            Place::Weight { offset, len } => {
                self.u8(3);
                self.u64(offset);
                self.u64(len);
            }
        }
    }

    fn port(&mut self, port: &Port) {
        self.str(&port.name);
        self.u8(port.elem.code());
        self.ids(&port.shape);
        self.u32(port.buffer.0);
    }

    fn step(&mut self, step: &Step) {
        self.str(&step.name);
        self.str(&step.family);
        self.u32(step.kernel.0);
        self.list(&step.args, |w, arg| {
            w.u32(arg.buffer.0);
            w.u32(arg.offset.0);
            w.u32(arg.extent.0);
            w.u8(arg.access as u8);
        });
        self.ids(&step.dims);
        for id in [step.work, step.grain, step.scratch_bytes, step.ops, step.bytes] {
            self.u32(id.0);
        }
    }
}

/// A cursor over bytes from a file; every read is checked.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Reader<'a> {
        Reader { bytes, pos: 0, what }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.pos
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.left() {
            let (what, pos) = (self.what, self.pos);
            return Err(Error::malformed(format!(
                "{what} ends at byte {} where {len} bytes are read at {pos}",
                self.bytes.len()
            )));
        }
        let taken = &self.bytes[self.pos..self.pos + len];
        self.pos += len;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Reads a count and checks it against a limit and against the bytes left, of which each
    /// item takes `least`.
    pub(crate) fn count(&mut self, what: &str, max: u32, least: usize) -> Result<usize> {
        let count = self.u32()?;
        if count > max {
            return Err(Error::limit(format!("{count} {what}, at most {max} are allowed")));
        }
        let count = count as usize;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left()) {
            let (name, left) = (self.what, self.left());
            return Err(Error::malformed(format!("{name} has {count} {what} in {left} bytes")));
        }
        Ok(count)
    }

    fn list<T>(
        &mut self,
        what: &str,
        max: u32,
        least: usize,
        mut each: impl FnMut(&mut Reader<'a>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(what, max, least)?;
        let mut items = Vec::new();
        items
            .try_reserve_exact(count)
            .map_err(|e| Error::limit(format!("no memory for {count} {what}: {e}")))?;
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }

    fn str(&mut self) -> Result<String> {
        let len = self.count("bytes of a name", LIMITS.name_bytes, 1)?;
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::malformed(format!("a name in the {} is not UTF-8", self.what)))?;
        Ok(text.to_string())
    }

    pub(crate) fn finish(&self) -> Result<()> {
        match self.left() {
            0 => Ok(()),
            left => Err(Error::malformed(format!("{left} bytes are left over in {}", self.what))),
        }
    }

    fn bad<T>(&self, what: &str, code: u8) -> Result<T> {
        Err(Error::malformed(format!("{what} code {code} is unknown in the {}", self.what)))
    }

    fn id(&mut self) -> Result<ExprId> {
        self.u32().map(ExprId)
    }

    fn shape(&mut self) -> Result<Vec<ExprId>> {
        self.list("dimensions", LIMITS.rank, 4, Reader::id)
    }

    fn elem(&mut self) -> Result<Elem> {
        let code = self.u8()?;
        Elem::from_code(code).map_or_else(|| self.bad("element", code), Ok)
    }

    fn expr(&mut self) -> Result<Expr> {
        let code = self.u8()?;
        match code {
            0 => self.i64().map(Expr::Const),
            1 => self.u32().map(|s| Expr::Sym(SymbolId(s))),
            _ => match BinOp::ALL.get(usize::from(code) - 2) {
                Some(&op) => Ok(Expr::Bin(op, self.id()?, self.id()?)),
                None => self.bad("expression", code),
            },
        }
    }

    fn buffer(&mut self) -> Result<Buffer> {
        let name = self.str()?;
        let elem = self.elem()?;
        let shape = self.shape()?;
        let bytes = self.id()?;
        let place = match self.u8()? {
            0 => Place::Input(self.u32()?),
            1 => Place::Output(self.u32()?),
            2 => Place::Arena { first: self.u32()?, last: self.u32()? },
            3 => Place::Weight { offset: self.u64()?, len: self.u64()? },
            code => return self.bad("place", code),
        };
        Ok(Buffer { name, elem, shape, bytes, place })
    }

    fn port(&mut self) -> Result<Port> {
        Ok(Port {
            name: self.str()?,
            elem: self.elem()?,
            shape: self.shape()?,
            buffer: BufferId(self.u32()?),
        })
    }

    fn limit(&mut self) -> Result<Limit> {
        let left = self.id()?;
        let relation = match self.u8()? {
            0 => Relation::Le,
            1 => Relation::Eq,
            2 => Relation::Ge,
            code => return self.bad("relation", code),
        };
        Ok(Limit { left, relation, right: self.id()?, note: self.str()? })
    }

    fn arg(&mut self) -> Result<Arg> {
        let (buffer, offset, extent) = (BufferId(self.u32()?), self.id()?, self.id()?);
        let access = match self.u8()? {
            0 => Access::Read,
            1 => Access::Write,
            2 => Access::Update,
            code => return self.bad("access", code),
        };
        Ok(Arg { buffer, offset, extent, access })
    }

    fn step(&mut self) -> Result<Step> {
        Ok(Step {
            name: self.str()?,
            family: self.str()?,
            kernel: KernelId(self.u32()?),
            args: self.list("arguments of a step", LIMITS.args, 13, Reader::arg)?,
            dims: self.list("dimensions of a step", LIMITS.dims, 4, Reader::id)?,
            work: self.id()?,
            grain: self.id()?,
            scratch_bytes: self.id()?,
            ops: self.id()?,
            bytes: self.id()?,
        })
    }
}
