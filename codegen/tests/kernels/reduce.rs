//! Reductions, arg-reductions, running sums.

use crate::harness::*;
use fqc_ir::dim::Dim;
use fqc_ir::op::ReduceOp;
use fqc_ir::plan::{Kernel, View};
use fqc_ir::types::Elem;

/// `x` with the axes `order`, the last ones to be reduced.
fn ordered(x: &View, order: &[usize]) -> View {
    View {
        shape: order.iter().map(|&a| x.shape[a].clone()).collect(),
        strides: order.iter().map(|&a| x.strides[a].clone()).collect(),
        ..x.clone()
    }
}

fn reference(op: ReduceOp, values: &[f64]) -> f64 {
    match op {
        ReduceOp::Sum => values.iter().sum(),
        ReduceOp::Mean => values.iter().sum::<f64>() / values.len() as f64,
        ReduceOp::Prod => values.iter().product(),
        ReduceOp::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ReduceOp::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
    }
}

#[test]
fn reductions_along_any_axes() {
    let cases: [([usize; 3], &[usize], usize); 9] = [
        ([3, 5, 67], &[0, 1, 2], 2),
        ([3, 17, 33], &[0, 2, 1], 2),
        ([3, 17, 33], &[2, 0, 1], 1),
        ([2, 9, 16], &[1, 0, 2], 1),
        ([2, 9, 130], &[0, 1, 2], 0),
        ([7, 1, 31], &[0, 2, 1], 2),
        ([5, 1031, 1], &[0, 2, 1], 2),
        ([1, 8, 65], &[0, 2, 1], 2),
        ([4, 4, 4], &[0, 1, 2], 3),
    ];
    for (i, &op) in ReduceOp::ALL.iter().enumerate() {
        for (j, (shape, order, keep)) in cases.into_iter().enumerate() {
            let symbolic = (i + j) % 2 == 1;
            let dims = if symbolic { symbols("n", 3) } else { fixed(&shape) };
            let mut p = Problem::default();
            let x = p.input(Elem::F32, &dims);
            let view = ordered(&x, order);
            let y = p.output(Elem::F32, &view.shape[..keep]);
            p.step(Kernel::Reduce { op, keep }, vec![view], vec![y]);
            let count: usize = shape.iter().product();
            let scale = if op == ReduceOp::Prod { 1.3 } else { 3.0 };
            let data = Random::new(8).floats(count, scale);
            let kept: Vec<usize> = order[..keep].iter().map(|&a| shape[a]).collect();
            let reduced: Vec<usize> = order[keep..].iter().map(|&a| shape[a]).collect();
            let mut want = Vec::new();
            for outer in indices(&kept) {
                let mut values = Vec::new();
                for inner in indices(&reduced) {
                    let mut at = [0; 3];
                    let all = outer.iter().chain(&inner);
                    order.iter().zip(all).for_each(|(&a, &i)| at[a] = i);
                    values.push(f64::from(data[offset(&shape, &at)]));
                }
                want.push(reference(op, &values) as f32);
            }
            let what = format!("{op:?} {shape:?} {order:?} {keep}");
            for out in p.run(&[(&shape, f32_bytes(&data))]) {
                assert_close(&to_f32(&out[0]), &want, 2e-4, 1e-4, &what);
            }
        }
    }
}

#[test]
fn integer_and_nan_reductions() {
    let mut p = Problem::default();
    let x = p.input(Elem::I64, &[dim("b"), dim("n")]);
    let (sum, top) = (p.output(Elem::I64, &[dim("b")]), p.output(Elem::I64, &[dim("b")]));
    let reduce = |op| Kernel::Reduce { op, keep: 1 };
    p.step(reduce(ReduceOp::Sum), vec![x.clone()], vec![sum]);
    p.step(reduce(ReduceOp::Max), vec![x], vec![top]);
    let data: Vec<i64> = (0..66).map(|i| (i * 7919) % 101 - 50).collect();
    for out in p.run(&[(&[2, 33], i64_bytes(&data))]) {
        let sums: Vec<i64> = data.chunks(33).map(|c| c.iter().sum()).collect();
        let tops: Vec<i64> = data.chunks(33).map(|c| *c.iter().max().expect("33")).collect();
        assert_eq!((to_i64(&out[0]), to_i64(&out[1])), (sums, tops));
    }
    let mut p = Problem::default();
    let x = p.input(Elem::F32, &[dim("n")]);
    let y = p.output(Elem::F32, &[]);
    p.step(Kernel::Reduce { op: ReduceOp::Max, keep: 0 }, vec![x], vec![y]);
    let mut data = vec![1.0f32; 50];
    data[13] = f32::NAN;
    for out in p.run(&[(&[50], f32_bytes(&data))]) {
        assert!(to_f32(&out[0])[0].is_nan());
    }
}

#[test]
fn index_of_the_extreme() {
    for n in SIZES {
        let data: Vec<f32> = {
            let mut r = Random::new(n as u64);
            (0..4 * n).map(|_| r.below(5) as f32).collect()
        };
        for (largest, last) in [(true, false), (true, true), (false, false), (false, true)] {
            let mut p = Problem::default();
            let x = p.input(Elem::F32, &[dim("b"), dim("n")]);
            let y = p.output(Elem::I64, &[dim("b")]);
            p.step(Kernel::ArgReduce { largest, last }, vec![x], vec![y]);
            let want: Vec<i64> = data
                .chunks(n)
                .map(|row| {
                    let fold = |a: f32, &b: &f32| if largest { a.max(b) } else { a.min(b) };
                    let best = row.iter().fold(row[0], fold);
                    let found = |v: &f32| *v == best;
                    let index =
                        if last { row.iter().rposition(found) } else { row.iter().position(found) };
                    index.expect("the extreme is there") as i64
                })
                .collect();
            for out in p.run(&[(&[4, n], f32_bytes(&data))]) {
                assert_eq!(to_i64(&out[0]), want, "{n} {largest} {last}");
            }
        }
    }
}

#[test]
fn running_sums() {
    for n in SIZES {
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut p = Problem::default();
            let shape = [dim("b"), Dim::from(n)];
            let x = p.input(Elem::I64, &shape);
            let y = p.output(Elem::I64, &shape);
            p.step(Kernel::CumSum { exclusive, reverse }, vec![x], vec![y]);
            let data: Vec<i64> = (0..3 * n as i64).map(|i| i * i % 13 - 4).collect();
            let want: Vec<i64> = data
                .chunks(n)
                .flat_map(|row| {
                    (0..n).map(move |i| {
                        let range = match (exclusive, reverse) {
                            (false, false) => 0..i + 1,
                            (true, false) => 0..i,
                            (false, true) => i..n,
                            (true, true) => i + 1..n,
                        };
                        row[range].iter().sum::<i64>()
                    })
                })
                .collect();
            for out in p.run(&[(&[3, n], i64_bytes(&data))]) {
                assert_eq!(to_i64(&out[0]), want, "{n} {exclusive} {reverse}");
            }
        }
    }
}
