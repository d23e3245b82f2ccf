//! One step at a time: what keeps the items of a batch apart, and what does not.

use super::super::{Buffer, BufferId, GemmOutput, NormKind, Place, Port, Precision, RowQuantize};
use super::*;
use crate::data::Const;
use crate::expr::{BinaryOp, Expr};
use crate::op::{ReduceOp, ScatterOp};
use crate::types::Elem;

fn b() -> Dim {
    Dim::sym("b")
}

fn dims(text: &str) -> Vec<Dim> {
    let one = |name: &str| name.parse::<i64>().map_or_else(|_| Dim::sym(name), Dim::from);
    let product = |text: &str| dim::product(&text.split('*').map(one).collect::<Vec<_>>());
    text.split(',').map(product).collect()
}

/// A plan with the input `#0` f32 \[b,s,4\] and the output `#1` of `output`.
struct Planned(Plan);

impl Planned {
    fn new(output: &str) -> Planned {
        let mut plan = Plan { name: "t".to_owned(), ..Plan::default() };
        for (name, shape, place) in
            [("x", "b,s,4", Place::Input(0)), ("y", output, Place::Output(0))]
        {
            let buffer = BufferId(plan.buffers.len());
            let (elem, shape) = (Elem::F32, dims(shape));
            let port = Port { name: name.to_owned(), elem, shape: shape.clone(), buffer };
            let ports = if buffer.0 == 0 { &mut plan.inputs } else { &mut plan.outputs };
            ports.push(port);
            plan.buffers.push(Buffer { name: name.to_owned(), elem, shape, place });
        }
        Planned(plan)
    }

    fn arena(mut self, shape: &str) -> Self {
        let (name, shape) = ("t".to_owned(), dims(shape));
        self.0.buffers.push(Buffer { name, elem: Elem::F32, shape, place: Place::Arena });
        self
    }

    fn constant(mut self, sizes: &[usize]) -> Self {
        let value = Const::f32(sizes.to_vec(), &vec![0.5; sizes.iter().product()]);
        let shape = sizes.iter().map(|&d| Dim::from(d)).collect();
        let (name, place) = ("w".to_owned(), Place::Const(value));
        self.0.buffers.push(Buffer { name, elem: Elem::F32, shape, place });
        self
    }

    fn step(mut self, kernel: Kernel, args: Vec<View>, result: View) -> Self {
        self.0.steps.push(Step { name: "t".to_owned(), kernel, args, results: vec![result] });
        self
    }

    #[track_caller]
    fn is(self, separable: bool) {
        let found = batch(&self.0);
        assert_eq!(found.as_deref(), separable.then_some("b"));
    }
}

fn whole(buffer: usize, shape: &str) -> View {
    View::whole(BufferId(buffer), &dims(shape))
}

fn view(buffer: usize, offset: Dim, shape: &str, strides: &str) -> View {
    let (shape, strides) = (dims(shape), dims(strides));
    View { buffer: BufferId(buffer), offset, shape, strides }
}

fn copy() -> Kernel {
    Kernel::Pointwise(Expr::arg(0))
}

fn add() -> Kernel {
    Kernel::Pointwise(Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1)))
}

fn gemm() -> Kernel {
    Kernel::Gemm(Gemm {
        n: 4,
        k: 4,
        depth: 4,
        input: GemmInput::F32,
        weight: Elem::F32,
        epilogue: Expr::binary(BinaryOp::Add, Expr::arg(0), Expr::arg(1)),
        extras: vec![Extra::PerElement],
        output: GemmOutput::F32,
    })
}

