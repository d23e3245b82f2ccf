//! From a binding to calls: the flat tables of a bound shape, the addresses of one run, and the
//! call of a kernel. All pointer arithmetic of the runtime is here, and so is the argument why it
//! stays in bounds: `fqbin::Binding` proved every range against the sizes that the blocks below
//! are checked to have.

mod apart;

use fqbin::{Arg, Binding, Place, Port, Program};

use crate::code::Code;
use crate::error::{Error, Result};
use crate::memory::{ALIGN, AlignedBytes};
use crate::model::Model;
use crate::pool::{Job, Pool};
use crate::slices::Parts;

pub(crate) use apart::{Apart, Stopped};

/// Which block an argument's address is relative to.
#[derive(Clone, Copy)]
pub(crate) enum Base {
    Input(u32),
    Output(u32),
    Arena,
    Weights,
}

/// A step with everything looked up.
pub(crate) struct BoundStep {
    pub(crate) kernel: usize,
    /// First argument and first dimension in the flat tables.
    args: usize,
    dims: usize,
    pub(crate) work: i64,
    grain: i64,
}

/// A program bound to shapes, ready to run again and again.
pub(crate) struct Bound {
    pub(crate) binding: Binding,
    /// Shapes of the inputs and outputs, in order.
    pub(crate) inputs: Vec<Vec<usize>>,
    pub(crate) outputs: Vec<Vec<usize>>,
    pub(crate) steps: Vec<BoundStep>,
    args: Vec<(Base, usize)>,
    dims: Vec<i64>,
}

impl Bound {
    pub(crate) fn new(program: &Program, shapes: &[&[usize]]) -> Result<Bound> {
        let binding = Binding::new(program, shapes)?;
        let outputs = program.outputs.iter().map(|port| binding.shape(port)).collect();
        let inputs = shapes.iter().map(|shape| shape.to_vec()).collect();
        let (steps, args, dims) = (Vec::new(), Vec::new(), Vec::new());
        let mut bound = Bound { binding, inputs, outputs, steps, args, dims };
        for step in &program.steps {
            let kernel = step.kernel.index();
            let (work, grain) = (bound.binding.value(step.work), bound.binding.value(step.grain));
            let (args, dims) = (bound.args.len(), bound.dims.len());
            bound.steps.push(BoundStep { kernel, args, dims, work, grain });
            for arg in &step.args {
                let resolved = bound.resolve(program, arg)?;
                bound.args.push(resolved);
            }
            for &dim in &step.dims {
                bound.dims.push(bound.binding.value(dim));
            }
        }
        Ok(bound)
    }

    /// Resolved arguments and dimensions of a step.
    #[cfg(feature = "cuda")]
    pub(crate) fn step_data(&self, index: usize) -> (&[(Base, usize)], &[i64]) {
        let (step, next) = (&self.steps[index], self.steps.get(index + 1));
        let (args, dims) = next.map_or((self.args.len(), self.dims.len()), |n| (n.args, n.dims));
        (&self.args[step.args..args], &self.dims[step.dims..dims])
    }

    fn resolve(&self, program: &Program, arg: &Arg) -> Result<(Base, usize)> {
        let buffer = arg.buffer.index();
        let (base, start) = match program.buffers[buffer].place {
            Place::Input(n) => (Base::Input(n), 0),
            Place::Output(n) => (Base::Output(n), 0),
            Place::Arena { .. } => (Base::Arena, self.binding.arena_offsets[buffer]),
            Place::Weight { offset, .. } => (Base::Weights, offset),
        };
        let offset = start as i128 + self.binding.value(arg.offset) as i128;
        let offset = usize::try_from(offset)
            .map_err(|_| Error::Limit(format!("byte offset {offset} does not fit in memory")))?;
        Ok((base, offset))
    }
}

/// Memory that a session keeps between runs.
#[derive(Default)]
pub(crate) struct Workspace {
    arena: AlignedBytes,
    scratch: AlignedBytes,
    /// Distance between the scratch areas of two threads, and how many there are.
    stride: usize,
    threads: usize,
    /// Addresses of all arguments, and of the ports, of the current run.
    addresses: Addresses,
    ports: Addresses,
}

/// Addresses of one run. They are written before and read during the run only.
#[derive(Default)]
struct Addresses(Vec<*mut u8>);

// SAFETY: the addresses are plain numbers between runs; within a run the session that owns them
// is exclusively borrowed.
unsafe impl Send for Addresses {}

impl Workspace {
    /// Grows the blocks to what a binding needs; `max_bytes` bounds their sum.
    pub(crate) fn reserve(&mut self, bound: &Bound, threads: usize, max_bytes: u64) -> Result<()> {
        let Binding { arena_bytes, scratch_bytes, .. } = bound.binding;
        self.grow(arena_bytes, scratch_bytes, threads, max_bytes)
    }

