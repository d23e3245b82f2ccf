//! The type of a result from the types of the operands: one function a family, used by the builder
//! and by the verifier alike.

use crate::dim::Dim;
use crate::op::Op;
use crate::types::Type;
use std::fmt;

/// Why an operation does not take these operands.
#[derive(Clone, PartialEq, Debug)]
pub enum InferError {
    /// Two sizes must be equal and are not known to be; at least one is symbolic. The importer may
    /// solve this by substitution.
    Unequal(Dim, Dim),
    /// Anything else, as a sentence with the values.
    Invalid(String),
}

impl fmt::Display for InferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InferError::Unequal(a, b) => write!(f, "size `{a}` is not known to equal `{b}`"),
            InferError::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for InferError {}

/// The result type of `op` on operands of these types.
pub fn infer(op: &Op, operands: &[&Type]) -> Result<Type, InferError> {
    let _ = operands;
    match op {
        Op::Input(ty) => Ok(ty.clone()),
        _ => Err(InferError::Invalid(format!("`{}` is not known here", op.mnemonic()))),
    }
}
