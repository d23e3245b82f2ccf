//! Attention of many queries on Hopper: instances of `kernels/cuda/attention_sm90.cuh`, which read queries,
//! keys and values through tensor maps. Their arguments and sizes are those of the `mma.sync` kernel, which
//! fewer queries take.

use fqc_ir::dim::Dim;
use fqc_ir::plan::View;
use fqc_ir::types::Elem;
use fqc_kernels::cuda::attention_sm90::{AttentionSm90Config, THREADS};
use fqc_kernels::cuda::gemm::Output;

use super::attention::{self, Attention};
use super::gemm::Instance;
use super::text::{Text, divides};
use crate::spec::reach_below;

/// When the `mma.sync` kernel is faster, figures in `tests/cuda/README.md`: up to so many queries, and up to
/// twice as many where the heads of all batches are more than a crowd.
pub const FEW: [(&str, i64); 2] = [("max_queries", 64), ("crowd", 256)];

/// Whether the kernel takes an attention that fits the tensor cores: bf16 in memory, heads of a width that
/// it has, rows that a tensor map can describe.
pub fn fits(spec: &Attention, views: &[&View], elem: Elem) -> bool {
    let width = views[0].shape[3].as_const();
    let mapped = |v: &View| {
        let steps = v.shape.iter().zip(&v.strides).take(3);
        v.shape[3].as_const() == width
            && v.strides[3] == Dim::one()
            && reach_below(v) == Dim::zero()
            && divides(8, &v.offset)
            && steps.into_iter().all(|(n, stride)| {
                divides(8, stride) && (*stride != Dim::zero() || *n == Dim::one())
            })
    };
    elem == Elem::BF16
        && matches!(width, Some(64 | 128))
        && spec.scale.is_finite()
        && spec.scale > 0.0
        && views[..3].iter().all(|v| mapped(v))
        // A mask of every query and key would want more registers than there are.
        && attention::added(spec, views) != "kFull"
}

/// What the launch needs to describe the operands, in this order: batches, heads, key heads, queries, keys,
/// and for each of q, k and v the elements from one batch, head and row to the next.
pub fn sizes(views: &[&View]) -> Vec<Dim> {
    let (q, k) = (views[0], views[1]);
    let counts = [&q.shape[0], &q.shape[1], &k.shape[1], &q.shape[2], &k.shape[2]];
    let strides = views[..3].iter().flat_map(|v| &v.strides[..3]);
    counts.into_iter().chain(strides).cloned().collect()
}

/// The kernel, of a text that declares the `Head` and the `Codes` of a `block`.
pub fn instance(
    spec: &Attention,
    width: i64,
    mask: &str,
    result: &str,
    t: Text,
) -> Result<Instance, String> {
    let config = AttentionSm90Config {
        dim: u32::try_from(width).map_err(|_| "a head of no width")?,
        stages: if width == 64 { 4 } else { 2 },
        causal: spec.causal,
        // The generated writer writes; this is the operands' type.
        output: Output::Bf16,
    };
    if let Some(fault) = config.fault() {
        return Err(fault);
    }
    let (body, words) = t.with_words();
    let source = format!(
        "{specialisation}
#include \"attention_sm90_rows.cuh\"

namespace scalar {{

struct Parts {{
    const Words<{words}>& a;

    __device__ __forceinline__ void of(AttentionBlock block, Head<u16>& h, Codes& codes) const {{
{body}    }}
}};

extern \"C\" __global__ void __launch_bounds__(kAttentionThreads, 1)
@(const __grid_constant__ AttentionSm90Arguments arguments, const __grid_constant__ Words<{words}> a) {{
    AttentionRows<{width}, Mask::{mask}, Result::{result}, Parts> rows{{Parts{{a}}}};
    AttentionSm90<Config>::run(arguments, rows);
}}

}}  // namespace scalar
",
        specialisation = config.specialisation(spec.scale),
    );
    let attrs = vec![
        ("threads", i64::from(THREADS)),
        ("shared", config.shared_bytes() as i64),
        ("head_width", width),
    ];
    Ok(Instance { source, attrs })
}
