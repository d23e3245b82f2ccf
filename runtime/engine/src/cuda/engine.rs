//! A session's runs on a GPU: one stream, one arena, and for each bound shape its launches with all
//! addresses filled in and a graph of them.

use std::sync::Arc;

use fqbin::{Place, Program};

use super::driver::{Graph, Grid, Memory, Parameter, Stream};
use super::model::{Entry, Gemm, Loaded};
use super::{attention, maps};
use crate::error::{Error, Result};
use crate::launch::{Base, Bound};

/// Token tiles that a gemm walks together: enough that both operands come from L2.
const RASTER: u32 = 8;

/// What a session has on the GPU.
pub(crate) struct Engine {
    pub(crate) stream: Stream,
    arena: Option<Memory>,
    /// Grows whenever the arena moves.
    generation: u64,
    /// One word that kernels set when an index is out of range.
    status: Memory,
    max_bytes: u64,
}

/// What a bound shape has on the GPU.
#[derive(Default)]
pub(crate) struct OnDevice {
    inputs: Vec<Memory>,
    outputs: Vec<Memory>,
    own: Recorded,
    /// The same steps on the caller's memory, for the addresses they were last called with.
    called: Option<Recorded>,
    /// The engine's when the launches were made.
    generation: u64,
}

/// Addresses of the inputs and outputs.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) inputs: Vec<u64>,
    pub(crate) outputs: Vec<u64>,
}

/// The steps for certain addresses.
#[derive(Default)]
struct Recorded {
    ports: Ports,
    launches: Vec<Option<Launch>>,
    graph: Option<Graph>,
}

/// A kernel's launch; `None` stands for a step without work.
struct Launch {
    kernel: usize,
    grid: Grid,
    parameters: Vec<Parameter>,
}

impl Engine {
    pub(crate) fn new(loaded: &Loaded, max_bytes: u64) -> Result<Engine> {
        let context = &loaded.context;
        let status = Memory::new(context, 4)?;
        let stream = Stream::new(context)?;
        stream.fill(&status, 0)?;
        Ok(Engine { stream, arena: None, generation: 0, status, max_bytes })
    }

    /// Makes room for a bound shape, and its launches and their graph if they are not there.
    pub(crate) fn prepare(
        &mut self,
        program: &Program,
        loaded: &Loaded,
        bound: &Bound,
        own: &mut OnDevice,
    ) -> Result<()> {
        let bytes = bound.binding.arena_bytes;
        if bytes > self.max_bytes {
            let max = self.max_bytes;
            return Err(Error::Limit(format!(
                "these shapes need {bytes} bytes of GPU memory, more than the {max} allowed"
            )));
        }
        if self.arena.as_ref().is_none_or(|arena| (arena.len() as u64) < bytes) {
            self.stream.wait()?;
            // The old block goes first, so that both are never held at once.
            self.arena = None;
            let arena = Memory::new(&loaded.context, bytes as usize)?;
            self.stream.fill(&arena, 0)?;
            self.arena = Some(arena);
            self.generation += 1;
        }
        if own.generation == self.generation {
            return Ok(());
        }
        *own = OnDevice::default();
        let memory = |buffer: usize| {
            Memory::new(&loaded.context, bound.binding.buffer_bytes[buffer] as usize)
        };
        for port in &program.inputs {
            own.inputs.push(memory(port.buffer.index())?);
        }
        for port in &program.outputs {
            own.outputs.push(memory(port.buffer.index())?);
        }
        let addresses = |blocks: &[Memory]| blocks.iter().map(Memory::address).collect();
        let ports = Ports { inputs: addresses(&own.inputs), outputs: addresses(&own.outputs) };
        own.own = self.record(loaded, bound, ports)?;
        own.generation = self.generation;
        Ok(())
    }

    /// All launches for the given addresses, and their graph.
    fn record(&self, loaded: &Loaded, bound: &Bound, ports: Ports) -> Result<Recorded> {
        let launch = |index| self.launch_of(loaded, bound, &ports, index);
        let launches = (0..bound.steps.len()).map(launch).collect::<Result<Vec<_>>>()?;
        let graph = self
            .stream
            .record(|| launches.iter().flatten().try_for_each(|launch| self.put(loaded, launch)))?;
        Ok(Recorded { ports, launches, graph: Some(graph) })
    }

