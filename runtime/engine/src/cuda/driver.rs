//! The CUDA driver behind safe types: contexts, memory, modules, streams, graphs. The driver is
//! loaded when it is first needed; nothing else of CUDA is. All unsafe code of the GPU side is here.

use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUevent_flags, CUfunction_attribute, CUlaunchAttribute,
    CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUresult, CUstreamCaptureMode,
};

use crate::error::{Error, Result};

/// The oldest driver whose CUDA runs what NVRTC 13.0 compiles.
const OLDEST_DRIVER: i32 = 13_000;

/// A failed call as an error, by who must act.
pub(super) fn failed(doing: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |error| match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Limit(format!("{doing}: no GPU memory left")),
        CUresult::CUDA_ERROR_NO_DEVICE => Error::CannotRun(format!("{doing}: no NVIDIA GPU")),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            Error::CannotRun(format!("{doing}: the code is for another GPU"))
        }
        _ => Error::Device(format!("{doing}: {error:?}")),
    }
}

/// A device and its primary context.
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(crate) name: String,
    pub(crate) capability: (i32, i32),
    pub(crate) processors: u32,
    /// The newest CUDA that the driver runs, major and minor.
    pub(crate) cuda: (i32, i32),
}

// SAFETY: a context may be used by any thread that has made it current, which every function
// below does first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's calls are thread-safe.
unsafe impl Sync for Context {}

