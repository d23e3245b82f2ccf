//! Measured tiles: what a file says about its gemms, a compilation that takes tiles from a file, and what
//! is refused. No GPU is needed; measuring on one says what is missing here.

mod world;

use fqbin::{File, TargetImage};
use fqc_codegen::cuda::exchange::{self, Exchange, Instance};
use fqc_codegen::cuda::trial::{self, Trial};
use fqc_codegen::cuda::{Cache, Compiler, Layer, Nvrtc};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use world::{MODEL, World, expect, text};

/// Compiles the tiny model with products of halves for Hopper.
fn compiled(w: &World, name: &str, more: &[&str]) -> PathBuf {
    let out = w.path(name);
    let mut args = vec!["compile", MODEL, "-o", text(&out), "--method", "none", "--quiet"];
    args.extend(["--float", "bf16", "--target", "cuda"]);
    args.extend(more);
    let done = w.fqc(&args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    out
}

fn manifest(file: &PathBuf) -> Value {
    let bytes = fs::read(file).expect("reads");
    let file = File::open(&bytes).expect("a sound file");
    serde_json::from_slice(file.manifest().expect("a manifest")).expect("JSON")
}

/// Tokens of the tiles of all gemms, with the rows up to which each is taken.
fn tiles(file: &PathBuf) -> Vec<(i64, i64)> {
    let bytes = fs::read(file).expect("reads");
    let file = File::open(&bytes).expect("a sound file");
    let kernels = &file.layout().targets[0].program.kernels;
    let attr = |kernel: &fqbin::Kernel, name: &str| {
        kernel.attrs.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    };
    kernels.iter().filter_map(|k| Some((attr(k, "max_rows")?, attr(k, "tokens")?))).collect()
}

/// A file of tiles for all gemms of a manifest.
fn measured(manifest: &Value, tile: &str, rows: &[usize]) -> Value {
    let rows = |_: &Value| -> Vec<Value> {
        let one = |&rows| json!({ "rows": rows, "tile": tile, "model": tile, "us": { tile: 1.5 } });
        rows.iter().map(one).collect()
    };
    let gemms = manifest["gemms"].as_array().expect("gemms").iter();
    let gemms: Vec<Value> = gemms.map(|g| json!({ "gemm": g["gemm"], "rows": rows(g) })).collect();
    json!({
        "tool": "fqc 0.1.0", "gpu": "a GPU", "driver": "CUDA 13.0", "nvrtc": "13.0",
        "arch": "sm_90a", "gemms": gemms,
    })
}

#[test]
fn a_compilation_takes_the_tiles_of_a_file() {
    let w = World::new();
    let plain = compiled(&w, "plain.fqbin", &[]);
    let shown = manifest(&plain);
    assert!(shown["tuned"].is_null());
    let tuned = w.path("tuned.json");
    fs::write(&tuned, measured(&shown, "128x32_k1", &[16, 4096]).to_string()).expect("writes");
    let own = compiled(&w, "own.fqbin", &["--tuned", text(&tuned)]);
    // The named tile where the file has an answer, that of the model of its time between.
    let tiles_of = |max_rows: i64, tiles: &[(i64, i64)]| -> Vec<i64> {
        tiles.iter().filter(|(rows, _)| *rows == max_rows).map(|(_, tokens)| *tokens).collect()
    };
    let (before, after) = (tiles(&plain), tiles(&own));
    assert!(before.iter().any(|(_, tokens)| *tokens != 32), "{before:?}");
    let last = tiles_of(i64::from(i32::MAX), &after);
    assert!(!last.is_empty() && last.iter().all(|tokens| *tokens == 32), "{after:?}");
    assert!(after.iter().any(|(_, tokens)| *tokens != 32), "{after:?}");
    // The manifest names the file; the same file gives the same bytes.
    let hash = blake3::hash(&fs::read(&tuned).expect("reads")).to_hex().to_string();
    assert_eq!(manifest(&own)["tuned"], json!({ "name": "tuned.json", "hash": hash }));
    let again = compiled(&w, "again.fqbin", &["--tuned", text(&tuned)]);
    assert!(fs::read(&own).expect("reads") == fs::read(&again).expect("reads"), "files differ");
    // What is tuned once has nothing to compare with.
    let done = w.fqc(&["tune", text(&own), "-o", text(&w.path("more.json")), "--quiet"]);
    expect(&done, 3, "compile it without `--tuned`");
}

/// The image for Hopper of a file.
fn image(file: &PathBuf) -> TargetImage {
    let bytes = fs::read(file).expect("reads");
    let file = File::open(&bytes).expect("a sound file");
    let target = file.layout().target("cuda:sm_90a").expect("code for Hopper");
    file.image(target).expect("its parts")
}

#[test]
fn programs_of_one_gemm_have_the_kernels_of_the_model() {
    let w = World::new();
    let codes = w.path("codes.fqbin");
    w.novel(600);
    let (novel, tokenizer) = (w.path("novel.txt"), w.path("tokenizer.json"));
    let args = ["compile", MODEL, "-o", text(&codes), "--quiet", "--target", "cuda", "--calib"];
    let done = w.fqc(
        &[&args[..], &[text(&novel), "--tokenizer", text(&tokenizer), "--windows", "4"]].concat(),
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // What the compilations left there.
    let cubins = Cache::new(w.path("home").join("cubins"), Nvrtc::load().expect("NVRTC"));
    let compiler = Compiler::Cached(cubins);
    for file in [compiled(&w, "halves.fqbin", &[]), codes] {
        let image = image(&file);
        for gemm in manifest(&file)["gemms"].as_array().expect("gemms") {
            let (name, count) = (gemm["gemm"].as_str().expect("a text"), &gemm["steps"]);
            let layer: Layer = name.parse().expect("a gemm");
            let instance = |tile| {
                let trial = Trial { rows: 24, weights: 1, launches: 1 };
                let image = trial::program(&layer, tile, trial, &compiler).expect("compiles");
                Instance::of_trial(&image).expect("a gemm")
            };
            let own = instance(layer.ranked(64)[0].0);
            let steps = exchange::steps(&image.program, 64, &own);
            assert_eq!(json!(steps.len()), *count, "{name}");
            // Another tile for 64 rows, and none for others.
            let other = instance("128x128_k1".parse().expect("a tile"));
            let mut exchange = Exchange::new(image.clone()).expect("code");
            exchange.gemms(&steps, &[(64, &other)]);
            let image = exchange.finish();
            fqbin::verify(&image.program, image.weights.len() as u64).expect(name);
            let code = &image.code[0];
            fqbin::check_entries(&code.entries, code.bytes.len(), image.program.kernels.len())
                .expect(name);
            assert_eq!(exchange::steps(&image.program, 64, &other), steps, "{name}");
            assert!(exchange::steps(&image.program, 64, &own).is_empty(), "{name}");
            let own = instance(layer.ranked(128)[0].0);
            assert_eq!(exchange::steps(&image.program, 128, &own), steps, "{name}");
        }
    }
}

#[test]
fn what_a_compilation_cannot_take_is_told() {
    let w = World::new();
    let tuned = w.path("tuned.json");
    let compile = |target: &str| {
        let out = w.path("out.fqbin");
        let args = ["compile", MODEL, "-o", text(&out), "--method", "none", "--quiet"];
        w.fqc(&[&args[..], &["--target", target, "--tuned", text(&tuned)]].concat())
    };
    expect(&compile("cuda"), 8, "cannot read");
    fs::write(&tuned, "{").expect("writes");
    expect(&compile("cpu"), 2, "goes with `--target cuda:sm_90a`");
    expect(&compile("cuda:sm_80"), 2, "goes with `--target cuda:sm_90a`");
    expect(&compile("cuda"), 7, "tuned.json`: EOF");
    let gemm = "weights=bf16; k=64; n=64; epilogue=arg0; extras=; output=f32";
    let file = measured(&json!({ "gemms": [{ "gemm": gemm }] }), "128x32_k2", &[16]);
    fs::write(&tuned, file.to_string()).expect("writes");
    expect(&compile("cuda"), 7, "gemms[0].rows[0]: this gemm cannot take `128x32_k2`");
    let other = file.to_string().replace("sm_90a", "sm_100a");
    fs::write(&tuned, other).expect("writes");
    expect(&compile("cuda"), 7, "it is for `sm_100a`");
}

#[test]
fn measuring_says_what_it_wants() {
    let w = World::new();
    let (model, cpu) = (compiled(&w, "m.fqbin", &[]), w.compiled("cpu.fqbin"));
    let out = w.path("tuned.json");
    let tune = |model: &PathBuf, more: &[&str]| {
        w.fqc(&[&["tune", text(model), "-o", text(&out), "--quiet"], more].concat())
    };
    expect(&tune(&model, &["--rows", "17"]), 2, "no tile is chosen for 17 rows");
    expect(&tune(&model, &["--device", "cpu"]), 2, "tiles are those of a GPU");
    expect(&tune(&cpu, &[]), 3, "compile it with `--target cuda`");
    let done = tune(&model, &["--rows", "16", "--device", "cuda:7"]);
    let message = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(5), "{message}");
    assert!(["NVIDIA driver", "no NVIDIA GPU", "no GPU 7"].iter().any(|k| message.contains(k)));
    assert!(!out.exists());
}