    /// Puts all steps on the caller's stream, on the caller's memory.
    ///
    /// # Safety
    /// The addresses are of as many bytes as the binding says, in memory of this GPU, until the
    /// stream has done the work; the stream is one of the GPU's primary context.
    pub(crate) unsafe fn enqueue(
        &self,
        loaded: &Loaded,
        bound: &Bound,
        own: &mut OnDevice,
        ports: Ports,
        stream: *mut std::ffi::c_void,
    ) -> Result<()> {
        let recorded = match own.called.take() {
            Some(recorded) if recorded.ports == ports => recorded,
            _ => self.record(loaded, bound, ports)?,
        };
        let recorded = own.called.insert(recorded);
        let graph = recorded.graph.as_ref();
        let graph = graph.ok_or_else(|| Error::Program("nothing was recorded".into()))?;
        // SAFETY: the caller vouches for the stream.
        unsafe { self.stream.replay_on(graph, stream) }
    }

    /// A step's launch with every address filled in.
    fn launch_of(
        &self,
        loaded: &Loaded,
        bound: &Bound,
        ports: &Ports,
        index: usize,
    ) -> Result<Option<Launch>> {
        let step = &bound.steps[index];
        let work = u32::try_from(step.work).ok().filter(|&w| i32::try_from(w).is_ok());
        let work = work.ok_or_else(|| {
            Error::Limit(format!("step {index} has {} work items, too many for a GPU", step.work))
        })?;
        if work == 0 {
            return Ok(None);
        }
        let (args, dims) = bound.step_data(index);
        let mut words: Vec<u64> =
            args.iter().map(|&(base, at)| self.address(loaded, ports, base, at)).collect();
        words.extend(dims.iter().map(|&d| d as u64));
        words.extend([u64::from(work), self.status.address()]);
        let mut kernel = step.kernel;
        let mut entry = &loaded.kernels[kernel];
        if let Some(few) = entry.few
            && !few.holds(dims)?
        {
            return self.attention(loaded, kernel + 1, words, dims).map(Some);
        }
        let Some(_) = entry.gemm else {
            let most =
                entry.resident.map_or(u32::MAX, |n| n.saturating_mul(self.stream.processors()));
            let grid = Grid {
                blocks: work.div_ceil(entry.items).min(most),
                threads: entry.threads,
                shared: entry.shared,
            };
            let parameters = vec![Parameter::new(&words)];
            return Ok(Some(Launch { kernel, grid, parameters }));
        };
        // Kernels of one gemm follow each other, the last one for any number of rows.
        while let Some(next) = loaded.kernels.get(kernel + 1)
            && entry.gemm.is_some_and(|g| work > g.max_rows)
            && next.gemm.is_some()
        {
            kernel += 1;
            entry = next;
        }
        let gemm =
            entry.gemm.ok_or_else(|| Error::Program("a gemm became another kernel".into()))?;
        let (arguments, blocks) = self.gemm(entry, &gemm, &words, work, dims)?;
        let grid = Grid { blocks, threads: entry.threads, shared: entry.shared };
        let parameters = vec![Parameter::new(&arguments), Parameter::new(&words)];
        Ok(Some(Launch { kernel, grid, parameters }))
    }

    /// An attention of many queries.
    fn attention(
        &self,
        loaded: &Loaded,
        kernel: usize,
        words: Vec<u64>,
        dims: &[i64],
    ) -> Result<Launch> {
        let entry = loaded.kernels.get(kernel);
        let found = entry.and_then(|entry| Some((entry, entry.head_width?)));
        let (entry, width) =
            found.ok_or_else(|| Error::Program("no attention of many queries".into()))?;
        let (arguments, blocks) = attention::arguments(&words, dims, width)?;
        let grid = Grid { blocks, threads: entry.threads, shared: entry.shared };
        let parameters = vec![Parameter::new(&arguments), Parameter::new(&words)];
        Ok(Launch { kernel, grid, parameters })
    }

