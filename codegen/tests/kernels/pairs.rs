//! A gemm and the quantisation of two of its parts: one kernel, the same codes.

use crate::harness::*;
use fqc_codegen::cpu::generate;
use fqc_ir::Expr;
use fqc_ir::data::Const;
use fqc_ir::dim::Dim;
use fqc_ir::expr::{BinaryOp, UnaryOp};
use fqc_ir::plan::{
    Buffer, BufferId, Gemm, GemmInput, GemmOutput, Kernel, Place, RowQuantize, View,
};
use fqc_ir::types::Elem;
use fqc_kernels::pack;

/// What keeps the two steps of a plan apart, if anything does.
#[derive(Clone, Copy, PartialEq)]
enum Apart {
    No,
    /// A third step reads the floats.
    Read,
    /// The codes of the tail are in no order.
    Unsorted,
    /// The codes are those of the first row.
    FirstRow,
}

fn plan(apart: Apart) -> Problem {
    const BASE: usize = 48;
    let (k, n) = (128, 2 * BASE + 16);
    let mut r = Random::new(5);
    let mut p = Problem::default();
    let rows = dim("rows");
    let x = p.input(Elem::U8, &[rows.clone(), Dim::from(k)]);
    let constant = |p: &mut Problem, table: Const| {
        let id = BufferId(p.plan.buffers.len());
        let shape: Vec<Dim> = table.shape.iter().map(|&d| Dim::from(d)).collect();
        let (name, elem, place) = (format!("b{}", id.0), table.elem, Place::Const(table.clone()));
        p.plan.buffers.push(Buffer { name, elem, shape: shape.clone(), place });
        View::whole(id, &shape)
    };
    let w: Vec<i8> = (0..k * n).map(|_| r.below(255) as i8).map(|c| c.max(-127)).collect();
    let packed = pack::pack_i8(&w, k, n, k).iter().map(|&c| c as u8).collect::<Vec<u8>>();
    let start = i32_bytes(&pack::accumulator_start(&w, k, n, true));
    let scale: Vec<f32> = (0..n).map(|_| 2e-4 + 1e-4 * r.unit()).collect();
    let inverse: Vec<f32> = (0..BASE).map(|_| 90.0 + 40.0 * r.unit()).collect();
    let mut source: Vec<i32> = (0..29).map(|_| r.below(BASE) as i32).collect();
    if apart != Apart::Unsorted {
        source.sort_unstable();
    }
    let below: Vec<f32> = (0..29).map(|i| 127.0 * (1 + i % 3) as f32).collect();
    let table = |elem, bytes: Vec<u8>| Const::new(elem, vec![bytes.len() / 4], bytes).unwrap();
    let groups = pack::groups(n);
    let packed = Const::new(Elem::I8, vec![groups, k / 4, 16, 4], packed).unwrap();
    let args = [packed, table(Elem::F32, f32_bytes(&scale)), table(Elem::I32, start)];
    let mut args: Vec<View> = args.into_iter().map(|c| constant(&mut p, c)).collect();
    args.insert(0, x);
    let id = BufferId(p.plan.buffers.len());
    let shape = vec![rows.clone(), Dim::from(n)];
    let buffer = Buffer {
        name: "floats".to_owned(),
        elem: Elem::F32,
        shape: shape.clone(),
        place: Place::Arena,
    };
    p.plan.buffers.push(buffer);
    let floats = View::whole(id, &shape);
    let gemm = Gemm {
        n,
        k,
        depth: k,
        input: GemmInput::Codes { signed: true },
        weight: Elem::I8,
        epilogue: Expr::arg(0),
        extras: Vec::new(),
        output: GemmOutput::F32,
    };
    p.step(Kernel::Gemm(gemm), args, vec![floats.clone()]);
    let quantize = RowQuantize { signed: true, bits: 8, base: BASE, tail: 29, padded: 128 };
    let read = if apart == Apart::FirstRow { Dim::one() } else { rows };
    let part = |first: usize| View {
        offset: Dim::from(first),
        shape: vec![read.clone(), Dim::from(BASE)],
        ..floats.clone()
    };
    let tables = [(Elem::F32, f32_bytes(&inverse)), (Elem::I32, i32_bytes(&source))];
    let tables = tables.into_iter().chain([(Elem::F32, f32_bytes(&below))]);
    let tables: Vec<View> =
        tables.map(|(elem, bytes)| constant(&mut p, table(elem, bytes))).collect();
    let mut args = vec![part(64), part(0)];
    args.extend(tables);
    let gate = Expr::unary(UnaryOp::Silu, Expr::arg(0));
    let expr = Expr::binary(BinaryOp::Mul, gate, Expr::arg(1));
    let codes = p.output(Elem::U8, &[read.clone(), Dim::from(128usize)]);
    p.step(Kernel::Quantize { expr, quantize }, args, vec![codes]);
    if apart == Apart::Read {
        let copy = p.output(Elem::F32, &shape);
        p.step(Kernel::Pointwise(Expr::arg(0)), vec![floats], vec![copy]);
    }
    p
}

#[test]
fn a_gemm_with_the_codes_of_two_parts_gives_what_two_steps_give() {
    for rows in [1, 5, 33, 100] {
        let mut r = Random::new(rows as u64);
        let x: Vec<u8> = (0..rows * 128).map(|_| 1 + r.below(255) as u8).collect();
        let inputs = [(&[rows, 128][..], x)];
        let (joined, apart) = (plan(Apart::No).run(&inputs), plan(Apart::Read).run(&inputs));
        for (joined, apart) in joined.iter().zip(&apart) {
            assert_eq!(joined[0], apart[0], "{rows} rows");
        }
    }
}

#[test]
fn steps_are_joined_where_codes_are_all_that_is_read_and_tails_ascend() {
    let cases = [(Apart::No, 1), (Apart::Read, 3), (Apart::Unsorted, 2), (Apart::FirstRow, 2)];
    for (apart, steps) in cases {
        let image = generate(&plan(apart).plan, &levels()[..1]).unwrap();
        assert_eq!(image.program.steps.len(), steps);
    }
}
