//! What a caller gives against what the program wants: names, types, sizes, alignment.

use fqbin::{Elem, Port, Program};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::tensor::{TensorView, TensorViewMut, dense_bytes};

/// Inputs and outputs by name.
pub(super) type Given<'n, 'a> = [(&'n str, TensorView<'a>)];
pub(super) type Results<'n, 'a> = [(&'n str, TensorViewMut<'a>)];

/// The bytes of each input, with its index.
pub(super) fn given<'t>(
    program: &'t Program,
    inputs: &'t Given<'_, '_>,
) -> impl Iterator<Item = (usize, &'t [u8])> {
    let ports = program.inputs.iter().enumerate();
    ports.filter_map(|(i, port)| Some((i, find(inputs, port)?.data)))
}

/// The memory of each output, with its index.
pub(super) fn wanted<'t>(
    program: &'t Program,
    outputs: &'t mut Results<'_, '_>,
) -> impl Iterator<Item = (usize, &'t mut [u8])> {
    let port = |ports: &[Port], name: &str| ports.iter().position(|p| p.name == name);
    let memory = outputs.iter_mut();
    memory.filter_map(move |(name, view)| Some((port(&program.outputs, name)?, &mut *view.data)))
}

pub(super) fn find<'a>(inputs: &[(&str, TensorView<'a>)], port: &Port) -> Option<TensorView<'a>> {
    inputs.iter().find(|(name, _)| *name == port.name).map(|(_, view)| *view)
}

pub(super) fn names(ports: &[Port]) -> String {
    let names: Vec<String> = ports.iter().map(|p| fqbin::printable(&p.name)).collect();
    format!("`{}`", names.join("`, `"))
}

/// Names, types and sizes of the inputs; their shapes are the binding's business.
pub(super) fn check_inputs(ports: &[Port], inputs: &[(&str, TensorView<'_>)]) -> Result<()> {
    for (i, (name, view)) in inputs.iter().enumerate() {
        let Some(port) = ports.iter().find(|p| p.name == *name) else {
            return Err(Error::input(name, format!("the model has only {}", names(ports))));
        };
        if inputs[..i].iter().any(|(other, _)| other == name) {
            return Err(Error::input(name, "it is given twice"));
        }
        check_tensor(port.elem, view.elem, view.shape, view.data)
            .map_err(|what| Error::input(name, what))?;
    }
    match ports.iter().find(|port| find(inputs, port).is_none()) {
        Some(port) => Err(Error::input(&port.name, "it is missing")),
        None => Ok(()),
    }
}

pub(super) fn check_outputs(
    model: &Model,
    shapes: &[Vec<usize>],
    outputs: &[(&str, TensorViewMut<'_>)],
) -> Result<()> {
    let ports = &model.program().outputs;
    for (i, (name, view)) in outputs.iter().enumerate() {
        let Some(index) = ports.iter().position(|p| p.name == *name) else {
            return Err(Error::output(name, format!("the model has only {}", names(ports))));
        };
        if outputs[..i].iter().any(|(other, _)| other == name) {
            return Err(Error::output(name, "it is given twice"));
        }
        if view.shape != shapes[index] {
            let (got, want) = (view.shape, &shapes[index]);
            return Err(Error::output(name, format!("its shape is {want:?}, not {got:?}")));
        }
        check_tensor(ports[index].elem, view.elem, view.shape, view.data)
            .map_err(|what| Error::output(name, what))?;
    }
    match ports.iter().find(|port| outputs.iter().all(|(name, _)| *name != port.name)) {
        Some(port) => Err(Error::output(&port.name, "it is missing")),
        None => Ok(()),
    }
}

fn check_tensor(
    want: Elem,
    elem: Elem,
    shape: &[usize],
    data: &[u8],
) -> std::result::Result<(), String> {
    if want != elem {
        return Err(format!("its type is {}, not {}", want.name(), elem.name()));
    }
    match dense_bytes(elem, shape) {
        Some(bytes) if bytes == data.len() => {}
        _ => return Err(format!("{} bytes are not the size of {shape:?}", data.len())),
    }
    if !data.is_empty() && data.as_ptr().align_offset(elem.bytes()) != 0 {
        return Err(format!("its memory is not aligned to {} bytes", elem.bytes()));
    }
    Ok(())
}
