//! Integer accumulators of quantised linear layers, bit for bit: the interpreter, the CPU backend at
//! every level of this machine, and the plain integer product of the codes before flattening. Shapes
//! around the tiles, primes, one; digits in the tail; signed and unsigned; activations and weights of
//! four and of eight bits, in every pairing.

use anyhow::{Context, Result, ensure};
use fqc_codegen::cpu::generate;
use fqc_interp::{Tensor, evaluate};
use fqc_ir::quant::wide_code;
use fqc_ir::{Dim, Elem, Expr, FlattenMap, Graph, NodeId, Op, Quant, Quantizer, Scale, Type};
use fqc_tests::generate::Random;
use fqc_tests::runtime::{self, Runtime};
use std::sync::Arc;

/// Depths and widths: one, primes, and the tiles' 16, 32 and 64 with their neighbours.
const SIZES: [usize; 14] = [1, 2, 3, 7, 15, 16, 17, 31, 47, 63, 64, 65, 127, 130];

/// Widths of weights, and what they are kept as in the graph.
const WEIGHTS: [(u8, Elem); 3] = [(8, Elem::I8), (4, Elem::I4), (4, Elem::I8)];

/// Rows, bound at run time.
const ROWS: [usize; 6] = [1, 5, 11, 13, 16, 37];

/// Layers of one graph; they are compiled together.
const LAYERS: usize = 12;

/// One linear layer and what it takes to compute it by hand.
struct Layer {
    output: String,
    quantizer: Quantizer,
    /// Digits of each base channel.
    digits: Vec<i64>,
    k: usize,
    n: usize,
    w_bits: u8,
    /// Codes \[k, n\] of the weight before its rows are repeated.
    w: Vec<i64>,
}

fn pick<T: Copy>(random: &mut Random, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize]
}

/// A map of `k` channels, of which some get digits; none in a third of the cases.
fn map(random: &mut Random, k: usize) -> Option<FlattenMap> {
    if random.below(3) == 0 {
        return None;
    }
    let mut tail = Vec::new();
    for source in 0..k as u32 {
        if random.below(6) == 0 {
            tail.extend((0..1 + random.below(3) as u16).map(|digit| (source, digit + 2)));
        }
    }
    let align = pick(random, &[1, 8, 64]);
    let padded = (k + tail.len()).next_multiple_of(align) as u32;
    Some(FlattenMap { base: k as u32, tail: tail.into(), padded })
}

fn layer(graph: &mut Graph, random: &mut Random, index: usize) -> Result<Layer> {
    let (k, n) = (pick(random, &SIZES), pick(random, &SIZES));
    let map = map(random, k);
    let (bits, signed) = pick(random, &[(8, true), (8, true), (8, false), (4, true), (4, false)]);
    let mut digits = vec![1; k];
    for (source, digit) in map.iter().flat_map(|m| m.tail.iter()) {
        digits[*source as usize] = i64::from(*digit);
    }
    let source = |i: usize| match &map {
        Some(map) => map.source(i).map(|s| s.0),
        None => Some(i),
    };
    let (w_bits, w_elem) = pick(random, &WEIGHTS);
    let w: Vec<i64> = (0..k * n).map(|_| weight_code(random, w_bits)).collect();
    let width = map.as_ref().map_or(k, |m| m.padded as usize);
    // What meets the padding must not matter.
    let repeated: Vec<i64> = (0..width)
        .flat_map(|i| (0..n).map(move |o| (i, o)))
        .map(|(i, o)| source(i).map_or(5, |j| w[j * n + o]))
        .collect();
    let inverse: Arc<[f32]> = (0..k).map(|_| 20.0 + 60.0 * random.unit() as f32).collect();
    let flatten = map.map(Arc::new);
    let quant =
        Arc::new(Quant { scale: Scale::Tensor(0.02), bits, signed, flatten: flatten.clone() });
    let quantizer = Quantizer { quant, inverse };
    let shape = vec![Dim::sym("m"), Dim::from(k)];
    let x = graph.add(format!("x{index}"), Op::Input(Type::f32(shape)), &[])?;
    let op = Op::Quantize(Arc::new(quantizer.clone()));
    let codes = graph.add(format!("codes{index}"), op, &[x])?;
    let meaning = Quant { scale: Scale::Tensor(0.5), bits: w_bits, signed: true, flatten };
    let w_node = weight(graph, index, w_elem, &[width, n], &repeated, meaning)?;
    let sums = graph.add(format!("sums{index}"), Op::GemmAccumulate, &[codes, w_node])?;
    let output = format!("y{index}");
    graph.add_output(&output, sums);
    Ok(Layer { output, quantizer, digits, k, n, w_bits, w })
}

