//! ONNX to Graph. The only crate that knows protobuf; the messages are tract-onnx's, their meaning is
//! ours.
//!
//! [`import`] decodes a model, follows small integer tensors as symbolic sizes (so that no shape
//! arithmetic is left in the graph), decomposes every operator into the IR's and reports all problems
//! of a model in one run. Sizes that turn out to be equal are solved by eliminating a symbol and
//! importing again.
//!
//! Reading order: [`limits`], [`error`], `scan`, `decode`, `external`, `tensor`, `attrs`, `dims`,
//! `known`, `places`, `builder`, `cx`, `model`, `bodies`, `functions`, `ops`.

#![deny(unsafe_code)]

#[cfg(test)]
mod attacks;
mod attrs;
mod bodies;
mod builder;
mod cx;
mod decode;
mod dims;
pub mod error;
mod external;
mod functions;
mod known;
pub mod limits;
#[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
mod mmap;
mod model;
mod ops;
mod places;
mod scan;
#[cfg(test)]
mod symbolic;
mod tensor;

pub use error::{ImportError, Kind, Problem, Site};

use dims::Substitution;
use error::{Fault, Res, shown};
use external::External;
use fqc_ir::{Const, Graph};
use model::{Inputs, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Model inputs that become constants, by name: those whose values decide shapes.
    pub bind: BTreeMap<String, Const>,
}

/// Imports the model in a file; its external data lies in the same folder.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Graph, ImportError> {
    let bytes = decode::read(path)?;
    import_bytes(bytes.as_slice(), path.parent(), options)
}

/// Imports a model from its bytes; `dir` is where its external data lies.
pub fn import_bytes(
    bytes: &[u8],
    dir: Option<&Path>,
    options: &ImportOptions,
) -> Result<Graph, ImportError> {
    let mut model = decode::decode(bytes)?;
    let mut external = External::new(dir).map_err(whole_model)?;
    let initializers = initializers(&mut model, &mut external)?;
    let mut substitution = Substitution::default();
    // Every round eliminates a symbol.
    for _ in 0..limits::EQUALITIES {
        let given = Inputs {
            initializers: &initializers,
            external: &mut external,
            substitution: &substitution,
            options,
        };
        match model::attempt(&model, given) {
            Outcome::Done(graph) => return Ok(*graph),
            Outcome::Failed(problems, needs) => return Err(ImportError { problems, needs }),
            Outcome::Equate(a, b, problem) => {
                if !substitution.equate(&a, &b) {
                    return Err(ImportError { problems: vec![*problem], needs: Vec::new() });
                }
            }
        }
    }
    let message = format!("more than {} symbolic sizes are equal to others", limits::EQUALITIES);
    Err(ImportError::one(Kind::Limit, message, "give equal sizes one name"))
}

/// Name and value of a tensor in a file of its own, as ONNX's test cases have them.
pub fn read_tensor(bytes: &[u8]) -> Result<(String, Const), ImportError> {
    let mut message = decode::tensor(bytes)?;
    let mut external = External::new(None).map_err(whole_model)?;
    let constant = tensor::take(&mut message, &mut external).map_err(whole_model)?;
    Ok((message.name, constant))
}

/// The operators that a model's graph uses, branches and functions included, with their domains.
pub fn operators(bytes: &[u8]) -> Result<BTreeSet<String>, ImportError> {
    let model = decode::decode(bytes)?;
    let mut graphs: Vec<&GraphProto> = model.graph.iter().collect();
    let mut nodes: Vec<&NodeProto> = model.functions.iter().flat_map(|f| &f.node).collect();
    let mut out = BTreeSet::new();
    loop {
        nodes.extend(graphs.drain(..).flat_map(|g| &g.node));
        let Some(node) = nodes.pop() else { return Ok(out) };
        out.insert(model::qualified(node));
        graphs.extend(node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)));
    }
}

/// All initializers by name, moved out of the message; a broken one keeps its fault.
fn initializers(
    model: &mut ModelProto,
    external: &mut External,
) -> Result<BTreeMap<String, Res<Const>>, ImportError> {
    let mut out = BTreeMap::new();
    let list = model.graph.as_mut().map(|g| std::mem::take(&mut g.initializer));
    for mut tensor in list.unwrap_or_default() {
        let name = std::mem::take(&mut tensor.name);
        let constant = tensor::take(&mut tensor, external);
        let twice = || format!("initializer `{}` twice", shown(&name));
        if name.is_empty() {
            let help = "every initializer has a name";
            return Err(ImportError::one(Kind::Invalid, "an initializer without a name", help));
        }
        if out.contains_key(&name) {
            return Err(ImportError::one(Kind::Invalid, twice(), ""));
        }
        out.insert(name, constant);
    }
    Ok(out)
}

fn whole_model(fault: Fault) -> ImportError {
    match fault {
        Fault::Problem { kind, message, help } => ImportError::one(kind, message, help),
        Fault::Unknown { .. } | Fault::Equal(..) => {
            ImportError::one(Kind::Invalid, "a size that is not known", "")
        }
    }
}
