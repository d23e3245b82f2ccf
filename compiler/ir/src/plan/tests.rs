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
