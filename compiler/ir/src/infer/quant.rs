//! Types of quantised operations, and what a quantisation in a type must fulfil.

use super::{InferError, Inferred, f32s, invalid, same, same_shape, with_last};
use crate::dim::Dim;
use crate::expr::Expr;
use crate::quant::{FlattenMap, Quant, Quantizer, Scale};
use crate::types::{Elem, Type};

fn is_scale(v: f32) -> bool {
    v > 0.0 && v.is_finite()
}

/// That the quantisation of a type, if any, is one: code width and element type, scales, digits.
pub(crate) fn check_codes(ty: &Type) -> Result<(), InferError> {
    let Some(quant) = ty.quant.as_deref() else { return Ok(()) };
    let fits = match (quant.bits, quant.signed) {
        (8, true) => ty.elem == Elem::I8,
        (8, false) => ty.elem == Elem::U8,
        (4, true) => matches!(ty.elem, Elem::I8 | Elem::I4),
        (4, false) => matches!(ty.elem, Elem::U8 | Elem::U4),
        _ => invalid!("codes of {} bits: must be 8 or 4", quant.bits),
    };
    if !fits {
        let sign = if quant.signed { "signed" } else { "unsigned" };
        invalid!("{sign} codes of {} bits are not kept as {}", quant.bits, ty.elem);
    }
    match &quant.scale {
        Scale::Tensor(s) if !is_scale(*s) => {
            invalid!("scale {s:?} is not positive and finite");
        }
        Scale::Tensor(_) => {}
        Scale::Axis { axis, scales } => {
            let Some(size) = ty.shape.get(*axis) else {
                invalid!("scales along axis {axis} of {ty}, which has rank {}", ty.rank());
            };
            if size.as_const() != i64::try_from(scales.len()).ok() {
                invalid!("per-axis scale has {} entries, axis {axis} has {size}", scales.len());
            }
            if let Some(s) = scales.iter().find(|s| !is_scale(**s)) {
                invalid!("scale {s:?} is not positive and finite");
            }
        }
    }
    let Some(map) = quant.flatten.as_deref() else { return Ok(()) };
    check_map(map)?;
    let padded = Dim::from(i64::from(map.padded));
    if ty.shape.last() != Some(&padded) && ty.shape.first() != Some(&padded) {
        invalid!("flattened to {padded} channels, which {ty} has not");
    }
    Ok(())
}

/// That a map lists existing channels, their digits 2, 3, … in order, and leaves room for all.
fn check_map(map: &FlattenMap) -> Result<(), InferError> {
    let mut last = None;
    for &(source, digit) in map.tail.iter() {
        let follows = match last {
            Some((s, d)) if s == source => digit == d + 1,
            Some((s, _)) => s < source && digit == 2,
            None => digit == 2,
        };
        if source >= map.base || !follows {
            invalid!("digit {digit} of channel {source} in the tail of {} channels", map.base);
        }
        last = Some((source, digit));
    }
    let used = u64::from(map.base) + map.tail.len() as u64;
    if used > u64::from(map.padded) {
        invalid!("{used} channels do not fit into {}", map.padded);
    }
    Ok(())
}

/// That the last axis of `x` is the base of the map.
fn check_base(what: &str, x: &Type, map: &FlattenMap) -> Result<(), InferError> {
    same(what, &x.last(), &Dim::from(i64::from(map.base)))
}

pub(super) fn flatten(threshold: f32, map: &FlattenMap, [x]: [&Type; 1]) -> Inferred {
    f32s("flatten", &[x])?;
    if !is_scale(threshold) {
        invalid!("`flatten`: threshold {threshold:?} is not positive and finite");
    }
    if x.rank() == 0 {
        invalid!("`flatten` of a scalar");
    }
    check_map(map)?;
    check_base("flatten", x, map)?;
    Ok(Type::f32(with_last(&x.shape, Dim::from(i64::from(map.padded)))))
}

