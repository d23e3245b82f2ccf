//! What a model can be run on. A test takes the list and so reaches every runtime: the interpreter,
//! and the CPU backend at each level that this processor has.

use anyhow::{Context, Result, anyhow};
use fqbin::{Level, TargetImage};
use fqc_interp::{Tensor, evaluate};
use fqc_ir::plan::{Plan, Precision};
use fqc_ir::{Const, Elem, Graph};
use fqc_passes::{Runner, clean, fuse};
use fqrt::{Model, Session, SessionOptions, TensorView};
use std::collections::BTreeMap;

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// A float model that is ready to run.
pub trait Runtime {
    fn name(&self) -> &str;

    /// The outputs by name.
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Named>;
}

/// The oracle.
struct Interpreter<'g>(&'g Graph);

impl Runtime for Interpreter<'_> {
    fn name(&self) -> &str {
        "interpreter"
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Named> {
        Ok(evaluate(self.0, inputs)?)
    }
}

/// Code of one level in a session.
pub struct Cpu {
    level: Level,
    session: Session,
}

/// What a step wrote to a buffer of bytes: its shape, rows padded, and the bytes.
pub type Codes = (Vec<usize>, Vec<u8>);

impl Cpu {
    /// The outputs, and by buffer name the bytes of every buffer of codes.
    pub fn run_watched(
        &mut self,
        inputs: &[(String, Tensor)],
    ) -> Result<(Named, BTreeMap<String, Codes>)> {
        let mut given = Vec::new();
        for (name, tensor) in inputs {
            let value = tensor.to_const();
            let mut copy = fqrt::Tensor::zeros(file_elem(value.elem)?, &value.shape)?;
            copy.bytes_mut().copy_from_slice(value.bytes.as_slice());
            given.push((name.as_str(), copy));
        }
        let views: Vec<(&str, TensorView<'_>)> =
            given.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
        let mut codes = BTreeMap::new();
        let outputs = self.session.run_observed(&views, &mut |seen| {
            if seen.elem == fqbin::Elem::U8 {
                codes.insert(seen.name.to_owned(), (seen.shape.to_vec(), seen.data.to_vec()));
            }
        })?;
        let named: Result<Named> =
            outputs.iter().map(|(name, t)| Ok((name.to_owned(), tensor(t)?))).collect();
        Ok((named?, codes))
    }
}

impl Runtime for Cpu {
    fn name(&self) -> &str {
        self.level.name()
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Named> {
        Ok(self.run_watched(inputs)?.0)
    }
}

/// The file format's name for an element type.
fn file_elem(elem: Elem) -> Result<fqbin::Elem> {
    let mut all = fqbin::Elem::ALL.into_iter();
    all.find(|e| e.name() == elem.name()).with_context(|| format!("no file has {elem}"))
}

/// The interpreter's tensor as the runtime's.
pub fn to_runtime(from: &Tensor) -> Result<fqrt::Tensor> {
    let value = from.to_const();
    let mut to = fqrt::Tensor::zeros(file_elem(value.elem)?, &value.shape)?;
    to.bytes_mut().copy_from_slice(value.bytes.as_slice());
    Ok(to)
}

/// A result of the runtime as the interpreter's tensor.
fn tensor(from: &fqrt::Tensor) -> Result<Tensor> {
    let elem = Elem::parse(from.elem().name()).context("an element type of the graph")?;
    let value = Const::new(elem, from.shape().to_vec(), from.bytes().to_vec());
    Ok(Tensor::from_const(&value.context("the bytes fill the shape")?))
}

/// Levels that are tested here: all that the processor has, or the one that `FQC_CPU_LEVEL` forces.
pub fn levels() -> Result<Vec<Level>> {
    match Level::from_env().map_err(|e| anyhow!(e))? {
        Some(level) => Ok(vec![level]),
        None => Ok(Level::ALL.into_iter().filter(|&l| fqrt::level_available(l)).collect()),
    }
}

/// An imported graph as `fqc compile --method none` brings it before the lowering.
pub fn fused(graph: &Graph) -> Result<Graph> {
    let mut graph = graph.clone();
    let mut runner = Runner::new();
    for passes in [clean::passes(), fuse::refuse(), fuse::fuse()] {
        runner.run(&mut graph, &passes)?;
    }
    Ok(graph)
}

/// The plan of a finished graph.
pub fn lower(graph: &Graph) -> Result<Plan> {
    fqc_passes::lower::lower(graph, Precision::F32).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow!(lines.join("\n"))
    })
}

/// A session for each level.
pub fn sessions(target: &TargetImage, levels: &[Level]) -> Result<Vec<Cpu>> {
    let one = |&level: &Level| {
        let program = target.program.clone();
        let model = Model::from_parts(program, &target.weights, &target.code, Some(level))?;
        let session = Session::new(&model, SessionOptions::threads(2))?;
        Ok(Cpu { level, session })
    };
    levels.iter().map(one).collect()
}

/// The CPU backend on a finished graph, at every level.
pub fn cpu(graph: &Graph) -> Result<Vec<Cpu>> {
    let levels = levels()?;
    sessions(&fqc_codegen::cpu::generate(&lower(graph)?, &levels)?, &levels)
}

/// Every runtime for an imported graph.
pub fn all(graph: &Graph) -> Result<Vec<Box<dyn Runtime + '_>>> {
    let mut all: Vec<Box<dyn Runtime>> = vec![Box::new(Interpreter(graph))];
    for cpu in cpu(&fused(graph)?)? {
        all.push(Box::new(cpu));
    }
    Ok(all)
}
