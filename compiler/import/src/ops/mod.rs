//! The table of operators: ONNX name to the rule that rewrites a node into the IR's operations. One
//! short function an operator; the version of the opset is in the context where a meaning changed.

mod activation;
mod attention;
mod contrib;
mod index;
mod math;
mod nn;
mod norm;
mod quant;
mod reduce;
mod rotary;
mod shape;
mod slice;

use crate::builder::V;
use crate::cx::Cx;
use crate::error::Res;
use fqc_ir::{BinaryOp, UnaryOp};

/// Rewrites one node; the results are in the order of the node's outputs.
pub(crate) type OpFn = fn(&mut Cx<'_>) -> Res<Vec<V>>;

/// How an operator is imported.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    /// One operand, one IR operation of the same meaning.
    Unary(UnaryOp),
    Binary(BinaryOp),
    /// Any number of operands, combined from the left.
    Fold(BinaryOp),
    Fn(OpFn),
}

type Table = &'static [(&'static str, Rule)];

/// Operators of the standard domain.
const STANDARD: &[Table] = &[
    math::TABLE,
    activation::TABLE,
    shape::TABLE,
    slice::TABLE,
    index::TABLE,
    reduce::TABLE,
    nn::TABLE,
    norm::TABLE,
    attention::TABLE,
    rotary::TABLE,
    quant::TABLE,
];

/// The rule of an operator, if it is supported.
pub(crate) fn find(domain: &str, op: &str) -> Option<Rule> {
    let tables: &[Table] = match domain {
        "" => STANDARD,
        "com.microsoft" => &[contrib::TABLE],
        _ => return None,
    };
    tables.iter().flat_map(|t| t.iter()).find(|(name, _)| *name == op).map(|(_, rule)| *rule)
}

/// Domain and name of every operator.
#[cfg(test)]
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let standard = STANDARD.iter().flat_map(|t| t.iter()).map(|(name, _)| ("", *name));
    standard.chain(contrib::TABLE.iter().map(|(name, _)| ("com.microsoft", *name)))
}

impl Rule {
    pub fn apply(self, cx: &mut Cx<'_>) -> Res<Vec<V>> {
        match self {
            Rule::Unary(op) => {
                let x = cx.operand(0)?;
                Ok(vec![cx.unary(op, &x)?])
            }
            Rule::Binary(op) => {
                let (a, b) = (cx.operand(0)?, cx.operand(1)?);
                Ok(vec![cx.binary(op, &a, &b)?])
            }
            Rule::Fold(op) => Ok(vec![fold(cx, op)?]),
            Rule::Fn(run) => run(cx),
        }
    }
}

/// All operands combined from the left.
fn fold(cx: &mut Cx<'_>, op: BinaryOp) -> Res<V> {
    let all = cx.all()?;
    let mut total = all[0].clone();
    for v in &all[1..] {
        total = cx.binary(op, &total, v)?;
    }
    Ok(total)
}
