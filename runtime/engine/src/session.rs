//! A session: a model, a team of threads, and the memory of its runs. Shapes are bound once and
//! cached; a run on a cached shape into the caller's tensors allocates nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fqbin::{BufferId, Elem, Port};

use crate::error::{Error, Result};
use crate::launch::{Bound, Ports, Run, Workspace};
use crate::model::Model;
use crate::pool::{MAX_THREADS, Pool};
use crate::tensor::{Outputs, Tensor, TensorView, TensorViewMut, dense_bytes};

/// Shapes that a session keeps bound.
const CACHED_SHAPES: usize = 8;

/// How a session runs.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Threads that work on a run, the caller's included.
    pub threads: usize,
    /// Bytes of intermediate memory that a session may hold.
    pub max_bytes: u64,
    /// Looked at between steps; once true, the run ends with [`Error::Cancelled`].
    pub cancel: Option<Arc<AtomicBool>>,
}

impl SessionOptions {
    pub fn threads(threads: usize) -> SessionOptions {
        SessionOptions { threads, ..SessionOptions::default() }
    }
}

impl Default for SessionOptions {
    /// One thread for each processor, 64 GiB at most, no cancelling.
    fn default() -> SessionOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        SessionOptions { threads, max_bytes: 64 << 30, cancel: None }
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
    pool: Pool,
    workspace: Workspace,
    /// Bound shapes, the latest first.
    bound: Vec<(Vec<usize>, Bound)>,
}

impl Session {
    pub fn new(model: &Arc<Model>, options: SessionOptions) -> Result<Session> {
        if options.threads == 0 || options.threads > MAX_THREADS {
            let threads = options.threads;
            return Err(Error::Limit(format!("{threads} threads; use 1 to {MAX_THREADS}")));
        }
        Ok(Session {
            model: Arc::clone(model),
            pool: Pool::new(options.threads)?,
            options,
            workspace: Workspace::default(),
            bound: Vec::new(),
        })
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
        let model = Arc::clone(&self.model);
        let inputs = check_inputs(&model, inputs)?;
        self.bind(&inputs)?;
        let shapes = &self.bound[0].1.outputs;
        check_outputs(&model, shapes, outputs)?;
        let mut slices: Small<&mut [u8]> = Small::new();
        let mut by_port: Small<usize> = Small::new();
        for port in &model.program().outputs {
            // Checked above to be there.
            by_port.push(outputs.iter().position(|(n, _)| *n == port.name).unwrap_or(0));
        }
        let mut order: Small<(usize, &mut [u8])> = Small::new();
        for (i, (_, view)) in outputs.iter_mut().enumerate() {
            let port = by_port.as_slice().iter().position(|&p| p == i).unwrap_or(0);
            order.push((port, &mut *view.data));
        }
        order.as_mut_slice().sort_unstable_by_key(|(port, _)| *port);
        for (_, data) in order.into_iter() {
            slices.push(data);
        }
        self.launch(&inputs, slices.as_mut_slice(), After::Nothing)
    }

    /// Like [`run`](Self::run), and returns the nanoseconds that each step took.
    pub fn run_profiled(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<(Outputs, Vec<u64>)> {
        let mut times = Vec::with_capacity(self.model.program().steps.len());
        let outputs = self.run_new(inputs, After::Time(&mut times))?;
        Ok((outputs, times))
    }

    /// Like [`run`](Self::run), and calls `observe` after each step with every buffer that the
    /// step wrote. This is how calibration and comparisons see intermediate values.
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
        let model = Arc::clone(&self.model);
        self.bind(&check_inputs(&model, inputs)?)?;
        let ports = model.program().outputs.iter().zip(&self.bound[0].1.outputs);
        Ok(ports.map(|(port, shape)| (port.name.clone(), port.elem, shape.clone())).collect())
    }

    /// The binding of the latest run, for reports; `None` before the first.
    pub fn binding(&self) -> Option<&fqbin::Binding> {
        self.bound.first().map(|(_, bound)| &bound.binding)
    }
}
