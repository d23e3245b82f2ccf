//! Fork and join over a fixed team of threads, made for many short jobs in a row: the caller
//! works too, workers wait between jobs by spinning for some microseconds before they sleep, and
//! the caller never waits for a worker that did not join in time.
//!
//! A thread first does its own share of a job, always the same part of the whole: what it wrote in one
//! job it finds in its own cache in the next. Then it helps the others with theirs.
//!
//! One word holds the job's number, whether it is open, and how many workers are inside. A worker
//! joins by a compare-and-swap that succeeds only while the very job it saw is open, so that the
//! caller may reuse the job's memory once it has closed the job and the count is back at zero.
//! The unsafe code of this file is the access to that memory.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a worker spins for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(60);
/// Spins between two looks at the clock.
const SPINS_PER_LOOK: u32 = 32;
/// Spins of the caller before it yields its time slice to a worker that is late.
const SPINS_BEFORE_YIELD: u32 = 4096;
/// More threads than this are refused.
pub(crate) const MAX_THREADS: usize = 1024;

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const NUMBER: u64 = 1 << 32;

/// A job: `call(context, thread, begin, end)` for ranges that cover `[0, work)`. A result other
/// than 0 ends the job early and becomes its result.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) call: &'a (dyn Fn(usize, i64, i64) -> i32 + Sync),
    pub(crate) work: i64,
    pub(crate) chunk: i64,
}

impl Job<'_> {
    fn chunks(&self) -> i64 {
        (self.work - 1) / self.chunk + 1
    }

    /// Threads that have a share.
    fn owners(&self, threads: usize) -> usize {
        usize::try_from(self.chunks()).map_or(threads, |chunks| chunks.min(threads))
    }

    /// The first item of the share of one of `owners`, `work` for the one after them.
    fn share(&self, owner: usize, owners: usize) -> i64 {
        let (chunks, owner, owners) = (self.chunks(), owner as i64, owners as i64);
        // The first owners take what is left over, a chunk each.
        let first = chunks / owners * owner + owner.min(chunks % owners);
        first.saturating_mul(self.chunk).min(self.work)
    }

    /// Claims ranges of this thread's share, then of the others', until there are none left.
    fn take_part(&self, thread: usize, next: &[Line<AtomicI64>], failed: &AtomicI32) {
        let owners = self.owners(next.len());
        for other in 0..owners {
            let owner = (thread + other) % owners;
            let (next, last) = (&next[owner].0, self.share(owner + 1, owners));
            // Looking first leaves the lines of those who are done as they are.
            while failed.load(Ordering::Relaxed) == 0 && next.load(Ordering::Relaxed) < last {
                let begin = next.fetch_add(self.chunk, Ordering::Relaxed);
                if begin >= last {
                    break;
                }
                let end = begin.saturating_add(self.chunk).min(self.work);
                let code = (self.call)(thread, begin, end);
                if code != 0 {
                    let _ = failed.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        }
    }
}

/// On a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    state: Line<AtomicU64>,
    /// The next item of each thread's share.
    next: Vec<Line<AtomicI64>>,
    failed: Line<AtomicI32>,
    sleeping: Line<AtomicUsize>,
    stop: AtomicBool,
    /// Written by the caller while no job is open and no worker inside; read by workers inside.
    job: UnsafeCell<Option<Job<'static>>>,
}

// SAFETY: `job` is the only part that is not `Sync`, and `state` orders its accesses as said at
// the field; the function behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: a `Job` is a reference to a `Sync` function and two numbers.
unsafe impl Send for Shared {}

/// A team of threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    wakers: Vec<Thread>,
}

impl Pool {
    /// A team of `threads`, the caller included.
    pub(crate) fn new(threads: usize) -> Result<Pool> {
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: (0..threads).map(|_| Line(AtomicI64::new(0))).collect(),
            failed: Line(AtomicI32::new(0)),
            sleeping: Line(AtomicUsize::new(0)),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::new(), wakers: Vec::new() };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("fqrt-{thread}"))
                .spawn(move || worker(&shared, thread))
                .map_err(|e| Error::Limit(format!("cannot start thread {thread}: {e}")))?;
            pool.wakers.push(worker.thread().clone());
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs a job to its end on all threads and returns its result.
    pub(crate) fn run(&mut self, job: Job<'_>) -> i32 {
        if self.workers.is_empty() || job.work <= job.chunk {
            return if job.work > 0 { (job.call)(0, 0, job.work) } else { 0 };
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Workers read the job only while they are inside,
        // and this function returns after the job is closed and none is inside.
        let forever = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: `&mut self` makes this the only caller, and by the rule above no job is open
        // and no worker inside, so nobody else accesses the cell.
        unsafe { *shared.job.get() = Some(forever) };
        let owners = job.owners(shared.next.len());
        for (owner, next) in shared.next.iter().take(owners).enumerate() {
            next.0.store(job.share(owner, owners), Ordering::Relaxed);
        }
        shared.failed.0.store(0, Ordering::Relaxed);
        // Closes on unwinding too, so that no worker outlives the borrow.
        let open = Closer(shared);
        let number = (shared.state.0.load(Ordering::Relaxed) & !INSIDE & !OPEN) + NUMBER;
        // Sequentially consistent with the count of sleepers: either a worker that is about to
        // sleep sees this job, or this thread sees the sleeper.
        shared.state.0.store(number | OPEN, Ordering::SeqCst);
        if shared.sleeping.0.load(Ordering::SeqCst) > 0 {
            let useful = (job.work - 1) / job.chunk;
            let useful = usize::try_from(useful).unwrap_or(usize::MAX);
            self.wakers.iter().take(useful).for_each(Thread::unpark);
        }
        job.take_part(0, &shared.next, &shared.failed.0);
        drop(open);
        shared.failed.0.load(Ordering::Relaxed)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wakers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker runs nothing that panics; if it did, the job has reported it.
            let _ = worker.join();
        }
    }
}

