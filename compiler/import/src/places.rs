//! Where the elements of small constant shapes lie in row-major order.

use crate::known::Known;
use crate::limits;
use fqc_ir::Dim;

/// All sizes as numbers, if none is symbolic.
pub(crate) fn numbers(dims: &[Dim]) -> Option<Vec<i64>> {
    dims.iter().map(Dim::as_const).collect()
}

/// Number of elements, if it is constant and small enough to follow.
pub(crate) fn count(shape: &[Dim]) -> Option<usize> {
    let size = |d: &Dim| d.as_const().and_then(|d| usize::try_from(d).ok());
    let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(size(d)?))?;
    (n <= limits::TRACKED && shape.len() <= limits::RANK).then_some(n)
}

pub(crate) fn strides(sizes: &[usize]) -> Vec<usize> {
    let mut out = vec![1; sizes.len()];
    for i in (1..sizes.len()).rev() {
        out[i - 1] = out[i] * sizes[i];
    }
    out
}

/// Row-major places of a strided box.
pub(crate) fn walk(sizes: &[usize], steps: &[usize], first: usize) -> std::vec::IntoIter<usize> {
    let empty = sizes.contains(&0);
    let mut places = if empty { Vec::new() } else { vec![first] };
    for (&n, &s) in sizes.iter().zip(steps) {
        places = places.iter().flat_map(|&p| (0..n).map(move |i| p + i * s)).collect();
    }
    places.into_iter()
}

pub(crate) fn slice_places(
    from: &[i64],
    to: &[usize],
    step: &[i64],
    strides: &[usize],
) -> Vec<usize> {
    let mut places = if to.contains(&0) { Vec::new() } else { vec![0usize] };
    for axis in 0..to.len() {
        let at = |i: usize| (from[axis] + i as i64 * step[axis]) as usize * strides[axis];
        places = places.iter().flat_map(|&p| (0..to[axis]).map(move |i| p + at(i))).collect();
    }
    places
}

/// Known elements broadcast to a shape that is constant and small.
pub(crate) fn spread(k: &Known, from: &[Dim], to: &[Dim]) -> Option<Known> {
    count(to)?;
    let (from, to) = (numbers(from)?, numbers(to)?);
    let lead = to.len().checked_sub(from.len())?;
    let own: Vec<usize> = from.iter().map(|&d| d as usize).collect();
    let mut steps = vec![0; lead];
    for (i, s) in strides(&own).into_iter().enumerate() {
        match (from[i], to[lead + i]) {
            (a, b) if a == b => steps.push(s),
            (1, _) => steps.push(0),
            _ => return None,
        }
    }
    let sizes: Vec<usize> = to.iter().map(|&d| d as usize).collect();
    Some(k.pick(walk(&sizes, &steps, 0)))
}

/// Concatenation of known tensors, each as `outer` chunks.
pub(crate) fn join(parts: &[(&Known, Vec<usize>)], outer: usize) -> Option<Known> {
    let total: usize = parts.iter().map(|(k, _)| k.len()).sum();
    if total > limits::TRACKED || outer == 0 {
        return None;
    }
    let mut dims = Vec::new();
    let mut floats = Vec::new();
    for o in 0..outer {
        for (k, _) in parts {
            let chunk = k.len() / outer;
            let range = o * chunk..(o + 1) * chunk;
            match k {
                Known::Dims(v) => dims.extend_from_slice(&v[range]),
                Known::Floats(v) => floats.extend_from_slice(&v[range]),
            }
        }
    }
    match parts[0].0 {
        Known::Dims(_) => Some(Known::Dims(dims)),
        Known::Floats(_) => Some(Known::Floats(floats)),
    }
}
