//! A session: a model, a team of threads, and the memory of its runs. Shapes are bound once and
//! cached; a run on a cached shape into the caller's tensors allocates nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fqbin::{BufferId, Elem, Program};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::{Error, Result};
use crate::launch::{Bound, Workspace};
use crate::model::{Loaded, Model};
use crate::pool::{MAX_THREADS, Pool};
use crate::slices::{Parts, Slices};
use crate::tensor::{Outputs, Tensor, TensorView, TensorViewMut};

#[cfg(feature = "cuda")]
mod gpu;
mod host;
mod ports;

#[cfg(feature = "cuda")]
pub use gpu::DeviceTensor;
use ports::{check_inputs, check_outputs, find};
#[cfg(feature = "cuda")]
use ports::{given, wanted};

/// Shapes that a session keeps bound.
const CACHED_SHAPES: usize = 8;

/// How a session runs.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Threads that work on a run, the caller's included.
    pub threads: usize,
    /// Bytes of intermediate memory that a session may hold.
    pub max_bytes: u64,
    /// Looked at between steps (of each slice); once true, the run ends with [`Error::Cancelled`].
    pub cancel: Option<Arc<AtomicBool>>,
    /// How a batch is cut on a CPU; the bytes of the outputs are the same either way.
    pub slices: Slices,
}

impl SessionOptions {
    pub fn threads(threads: usize) -> SessionOptions {
        SessionOptions { threads, ..SessionOptions::default() }
    }
}

impl Default for SessionOptions {
    /// One thread for each processor, 64 GiB at most, no cancelling, slices that fit the caches.
    fn default() -> SessionOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        SessionOptions { threads, max_bytes: 64 << 30, cancel: None, slices: Slices::Fit }
    }
}

/// A buffer that a step has just written; see [`Session::run_observed`].
#[derive(Debug)]
pub struct Observed<'a> {
    /// Index of the step.
    pub step: usize,
    pub buffer: BufferId,
    pub name: &'a str,
    pub elem: Elem,
    pub shape: &'a [usize],
    /// The whole buffer, padding included.
    pub data: &'a [u8],
}

/// What happens after each step of a run.
enum After<'a> {
    Nothing,
    Time(&'a mut Vec<u64>),
    Observe(&'a mut dyn FnMut(Observed<'_>)),
}

/// Runs a model. One session serves one caller at a time; make one for each thread.
pub struct Session {
    model: Arc<Model>,
    options: SessionOptions,
    engine: Engine,
    /// Bound shapes, the latest first.
    bound: Vec<Shapes>,
}

/// What runs the steps.
enum Engine {
    Cpu {
        pool: Pool,
        workspace: Workspace,
    },
    #[cfg(feature = "cuda")]
    Cuda(cuda::Engine),
}

/// A bound shape, and what it has on a GPU.
struct Shapes {
    bound: Bound,
    /// How the batch is cut, if it is.
    parts: Option<Parts>,
    #[cfg(feature = "cuda")]
    own: cuda::OnDevice,
}