    /// The same for slices, each thread with an arena of its own, and the rest after them.
    pub(crate) fn reserve_parts(
        &mut self,
        parts: &Parts,
        threads: usize,
        max_bytes: u64,
    ) -> Result<()> {
        let arenas = apart::arena_stride(parts).saturating_mul(threads as u64);
        let (arena, scratch) = match &parts.rest {
            Some(Bound { binding, .. }) => (binding.arena_bytes, binding.scratch_bytes),
            None => (0, 0),
        };
        let scratch = scratch.max(parts.slice.binding.scratch_bytes);
        self.grow(arenas.max(arena), scratch, threads, max_bytes)
    }

    fn grow(&mut self, arena: u64, scratch: u64, threads: usize, max_bytes: u64) -> Result<()> {
        let needed = scratch.checked_next_multiple_of(4096).and_then(|stride| {
            let all = stride.checked_mul(threads as u64)?.checked_add(arena)?;
            (all <= max_bytes).then_some(stride)
        });
        let stride = needed.and_then(|s| usize::try_from(s).ok()).ok_or_else(|| {
            Error::Limit(format!(
                "these shapes need {arena} bytes of memory and {scratch} for each of {threads} \
                 threads, more than the {max_bytes} allowed"
            ))
        })?;
        if arena > self.arena.len() as u64 {
            // The old block goes first, so that both are never held at once.
            self.arena = AlignedBytes::default();
            self.arena = AlignedBytes::zeroed(arena as usize)?;
        }
        if stride > self.stride || threads > self.threads {
            self.scratch = AlignedBytes::default();
            (self.stride, self.threads) = (0, 0);
            self.scratch = AlignedBytes::zeroed(stride * threads)?;
            (self.stride, self.threads) = (stride, threads);
        }
        Ok(())
    }
}

/// A run in progress: addresses are resolved, steps are launched one by one.
pub(crate) struct Run<'a> {
    code: &'a Code,
    bound: &'a Bound,
    addresses: &'a [*mut u8],
    scratch: *mut u8,
    stride: usize,
}

impl<'a> Run<'a> {
    /// Resolves all addresses. `inputs` and `outputs` give each port's memory once, with the
    /// port's index. Fails if a block is not as long as the binding says.
    pub(crate) fn new(
        model: &'a Model,
        code: &'a Code,
        bound: &'a Bound,
        workspace: &'a mut Workspace,
        inputs: impl Iterator<Item = (usize, &'a [u8])>,
        outputs: impl Iterator<Item = (usize, &'a mut [u8])>,
    ) -> Result<Run<'a>> {
        let program = model.program();
        if (workspace.arena.len() as u64) < bound.binding.arena_bytes
            || (workspace.stride as u64) < bound.binding.scratch_bytes
        {
            return Err(Error::Program("the workspace is smaller than the binding".into()));
        }
        let Workspace { arena, scratch, stride, addresses, ports, .. } = workspace;
        take_ports(program, ports, inputs, outputs, |port| {
            Some(bound.binding.buffer_bytes[port.buffer.index()])
        })?;
        let (arena, weights) = (arena.as_mut_ptr(), model.weights().as_ptr());
        addresses.0.clear();
        for &(base, offset) in &bound.args {
            let start = match base {
                Base::Input(n) => ports.0[n as usize],
                Base::Output(n) => ports.0[program.inputs.len() + n as usize],
                Base::Arena => arena,
                Base::Weights => weights.cast_mut(),
            };
            // SAFETY: the binding proved that the argument's range lies inside its buffer, the
            // buffer inside its block, and the blocks have the lengths checked above.
            addresses.0.push(unsafe { start.add(offset) });
        }
        Ok(Run {
            code,
            bound,
            addresses: &addresses.0,
            scratch: scratch.as_mut_ptr(),
            stride: *stride,
        })
    }

    /// Launches a step and waits for its end. Returns the kernel's result.
    pub(crate) fn step(&self, index: usize, pool: &mut Pool) -> i32 {
        let step = &self.bound.steps[index];
        let chunk = chunk(step.work, step.grain, pool.threads() as i64);
        let shared = Shared { run: self, step };
        let call = |thread: usize, begin: i64, end: i64| shared.call(thread).run(begin, end);
        pool.run(Job { call: &call, work: step.work, chunk })
    }

    /// The bytes of the whole buffer that an argument of a step lies in, between steps.
    pub(crate) fn buffer_of(&self, step: usize, arg: usize, program: &Program) -> &[u8] {
        let binding = &self.bound.binding;
        let address = self.addresses[self.bound.steps[step].args + arg];
        let arg = &program.steps[step].args[arg];
        let offset = binding.value(arg.offset) as usize;
        let len = binding.buffer_bytes[arg.buffer.index()] as usize;
        // SAFETY: the address is `offset` bytes into a buffer of `len` bytes, all initialised
        // (blocks are zeroed when made), and no kernel runs while `self` is borrowed here.
        unsafe { std::slice::from_raw_parts(address.sub(offset), len) }
    }
}

/// Chunks that a thread gets on average, so that a late one costs a part of its share only.
const CHUNKS_PER_THREAD: i64 = 4;

/// Parts of a grain at whose multiples chunks end, so that the vectors of a flat loop are not cut.
const UNITS_PER_GRAIN: i64 = 64;

/// Work items that a thread takes at a time: equal shares of no less than a grain, as many for each
/// thread if there is more than one for each.
fn chunk(work: i64, grain: i64, threads: i64) -> i64 {
    let grain = grain.max(1);
    let chunks = match threads {
        1 => 1,
        _ => (work / grain).clamp(1, threads * CHUNKS_PER_THREAD),
    };
    let chunks = if chunks > threads { chunks - chunks % threads } else { chunks };
    let unit = (grain / UNITS_PER_GRAIN).max(1);
    let share = (work.max(1) - 1) / chunks + 1;
    (share - 1) / unit * unit + unit
}

/// What the threads of one step share.
struct Shared<'a> {
    run: &'a Run<'a>,
    step: &'a BoundStep,
}

