//! Laws of the text, of sizes and of the verifier on random graphs, sizes and texts.

use super::*;
use crate::dim::Dim;
use crate::text::{Blobs, parse, print, print_with_blobs};
use crate::verify::{Facts, verify};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[test]
fn random_graphs_cover_every_operation() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        seen.extend(mnemonics(&random_graph(seed, 40)));
    }
    let all = "abs add and arg_reduce attention broadcast cast concat const cum_sum dequantize dims \
        div flatten gather gather_elements gather_nd gemm gemm_accumulate input iota \
        layer_norm layer_norm_quantize matmul pad pointwise pointwise_quantize quantize reduce \
        reshape rms_norm rms_norm_quantize rope scatter_elements scatter_nd select slice softmax \
        transpose xor";
    let missing: Vec<&str> = all.split_whitespace().filter(|n| !seen.contains(n)).collect();
    assert!(missing.is_empty(), "never made: {missing:?}");
}

/// Sums of products of two symbols, with divisions, minima and maxima.
fn dims() -> impl Strategy<Value = Dim> {
    let leaf =
        prop_oneof![(-9i64..9).prop_map(Dim::from), Just(Dim::sym("b")), Just(Dim::sym("s len")),];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let two = (inner.clone(), inner);
        (two, 0..6u8).prop_map(|((a, b), op)| match op {
            0 => a + b,
            1 => a - b,
            2 => a * b,
            3 => a.floor_div(&Dim::from(3i64)),
            4 => a.smaller(&b),
            _ => a.larger(&b),
        })
    })
}

/// The arithmetic that `Dim` stands for, before and after its normal form.
fn law(a: &Dim, b: &Dim, binding: &dyn Fn(&str) -> Option<i64>) -> Option<()> {
    let (x, y) = (a.eval(binding)?, b.eval(binding)?);
    let get = |d: Dim| d.eval(binding);
    let (a, b) = (a.clone(), b.clone());
    assert_eq!(get(a.clone() + b.clone())?, x + y);
    assert_eq!(get(a.clone() - b.clone())?, x - y);
    assert_eq!(get(a.clone() * b.clone())?, x * y);
    assert_eq!(get(a.smaller(&b))?, x.min(y));
    assert_eq!(get(a.larger(&b))?, x.max(y));
    assert_eq!(get(a.ceil_div(4))?, (x + 3).div_euclid(4));
    if y != 0 {
        assert_eq!(get(a.floor_div(&b))?, x.div_euclid(y), "{a} / {b}");
    }
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn graphs_are_sound_and_their_text_reads_back(seed: u64, nodes in 1usize..60) {
        let graph = random_graph(seed, nodes);
        prop_assert_eq!(verify(&graph, Facts::NO_DEAD), Ok(()));
        let (text, blobs) = print_with_blobs(&graph);
        let again = parse(&text, &blobs).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(print(&again), text);
        prop_assert!(random_inputs(&graph, &|_| Some(2), seed).is_some());
    }

    #[test]
    fn sizes_keep_their_value_and_read_back(a in dims(), b in dims(), x in 1i64..50, y in 1i64..50) {
        let binding = |name: &str| Some(if name == "b" { x } else { y });
        law(&a, &b, &binding);
        prop_assert_eq!(Dim::parse(&a.to_string()), Ok(a.clone()));
        let with = a.substitute(&|name| binding(name).map(Dim::from));
        prop_assert_eq!(with.as_const(), a.eval(&binding));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*") {
        let _ = parse(&text, &Blobs::new());
        let _ = parse(&format!("graph @t {{\n{text}\n"), &Blobs::new());
        let _ = parse(&format!("graph @t {{\n%x: {text}\n"), &Blobs::new());
    }

    #[test]
    fn a_damaged_text_is_read_or_refused(seed: u64, at: usize, replace in "[ -~]{0,3}", cut in 0usize..4) {
        let (text, blobs) = print_with_blobs(&random_graph(seed, 12));
        let mut chars: Vec<char> = text.chars().collect();
        let at = at % chars.len();
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, replace.chars());
        let text: String = chars.into_iter().collect();
        if let Ok(graph) = parse(&text, &blobs) {
            let (text, more) = print_with_blobs(&graph);
            let again = parse(&text, &more);
            prop_assert_eq!(again.map(|g| print(&g)), Ok(text));
        }
    }
}
