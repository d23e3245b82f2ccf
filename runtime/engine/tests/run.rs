//! Running programs whose kernels are hand-assembled: results, errors, threads, caches.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fqbin::{Access, Elem, Weights};
use fqrt::{Error, Level, Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut};
use support::{builder, chain, code, fill, sums, sums_of};

fn sums_model() -> Arc<Model> {
    let (program, weights) = sums();
    Model::from_parts(program, &weights.into(), &[code("avx2")], None).unwrap()
}

fn session(threads: usize) -> Session {
    Session::new(&sums_model(), SessionOptions::threads(threads)).unwrap()
}

#[test]
fn results_are_right_for_every_shape_and_thread_count() {
    for threads in [1, 2, 5] {
        let mut session = session(threads);
        for round in 0..3 {
            for n in 0..=8usize {
                let x: Vec<i32> = (0..n as i32).map(|i| i * i - 3 + round).collect();
                let outputs = session.run(&[("x", TensorView::of(&[n], &x))]).unwrap();
                let y = outputs.get("y").unwrap();
                assert_eq!((y.elem(), y.shape()), (Elem::I32, &[n][..]));
                assert_eq!(y.numbers::<i32>().unwrap(), sums_of(&x));
                assert!(y.numbers::<f32>().is_none());
            }
        }
    }
}

#[test]
fn a_run_writes_into_the_callers_memory() {
    let mut session = session(2);
    let mut y = [0i32; 4];
    for x in [[1, 2, 3, 4], [-5, 0, 7, 1 << 20]] {
        let input = [("x", TensorView::of(&[4], &x))];
        let mut output = [("y", TensorViewMut::of(&[4], &mut y))];
        session.run_into(&input, &mut output).unwrap();
        assert_eq!(&y[..], &sums_of(&x)[..]);
    }
}

#[test]
fn threads_split_long_work_and_agree() {
    let model = Model::from_parts(chain(40), &Weights::new(), &[code("avx2")], None).unwrap();
    let x: Vec<i32> = (0..10_007).collect();
    for threads in [1, 2, 3, 8] {
        let mut session = Session::new(&model, SessionOptions::threads(threads)).unwrap();
        for _ in 0..20 {
            let outputs = session.run(&[("x", TensorView::of(&[x.len()], &x))]).unwrap();
            let y = outputs.get("y").unwrap().numbers::<i32>().unwrap();
            assert!(y.iter().enumerate().all(|(i, &v)| v == 41 * i as i32));
        }
    }
}

#[test]
fn sessions_share_a_model_across_threads() {
    let model = sums_model();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let model = Arc::clone(&model);
            scope.spawn(move || {
                let mut session = Session::new(&model, SessionOptions::threads(2)).unwrap();
                for round in 0..200 {
                    let x: Vec<i32> = (0..1 + round % 8).map(|i| i + worker).collect();
                    let outputs = session.run(&[("x", TensorView::of(&[x.len()], &x))]).unwrap();
                    assert_eq!(outputs.get("y").unwrap().numbers::<i32>().unwrap(), sums_of(&x));
                }
            });
        }
    });
}

