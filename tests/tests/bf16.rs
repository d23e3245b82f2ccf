//! Linear layers that stay float, in bf16 on the whole way: plan, code of every level, runtime.

use anyhow::{Context, Result, anyhow, ensure};
use fqc_codegen::cpu::generate;
use fqc_interp::Tensor;
use fqc_ir::plan::{Kernel, Place, Plan, Precision};
use fqc_ir::text::{Blobs, parse};
use fqc_ir::{Elem, Graph, Op};
use fqc_passes::lower::lower;
use fqc_passes::{Runner, clean, fuse};
use fqc_tests::runtime::{self, Runtime};
use half::bf16;

const K: usize = 70;
const N: usize = 35;

/// A layer of 70 channels to 35: neither fills pairs of lines or panels.
const TEXT: &str = "graph @float {
  %w: f32[70,35] = const {rand=1, in=[-1.0, 1.0]}
  %bias: f32[35] = const {rand=2, in=[-1.0, 1.0]}
  %x: f32[n,70] = input
  %a: f32[n,35] = matmul %x, %w
  %y: f32[n,35] = add %a, %bias
  return %y as y
}";

fn graph() -> Result<Graph> {
    let mut graph = parse(TEXT, &Blobs::new()).map_err(|e| anyhow!("{e}"))?;
    let mut runner = Runner::new();
    runner.run(&mut graph, &clean::passes())?;
    runner.run(&mut graph, &fuse::fuse())?;
    Ok(graph)
}

fn plan(graph: &Graph, precision: Precision) -> Result<Plan> {
    lower(graph, precision).map_err(|errors| anyhow!("{errors:?}"))
}

/// Element type and bytes of the packed weight.
fn weight(plan: &Plan) -> Result<(Elem, usize)> {
    let gemm = plan.steps.iter().find(|s| matches!(s.kernel, Kernel::Gemm(_)));
    match &plan.buffer(gemm.context("a gemm")?.args[1].buffer).place {
        Place::Const(value) => Ok((value.elem, value.bytes.as_slice().len())),
        place => Err(anyhow!("the weight is at {place:?}")),
    }
}

fn constant(graph: &Graph, shape: &[usize]) -> Result<Vec<f32>> {
    let values = graph.ids().into_iter().find_map(|id| match &graph.node(id).op {
        Op::Const(value) if value.shape == shape => value.to_f32(),
        _ => None,
    });
    values.with_context(|| format!("a constant of {shape:?}"))
}

#[test]
fn products_are_of_rounded_operands_at_every_level() -> Result<()> {
    let graph = graph()?;
    // Rows are padded to 96, columns to 48.
    ensure!(weight(&plan(&graph, Precision::Bf16)?)? == (Elem::BF16, 96 * 48 * 2));
    ensure!(weight(&plan(&graph, Precision::F32)?)? == (Elem::F32, 70 * 48 * 4));
    let levels = runtime::levels()?;
    let target = generate(&plan(&graph, Precision::Bf16)?, &levels)?;
    let (w, bias) = (constant(&graph, &[K, N])?, constant(&graph, &[N])?);
    let rounded = |x: f32| bf16::from_f32(x).to_f64();
    for rows in [1, 3, 50, 97] {
        let x: Vec<f32> = (0..rows * K).map(|i| (i * 89 % 1009) as f32 / 503.0 - 1.0).collect();
        let inputs = vec![("x".to_owned(), Tensor::f32(&[rows, K], &x))];
        for mut cpu in runtime::sessions(&target, &levels)? {
            let got = cpu.run(&inputs)?;
            let got = got[0].1.as_f32().context("floats")?;
            for (i, got) in got.iter().enumerate() {
                let (row, column) = (i / N, i % N);
                let terms = (0..K).map(|k| rounded(x[row * K + k]) * rounded(w[k * N + column]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + f64::abs(x)));
                let (want, size) = (sum + f64::from(bias[column]), size + 1.0);
                // So many roundings of f32, in whatever order.
                let bound = (K + 1) as f64 * 2f64.powi(-24) * size;
                let off = (f64::from(*got) - want).abs();
                ensure!(
                    off <= bound,
                    "{rows} rows at {}: [{row},{column}] is {got}, not {want}",
                    cpu.name()
                );
            }
        }
    }
    Ok(())
}
