//! The file of tiles that `fqc tune` measured and `fqc compile --tuned` takes: JSON, read in full and
//! checked.

use crate::exit::Failure;
use crate::fqcal::DataFile;
use crate::hash;
use crate::pipeline::Context;
use fqc_codegen::cuda::{Arch, Layer, Tuning};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Bytes of a file at most.
const MOST_BYTES: u64 = 16 << 20;

/// What is in the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Name and version of the program that measured.
    pub tool: String,
    pub gpu: String,
    /// The newest CUDA that its driver runs.
    pub driver: String,
    /// The compiler of the kernels.
    pub nvrtc: String,
    /// What the tiles are for: `sm_90a`.
    pub arch: String,
    pub gemms: Vec<MeasuredGemm>,
    /// Of the whole model.
    #[serde(default)]
    pub whole: Vec<MeasuredWhole>,
}

/// What the whole model takes for a number of rows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredWhole {
    pub rows: usize,
    /// As `NAME=AxB`.
    pub inputs: Vec<String>,
    /// Microseconds of a replay with the tiles of the model of their time, and with those that won in the model.
    pub model_us: f64,
    pub us: f64,
    /// Whether the latter are clearly faster, and so those of this file.
    pub taken: bool,
}

/// A gemm and what was measured of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredGemm {
    /// As [`Layer`] writes itself.
    pub gemm: String,
    pub rows: Vec<MeasuredRows>,
}

/// What was measured for a number of rows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredRows {
    pub rows: usize,
    /// The tile to take: the one that is taken without this file, unless another is faster in the whole model.
    pub tile: String,
    /// The one that is taken without this file.
    pub model: String,
    /// Microseconds of a launch and of the step before it that writes its operand, by tile.
    pub us: BTreeMap<String, f64>,
}

/// A file as a compilation takes it.
#[derive(Debug, Default)]
pub struct Tuned {
    pub tuning: Tuning,
    pub file: Option<DataFile>,
}

impl Tuned {
    pub fn read(path: &Path) -> Result<Tuned, Failure> {
        let bad = |what: String| Failure::data(format!("`{}`: {what}", path.display()));
        let io = |e| Failure::io("read", path, &e);
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        if bytes > MOST_BYTES {
            return Err(bad(format!("it has {bytes} bytes; `fqc tune` writes far fewer")));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let tuning = read(&text).map_err(bad)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = Some(DataFile { name, hash: hash::bytes(text.as_bytes()) });
        Ok(Tuned { tuning, file })
    }

    /// Tells if it knows none of the gemms of a model.
    pub fn check<'l>(
        &self,
        layers: impl Iterator<Item = &'l Layer>,
        cx: &Context<'_>,
    ) -> Result<(), Failure> {
        let mut layers = layers;
        match &self.file {
            Some(file) if !layers.any(|layer| self.tuning.knows(layer)) => cx.warn(&format!(
                "`{}` has no gemm of this model; measure it with `fqc tune`",
                file.name
            )),
            _ => Ok(()),
        }
    }
}

/// The tiles of a file's text. A fault names the place.
fn read(text: &str) -> Result<Tuning, String> {
    let measured: Measured = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if measured.arch != Arch::Sm90a.to_string() {
        let (arch, own) = (&measured.arch, Arch::Sm90a);
        return Err(format!("it is for `{arch}`; only tiles for `{own}` are chosen"));
    }
    let (mut tuning, mut seen) = (Tuning::default(), BTreeSet::new());
    for (i, gemm) in measured.gemms.iter().enumerate() {
        let layer: Layer = gemm.gemm.parse().map_err(|fault| format!("gemms[{i}]: {fault}"))?;
        for (j, rows) in gemm.rows.iter().enumerate() {
            let fault = |fault: String| format!("gemms[{i}].rows[{j}]: {fault}");
            let tile = rows.tile.parse().map_err(fault)?;
            tuning.set(&layer, rows.rows, tile).map_err(fault)?;
            if !seen.insert((layer.to_string(), rows.rows)) {
                return Err(fault("the same gemm and rows came before".to_owned()));
            }
        }
    }
    Ok(tuning)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEMM: &str = "weights=w8a8; k=640; n=576; epilogue=arg0; extras=; output=f32";

    fn measured() -> Measured {
        let (tile, model) = ("128x64_k2".to_owned(), "128x32_k1".to_owned());
        let us = BTreeMap::from([(tile.clone(), 3.25), (model.clone(), 4.5)]);
        Measured {
            tool: "fqc 0.1.0".into(),
            gpu: "a GPU".into(),
            driver: "CUDA 13.0".into(),
            nvrtc: "13.0".into(),
            arch: "sm_90a".into(),
            gemms: vec![MeasuredGemm {
                gemm: GEMM.into(),
                rows: vec![MeasuredRows { rows: 128, tile, model, us }],
            }],
            whole: vec![MeasuredWhole {
                rows: 128,
                inputs: vec!["ids=1x128".into()],
                model_us: 126.5,
                us: 125.0,
                taken: true,
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = serde_json::to_string_pretty(&measured()).expect("JSON");
        assert_eq!(serde_json::from_str::<Measured>(&text).expect("reads"), measured());
        let tuning = read(&text).expect("sound");
        assert!(tuning.knows(&GEMM.parse().expect("a gemm")));
    }

    #[test]
    fn faults_are_told_with_their_place() {
        let sound = serde_json::to_string(&measured()).expect("JSON");
        let cases = [
            (sound[..sound.len() / 2].to_owned(), "line 1"),
            (sound.replace("sm_90a", "sm_80"), "it is for `sm_80`"),
            (sound.replace(r#""tile":"128x64_k2""#, r#""tile":"128x63_k2""#), "rows[0]: no tile"),
            (sound.replace(r#""tile":"128x64_k2""#, r#""tile":"128x32_k8""#), "rows[0]: this gemm"),
            (sound.replace(r#""rows":128"#, r#""rows":100"#), "gemms[0].rows[0]: tiles are chosen"),
            (sound.replace(r#""rows":128"#, r#""rows":-1"#), "line 1"),
            (sound.replace("k=640", "k=0"), "gemms[0]: `0`"),
            (sound.replace("arg0", "arg0("), "gemms[0]: "),
            (sound.replace(r#""gpu""#, r#""cpu""#), "unknown field `cpu`"),
        ];
        for (text, named) in cases {
            let fault = read(&text).expect_err(&text);
            assert!(fault.contains(named), "{fault}");
        }
        let mut twice = measured();
        twice.gemms.push(twice.gemms[0].clone());
        let fault = read(&serde_json::to_string(&twice).expect("JSON")).expect_err("twice");
        assert!(fault.contains("gemms[1].rows[0]: the same"), "{fault}");
    }
}