// SAFETY: the pointers are read only, and the memory behind them is split between calls by the
// kernel's contract: ranges of work items that do not meet write different bytes, and each thread
// has its own scratch area.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn call(&self, thread: usize) -> Call<'_> {
        let (run, step) = (self.run, self.step);
        // SAFETY: `reserve` made `threads` areas of `stride` bytes, and `thread` is below that.
        let scratch = unsafe { run.scratch.add(thread * run.stride) };
        let bufs = run.addresses.as_ptr();
        Call { code: run.code, bound: run.bound, step, bufs, scratch }
    }
}

/// A step as one thread runs it.
struct Call<'a> {
    code: &'a Code,
    bound: &'a Bound,
    step: &'a BoundStep,
    /// Addresses of the arguments of all steps, `bound.args.len()` of them.
    bufs: *const *mut u8,
    /// Of this thread alone.
    scratch: *mut u8,
}

impl Call<'_> {
    /// Runs a range of the work items and gives the kernel's result.
    fn run(&self, begin: i64, end: i64) -> i32 {
        let Call { code, bound, step, bufs, scratch } = *self;
        let dims = bound.dims[step.dims..].as_ptr();
        // SAFETY: a step's first argument is one of `bound.args`, or the end of them.
        let bufs = unsafe { bufs.add(step.args) };
        // SAFETY: the arguments are as the kernel's contract says: addresses of ranges that the
        // binding proved, the step's dimensions, a range inside `[0, work)`, and a scratch area
        // of this thread alone. The code itself is trusted by whoever loaded the model.
        unsafe { (code.kernel(step.kernel))(bufs, dims, begin, end, scratch) }
    }
}

/// Takes the addresses of the ports, inputs first. Fails if one has not the bytes that `wanted` says.
fn take_ports<'a>(
    program: &Program,
    ports: &mut Addresses,
    inputs: impl Iterator<Item = (usize, &'a [u8])>,
    outputs: impl Iterator<Item = (usize, &'a mut [u8])>,
    wanted: impl Fn(&Port) -> Option<u64>,
) -> Result<()> {
    let check = |port: Option<&Port>, bytes: usize| {
        let wanted = port.and_then(&wanted);
        if wanted == Some(bytes as u64) {
            return Ok(());
        }
        Err(Error::Program(format!("a tensor of {bytes} bytes where the binding has {wanted:?}")))
    };
    ports.0.clear();
    ports.0.resize(program.inputs.len() + program.outputs.len(), std::ptr::null_mut());
    for (port, data) in inputs {
        check(program.inputs.get(port), data.len())?;
        ports.0[port] = data.as_ptr().cast_mut();
    }
    for (port, data) in outputs {
        check(program.outputs.get(port), data.len())?;
        ports.0[program.inputs.len() + port] = data.as_mut_ptr();
    }
    if ports.0.contains(&std::ptr::null_mut()) {
        return Err(Error::Program("a port of the model has no memory".into()));
    }
    Ok(())
}

const _: () = assert!(fqbin::ARENA_ALIGN as usize == ALIGN);

#[cfg(test)]
mod tests {
    use super::chunk;

    #[test]
    fn shares_are_equal_and_no_smaller_than_a_grain() {
        // One thread takes all; little work is not split.
        assert_eq!([chunk(100, 8, 1), chunk(7, 8, 4), chunk(0, 8, 4)], [100, 7, 1]);
        // Four for each of two threads, or as many as grains fill, the same number for each.
        assert_eq!(chunk(576, 2, 2), 72);
        assert_eq!(chunk(256, 56, 2), 64);
        assert_eq!(chunk(768, 256, 2), 384);
        assert_eq!(chunk(100, 30, 8), 34);
        // Vectors stay whole.
        assert_eq!(chunk(100_000, 8192, 2), 12_544);
        for (work, grain, threads) in [(1, 1, 16), (97, 3, 5), (4096, 1, 64), (130_001, 8192, 3)] {
            let chunk = chunk(work, grain, threads);
            let chunks = (work + chunk - 1) / chunk;
            assert!(chunk >= grain.min(work) && chunks <= (work / grain).max(1), "{work}, {grain}");
        }
    }
}
