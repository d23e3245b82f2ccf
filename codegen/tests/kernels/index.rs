//! Gathers, scatters, and the kernels that read nothing.

use crate::harness::*;
use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::op::ScatterOp;
use fqc_ir::plan::Kernel;
use fqc_ir::types::Elem;

#[test]
fn rows_are_gathered() {
    for (n, post) in [(1, 1), (5, 7), (9, 16), (30, 33), (4, 384)] {
        for elem in [Elem::F32, Elem::U8, Elem::I64] {
            let mut p = Problem::default();
            let data = p.input(elem, &[dim("pre"), dim("n"), dim("post")]);
            let index = p.input(Elem::I64, &[dim("b"), dim("s")]);
            let y = p.output(elem, &[dim("pre"), dim("b"), dim("s"), dim("post")]);
            p.step(Kernel::Gather { axis: 1, index_rank: 2 }, vec![data, index], vec![y]);
            let size = elem.bits() as usize / 8;
            let bytes: Vec<u8> = (0..2 * n * post * size).map(|i| (i * 31 % 251) as u8).collect();
            let mut r = Random::new(n as u64);
            let at: Vec<i64> = (0..6).map(|_| r.below(2 * n) as i64 - n as i64).collect();
            let row = post * size;
            let want: Vec<u8> = (0..2)
                .flat_map(|pre| {
                    let bytes = &bytes;
                    at.iter().flat_map(move |&i| {
                        let i = (i + n as i64) as usize % n;
                        bytes[(pre * n + i) * row..][..row].to_vec()
                    })
                })
                .collect();
            let shape = [2, n, post];
            for out in p.run(&[(&shape, bytes.clone()), (&[2, 3], i64_bytes(&at))]) {
                assert_eq!(out[0], want, "{n} {post} {elem}");
            }
        }
    }
}

#[test]
fn an_index_out_of_range_is_reported() {
    for bad in [4i64, -5, i64::MAX, i64::MIN] {
        let mut p = Problem::default();
        let data = p.input(Elem::F32, &fixed(&[4, 8]));
        let index = p.input(Elem::I64, &[dim("s")]);
        let y = p.output(Elem::F32, &[dim("s"), Dim::from(8i64)]);
        p.step(Kernel::Gather { axis: 0, index_rank: 1 }, vec![data, index], vec![y]);
        let inputs: [(&[usize], Vec<u8>); 2] =
            [(&[4, 8], vec![0; 128]), (&[3], i64_bytes(&[0, 1, bad]))];
        let failed = p.try_run(&inputs).expect_err("the index is out of range");
        assert_eq!((failed.step, failed.status), (0, 1));
    }
}

#[test]
fn elements_are_gathered_and_scattered() {
    let shape = [5usize, 6, 7];
    for axis in 0..3 {
        let mut small = shape;
        small[axis] = 3;
        let mut r = Random::new(axis as u64);
        let count: usize = small.iter().product();
        let at: Vec<i64> = (0..count)
            .map(|_| r.below(shape[axis]) as i64 - (r.below(2) * shape[axis]) as i64)
            .collect();
        let data = r.floats(shape.iter().product(), 1.0);
        let updates = r.floats(count, 1.0);
        let place = |index: &[usize], i: i64| {
            let mut index = index.to_vec();
            index[axis] = (i + shape[axis] as i64) as usize % shape[axis];
            offset(&shape, &index)
        };
        let mut p = Problem::default();
        let x = p.input(Elem::F32, &fixed(&shape));
        let i = p.input(Elem::I64, &fixed(&small));
        let y = p.output(Elem::F32, &fixed(&small));
        p.step(Kernel::GatherElements { axis }, vec![x, i], vec![y]);
        let want: Vec<f32> =
            indices(&small).iter().zip(&at).map(|(index, &i)| data[place(index, i)]).collect();
        for out in p.run(&[(&shape, f32_bytes(&data)), (&small, i64_bytes(&at))]) {
            assert_eq!(to_f32(&out[0]), want);
        }
        for op in [ScatterOp::Set, ScatterOp::Add, ScatterOp::Mul, ScatterOp::Max, ScatterOp::Min] {
            let mut p = Problem::default();
            let i = p.input(Elem::I64, &fixed(&small));
            let u = p.input(Elem::F32, &fixed(&small));
            let y = p.output(Elem::F32, &fixed(&shape));
            let before = p.input(Elem::F32, &fixed(&shape));
            p.step(Kernel::Pointwise(Expr::arg(0)), vec![before], vec![y.clone()]);
            p.step(Kernel::ScatterElements { axis, op }, vec![i, u], vec![y]);
            let mut want = data.clone();
            for ((index, &i), &u) in indices(&small).iter().zip(&at).zip(&updates) {
                combine(op, &mut want[place(index, i)], u);
            }
            let inputs: [(&[usize], Vec<u8>); 3] = [
                (&small, i64_bytes(&at)),
                (&small, f32_bytes(&updates)),
                (&shape, f32_bytes(&data)),
            ];
            for out in p.run(&inputs) {
                assert_eq!(to_f32(&out[0]), want, "{axis} {op:?}");
            }
        }
    }
}

