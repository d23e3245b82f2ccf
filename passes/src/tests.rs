//! Contracts of passes are kept by the runner: what a pass needs, gives and leaves behind is checked,
//! rewriting ends, and rewrites can be counted out.

use crate::facts::Facts;
use crate::rule::{Rule, RulePass};
use crate::run::{Failure, Pass, Runner};
use fqc_ir::text::{Blobs, parse, print};
use fqc_ir::{BinaryOp, Graph, NodeId, Op, Patch, UnaryOp};

const TEXT: &str = "graph @t {
  %x: f32[b] = input
  %y: f32[b] = neg %x
  %z: f32[b] = reshape %y {shape=[b]}
  return %z as z
}
";

fn graph() -> Graph {
    parse(TEXT, &Blobs::new()).expect("the test's graph is well formed")
}

fn pass(name: &'static str, rules: &'static [Rule]) -> RulePass {
    RulePass { name, rules, needs: Facts::NONE, gives: Facts::NONE, breaks: Facts::NONE }
}

fn run(runner: Runner, graph: &mut Graph, pass: RulePass) -> Result<(), Failure> {
    let passes: Vec<Box<dyn Pass>> = vec![Box::new(pass)];
    let mut runner = runner;
    runner.run(graph, &passes)
}

fn message(pass: RulePass) -> String {
    let failure = run(Runner::new(), &mut graph(), pass).expect_err("the pass breaks its contract");
    assert!(failure.dump.starts_with(&format!("test pass {}\n\ngraph @t {{\n", pass.name)));
    failure.to_string()
}

/// Replaces `neg` by an operation, for ever if that is `neg`.
fn replace(graph: &Graph, id: NodeId, op: Op, reads: usize) -> Option<Patch> {
    let Op::Unary(UnaryOp::Neg) = graph.node(id).op else { return None };
    let x = graph.operand(id, 0)?;
    let mut patch = Patch::new();
    let new = patch.add(&graph.node(id).name, op, &vec![x.into(); reads]);
    patch.replace(id, new);
    Some(patch)
}

#[test]
fn what_a_pass_needs_is_checked_before_it_runs() {
    let canonical = RulePass { needs: Facts::CANONICAL, ..pass("early", &[]) };
    assert_eq!(
        message(canonical),
        "pass `early`: needs canonical:\n  %z: f32[b] = reshape %y {shape=[b]}\n  \
         ^ error: `reshape` changes nothing (`canonical`)"
    );
}

#[test]
fn what_a_pass_gives_is_checked_after_it_ran() {
    let liar = RulePass { gives: Facts::CANONICAL, ..pass("liar", &[]) };
    assert!(message(liar).starts_with("pass `liar`: left the graph broken:\n"));
}

#[test]
fn a_patch_of_another_type_is_refused_with_the_rule_s_name() {
    static RULES: [Rule; 1] =
        [Rule { name: "to-bool", find: |g, id| replace(g, id, Op::Unary(UnaryOp::IsNan), 1) }];
    assert_eq!(
        message(pass("typed", &RULES)),
        "pass `typed`: rule `to-bool` at `y` made a patch that does not fit: `y` is f32[b] and would \
         become bool[b]"
    );
    static BROKEN: [Rule; 1] =
        [Rule { name: "two-operands", find: |g, id| replace(g, id, Op::Unary(UnaryOp::Neg), 2) }];
    assert!(message(pass("arity", &BROKEN)).contains("rule `two-operands` at `y`"));
}

#[test]
fn rules_that_never_end_are_stopped() {
    static RULES: [Rule; 1] =
        [Rule { name: "again", find: |g, id| replace(g, id, Op::Unary(UnaryOp::Neg), 1) }];
    assert_eq!(
        message(pass("endless", &RULES)),
        "pass `endless`: still rewriting after 16 times the number of nodes: again 1048"
    );
}

#[test]
fn rewriting_stops_at_a_number_of_patches() {
    static RULES: [Rule; 2] = [
        Rule { name: "double", find: |g, id| replace(g, id, Op::Binary(BinaryOp::Add), 2) },
        Rule { name: "never", find: |_, _| None },
    ];
    for (patches, stopped) in [(0, true), (1, false)] {
        let mut graph = graph();
        let mut runner = Runner::new().stop_at_patch(patches);
        let passes: Vec<Box<dyn Pass>> = vec![Box::new(pass("count", &RULES))];
        runner.run(&mut graph, &passes).expect("the rules are sound");
        assert_eq!(runner.stopped(), stopped);
        assert_eq!(print(&graph) == TEXT, stopped);
    }
}

#[test]
fn the_hook_sees_each_pass() {
    let mut seen = Vec::new();
    {
        let mut runner = Runner::new()
            .after_each(Box::new(|name, graph| seen.push((name.to_owned(), graph.len()))));
        runner.run(&mut graph(), &crate::clean::passes()).expect("the rules are sound");
    }
    assert_eq!(seen.first(), Some(&("cse".to_owned(), 3)));
    assert_eq!(seen.last(), Some(&("canon".to_owned(), 2)));
}
