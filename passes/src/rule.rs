//! Local rewrites and the driver that applies them. The law of rules: the right side is never
//! costlier; it is right for every match, not only because a more specific rule ran first; there are
//! no commutativity rules, constants are put right once; a node with other readers is not absorbed;
//! a rule that changes numbers says by how much.

use crate::facts::Facts;
use crate::run::{Pass, PassCx, PassError};
use fqc_ir::{Graph, NodeId, Patch};

/// A local rewrite. It reads; only the driver writes.
pub struct Rule {
    pub name: &'static str,
    /// What to do about this node, if anything.
    pub find: fn(&Graph, NodeId) -> Option<Patch>,
}

/// A pass that is a set of rules.
#[derive(Clone, Copy)]
pub struct RulePass {
    pub name: &'static str,
    pub rules: &'static [Rule],
    pub needs: Facts,
    pub gives: Facts,
    pub breaks: Facts,
}

impl Pass for RulePass {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Facts {
        self.needs
    }

    fn gives(&self) -> Facts {
        self.gives
    }

    fn breaks(&self) -> Facts {
        self.breaks
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), PassError> {
        apply_rules(graph, self.rules, cx)
    }
}

/// Applies rules until none matches: rounds over the nodes in topological order, each node until it
/// is quiet and its replacement right after it.
pub fn apply_rules(graph: &mut Graph, rules: &[Rule], cx: &mut PassCx) -> Result<(), PassError> {
    let mut left = 16 * graph.len() + 1000;
    loop {
        let order = graph.topological().ok_or(PassError::Cycle)?;
        let before = left;
        for id in order {
            let mut stack = vec![id];
            while let Some(id) = stack.pop() {
                if !graph.contains(id) {
                    continue;
                }
                let Some((rule, patch)) = first_match(graph, rules, id) else { continue };
                if !cx.take_patch() {
                    return Ok(());
                }
                if left == 0 {
                    return Err(PassError::Limit { counts: cx.counts_text() });
                }
                left -= 1;
                stack.extend(apply(graph, rule, id, patch)?.into_iter().rev());
                stack.push(id);
                cx.count(rule.name);
            }
        }
        if left == before {
            return Ok(());
        }
    }
}

fn first_match<'a>(graph: &Graph, rules: &'a [Rule], id: NodeId) -> Option<(&'a Rule, Patch)> {
    rules.iter().find_map(|rule| (rule.find)(graph, id).map(|patch| (rule, patch)))
}

fn apply(
    graph: &mut Graph,
    rule: &Rule,
    id: NodeId,
    patch: Patch,
) -> Result<Vec<NodeId>, PassError> {
    let node = graph.node(id).name.clone();
    patch.apply(graph).map_err(|error| PassError::Patch {
        rule: rule.name,
        node,
        error: error.to_string(),
    })
}
