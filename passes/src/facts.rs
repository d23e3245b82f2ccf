//! The facts that passes need, give and break are the verifier's: each has a check there, so that none
//! can be declared without one.

pub use fqc_ir::verify::{FACTS, Fact, Facts};
