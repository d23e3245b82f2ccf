//! The plan verifier and the binding: each fault of a program, and each wrong shape, is found and
//! named.

mod support;

use fqbin::{
    Access, BinOp, BindError, Binding, BufferId, Elem, Expr, ExprId, FORMAT_VERSION, KernelId,
    Place, Program, ProgramBuilder, SymbolId, verify,
};
use support::sample_program;

const WEIGHTS: u64 = 64 + 30 * 64;

/// The first fault after an edit of the sample program.
fn fault(edit: impl FnOnce(&mut Program)) -> String {
    let mut program = sample_program();
    verify(&program, WEIGHTS).unwrap();
    edit(&mut program);
    verify(&program, WEIGHTS).unwrap_err()[0].to_string()
}

/// Index of a buffer of the sample program.
fn buffer(p: &Program, name: &str) -> usize {
    p.buffers.iter().position(|b| b.name == name).unwrap()
}

#[test]
fn expressions_and_symbols_are_checked() {
    let text = fault(|p| p.exprs[0] = Expr::Bin(BinOp::Add, ExprId(0), ExprId(1)));
    assert_eq!(text, "expression 0: its operand does not come before it");
    let text = fault(|p| p.exprs[0] = Expr::Sym(SymbolId(9)));
    assert!(text.starts_with("expression 0"), "{text}");
    let text = fault(|p| p.symbols.push("free".into()));
    assert_eq!(text, "symbol `free`: it is not the whole of any input dimension");
    let text = fault(|p| p.symbols[1] = p.symbols[0].clone());
    assert!(text.ends_with("it is declared twice"), "{text}");
    let text = fault(|p| p.limits[0].right = ExprId(1000));
    assert_eq!(text, "condition 0: its right side is expression 1000, which does not exist");
    let text = fault(|p| p.symbols[0] = "x".repeat(5000));
    assert!(text.contains("name of 5000 bytes, at most 4096"), "{text}");
}

#[test]
fn ports_and_buffers_are_checked() {
    let text = fault(|p| p.outputs.clear());
    assert_eq!(text, "program: there are no outputs");
    let text = fault(|p| p.inputs[1].name = p.inputs[0].name.clone());
    assert_eq!(text, "input `ids`: the name appears twice");
    let text = fault(|p| p.inputs[0].elem = Elem::F32);
    assert_eq!(text, "input `ids`: its buffer has another type");
    let text = fault(|p| p.outputs[0].buffer = BufferId(77));
    assert!(text.contains("it is not the buffer of output 0"), "{text}");
    let text = fault(|p| p.inputs.swap(0, 1));
    assert!(text.contains("it is not the buffer of input 0"), "{text}");
    let text = fault(|p| p.buffers[0].shape = vec![ExprId(0); 17]);
    assert!(text.contains("rank 17, at most 16"), "{text}");
    let table = |offset, len| {
        fault(move |p| {
            let at = buffer(p, "table");
            p.buffers[at].place = Place::Weight { offset, len };
        })
    };
    assert!(table(65, 1920).contains("not a multiple of 64"));
    assert!(table(128, 1920).contains("outside the 1984 bytes"));
    assert!(table(u64::MAX - 63, 1920).contains("outside the 1984 bytes"));
    assert!(table(0, 1919).contains("not the constant 1919"));
    for (first, last) in [(2, 1), (0, 4)] {
        let text = fault(|p| {
            let at = buffer(p, "hidden");
            p.buffers[at].place = Place::Arena { first, last };
        });
        assert!(text.contains(&format!("it lives from {first} to {last} of 4")), "{text}");
    }
    let text = fault(|p| p.kernels[1].name = p.kernels[0].name.clone());
    assert!(text.ends_with("the name appears twice"), "{text}");
}

