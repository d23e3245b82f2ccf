//! Every operator on operands of every kind, with senseless attributes: an error or a graph, never a
//! panic. Arithmetic overflow panics in this build.

use super::*;
use crate::ops;

const NUMBERS: [i64; 14] =
    [0, 1, -1, 2, 3, -2, 4, 7, 64, i32::MAX as i64, i64::MAX, i64::MIN, i64::MIN + 1, 1 << 40];

const SIZES: [i64; 8] = [1, 2, 3, 4, 0, -7, 6, 1 << 20];

/// Attribute names that the importer asks for, with the types it wants.
const INTS: [&str; 30] = [
    "axis",
    "keepdims",
    "num_heads",
    "q_num_heads",
    "kv_num_heads",
    "interleaved",
    "is_causal",
    "to",
    "blocksize",
    "block_size",
    "batch_dims",
    "num_outputs",
    "start",
    "end",
    "k",
    "upper",
    "dtype",
    "transA",
    "transB",
    "exclusive",
    "reverse",
    "num_groups",
    "p",
    "allowzero",
    "output_dtype",
    "rotary_embedding_dim",
    "qk_matmul_output_mode",
    "softmax_precision",
    "noop_with_empty_axes",
    "fmod",
];
const LISTS: [&str; 6] = ["axes", "perm", "split", "pads", "starts", "value_ints"];
const FLOATS: [&str; 7] = ["epsilon", "alpha", "beta", "scale", "softcap", "lambd", "value_float"];

fn attributes(random: &mut Random) -> Vec<AttributeProto> {
    let mut out: Vec<AttributeProto> = Vec::new();
    for _ in 0..random.below(6).saturating_sub(2) {
        let mut a = match random.below(3) {
            0 => int(random.pick(&INTS), random.pick(&NUMBERS)),
            1 => {
                let ints = (0..random.below(5)).map(|_| random.pick(&NUMBERS)).collect();
                let r#type = AttributeType::Ints as i32;
                AttributeProto {
                    name: random.pick(&LISTS).into(),
                    r#type,
                    ints,
                    ..Default::default()
                }
            }
            _ => {
                let f = random.pick(&[0.0, 1.0, -1.0, 1e30, f32::NAN, f32::INFINITY]);
                let r#type = AttributeType::Float as i32;
                AttributeProto {
                    name: random.pick(&FLOATS).into(),
                    r#type,
                    f,
                    ..Default::default()
                }
            }
        };
        if random.below(20) == 0 {
            a.r#type = random.below(16) as i32;
        }
        if out.iter().all(|b| b.name != a.name) {
            out.push(a);
        }
    }
    out
}

/// One operator on up to eight operands: inputs of any type, or small integers that are known.
fn case(random: &mut Random, domain: &str, op: &str) -> ModelProto {
    let (mut inputs, mut constants, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let usual: Vec<i64> = (0..random.below(5)).map(|_| random.pick(&SIZES)).collect();
    let count = random.pick(&[1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8, 0]);
    for i in 0..count {
        let name = format!("i{i}");
        match random.below(12) {
            0 => names.push(String::new()),
            1..=3 => {
                let n = random.below(5);
                let values: Vec<i64> = (0..n).map(|_| random.pick(&NUMBERS)).collect();
                let scalar = n == 1 && random.below(2) == 0;
                let mut c = i64s(&name, &values);
                if scalar {
                    c.dims.clear();
                }
                constants.push(c);
                names.push(name);
            }
            _ => {
                let rank = random.below(6);
                let other: Vec<i64> = (0..rank).map(|_| random.pick(&SIZES)).collect();
                let shape = if random.below(3) > 0 { usual.clone() } else { other };
                let elem = random.pick(&[1, 1, 1, 1, 1, 1, 1, 7, 9, 3, 2, 10, 6, 11]);
                inputs.push(value(&name, elem, &shape));
                names.push(name);
            }
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let outputs: &[&str] = if random.below(3) == 0 { &["y", "z", "w", "v"] } else { &["y"] };
    let mut made = node(op, &names, outputs);
    made.domain = domain.into();
    made.attribute = attributes(random);
    let mut m = model(&[2], constants, vec![made]);
    m.graph.as_mut().expect("made above").input = inputs;
    m.opset_import[0].version = random.pick(&[7, 9, 11, 12, 13, 17, 18, 21, 23, 24, 27]);
    m.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
    m
}

#[test]
fn no_operator_panics() {
    let mut random = Random(3);
    let mut imported = 0;
    let mut faults = Vec::new();
    for (domain, op) in ops::all() {
        for _ in 0..400 {
            let m = case(&mut random, domain, op);
            match std::panic::catch_unwind(|| try_import(&m)) {
                Ok(done) => imported += usize::from(done.is_ok()),
                Err(_) => {
                    faults.push(format!("`{op}` panicked on {:?}", m.graph));
                    break;
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(imported > 500, "only {imported} cases had a meaning");
}