fn combine(op: ScatterOp, old: &mut f32, update: f32) {
    *old = match op {
        ScatterOp::Set => update,
        ScatterOp::Add => *old + update,
        ScatterOp::Mul => *old * update,
        ScatterOp::Max => old.max(update),
        ScatterOp::Min => old.min(update),
    };
}

#[test]
fn tuples_index_rows() {
    let (b, n, m, post) = (3usize, 4usize, 5usize, 9usize);
    let mut r = Random::new(6);
    let data = r.floats(b * n * m * post, 1.0);
    let tuples: Vec<[usize; 2]> = (0..b * 2).map(|_| [r.below(n), r.below(m)]).collect();
    let at: Vec<i64> = tuples.iter().flat_map(|t| [t[0] as i64, t[1] as i64 - m as i64]).collect();
    let mut p = Problem::default();
    let x = p.input(Elem::F32, &[dim("b"), dim("n"), Dim::from(m), dim("post")]);
    let i = p.input(Elem::I64, &[dim("b"), Dim::from(2i64), Dim::from(2i64)]);
    let y = p.output(Elem::F32, &[dim("b"), Dim::from(2i64), dim("post")]);
    p.step(Kernel::GatherNd { batch_dims: 1 }, vec![x, i], vec![y]);
    let want: Vec<f32> = tuples
        .iter()
        .enumerate()
        .flat_map(|(k, t)| data[(((k / 2) * n + t[0]) * m + t[1]) * post..][..post].to_vec())
        .collect();
    let shapes = ([b, n, m, post], [b, 2, 2]);
    for out in p.run(&[(&shapes.0, f32_bytes(&data)), (&shapes.1, i64_bytes(&at))]) {
        assert_eq!(to_f32(&out[0]), want);
    }
    let mut p = Problem::default();
    let i = p.input(Elem::I64, &[dim("k"), Dim::from(2i64)]);
    let u = p.input(Elem::F32, &[dim("k"), Dim::from(post)]);
    let y = p.output(Elem::F32, &fixed(&[n, m, post]));
    let old = p.input(Elem::F32, &fixed(&[n, m, post]));
    p.step(Kernel::Pointwise(Expr::arg(0)), vec![old], vec![y.clone()]);
    p.step(Kernel::ScatterNd { op: ScatterOp::Add }, vec![i, u], vec![y]);
    let updates = r.floats(tuples.len() * post, 1.0);
    let mut want = data[..n * m * post].to_vec();
    for (k, t) in tuples.iter().enumerate() {
        for j in 0..post {
            want[(t[0] * m + t[1]) * post + j] += updates[k * post + j];
        }
    }
    let k = tuples.len();
    let (index_shape, update_shape) = ([k, 2], [k, post]);
    let inputs: [(&[usize], Vec<u8>); 3] = [
        (&index_shape, i64_bytes(&at)),
        (&update_shape, f32_bytes(&updates)),
        (&[n, m, post], f32_bytes(&data[..n * m * post])),
    ];
    for out in p.run(&inputs) {
        assert_eq!(to_f32(&out[0]), want);
    }
}

#[test]
fn numbers_from_nothing() {
    let mut p = Problem::default();
    p.input(Elem::F32, &[dim("n"), dim("m")]);
    let count = p.output(Elem::I64, &[dim("n") * dim("m")]);
    let sizes = p.output(Elem::I64, &fixed(&[3]));
    p.step(Kernel::Iota, vec![], vec![count]);
    let values = vec![dim("n"), Dim::from(7i64), dim("n") * dim("m") + Dim::one()];
    p.step(Kernel::Dims(values), vec![], vec![sizes]);
    for out in p.run(&[(&[5, 9], vec![0; 180])]) {
        assert_eq!(to_i64(&out[0]), (0..45).collect::<Vec<i64>>());
        assert_eq!(to_i64(&out[1]), [5, 7, 46]);
    }
}
