//! The pass, and the one loop that runs passes: check what it needs, run, settle the facts, verify
//! the graph (in every build), show, time. A pass that fails leaves a dump of the graph before it,
//! which is a test file.

use crate::facts::Facts;
use fqc_ir::text::print;
use fqc_ir::verify::Fault;
use fqc_ir::{Graph, verify};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A step of the pipeline, with its contract.
pub trait Pass {
    /// Name in `--print-after`, reports and messages.
    fn name(&self) -> &'static str;
    /// Facts it relies on. Checked before it runs.
    fn needs(&self) -> Facts {
        Facts::NONE
    }
    /// Facts it establishes. Checked after it ran, and kept for later passes.
    fn gives(&self) -> Facts {
        Facts::NONE
    }
    /// Facts it may destroy. All others must survive, and are checked again.
    fn breaks(&self) -> Facts {
        Facts::NONE
    }
    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), PassError>;
}

/// Why a pass stopped; each of these is a fault of fqc, not of the model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PassError {
    #[error("rule `{rule}` at `{node}` made a patch that does not fit: {error}")]
    Patch { rule: &'static str, node: String, error: String },
    #[error("still rewriting after 16 times the number of nodes: {counts}")]
    Limit { counts: String },
    #[error("the graph has a cycle")]
    Cycle,
    #[error("needs {facts}:\n{listing}")]
    Needs { facts: String, listing: String },
    #[error("left the graph broken:\n{0}")]
    Verify(String),
    #[error("{0}")]
    Internal(String),
}

/// A failed pass, and the graph before it as a test file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("pass `{pass}`: {error}")]
pub struct Failure {
    pub pass: &'static str,
    pub error: PassError,
    pub dump: String,
}

/// What a pass may count and how many rewrites it may still make.
#[derive(Clone, Debug, Default)]
pub struct PassCx {
    counts: BTreeMap<&'static str, usize>,
    /// Rewrites left before everything stops; `None` for no limit.
    patches_left: Option<usize>,
    stopped: bool,
}

impl PassCx {
    /// Notes that a rule was applied.
    pub fn count(&mut self, rule: &'static str) {
        *self.counts.entry(rule).or_insert(0) += 1;
    }

    /// Asks to make one more rewrite.
    pub fn take_patch(&mut self) -> bool {
        match &mut self.patches_left {
            None => true,
            Some(0) => {
                self.stopped = true;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// The rules with their counts.
    pub fn counts_text(&self) -> String {
        let each: Vec<String> = self.counts.iter().map(|(rule, n)| format!("{rule} {n}")).collect();
        each.join(", ")
    }
}

/// What one pass did.
#[derive(Clone, Debug)]
pub struct PassReport {
    pub pass: &'static str,
    /// Rules applied, with their counts.
    pub counts: BTreeMap<&'static str, usize>,
    /// Nodes after the pass.
    pub nodes: usize,
    pub time: Duration,
}

/// Called with the name of a pass and the graph it left.
pub type Hook<'a> = Box<dyn FnMut(&str, &Graph) + 'a>;

/// Runs passes over one graph and remembers which facts hold.
#[derive(Default)]
pub struct Runner<'a> {
    facts: Facts,
    after: Option<Hook<'a>>,
    stop_at: Option<usize>,
    stopped: bool,
    reports: Vec<PassReport>,
}

impl<'a> Runner<'a> {
    pub fn new() -> Self {
        Runner::default()
    }

    /// Calls `hook` after each pass.
    pub fn after_each(mut self, hook: Hook<'a>) -> Self {
        self.after = Some(hook);
        self
    }

    /// Stops the pipeline after this many rewrites, to find the one that does harm.
    pub fn stop_at_patch(mut self, patches: usize) -> Self {
        self.stop_at = Some(patches);
        self
    }

    /// Whether the limit of rewrites stopped the pipeline.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What each pass did so far.
    pub fn reports(&self) -> &[PassReport] {
        &self.reports
    }

    /// The one loop.
    pub fn run(&mut self, graph: &mut Graph, passes: &[Box<dyn Pass>]) -> Result<(), Failure> {
        for pass in passes {
            if self.stopped {
                return Ok(());
            }
            let before = graph.clone();
            self.step(graph, pass.as_ref()).map_err(|error| Failure {
                pass: pass.name(),
                error,
                dump: format!("test pass {}\n\n{}", pass.name(), print(&before)),
            })?;
            if let Some(hook) = &mut self.after {
                hook(pass.name(), graph);
            }
        }
        Ok(())
    }

    fn step(&mut self, graph: &mut Graph, pass: &dyn Pass) -> Result<(), PassError> {
        let start = Instant::now();
        let missing = pass.needs().without(self.facts);
        if !missing.is_empty() {
            verify::verify(graph, missing).map_err(|faults| PassError::Needs {
                facts: missing.to_string(),
                listing: faulty_lines(graph, &faults),
            })?;
        }
        let mut cx = PassCx { patches_left: self.stop_at, ..PassCx::default() };
        pass.run(graph, &mut cx)?;
        self.stopped = cx.stopped;
        self.stop_at = cx.patches_left;
        let gives = if self.stopped { Facts::NONE } else { pass.gives() };
        self.facts = self.facts.without(pass.breaks()) | gives;
        verify::verify(graph, self.facts)
            .map_err(|faults| PassError::Verify(faulty_lines(graph, &faults)))?;
        let (counts, nodes) = (cx.counts, graph.len());
        self.reports.push(PassReport { pass: pass.name(), counts, nodes, time: start.elapsed() });
        Ok(())
    }
}

/// The faults, each under its line of the graph; sound lines left out.
fn faulty_lines(graph: &Graph, faults: &[Fault]) -> String {
    let text = verify::render(graph, faults);
    let lines: Vec<&str> = text.lines().collect();
    let is_fault = |i: usize| lines.get(i).is_some_and(|l| l.trim_start().starts_with("^ error"));
    let whole = |l: &str| l.starts_with("error");
    let shown = (0..lines.len()).filter(|&i| is_fault(i) || is_fault(i + 1) || whole(lines[i]));
    shown.map(|i| lines[i]).collect::<Vec<_>>().join("\n")
}