#[test]
fn steps_are_checked() {
    let text = fault(|p| p.steps[0].kernel = KernelId(3));
    assert_eq!(text, "step 0 `hidden`: kernel 3 does not exist");
    let text = fault(|p| p.steps[1].dims.push(ExprId(999)));
    assert!(text.starts_with("step 1 `scaled`: a number is expression 999"), "{text}");
    let text = fault(|p| p.steps[0].args[1].buffer = BufferId(50));
    assert_eq!(text, "step 0 `hidden`, argument 1: buffer 50 does not exist");
    let text = fault(|p| p.steps[0].args[1].access = Access::Write);
    assert!(text.ends_with("it writes to `table`, which is read only"), "{text}");
    let text = fault(|p| p.steps.swap(0, 2));
    assert!(text.contains("it reads `hidden` before any step wrote it"), "{text}");
    let text = fault(|p| {
        let at = buffer(p, "sums");
        p.buffers[at].place = Place::Arena { first: 2, last: 2 };
    });
    assert_eq!(text, "step 3 `out`: it uses `sums`, which lives from 2 to 2");
    let text = fault(|p| drop(p.steps.pop()));
    assert!(text.contains("it lives from"), "{text}");
    let text = fault(|p| {
        let arg = p.steps[2].args[0];
        p.steps[2].args.push(fqbin::Arg { access: Access::Write, ..arg });
    });
    assert_eq!(text, "step 2 `sums`: two arguments touch `hidden`, one writes");
    let text = fault(|p| {
        let at = p.exprs.iter().position(|e| *e == Expr::Const(8)).unwrap();
        p.exprs[at] = Expr::Const(0);
    });
    assert_eq!(text, "step 0 `hidden`: its grain is 0, below 1");
}

#[test]
fn an_output_must_be_written() {
    let text = fault(|p| {
        p.steps.pop();
        for buffer in &mut p.buffers {
            if let Place::Arena { last, .. } = &mut buffer.place {
                *last = (*last).min(2);
            }
        }
    });
    assert_eq!(text, "output `out`: no step writes it");
}

#[test]
fn names_in_messages_are_escaped() {
    let text = fault(|p| {
        p.steps[0].name = "\u{1b}[31mred\n".into();
        p.steps[0].kernel = KernelId(3);
    });
    assert_eq!(text, "step 0 `\\u{1b}[31mred\\n`: kernel 3 does not exist");
}

fn bind(shapes: &[&[usize]]) -> Result<Binding, BindError> {
    Binding::new(&sample_program(), shapes)
}

#[test]
fn shapes_bind_to_sizes() {
    let program = sample_program();
    let binding = bind(&[&[2, 5], &[2, 5]]).unwrap();
    let bytes = |name: &str| binding.buffer_bytes[buffer(&program, name)];
    assert_eq!((bytes("ids"), bytes("hidden"), bytes("sums"), bytes("out")), (80, 768, 40, 640));
    assert_eq!((binding.arena_bytes, binding.scratch_bytes), (768 + 64, 256));
    assert_eq!(binding.shape(&program.outputs[0]), [2, 5, 16]);
    let empty = bind(&[&[0, 5], &[0, 5]]).unwrap();
    assert_eq!(empty.arena_bytes, 0);
}

#[test]
fn wrong_shapes_are_named() {
    let text = |shapes: &[&[usize]]| bind(shapes).unwrap_err().to_string();
    assert_eq!(text(&[&[2, 5], &[2]]), "input `mask`: shape [2] where the model has [batch, seq]");
    assert_eq!(
        text(&[&[2, 5], &[2, 6]]),
        "input `mask`: axis 1 is 6 where the model has 5 (`seq`)"
    );
    let long = text(&[&[1, 513], &[1, 513]]);
    assert!(long.contains("`seq <= 512` must hold (positions), here 513 and 512"), "{long}");
    let huge = text(&[&[1 << 41, 1], &[1 << 41, 1]]);
    assert!(huge.contains("at most 1099511627776"), "{huge}");
    let overflow = text(&[&[1 << 40, 1 << 40], &[1 << 40, 1 << 40]]);
    assert!(overflow.contains("overflows") || overflow.contains("must hold"), "{overflow}");
    assert!(matches!(bind(&[&[1, 1]]), Err(BindError::Program(_))));
}

