//! A small plan by hand: its text, and what the verifier says when it is damaged.

use super::*;
use crate::expr::BinaryOp;
use crate::text::print_plan;

/// `y = x[:, ::-1] @ w + x`, with the product in the arena.
fn plan() -> Plan {
    let b = || Dim::sym("b");
    let shape = |last: i64| vec![b(), Dim::from(last)];
    let buffer = |name: &str, elem, shape: Shape, place| Buffer {
        name: name.to_owned(),
        elem,
        shape,
        place,
    };
    let w = Const::f32(vec![1, 4, 16], &[0.5; 64]);
    let w_shape: Shape = [1i64, 4, 16].map(Dim::from).into();
    let x = View::whole(BufferId(0), &shape(4));
    let turned = View {
        offset: Dim::from(3i64),
        strides: vec![Dim::from(4i64), Dim::from(-1i64)],
        ..x.clone()
    };
    let copy = View::whole(BufferId(4), &shape(4));
    let product = View::whole(BufferId(2), &shape(4));
    let gemm = Gemm {
        n: 4,
        k: 4,
        depth: 4,
        input: GemmInput::F32,
        weight: Elem::F32,
        epilogue: Expr::arg(0),
        extras: vec![],
        output: GemmOutput::F32,
    };
    let add = Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1));
    let step = |name: &str, kernel, args: Vec<View>, result: &View| Step {
        name: name.to_owned(),
        kernel,
        args,
        results: vec![result.clone()],
    };
    let port = |name: &str, buffer| Port {
        name: name.to_owned(),
        elem: Elem::F32,
        shape: shape(4),
        buffer: BufferId(buffer),
    };
    let y = View::whole(BufferId(3), &shape(4));
    Plan {
        name: "t".to_owned(),
        limits: vec![Limit::AtMost(b(), 64)],
        buffers: vec![
            buffer("x", Elem::F32, shape(4), Place::Input(0)),
            buffer("w", Elem::F32, w_shape.clone(), Place::Const(w)),
            buffer("mm", Elem::F32, shape(4), Place::Arena),
            buffer("y", Elem::F32, shape(4), Place::Output(0)),
            buffer("turned", Elem::F32, shape(4), Place::Arena),
        ],
        steps: vec![
            step("turned", Kernel::Pointwise(Expr::arg(0)), vec![turned], &copy),
            step(
                "mm",
                Kernel::Gemm(gemm),
                vec![copy, View::whole(BufferId(1), &w_shape)],
                &product,
            ),
            step("y", Kernel::Pointwise(add), vec![product, x], &y),
        ],
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", 3)],
    }
}