#[test]
fn element_wise_steps_keep_items_apart() {
    let plan = || Planned::new("b,s,4");
    plan().step(copy(), vec![whole(0, "b,s,4")], whole(1, "b,s,4")).is(true);
    plan().step(copy(), vec![whole(0, "b*s,4")], whole(1, "b*s,4")).is(true);
    plan().step(copy(), vec![whole(0, "b*s*4")], whole(1, "b*s*4")).is(true);
    // Turned within an item.
    let turned = view(0, Dim::from(3i64), "b,s,4", "4*s,4,-1");
    plan().step(copy(), vec![turned], whole(1, "b,s,4")).is(true);
    // A table and a vector for all items.
    let table = view(2, Dim::zero(), "b,s,4", "0,4,1");
    let args = vec![whole(0, "b,s,4"), table];
    plan().arena("s,4").step(add(), args, whole(1, "b,s,4")).is(true);
    let vector = view(2, Dim::zero(), "b*s,4", "0,1");
    let args = vec![whole(0, "b*s,4"), vector];
    plan().constant(&[4]).step(add(), args, whole(1, "b*s,4")).is(true);
}

#[test]
fn views_across_items_do_not() {
    let plan = || Planned::new("b,s,4");
    let to = || whole(1, "b,s,4");
    // The last item first.
    let turned = View {
        offset: (b() - Dim::one()) * dims("4*s")[0].clone(),
        strides: dims("-4*s,4,1"),
        ..to()
    };
    plan().step(copy(), vec![View { buffer: BufferId(0), ..turned }], to()).is(false);
    // The first item for all.
    plan().step(copy(), vec![view(0, Dim::zero(), "b,s,4", "0,4,1")], to()).is(false);
    // Items are not the first axis.
    let inner = |buffer| view(buffer, Dim::zero(), "s,b,4", "4,4*s,1");
    plan().step(copy(), vec![inner(0)], inner(1)).is(false);
    // All but the first item.
    let rest = |buffer: usize, from: Dim| {
        let mut part = view(buffer, from, "b,s,4", "4*s,4,1");
        part.shape[0] = b() - Dim::one();
        part
    };
    plan().step(copy(), vec![rest(0, dims("4*s")[0].clone())], rest(1, Dim::zero())).is(false);
    // Rows that go around: row `i` of one is not that of the other.
    let args = vec![whole(0, "b,s,4"), view(2, Dim::zero(), "b,s,4", "4,4*b,1")];
    plan().arena("s,b,4").step(add(), args, to()).is(false);
    // Two batches, one after the other.
    let half = |offset| view(2, offset, "b,s,4", "4*s,4,1");
    let second = dims("b*s*4")[0].clone();
    plan()
        .arena("2*b,s,4")
        .step(copy(), vec![whole(0, "b,s,4")], half(Dim::zero()))
        .step(copy(), vec![whole(0, "b,s,4")], half(second.clone()))
        .step(copy(), vec![half(second)], to())
        .is(false);
}

#[test]
fn ports_and_limits_have_the_batch_in_front_and_nowhere_else() {
    let same = |output: &str| {
        Planned::new(output).step(copy(), vec![whole(0, "b*s*4")], whole(1, "b*s*4"))
    };
    same("b,s,4").is(true);
    same("b*s,4").is(false);
    same("s,b,4").is(false);
    for (limit, separable) in [
        (Limit::AtMost(Dim::sym("s"), 64), true),
        (Limit::AtMost(b() * Dim::sym("s"), 64), true),
        (Limit::AtMost(Dim::sym("s") - b(), 64), false),
        (Limit::AtMost(Dim::sym("s").floor_div(&b()), 64), false),
        (Limit::Equal(Dim::sym("s"), Dim::from(4i64)), true),
        (Limit::Equal(b(), Dim::sym("s")), false),
    ] {
        let mut plan = same("b,s,4");
        plan.0.limits.push(limit);
        plan.is(separable);
    }
    let mut fixed = same("b,s,4");
    fixed.0.inputs[0].shape[0] = Dim::from(8i64);
    fixed.is(false);
    let mut nothing = same("b,s,4");
    nothing.0.inputs.clear();
    nothing.is(false);
    let mut halves = same("b,s,4");
    halves.0.outputs[0].elem = Elem::U4;
    halves.is(false);
}

