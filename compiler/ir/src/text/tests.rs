//! Round trips and refusals of the text form, by example; random graphs are in `tests/`.

use super::*;
use crate::dim::Dim;
use crate::expr::Expr;
use crate::quant::{FlattenMap, Quant, Quantizer, Scale};
use crate::{Const, Elem, Graph, Op, Type};
use std::sync::Arc;

const EXAMPLE: &str = r#"graph @t {
  limit b*s <= 4096
  limit s == 2*t-1
  !q0 = quant i8 axis=1 scales=[0.5, 0.25]
  !q1 = quant i8 scale=0.0235 flatten={base=6, tail=[3:2, 3:3], padded=64}
  !q2 = quant u4 scale=1e-5
  %w: i8[64,2] !q0 = const {splat=1}
  %bias: f32[2] = const {dense=[-1.5, NaN]}
  %x: f32[b,s,6] = input
  %"odd: \"name\"": i64[t] = input
  %n: i64[2] = dims {sizes=[2*b*s+1, div(s,2)*max(b,t)-3]}
  %x.q: i8[b,s,64] !q1 = quantize %x {out={quant=!q1, inverse=[42.55319]}}
  %/enc/MatMul: f32[b,s,2] = gemm %x.q, %w, %bias {epilogue=mul(add(arg0, arg1), sigmoid(arg0)), out=none}
  %act: u8[b,s,2] !q2 = gemm %x.q, %w {epilogue=select(gt(arg0, 0.0), cast(f32, cast(i64, arg0)), -inf), out={quant=!q2, inverse=[1.0, 2.0]}}
  %top: i64[b,s] = arg_reduce %/enc/MatMul {axis=2, keep_dims=false, largest=true, last=false}
  %part: f32[b,1,2] = slice %/enc/MatMul {start=[0, s-1, 0], len=[b, 1, 2], step=[1, -1, 1]}
  return %top as "top 1", %act as act, %part as part, %n as n
}
"#;

#[test]
fn the_text_reads_back_byte_for_byte() {
    let graph = parse(EXAMPLE, &Blobs::new()).expect("the example is well formed");
    assert_eq!(print(&graph), EXAMPLE);
    assert_eq!(graph.outputs()[0].0, "top 1");
    assert!(graph.find("odd: \"name\"").is_some());
}

#[test]
fn large_data_goes_by_hash() {
    let mut graph = Graph::new("a graph");
    let scales: Vec<f32> = (1..=20).map(|v| v as f32).collect();
    let quant = Quant {
        scale: Scale::Axis { axis: 1, scales: scales.clone().into() },
        bits: 4,
        signed: true,
        flatten: None,
    };
    let codes: Vec<i8> = (0..100).map(|v| v % 15 - 7).collect();
    let w = Const::i8(vec![5, 20], &codes).with_quant(Arc::new(quant));
    let w = graph.add("w", Op::Const(w), &[]).expect("a constant");
    let x = Op::Input(Type::f32(vec![Dim::sym("batch size"), Dim::from(20i64)]));
    let x = graph.add("x", x, &[]).expect("an input");
    let map = FlattenMap { base: 20, tail: Arc::from([(19, 2)]), padded: 64 };
    let quant = Arc::new(Quant {
        scale: Scale::Tensor(0.1),
        bits: 8,
        signed: false,
        flatten: Some(Arc::new(map)),
    });
    let out = Quantizer { quant, inverse: scales.into() };
    let q = graph.add("q", Op::Quantize(Arc::new(out)), &[x]).expect("as many multipliers");
    graph.set_outputs(vec![("w".into(), w), ("q".into(), q)]);
    let (text, blobs) = print_with_blobs(&graph);
    assert_eq!(blobs.len(), 2, "the scales and the multipliers are the same bytes");
    let again = parse(&text, &blobs).expect("all blobs are there");
    assert_eq!(print(&again), text);
    assert_eq!(again.node(again.find("w").expect("w")).ty, graph.node(w).ty);
    let error = parse(&text, &Blobs::new()).expect_err("no blobs");
    assert!(error.message.starts_with("there is no blob"), "{error}");
}