#[test]
fn a_plan_prints_one_line_a_buffer_and_a_step() {
    let expected = "\
plan @t {
  limit b <= 64
  #0: f32[b,4] %x = input x
  #1: f32[1,4,16] %w = const {splat=0.5}
  #2: f32[b,4] %mm = arena
  #3: f32[b,4] %y = output y
  #4: f32[b,4] %turned = arena
  step %turned = pointwise (#0+3[b,4]/[4,-1] -> #4) {expr=arg0}
  step %mm = gemm_f32 (#4, #1 -> #2) {k=4, depth=4, n=4, in=f32, weight=f32, epilogue=arg0, extras=[], out=f32}
  step %y = pointwise (#2, #0 -> #3) {expr=add(arg0, arg1)}
}
";
    assert_eq!(print_plan(&plan()), expected);
    assert_eq!(verify(&plan()), Ok(()));
}

fn damaged(damage: impl FnOnce(&mut Plan), expected: &[&str]) {
    let mut plan = plan();
    damage(&mut plan);
    assert_eq!(verify(&plan).expect_err("the plan is damaged"), expected);
}

#[test]
fn faults_name_the_step_and_both_values() {
    damaged(
        |p| p.steps[0].args[0].offset = Dim::from(2i64),
        &["step 0 `turned` (pointwise): view of #0 runs from -1 to 4*b-2 of 4*b elements"],
    );
    damaged(
        |p| p.steps[2].args[1].offset = Dim::one(),
        &["step 2 `y` (pointwise): view of #0 runs from 1 to 4*b of 4*b elements"],
    );
    damaged(|p| p.steps.swap(0, 1), &["step 0 `mm` (gemm_f32): reads #4 before it is written"]);
    damaged(
        |p| {
            p.steps.pop();
        },
        &["output `y` is never written"],
    );
    damaged(
        |p| p.steps[2].results[0].buffer = BufferId(0),
        &[
            "step 2 `y` (pointwise): writes to #0, which is only read",
            "output `y` is never written",
        ],
    );
    damaged(|p| p.steps[2].args[0].buffer = BufferId(9), &["step 2 `y` (pointwise): no buffer #9"]);
    damaged(
        |p| p.buffers[4].elem = Elem::I8,
        &[
            "step 0 `turned` (pointwise): the expression gives f32, not i8",
            "step 1 `mm` (gemm_f32): the left operand is i8, not f32",
        ],
    );
    damaged(
        |p| p.steps[1].args.truncate(1),
        &["step 1 `mm` (gemm_f32): 1 arguments and 1 results instead of 2 and 1"],
    );
    damaged(
        |p| p.outputs[0].buffer = BufferId(2),
        &["buffer #3 `y`: is not that of output 0", "output `y`: its buffer is another's"],
    );
}

/// The gemm of codes by a packed weight of this element type.
fn codes(weight: Elem) -> Plan {
    let mut plan = plan();
    let sizes = [1, 8, 16, 4, 2].map(|d| d as usize);
    let (sizes, bytes) = match weight {
        Elem::I4 => (sizes.to_vec(), vec![0x7f; 512]),
        _ => (vec![1, 16, 16, 4], vec![0x7f; 1024]),
    };
    let shape: Shape = sizes.iter().map(|&d| Dim::from(d)).collect();
    let packed = Const::new(weight, sizes, bytes).expect("two codes of four bits a byte");
    plan.buffers[1] = Buffer {
        name: "w".to_owned(),
        elem: weight,
        shape: shape.clone(),
        place: Place::Const(packed),
    };
    let column = |elem: Elem| Const::new(elem, vec![16], vec![0; 64]).expect("sixteen columns");
    let codes: Shape = vec![Dim::sym("b"), Dim::from(64i64)];
    let mut args = vec![View::whole(BufferId(5), &codes), View::whole(BufferId(1), &shape)];
    let arena =
        Buffer { name: "codes".to_owned(), elem: Elem::U8, shape: codes, place: Place::Arena };
    plan.buffers.push(arena);
    for elem in [Elem::F32, Elem::I32] {
        let (place, shape) = (Place::Const(column(elem)), vec![Dim::from(16i64)]);
        args.push(View::whole(BufferId(plan.buffers.len()), &shape));
        plan.buffers.push(Buffer { name: elem.to_string(), elem, shape, place });
    }
    plan.steps[0].kernel = Kernel::Pointwise(Expr::cast(Elem::U8, Expr::arg(0)));
    plan.steps[0].results = vec![View::whole(BufferId(5), &[Dim::sym("b"), Dim::from(4i64)])];
    let Kernel::Gemm(gemm) = &mut plan.steps[1].kernel else { panic!("the second step") };
    (gemm.k, gemm.depth, gemm.input) = (64, 4, GemmInput::Codes { signed: true });
    gemm.weight = weight;
    plan.steps[1].args = args;
    plan
}

#[test]
fn packed_weights_of_codes_are_held_to_their_width_and_length() {
    for weight in [Elem::I8, Elem::I4] {
        assert_eq!(verify(&codes(weight)), Ok(()));
    }
    let four = codes(Elem::I4);
    assert_eq!(four.steps[1].kernel.name(), "gemm_i4");
    assert!(print_plan(&four).contains("#1: i4[1,8,16,4,2] %w"));
    let damaged = |damage: &dyn Fn(&mut Plan), expected: &str| {
        let mut plan = codes(Elem::I4);
        damage(&mut plan);
        let faults = verify(&plan).expect_err("the plan is damaged");
        assert!(faults.iter().any(|f| f.contains(expected)), "{faults:?}");
    };
    let gemm = |plan: &mut Plan, change: &dyn Fn(&mut Gemm)| {
        if let Kernel::Gemm(gemm) = &mut plan.steps[1].kernel {
            change(gemm);
        }
    };
    let constant = |plan: &mut Plan, change: &dyn Fn(&mut Const)| {
        if let Place::Const(value) = &mut plan.buffers[1].place {
            change(value);
        }
    };
    damaged(&|p| gemm(p, &|g| g.weight = Elem::I8), "the weight is i4, not i8");
    damaged(&|p| gemm(p, &|g| g.weight = Elem::F32), "a weight of f32 for a left operand of u8");
    damaged(&|p| gemm(p, &|g| g.weight = Elem::U4), "a weight of u4 for a left operand of u8");
    damaged(
        &|p| gemm(p, &|g| g.input = GemmInput::F32),
        "a weight of i4 for a left operand of f32",
    );
    damaged(&|p| gemm(p, &|g| g.k = 128), "[b,64], not [b,128]");
    damaged(&|p| gemm(p, &|g| g.n = 17), "the packed weight has 1024 values");
    damaged(
        &|p| constant(p, &|c| c.bytes = c.bytes.slice(0, 511).expect("a part")),
        "its constant has 511 bytes, not 512",
    );
    damaged(&|p| constant(p, &|c| c.bytes = vec![0; 1024].into()), "has 1024 bytes, not 512");
    damaged(
        &|p| {
            let view = &mut p.steps[1].args[1];
            (view.shape[0], view.strides[1]) = (Dim::one(), Dim::zero());
        },
        "the packed weight is not the whole of its buffer",
    );
    damaged(
        &|p| gemm(p, &|g| g.output = GemmOutput::Codes { signed: true, bits: 5 }),
        "gives codes of 5 bits",
    );
}