/// A code of a weight, the one below `-q_max` included: other tools write it.
fn weight_code(random: &mut Random, bits: u8) -> i64 {
    random.below(1 << bits) as i64 - (1 << (bits - 1))
}

fn weight(
    graph: &mut Graph,
    index: usize,
    elem: Elem,
    shape: &[usize],
    codes: &[i64],
    quant: Quant,
) -> Result<NodeId> {
    let codes: Vec<f64> = codes.iter().map(|&c| c as f64).collect();
    let value = Tensor::from_floats(elem, shape, &codes).to_const().with_quant(Arc::new(quant));
    Ok(graph.add(format!("w{index}"), Op::Const(value), &[])?)
}

/// Floats of which some need several digits, some saturate, and some are no numbers.
fn input(random: &mut Random, layer: &Layer, rows: usize) -> Tensor {
    let one = |random: &mut Random| match random.below(40) {
        0 => f32::NAN,
        1 => f32::INFINITY,
        2 => -1e30,
        3..8 => random.normal() as f32 * 8.0,
        _ => random.normal() as f32,
    };
    let values: Vec<f32> = (0..rows * layer.k).map(|_| one(random)).collect();
    Tensor::f32(&[rows, layer.k], &values)
}

/// The product of wide codes, each held within what its digits can say.
fn by_hand(layer: &Layer, x: &Tensor) -> Vec<i64> {
    let (values, quant) = (x.as_f32().unwrap_or_default(), &layer.quantizer.quant);
    let mut sums = Vec::new();
    for row in values.chunks_exact(layer.k) {
        let code = |(j, &x): (usize, &f32)| {
            let most = layer.digits[j] * i64::from(quant.q_max());
            let code = i64::from(wide_code(x, layer.quantizer.inverse(j), quant.signed));
            code.clamp(-most, most)
        };
        let codes: Vec<i64> = row.iter().enumerate().map(code).collect();
        sums.extend((0..layer.n).map(|o| {
            codes.iter().enumerate().map(|(j, c)| c * layer.w[j * layer.n + o]).sum::<i64>()
        }));
    }
    sums
}

fn ints(tensor: &Tensor) -> Vec<i64> {
    tensor.ints().unwrap_or_default().into_iter().map(|v| v as i64).collect()
}

#[test]
fn accumulators_are_bit_identical_and_flattening_is_wide_integers() -> Result<()> {
    let levels = runtime::levels()?;
    let mut compared = 0;
    for seed in 0..5 {
        let mut random = Random::new(seed);
        let mut graph = Graph::new("accumulators");
        let layers: Result<Vec<Layer>> =
            (0..LAYERS).map(|i| layer(&mut graph, &mut random, i)).collect();
        let layers = layers?;
        let target = generate(&runtime::lower(&graph)?, &levels)?;
        let mut sessions = runtime::sessions(&target, &levels)?;
        for rows in ROWS {
            let inputs: Vec<(String, Tensor)> = layers
                .iter()
                .enumerate()
                .map(|(i, l)| (format!("x{i}"), input(&mut random, l, rows)))
                .collect();
            let interpreted = evaluate(&graph, &inputs)?;
            for cpu in &mut sessions {
                let got = cpu.run(&inputs)?;
                for (i, layer) in layers.iter().enumerate() {
                    let at = format!(
                        "seed {seed}, {}, {rows} x {} x {}, {:?}, weights of {} bits",
                        layer.output, layer.k, layer.n, layer.quantizer.quant, layer.w_bits
                    );
                    let want = by_hand(layer, &inputs[i].1);
                    ensure!(ints(&interpreted[i].1) == want, "interpreter: {at}");
                    ensure!(ints(&got[i].1) == want, "{}: {at}", cpu.name());
                    compared += want.len();
                }
            }
        }
    }
    println!("{compared} accumulators");
    Ok(())
}

