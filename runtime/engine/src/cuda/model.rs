//! A model on a GPU: its kernels by index, with what a launch needs to know, and its weights.

use std::collections::BTreeMap;
use std::sync::Arc;

use fqbin::{CodeView, Kernel, Program};

use super::attention::Few;
use super::driver::{Context, Function, Memory, Module};
use crate::error::{Error, Result};

/// The attributes of a gemm that goes through a tensor map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub(crate) n: u32,
    /// Codes of K that exist, and blocks of the packed weight along it.
    pub(crate) k: u32,
    pub(crate) k_blocks: u32,
    /// Of a tile.
    pub(crate) tokens: u32,
    pub(crate) channels: u32,
    pub(crate) cluster: u32,
    pub(crate) split: u32,
    /// Rows above which the next kernel is meant.
    pub(crate) max_rows: u32,
}

/// One kernel.
pub(crate) struct Entry {
    pub(crate) function: Function,
    pub(crate) threads: u32,
    /// Work items of a block.
    pub(crate) items: u32,
    /// Blocks of a multiprocessor; more are not launched, they take work until there is none.
    pub(crate) resident: Option<u32>,
    pub(crate) shared: u32,
    pub(crate) gemm: Option<Gemm>,
    /// When an attention takes this kernel and not the next.
    pub(crate) few: Option<Few>,
    /// Channels of a head of an attention that reads through tensor maps.
    pub(crate) head_width: Option<u32>,
}

/// See the module.
pub(crate) struct Loaded {
    pub(crate) context: Arc<Context>,
    pub(crate) kernels: Vec<Entry>,
    /// Models that differ in their kernels alone share them.
    pub(crate) weights: Arc<Memory>,
    /// Keeps the kernels loaded.
    _modules: Vec<Module>,
}

impl Loaded {
    /// Loads the code of a file whose signature was checked to where its weights are.
    pub(crate) fn new(
        program: &Program,
        code: &CodeView<'_>,
        weights: Arc<Memory>,
    ) -> Result<Loaded> {
        let context = Arc::clone(weights.context());
        if code.entries.len() != program.kernels.len() {
            let (have, want) = (code.entries.len(), program.kernels.len());
            return Err(Error::Program(format!("the code has {have} entries for {want} kernels")));
        }
        let mut modules: BTreeMap<u32, Module> = BTreeMap::new();
        let mut kernels = Vec::with_capacity(program.kernels.len());
        for (kernel, &entry) in program.kernels.iter().zip(&code.entries) {
            if let std::collections::btree_map::Entry::Vacant(vacant) = modules.entry(entry) {
                // Entries lie inside the code. The driver wants the image at an aligned address.
                let mut image =
                    crate::memory::AlignedBytes::copy_of(&code.bytes[entry as usize..])?;
                vacant.insert(Module::load(&context, image.as_mut_slice())?);
            }
            kernels.push(self::entry(kernel, &modules[&entry])?);
        }
        let modules = modules.into_values().collect();
        Ok(Loaded { context, kernels, weights, _modules: modules })
    }
}

/// A kernel with its attributes.
fn entry(kernel: &Kernel, module: &Module) -> Result<Entry> {
    let find = |name: &str| {
        let found = kernel.attrs.iter().find(|(n, _)| n == name);
        found.map(|&(_, value)| value)
    };
    let number = |name: &str, range: std::ops::RangeInclusive<i64>| {
        let value = find(name).filter(|v| range.contains(v)).ok_or_else(|| {
            let kernel = fqbin::printable(&kernel.name);
            Error::Program(format!("kernel `{kernel}` has no `{name}` that makes sense"))
        })?;
        Ok::<u32, Error>(value as u32)
    };
    let optional = |name: &str, range: std::ops::RangeInclusive<i64>| {
        find(name).map(|_| number(name, range)).transpose()
    };
    let many = 0..=i64::from(i32::MAX);
    let shared = optional("shared", 0..=232_448)?.unwrap_or(0);
    let gemm = match find("tokens") {
        None => None,
        Some(_) => Some(Gemm {
            n: number("n", 1..=i64::from(i32::MAX))?,
            k: number("k", 1..=i64::from(i32::MAX))?,
            k_blocks: number("k_blocks", 1..=i64::from(i32::MAX))?,
            tokens: number("tokens", 8..=256)?,
            channels: number("channels", 64..=512)?,
            cluster: number("cluster", 1..=16)?,
            split: number("split", 1..=16)?,
            max_rows: number("max_rows", many.clone())?,
        }),
    };
    let head_width = optional("head_width", 16..=256)?;
    let few = match optional("max_queries", many.clone())? {
        Some(queries) => Some(Few { queries, crowd: number("crowd", many.clone())? }),
        None => None,
    };
    let own_blocks = gemm.is_some() || head_width.is_some();
    Ok(Entry {
        // Kernels that differ in attributes alone share the symbol before the dot.
        function: module.function(kernel.name.split('.').next().unwrap_or_default(), shared)?,
        threads: number("threads", 1..=1024)?,
        items: if own_blocks { 1 } else { number("items", 1..=1 << 20)? },
        resident: optional("resident", 1..=32)?,
        shared,
        gemm,
        few,
        head_width,
    })
}