pub(super) fn quantize(quantizer: &Quantizer, x: &Type) -> Inferred {
    let what = "quantize";
    f32s(what, &[x])?;
    if x.rank() == 0 {
        invalid!("`quantize` of a scalar");
    }
    let quant = &quantizer.quant;
    if !matches!(quant.scale, Scale::Tensor(_)) {
        invalid!("`quantize` to one scale a channel; only constants have those");
    }
    if let Some(v) = quantizer.inverse.iter().find(|v| !is_scale(**v)) {
        invalid!("`quantize`: multiplier {v:?} is not positive and finite");
    }
    if quantizer.inverse.len() != 1 {
        same("multipliers of `quantize`", &Dim::from(quantizer.inverse.len()), &x.last())?;
    }
    let last = match quant.flatten.as_deref() {
        Some(map) => {
            check_base(what, x, map)?;
            Dim::from(i64::from(map.padded))
        }
        None => x.last(),
    };
    let elem = if quant.signed { Elem::I8 } else { Elem::U8 };
    let ty = Type::new(elem, with_last(&x.shape, last)).with_quant(quant.clone());
    check_codes(&ty)?;
    Ok(ty)
}

pub(super) fn dequantize([x]: [&Type; 1]) -> Inferred {
    if x.quant.is_none() {
        invalid!("`dequantize` of {x}, which has no quantisation");
    }
    check_codes(x)?;
    Ok(Type::f32(x.shape.clone()))
}

/// Operand types of a linear layer; the shape of its result.
fn linear(what: &str, x: &Type, w: &Type) -> Result<Vec<Dim>, InferError> {
    let [k, n] = &w.shape[..] else {
        invalid!("`{what}` wants weights of rank 2, not {w}");
    };
    if x.rank() == 0 {
        invalid!("`{what}` of a scalar");
    }
    if !k.is_const() || !n.is_const() {
        invalid!("`{what}` wants weights of constant shape, not {w}");
    }
    same(what, &x.last(), k)?;
    Ok(with_last(&x.shape, n.clone()))
}

/// That both operands are codes that one integer product multiplies.
fn check_product(what: &str, x: &Quant, w: &Quant) -> Result<(), InferError> {
    if !matches!(x.scale, Scale::Tensor(_)) {
        invalid!("`{what}`: the activation has one scale a channel");
    }
    if matches!(w.scale, Scale::Axis { axis, .. } if axis != 1) {
        invalid!("`{what}`: the scales of the weights must run along axis 1, the output channels");
    }
    if !w.signed {
        invalid!("`{what}`: the codes of the weights are unsigned");
    }
    Ok(())
}

pub(super) fn gemm_accumulate([x, w]: [&Type; 2]) -> Inferred {
    let what = "gemm_accumulate";
    let (Some(xq), Some(wq)) = (x.quant.as_deref(), w.quant.as_deref()) else {
        invalid!("`{what}` wants codes, not {x} and {w}");
    };
    check_codes(x)?;
    check_codes(w)?;
    check_product(what, xq, wq)?;
    Ok(Type::new(Elem::I32, linear(what, x, w)?))
}

pub(super) fn gemm(epilogue: &Expr, out: Option<&Quantizer>, operands: &[&Type]) -> Inferred {
    let what = "gemm";
    let [x, w, extras @ ..] = operands else {
        invalid!("`gemm` takes at least 2 operands, {} given", operands.len());
    };
    let shape = match (x.quant.is_some(), w.quant.is_some()) {
        (false, false) => {
            f32s(what, &[x, w])?;
            linear(what, x, w)?
        }
        (true, true) => gemm_accumulate([x, w])?.shape,
        _ => invalid!("`gemm` of codes and floats: {x} and {w}"),
    };
    f32s(what, extras)?;
    for extra in extras {
        if extra.rank() == 1 {
            same_shape(what, &extra.shape, &shape[shape.len() - 1..])?;
        } else {
            same_shape(what, &extra.shape, &shape)?;
        }
    }
    let elems = vec![Elem::F32; 1 + extras.len()];
    match epilogue.elem(&elems) {
        Ok(Elem::F32) => {}
        Ok(elem) => invalid!("`gemm`: the epilogue gives {elem}, not f32"),
        Err(e) => invalid!("`gemm`: the epilogue {e}"),
    }
    let real = Type::f32(shape);
    match out {
        Some(quantizer) => quantize(quantizer, &real),
        None => Ok(real),
    }
}
