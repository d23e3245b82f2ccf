//! Prints a plan: one line a buffer, one line a step. There is nothing to read back.

use super::lex::name;
use super::print::{join, print_limit};
use super::values::{self, Blobs};
use crate::dim::Dim;
use crate::plan::{
    Buffer, Extra, GemmInput, GemmOutput, Kernel, Place, Plan, RowQuantize, Step, View, row_major,
};
use crate::types::Type;

/// The text of a plan, for people and snapshots.
pub fn print_plan(plan: &Plan) -> String {
    let mut lines = vec![format!("plan @{} {{", name(&plan.name))];
    lines.extend(plan.limits.iter().map(|limit| format!("  {}", print_limit(limit))));
    for (i, buffer) in plan.buffers.iter().enumerate() {
        lines.push(format!("  #{i}: {}", print_buffer(plan, buffer)));
    }
    lines.extend(plan.steps.iter().map(|step| format!("  {}", print_step(plan, step))));
    lines.push("}".to_owned());
    join(lines.into_iter())
}

fn print_buffer(plan: &Plan, buffer: &Buffer) -> String {
    let port = |ports: &[crate::plan::Port], i: usize| {
        ports.get(i).map_or_else(|| i.to_string(), |port| name(&port.name))
    };
    let place = match &buffer.place {
        Place::Input(i) => format!("input {}", port(&plan.inputs, *i)),
        Place::Output(i) => format!("output {}", port(&plan.outputs, *i)),
        Place::Arena => "arena".to_owned(),
        Place::Const(value) => format!("const {{{}}}", values::print(value, &mut Blobs::new())),
    };
    let ty = Type::new(buffer.elem, buffer.shape.clone());
    format!("{ty} %{} = {place}", name(&buffer.name))
}

fn print_step(plan: &Plan, step: &Step) -> String {
    let list =
        |views: &[View]| views.iter().map(|v| print_view(plan, v)).collect::<Vec<_>>().join(", ");
    let attrs = kernel_attrs(&step.kernel);
    let attrs: Vec<String> = attrs.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
    let (args, results) = (list(&step.args), list(&step.results));
    let arrow = if args.is_empty() { "" } else { " " };
    let kernel = step.kernel.name();
    format!("step %{} = {kernel} ({args}{arrow}-> {results}){attrs}", name(&step.name))
}

fn dims(dims: &[Dim]) -> String {
    dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(",")
}

/// `#3`, and where the view is not the whole buffer `#3+offset[shape]`, and where the elements are
/// not neighbours `/[strides]`.
fn print_view(plan: &Plan, view: &View) -> String {
    let mut text = format!("#{}", view.buffer.0);
    let offset = if view.offset == Dim::zero() { None } else { Some(&view.offset) };
    if let Some(offset) = offset {
        text.push_str(&format!("+{offset}"));
    }
    let whole = plan.buffers.get(view.buffer.0).is_some_and(|b| b.shape == view.shape);
    let contiguous = view.strides == row_major(&view.shape);
    if !whole || offset.is_some() || !contiguous {
        text.push_str(&format!("[{}]", dims(&view.shape)));
    }
    if !contiguous {
        text.push_str(&format!("/[{}]", dims(&view.strides)));
    }
    text
}

fn sign(signed: bool) -> &'static str {
    if signed { "signed" } else { "unsigned" }
}

fn quantize_attr(q: &RowQuantize) -> String {
    let RowQuantize { signed, bits, base, tail, padded } = q;
    format!("{{{} {bits}, base={base}, tail={tail}, padded={padded}}}", sign(*signed))
}

fn kernel_attrs(kernel: &Kernel) -> Vec<(&'static str, String)> {
    match kernel {
        Kernel::Gemm(gemm) => {
            let input = match gemm.input {
                GemmInput::F32 => "f32".to_owned(),
                GemmInput::Codes { signed } => format!("{} codes", sign(signed)),
            };
            let output = match gemm.output {
                GemmOutput::F32 => "f32".to_owned(),
                GemmOutput::I32 => "i32".to_owned(),
                GemmOutput::Codes { signed, bits: 8 } => format!("{} codes", sign(signed)),
                GemmOutput::Codes { signed, bits } => {
                    format!("{} codes of {bits} bits", sign(signed))
                }
            };
            let extras = gemm.extras.iter().map(|extra| match extra {
                Extra::PerColumn => "column",
                Extra::PerElement => "element",
            });
            vec![
                ("k", gemm.k.to_string()),
                ("depth", gemm.depth.to_string()),
                ("n", gemm.n.to_string()),
                ("in", input),
                ("weight", gemm.weight.to_string()),
                ("epilogue", gemm.epilogue.to_string()),
                ("extras", format!("[{}]", extras.collect::<Vec<_>>().join(", "))),
                ("out", output),
            ]
        }
        Kernel::MatMul | Kernel::Softmax | Kernel::Iota => vec![],
        Kernel::Pointwise(expr) => vec![("expr", expr.to_string())],
        Kernel::Reduce { op, keep } => vec![("op", op.name().into()), ("keep", keep.to_string())],
        Kernel::ArgReduce { largest, last } => {
            vec![("largest", largest.to_string()), ("last", last.to_string())]
        }
        Kernel::CumSum { exclusive, reverse } => {
            vec![("exclusive", exclusive.to_string()), ("reverse", reverse.to_string())]
        }
        Kernel::Norm { kind: _, epsilon, float, quantize } => vec![
            ("epsilon", format!("{epsilon:?}")),
            ("float", float.to_string()),
            ("quantize", quantize.as_ref().map_or("none".into(), quantize_attr)),
        ],
        Kernel::Quantize { expr, quantize } => {
            vec![("expr", expr.to_string()), ("quantize", quantize_attr(quantize))]
        }
        Kernel::Attention { scale, causal, mask, precision } => vec![
            ("scale", format!("{scale:?}")),
            ("causal", causal.to_string()),
            ("mask", mask.to_string()),
            ("precision", precision.name().into()),
        ],
        Kernel::Gather { axis, index_rank } => {
            vec![("axis", axis.to_string()), ("index_rank", index_rank.to_string())]
        }
        Kernel::GatherElements { axis } => vec![("axis", axis.to_string())],
        Kernel::GatherNd { batch_dims } => vec![("batch_dims", batch_dims.to_string())],
        Kernel::ScatterElements { axis, op } => {
            vec![("axis", axis.to_string()), ("op", op.name().into())]
        }
        Kernel::ScatterNd { op } => vec![("op", op.name().into())],
        Kernel::Dims(sizes) => vec![("sizes", format!("[{}]", dims(sizes)))],
    }
}