impl Context {
    /// Opens a device by its number.
    pub(crate) fn open(ordinal: u32) -> Result<Arc<Context>> {
        // SAFETY: the check loads the driver and nothing more.
        if !unsafe { sys::is_culib_present() } {
            let what = "there is no NVIDIA driver here (libcuda.so.1 was not found); install it, \
                        or run on `cpu`";
            return Err(Error::CannotRun(what.into()));
        }
        result::init().map_err(failed("starting the NVIDIA driver"))?;
        let mut version = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(failed("asking for the driver's version"))?;
        if version < OLDEST_DRIVER {
            return Err(Error::CannotRun(format!(
                "the NVIDIA driver is for CUDA {}.{}; this file needs 13.0 or newer: update the \
                 driver",
                version / 1000,
                version % 1000 / 10
            )));
        }
        let count = result::device::get_count().map_err(failed("counting GPUs"))?;
        let number = i32::try_from(ordinal).ok().filter(|n| *n < count).ok_or_else(|| {
            Error::CannotRun(format!("there is no GPU {ordinal}; there are {count}"))
        })?;
        let device = result::device::get(number).map_err(failed("opening the GPU"))?;
        let name = result::device::get_name(device).map_err(failed("asking for the GPU's name"))?;
        let attribute = |attribute| {
            // SAFETY: the device is valid.
            unsafe { result::device::get_attribute(device, attribute) }
                .map_err(failed("asking for the GPU's properties"))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        // SAFETY: the device is valid; the context is released once, when this value is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(failed("making a context on the GPU"))?;
        let capability = (major, minor);
        let cuda = (version / 1000, version % 1000 / 10);
        Ok(Arc::new(Context { device, context, name, capability, processors, cuda }))
    }

    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("entering the context"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and everything that needs it holds an `Arc` of `self`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A block of device memory.
pub(crate) struct Memory {
    context: Arc<Context>,
    address: u64,
    len: usize,
}

impl Memory {
    pub(crate) fn new(context: &Arc<Context>, len: usize) -> Result<Memory> {
        context.enter()?;
        let doing = format!("allocating {len} bytes on the GPU");
        // SAFETY: the block is freed once, by `drop`.
        let address = unsafe { result::malloc_sync(len.max(1)) }.map_err(failed(&doing))?;
        Ok(Memory { context: Arc::clone(context), address, len })
    }

    /// A block with the given content.
    pub(crate) fn of(context: &Arc<Context>, bytes: &[u8]) -> Result<Memory> {
        let memory = Memory::new(context, bytes.len())?;
        // SAFETY: the block has as many bytes.
        unsafe { result::memcpy_htod_sync(memory.address, bytes) }
            .map_err(failed("copying to the GPU"))?;
        Ok(memory)
    }

    /// The GPU that it is on.
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the block was allocated by `new` and is not used after.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A loaded cubin.
pub(crate) struct Module {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: a module is a handle that any thread may use in its context.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module that is kept loaded by its owner.
#[derive(Clone, Copy)]
pub(crate) struct Function(sys::CUfunction);

// SAFETY: a function is a handle that any thread may use in its context.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Loads a cubin that its maker vouches for: the driver reads as far as its ELF header says.
    pub(crate) fn load(context: &Arc<Context>, cubin: &[u8]) -> Result<Module> {
        context.enter()?;
        // SAFETY: the image is an ELF file in memory, which whoever trusted the code vouches for.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast::<c_void>()) }
            .map_err(failed("loading the code on the GPU"))?;
        Ok(Module { context: Arc::clone(context), module })
    }

    /// A kernel by its name, allowed `shared` bytes of dynamic shared memory.
    pub(crate) fn function(&self, name: &str, shared: u32) -> Result<Function> {
        let doing = format!("finding kernel `{}`", fqbin::printable(name));
        let name = CString::new(name).map_err(|_| Error::Program(doing.clone()))?;
        // SAFETY: the module is loaded.
        let function =
            unsafe { result::module::get_function(self.module, name) }.map_err(failed(&doing))?;
        if shared > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, shared as i32) }
                .map_err(failed(&doing))?;
        }
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the module was loaded by `load`; its functions are not launched any more.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

/// Bytes of a kernel's parameter, aligned as the kernels want it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line([u64; 8]);

/// A parameter of a kernel: words in lines of 64 bytes.
#[derive(Clone)]
pub(crate) struct Parameter(Vec<Line>);

impl Parameter {
    pub(crate) fn new(words: &[u64]) -> Parameter {
        let lines = words.chunks(8).map(|chunk| {
            let mut line = [0; 8];
            line[..chunk.len()].copy_from_slice(chunk);
            Line(line)
        });
        Parameter(lines.collect())
    }
}

/// Work in order.
pub(crate) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: a stream is a handle that any thread may use in its context.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Stream> {
        context.enter()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("making a stream"))?;
        Ok(Stream { context: Arc::clone(context), stream })
    }

    /// Copies to the device; `offset` and the bytes lie inside the block.
    pub(crate) fn upload(&self, to: &Memory, bytes: &[u8]) -> Result<()> {
        check_range(to, 0, bytes.len())?;
        self.context.enter()?;
        // SAFETY: the block has room. Pageable memory is staged before the call returns.
        unsafe { result::memcpy_htod_async(to.address, bytes, self.stream) }
            .map_err(failed("copying to the GPU"))
    }

    /// Copies from the device and waits.
    pub(crate) fn download(&self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        check_range(from, offset, bytes.len())?;
        self.context.enter()?;
        let address = from.address + offset as u64;
        // SAFETY: the range lies inside the block, and the wait keeps `bytes` borrowed long enough.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) }
            .map_err(failed("copying from the GPU"))?;
        self.wait()
    }

    /// Sets all bytes of a block.
    pub(crate) fn fill(&self, block: &Memory, value: u8) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the range is the block's.
        unsafe { result::memset_d8_async(block.address, value, block.len, self.stream) }
            .map_err(failed("clearing GPU memory"))
    }

