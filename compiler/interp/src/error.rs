//! Errors: of one operation, without a place, and of a whole graph, with the node's name.

use thiserror::Error;

/// Why an operation could not be evaluated on these operands.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum OpError {
    /// The operation, the operands or the values in them do not go together.
    #[error("{0}")]
    Invalid(String),
    /// A result would be larger than allowed.
    #[error("would need {need} bytes, the limit is {limit}")]
    Memory { need: u64, limit: u64 },
}

impl OpError {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        OpError::Invalid(message.into())
    }
}

/// Why a graph could not be evaluated.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum EvalError {
    /// The caller's inputs are not those of the graph.
    #[error("input `{name}`: {what}")]
    Input { name: String, what: String },
    /// The sizes of the inputs break a condition of the graph.
    #[error("the sizes of the inputs do not fit the graph: {0}")]
    Sizes(String),
    #[error("node `{node}` ({op}): {error}")]
    Node { node: String, op: &'static str, error: OpError },
    /// The graph is broken: our bug.
    #[error("the graph has a cycle")]
    Cycle,
}

pub(crate) type Res<T> = Result<T, OpError>;
