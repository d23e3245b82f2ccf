//! The verifier of plans: one run lists every fault. It checks that
//!
//! - ports and buffers belong together, constants fill their shapes;
//! - every view lies inside its buffer, as far as the sizes tell it;
//! - nothing writes to inputs or constants, every value is written before it is read, every output
//!   is written;
//! - every step has the operands, element types and shapes that its kernel family takes.

use super::{
    Buffer, Extra, Gemm, GemmInput, GemmOutput, Kernel, NormKind, Place, Plan, RowQuantize, Step,
    View,
};
use crate::dim::Dim;
use crate::expr::Expr;
use crate::types::Elem;
use std::slice::from_ref;

/// Per-column tables and packed weights are padded to this many columns.
const COLUMN_GROUP: usize = 16;

/// Rows of a packed bf16 weight are padded to a multiple of this.
const BF16_ROWS: usize = 32;

type Checked = Result<(), String>;

/// Checks the plan; lists all faults.
pub fn verify(plan: &Plan) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    for (i, buffer) in plan.buffers.iter().enumerate() {
        if let Err(fault) = check_buffer(plan, i, buffer) {
            faults.push(format!("buffer #{i} `{}`: {fault}", buffer.name));
        }
    }
    let ports = [("input", &plan.inputs), ("output", &plan.outputs)];
    for (kind, ports) in ports {
        for (i, port) in ports.iter().enumerate() {
            let place = if kind == "input" { Place::Input(i) } else { Place::Output(i) };
            match plan.buffers.get(port.buffer.0) {
                Some(b) if b.place == place && b.elem == port.elem && b.shape == port.shape => {}
                Some(_) => faults.push(format!("{kind} `{}`: its buffer is another's", port.name)),
                None => {
                    faults.push(format!("{kind} `{}`: no buffer #{}", port.name, port.buffer.0))
                }
            }
        }
    }
    let is_source = |b: &Buffer| matches!(b.place, Place::Input(_) | Place::Const(_));
    let mut written: Vec<bool> = plan.buffers.iter().map(is_source).collect();
    for (i, step) in plan.steps.iter().enumerate() {
        let mut fault = |fault: String| {
            faults.push(format!("step {i} `{}` ({}): {fault}", step.name, step.kernel.name()));
        };
        let views: Vec<&View> = step.args.iter().chain(&step.results).collect();
        let broken: Vec<String> = views.iter().filter_map(|v| check_view(plan, v).err()).collect();
        if !broken.is_empty() {
            for view in &step.results {
                written.get_mut(view.buffer.0).into_iter().for_each(|w| *w = true);
            }
            broken.into_iter().for_each(fault);
            continue;
        }
        check_order(plan, step, &mut written).into_iter().for_each(&mut fault);
        if let Err(error) = check_step(&Operands { plan, step }) {
            fault(error);
        }
    }
    for port in &plan.outputs {
        if written.get(port.buffer.0) == Some(&false) {
            faults.push(format!("output `{}` is never written", port.name));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn check_buffer(plan: &Plan, index: usize, buffer: &Buffer) -> Checked {
    if let Some(d) = buffer.shape.iter().find(|d| d.as_const().is_some_and(|v| v < 0)) {
        return Err(format!("negative size {d}"));
    }
    let owner = |ports: &[super::Port], i: usize| ports.get(i).map(|p| p.buffer.0) == Some(index);
    match &buffer.place {
        Place::Input(i) if !owner(&plan.inputs, *i) => Err(format!("is not that of input {i}")),
        Place::Output(i) if !owner(&plan.outputs, *i) => Err(format!("is not that of output {i}")),
        Place::Const(value) => {
            let shape: Vec<Dim> = value.shape.iter().map(|&d| Dim::from(d)).collect();
            let (got, want) = (value.bytes.as_slice().len(), value.elem.bytes(value.count()));
            if value.elem != buffer.elem || shape != buffer.shape {
                Err(format!("its constant is {}", value.ty()))
            } else if got != want {
                Err(format!("its constant has {got} bytes, not {want}"))
            } else {
                Ok(())
            }
        }
        Place::Input(_) | Place::Output(_) | Place::Arena => Ok(()),
    }
}

/// That a view lies inside its buffer, wherever constant differences tell.
fn check_view(plan: &Plan, view: &View) -> Checked {
    let Some(buffer) = plan.buffers.get(view.buffer.0) else {
        return Err(format!("no buffer #{}", view.buffer.0));
    };
    let at = view.buffer.0;
    if view.strides.len() != view.shape.len() {
        return Err(format!("view of #{at} with {} strides", view.strides.len()));
    }
    if view.shape.iter().any(|d| d.as_const().is_some_and(|v| v < 0)) {
        return Err(format!("view of #{at} with a negative size"));
    }
    if view.shape.iter().any(|d| d.as_const() == Some(0)) {
        return Ok(());
    }
    let (mut first, mut last) = (view.offset.clone(), view.offset.clone());
    for (size, stride) in view.shape.iter().zip(&view.strides) {
        let reach = (size.clone() - Dim::one()) * stride.clone();
        if stride.as_const().is_some_and(|s| s < 0) {
            first = first + reach;
        } else {
            last = last + reach;
        }
    }
    let count = super::dim::product(&buffer.shape);
    let below = first.as_const().is_some_and(|v| v < 0);
    let above = (last.clone() - count.clone()).as_const().is_some_and(|v| v >= 0);
    if below || above {
        return Err(format!("view of #{at} runs from {first} to {last} of {count} elements"));
    }
    Ok(())
}

/// Nothing is read before it is written; inputs and constants are only read.
fn check_order(plan: &Plan, step: &Step, written: &mut [bool]) -> Vec<String> {
    let mut faults = Vec::new();
    let in_place = matches!(step.kernel, Kernel::ScatterElements { .. } | Kernel::ScatterNd { .. });
    let also_read: &[View] = if in_place { &step.results } else { &[] };
    for view in step.args.iter().chain(also_read) {
        if !written[view.buffer.0] {
            faults.push(format!("reads #{} before it is written", view.buffer.0));
        }
    }
    for view in &step.results {
        if matches!(plan.buffer(view.buffer).place, Place::Input(_) | Place::Const(_)) {
            faults.push(format!("writes to #{}, which is only read", view.buffer.0));
        }
        written[view.buffer.0] = true;
    }
    faults
}

/// A step whose views are sound.
struct Operands<'a> {
    plan: &'a Plan,
    step: &'a Step,
}

impl<'a> Operands<'a> {
    fn counts(&self, args: usize, results: usize) -> Checked {
        let got = (self.step.args.len(), self.step.results.len());
        if got != (args, results) {
            return Err(format!(
                "{} arguments and {} results instead of {args} and {results}",
                got.0, got.1
            ));
        }
        Ok(())
    }

    fn arg(&self, i: usize) -> &'a View {
        &self.step.args[i]
    }

    fn result(&self) -> &'a View {
        &self.step.results[0]
    }

    fn elem(&self, view: &View) -> Elem {
        self.plan.buffer(view.buffer).elem
    }

    fn elems(&self, args: &[View]) -> Vec<Elem> {
        args.iter().map(|v| self.elem(v)).collect()
    }

    fn is(&self, what: &str, view: &View, elem: Elem) -> Checked {
        let got = self.elem(view);
        if got == elem { Ok(()) } else { Err(format!("{what} is {got}, not {elem}")) }
    }

    fn is_index(&self, view: &View) -> Checked {
        match self.elem(view) {
            Elem::I64 | Elem::I32 => Ok(()),
            elem => Err(format!("indices are {elem}")),
        }
    }

    /// A view of this element type and shape.
    fn table(&self, what: &str, view: &View, elem: Elem, shape: &[Dim]) -> Checked {
        self.is(what, view, elem)?;
        same(what, &view.shape, shape)
    }
}

