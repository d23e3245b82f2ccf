//! Types of matrix products and of the transformer's own operations.

use super::{
    InferError, Inferred, broadcast_shapes, check_broadcast, f32s, floats, invalid, plain, same,
    same_elem, same_shape,
};
use crate::dim::Dim;
use crate::types::{Elem, Type};

pub(super) fn matmul([a, b]: [&Type; 2]) -> Inferred {
    plain("matmul", &[a, b])?;
    same_elem("matmul", a, b)?;
    if a.elem == Elem::Bool || a.rank() < 2 || b.rank() < 2 {
        invalid!("`matmul` of {a} and {b}: wants numbers of rank at least 2");
    }
    let ([a_batch @ .., m, k], [b_batch @ .., k2, n]) = (&a.shape[..], &b.shape[..]) else {
        invalid!("`matmul` of {a} and {b}");
    };
    same("matmul", k, k2)?;
    let mut shape = broadcast_shapes(&[&a_batch.to_vec(), &b_batch.to_vec()])?;
    shape.extend([m.clone(), n.clone()]);
    Ok(Type::new(a.elem, shape))
}

fn has_channels(what: &str, x: &Type) -> Result<(), InferError> {
    if x.rank() == 0 {
        invalid!("`{what}` of a scalar");
    }
    Ok(())
}

pub(super) fn softmax([x]: [&Type; 1]) -> Inferred {
    floats("softmax", &[x])?;
    has_channels("softmax", x)?;
    Ok(x.clone())
}

fn norm(what: &str, epsilon: f32, operands: &[&Type]) -> Inferred {
    floats(what, operands)?;
    let x = operands[0];
    has_channels(what, x)?;
    if !(epsilon >= 0.0 && epsilon.is_finite()) {
        invalid!("`{what}`: epsilon {epsilon:?}");
    }
    for table in &operands[1..] {
        same_shape(what, &table.shape, &[x.last()])?;
    }
    Ok(x.clone())
}

pub(super) fn layer_norm(epsilon: f32, operands: &[&Type]) -> Inferred {
    if !(2..=3).contains(&operands.len()) {
        invalid!("`layer_norm` takes 2 or 3 operands, {} given", operands.len());
    }
    norm("layer_norm", epsilon, operands)
}

pub(super) fn rms_norm(epsilon: f32, operands: [&Type; 2]) -> Inferred {
    norm("rms_norm", epsilon, &operands)
}

pub(super) fn rope([x, cos, sin]: [&Type; 3]) -> Inferred {
    floats("rope", &[x, cos, sin])?;
    has_channels("rope", x)?;
    if x.last().exact_div(&Dim::from(2i64)).is_none() {
        invalid!("`rope` wants an even last axis, not {x}");
    }
    check_broadcast("rope", &cos.shape, &x.shape)?;
    check_broadcast("rope", &sin.shape, &x.shape)?;
    Ok(x.clone())
}

pub(super) fn attention(scale: f32, operands: &[&Type]) -> Inferred {
    let what = "attention";
    let (q, k, v, mask) = match operands {
        [q, k, v] => (q, k, v, None),
        [q, k, v, mask] => (q, k, v, Some(mask)),
        _ => invalid!("`attention` takes 3 or 4 operands, {} given", operands.len()),
    };
    f32s(what, operands)?;
    if !scale.is_finite() {
        invalid!("`attention`: scale {scale:?}");
    }
    let ([b, h, s, d], [kb, g, t, kd], [vb, vg, vt, e]) =
        (&q.shape[..], &k.shape[..], &v.shape[..])
    else {
        invalid!("`attention` wants operands of rank 4, not {q}, {k}, {v}");
    };
    for (x, y) in [(b, kb), (b, vb), (g, vg), (t, vt), (d, kd)] {
        same(what, x, y)?;
    }
    if h.exact_div(g).is_none() {
        if h.is_const() && g.is_const() {
            invalid!("`attention`: {h} heads are not a multiple of {g} groups");
        }
        return Err(InferError::Unequal(h.clone(), g.clone()));
    }
    if let Some(mask) = mask {
        check_broadcast(what, &mask.shape, &[b.clone(), h.clone(), s.clone(), t.clone()])?;
    }
    Ok(Type::f32(vec![b.clone(), h.clone(), s.clone(), e.clone()]))
}
