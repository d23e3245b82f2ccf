//! Inputs made up for shapes: what `bench` and `tune` run a model with.

use crate::data::{Batch, Wanted};
use crate::exit::Failure;
use crate::npz;
use fqbin::Elem;

/// Made-up inputs of the given shapes: small token ids, masks of ones, noise for floats.
pub fn inputs(shapes: &[String], wanted: &[Wanted]) -> Result<Batch, Failure> {
    let mut given: Vec<(&str, Vec<usize>)> = Vec::new();
    for shape in shapes {
        let bad = || Failure::usage(format!("`--shape {shape}` is not NAME=AxB"));
        let (name, dims) = shape.split_once('=').ok_or_else(bad)?;
        let dims: Option<Vec<usize>> = dims.split('x').map(|d| d.parse().ok()).collect();
        if !wanted.iter().any(|w| w.name == name) {
            let names: Vec<&str> = wanted.iter().map(|w| w.name.as_str()).collect();
            return Err(Failure::usage(format!("no input `{name}`; there are {names:?}")));
        }
        given.push((name, dims.ok_or_else(bad)?));
    }
    let (_, first) =
        given.first().ok_or_else(|| Failure::usage("give the shape of an input with `--shape`"))?;
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    let mut batch = Vec::new();
    for want in wanted {
        let own = given.iter().find(|(n, _)| *n == want.name);
        let dims = own.map_or(first, |(_, dims)| dims);
        let count: usize = dims.iter().product();
        let integer = |i: u64| match want.name.as_str() {
            n if n.contains("mask") => 1,
            n if n.contains("type") => 0,
            n if n.contains("position") => i % *dims.last().unwrap_or(&1) as u64,
            _ => 0,
        };
        let ids = want.name.contains("input_ids");
        let mut bytes = Vec::new();
        for i in 0..count as u64 {
            let v = if ids { 5 + next() % 500 } else { integer(i) };
            match want.elem {
                Elem::I64 => bytes.extend((v as i64).to_le_bytes()),
                Elem::I32 => bytes.extend((v as i32).to_le_bytes()),
                Elem::F32 => {
                    bytes.extend(((next() % 2000) as f32 / 1000.0 - 1.0).to_le_bytes());
                }
                Elem::Bool => bytes.push(1),
                other => {
                    let (name, elem) = (&want.name, other.name());
                    return Err(Failure::usage(format!("input `{name}` is {elem}")));
                }
            }
        }
        let tensor = npz::filled(want.elem, dims, &bytes).map_err(Failure::usage)?;
        batch.push((want.name.clone(), tensor));
    }
    Ok(batch)
}