#[test]
fn every_element_type_survives() {
    for elem in Elem::ALL {
        for count in [0, 1, 3, 40] {
            let value = random(elem, vec![count], 7, 0.0, 7.0);
            let mut graph = Graph::new("t");
            let id = graph.add("c", Op::Const(value), &[]).expect("a constant");
            graph.add_output("c", id);
            let (text, blobs) = print_with_blobs(&graph);
            let again = parse(&text, &blobs).unwrap_or_else(|e| panic!("{e} in\n{text}"));
            assert_eq!(again.node(again.find("c").expect("c")).op, graph.node(id).op, "{text}");
        }
    }
}

#[test]
fn hand_written_texts_may_have_comments_and_random_constants() {
    let text = "; a test
        graph @t { ; its name
            %w: i8[3,100] = const {rand=7, in=[-2, 2]} ; codes

            %x: f32[\"batch; size\"] = input
            return %w as w
        }
        ; the end";
    let graph = parse(text, &Blobs::new()).expect("well formed");
    let w = graph.node(graph.find("w").expect("it is there"));
    let Op::Const(value) = &w.op else { panic!("{:?}", w.op) };
    let values: std::collections::BTreeSet<i64> =
        value.to_i64().expect("integers").into_iter().collect();
    assert!(values.into_iter().eq(-2..=2), "every value of the range comes up");
}

fn refuse(line: &str, expected: &str) {
    let text = format!("graph @t {{\n  %x: f32[b,4] = input\n  {line}\n  return %x as x\n}}\n");
    let error = parse(&text, &Blobs::new()).expect_err(line);
    assert_eq!(error.to_string(), format!("line 3: {expected}"), "{line}");
}

#[test]
fn refusals_say_where_and_why() {
    refuse("%y: f32[b,3] = neg %x", "the result is f32[b,4], not f32[b,3]");
    refuse("%y: f32[b,4] = neg %z", "`%z` is not defined above");
    refuse("%x: f32[b,4] = neg %x", "`%x` is defined twice");
    refuse("%y: f32[b,4] = frob %x", "there is no operation \"frob\"");
    refuse("%y: f32[b,4] = add %x", "`add` takes 2 operands, 1 given");
    refuse("%y: f32[b] = reduce %x {op=sum}", "expected `,`, found `}`");
    refuse(
        "%y: f32[2] = const {dense=[1.0]}",
        "the values take 4 bytes, which does not fit f32[2]",
    );
    refuse(
        "%y: f32[99999999999] = const {splat=0}",
        "f32[99999999999] is too large to be written here",
    );
    refuse("%y: i8[b] !q0 = input", "`!q0` is not defined");
    refuse("%y: f32[1e5] = input", "expected `,`, found `e5] = input`");
    let deep = format!("%y: f32[b,4] = pointwise %x {{expr={}arg0", "neg(".repeat(9999));
    refuse(&deep, "an expression nests deeper than 256");
    let deep = format!("%y: f32[{}", "div(".repeat(9999));
    refuse(&deep, "a size nests deeper than 32");
}

#[test]
fn sizes_and_expressions_read_back() {
    for text in
        ["0", "-3", "b", "-b*s+2", "2*\"a b\"*b*b", "div(s+1,2)*min(7,b)", "-9223372036854775808"]
    {
        assert_eq!(Dim::parse(text).map(|d| d.to_string()), Ok(text.to_owned()));
    }
    assert!(Dim::parse("2**b").is_err());
    assert!(Dim::parse("").is_err());
    for text in ["arg12", "-0.0", "1e-7", "7", "true", "pow(arg0, min(inf, NaN))"] {
        assert_eq!(Expr::parse(text).map(|e| e.to_string()), Ok(text.to_owned()));
    }
    assert!(Expr::parse("add(arg0)").is_err());
}