fn list(shape: &[Dim]) -> String {
    let texts: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", texts.join(","))
}

fn same(what: &str, got: &[Dim], want: &[Dim]) -> Checked {
    if got == want {
        return Ok(());
    }
    Err(format!("{what} has the shape {}, not {}", list(got), list(want)))
}

fn rank(what: &str, view: &View, at_least: usize) -> Checked {
    if view.shape.len() < at_least {
        return Err(format!("{what} has the shape {}: rank too small", list(&view.shape)));
    }
    Ok(())
}

/// Neighbours along the last axis are neighbours in memory.
fn unit_last(what: &str, view: &View) -> Checked {
    let single = view.shape.last().is_none_or(|d| d.as_const().is_some_and(|d| d <= 1));
    if single || view.strides.last().and_then(Dim::as_const) == Some(1) {
        return Ok(());
    }
    Err(format!("{what} has a last stride other than 1"))
}

fn check_step(o: &Operands) -> Checked {
    match &o.step.kernel {
        Kernel::Gemm(gemm) => check_gemm(o, gemm),
        Kernel::MatMul => check_matmul(o),
        Kernel::Pointwise(expr) => {
            o.counts(o.step.args.len(), 1)?;
            let shape = &o.result().shape;
            o.step.args.iter().try_for_each(|a| same("an argument", &a.shape, shape))?;
            check_expr(o, expr, &o.step.args, o.elem(o.result()))
        }
        Kernel::Norm { kind, float, quantize, .. } => {
            check_norm(o, *kind, *float, quantize.as_ref())
        }
        Kernel::Quantize { expr, quantize } => check_quantize(o, expr, quantize),
        Kernel::Attention { mask, .. } => check_attention(o, *mask),
        Kernel::Gather { .. }
        | Kernel::GatherElements { .. }
        | Kernel::GatherNd { .. }
        | Kernel::ScatterElements { .. }
        | Kernel::ScatterNd { .. } => check_indexed(o),
        Kernel::Reduce { keep, .. } => {
            o.counts(1, 1)?;
            let (x, y) = (o.arg(0), o.result());
            rank("the argument", x, *keep)?;
            o.table("the result", y, o.elem(x), &x.shape[..*keep])
        }
        Kernel::ArgReduce { .. } => {
            o.counts(1, 1)?;
            rank("the argument", o.arg(0), 1)?;
            let (_, kept) = o.arg(0).shape.split_last().expect("the rank is at least 1");
            o.table("the result", o.result(), Elem::I64, kept)
        }
        Kernel::CumSum { .. } | Kernel::Softmax => {
            o.counts(1, 1)?;
            rank("the argument", o.arg(0), 1)?;
            o.table("the result", o.result(), o.elem(o.arg(0)), &o.arg(0).shape)
        }
        Kernel::Iota => {
            o.counts(0, 1)?;
            o.is("the result", o.result(), Elem::I64)?;
            rank("the result", o.result(), 1)
        }
        Kernel::Dims(values) => {
            o.counts(0, 1)?;
            o.table("the result", o.result(), Elem::I64, &[Dim::from(values.len())])
        }
    }
}