/// Closes the open job when dropped and waits until no worker is inside.
struct Closer<'a>(&'a Shared);

impl Drop for Closer<'_> {
    fn drop(&mut self) {
        let state = &self.0.state.0;
        let mut now = state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while now & INSIDE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            now = state.load(Ordering::Acquire);
        }
    }
}

/// Leaves the job when dropped.
struct Leaver<'a>(&'a Shared);

impl Drop for Leaver<'_> {
    fn drop(&mut self) {
        self.0.state.0.fetch_sub(1, Ordering::Release);
    }
}

fn worker(shared: &Shared, thread: usize) {
    let mut done = 0;
    while let Some(state) = wait_for_job(shared, done) {
        let joined =
            shared.state.0.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed);
        if joined.is_err() {
            continue;
        }
        let inside = Leaver(shared);
        // SAFETY: this worker is inside an open job, so the caller neither writes the cell nor
        // returns from `Pool::run` until `inside` is dropped.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            job.take_part(thread, &shared.next, &shared.failed.0);
        }
        drop(inside);
        done = state / NUMBER;
    }
}

/// Waits for an open job other than `done` and returns the state that was seen, or `None` when
/// the pool ends.
fn wait_for_job(shared: &Shared, done: u64) -> Option<u64> {
    let fresh = |order| {
        let state = shared.state.0.load(order);
        (state & OPEN != 0 && state / NUMBER != done).then_some(state)
    };
    let mut since = Instant::now();
    loop {
        for _ in 0..SPINS_PER_LOOK {
            if let Some(state) = fresh(Ordering::Acquire) {
                return Some(state);
            }
            std::hint::spin_loop();
        }
        if shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        if since.elapsed() < SPIN {
            continue;
        }
        shared.sleeping.0.fetch_add(1, Ordering::SeqCst);
        if fresh(Ordering::SeqCst).is_none() && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.sleeping.0.fetch_sub(1, Ordering::SeqCst);
        since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_jobs_do_not_mix() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..2000i64 {
                let work = round % 37;
                let counts: Vec<AtomicI64> = (0..work).map(|_| AtomicI64::new(0)).collect();
                let call = |thread: usize, begin: i64, end: i64| {
                    assert!(thread < threads);
                    for i in begin..end {
                        counts[i as usize].fetch_add(round + 1, Ordering::Relaxed);
                    }
                    0
                };
                assert_eq!(pool.run(Job { call: &call, work, chunk: 1 + round % 5 }), 0);
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == round + 1));
            }
        }
    }

    #[test]
    fn shares_follow_each_other_and_are_whole_chunks() {
        let call = |_: usize, _: i64, _: i64| 0;
        for (work, chunk, threads) in [(1, 1, 4), (36, 5, 2), (576, 72, 2), (7, 3, 16), (97, 1, 5)]
        {
            let job = Job { call: &call, work, chunk };
            let owners = job.owners(threads);
            let firsts: Vec<i64> = (0..=owners).map(|owner| job.share(owner, owners)).collect();
            assert!(firsts[0] == 0 && firsts[owners] == work, "{firsts:?}");
            assert!(firsts.is_sorted_by(|x, y| x < y), "{firsts:?}");
            assert!(firsts[..owners].iter().all(|first| first % chunk == 0), "{firsts:?}");
        }
    }

    #[test]
    fn a_thread_begins_with_its_own_share() {
        let seen = std::sync::Mutex::new(Vec::new());
        let call = |_: usize, begin: i64, end: i64| {
            seen.lock().unwrap().push((begin, end));
            0
        };
        let job = Job { call: &call, work: 11, chunk: 2 };
        let next: Vec<_> = (0..3).map(|i| Line(AtomicI64::new(job.share(i, 3)))).collect();
        job.take_part(1, &next, &AtomicI32::new(0));
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen, [(4, 6), (6, 8), (8, 10), (10, 11), (0, 2), (2, 4)]);
    }

    #[test]
    fn sleeping_workers_wake_and_errors_come_back() {
        let mut pool = Pool::new(3).unwrap();
        for round in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            let call = |_: usize, begin: i64, _: i64| if begin == 7 { 42 } else { 0 };
            assert_eq!(pool.run(Job { call: &call, work: 16, chunk: 1 }), 42, "round {round}");
            assert_eq!(pool.run(Job { call: &call, work: 7, chunk: 1 }), 0, "round {round}");
        }
    }

    #[test]
    fn a_panic_in_the_caller_leaves_the_pool_usable() {
        let mut pool = Pool::new(2).unwrap();
        let call = |thread: usize, _: i64, _: i64| {
            if thread == 0 {
                std::panic::panic_any("expected");
            }
            0
        };
        let job = Job { call: &call, work: 1000, chunk: 1 };
        let run = std::panic::AssertUnwindSafe(|| pool.run(job));
        assert!(std::panic::catch_unwind(run).is_err());
        let fine = |_: usize, _: i64, _: i64| 0;
        assert_eq!(pool.run(Job { call: &fine, work: 1000, chunk: 1 }), 0);
    }
}
