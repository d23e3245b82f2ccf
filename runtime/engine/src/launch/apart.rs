//! Slices of a batch, each taken by one thread from the first step to the last.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::{Base, Call, Workspace, take_ports};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pool::{Job, Pool};
use crate::slices::Parts;

/// Distances between the arenas of threads are multiples of this.
const PAGE: u64 = 4096;

/// Bytes of each thread's arena.
pub(super) fn arena_stride(parts: &Parts) -> u64 {
    parts.slice.binding.arena_bytes.saturating_add(PAGE - 1) / PAGE * PAGE
}

/// How a run of slices ended early.
pub(crate) enum Stopped {
    Cancelled,
    /// A kernel's result, and its step.
    Failed {
        index: usize,
        code: i32,
    },
}

/// A run of slices that is ready to start.
pub(crate) struct Apart<'a> {
    code: &'a Code,
    parts: &'a Parts,
    /// The whole batch of each input, then of each output.
    ports: &'a [*mut u8],
    /// Room for the addresses of a slice's arguments, for each thread.
    addresses: *mut *mut u8,
    arena: *mut u8,
    arena_stride: usize,
    weights: *mut u8,
    scratch: *mut u8,
    scratch_stride: usize,
    inputs: usize,
    cancel: Option<&'a AtomicBool>,
    /// Nanoseconds of each step, of all threads together.
    times: Option<&'a [AtomicU64]>,
    /// Step and result of the first step that failed, as [`Apart::fail`] packs them.
    failed: AtomicU64,
}

// SAFETY: threads share what is read only; what they write is apart: the ranges of `addresses`,
// arena and scratch that belong to the thread, and the parts of the outputs that belong to a slice,
// of which each is claimed by one thread.
unsafe impl Sync for Apart<'_> {}

const NOT_FAILED: u64 = u64::MAX;

impl<'a> Apart<'a> {
    /// Checks the lengths of the ports' memory, which is that of the whole batch, and lays out the
    /// threads' areas. The workspace was reserved for `parts`.
    pub(crate) fn new(
        model: &'a Model,
        code: &'a Code,
        parts: &'a Parts,
        workspace: &'a mut Workspace,
        threads: usize,
        inputs: impl Iterator<Item = (usize, &'a [u8])>,
        outputs: impl Iterator<Item = (usize, &'a mut [u8])>,
    ) -> Result<Apart<'a>> {
        let program = model.program();
        let binding = &parts.slice.binding;
        let stride = arena_stride(parts);
        if stride.checked_mul(threads as u64).is_none_or(|all| all > workspace.arena.len() as u64)
            || (workspace.stride as u64) < binding.scratch_bytes
            || workspace.threads < threads
        {
            return Err(Error::Program("the workspace is smaller than the binding".into()));
        }
        let Workspace { arena, scratch, stride: scratch_stride, addresses, ports, .. } = workspace;
        take_ports(program, ports, inputs, outputs, |port| {
            let buffer = port.buffer.index();
            let slices = binding.buffer_bytes[buffer].checked_mul(parts.count as u64)?;
            let rest = parts.rest.as_ref().map_or(0, |rest| rest.binding.buffer_bytes[buffer]);
            slices.checked_add(rest)
        })?;
        addresses.0.clear();
        addresses.0.resize(parts.slice.args.len() * threads, std::ptr::null_mut());
        Ok(Apart {
            code,
            parts,
            ports: &ports.0,
            addresses: addresses.0.as_mut_ptr(),
            arena: arena.as_mut_ptr(),
            arena_stride: stride as usize,
            weights: model.weights().as_ptr().cast_mut(),
            scratch: scratch.as_mut_ptr(),
            scratch_stride: *scratch_stride,
            inputs: program.inputs.len(),
            cancel: None,
            times: None,
            failed: AtomicU64::new(NOT_FAILED),
        })
    }

    pub(crate) fn cancel(self, cancel: Option<&'a AtomicBool>) -> Apart<'a> {
        Apart { cancel, ..self }
    }

    /// Adds the nanoseconds of each step to `times`, of which there is one a step.
    pub(crate) fn times(self, times: Option<&'a [AtomicU64]>) -> Apart<'a> {
        Apart { times, ..self }
    }

    /// Runs all slices.
    pub(crate) fn run(&self, pool: &mut Pool) -> std::result::Result<(), Stopped> {
        let call = |thread: usize, begin: i64, end: i64| {
            let all = (begin..end).try_for_each(|slice| self.slice(thread, slice as usize));
            i32::from(all.is_err())
        };
        match pool.run(Job { call: &call, work: self.parts.count as i64, chunk: 1 }) {
            0 => Ok(()),
            _ => match self.failed.load(Ordering::Relaxed) {
                NOT_FAILED => Err(Stopped::Cancelled),
                failed => {
                    Err(Stopped::Failed { index: (failed >> 32) as usize, code: failed as i32 })
                }
            },
        }
    }

    /// All steps of a slice. An error means that the run is to end.
    fn slice(&self, thread: usize, slice: usize) -> std::result::Result<(), ()> {
        let bound = &self.parts.slice;
        let bufs = self.resolve(thread, slice);
        // SAFETY: `reserve` made at least as many areas as there are threads.
        let scratch = unsafe { self.scratch.add(thread * self.scratch_stride) };
        let mut start = self.times.map(|_| Instant::now());
        for (index, step) in bound.steps.iter().enumerate() {
            if self.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(());
            }
            let call = Call { code: self.code, bound, step, bufs, scratch };
            let code = if step.work > 0 { call.run(0, step.work) } else { 0 };
            if code != 0 {
                self.fail(index, code);
                return Err(());
            }
            if let (Some(times), Some(start)) = (self.times, &mut start) {
                let end = Instant::now();
                let ns = end.duration_since(*start).as_nanos() as u64;
                times[index].fetch_add(ns, Ordering::Relaxed);
                *start = end;
            }
        }
        Ok(())
    }

    /// Writes the addresses of a slice's arguments to the thread's room, and gives its start.
    fn resolve(&self, thread: usize, slice: usize) -> *const *mut u8 {
        let args = &self.parts.slice.args;
        // SAFETY: there is room for the arguments of each thread, and no other thread uses this.
        let own = unsafe { self.addresses.add(thread * args.len()) };
        for (i, &(base, offset)) in args.iter().enumerate() {
            let port = |port: usize| {
                // SAFETY: the port has the bytes of all slices, as was checked, and this is one.
                unsafe { self.ports[port].add(slice * self.parts.port_bytes[port]) }
            };
            let start = match base {
                Base::Input(n) => port(n as usize),
                Base::Output(n) => port(self.inputs + n as usize),
                // SAFETY: the arena has an area for each thread, as was checked.
                Base::Arena => unsafe { self.arena.add(thread * self.arena_stride) },
                Base::Weights => self.weights,
            };
            // SAFETY: the binding of the slice proved that the argument's range lies inside its
            // buffer, the buffer inside its block, and the blocks have the lengths checked before.
            unsafe { *own.add(i) = start.add(offset) };
        }
        own
    }

    /// Keeps the earliest step that failed.
    fn fail(&self, index: usize, code: i32) {
        let packed = (index as u64) << 32 | u64::from(code as u32);
        self.failed.fetch_min(packed, Ordering::Relaxed);
    }
}
