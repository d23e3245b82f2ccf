//! Random valid graphs over every operation, the same for the same seed on every machine: food for
//! round trips of the text, for passes (interpreter before = interpreter after) and for backends.
//!
//! Sizes named `b` and `s` must be bound to at least 1. Indices are constants in range, so every
//! graph runs. Functions with poles read operands that stay away from them.

mod grow;

use crate::data::Const;
use crate::graph::Graph;
use crate::op::Op;
use crate::text;
use crate::types::Elem;
use grow::Grower;

/// A sequence of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    pub fn flip(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of the items, which must not be none.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// A valid graph of at least `nodes` nodes, all of which some output depends on.
pub fn random_graph(seed: u64, nodes: usize) -> Graph {
    Grower::new(seed).graph(nodes)
}

/// Values for the inputs of a graph under a binding of its symbols, in order: floats in -2..2,
/// integers in 0..4. `None` if a size has no value.
pub fn random_inputs(
    graph: &Graph,
    binding: &dyn Fn(&str) -> Option<i64>,
    seed: u64,
) -> Option<Vec<(String, Const)>> {
    let mut out = Vec::new();
    for (i, &id) in graph.inputs().iter().enumerate() {
        let node = graph.node(id);
        let sizes = node.ty.shape.iter().map(|d| usize::try_from(d.eval(binding)?).ok());
        let shape = sizes.collect::<Option<Vec<usize>>>()?;
        let elem = node.ty.elem;
        let (lo, hi) = if elem.is_float() { (-2.0, 2.0) } else { (0.0, 3.0) };
        let value = text::random(elem, shape, seed.wrapping_add(i as u64), lo, hi);
        out.push((node.name.clone(), Const { quant: node.ty.quant.clone(), ..value }));
    }
    Some(out)
}

/// The kinds of operations in a graph, for tests of coverage.
pub fn mnemonics(graph: &Graph) -> Vec<&'static str> {
    let mut names: Vec<_> = graph.ids().iter().map(|&id| graph.node(id).op.mnemonic()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A constant of random values; floats in -1..1, integers in 0..4.
fn random_const(rng: &mut Rng, elem: Elem, shape: Vec<usize>) -> Op {
    let (lo, hi) = if elem.is_float() { (-1.0, 1.0) } else { (0.0, 3.0) };
    Op::Const(text::random(elem, shape, rng.bits(), lo, hi))
}

#[cfg(test)]
mod tests;
