//! In the place of `host.rs` where fqc is built without the feature `cpu`: nothing generates code for
//! CPUs. Code for CPUs that lies in a file runs all the same.

use crate::exit::{Exit, Failure};
use crate::rates::Rates;
use fqbin::{Level, TargetImage};
use fqc_ir::plan::Plan;

/// What generates the code, if anything does.
pub const GENERATOR: Option<&str> = None;

/// Refuses `work`, which wants code for the CPU.
pub fn wants(work: &str) -> Result<(), Failure> {
    Err(missing(work))
}

fn missing(work: &str) -> Failure {
    let message = format!(
        "{work} wants code for the CPU, and this fqc was built without the feature `cpu`: use one \
         that was built with it (`cargo build --release -p fqc`, which needs LLVM 22)"
    );
    Failure::new(Exit::CannotRun, message)
}

/// Refuses a plan.
pub fn generate(_plan: &Plan, _levels: &[Level]) -> Result<TargetImage, Failure> {
    Err(missing("running a model that is not compiled"))
}

/// Of which none is made.
pub struct SharedCode;

impl SharedCode {
    pub fn new(_level: Level) -> Result<SharedCode, Failure> {
        Err(missing("calibration"))
    }

    pub fn generate(&mut self, _plan: &Plan) -> Result<TargetImage, Failure> {
        Err(missing("calibration"))
    }
}

/// What this machine reaches is measured with generated code.
pub fn rates(_level: Level, _threads: usize) -> Result<Option<Rates>, Failure> {
    Ok(None)
}
