//! What a model can be run on. A test takes the list and so reaches every runtime.

use anyhow::Result;
use fqc_interp::{Tensor, evaluate};
use fqc_ir::Graph;

/// Runs a float graph as it was imported.
pub trait Runtime {
    fn name(&self) -> &'static str;

    /// The outputs by name.
    fn run(&self, graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>>;
}

/// The oracle.
pub struct Interpreter;

impl Runtime for Interpreter {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn run(&self, graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        Ok(evaluate(graph, inputs)?)
    }
}

/// Every runtime.
pub fn all() -> Vec<Box<dyn Runtime>> {
    vec![Box::new(Interpreter)]
}