/// Codes that a gemm's epilogue writes, digits included, feed the next gemm: with powers of two as
/// scales the floats between are exact, and so are the second sums.
#[test]
fn codes_written_by_a_gemm_are_exact() -> Result<()> {
    let levels = runtime::levels()?;
    let mut random = Random::new(11);
    let mut graph = Graph::new("two layers");
    let mut count = 0;
    for (index, &n) in [1, 15, 16, 33, 64, 67, 17, 50].iter().enumerate() {
        let ((w_bits, w_elem), (v_bits, v_elem)) = (WEIGHTS[index % 3], WEIGHTS[(index + 1) % 3]);
        let k = pick(&mut random, &SIZES);
        let power = |bits| Quant { scale: Scale::Tensor(1.0), bits, signed: true, flatten: None };
        let x = graph.add(
            format!("x{index}"),
            Op::Input(Type::f32(vec![Dim::sym("m"), Dim::from(k)])),
            &[],
        )?;
        let first = Op::Quantize(Arc::new(Quantizer::per_tensor(Arc::new(power(8)))));
        let codes = graph.add(format!("c{index}"), first, &[x])?;
        let random_codes = |random: &mut Random, count: usize, bits| -> Vec<i64> {
            (0..count).map(|_| weight_code(random, bits)).collect()
        };
        let w = random_codes(&mut random, k * n, w_bits);
        let w = weight(&mut graph, index, w_elem, &[k, n], &w, power(w_bits))?;
        let flatten = map(&mut random, n).map(Arc::new);
        let width = flatten.as_ref().map_or(n, |m| m.padded as usize);
        let (bits, signed) = [(8, true), (8, false), (4, true), (4, false)][index % 4];
        let scale = Scale::Tensor(if bits == w_bits { 64.0 } else { 512.0 });
        let quant = Quant { scale, bits, signed, flatten };
        let out = Arc::new(Quantizer::per_tensor(Arc::new(quant)));
        let op = Op::Gemm { epilogue: Expr::arg(0), out: Some(out) };
        let codes = graph.add(format!("d{index}"), op, &[codes, w])?;
        let v = random_codes(&mut random, width * 5, v_bits);
        let v = weight(&mut graph, 100 + index, v_elem, &[width, 5], &v, power(v_bits))?;
        let sums = graph.add(format!("s{index}"), Op::GemmAccumulate, &[codes, v])?;
        graph.add_output(format!("y{index}"), sums);
    }
    let target = generate(&runtime::lower(&graph)?, &levels)?;
    for mut cpu in runtime::sessions(&target, &levels)? {
        for rows in ROWS {
            let values = |id: &NodeId| -> Result<(String, Tensor)> {
                let node = graph.node(*id);
                let k = node.ty.last().as_const().context("a constant width")? as usize;
                let x = Tensor::from_floats(
                    Elem::F32,
                    &[rows, k],
                    &(0..rows * k)
                        .map(|i| ((i * 37 + 11) % 201) as f64 - 100.0)
                        .collect::<Vec<_>>(),
                );
                Ok((node.name.clone(), x))
            };
            let inputs: Vec<_> = graph.inputs().iter().map(values).collect::<Result<_>>()?;
            let want = evaluate(&graph, &inputs)?;
            for ((name, want), (_, got)) in want.iter().zip(cpu.run(&inputs)?) {
                ensure!(ints(want) == ints(&got), "{}: `{name}`, {rows} rows", cpu.name());
                count += want.count();
            }
        }
    }
    println!("{count} accumulators");
    Ok(())
}
