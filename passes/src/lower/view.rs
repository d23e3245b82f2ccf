//! Algebra of strided views: what a reshape, transpose, broadcast or slice does to a view, where it
//! can be done without moving a byte.

use fqc_ir::plan::{View, row_major};
use fqc_ir::{Dim, Shape};

/// The same elements under another shape, if strides can say it.
pub fn reshape(view: &View, shape: &[Dim]) -> Option<View> {
    if view.is_contiguous() {
        return Some(View {
            buffer: view.buffer,
            offset: view.offset.clone(),
            shape: shape.to_vec(),
            strides: row_major(shape),
        });
    }
    let one = Dim::one();
    let old: Vec<(&Dim, &Dim)> =
        view.shape.iter().zip(&view.strides).filter(|(d, _)| **d != one).collect();
    let mut strides = vec![Dim::zero(); shape.len()];
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < shape.len() {
        if j < shape.len() && shape[j] == one {
            j += 1;
            continue;
        }
        let (first, start) = (i, j);
        let (mut have, mut want) = (old.get(i)?.0.clone(), shape.get(j)?.clone());
        i += 1;
        j += 1;
        while have != want {
            if smaller(&have, &want)? {
                have = have * old.get(i)?.0.clone();
                i += 1;
            } else {
                want = want * shape.get(j)?.clone();
                j += 1;
            }
        }
        // The old axes of the chunk must themselves be one run.
        for pair in old[first..i].windows(2) {
            if *pair[0].1 != pair[1].0.clone() * pair[1].1.clone() {
                return None;
            }
        }
        let mut stride = old[i - 1].1.clone();
        for axis in (start..j).rev() {
            strides[axis] = stride.clone();
            stride = stride * shape[axis].clone();
        }
    }
    Some(View { buffer: view.buffer, offset: view.offset.clone(), shape: shape.to_vec(), strides })
}

/// Whether `a` is the smaller of two different sizes, if that is certain.
fn smaller(a: &Dim, b: &Dim) -> Option<bool> {
    match (a.as_const(), b.as_const()) {
        (Some(a), Some(b)) => Some(a < b),
        _ if b.exact_div(a).is_some() => Some(true),
        _ if a.exact_div(b).is_some() => Some(false),
        _ => None,
    }
}

/// Axis `i` of the result is axis `perm[i]` of the view.
pub fn transpose(view: &View, perm: &[usize]) -> View {
    View {
        buffer: view.buffer,
        offset: view.offset.clone(),
        shape: perm.iter().map(|&p| view.shape[p].clone()).collect(),
        strides: perm.iter().map(|&p| view.strides[p].clone()).collect(),
    }
}

/// NumPy broadcast: axes of size one, and missing leading ones, get stride 0.
pub fn broadcast(view: &View, shape: &[Dim]) -> View {
    let lead = shape.len() - view.shape.len();
    let strides = (0..shape.len())
        .map(|axis| match axis.checked_sub(lead) {
            Some(i) if view.shape[i] == shape[axis] => view.strides[i].clone(),
            _ => Dim::zero(),
        })
        .collect();
    View { buffer: view.buffer, offset: view.offset.clone(), shape: shape.to_vec(), strides }
}

/// `out[i] = in[start + i * step]` along each axis.
pub fn slice(view: &View, start: &[Dim], len: &[Dim], step: &[i64]) -> View {
    let mut out = view.clone();
    for axis in 0..len.len() {
        out.offset = out.offset + start[axis].clone() * view.strides[axis].clone();
        out.shape[axis] = len[axis].clone();
        out.strides[axis] = view.strides[axis].clone() * Dim::from(step[axis]);
    }
    out
}

/// The part of the view that starts at `start` along one axis and has `len` elements there.
pub fn narrow(view: &View, axis: usize, start: Dim, len: Dim) -> View {
    let mut out = view.clone();
    out.offset = out.offset + start * view.strides[axis].clone();
    out.shape[axis] = len;
    out
}

/// All axes but the last as one, if they are one run: `[rows, n]`.
pub fn rows(view: &View) -> Option<View> {
    let rank = view.shape.len();
    if rank == 0 {
        return None;
    }
    let (n, inner) = (view.shape[rank - 1].clone(), view.strides[rank - 1].clone());
    let count: Dim = fqc_ir::dim::product(&view.shape[..rank - 1]);
    let lead = View {
        buffer: view.buffer,
        offset: view.offset.clone(),
        shape: view.shape[..rank - 1].to_vec(),
        strides: view.strides[..rank - 1].to_vec(),
    };
    let one: Shape = vec![count];
    let lead = match lead.shape.len() {
        0 => View { shape: one, strides: vec![n.clone()], ..lead },
        _ => collapse(&lead, one)?,
    };
    Some(View {
        buffer: view.buffer,
        offset: lead.offset,
        shape: vec![lead.shape[0].clone(), n],
        strides: vec![lead.strides[0].clone(), inner],
    })
}

/// All axes of a non-empty view as one axis of constant stride.
fn collapse(view: &View, shape: Shape) -> Option<View> {
    let one = Dim::one();
    let axes: Vec<(&Dim, &Dim)> =
        view.shape.iter().zip(&view.strides).filter(|(d, _)| **d != one).collect();
    for pair in axes.windows(2) {
        if *pair[0].1 != pair[1].0.clone() * pair[1].1.clone() {
            return None;
        }
    }
    let stride = axes
        .last()
        .map_or_else(|| view.strides.last().cloned().unwrap_or(one.clone()), |a| a.1.clone());
    Some(View { buffer: view.buffer, offset: view.offset.clone(), shape, strides: vec![stride] })
}

/// Whether neighbouring elements of the last axis are neighbours in memory.
pub fn unit_last(view: &View) -> bool {
    match (view.shape.last(), view.strides.last()) {
        (Some(d), Some(s)) => *s == Dim::one() || *d == Dim::one(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fqc_ir::plan::BufferId;

    fn dims(v: &[&str]) -> Vec<Dim> {
        v.iter().map(|s| s.parse::<i64>().map_or_else(|_| Dim::sym(s), Dim::from)).collect()
    }

    #[test]
    fn heads_of_a_fused_projection_are_a_view() {
        let whole = View::whole(BufferId(0), &dims(&["b", "s", "1152"]));
        let q = narrow(&whole, 2, 384i64.into(), 384i64.into());
        let heads = reshape(&q, &dims(&["b", "s", "12", "32"])).expect("splits the last axis");
        let shown: Vec<String> = heads.strides.iter().map(Dim::to_string).collect();
        assert_eq!(shown, ["1152*s", "1152", "32", "1"]);
        assert_eq!(heads.offset.as_const(), Some(384));
        let flat = rows(&q).expect("rows are evenly spaced");
        assert_eq!(flat.shape[0].to_string(), "b*s");
        assert_eq!(flat.strides[0].as_const(), Some(1152));
        assert!(reshape(&q, &dims(&["b", "s", "384"])).is_some());
        assert!(reshape(&transpose(&heads, &[0, 2, 1, 3]), &dims(&["b", "s", "384"])).is_none());
    }
}
