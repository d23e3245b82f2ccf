//! Other tiles for gemms of an image that is compiled already: their kernels are taken from programs of one
//! gemm ([`super::trial`]), if those are the kernels that the image would have had. So tiles are compared in
//! the whole model, without its plan.

use std::collections::BTreeMap;

use fqbin::{CodeImage, Kernel, KernelId, Program, TargetImage};
use fqc_kernels::cuda::choose::BUCKETS;

use super::generate::CUBIN_ALIGN;
use super::tuning::Layer;

/// The attribute that a gemm's kernels alone have: rows up to which each is taken.
const MAX_ROWS: &str = "max_rows";

/// The kernel of a gemm with one tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The name of its text, and its attributes.
    kernel: Kernel,
    cubin: Vec<u8>,
}

impl Instance {
    /// That of a program of one gemm.
    pub fn of_trial(image: &TargetImage) -> Option<Instance> {
        let kernel = image.program.kernels.iter().position(is_in_tiles)?;
        Some(Instance {
            kernel: image.program.kernels[kernel].clone(),
            cubin: cubin(image.code.first()?, kernel)?.to_vec(),
        })
    }

    /// The same for another layer whose weights have as many blocks along K.
    #[must_use]
    pub fn of_layer(&self, layer: &Layer) -> Instance {
        let mut other = self.clone();
        let k = if layer.weights.float() { 2 * layer.k } else { layer.k };
        for (_, value) in other.kernel.attrs.iter_mut().filter(|(name, _)| name == "k") {
            *value = k as i64;
        }
        other
    }

    /// Whether `kernel` has the same text, and multiplies matrices of the same sizes.
    fn is(&self, kernel: &Kernel) -> bool {
        let without_rows = |k: &Kernel| -> Vec<(String, i64)> {
            k.attrs.iter().filter(|(name, _)| name != MAX_ROWS).cloned().collect()
        };
        symbol(kernel) == symbol(&self.kernel) && without_rows(kernel) == without_rows(&self.kernel)
    }
}

/// Whether a step of a program is a gemm of tiles.
pub fn in_tiles(program: &Program, step: usize) -> bool {
    is_in_tiles(&program.kernels[program.steps[step].kernel.index()])
}

/// The steps whose gemm takes `instance` for so many rows.
pub fn steps(program: &Program, rows: usize, instance: &Instance) -> Vec<usize> {
    let has = |&step: &usize| {
        let index = taken(program, program.steps[step].kernel, rows);
        in_tiles(program, step) && instance.is(&program.kernels[index])
    };
    (0..program.steps.len()).filter(has).collect()
}

/// An image whose gemms get other tiles.
pub struct Exchange {
    image: TargetImage,
    /// Where the cubins of kernels are, by the names of their texts.
    cubins: BTreeMap<String, u32>,
}

impl Exchange {
    /// None if the image has no code.
    pub fn new(image: TargetImage) -> Option<Exchange> {
        let kernels = image.program.kernels.iter();
        let of_gemms = kernels.zip(&image.code.first()?.entries).filter(|(k, _)| is_in_tiles(k));
        let cubins = of_gemms.map(|(k, entry)| (symbol(k).to_owned(), *entry)).collect();
        Some(Exchange { image, cubins })
    }

    /// Gives the gemms of `steps`, which are alike, other kernels for rows of [`BUCKETS`]; for others, they keep
    /// theirs.
    pub fn gemms(&mut self, steps: &[usize], others: &[(usize, &Instance)]) {
        let Some(&step) = steps.first() else { return };
        let before = self.image.program.steps[step].kernel;
        let first = self.image.program.kernels.len();
        for (i, rows) in BUCKETS.into_iter().enumerate() {
            let other = others.iter().find(|(own, _)| *own == rows);
            let (kernel, entry) = match other {
                Some((_, instance)) => (instance.kernel.clone(), self.cubin(instance)),
                None => {
                    let index = taken(&self.image.program, before, rows);
                    (self.image.program.kernels[index].clone(), self.image.code[0].entries[index])
                }
            };
            let last = i + 1 == BUCKETS.len();
            self.add(kernel, entry, if last { i64::from(i32::MAX) } else { rows as i64 });
        }
        for &step in steps {
            self.image.program.steps[step].kernel = KernelId(first as u32);
        }
    }

    /// Where the code of an instance is.
    fn cubin(&mut self, instance: &Instance) -> u32 {
        let bytes = &mut self.image.code[0].bytes;
        *self.cubins.entry(symbol(&instance.kernel).to_owned()).or_insert_with(|| {
            bytes.resize(bytes.len().next_multiple_of(CUBIN_ALIGN), 0);
            let offset = bytes.len() as u32;
            bytes.extend_from_slice(&instance.cubin);
            offset
        })
    }

    fn add(&mut self, mut kernel: Kernel, entry: u32, max_rows: i64) {
        kernel.name = format!("{}.{}", symbol(&kernel), self.image.program.kernels.len());
        for (name, value) in &mut kernel.attrs {
            if name == MAX_ROWS {
                *value = max_rows;
            }
        }
        self.image.program.kernels.push(kernel);
        self.image.code[0].entries.push(entry);
    }

    pub fn finish(self) -> TargetImage {
        self.image
    }
}

/// The kernel that a gemm takes for so many rows; `first` is the first of those that follow each other.
fn taken(program: &Program, first: KernelId, rows: usize) -> usize {
    let mut index = first.index();
    while max_rows(&program.kernels[index]).is_some_and(|most| rows as i64 > most) {
        match program.kernels.get(index + 1) {
            Some(next) if is_in_tiles(next) => index += 1,
            _ => break,
        }
    }
    index
}

fn max_rows(kernel: &Kernel) -> Option<i64> {
    kernel.attrs.iter().find(|(name, _)| name == MAX_ROWS).map(|(_, rows)| *rows)
}

fn is_in_tiles(kernel: &Kernel) -> bool {
    max_rows(kernel).is_some()
}

/// What kernels share that differ in attributes alone.
fn symbol(kernel: &Kernel) -> &str {
    kernel.name.split('.').next().unwrap_or_default()
}

/// The code of a kernel: up to that of the next one.
fn cubin(code: &CodeImage, kernel: usize) -> Option<&[u8]> {
    let start = *code.entries.get(kernel)?;
    let end = code.entries.iter().filter(|&&entry| entry > start).min();
    code.bytes.get(start as usize..end.map_or(code.bytes.len(), |&end| end as usize))
}
