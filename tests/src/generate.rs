//! Seeded random inputs that a graph accepts: floats from the normal distribution, indices within
//! the tables they are looked up in, masks of ones with some zeros at the end.

use fqc_interp::{Binding, Tensor};
use fqc_ir::{Elem, Graph, NodeId, Op};
use std::collections::BTreeSet;

/// SplitMix64: short, seeded by any number, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// In `0..1`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mean 0, deviation 1.
    pub fn normal(&mut self) -> f64 {
        let (radius, turn) = ((-2.0 * (1.0 - self.unit()).ln()).sqrt(), self.unit());
        radius * (std::f64::consts::TAU * turn).cos()
    }
}

/// A tensor of independent normal values, rounded to `elem`.
pub fn normal(elem: Elem, shape: &[usize], random: &mut Random) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|_| random.normal()).collect();
    Tensor::from_floats(elem, shape, &values)
}

/// A tensor of integers in `0..n`.
pub fn below(elem: Elem, shape: &[usize], n: u64, random: &mut Random) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<i64> = (0..count).map(|_| random.below(n) as i64).collect();
    Tensor::from_ints(elem, shape, &values)
}

/// Random values for every input of the graph at these sizes. Panics if a size is not bound.
pub fn inputs(graph: &Graph, sizes: &Binding, seed: u64) -> Vec<(String, Tensor)> {
    let mut random = Random::new(seed);
    let one = |&id: &NodeId| {
        let node = graph.node(id);
        let shape = sizes.shape(&node.ty.shape).expect("the caller binds every size");
        let elem = node.ty.elem;
        let tensor = if elem.is_float() {
            normal(elem, &shape, &mut random)
        } else if elem == Elem::Bool || node.name.contains("mask") {
            mask(elem, &shape, &mut random)
        } else {
            below(elem, &shape, table_size(graph, id, sizes).unwrap_or(4), &mut random)
        };
        (node.name.clone(), tensor)
    };
    graph.inputs().iter().map(one).collect()
}

/// Rows of ones; each but the first ends in some zeros.
fn mask(elem: Elem, shape: &[usize], random: &mut Random) -> Tensor {
    let len = shape.last().copied().unwrap_or(1).max(1);
    let rows = shape.iter().product::<usize>() / len;
    let mut values = Vec::with_capacity(rows * len);
    for row in 0..rows {
        let zeros = if row == 0 { 0 } else { random.below(len as u64) as usize };
        values.extend((0..len).map(|i| i64::from(i < len - zeros)));
    }
    Tensor::from_ints(elem, shape, &values)
}

/// The smallest axis that the value is an index into, directly or through operations that keep its
/// elements.
fn table_size(graph: &Graph, input: NodeId, sizes: &Binding) -> Option<u64> {
    let (mut seen, mut stack, mut smallest) = (BTreeSet::new(), vec![input], None::<u64>);
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        for (user, slot) in graph.users(id) {
            let axis = match &graph.node(user).op {
                Op::Gather { axis } | Op::GatherElements { axis } if slot == 1 => *axis,
                Op::Cast(_)
                | Op::Reshape(_)
                | Op::Transpose(_)
                | Op::Broadcast(_)
                | Op::Slice { .. }
                | Op::Concat { .. } => {
                    stack.push(user);
                    continue;
                }
                _ => continue,
            };
            let table = graph.operands(user)[0];
            let size = sizes.eval(&graph.node(table).ty.shape[axis]).unwrap_or(0).max(0) as u64;
            smallest = Some(smallest.map_or(size, |s| s.min(size)));
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;
    use fqc_interp::evaluate;
    use fqc_ir::{Const, Dim, Type};

    #[test]
    fn indices_stay_inside_their_tables() {
        let mut g = Graph::new("t");
        let shape = vec![Dim::sym("n"), Dim::from(50i64)];
        let ids = g.add("ids", Op::Input(Type::new(Elem::I32, shape)), &[]).expect("an input");
        let table = g
            .add("table", Op::Const(Const::f32(vec![3, 1], &[1.0, 2.0, 3.0])), &[])
            .expect("a constant");
        let wide = g.add("wide", Op::Cast(Elem::I64), &[ids]).expect("well typed");
        let y = g.add("y", Op::Gather { axis: 0 }, &[table, wide]).expect("well typed");
        g.add_output("y", y);
        let sizes: Binding = [("n", 2)].into_iter().collect();
        let given = inputs(&g, &sizes, 1);
        assert_eq!(given, inputs(&g, &sizes, 1));
        assert_ne!(given, inputs(&g, &sizes, 2));
        let out = evaluate(&g, &given).expect("the indices are inside");
        let distinct: BTreeSet<u64> = out[0].1.to_f64().into_iter().map(|v| v as u64).collect();
        assert_eq!(distinct.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn normal_values_have_mean_zero_and_deviation_one() {
        let v = normal(Elem::F64, &[20_000], &mut Random::new(7)).to_f64();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let square = v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.03, "{mean} {square}");
    }
}
