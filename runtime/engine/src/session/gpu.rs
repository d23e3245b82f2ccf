//! Sessions on a GPU: runs, times, and work on the caller's stream and memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fqbin::{Elem, Port, Program};

use super::ports::names;
use super::{After, Engine, Session, Shapes, kernel_error, observe_step};
use crate::cuda;
use crate::error::{Error, Result};
use crate::model::Loaded;

impl Session {
    /// Runs the steps again `runs` times on a GPU, inputs and outputs staying there, and gives the
    /// nanoseconds of each run by the GPU's clock. The inputs are those of the latest run, which
    /// must have been on a GPU.
    pub fn time_on_device(&mut self, runs: usize) -> Result<Vec<u64>> {
        match (&self.engine, self.bound.first()) {
            (Engine::Cuda(engine), Some(shapes)) => engine.time(&shapes.own, runs),
            _ => Err(Error::CannotRun("the latest run was not on a GPU".into())),
        }
    }
}

/// A dense tensor in the memory of the session's GPU.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTensor<'a> {
    pub elem: Elem,
    pub shape: &'a [usize],
    /// Of its first byte; a multiple of 64.
    pub address: u64,
}

impl Session {
    /// Puts a run on the caller's stream (a `CUstream`, null for the default one), with inputs and
    /// outputs in the caller's device memory, and returns before it is done. An index out of range
    /// is told by the next run that waits. Repeated calls with the same addresses replay a graph.
    ///
    /// # Safety
    /// The tensors lie in memory of the session's GPU with all their bytes, and stay there until the
    /// stream has done the work; the stream is of the GPU's primary context; the session is neither
    /// dropped nor used on another stream before.
    pub unsafe fn enqueue(
        &mut self,
        inputs: &[(&str, DeviceTensor<'_>)],
        outputs: &[(&str, DeviceTensor<'_>)],
        stream: *mut std::ffi::c_void,
    ) -> Result<()> {
        let model = Arc::clone(&self.model);
        let program = model.program();
        let given = on_device(&program.inputs, inputs, Error::input)?;
        self.bind_shapes(|i| given[i].shape)?;
        let results = on_device(&program.outputs, outputs, Error::output)?;
        let Shapes { bound, own, .. } = &mut self.bound[0];
        for ((port, tensor), shape) in program.outputs.iter().zip(&results).zip(&bound.outputs) {
            if tensor.shape != shape {
                let what = format!("its shape is {shape:?}, not {:?}", tensor.shape);
                return Err(Error::output(&port.name, what));
            }
        }
        let (Engine::Cuda(engine), Loaded::Cuda { on, .. }) = (&self.engine, model.code()) else {
            return Err(Error::CannotRun("the model was not loaded for a GPU".into()));
        };
        let addresses = |tensors: &[DeviceTensor<'_>]| tensors.iter().map(|t| t.address).collect();
        let ports = cuda::Ports { inputs: addresses(&given), outputs: addresses(&results) };
        // SAFETY: the sizes are the binding's; the rest is the caller's promise.
        unsafe { engine.enqueue(on, bound, own, ports, stream) }
    }
}

/// The tensors of the ports, in their order.
fn on_device<'a>(
    ports: &[Port],
    tensors: &[(&str, DeviceTensor<'a>)],
    error: impl Fn(&str, String) -> Error,
) -> Result<Vec<DeviceTensor<'a>>> {
    if let Some((name, _)) = tensors.iter().find(|(n, _)| ports.iter().all(|p| p.name != *n)) {
        return Err(error(name, format!("the model has only {}", names(ports))));
    }
    let tensor = |port: &Port| {
        let found = tensors.iter().find(|(name, _)| *name == port.name);
        let (_, tensor) = found.ok_or_else(|| error(&port.name, "it is missing".into()))?;
        if tensor.elem != port.elem {
            let (want, got) = (port.elem.name(), tensor.elem.name());
            return Err(error(&port.name, format!("its type is {want}, not {got}")));
        }
        if tensor.address == 0 || tensor.address % 64 != 0 {
            return Err(error(&port.name, "its address is not a multiple of 64".into()));
        }
        Ok(*tensor)
    };
    ports.iter().map(tensor).collect()
}

/// A run on a GPU.
pub(super) struct OnGpu<'a> {
    pub engine: &'a cuda::Engine,
    pub on: &'a cuda::Loaded,
    pub program: &'a Program,
    pub shapes: &'a Shapes,
}

impl OnGpu<'_> {
    pub fn run<'t>(
        &self,
        inputs: impl Iterator<Item = (usize, &'t [u8])>,
        outputs: impl Iterator<Item = (usize, &'t mut [u8])>,
        mut after: After<'_>,
        cancel: Option<&AtomicBool>,
    ) -> Result<()> {
        let (engine, own) = (self.engine, &self.shapes.own);
        for (port, bytes) in inputs {
            engine.upload(own, port, bytes)?;
        }
        if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Err(Error::Cancelled);
        }
        if matches!(after, After::Nothing) {
            engine.replay(own)?;
        } else {
            (0..self.program.steps.len()).try_for_each(|index| self.step(index, &mut after))?;
        }
        for (port, bytes) in outputs {
            engine.download(own, port, bytes)?;
        }
        if engine.failed()? {
            let indexed = |s: &fqbin::Step| s.family.contains("gather");
            let index = self.program.steps.iter().position(indexed).unwrap_or(0);
            return Err(kernel_error(self.program, index, 1));
        }
        Ok(())
    }

    /// One step alone, timed or observed.
    fn step(&self, index: usize, after: &mut After<'_>) -> Result<()> {
        let time = self.engine.step(self.on, &self.shapes.own, index)?;
        let bound = &self.shapes.bound;
        match after {
            After::Time(times) => times.push(time),
            After::Observe(observe) => {
                observe_step(bound, self.program, index, observe, |_, buffer, observe| {
                    let own = &self.shapes.own;
                    observe(&self.engine.buffer(self.program, bound, own, buffer)?);
                    Ok(())
                })?;
            }
            After::Nothing => {}
        }
        Ok(())
    }
}