fn input_error(inputs: &[(&str, TensorView<'_>)]) -> String {
    let mut session = session(1);
    let error = session.run(inputs).unwrap_err();
    // The session stays usable.
    let x = [5i32];
    session.run(&[("x", TensorView::of(&[1], &x))]).unwrap();
    error.to_string()
}

#[test]
fn wrong_inputs_are_named() {
    let x = [1i32, 2, 3];
    let good = || ("x", TensorView::of(&[3], &x));
    assert_eq!(input_error(&[]), "input `x`: it is missing");
    assert_eq!(input_error(&[good(), good()]), "input `x`: it is given twice");
    let stranger = ("z", TensorView::of(&[3], &x));
    assert_eq!(input_error(&[good(), stranger]), "input `z`: the model has only `x`");
    let floats = [0f32; 3];
    let typed = input_error(&[("x", TensorView::of(&[3], &floats))]);
    assert_eq!(typed, "input `x`: its type is i32, not f32");
    let rank = input_error(&[("x", TensorView::of(&[1, 3], &x))]);
    assert_eq!(rank, "input `x`: shape [1, 3] where the model has [n]");
    let size = input_error(&[("x", TensorView::of(&[2], &x))]);
    assert_eq!(size, "input `x`: 12 bytes are not the size of [2]");
    let huge = input_error(&[("x", TensorView::of(&[usize::MAX], &x))]);
    assert!(huge.contains("not the size"), "{huge}");
    let bytes = [0u8; 16];
    let at = bytes.as_ptr().align_offset(4) + 1;
    let skewed = TensorView::new(Elem::I32, &[2], &bytes[at..at + 8]);
    assert!(input_error(&[("x", skewed)]).contains("aligned to 4"));
    let long = [0i32; 9];
    assert_eq!(
        input_error(&[("x", TensorView::of(&[9], &long))]),
        "over a limit: `n <= 8` must hold (length of the weight), here 9 and 8 for n=9"
    );
}

#[test]
fn wrong_outputs_are_named() {
    let mut session = session(1);
    let x = [1i32, 2];
    let input = [("x", TensorView::of(&[2], &x))];
    let mut y = [0i32; 3];
    let error = session.run_into(&input, &mut [("y", TensorViewMut::of(&[3], &mut y))]);
    assert_eq!(error.unwrap_err().to_string(), "output `y`: its shape is [2], not [3]");
    let error = session.run_into(&input, &mut []);
    assert_eq!(error.unwrap_err().to_string(), "output `y`: it is missing");
    let shapes = session.output_shapes(&input).unwrap();
    assert_eq!(shapes, [("y".to_string(), Elem::I32, vec![2])]);
}

#[test]
fn a_failing_kernel_names_its_step() {
    let mut b = builder();
    let n = b.sym("n");
    let x = b.input("x", Elem::I32, &[n]);
    let y = b.output("y", Elem::I32, &[n]);
    let (kernel, args) =
        (b.kernel("fail"), vec![b.whole(x, Access::Read), b.whole(y, Access::Write)]);
    let step = b.simple_step("%rows", "gather", kernel, args, n);
    b.step(step);
    let model = Model::from_parts(b.finish(), &Weights::new(), &[code("avx2")], None).unwrap();
    for threads in [1, 3] {
        let mut session = Session::new(&model, SessionOptions::threads(threads)).unwrap();
        let x = [0i32; 64];
        let error = session.run(&[("x", TensorView::of(&[64], &x))]).unwrap_err();
        let text = "step 0 `%rows` (gather) failed: an index is out of range";
        assert_eq!(error.to_string(), text);
        // No work, no call.
        session.run(&[("x", TensorView::of(&[0], &x[..0]))]).unwrap();
    }
}

#[test]
fn runs_are_cancelled_between_steps() {
    let flag = Arc::new(AtomicBool::new(false));
    let options = SessionOptions { cancel: Some(Arc::clone(&flag)), ..SessionOptions::threads(1) };
    let mut session = Session::new(&sums_model(), options).unwrap();
    let x = [1i32];
    let input = [("x", TensorView::of(&[1], &x))];
    session.run(&input).unwrap();
    flag.store(true, Ordering::Relaxed);
    assert!(matches!(session.run(&input), Err(Error::Cancelled)));
    flag.store(false, Ordering::Relaxed);
    session.run(&input).unwrap();
}

#[test]
fn memory_is_bounded_by_the_options() {
    let mut b = builder();
    let n = b.sym("n");
    let x = b.input("x", Elem::I32, &[n]);
    let (k, m) = (b.kernel("ok"), b.scale(n, 1 << 30));
    let big = b.arena("big", Elem::I32, &[m]);
    let y = b.output("y", Elem::I32, &[n]);
    let args = vec![b.whole(x, Access::Read), b.whole(big, Access::Write)];
    let step = b.simple_step("big", "move", k, args, n);
    b.step(step);
    let args = vec![b.whole(big, Access::Read), b.whole(y, Access::Write)];
    let step = b.simple_step("y", "move", k, args, n);
    b.step(step);
    let model = Model::from_parts(b.finish(), &Weights::new(), &[code("avx2")], None).unwrap();
    let mut session = Session::new(&model, SessionOptions::threads(1)).unwrap();
    let x = vec![0i32; 1 << 16];
    let error = session.run(&[("x", TensorView::of(&[1 << 16], &x))]).unwrap_err();
    assert!(matches!(&error, Error::Limit(what) if what.contains("allowed")), "{error}");
    let error = session.run(&[("x", TensorView::of(&[1 << 15, 2], &x))]).unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error}");
    for threads in [0, 100_000] {
        assert!(Session::new(&model, SessionOptions::threads(threads)).is_err());
    }
}

#[test]
fn observers_see_every_written_buffer() {
    let mut session = session(2);
    let x = [3i32, 4];
    let mut seen = Vec::new();
    let mut observe = |o: fqrt::Observed<'_>| {
        let numbers = fqrt::numbers_of::<i32>(o.data).unwrap().to_vec();
        seen.push((o.step, o.name.to_string(), o.shape.to_vec(), numbers));
    };
    session.run_observed(&[("x", TensorView::of(&[2], &x))], &mut observe).unwrap();
    let wanted = [("twice", [6, 8]), ("filled", [2, 2]), ("sum", [8, 10]), ("y", [8, 110])];
    assert_eq!(seen.len(), wanted.len());
    for (i, (got, (name, numbers))) in seen.iter().zip(wanted).enumerate() {
        assert_eq!(got, &(i, name.to_string(), vec![2], numbers.to_vec()));
    }
    let (outputs, times) = session.run_profiled(&[("x", TensorView::of(&[2], &x))]).unwrap();
    assert_eq!((outputs.iter().count(), times.len()), (1, 4));
}