fn check_expr(o: &Operands, expr: &Expr, args: &[View], want: Elem) -> Checked {
    match expr.elem(&o.elems(args)) {
        Ok(got) if got == want => Ok(()),
        Ok(got) => Err(format!("the expression gives {got}, not {want}")),
        Err(e) => Err(format!("the expression {e}")),
    }
}

fn check_matmul(o: &Operands) -> Checked {
    o.counts(2, 1)?;
    let (a, b, y) = (o.arg(0), o.arg(1), o.result());
    let ([a_batch @ .., m, k], [b_batch @ .., k2, n]) = (&a.shape[..], &b.shape[..]) else {
        return Err("an argument has a rank below 2".to_owned());
    };
    same("the batch of b", b_batch, a_batch)?;
    same("the depth of b", from_ref(k2), from_ref(k))?;
    o.is("b", b, o.elem(a))?;
    o.table("the result", y, o.elem(a), &[a_batch, &[m.clone(), n.clone()]].concat())
}

fn check_gemm(o: &Operands, gemm: &Gemm) -> Checked {
    let (codes_in, a_elem) = match gemm.input {
        GemmInput::F32 => (false, Elem::F32),
        GemmInput::Codes { .. } => (true, Elem::U8),
    };
    match (codes_in, gemm.weight) {
        (false, Elem::F32 | Elem::BF16) | (true, Elem::I8 | Elem::I4) => {}
        (_, elem) => return Err(format!("a weight of {elem} for a left operand of {a_elem}")),
    }
    let (codes_out, y_elem) = match gemm.output {
        GemmOutput::F32 => (false, Elem::F32),
        GemmOutput::I32 => (false, Elem::I32),
        GemmOutput::Codes { bits: 4 | 8, .. } => (true, Elem::U8),
        GemmOutput::Codes { bits, .. } => return Err(format!("gives codes of {bits} bits")),
    };
    let tables = usize::from(codes_in) * 2;
    o.counts(2 + tables + gemm.extras.len() + usize::from(codes_out) * 2, 1)?;
    let (a, w, y) = (o.arg(0), o.arg(1), o.result());
    rank("the left operand", a, 2)?;
    let rows = a.shape[0].clone();
    o.table("the left operand", a, a_elem, &[rows.clone(), Dim::from(gemm.k)])?;
    unit_last("the left operand", a)?;
    let padded = gemm.n.next_multiple_of(COLUMN_GROUP);
    o.is("the weight", w, gemm.weight)?;
    let rows_packed =
        if gemm.weight == Elem::BF16 { gemm.k.next_multiple_of(BF16_ROWS) } else { gemm.k };
    if w.count() != Dim::from(padded * rows_packed) {
        return Err(format!("the packed weight has {} values", w.count()));
    }
    if !w.is_contiguous() || w.offset != Dim::zero() {
        return Err("the packed weight is not the whole of its buffer".to_owned());
    }
    let columns = [Dim::from(padded)];
    let mut next = 2;
    let mut table = |what: &str, elem: Elem| {
        next += 1;
        o.table(what, o.arg(next - 1), elem, &columns)
    };
    if codes_in {
        table("the table of scales", Elem::F32)?;
        table("the table of first sums", Elem::I32)?;
    }
    let result = [rows, Dim::from(gemm.n)];
    let extras = &o.step.args[2 + tables..][..gemm.extras.len()];
    for (extra, view) in gemm.extras.iter().zip(extras) {
        match extra {
            Extra::PerColumn => o.table("a per-column operand", view, Elem::F32, &columns)?,
            Extra::PerElement => {
                o.table("a per-element operand", view, Elem::F32, &result)?;
                unit_last("a per-element operand", view)?;
            }
        }
    }
    for view in &o.step.args[2 + tables + extras.len()..] {
        o.table("an output table", view, Elem::F32, &columns)?;
    }
    let elems = vec![Elem::F32; 1 + extras.len()];
    if gemm.epilogue.elem(&elems) != Ok(Elem::F32) {
        return Err("the epilogue does not give f32".to_owned());
    }
    o.table("the result", y, y_elem, &result)?;
    unit_last("the result", y)
}