#[test]
fn sums_and_scans_may_run_along_all_but_the_items() {
    let sum = |keep| Kernel::Reduce { op: ReduceOp::Sum, keep };
    let by_token = view(0, Dim::zero(), "b,4,s", "4*s,1,4");
    Planned::new("b,4").step(sum(2), vec![by_token], whole(1, "b,4")).is(true);
    let over_items = view(0, Dim::zero(), "s,4,b", "4,1,4*s");
    Planned::new("b,s,4")
        .arena("s,4")
        .step(sum(2), vec![over_items], whole(2, "s,4"))
        .step(copy(), vec![view(2, Dim::zero(), "b,s,4", "0,4,1")], whole(1, "b,s,4"))
        .is(false);
    let scan = Kernel::CumSum { exclusive: false, reverse: false };
    for kernel in [scan.clone(), Kernel::Softmax] {
        let (x, y) = (whole(0, "b,s,4"), whole(1, "b,s,4"));
        Planned::new("b,s,4").step(kernel.clone(), vec![x], y).is(true);
        let (x, y) = (whole(0, "b*s*4"), whole(1, "b*s*4"));
        Planned::new("b,s,4").step(kernel, vec![x], y).is(false);
    }
    let along_items = |buffer| view(buffer, Dim::zero(), "s,4,b", "4,1,4*s");
    Planned::new("b,s,4").step(scan, vec![along_items(0)], along_items(1)).is(false);
    let arg = Kernel::ArgReduce { largest: true, last: false };
    Planned::new("b,s").step(arg, vec![whole(0, "b,s,4")], whole(1, "b,s")).is(true);
}

#[test]
fn products_keep_the_rows_of_their_left_operand_apart() {
    let plan = || Planned::new("b,s,4").constant(&[1, 4, 16]);
    let (rows, w) = (|i| whole(i, "b*s,4"), || View::whole(BufferId(2), &dims("1,4,16")));
    plan().step(gemm(), vec![rows(0), w(), rows(0)], rows(1)).is(true);
    // The bias of one item for all.
    let one = view(0, Dim::zero(), "b*s,4", "0,1");
    plan().step(gemm(), vec![rows(0), w(), one], rows(1)).is(false);
    // A weight that is computed from the items.
    plan().step(gemm(), vec![rows(0), whole(0, "b,s,4"), rows(0)], rows(1)).is(false);
    let heads = |i| view(i, Dim::zero(), "b,2,s,2", "4*s,2,4,1");
    let turned = view(0, Dim::zero(), "b,2,2,s", "4*s,2,1,4");
    let scores = || whole(2, "b,2,s,s");
    let scored = || {
        Planned::new("b,s,4").arena("b,2,s,s").step(
            Kernel::MatMul,
            vec![heads(0), turned.clone()],
            scores(),
        )
    };
    scored().step(Kernel::MatMul, vec![scores(), heads(0)], heads(1)).is(true);
    // One item's rows against all items' columns.
    Planned::new("b,s,4")
        .arena("b*s,b*s")
        .step(
            Kernel::MatMul,
            vec![whole(0, "b*s,4"), view(0, Dim::zero(), "4,b*s", "1,4")],
            whole(2, "b*s,b*s"),
        )
        .step(copy(), vec![whole(0, "b,s,4")], whole(1, "b,s,4"))
        .is(false);
    let attention =
        |mask, precision| Kernel::Attention { scale: 1.0, causal: true, mask, precision };
    let mask = view(2, Dim::zero(), "b,2,s,s", "0,0,s,1");
    Planned::new("b,s,4")
        .arena("s,s")
        .step(attention(true, Precision::F32), vec![heads(0), heads(0), heads(0), mask], heads(1))
        .is(true);
    let keys = view(0, Dim::zero(), "b,2,s,2", "0,2,4,1");
    Planned::new("b,s,4")
        .step(attention(false, Precision::Bf16), vec![heads(0), keys, heads(0)], heads(1))
        .is(false);
}