#[test]
fn a_range_outside_its_buffer_is_found_when_shapes_are_known() {
    let mut b = ProgramBuilder::new();
    let n = b.sym("n");
    let ten = b.int(10);
    let x = b.input("x", Elem::U8, &[n]);
    let y = b.output("y", Elem::U8, &[n]);
    let kernel = b.kernel("k");
    let mut read = b.whole(x, Access::Read);
    read.extent = ten;
    let args = vec![read, b.whole(y, Access::Write)];
    let step = b.simple_step("y", "move", kernel, args, n);
    b.step(step);
    let program = b.finish();
    verify(&program, 0).unwrap();
    assert!(Binding::new(&program, &[&[10]]).is_ok());
    assert_eq!(
        Binding::new(&program, &[&[9]]).unwrap_err().to_string(),
        "the program is faulty: step 0 `y`: argument 0 covers 0 + 10 of the 9 bytes of `x`"
    );
}

#[test]
fn overlapping_writes_are_found_when_shapes_are_known() {
    let mut b = ProgramBuilder::new();
    let (n, m) = (b.sym("n"), b.sym("m"));
    b.input("a", Elem::U8, &[n, m]);
    let hundred = b.int(100);
    let y = b.output("y", Elem::U8, &[hundred]);
    let kernel = b.kernel("k");
    let zero = b.int(0);
    let half = |offset, extent| fqbin::Arg { buffer: y, offset, extent, access: Access::Write };
    let rest = b.sub(hundred, m);
    let args = vec![half(zero, n), half(m, rest)];
    let step = b.simple_step("y", "move", kernel, args, n);
    b.step(step);
    let program = b.finish();
    verify(&program, 0).unwrap();
    assert!(Binding::new(&program, &[&[50, 50]]).is_ok());
    let error = Binding::new(&program, &[&[51, 50]]).unwrap_err().to_string();
    assert!(error.contains("arguments 0 and 1 overlap in `y`, one writes"), "{error}");
}

#[test]
fn programs_read_back_from_any_valid_bytes_only() {
    let program = sample_program();
    let bytes = program.encode();
    assert_eq!(Program::decode(&bytes, FORMAT_VERSION).unwrap(), program);
    for len in 0..bytes.len() {
        assert!(Program::decode(&bytes[..len], FORMAT_VERSION).is_err(), "cut at {len}");
    }
    assert!(Program::decode(&[&bytes[..], &[0]].concat(), FORMAT_VERSION).is_err());
    // Before version 2 there was no batch at the end.
    let first = Program::decode(&bytes[..bytes.len() - 4], 1).unwrap();
    assert_eq!(first, Program { batch: None, ..program });
    assert!(Program::decode(&bytes, 1).is_err());
}

#[test]
fn a_batch_leads_every_port() {
    let text = fault(|p| p.batch = Some(SymbolId(2)));
    assert_eq!(text, "program: its batch is symbol 2, which does not exist");
    let text = fault(|p| p.batch = Some(SymbolId(u32::MAX)));
    assert!(text.ends_with("which does not exist"), "{text}");
    let cannot = "it cannot be cut along the batch that the program names";
    let text = fault(|p| p.batch = Some(SymbolId(1)));
    assert_eq!(text, format!("`ids`: {cannot}"));
    // `out` is [batch, seq, 16]; now [batch, rows, 16] with rows = batch * seq, or without a batch.
    let rows = sample_program().steps[0].work;
    for (axis, dim) in [(1, rows), (0, rows)] {
        let text = fault(|p| {
            let at = buffer(p, "out");
            p.buffers[at].shape[axis] = dim;
            p.outputs[0].shape[axis] = dim;
        });
        assert_eq!(text, format!("`out`: {cannot}"));
    }
    let text = fault(|p| {
        let at = buffer(p, "mask");
        (p.buffers[at].elem, p.inputs[1].elem) = (Elem::U4, Elem::U4);
    });
    assert_eq!(text, format!("`mask`: {cannot}"));
}
