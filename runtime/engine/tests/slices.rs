//! Batches that are cut: the same bytes, errors, times and bounds as in one piece.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fqbin::{Access, Elem, Program, Weights};
use fqrt::{Error, Model, Session, SessionOptions, Slices, TensorView, TensorViewMut};
use support::{add, builder, code, fill};

/// `y = x + x + x` and `z = x + x` over `[n, width]` integers, cut along `n`.
fn program() -> Program {
    let mut b = builder();
    let (n, width) = (b.sym("n"), b.sym("width"));
    let count = b.mul(n, width);
    let x = b.input("x", Elem::I32, &[n, width]);
    let twice = b.arena("twice", Elem::I32, &[n, width]);
    let y = b.output("y", Elem::I32, &[n, width]);
    let z = b.output("z", Elem::I32, &[n, width]);
    add(&mut b, x, x, twice, count);
    add(&mut b, twice, x, y, count);
    add(&mut b, x, x, z, count);
    b.batch("n");
    b.finish()
}

fn model(program: Program) -> Arc<Model> {
    Model::from_parts(program, &Weights::new(), &[code("avx2")], None).unwrap()
}

fn options(threads: usize, slices: Slices) -> SessionOptions {
    SessionOptions { slices, ..SessionOptions::threads(threads) }
}

#[test]
fn every_cut_gives_the_same_bytes() {
    let model = model(program());
    for threads in [1, 2, 3, 8] {
        for slices in [Slices::Fit, Slices::Whole, Slices::Of(1), Slices::Of(3), Slices::Of(64)] {
            let mut session = Session::new(&model, options(threads, slices)).unwrap();
            for (n, width) in [(1, 5), (2, 1), (7, 33), (64, 16), (65, 3), (0, 4), (3, 0)] {
                let x: Vec<i32> = (0..n * width).map(|i| i as i32).collect();
                let shape = [n, width];
                let input = [("x", TensorView::of(&shape, &x))];
                let (mut y, mut z) = (vec![-1; x.len()], vec![-1; x.len()]);
                // In the order of neither ports nor memory.
                let mut outputs = [
                    ("z", TensorViewMut::of(&shape, &mut z)),
                    ("y", TensorViewMut::of(&shape, &mut y)),
                ];
                session.run_into(&input, &mut outputs).unwrap();
                let times = |factor: i32| x.iter().map(move |v| factor * v);
                assert!(y.iter().copied().eq(times(3)), "{threads} {slices:?} {n}x{width}");
                assert!(z.iter().copied().eq(times(2)), "{threads} {slices:?} {n}x{width}");
            }
        }
    }
}

#[test]
fn times_are_one_a_step_and_observers_see_whole_buffers() {
    let model = model(program());
    let mut session = Session::new(&model, options(2, Slices::Of(2))).unwrap();
    let x = [3i32; 14];
    let input = [("x", TensorView::of(&[7, 2], &x))];
    let (outputs, times) = session.run_profiled(&input).unwrap();
    assert_eq!((outputs.iter().count(), times.len()), (2, 3));
    let mut seen = Vec::new();
    session
        .run_observed(&input, &mut |o| seen.push((o.step, o.shape.to_vec(), o.data.len())))
        .unwrap();
    assert_eq!(seen, [0, 1, 2].map(|step| (step, vec![7, 2], 56)));
    assert_eq!(session.output_shapes(&input).unwrap()[0].2, [7, 2]);
    assert_eq!(session.binding().unwrap().buffer_bytes[0], 56);
}

