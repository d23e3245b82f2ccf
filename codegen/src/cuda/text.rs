//! The text of one generated kernel, and what its launch needs.
//!
//! A kernel takes one parameter, `Words`: the addresses of its arguments in the order of the step,
//! the run-time sizes, the number of work items, the address of the status word.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;
use std::fmt::Write;

use super::expr;
use crate::spec::{Nest, Size, Sizes, reach_below};

/// Threads of a block where nothing speaks for another number.
pub const THREADS: u32 = 256;

/// One step as the program will have it. Equal texts share a kernel.
#[derive(Clone, Debug)]
pub struct Call {
    /// Body of the kernel; its name is put in later.
    pub body: String,
    pub threads: u32,
    /// Work items of a block.
    pub items: u32,
    /// Blocks that a multiprocessor keeps, if blocks take work until there is none: no more are launched.
    pub resident: Option<u32>,
    /// Words of the parameter.
    pub words: usize,
    pub dims: Vec<Dim>,
    pub work: Dim,
    pub ops: Dim,
}

/// A body in the making.
pub struct Text {
    sizes: Sizes,
    /// Constant sizes are run-time numbers, too, so that more steps share the kernel.
    run_time: bool,
    args: usize,
    /// What does not depend on other kernels' results, and so need not wait for them.
    early: String,
    lines: String,
}

impl Text {
    /// For a step's kernel; its arguments come first, then its results.
    pub fn new(step: &Step) -> Text {
        Text::with_arguments(step.args.len() + step.results.len())
    }

    /// For a launch of so many arguments and results.
    pub fn with_arguments(args: usize) -> Text {
        let (early, lines) = (String::new(), String::new());
        Text { sizes: Sizes::default(), run_time: false, args, early, lines }
    }

    /// The same; no size is compiled in.
    pub fn of_run_time_sizes(step: &Step) -> Text {
        Text { run_time: true, ..Text::new(step) }
    }

    pub fn line(&mut self, line: impl AsRef<str>) {
        let _ = writeln!(self.lines, "    {}", line.as_ref());
    }

    /// Says that all lines so far read constants alone, so that they need not wait for other kernels.
    pub fn so_far_is_early(&mut self) {
        self.early.push_str(&std::mem::take(&mut self.lines));
    }

    /// A size as an i64 in the kernel.
    pub fn size(&mut self, dim: &Dim) -> String {
        show(if self.run_time { self.sizes.dim(dim) } else { self.sizes.one(dim) })
    }

    /// The same, never compiled in, so that steps which differ in it share the kernel.
    pub fn run_time_size(&mut self, dim: &Dim) -> String {
        show(self.sizes.dim(dim))
    }

    /// The same as its place among the sizes.
    pub fn size_word(&mut self, dim: &Dim) -> usize {
        match self.sizes.dim(dim) {
            Size::Dim(index) => index as usize,
            Size::Const(_) => unreachable!("a run-time size is not compiled in"),
        }
    }

    /// Declares `name` as argument `index`, of elements of `elem` in memory, at element 0 of the view.
    pub fn pointer(&mut self, name: &str, index: usize, view: &View, elem: Elem, writes: bool) {
        let start = self.size(&reach_below(view));
        let ty = expr::memory_type(elem);
        let constant = if writes { "" } else { "const " };
        self.line(format!(
            "{constant}{ty}* {name} = reinterpret_cast<{constant}{ty}*>(a.w[{index}]) + {start};"
        ));
    }

    /// Declares `index0`, `index1`, … of a position in a nest, and for each of its views an element
    /// offset: `names[v]`.
    pub fn unravel(&mut self, prefix: &str, item: &str, nest: &Nest, names: &[String]) {
        let rank = nest.shape.len();
        self.line(format!("u32 {prefix}_left = {item};"));
        for axis in (1..rank).rev() {
            let n = self.size(&nest.shape[axis]);
            self.line(format!(
                "const u32 {prefix}{axis} = {prefix}_left % static_cast<u32>({n}); \
                 {prefix}_left /= static_cast<u32>({n});"
            ));
        }
        if rank > 0 {
            self.line(format!("const u32 {prefix}0 = {prefix}_left;"));
        }
        for (name, strides) in names.iter().zip(&nest.strides) {
            let mut sum = String::from("0");
            for (axis, stride) in strides.iter().enumerate() {
                if stride.as_const() != Some(0) {
                    let _ = write!(sum, " + {prefix}{axis} * {}", self.size(stride));
                }
            }
            self.line(format!("const i64 {name} = {sum};"));
        }
    }

    /// The lines so far with the declarations of the sizes before them, which lie in the words from
    /// `first` on; and the sizes.
    pub fn with_sizes(self, first: usize) -> (String, Vec<Dim>) {
        let mut body = String::new();
        for i in 0..self.sizes.dims.len() {
            let _ = writeln!(body, "    const i64 d{i} = static_cast<i64>(a.w[{}]);", first + i);
        }
        body.push_str(&self.lines);
        (body, self.sizes.dims)
    }

    /// The lines so far with the declarations of the sizes before them, and the words of the parameter.
    pub fn with_words(self) -> (String, usize) {
        let args = self.args;
        let (body, sizes) = self.with_sizes(args);
        (body, args + sizes.len() + 2)
    }

    /// The finished call. One block has `items` work items.
    pub fn finish(self, threads: u32, items: u32, work: Dim, ops: Dim) -> Call {
        let dims = self.sizes.dims;
        let mut body = String::new();
        for i in 0..dims.len() {
            let _ =
                writeln!(body, "    const i64 d{i} = static_cast<i64>(a.w[{}]);", self.args + i);
        }
        let at = self.args + dims.len();
        let _ = writeln!(body, "    const u32 work = static_cast<u32>(a.w[{at}]);");
        let _ = writeln!(body, "    const u64 status = a.w[{}];", at + 1);
        body.push_str(&self.early);
        let _ = writeln!(body, "    begin_kernel();");
        body.push_str(&self.lines);
        Call { body, threads, items, resident: None, words: at + 2, dims, work, ops }
    }
}

impl Call {
    /// The same of blocks that take work until there is none, so many a multiprocessor.
    pub fn resident(self, blocks: u32) -> Call {
        Call { resident: Some(blocks), ..self }
    }

    /// The kernel.
    pub fn source(&self, name: &str) -> String {
        let Call { body, threads, words, resident, .. } = self;
        let bounds = resident.map_or(format!("{threads}"), |blocks| format!("{threads}, {blocks}"));
        format!(
            "extern \"C\" __global__ void __launch_bounds__({bounds})\n\
             {name}(const __grid_constant__ Words<{words}> a) {{\n{body}}}\n"
        )
    }
}

/// A size in the kernel's text.
pub fn show(size: Size) -> String {
    match size {
        Size::Const(value) => format!("{value}ll"),
        Size::Dim(index) => format!("d{index}"),
    }
}

/// Whether a size is a multiple of `by` whatever the symbols are.
pub fn divides(by: i64, dim: &Dim) -> bool {
    dim.terms().all(|(_, factor)| factor % by == 0)
}
