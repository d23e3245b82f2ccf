//! The standard's `Attention` (opset 23 and 24): heads split and merged, caches appended, masks of
//! all kinds made into one. Where nothing else than the result is read it becomes one node, else the
//! products and the softmax it stands for.

use super::Rule;
use super::index::places;
use super::math::with;
use super::nn::product;
use crate::builder::V;
use crate::cx::Cx;
use crate::error::{Fault, Res};
use crate::tensor;
use fqc_ir::{BinaryOp, Dim, Elem, Op, UnaryOp};

pub(super) const TABLE: super::Table = &[("Attention", Rule::Fn(attention))];

/// Queries, keys and values as \[batch, heads, positions, width\].
pub(super) struct Heads {
    pub q: V,
    pub k: V,
    pub v: V,
}

/// Everything else that decides the result.
pub(super) struct Settings {
    pub scale: f32,
    pub softcap: f32,
    /// Hides key j from query i where j > i + this.
    pub causal: Option<Dim>,
    /// Bool, or floats that are added.
    pub mask: Option<V>,
    pub precision: Elem,
}

fn attention(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let q = cx.operand(0)?;
    let merged = q.rank() == 3;
    let (mut heads, past_len) = heads(cx)?;
    let (present_key, present_value) = (heads.k.clone(), heads.v.clone());
    let settings = settings(cx, &heads, past_len)?;
    let mode = cx.attrs.int("qk_matmul_output_mode", 0)?;
    if !(0..=3).contains(&mode) {
        return Err(Fault::invalid(format!("`qk_matmul_output_mode` is {mode}")));
    }
    let shown = cx.wants(3).then_some(mode);
    let (y, scores) = match fused(cx, &heads, &settings, shown)? {
        Some(y) => (y.clone(), y),
        None => decomposed(cx, &mut heads, &settings, shown.unwrap_or(0))?,
    };
    let y = if merged { merge(cx, &y)? } else { y };
    Ok(vec![y, present_key, present_value, scores])
}

/// \[b, s, h*d\] to \[b, h, s, d\].
pub(super) fn split(cx: &mut Cx<'_>, x: &V, heads: i64) -> Res<V> {
    let [b, s, hidden] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` has not three axes", x.ty)));
    };
    let width = Some(heads)
        .filter(|&h| h > 0)
        .and_then(|h| hidden.exact_div(&Dim::from(h)))
        .ok_or_else(|| Fault::invalid(format!("`{}` in {heads} heads", x.ty)))?;
    let to = vec![b.clone(), s.clone(), Dim::from(heads), width];
    let y = cx.reshape(x, to)?;
    cx.transpose(&y, vec![0, 2, 1, 3])
}

/// \[b, h, s, d\] to \[b, s, h*d\].
pub(super) fn merge(cx: &mut Cx<'_>, x: &V) -> Res<V> {
    let [b, h, s, d] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` has not four axes", x.ty)));
    };
    let to = vec![b.clone(), s.clone(), h.clone() * d.clone()];
    let y = cx.transpose(x, vec![0, 2, 1, 3])?;
    cx.reshape(&y, to)
}

/// The operands split into heads, with the caches in front, and the length of the caches.
fn heads(cx: &mut Cx<'_>) -> Res<(Heads, Dim)> {
    let (q, k, v) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let q_heads = cx.attrs.int("q_num_heads", 0)?;
    let kv_heads = cx.attrs.int("kv_num_heads", 0)?;
    let mut all = match q.rank() {
        3 => Heads {
            q: split(cx, &q, q_heads)?,
            k: split(cx, &k, kv_heads)?,
            v: split(cx, &v, kv_heads)?,
        },
        _ => Heads { q, k, v },
    };
    if [&all.q, &all.k, &all.v].iter().any(|t| t.rank() != 4) {
        return Err(Fault::invalid("queries, keys and values have neither 3 nor 4 axes"));
    }
    let past_len = match (cx.opt(4), cx.opt(5)) {
        (None, None) => Dim::zero(),
        (Some(key), Some(value)) if key.rank() == 4 => {
            all.k = cx.concat(&[key.clone(), all.k], 2)?;
            all.v = cx.concat(&[value, all.v], 2)?;
            key.shape()[2].clone()
        }
        _ => return Err(Fault::invalid("only one of the two caches, or not of four axes")),
    };
    Ok((all, past_len))
}

