//! Runs on the CPU: step by step by all threads, or slice by slice of the batch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::ports::{Given, Results, given, wanted};
use super::{After, SessionOptions, Shapes, kernel_error, observe_step};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::launch::{Apart, Bound, Run, Stopped, Workspace};
use crate::model::Model;
use crate::pool::Pool;
use crate::slices::Parts;

/// A run on the CPU.
pub(super) struct OnCpu<'a> {
    pub model: &'a Model,
    pub code: &'a Code,
    pub pool: &'a mut Pool,
    pub workspace: &'a mut Workspace,
    pub options: &'a SessionOptions,
}

impl OnCpu<'_> {
    /// Runs all steps. Whole buffers are observed, so that an observed run is not cut.
    pub fn run(
        &mut self,
        shapes: &Shapes,
        inputs: &Given<'_, '_>,
        outputs: &mut Results<'_, '_>,
        mut after: After<'_>,
    ) -> Result<()> {
        let (threads, max_bytes) = (self.pool.threads(), self.options.max_bytes);
        if let After::Time(times) = &mut after {
            times.resize(self.model.program().steps.len(), 0);
        }
        match &shapes.parts {
            Some(parts) if !matches!(after, After::Observe(_)) => {
                self.workspace.reserve_parts(parts, threads, max_bytes)?;
                self.slices(parts, inputs, outputs, &mut after)?;
                let Some(rest) = &parts.rest else { return Ok(()) };
                let from = |port: usize| parts.count * parts.port_bytes[port];
                self.steps(rest, inputs, outputs, from, after)
            }
            _ => {
                self.workspace.reserve(&shapes.bound, threads, max_bytes)?;
                self.steps(&shapes.bound, inputs, outputs, |_| 0, after)
            }
        }
    }

    /// All steps on all threads. Of the ports' memory, that from the byte that `from` gives belongs
    /// to `bound`; ports count from the inputs on.
    fn steps(
        &mut self,
        bound: &Bound,
        inputs: &Given<'_, '_>,
        outputs: &mut Results<'_, '_>,
        from: impl Fn(usize) -> usize,
        mut after: After<'_>,
    ) -> Result<()> {
        let program = self.model.program();
        let cancel = self.options.cancel.as_deref();
        let inputs = given(program, inputs).map(|(port, data)| (port, &data[from(port)..]));
        let first = program.inputs.len();
        let outputs =
            wanted(program, outputs).map(|(port, data)| (port, &mut data[from(first + port)..]));
        let run = Run::new(self.model, self.code, bound, self.workspace, inputs, outputs)?;
        for index in 0..program.steps.len() {
            if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled);
            }
            let start = matches!(after, After::Time(_)).then(Instant::now);
            let code = run.step(index, self.pool);
            if code != 0 {
                return Err(kernel_error(program, index, code));
            }
            match (&mut after, start) {
                (After::Time(times), Some(start)) => {
                    times[index] += start.elapsed().as_nanos() as u64;
                }
                (After::Observe(observe), _) => {
                    observe_step(bound, program, index, observe, |arg, _, observe| {
                        observe(run.buffer_of(index, arg, program));
                        Ok(())
                    })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The slices, each on one thread.
    fn slices(
        &mut self,
        parts: &Parts,
        inputs: &Given<'_, '_>,
        outputs: &mut Results<'_, '_>,
        after: &mut After<'_>,
    ) -> Result<()> {
        let program = self.model.program();
        let cancel = self.options.cancel.as_deref();
        let sums: Option<Vec<AtomicU64>> = match after {
            After::Time(times) => Some(times.iter().map(|_| AtomicU64::new(0)).collect()),
            _ => None,
        };
        let threads = self.pool.threads();
        let (inputs, outputs) = (given(program, inputs), wanted(program, outputs));
        let apart =
            Apart::new(self.model, self.code, parts, self.workspace, threads, inputs, outputs)?;
        apart.cancel(cancel).times(sums.as_deref()).run(self.pool).map_err(
            |stopped| match stopped {
                Stopped::Cancelled => Error::Cancelled,
                Stopped::Failed { index, code } => kernel_error(program, index, code),
            },
        )?;
        if let (After::Time(times), Some(sums)) = (after, sums) {
            // As long as the step would take if the threads had shared it.
            for (time, sum) in times.iter_mut().zip(sums) {
                *time += sum.into_inner() / threads as u64;
            }
        }
        Ok(())
    }
}