#[test]
fn a_failing_step_is_named_whatever_slice_it_is_in() {
    let mut program = program();
    let kernel = program.kernels.iter().position(|k| k.name == "fail").unwrap();
    program.steps[1].kernel.0 = kernel as u32;
    let model = model(program);
    for threads in [1, 3] {
        let mut session = Session::new(&model, options(threads, Slices::Of(2))).unwrap();
        let x = [0i32; 63];
        let error = session.run(&[("x", TensorView::of(&[63, 1], &x))]).unwrap_err();
        let text = "step 1 `y` (pointwise) failed: an index is out of range";
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn slices_are_cancelled_between_steps() {
    let flag = Arc::new(AtomicBool::new(false));
    for threads in [1, 2] {
        let own = options(threads, Slices::Of(1));
        let own = SessionOptions { cancel: Some(Arc::clone(&flag)), ..own };
        let mut session = Session::new(&model(program()), own).unwrap();
        let x = [1i32; 9];
        let input = [("x", TensorView::of(&[9, 1], &x))];
        session.run(&input).unwrap();
        flag.store(true, Ordering::Relaxed);
        assert!(matches!(session.run(&input), Err(Error::Cancelled)));
        flag.store(false, Ordering::Relaxed);
        session.run(&input).unwrap();
    }
}

#[test]
fn the_arenas_of_slices_are_what_memory_is_bounded_by() {
    let model = model(program());
    let x = vec![1i32; 64 << 10];
    let input = [("x", TensorView::of(&[64, 1 << 10], &x))];
    let run = |max_bytes, slices| {
        let options = SessionOptions { max_bytes, ..options(2, slices) };
        Session::new(&model, options).unwrap().run(&input).map(|_| ())
    };
    run(256 << 10, Slices::Whole).unwrap();
    let error = run(64 << 10, Slices::Whole).unwrap_err().to_string();
    assert!(error.contains("these shapes need 262144 bytes"), "{error}");
    run(64 << 10, Slices::Of(4)).unwrap();
    let error = run(16 << 10, Slices::Of(4)).unwrap_err().to_string();
    assert!(error.contains("these shapes need 32768 bytes"), "{error}");
}

#[test]
fn slices_of_nothing_and_other_programs_are_left_alone() {
    let error = Session::new(&model(program()), options(1, Slices::Of(0))).err().unwrap();
    assert_eq!(error.to_string(), "over a limit: slices of 0 items; use 1 or more");
    // Without the promise, `y` of `n` items holds `n`, not the size of a slice.
    let counting = |promise: bool| {
        let mut b = builder();
        let n = b.sym("n");
        let _x = b.input("x", Elem::I32, &[n]);
        let y = b.output("y", Elem::I32, &[n]);
        fill(&mut b, n, y, n);
        if promise {
            b.batch("n");
        }
        let mut session = Session::new(&model(b.finish()), options(2, Slices::Of(2))).unwrap();
        let outputs = session.run(&[("x", TensorView::of(&[5], &[0i32; 5]))]).unwrap();
        outputs.get("y").unwrap().numbers::<i32>().unwrap().to_vec()
    };
    assert_eq!(counting(false), [5; 5]);
    // Who promises wrongly gets wrong numbers, in the memory that is theirs.
    assert_eq!(counting(true), [2, 2, 2, 2, 1]);
}

#[test]
fn a_program_whose_ranges_hold_for_the_whole_batch_only_is_refused() {
    // The step reads 40 bytes of an arena of `4 * n`: enough for ten items, not for two.
    let mut b = builder();
    let n = b.sym("n");
    let x = b.input("x", Elem::I32, &[n]);
    let y = b.output("y", Elem::I32, &[n]);
    let t = b.arena("t", Elem::I32, &[n]);
    fill(&mut b, n, t, n);
    let (zero, forty, ten) = (b.int(0), b.int(40), b.int(10));
    let kernel = b.kernel("add");
    let part = fqbin::Arg { buffer: t, offset: zero, extent: forty, access: Access::Read };
    let args = vec![part, b.whole(x, Access::Read), b.whole(y, Access::Write)];
    let step = b.simple_step("y", "pointwise", kernel, args, ten);
    b.step(step);
    b.batch("n");
    let model = model(b.finish());
    let x = [1i32; 10];
    let run = |slices| {
        let mut session = Session::new(&model, options(1, slices)).unwrap();
        session.run(&[("x", TensorView::of(&[10], &x))]).map(|_| ())
    };
    run(Slices::Whole).unwrap();
    let error = run(Slices::Of(2)).unwrap_err().to_string();
    assert!(error.contains("argument 0 covers 0 + 40 of the 8 bytes of `t`"), "{error}");
}