impl Session {
    pub fn new(model: &Arc<Model>, options: SessionOptions) -> Result<Session> {
        if options.threads == 0 || options.threads > MAX_THREADS {
            let threads = options.threads;
            return Err(Error::Limit(format!("{threads} threads; use 1 to {MAX_THREADS}")));
        }
        if options.slices == Slices::Of(0) {
            return Err(Error::Limit("slices of 0 items; use 1 or more".into()));
        }
        let engine = match model.code() {
            Loaded::Cpu { .. } => {
                let pool = Pool::new(options.threads)?;
                Engine::Cpu { pool, workspace: Workspace::default() }
            }
            #[cfg(feature = "cuda")]
            Loaded::Cuda { on, .. } => Engine::Cuda(cuda::Engine::new(on, options.max_bytes)?),
        };
        Ok(Session { model: Arc::clone(model), engine, options, bound: Vec::new() })
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs the model and returns its outputs in new tensors.
    pub fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Outputs> {
        self.run_new(inputs, After::Nothing)
    }

    /// Runs the model into the caller's tensors, which must have the outputs' types and shapes.
    pub fn run_into(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        outputs: &mut [(&str, TensorViewMut<'_>)],
    ) -> Result<()> {
        self.bind(inputs)?;
        check_outputs(&self.model, &self.bound[0].bound.outputs, outputs)?;
        self.launch(inputs, outputs, After::Nothing)
    }

    /// Like [`run`](Self::run), and returns the nanoseconds that each step took: in a run of slices
    /// the sum over all of them, divided by the number of threads that they ran on.
    pub fn run_profiled(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<(Outputs, Vec<u64>)> {
        let mut times = Vec::with_capacity(self.model.program().steps.len());
        let outputs = self.run_new(inputs, After::Time(&mut times))?;
        Ok((outputs, times))
    }

    /// Like [`run`](Self::run), and calls `observe` after each step with every buffer that the
    /// step wrote. This is how calibration and comparisons see intermediate values. The batch is not
    /// cut.
    pub fn run_observed(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        observe: &mut dyn FnMut(Observed<'_>),
    ) -> Result<Outputs> {
        self.run_new(inputs, After::Observe(observe))
    }

    /// Names, types and shapes of the outputs for the given inputs, of which only the shapes
    /// count.
    pub fn output_shapes(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<Vec<(String, Elem, Vec<usize>)>> {
        self.bind(inputs)?;
        let ports = self.model.program().outputs.iter().zip(&self.bound[0].bound.outputs);
        Ok(ports.map(|(port, shape)| (port.name.clone(), port.elem, shape.clone())).collect())
    }

    /// The binding of the latest run, for reports; `None` before the first.
    pub fn binding(&self) -> Option<&fqbin::Binding> {
        self.bound.first().map(|shapes| &shapes.bound.binding)
    }

    fn run_new(&mut self, inputs: &[(&str, TensorView<'_>)], after: After<'_>) -> Result<Outputs> {
        self.bind(inputs)?;
        let ports = &self.model.program().outputs;
        let mut tensors = Vec::with_capacity(ports.len());
        for (port, shape) in ports.iter().zip(&self.bound[0].bound.outputs) {
            tensors.push((port.name.clone(), Tensor::zeros(port.elem, shape)?));
        }
        let mut views: Vec<(&str, TensorViewMut<'_>)> =
            tensors.iter_mut().map(|(name, tensor)| (name.as_str(), tensor.view_mut())).collect();
        self.launch(inputs, &mut views, after)?;
        Ok(Outputs(tensors))
    }

    /// Checks the inputs and makes their shapes the first of the bound ones.
    fn bind(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<()> {
        let model = Arc::clone(&self.model);
        let ports = &model.program().inputs;
        check_inputs(ports, inputs)?;
        self.bind_shapes(|i| find(inputs, &ports[i]).map_or(&[], |view| view.shape))
    }

    /// Makes the shapes that `of` gives for the inputs, by their index, the first of the bound ones.
    fn bind_shapes<'s>(&mut self, of: impl Fn(usize) -> &'s [usize]) -> Result<()> {
        let same = |cached: &Shapes| {
            cached.bound.inputs.iter().enumerate().all(|(i, shape)| shape == of(i))
        };
        if let Some(hit) = self.bound.iter().position(same) {
            self.bound[..=hit].rotate_right(1);
        } else {
            let shapes: Vec<&[usize]> = (0..self.model.program().inputs.len()).map(of).collect();
            let bound = Bound::new(self.model.program(), &shapes)?;
            let shapes = Shapes {
                parts: self.parts(&bound)?,
                bound,
                #[cfg(feature = "cuda")]
                own: cuda::OnDevice::default(),
            };
            self.bound.truncate(CACHED_SHAPES - 1);
            self.bound.insert(0, shapes);
        }
        match (&mut self.engine, self.model.code()) {
            (Engine::Cpu { .. }, _) => Ok(()),
            #[cfg(feature = "cuda")]
            (Engine::Cuda(engine), Loaded::Cuda { on, .. }) => {
                let Shapes { bound, own, .. } = &mut self.bound[0];
                engine.prepare(self.model.program(), on, bound, own)
            }
            #[cfg(feature = "cuda")]
            (Engine::Cuda(_), Loaded::Cpu { .. }) => Err(changed()),
        }
    }

    /// How a bound batch is cut.
    fn parts(&self, bound: &Bound) -> Result<Option<Parts>> {
        match &self.engine {
            Engine::Cpu { pool, .. } => {
                Parts::new(self.model.program(), bound, pool.threads(), self.options.slices)
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => Ok(None),
        }
    }

    /// Runs all steps on the shapes bound first.
    fn launch(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        outputs: &mut [(&str, TensorViewMut<'_>)],
        after: After<'_>,
    ) -> Result<()> {
        let (model, shapes, options) = (&*self.model, &self.bound[0], &self.options);
        match (&mut self.engine, model.code()) {
            (Engine::Cpu { pool, workspace }, Loaded::Cpu { code, .. }) => {
                let mut run = host::OnCpu { model, code, pool, workspace, options };
                run.run(shapes, inputs, outputs, after)
            }
            #[cfg(feature = "cuda")]
            (Engine::Cuda(engine), Loaded::Cuda { on, .. }) => {
                let program = model.program();
                let (inputs, outputs) = (given(program, inputs), wanted(program, outputs));
                let run = gpu::OnGpu { engine, on, program, shapes };
                run.run(inputs, outputs, after, options.cancel.as_deref())
            }
            #[cfg(feature = "cuda")]
            _ => Err(changed()),
        }
    }
}

#[cfg(feature = "cuda")]
fn changed() -> Error {
    Error::Program("the session's model changed its device".into())
}

fn kernel_error(program: &Program, index: usize, code: i32) -> Error {
    let step = &program.steps[index];
    let (name, family) = (fqbin::printable(&step.name), step.family.clone());
    Error::Kernel { index, name, family, code }
}

/// Shows what a step wrote. `with` hands the bytes of the buffer behind an argument, of which it is
/// told the position and the buffer's index, to a function.
fn observe_step(
    bound: &Bound,
    program: &Program,
    index: usize,
    observe: &mut dyn FnMut(Observed<'_>),
    with: impl Fn(usize, usize, &mut dyn FnMut(&[u8])) -> Result<()>,
) -> Result<()> {
    for (a, arg) in program.steps[index].args.iter().enumerate() {
        if !arg.access.writes() {
            continue;
        }
        let buffer = &program.buffers[arg.buffer.index()];
        let shape: Vec<usize> =
            buffer.shape.iter().map(|&d| bound.binding.value(d) as usize).collect();
        let (name, elem) = (buffer.name.as_str(), buffer.elem);
        let shape = &shape[..];
        with(a, arg.buffer.index(), &mut |data| {
            observe(Observed { step: index, buffer: arg.buffer, name, elem, shape, data });
        })?;
    }
    Ok(())
}