fn check_tables(o: &Operands, args: &[View], q: &RowQuantize) -> Checked {
    let [inverse, source, below] = args else {
        return Err(format!("{} tables of the quantiser instead of 3", args.len()));
    };
    if !matches!(q.bits, 4 | 8) || q.base + q.tail > q.padded {
        return Err(format!("{} + {} channels in {}", q.base, q.tail, q.padded));
    }
    o.table("the table of multipliers", inverse, Elem::F32, &[q.base.into()])?;
    o.table("the table of sources", source, Elem::I32, &[q.tail.into()])?;
    o.table("the table of thresholds", below, Elem::F32, &[q.tail.into()])
}

/// Codes of rows of `shape`.
fn check_codes(o: &Operands, codes: &View, shape: &[Dim], q: &RowQuantize) -> Checked {
    let Some((last, rows)) = shape.split_last() else {
        return Err("a scalar has no row".to_owned());
    };
    same("the row", from_ref(last), &[q.base.into()])?;
    o.table("the codes", codes, Elem::U8, &[rows, &[q.padded.into()]].concat())?;
    unit_last("the codes", codes)
}

fn check_norm(
    o: &Operands,
    kind: NormKind,
    float: bool,
    quantize: Option<&RowQuantize>,
) -> Checked {
    let own = if kind == NormKind::Layer { 3 } else { 2 };
    let tables = if quantize.is_some() { 3 } else { 0 };
    o.counts(own + tables, usize::from(float) + usize::from(quantize.is_some()))?;
    if o.step.results.is_empty() {
        return Err("has no result".to_owned());
    }
    let x = o.arg(0);
    rank("the argument", x, 1)?;
    o.is("the argument", x, Elem::F32)?;
    for view in &o.step.args[1..own] {
        o.table("a parameter", view, Elem::F32, &x.shape[x.shape.len() - 1..])?;
    }
    if float {
        o.table("the result", o.result(), Elem::F32, &x.shape)?;
    }
    if let (Some(q), Some(codes)) = (quantize, o.step.results.last()) {
        check_tables(o, &o.step.args[own..], q)?;
        check_codes(o, codes, &x.shape, q)?;
    }
    Ok(())
}