fn settings(cx: &mut Cx<'_>, heads: &Heads, past_len: Dim) -> Res<Settings> {
    let scale = match cx.attrs.float_opt("scale")? {
        Some(scale) => scale,
        None => default_scale(&heads.q)?,
    };
    let softcap = cx.attrs.float("softcap", 0.0)?;
    let precision = match cx.attrs.int_opt("softmax_precision")? {
        None | Some(0) => heads.q.elem(),
        Some(t) => tensor::elem(i32::try_from(t).unwrap_or(-1))?,
    };
    let causal = cx.attrs.flag("is_causal", 0)?.then_some(past_len);
    let keys = heads.k.shape()[2].clone();
    let mut mask = cx.opt(3);
    if let Some(m) = &mask {
        mask = Some(padded(cx, m, &keys)?);
    }
    if let Some(lengths) = cx.opt(6) {
        let valid = valid_keys(cx, &lengths, &keys)?;
        mask = Some(match mask {
            None => valid,
            Some(m) if m.elem() == Elem::Bool => cx.binary(BinaryOp::And, &m, &valid)?,
            Some(m) => {
                let more = additive(cx, &valid, m.elem())?;
                cx.binary(BinaryOp::Add, &m, &more)?
            }
        });
    }
    Ok(Settings { scale, softcap, causal, mask, precision })
}

/// `1 / sqrt(width of a head)`.
pub(super) fn default_scale(q: &V) -> Res<f32> {
    let width = q.ty.last().as_const().filter(|&d| d > 0).ok_or_else(|| {
        Fault::unsupported(format!("heads of symbolic width in `{}`", q.ty))
            .help("set the attribute `scale`")
    })?;
    Ok((1.0 / (width as f64).sqrt()) as f32)
}

/// A mask whose last axis is shorter than the keys hides the rest.
fn padded(cx: &mut Cx<'_>, mask: &V, keys: &Dim) -> Res<V> {
    let last = mask.ty.last();
    match (last.as_const(), keys.as_const()) {
        (Some(have), Some(want)) if have < want && cx.version >= 24 => {
            let bool = mask.elem() == Elem::Bool;
            let fill = cx.scalar(mask.elem(), if bool { 0.0 } else { f64::NEG_INFINITY });
            let mut shape = mask.ty.shape.clone();
            let at = shape.len() - 1;
            shape[at] = Dim::from(want - have);
            let tail = cx.broadcast(&fill, shape)?;
            cx.concat(&[mask.clone(), tail], at)
        }
        _ => Ok(mask.clone()),
    }
}

/// Bool \[b, 1, 1, t\]: keys before each sample's length.
pub(super) fn valid_keys(cx: &mut Cx<'_>, lengths: &V, keys: &Dim) -> Res<V> {
    let to = vec![lengths.ty.count(), Dim::one(), Dim::one(), Dim::one()];
    let lengths = cx.reshape(lengths, to)?;
    let lengths = cx.cast(&lengths, Elem::I64)?;
    let places = cx.iota(keys)?;
    cx.binary(BinaryOp::Lt, &places, &lengths)
}

/// Zero where the mask is true, minus infinity where it is false.
fn additive(cx: &mut Cx<'_>, mask: &V, elem: Elem) -> Res<V> {
    if mask.elem() != Elem::Bool {
        return cx.cast(mask, elem);
    }
    let (shown, hidden) = (cx.scalar(elem, 0.0), cx.scalar(elem, f64::NEG_INFINITY));
    cx.select(mask, &shown, &hidden)
}

/// Bool \[s, t\]: key j is visible to query i where j <= i + offset.
fn lower_triangle(cx: &mut Cx<'_>, queries: &Dim, keys: &Dim, offset: &Dim) -> Res<V> {
    let (i, j) = places(cx, queries, keys)?;
    let offset = cx.size(offset);
    let diagonal = cx.binary(BinaryOp::Add, &i, &offset)?;
    cx.binary(BinaryOp::Le, &j, &diagonal)
}

