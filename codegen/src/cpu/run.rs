//! Runs a target image in this process, step by step and in any portions, every buffer on its own
//! between guard bytes. For tests of kernels and for timing them; inference goes through the
//! runtime, never through here.

use fqbin::{Binding, CodeImage, Level, Place, Program, TargetImage};

use super::CpuError;
use super::exec::Mapped;
use super::object::Blob;

/// Bytes before and after every buffer.
const GUARD: usize = 128;
const GUARD_BYTE: u8 = 0xa5;

/// Memory of one buffer, aligned to 64 bytes, between guards.
struct Guarded {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(len: usize) -> Guarded {
        let memory = vec![GUARD_BYTE; len + 2 * GUARD + 64];
        let start = GUARD + (memory.as_ptr() as usize + GUARD).wrapping_neg() % 64;
        let mut this = Guarded { memory, start, len };
        this.bytes_mut().fill(0);
        this
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    fn intact(&self) -> bool {
        let (before, after) = (&self.memory[..self.start], &self.memory[self.start + self.len..]);
        before.iter().chain(after).all(|&b| b == GUARD_BYTE)
    }
}

/// A program bound to shapes, with memory of its own.
pub struct Execution {
    program: Program,
    binding: Binding,
    code: Mapped,
    buffers: Vec<Guarded>,
    scratch: Guarded,
}

/// A step that ended with a status other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub step: usize,
    pub status: i32,
}

impl Execution {
    /// Binds an image to input shapes. The processor must have the level.
    pub fn new(
        image: &TargetImage,
        level: Level,
        shapes: &[&[usize]],
    ) -> Result<Execution, CpuError> {
        let refused = |reason: String| CpuError::Object { module: "program".to_owned(), reason };
        fqbin::verify(&image.program, image.weights.len() as u64)
            .map_err(|faults| refused(format!("{faults:?}")))?;
        let binding = Binding::new(&image.program, shapes).map_err(|e| refused(e.to_string()))?;
        let code = image.code.iter().find(|c| c.level == level.name());
        let code = code.ok_or_else(|| refused(format!("has no level {}", level.name())))?;
        let code = Mapped::new(&blob(&image.program, code))?;
        let mut buffers: Vec<Guarded> =
            binding.buffer_bytes.iter().map(|&len| Guarded::new(len as usize)).collect();
        let weights = image.weights.to_vec();
        for (buffer, memory) in image.program.buffers.iter().zip(&mut buffers) {
            if let Place::Weight { offset, len } = buffer.place {
                let range = offset as usize..(offset + len) as usize;
                memory.bytes_mut().copy_from_slice(&weights[range]);
            }
        }
        let scratch = Guarded::new(binding.scratch_bytes as usize);
        Ok(Execution { program: image.program.clone(), binding, code, buffers, scratch })
    }

    /// Sets the bytes of an input.
    pub fn set_input(&mut self, index: usize, bytes: &[u8]) {
        let buffer = self.program.inputs[index].buffer.index();
        self.buffers[buffer].bytes_mut().copy_from_slice(bytes);
    }

    /// The bytes of an output.
    pub fn output(&self, index: usize) -> &[u8] {
        self.buffers[self.program.outputs[index].buffer.index()].bytes()
    }

    /// Number of work items of a step.
    pub fn work(&self, step: usize) -> i64 {
        self.binding.value(self.program.steps[step].work)
    }

    /// Arithmetic operations and bytes of a step, as the program reports them.
    pub fn figures(&self, step: usize) -> (i64, i64) {
        let step = &self.program.steps[step];
        (self.binding.value(step.ops), self.binding.value(step.bytes))
    }

    /// Runs all steps, each in portions of `portion` work items.
    pub fn run(&mut self, portion: i64) -> Result<(), Failed> {
        for index in 0..self.program.steps.len() {
            let work = self.work(index);
            let mut begin = 0;
            while begin < work {
                let end = (begin + portion).min(work);
                let status = self.run_step(index, begin..end);
                if status != 0 {
                    return Err(Failed { step: index, status });
                }
                begin = end;
            }
        }
        Ok(())
    }

    /// Runs some work items of one step.
    pub fn run_step(&mut self, index: usize, items: std::ops::Range<i64>) -> i32 {
        let step = &self.program.steps[index];
        let mut addresses = Vec::with_capacity(step.args.len());
        for arg in &step.args {
            let offset = self.binding.value(arg.offset) as usize;
            let memory = &mut self.buffers[arg.buffer.index()];
            let bytes = &mut memory.bytes_mut()[offset..];
            addresses.push(bytes.as_mut_ptr());
        }
        let dims: Vec<i64> = step.dims.iter().map(|&d| self.binding.value(d)).collect();
        let name = &self.program.kernels[step.kernel.index()].name;
        let scratch = self.scratch.bytes_mut().as_mut_ptr();
        // SAFETY: the binding proved that every argument lies inside its buffer, the buffers have
        // those sizes, scratch has the bytes the program asks for, and the caller vouches for the
        // level.
        unsafe { self.code.call(name, &addresses, &dims, items, scratch) }
    }

    /// Names of the buffers whose guard bytes were written to.
    pub fn damaged(&self) -> Vec<String> {
        let named = self.program.buffers.iter().zip(&self.buffers);
        let mut names: Vec<String> =
            named.filter(|(_, m)| !m.intact()).map(|(b, _)| b.name.clone()).collect();
        if !self.scratch.intact() {
            names.push("scratch".to_owned());
        }
        names
    }
}

/// The blob that a code image holds.
fn blob(program: &Program, code: &CodeImage) -> Blob {
    let names = program.kernels.iter().map(|k| k.name.clone());
    let entries = names.zip(code.entries.iter().copied()).collect();
    Blob { bytes: code.bytes.clone(), entries }
}
