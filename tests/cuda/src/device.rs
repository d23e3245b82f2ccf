//! The GPU: context, kernels from cubins, buffers, graphs with timing.

use anyhow::{Context as _, Result, bail};
use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUgraphInstantiate_flags,
    CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
    CUstreamCaptureMode, cuLaunchKernelEx,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DeviceRepr, LaunchConfig,
};
use cudarc::nvrtc::Ptx;
use fqc_codegen::cuda::{Arch, Cache, Nvrtc};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

pub type Buffer = CudaSlice<u8>;

pub struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub processors: u32,
    cache: Cache,
    kernels: RefCell<HashMap<String, CudaFunction>>,
}

impl Device {
    pub fn open() -> Result<Self> {
        let cache = std::env::var("FQC_CACHE").unwrap_or_else(|_| ".cache".into());
        let cache = Cache::new(format!("{cache}/cubins"), Nvrtc::load()?);
        let context = CudaContext::new(0).context("no CUDA device")?;
        // SAFETY: one stream does everything here, so no event needs to order buffers' uses.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability()?;
        if capability != (9, 0) {
            bail!("the kernels are for compute capability 9.0, this device has {capability:?}");
        }
        let stream = context.new_stream()?;
        let processors =
            context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(Self {
            context,
            stream,
            processors: processors as u32,
            cache,
            kernels: RefCell::default(),
        })
    }

    /// A kernel by its name, compiled at the first use.
    pub fn kernel(
        &self,
        name: &str,
        source: impl FnOnce() -> String,
        shared_bytes: usize,
    ) -> Result<CudaFunction> {
        if let Some(kernel) = self.kernels.borrow().get(name) {
            return Ok(kernel.clone());
        }
        let cubin = self.cache.get(name, &source(), Arch::Sm90a)?;
        let module = self.context.load_module(Ptx::from_binary(cubin))?;
        let kernel = module.load_function(name)?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.set_attribute(attribute, shared_bytes as i32)?;
        self.kernels.borrow_mut().insert(name.to_owned(), kernel.clone());
        Ok(kernel)
    }

    pub fn upload<T>(&self, values: &[T]) -> Result<Buffer> {
        // SAFETY: any value can be read as bytes; the element types used here have no padding.
        let bytes = unsafe {
            std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values))
        };
        let mut buffer = self.filled(bytes.len().max(16), 0)?;
        self.stream.memcpy_htod(bytes, &mut buffer.slice_mut(..bytes.len()))?;
        Ok(buffer)
    }

    /// Bytes that all have one value.
    pub fn filled(&self, bytes: usize, value: u8) -> Result<Buffer> {
        // SAFETY: the bytes are written before anything reads them.
        let mut buffer = unsafe { self.stream.alloc::<u8>(bytes)? };
        self.poison(&mut buffer, value)?;
        Ok(buffer)
    }

    fn poison(&self, buffer: &mut Buffer, value: u8) -> Result<()> {
        let (address, length) = (address(buffer, &self.stream), buffer.len());
        // SAFETY: the range is the buffer's.
        unsafe {
            cudarc::driver::result::memset_d8_async(address, value, length, self.stream.cu_stream())
        }?;
        Ok(())
    }

    pub fn download(&self, buffer: &Buffer) -> Result<Vec<u8>> {
        let bytes = self.stream.clone_dtoh(buffer)?;
        self.stream.synchronize()?;
        Ok(bytes)
    }

    /// How many clusters of a kernel run at a time.
    pub fn active_clusters(
        &self,
        kernel: &CudaFunction,
        cluster: u32,
        threads: u32,
        shared_bytes: usize,
    ) -> Result<usize> {
        if cluster == 1 {
            return Ok(self.processors as usize);
        }
        let config = LaunchConfig {
            grid_dim: (self.processors / cluster * cluster, 1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: shared_bytes as u32,
        };
        let clusters = kernel.occupancy_max_active_clusters(config, &self.stream)?;
        Ok((clusters as usize).clamp(1, (self.processors / cluster) as usize))
    }

    /// Launches a kernel of one parameter; a `dependent` one may start before those ahead end.
    pub fn launch<A: DeviceRepr>(
        &self,
        kernel: &CudaFunction,
        argument: &A,
        grid: u32,
        threads: u32,
        shared_bytes: usize,
        dependent: bool,
    ) -> Result<()> {
        let attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let mut attributes = [attribute];
        let config = CUlaunchConfig {
            gridDimX: grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes as u32,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(dependent),
        };
        let mut arguments = [(&raw const *argument).cast_mut().cast()];
        // SAFETY: `A` is the kernel's only parameter and names live buffers.
        unsafe {
            cuLaunchKernelEx(
                &config,
                kernel.cu_function(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
            .result()?;
        }
        Ok(())
    }

    /// Records what `work` puts on the stream.
    pub fn graph(&self, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let done = work();
        // SAFETY: no flag is a value of this C enumeration.
        let flags = unsafe { std::mem::transmute::<u32, CUgraphInstantiate_flags>(0) };
        let graph = self.stream.end_capture(flags);
        done?;
        graph?.context("an empty graph")
    }

    /// Milliseconds of one replay.
    pub fn time(&self, graph: &CudaGraph) -> Result<f64> {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.stream.record_event(flags)?;
        graph.launch()?;
        let end = self.stream.record_event(flags)?;
        Ok(f64::from(start.elapsed_ms(&end)?))
    }
}

pub fn address(buffer: &Buffer, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr;
    buffer.device_ptr(stream).0
}
