//! `fqc doctor`: what this machine can run, what is missing, and what to do about it.

use super::{print, print_json};
use crate::exit::Failure;
use crate::host;
use crate::key;
use fqbin::Level;
use serde::Serialize;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Check {
    what: String,
    ok: bool,
    detail: String,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let mut checks: Vec<Check> = Level::ALL
        .into_iter()
        .map(|level| {
            let missing = fqrt::missing_features(level);
            Check {
                what: format!("CPU level {}", level.name()),
                ok: missing.is_empty(),
                detail: if missing.is_empty() {
                    "available".to_owned()
                } else {
                    format!("this processor or kernel lacks {}", missing.join(", "))
                },
            }
        })
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let count = format!("{threads} available");
    checks.push(Check { what: "threads".to_owned(), ok: true, detail: count });
    checks.push(Check {
        what: "code generator".to_owned(),
        ok: host::GENERATOR.is_some(),
        detail: match host::GENERATOR {
            Some(name) => format!("{name} for the CPU; compiled files need none"),
            None => "built without the feature `cpu`; compiled files run all the same".to_owned(),
        },
    });
    checks.push(match fqc_codegen::cuda::Nvrtc::load() {
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version();
            let detail = format!("NVRTC {major}.{minor} in `{}`", nvrtc.folder().display());
            Check { what: "code generator for GPUs".to_owned(), ok: true, detail }
        }
        Err(e) => {
            let what = "code generator for GPUs".to_owned();
            Check { what, ok: false, detail: e.to_string() }
        }
    });
    let (ok, detail) = match fqrt::gpu(0) {
        Ok(name) => (true, name),
        Err(e) => (false, e.to_string()),
    };
    checks.push(Check { what: "GPU".to_owned(), ok, detail });
    let (ok, detail) = match key::folder() {
        Some(dir) if dir.join("key").exists() => (true, format!("in `{}`", dir.display())),
        Some(dir) => (true, format!("the first compile makes one in `{}`", dir.display())),
        None => (false, "set FQC_HOME or HOME to a folder".to_owned()),
    };
    checks.push(Check { what: "signing key".to_owned(), ok, detail });
    if args.json {
        return print_json(&checks);
    }
    for check in checks {
        let mark = if check.ok { "ok     " } else { "missing" };
        print(&format!("{mark} {:22} {}", check.what, check.detail))?;
    }
    Ok(())
}
