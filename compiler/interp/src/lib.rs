//! The interpreter: the executable definition of every operation, slow, obvious and exact. It is the
//! oracle of the passes and of the back ends, and folds constants. Sums of floats run in f64 and are
//! rounded once at the end; codes and their sums are integers, bit for bit those of every back end.
//!
//! Reading order: [`tensor`], [`bind`], [`eval`], then the operations by family in `ops`.

#![forbid(unsafe_code)]

mod bind;
mod error;
mod eval;
mod ops;
mod round;
mod scalar;
pub mod tensor;
mod walk;

pub use bind::{Binding, bind};
pub use error::{EvalError, OpError};
pub use eval::{FOLD_BYTES, LIVE_BYTES, evaluate, evaluate_with};
pub use ops::{eval_node, eval_node_within};
pub use tensor::{Data, Tensor};
