//! Running on an NVIDIA GPU, through its driver alone. Reading order: [`driver`] (the driver behind
//! safe types), [`model`] (kernels and weights on the device), [`engine`] (a session's runs).

mod driver;
mod engine;
mod model;

pub(crate) use engine::{Engine, OnDevice, Ports};
pub(crate) use model::Loaded;

use std::sync::Arc;

use fqbin::{Layout, Target};

use crate::error::{Error, Result};
use driver::Context;

/// Name and compute capability of the GPU of a number, if a file with code for it would run there.
pub fn gpu(ordinal: u32) -> Result<String> {
    let context = Context::open(ordinal)?;
    let (major, minor) = context.capability;
    Ok(format!("{}, compute capability {major}.{minor}", context.name))
}

/// Opens a GPU and picks the target of a file that it runs best.
pub(crate) fn open(layout: &Layout, ordinal: u32) -> Result<(Arc<Context>, &Target)> {
    let names: Vec<&str> = layout.targets.iter().map(|t| t.name.as_str()).collect();
    if !names.iter().any(|name| name.starts_with("cuda:")) {
        let have = names.join("`, `");
        return Err(Error::CannotRun(format!(
            "the file has code for `{have}` only; compile it with `--target cpu,cuda`"
        )));
    }
    let context = Context::open(ordinal)?;
    match names.iter().enumerate().filter_map(|(i, n)| Some((fit(n, context.capability)?, i))).max()
    {
        Some((_, index)) => Ok((context, &layout.targets[index])),
        None => {
            let (major, minor) = context.capability;
            let remedy = match (major, minor) {
                (..=7, _) => "fqc has code for 8.0 and later".to_owned(),
                (8, 0 | 6 | 9) => format!("compile it with `--target cuda:sm_{major}{minor}`"),
                (9, 0) => "compile it with `--target cuda:sm_90a`".to_owned(),
                _ => "compile it with `--target cuda:ptx`, which the driver compiles".to_owned(),
            };
            Err(Error::CannotRun(format!(
                "the file has code for `{}`; `{}` has compute capability {major}.{minor}: {remedy}",
                names.join("`, `"),
                context.name
            )))
        }
    }
}

/// How well code of a target fits a GPU, if it runs there at all: code of an architecture runs on
/// later ones of its generation; what ends in `a` runs on that one alone. PTX runs on all later ones,
/// and is the last resort.
fn fit(target: &str, (major, minor): (i32, i32)) -> Option<(i32, bool)> {
    if let Some(number) = target.strip_prefix("cuda:compute_") {
        let number: i32 = number.parse().ok()?;
        return (number <= major * 10 + minor).then_some((0, false));
    }
    let name = target.strip_prefix("cuda:sm_")?;
    let (number, own) = match name.strip_suffix('a') {
        Some(number) => (number, true),
        None => (name, false),
    };
    let number: i32 = number.parse().ok()?;
    let runs =
        number / 10 == major && if own { number % 10 == minor } else { number % 10 <= minor };
    runs.then_some((number, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_generation_and_the_closest_is_best() {
        assert_eq!(fit("cuda:sm_90a", (9, 0)), Some((90, true)));
        assert_eq!(fit("cuda:sm_90a", (10, 0)), None);
        assert_eq!(fit("cuda:sm_80", (8, 9)), Some((80, false)));
        assert_eq!(fit("cuda:sm_89", (8, 6)), None);
        assert_eq!(fit("cpu", (9, 0)), None);
        assert_eq!(fit("cuda:compute_80", (12, 0)), Some((0, false)));
        assert_eq!(fit("cuda:compute_80", (7, 5)), None);
        assert!(fit("cuda:sm_80", (8, 0)) > fit("cuda:compute_80", (8, 0)));
        assert!(fit("cuda:sm_86", (8, 9)) > fit("cuda:sm_80", (8, 9)));
    }

    #[test]
    fn a_machine_without_a_driver_or_such_a_gpu_says_so() {
        match Context::open(4096) {
            Err(Error::CannotRun(what)) => {
                let known = what.contains("driver") || what.contains("GPU");
                assert!(known, "{what}");
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("no machine has so many GPUs"),
        }
    }
}