    /// `GemmArguments` of `kernels/cuda/layout_sm90.cuh`, and the number of blocks. The first dim of
    /// such a step is the distance between rows of codes.
    fn gemm(
        &self,
        entry: &Entry,
        gemm: &Gemm,
        words: &[u64],
        rows: u32,
        dims: &[i64],
    ) -> Result<(Vec<u64>, u32)> {
        let pitch = dims.first().and_then(|&d| u64::try_from(d).ok());
        let pitch = pitch.ok_or_else(|| Error::Program("a gemm has no row pitch".into()))?;
        let size = [u64::from(gemm.k), u64::from(rows)];
        let map = maps::of_matrix(words[0], size, pitch, gemm.tokens / gemm.cluster)?;
        let group = gemm.cluster * gemm.split;
        let channel_tiles = gemm.n.div_ceil(gemm.channels * gemm.cluster);
        let tiles = channel_tiles.saturating_mul(rows.div_ceil(gemm.tokens));
        let grid = Grid { blocks: 0, threads: entry.threads, shared: entry.shared };
        // A cluster that splits K has one tile; others stay and take one after the other.
        let clusters = match gemm.split {
            1 => tiles.min(self.stream.clusters(entry.function, group, grid)?),
            _ => tiles,
        };
        let mut arguments = vec![0u64; GEMM_WORDS];
        arguments[..16].copy_from_slice(&map);
        arguments[16..32].copy_from_slice(&map);
        arguments[WEIGHTS_WORD] = words[1];
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        arguments[SIZES_WORD] = pair(rows, gemm.n);
        arguments[SIZES_WORD + 1] = pair(gemm.k_blocks, gemm.n);
        arguments[SIZES_WORD + 2] = pair(RASTER, 0);
        Ok((arguments, clusters * group))
    }

    fn address(&self, loaded: &Loaded, ports: &Ports, base: Base, offset: usize) -> u64 {
        let start = match base {
            Base::Input(n) => ports.inputs[n as usize],
            Base::Output(n) => ports.outputs[n as usize],
            Base::Arena => self.arena.as_ref().map_or(0, Memory::address),
            Base::Weights => loaded.weights.address(),
        };
        start + offset as u64
    }

    fn put(&self, loaded: &Loaded, launch: &Launch) -> Result<()> {
        let function = loaded.kernels[launch.kernel].function;
        self.stream.launch(function, launch.grid, &launch.parameters)
    }

    /// Copies an input in.
    pub(crate) fn upload(&self, own: &OnDevice, port: usize, bytes: &[u8]) -> Result<()> {
        self.stream.upload(&own.inputs[port], bytes)
    }

    /// Copies an output out.
    pub(crate) fn download(&self, own: &OnDevice, port: usize, bytes: &mut [u8]) -> Result<()> {
        self.stream.download(&own.outputs[port], 0, bytes)
    }

    /// Puts all steps on the stream.
    pub(crate) fn replay(&self, own: &OnDevice) -> Result<()> {
        let graph = own.own.graph.as_ref();
        self.stream.replay(graph.ok_or_else(|| Error::Program("nothing was recorded".into()))?)
    }

    /// Runs one step alone and gives the nanoseconds it took.
    pub(crate) fn step(&self, loaded: &Loaded, own: &OnDevice, index: usize) -> Result<u64> {
        let Some(launch) = &own.own.launches[index] else { return Ok(0) };
        let start = self.stream.mark()?;
        self.put(loaded, launch)?;
        let end = self.stream.mark()?;
        self.stream.wait()?;
        start.until(&end)
    }

    /// Nanoseconds of each of `runs` replays.
    pub(crate) fn time(&self, own: &OnDevice, runs: usize) -> Result<Vec<u64>> {
        let mut marks = vec![self.stream.mark()?];
        for _ in 0..runs {
            self.replay(own)?;
            marks.push(self.stream.mark()?);
        }
        self.stream.wait()?;
        marks.windows(2).map(|pair| pair[0].until(&pair[1])).collect()
    }

    /// Whether a kernel reported a failure since the last call.
    pub(crate) fn failed(&self) -> Result<bool> {
        let mut word = [0u8; 4];
        self.stream.download(&self.status, 0, &mut word)?;
        let failed = word != [0; 4];
        if failed {
            self.stream.fill(&self.status, 0)?;
        }
        Ok(failed)
    }

    /// The bytes of a whole buffer.
    pub(crate) fn buffer(
        &self,
        program: &Program,
        bound: &Bound,
        own: &OnDevice,
        buffer: usize,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; bound.binding.buffer_bytes[buffer] as usize];
        let (memory, offset) = match program.buffers[buffer].place {
            Place::Input(n) => (&own.inputs[n as usize], 0),
            Place::Output(n) => (&own.outputs[n as usize], 0),
            _ => match &self.arena {
                Some(arena) => (arena, bound.binding.arena_offsets[buffer] as usize),
                None => return Err(Error::Program("a buffer of no memory".into())),
            },
        };
        self.stream.download(memory, offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Words of `GemmArguments`, and where its parts lie: two tensor maps, then pointers, then sizes.
const WEIGHTS_WORD: usize = 32;
const SIZES_WORD: usize = 39;
const GEMM_WORDS: usize = 48;

const _: () = {
    const fn shared<T: Send>() {}
    shared::<Engine>();
    shared::<OnDevice>();
    shared::<Arc<Loaded>>();
};
