//! A counting allocator: after the first run of a shape, a run into the caller's tensors
//! allocates nothing, on any thread. Alone in its binary because the count is global.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use fqbin::Weights;
use fqrt::{Model, Session, SessionOptions, Slices, TensorView, TensorViewMut};
use support::{chain, code};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_second_run_allocates_nothing() {
    let mut program = chain(30);
    program.batch = Some(fqbin::SymbolId(0));
    let model = Model::from_parts(program, &Weights::new(), &[code("avx2")], None).unwrap();
    for (threads, slices) in
        [(1, Slices::Whole), (3, Slices::Whole), (1, Slices::Of(64)), (3, Slices::Of(64))]
    {
        let options = SessionOptions { slices, ..SessionOptions::threads(threads) };
        let mut session = Session::new(&model, options).unwrap();
        let (x, mut y) = (vec![2i32; 5000], vec![0i32; 5000]);
        let mut run = |n: usize| {
            let shape = [n];
            let input = [("x", TensorView::of(&shape, &x[..n]))];
            let mut output = [("y", TensorViewMut::of(&shape, &mut y[..n]))];
            session.run_into(&input, &mut output).unwrap();
        };
        for n in [5000, 77] {
            run(n);
        }
        // The test harness allocates on a thread of its own now and then, so the quietest of
        // some rounds counts; a run that allocates does so in every round.
        let mut round = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..50 {
                run(5000);
                run(77);
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        let fewest = (0..10).map(|_| round()).min();
        assert_eq!(fewest, Some(0), "{threads} threads, {slices:?}");
        assert!(y.iter().take(77).all(|&v| v == 62));
    }
}
