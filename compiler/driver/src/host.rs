//! Code for this machine's CPU: what calibration and comparison run, and what goes into files for CPUs.
//! This is the border to the CPU backend; built without the feature `cpu`, `no_host.rs` is in its place.

use crate::exit::{Exit, Failure};
use crate::rates::{CopyRate, Rates};
use fqbin::{Level, TargetImage};
use fqc_codegen::cpu::ceiling::{Ceiling, Unit};
use fqc_codegen::cpu::{self, CpuError};
use fqc_ir::plan::Plan;
use std::time::Duration;

/// What generates the code, if anything does.
pub const GENERATOR: Option<&str> = Some("LLVM 22");

/// Time for each rate.
const BUDGET: Duration = Duration::from_millis(60);

/// Bytes that copies are measured with.
const SIZES: [usize; 7] = [1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28];

/// Refuses `work`, which wants code for the CPU, where nothing generates it.
pub fn wants(_work: &str) -> Result<(), Failure> {
    Ok(())
}

/// A plan's image, with code for some levels.
pub fn generate(plan: &Plan, levels: &[Level]) -> Result<TargetImage, Failure> {
    cpu::generate(plan, levels).map_err(|e| refused(&e))
}

/// Code of one level that several plans share.
pub struct SharedCode(cpu::SharedCode);

impl SharedCode {
    pub fn new(level: Level) -> Result<SharedCode, Failure> {
        Ok(SharedCode(cpu::SharedCode::new(level)))
    }

    /// The image of a plan; its code holds that of those before too.
    pub fn generate(&mut self, plan: &Plan) -> Result<TargetImage, Failure> {
        self.0.generate(plan).map_err(|e| refused(&e))
    }
}

/// What this machine reaches at a level, measured with generated code.
pub fn rates(level: Level, threads: usize) -> Result<Option<Rates>, Failure> {
    let ceiling = Ceiling::new(level).map_err(Failure::internal)?;
    let rate = |unit| ceiling.rate(unit, threads, BUDGET);
    let copy = |bytes| CopyRate { bytes, gb_s: ceiling.copy(bytes, threads, BUDGET) };
    Ok(Some(Rates {
        codes_gops: rate(Unit::Codes),
        bf16_gops: rate(Unit::Bf16),
        f32_gops: rate(Unit::F32),
        copies: SIZES.map(copy).into(),
    }))
}

fn refused(error: &CpuError) -> Failure {
    Failure::new(Exit::Model, error.to_string())
}