/// One node, where its meaning is exactly that of the settings.
pub(super) fn fused(
    cx: &mut Cx<'_>,
    heads: &Heads,
    settings: &Settings,
    shown: Option<i64>,
) -> Res<Option<V>> {
    let plain = [&heads.q, &heads.k, &heads.v].iter().all(|t| t.elem() == Elem::F32);
    if !plain || shown.is_some() || settings.softcap != 0.0 || settings.precision != Elem::F32 {
        return Ok(None);
    }
    let (queries, keys) = (heads.q.shape()[2].clone(), heads.k.shape()[2].clone());
    let mut mask = settings.mask.as_ref().map(|m| additive(cx, m, Elem::F32)).transpose()?;
    // The node aligns the last query with the last key; anything else is a mask.
    let aligned = |offset: &Dim| keys.clone() - queries.clone() == *offset;
    let causal = settings.causal.as_ref().is_some_and(aligned);
    if let Some(offset) = settings.causal.as_ref().filter(|_| !causal) {
        let visible = lower_triangle(cx, &queries, &keys, offset)?;
        let triangle = additive(cx, &visible, Elem::F32)?;
        mask = Some(match mask {
            None => triangle,
            Some(m) => cx.binary(BinaryOp::Add, &m, &triangle)?,
        });
    }
    let op = Op::Attention { scale: settings.scale, causal };
    let mut operands = vec![&heads.q, &heads.k, &heads.v];
    operands.extend(mask.as_ref());
    cx.add(op, &operands).map(Some)
}

/// Every group of keys or values once for each of its query heads.
fn repeated(cx: &mut Cx<'_>, x: &V, heads: &Dim) -> Res<V> {
    let [b, g, t, d] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` has not four axes", x.ty)));
    };
    if g == heads {
        return Ok(x.clone());
    }
    let times = heads
        .exact_div(g)
        .ok_or_else(|| Fault::invalid(format!("{heads} heads are no multiple of {g}")))?;
    let apart = vec![b.clone(), g.clone(), Dim::one(), t.clone(), d.clone()];
    let copied = vec![b.clone(), g.clone(), times, t.clone(), d.clone()];
    let to = vec![b.clone(), heads.clone(), t.clone(), d.clone()];
    let y = cx.reshape(x, apart)?;
    let y = cx.broadcast(&y, copied)?;
    cx.reshape(&y, to)
}

/// Result and the scores at the stage that `mode` names.
fn decomposed(cx: &mut Cx<'_>, heads: &mut Heads, settings: &Settings, mode: i64) -> Res<(V, V)> {
    let elem = heads.q.elem();
    let count = heads.q.shape()[1].clone();
    heads.k = repeated(cx, &heads.k.clone(), &count)?;
    heads.v = repeated(cx, &heads.v.clone(), &count)?;
    // Both factors carry the root of the scale, as the standard writes it, against overflow.
    let root = f64::from(settings.scale).sqrt();
    let q = with(cx, BinaryOp::Mul, &heads.q, root)?;
    let k = cx.swap_last(&heads.k)?;
    let k = with(cx, BinaryOp::Mul, &k, root)?;
    let raw = product(cx, &q, &k)?;
    let mut capped = raw.clone();
    if settings.softcap != 0.0 {
        let cap = f64::from(settings.softcap);
        let low = with(cx, BinaryOp::Div, &raw, cap)?;
        let bent = cx.unary(UnaryOp::Tanh, &low)?;
        capped = with(cx, BinaryOp::Mul, &bent, cap)?;
    }
    let (queries, keys) = (heads.q.shape()[2].clone(), heads.k.shape()[2].clone());
    let mut masked = capped.clone();
    if let Some(mask) = &settings.mask {
        let mask = additive(cx, mask, elem)?;
        masked = cx.binary(BinaryOp::Add, &masked, &mask)?;
    }
    if let Some(offset) = &settings.causal {
        let visible = lower_triangle(cx, &queries, &keys, offset)?;
        let triangle = additive(cx, &visible, elem)?;
        masked = cx.binary(BinaryOp::Add, &masked, &triangle)?;
    }
    let wide = cx.cast(&masked, settings.precision)?;
    let weights = cx.add(Op::Softmax, &[&wide])?;
    let weights = cx.cast(&weights, elem)?;
    let values = cx.cast(&heads.v, elem)?;
    let y = product(cx, &weights, &values)?;
    let scores = match mode {
        0 => raw,
        1 => capped,
        2 => masked,
        _ => weights,
    };
    Ok((y, scores))
}