#[test]
fn rows_are_normalised_and_quantised_apart() {
    let quantize = RowQuantize { signed: true, bits: 8, base: 4, tail: 0, padded: 64 };
    let norm = Kernel::Norm { kind: NormKind::Rms, epsilon: 1e-5, float: true, quantize: None };
    let plan = || Planned::new("b,s,4").constant(&[4]);
    let table = || View::whole(BufferId(2), &dims("4"));
    plan().step(norm.clone(), vec![whole(0, "b,s,4"), table()], whole(1, "b,s,4")).is(true);
    let row = Planned::new("b").arena("b");
    row.step(norm, vec![whole(0, "b"), whole(0, "b")], whole(1, "b")).is(false);
    let kernel = Kernel::Quantize { expr: Expr::arg(0), quantize };
    let tables = [(); 3].map(|()| table());
    let args = [vec![whole(0, "b*s,4")], tables.to_vec()].concat();
    plan().arena("b,s,64").step(kernel, args, whole(3, "b*s,64")).is(true);
}

#[test]
fn looking_up_is_apart_where_the_table_or_the_place_is_for_all() {
    let gather = |axis, index_rank| Kernel::Gather { axis, index_rank };
    let table = || View::whole(BufferId(2), &dims("9,4"));
    let ids = || whole(0, "b,s,4");
    let plan = || Planned::new("b,s,4,4").constant(&[9, 4]);
    plan().step(gather(0, 3), vec![table(), ids()], whole(1, "b,s,4,4")).is(true);
    // One token of each item.
    let first = View::whole(BufferId(2), &[]);
    Planned::new("b,4")
        .constant(&[])
        .step(gather(1, 0), vec![ids(), first.clone()], whole(1, "b,4"))
        .is(true);
    // One item for all.
    Planned::new("b,s,4")
        .constant(&[])
        .arena("s,4")
        .step(gather(0, 0), vec![ids(), first], whole(3, "s,4"))
        .step(copy(), vec![view(3, Dim::zero(), "b,s,4", "0,4,1")], whole(1, "b,s,4"))
        .is(false);
    // Items by number.
    let numbers = vec![ids(), whole(2, "b")];
    Planned::new("b,s,4").arena("b").step(gather(0, 1), numbers, whole(1, "b,s,4")).is(false);
    let elements = |axis| Kernel::GatherElements { axis };
    for (axis, separable) in [(0, false), (1, true), (2, true)] {
        Planned::new("b,s,4")
            .step(elements(axis), vec![ids(), ids()], whole(1, "b,s,4"))
            .is(separable);
    }
    let nd = |batch_dims| Kernel::GatherNd { batch_dims };
    Planned::new("b,s").step(nd(1), vec![ids(), whole(0, "b,s,2")], whole(1, "b,s")).is(false);
    let places = view(0, Dim::zero(), "b,s,2", "4*s,4,1");
    Planned::new("b,s").step(nd(1), vec![ids(), places.clone()], whole(1, "b,s")).is(true);
    Planned::new("b,s").step(nd(0), vec![ids(), places], whole(1, "b,s")).is(false);
}

#[test]
fn the_number_of_items_is_no_value_and_items_are_not_scattered() {
    let with = |kernel: Kernel, shape: &str| {
        let result = View::whole(BufferId(2), &dims(shape));
        Planned::new("b,s,4").arena(shape).step(kernel, vec![], result).step(
            copy(),
            vec![whole(0, "b,s,4")],
            whole(1, "b,s,4"),
        )
    };
    with(Kernel::Iota, "s").is(true);
    with(Kernel::Iota, "b").is(false);
    with(Kernel::Dims(dims("s,4")), "2").is(true);
    with(Kernel::Dims(dims("s,b")), "2").is(false);
    with(Kernel::Dims(dims("s")), "b").is(false);
    let scatter = Kernel::ScatterElements { axis: 2, op: ScatterOp::Set };
    let args = vec![whole(0, "b,s,4"), whole(0, "b,s,4")];
    Planned::new("b,s,4").step(scatter, args, whole(1, "b,s,4")).is(false);
}
