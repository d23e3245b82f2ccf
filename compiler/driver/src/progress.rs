//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere. Everything goes
//! to standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Instant;

/// Progress of one stage with a known number of units.
pub struct Stage {
    bar: ProgressBar,
    name: &'static str,
    total: u64,
    plain: bool,
    start: Instant,
    /// Tenths already printed.
    shown: u64,
}

/// Where progress goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verbosity {
    Quiet,
    Normal,
}

/// Tells what is not as it might be expected, and what to do.
pub fn warn(message: &str) {
    eprintln!("warning: {message}");
}

impl Stage {
    pub fn new(name: &'static str, total: u64, verbosity: Verbosity) -> Stage {
        let terminal = std::io::stderr().is_terminal();
        let plain = verbosity == Verbosity::Normal && !terminal;
        let target = if verbosity == Verbosity::Normal && terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_message(name);
        Stage { bar, name, total, plain, start: Instant::now(), shown: 0 }
    }

    /// Notes that so many units were done before.
    pub fn skip(&mut self, units: u64) {
        self.bar.inc(units);
        self.shown = units * 10 / self.total.max(1);
    }

    /// Notes that one more unit is done.
    pub fn step(&mut self) {
        self.bar.inc(1);
        let tenths = self.bar.position() * 10 / self.total.max(1);
        if self.plain && tenths > self.shown {
            self.shown = tenths;
            let seconds = self.start.elapsed().as_secs_f64();
            eprintln!("{}: {}/{} after {seconds:.1} s", self.name, self.bar.position(), self.total);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
