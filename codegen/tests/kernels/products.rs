//! Batched products of computed values.

use crate::harness::*;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Kernel, View};
use fqc_ir::types::Elem;

/// The last two axes swapped.
fn turned(v: &View) -> View {
    let mut v = v.clone();
    let n = v.shape.len();
    v.shape.swap(n - 2, n - 1);
    v.strides.swap(n - 2, n - 1);
    v
}

#[test]
fn products_of_every_layout() {
    let cases =
        [(1, 1, 1), (3, 7, 5), (8, 16, 32), (17, 33, 31), (50, 65, 40), (49, 300, 9), (2, 64, 128)];
    for (case, (m, n, k)) in cases.into_iter().enumerate() {
        for layout in 0..8 {
            let symbolic = (case + layout) % 2 == 1;
            let size = |name: &str, v: usize| if symbolic { dim(name) } else { Dim::from(v) };
            let (dm, dn, dk) = (size("m", m), size("n", n), size("k", k));
            let mut p = Problem::default();
            let flip = |bit: usize| layout >> bit & 1 == 1;
            let pair = |a: &Dim, b: &Dim, flip: bool| {
                if flip { [b.clone(), a.clone()] } else { [a.clone(), b.clone()] }
            };
            let shape = |[x, y]: [Dim; 2]| vec![dim("b"), x, y];
            let a = p.input(Elem::F32, &shape(pair(&dm, &dk, flip(0))));
            let b = p.input(Elem::F32, &shape(pair(&dk, &dn, flip(1))));
            let y = p.output(Elem::F32, &shape(pair(&dm, &dn, flip(2))));
            let view = |v: View, flip: bool| if flip { turned(&v) } else { v };
            let args = vec![view(a, flip(0)), view(b, flip(1))];
            p.step(Kernel::MatMul, args, vec![view(y, flip(2))]);
            let mut r = Random::new((m * n * k) as u64);
            let (x, w) = (r.floats(2 * m * k, 1.0), r.floats(2 * k * n, 1.0));
            let at = |batch: usize, rows: usize, cols: usize, i: usize, j: usize, flip: bool| {
                batch * rows * cols + if flip { j * rows + i } else { i * cols + j }
            };
            let mut want = vec![0f32; 2 * m * n];
            for batch in 0..2 {
                for i in 0..m {
                    for j in 0..n {
                        let sum: f64 = (0..k)
                            .map(|q| {
                                f64::from(x[at(batch, m, k, i, q, flip(0))])
                                    * f64::from(w[at(batch, k, n, q, j, flip(1))])
                            })
                            .sum();
                        want[at(batch, m, n, i, j, flip(2))] = sum as f32;
                    }
                }
            }
            let dims = |rows: usize, cols: usize, flip: bool| {
                if flip { [2, cols, rows] } else { [2, rows, cols] }
            };
            let shapes = [dims(m, k, flip(0)), dims(k, n, flip(1))];
            let inputs: [(&[usize], Vec<u8>); 2] =
                [(&shapes[0], f32_bytes(&x)), (&shapes[1], f32_bytes(&w))];
            for out in p.run(&inputs) {
                let what = format!("{m} {n} {k} layout {layout}");
                assert_close(&to_f32(&out[0]), &want, 1e-5, 1e-5, &what);
            }
        }
    }
}

#[test]
fn integer_products_wrap() {
    let (m, n, k) = (5, 19, 7);
    let mut p = Problem::default();
    let a = p.input(Elem::I32, &[dim("m"), Dim::from(k)]);
    let b = p.input(Elem::I32, &fixed(&[k, n]));
    let y = p.output(Elem::I32, &[dim("m"), Dim::from(n)]);
    p.step(Kernel::MatMul, vec![a, b], vec![y]);
    let word = |r: &mut Random| r.next() as i32;
    let mut r = Random::new(1);
    let x: Vec<i32> = (0..m * k).map(|_| word(&mut r)).collect();
    let w: Vec<i32> = (0..k * n).map(|_| word(&mut r)).collect();
    let mut want = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let products = (0..k).map(|q| x[i * k + q].wrapping_mul(w[q * n + j]));
            want.push(products.fold(0, i32::wrapping_add));
        }
    }
    for out in p.run(&[(&[m, k], i32_bytes(&x)), (&[k, n], i32_bytes(&w))]) {
        assert_eq!(out[0], i32_bytes(&want));
    }
}
