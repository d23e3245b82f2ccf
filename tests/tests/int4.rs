//! Weights and activations of four bits on the whole way: graph, plan, file, runtime. The same codes
//! kept in eight bits give the same bytes.

use anyhow::{Context, Result, ensure};
use fqbin::{Buffer, File, Image, Place, to_bytes};
use fqc_codegen::cpu::generate;
use fqc_interp::{Tensor, evaluate};
use fqc_ir::plan::{self, Kernel, Plan};
use fqc_ir::text::{Blobs, parse};
use fqc_ir::{Elem, Graph};
use fqc_passes::quant::passes::{fold_qdq, fold_quantize};
use fqc_passes::{Runner, clean, fuse};
use fqc_tests::runtime::{self, Runtime};

/// Two linear layers on weights of four bits, on codes of eight and of four bits, scales by powers
/// of two; rows end between the groups of columns.
fn text(weights: &str) -> String {
    format!(
        "graph @int4 {{
  !q0 = quant i8 scale=0.0078125
  !q1 = quant u4 scale=0.5 flatten={{base=19, tail=[3:2, 7:2, 7:3], padded=24}}
  !q2 = quant i4 axis=1 scales=[0.5, 0.25, 0.125, 1.0, 2.0, 0.5, 0.25, 0.125, 1.0, 2.0, 0.5, 0.25, \
         0.125, 1.0, 2.0, 0.25, 0.125]
  !q3 = quant i4 scale=0.03125
  %w: {weights}[70,19] !q3 = const {{rand=1, in=[-7, 7]}}
  %v: {weights}[24,17] !q2 = const {{rand=2, in=[-8, 7]}}
  %bias: f32[19] = const {{rand=3, in=[-1.0, 1.0]}}
  %x: f32[n,70] = input
  %x.q: i8[n,70] !q0 = quantize %x {{out={{quant=!q0, inverse=[128.0]}}}}
  %x.dq: f32[n,70] = dequantize %x.q
  %w.dq: f32[70,19] = dequantize %w
  %a: f32[n,19] = matmul %x.dq, %w.dq
  %b: f32[n,19] = add %a, %bias
  %c: f32[n,19] = relu %b
  %c.q: u8[n,24] !q1 = quantize %c {{out={{quant=!q1, inverse=[2.0]}}}}
  %c.dq: f32[n,24] = dequantize %c.q
  %v.dq: f32[24,17] = dequantize %v
  %y: f32[n,17] = matmul %c.dq, %v.dq
  return %y as y
}}"
    )
}

fn graph(weights: &str) -> Result<Graph> {
    let text = text(weights);
    let mut graph = parse(&text, &Blobs::new()).map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut runner = Runner::new();
    runner.run(&mut graph, &clean::passes())?;
    runner.run(&mut graph, &[Box::new(fold_qdq())])?;
    runner.run(&mut graph, &fuse::fuse())?;
    runner.run(&mut graph, &[Box::new(fold_quantize())])?;
    Ok(graph)
}

fn input(rows: usize) -> Vec<(String, Tensor)> {
    let values: Vec<f32> = (0..rows * 70).map(|i| ((i * 89) % 255) as f32 / 128.0 - 1.0).collect();
    vec![("x".to_owned(), Tensor::f32(&[rows, 70], &values))]
}

/// Element types and bytes of the packed weights of a plan.
fn weights(plan: &Plan) -> Vec<(Elem, usize)> {
    let gemms = plan.steps.iter().filter(|s| matches!(s.kernel, Kernel::Gemm(_)));
    let packed = gemms.filter_map(|s| match &plan.buffer(s.args[1].buffer).place {
        plan::Place::Const(value) => Some((value.elem, value.bytes.as_slice().len())),
        _ => None,
    });
    packed.collect()
}

#[test]
fn four_bits_are_halves_of_bytes_from_the_graph_to_the_runtime() -> Result<()> {
    let narrow = graph("i4")?;
    // Rows 70 and 24 are padded to 128 and 64, columns 19 (repeated and padded to 64) and 17 to
    // groups of sixteen.
    let plan = runtime::lower(&narrow)?;
    ensure!(weights(&plan) == [(Elem::I4, 128 * 64 / 2), (Elem::I4, 64 * 32 / 2)], "{plan:?}");
    // Where the graph keeps four bits in a byte, the plan still does not.
    ensure!(weights(&runtime::lower(&graph("i8")?)?) == weights(&plan));
    let levels = runtime::levels()?;
    let target = generate(&plan, &levels)?;
    let image = Image {
        producer: "fqc 0.0.0".to_owned(),
        manifest: b"{}".to_vec(),
        targets: vec![target.clone()],
    };
    let bytes = to_bytes(&image, None)?;
    let file = File::open(&bytes)?;
    let read = file.layout().target("cpu").context("the file has the target")?;
    ensure!(file.weights(read)? == target.weights.to_vec() && read.program == target.program);
    for rows in [1, 7, 12, 13, 50] {
        let inputs = input(rows);
        let want = evaluate(&narrow, &inputs)?;
        for mut cpu in runtime::sessions(&target, &levels)? {
            let got = cpu.run(&inputs)?;
            ensure!(got[0].1 == want[0].1, "{} rows at {}", rows, cpu.name());
        }
    }
    Ok(())
}

/// A program that says of a packed weight what its bytes do not bear out is refused before it runs.
#[test]
fn a_packed_weight_that_is_too_short_for_its_type_never_runs() -> Result<()> {
    let levels = runtime::levels()?;
    let target = generate(&runtime::lower(&graph("i4")?)?, &levels)?;
    let is_packed = |b: &Buffer| b.elem == fqbin::Elem::I4;
    let at = target.program.buffers.iter().position(is_packed).context("a packed weight")?;
    let runs = |damage: &dyn Fn(&mut Buffer)| {
        let mut damaged = target.clone();
        damage(&mut damaged.program.buffers[at]);
        let sessions = runtime::sessions(&damaged, &levels);
        sessions
            .and_then(|mut cpus| cpus.iter_mut().try_for_each(|cpu| cpu.run(&input(3)).map(|_| ())))
    };
    ensure!(runs(&|_| ()).is_ok());
    let as_bytes = runs(&|b| b.elem = fqbin::Elem::I8).unwrap_err();
    let half = runs(&|b| {
        if let Place::Weight { len, .. } = &mut b.place {
            *len /= 2;
        }
    });
    let half = half.unwrap_err();
    let outside = runs(&|b| {
        if let Place::Weight { offset, .. } = &mut b.place {
            *offset += 1 << 20;
        }
    });
    let outside = outside.unwrap_err();
    for error in [as_bytes, half, outside] {
        let text = format!("{error:#}");
        ensure!(text.contains("`w"), "{text}");
    }
    Ok(())
}
