//! Facts about a graph that passes need, give and break. Every fact has a check, which runs after
//! each pass that gives or keeps it; a fact without one cannot be declared.

use crate::clean;
use crate::fuse::linear;
use fqc_ir::{Graph, NodeId, Op};
use std::fmt;
use std::ops::BitOr;

/// A set of facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts(u32);

/// A fact and what makes it true.
pub struct Fact {
    pub name: &'static str,
    pub facts: Facts,
    /// The reason why the fact does not hold at a node, as a sentence.
    pub check: fn(&Graph, NodeId) -> Result<(), String>,
}

impl Facts {
    pub const NONE: Facts = Facts(0);
    /// Every node but the inputs is read by something.
    pub const NO_DEAD: Facts = Facts(1);
    /// No rule of canonicalisation matches anywhere.
    pub const CANONICAL: Facts = Facts(2);
    /// Every product with a constant matrix is a `gemm`.
    pub const LINEAR: Facts = Facts(4);

    pub fn has(self, other: Facts) -> bool {
        self.0 & other.0 == other.0
    }

    /// These facts without the others.
    pub fn without(self, other: Facts) -> Facts {
        Facts(self.0 & !other.0)
    }

    /// The facts of the set, each with its check.
    pub fn each(self) -> impl Iterator<Item = &'static Fact> {
        FACTS.iter().filter(move |f| self.has(f.facts))
    }
}

impl BitOr for Facts {
    type Output = Facts;
    fn bitor(self, other: Facts) -> Facts {
        Facts(self.0 | other.0)
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fact) in self.each().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, fact.name)?;
        }
        Ok(())
    }
}

/// All facts.
pub static FACTS: [Fact; 3] = [
    Fact { name: "no-dead", facts: Facts::NO_DEAD, check: not_dead },
    Fact { name: "canonical", facts: Facts::CANONICAL, check: canonical },
    Fact { name: "linear", facts: Facts::LINEAR, check: linear },
];

fn not_dead(graph: &Graph, id: NodeId) -> Result<(), String> {
    if graph.use_count(id) > 0 || matches!(graph.node(id).op, Op::Input(_)) {
        return Ok(());
    }
    Err("nothing reads it".to_owned())
}

fn canonical(graph: &Graph, id: NodeId) -> Result<(), String> {
    match clean::RULES.iter().find(|rule| (rule.find)(graph, id).is_some()) {
        Some(rule) => Err(format!("rule `{}` still matches", rule.name)),
        None => Ok(()),
    }
}

fn linear(graph: &Graph, id: NodeId) -> Result<(), String> {
    match linear::weights(graph, id) {
        Some(_) => Err("a product with a constant matrix that is no `gemm`".to_owned()),
        None => Ok(()),
    }
}
