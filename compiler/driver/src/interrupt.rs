//! Ctrl-C and termination: long work looks at a flag between steps and ends in order, so that
//! nothing half written stays; a second signal ends the process at once.

use crate::exit::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Which signals have come.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    any: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches the process's signals from now on.
    pub fn install() -> std::io::Result<Interrupt> {
        let interrupt = Interrupt::default();
        for (signal, code) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
            flag::register_conditional_shutdown(signal, code as i32, interrupt.any.clone())?;
            flag::register(signal, interrupt.any.clone())?;
        }
        flag::register(SIGTERM, interrupt.terminate.clone())?;
        Ok(interrupt)
    }

    /// An error if a signal has come.
    pub fn check(&self) -> Result<(), Failure> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        let exit = if self.terminate.load(Ordering::Relaxed) {
            Exit::Terminated
        } else {
            Exit::Interrupted
        };
        Err(Failure::new(exit, "interrupted; nothing was written"))
    }

    /// The flag, for the runtime to look at between steps.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.any.clone()
    }
}