#[test]
fn many_shapes_turn_over_the_cache() {
    let mut b = builder();
    let n = b.sym("n");
    let _x = b.input("x", Elem::I32, &[n]);
    let y = b.output("y", Elem::I32, &[n]);
    fill(&mut b, n, y, n);
    let model = Model::from_parts(b.finish(), &Weights::new(), &[code("avx2")], None).unwrap();
    let mut session = Session::new(&model, SessionOptions::threads(2)).unwrap();
    for round in 0..60usize {
        let n = round * 7 % 23;
        let mut x = Tensor::zeros(Elem::I32, &[n]).unwrap();
        x.bytes_mut().fill(9);
        let outputs = session.run(&[("x", x.view())]).unwrap();
        let y = outputs.into_vec().remove(0).1;
        assert_eq!(y.numbers::<i32>().unwrap(), vec![n as i32; n]);
    }
}

#[test]
fn levels_are_chosen_or_refused() {
    let (program, weights) = sums();
    let make = |levels: &[&str], forced| {
        let code: Vec<_> = levels.iter().map(|level| code(level)).collect();
        Model::from_parts(program.clone(), &weights.clone().into(), &code, forced)
    };
    let all = ["amx-int8", "avx2", "avx512-bf16", "avx512-vnni"];
    assert_eq!(make(&all, None).unwrap().level(), fqrt::best_level());
    for level in Level::ALL {
        match make(&all, Some(level)) {
            Ok(model) => {
                assert_eq!((model.level(), fqrt::level_available(level)), (Some(level), true))
            }
            Err(Error::CannotRun(what)) => {
                assert!(!fqrt::level_available(level));
                assert!(what.contains("this CPU lacks"), "{what}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    let absent = make(&["avx2"], Some(Level::Avx512Vnni)).unwrap_err().to_string();
    assert_eq!(
        absent,
        "cannot run here: the file has no code for CPU level `avx512-vnni`, only for `avx2`"
    );
    assert!(matches!(make(&["avx10"], None), Err(Error::CannotRun(_))));
    assert!(matches!(make(&[], None), Err(Error::CannotRun(_))));
}

#[test]
fn faulty_parts_are_refused() {
    let (program, weights) = sums();
    let short =
        Model::from_parts(program.clone(), &weights[..31].to_vec().into(), &[code("avx2")], None);
    assert!(matches!(short, Err(Error::Program(_))));
    let mut bad = code("avx2");
    bad.entries[2] = bad.bytes.len() as u32;
    assert!(matches!(
        Model::from_parts(program.clone(), &weights.clone().into(), &[bad], None),
        Err(Error::Program(_))
    ));
    let mut few = code("avx2");
    few.entries.clear();
    assert!(matches!(
        Model::from_parts(program, &weights.into(), &[few], None),
        Err(Error::Program(_))
    ));
}