    /// Waits until all work is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("running on the GPU"))
    }

    /// Launches a kernel; it may begin while the one before it ends, and waits for that itself.
    pub(crate) fn launch(
        &self,
        function: Function,
        grid: Grid,
        parameters: &[Parameter],
    ) -> Result<()> {
        let attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let mut attributes = [attribute];
        let config = self.config(grid, &mut attributes);
        let mut pointers: Vec<*mut c_void> =
            parameters.iter().map(|p| p.0.as_ptr().cast_mut().cast()).collect();
        // SAFETY: the parameters are those that the kernel's maker declares, and live; addresses
        // in them were proven by the binding to lie inside live blocks.
        unsafe {
            sys::cuLaunchKernelEx(&config, function.0, pointers.as_mut_ptr(), ptr::null_mut())
        }
        .result()
        .map_err(failed("launching a kernel"))
    }

    fn config(&self, grid: Grid, attributes: &mut [CUlaunchAttribute]) -> CUlaunchConfig {
        CUlaunchConfig {
            gridDimX: grid.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }

    /// The GPU's multiprocessors.
    pub(crate) fn processors(&self) -> u32 {
        self.context.processors
    }

    /// How many clusters of `size` blocks of a kernel run at a time.
    pub(crate) fn clusters(&self, function: Function, size: u32, grid: Grid) -> Result<u32> {
        let most = self.context.processors / size;
        if size == 1 {
            return Ok(most);
        }
        self.context.enter()?;
        let grid = Grid { blocks: most * size, ..grid };
        let config = self.config(grid, &mut []);
        let mut count = 0;
        // SAFETY: the pointers are to live values.
        unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function.0, &config) }
            .result()
            .map_err(failed("asking for the GPU's room"))?;
        Ok((count.max(1) as u32).min(most.max(1)))
    }

    /// Records what `work` puts on the stream.
    pub(crate) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context.enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let doing = "recording a graph";
        // SAFETY: the stream is live, and the capture ends below whatever happens.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed(doing))?;
        let done = work();
        // SAFETY: a capture was begun.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(failed(doing));
        done?;
        let graph = graph?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph is valid and destroyed once.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) }.result();
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(graph) };
        made.map_err(failed(doing))?;
        Ok(Graph { context: Arc::clone(&self.context), exec })
    }

    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both are live.
        unsafe { result::graph::launch(graph.exec, self.stream) }.map_err(failed("running a graph"))
    }

    /// Runs a graph on another stream, after what is on this one.
    ///
    /// # Safety
    /// The stream is one of this context.
    pub(crate) unsafe fn replay_on(&self, graph: &Graph, stream: *mut c_void) -> Result<()> {
        self.wait()?;
        // SAFETY: the graph is live, and the caller vouches for the stream.
        unsafe { result::graph::launch(graph.exec, stream.cast()) }
            .map_err(failed("running a graph"))
    }

    /// A point in the stream's time.
    pub(crate) fn mark(&self) -> Result<Mark> {
        self.context.enter()?;
        let doing = "marking a time";
        let event =
            result::event::create(CUevent_flags::CU_EVENT_DEFAULT).map_err(failed(doing))?;
        let mark = Mark { context: Arc::clone(&self.context), event };
        // SAFETY: both are live.
        unsafe { result::event::record(event, self.stream) }.map_err(failed(doing))?;
        Ok(mark)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.wait().is_ok() {
            // SAFETY: the stream is idle and not used after.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

/// A recorded sequence of launches.
pub(crate) struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

// SAFETY: an executable graph is a handle that any thread may use in its context.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: it was instantiated once and is not launched after.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// See [`Stream::mark`].
pub(crate) struct Mark {
    context: Arc<Context>,
    event: sys::CUevent,
}

impl Mark {
    /// Nanoseconds from this mark to a later one; the stream was waited for.
    pub(crate) fn until(&self, later: &Mark) -> Result<u64> {
        self.context.enter()?;
        // SAFETY: both events were recorded on a stream that has since been waited for.
        let ms = unsafe { result::event::elapsed(self.event, later.event) }
            .map_err(failed("measuring time"))?;
        Ok((f64::from(ms) * 1e6) as u64)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: it was created once and is not used after.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

fn check_range(block: &Memory, offset: usize, len: usize) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= block.len => Ok(()),
        _ => Err(Error::Program(format!(
            "{len} bytes at {offset} of a GPU block of {} bytes",
            block.len
        ))),
    }
}
