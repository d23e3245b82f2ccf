//! Canonicalisation: one spelling for everything that later passes look for. Rules that never cost,
//! applied together until none matches, and the sharing of equal nodes.

mod arith;
mod broadcast;
mod cast;
mod cse;
mod fold_const;
mod identity;
mod position;
mod reshape;
mod sink_reshape;
mod slice;
mod transpose;

use crate::facts::Facts;
use crate::rule::{Rule, RulePass};
use crate::run::Pass;
pub use cse::Cse;

/// All rules of canonicalisation; cheap ones that match often come first.
pub static RULES: [Rule; 19] = [
    Rule { name: "fold-const", find: fold_const::find },
    Rule { name: "identity", find: identity::find },
    Rule { name: "constant-right", find: arith::constant_right },
    Rule { name: "neutral-element", find: arith::neutral },
    Rule { name: "square", find: arith::square },
    Rule { name: "div-by-power-of-two", find: arith::div_by_power_of_two },
    Rule { name: "one-over", find: arith::one_over },
    Rule { name: "select-const", find: arith::select_const },
    Rule { name: "cast-of-cast", find: cast::of_cast },
    Rule { name: "reshape-of-reshape", find: reshape::of_reshape },
    Rule { name: "transpose-of-transpose", find: transpose::of_transpose },
    Rule { name: "transpose-of-ones", find: transpose::of_ones },
    Rule { name: "broadcast-of-broadcast", find: broadcast::of_broadcast },
    Rule { name: "sink-broadcast", find: broadcast::sink },
    Rule { name: "slice-of-slice", find: slice::of_slice },
    Rule { name: "slice-of-concat", find: slice::of_concat },
    Rule { name: "position-compared", find: position::compared },
    Rule { name: "position-looked-up", find: position::looked_up },
    Rule { name: "sink-reshape", find: sink_reshape::find },
];

/// The rules above as a pass.
pub const CANON: RulePass = RulePass {
    name: "canon",
    rules: &RULES,
    needs: Facts::NONE,
    gives: Facts::CANONICAL,
    breaks: Facts::NONE,
};

/// Canonicalises and shares equal nodes; constants are shared first, so that nothing is folded twice.
pub fn passes() -> Vec<Box<dyn Pass>> {
    vec![Box::new(Cse), Box::new(CANON), Box::new(Cse), Box::new(CANON)]
}