fn check_quantize(o: &Operands, expr: &Expr, q: &RowQuantize) -> Checked {
    let count = o.step.args.len();
    if count < 4 {
        return Err(format!("{count} arguments instead of at least 4"));
    }
    o.counts(count, 1)?;
    let (values, tables) = o.step.args.split_at(count - 3);
    check_tables(o, tables, q)?;
    let shape = &values[0].shape;
    values.iter().try_for_each(|v| same("an argument", &v.shape, shape))?;
    check_expr(o, expr, values, Elem::F32)?;
    check_codes(o, o.result(), shape, q)
}

fn check_attention(o: &Operands, mask: bool) -> Checked {
    o.counts(if mask { 4 } else { 3 }, 1)?;
    let (q, k, v) = (o.arg(0), o.arg(1), o.arg(2));
    let ([b, h, s, d], [_, g, t, _], [.., e]) = (&q.shape[..], &k.shape[..], &v.shape[..]) else {
        return Err("an argument has not the rank 4".to_owned());
    };
    let of = |dims: [&Dim; 4]| dims.map(Dim::clone);
    o.is("q", q, Elem::F32)?;
    o.table("k", k, Elem::F32, &of([b, g, t, d]))?;
    o.table("v", v, Elem::F32, &of([b, g, t, e]))?;
    if h.exact_div(g).is_none() {
        return Err(format!("{h} heads are not a multiple of {g} groups"));
    }
    if mask {
        o.table("the mask", o.arg(3), Elem::F32, &of([b, h, s, t]))?;
    }
    o.table("the result", o.result(), Elem::F32, &of([b, h, s, e]))?;
    for (what, view) in [("q", q), ("k", k), ("v", v), ("the result", o.result())] {
        unit_last(what, view)?;
    }
    Ok(())
}

fn check_indexed(o: &Operands) -> Checked {
    o.counts(2, 1)?;
    let (a, b, y) = (o.arg(0), o.arg(1), o.result());
    let tuple = |view: &View| {
        let depth = view.shape.last().and_then(Dim::as_const);
        depth.and_then(|d| usize::try_from(d).ok()).ok_or("index tuples of unknown length")
    };
    match &o.step.kernel {
        Kernel::Gather { axis, index_rank } => {
            o.is_index(b)?;
            rank("the data", a, axis + 1)?;
            if b.shape.len() != *index_rank {
                return Err(format!("indices {}, not of rank {index_rank}", list(&b.shape)));
            }
            let shape = [&a.shape[..*axis], &b.shape, &a.shape[axis + 1..]].concat();
            o.table("the result", y, o.elem(a), &shape)
        }
        Kernel::GatherElements { axis } => {
            o.is_index(b)?;
            rank("the data", a, axis + 1)?;
            rank("the data", a, b.shape.len())?;
            rank("the indices", b, a.shape.len())?;
            o.table("the result", y, o.elem(a), &b.shape)
        }
        Kernel::GatherNd { batch_dims } => {
            o.is_index(b)?;
            let depth = tuple(b)?;
            rank("the data", a, batch_dims + depth)?;
            let outer = &b.shape[..b.shape.len() - 1];
            let shape = [outer, &a.shape[batch_dims + depth..]].concat();
            o.table("the result", y, o.elem(a), &shape)
        }
        Kernel::ScatterElements { axis, .. } => {
            o.is_index(a)?;
            rank("the data", y, axis + 1)?;
            rank("the data", y, a.shape.len())?;
            rank("the indices", a, y.shape.len())?;
            o.table("the updates", b, o.elem(y), &a.shape)
        }
        Kernel::ScatterNd { .. } => {
            o.is_index(a)?;
            let depth = tuple(a)?;
            rank("the data", y, depth)?;
            let shape = [&a.shape[..a.shape.len() - 1], &y.shape[depth..]].concat();
            o.table("the updates", b, o.elem(y), &shape)
        }
        other => Err(format!("`{}` takes no indices", other.name())),
    }
}
