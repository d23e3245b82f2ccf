//! Bad input as a table: what is given, the exit code, and what the message must say. In every case
//! nothing is left behind.

mod world;

use std::fs;
use std::process::Command;
use world::{MODEL, World, expect, text};

/// Every occurrence of a word replaced by another of the same length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut out = bytes.to_vec();
    for at in 0..=out.len() - from.len() {
        if out[at..].starts_with(from) {
            out[at..at + from.len()].copy_from_slice(to);
        }
    }
    assert!(out != bytes, "the word does not occur");
    out
}

#[test]
fn models_that_cannot_be_read() {
    let w = World::new();
    let whole = fs::read(MODEL).expect("the tiny model");
    fs::create_dir(w.path("out")).expect("a folder");
    let noise: Vec<u8> =
        (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let files: [(&str, &[u8]); 4] = [
        ("empty.onnx", b""),
        ("noise.onnx", &noise),
        ("half.onnx", &whole[..whole.len() / 2]),
        ("short.onnx", &whole[..100]),
    ];
    for (name, bytes) in files {
        fs::write(w.path(name), bytes).expect("writes");
        let (model, out) = (w.path(name), w.path("out/m.fqbin"));
        let done = w.fqc(&["compile", text(&model), "-o", text(&out), "--method", "none"]);
        expect(&done, 3, name);
    }
    let out = w.path("out/m.fqbin");
    let done = w.fqc(&["compile", "missing.onnx", "-o", text(&out)]);
    expect(&done, 8, "missing.onnx");
    // An operator that does not exist: all of its nodes are reported at once.
    let unknown = w.path("unknown.onnx");
    fs::write(&unknown, replaced(&whole, b"Softmax", b"Softmix")).expect("writes");
    let done = w.fqc(&["compile", text(&unknown), "-o", text(&out), "--method", "none"]);
    expect(&done, 3, "Softmix");
    // A folder that cannot be written to, not even by root.
    let done = w.fqc(&["compile", MODEL, "-o", "/proc/m.fqbin", "--method", "none", "--quiet"]);
    expect(&done, 8, "/proc");
    assert_eq!(w.names("out"), Vec::<String>::new());
}

#[test]
fn compile_arguments_that_make_no_sense() {
    let w = World::new();
    fs::write(w.path("a.txt"), "some text").expect("writes");
    fs::write(w.path("no.npz"), "not a zip").expect("writes");
    fs::write(w.path("tok.json"), "{}").expect("writes");
    let (out, txt, npz, tok) =
        (w.path("m.fqbin"), w.path("a.txt"), w.path("no.npz"), w.path("tok.json"));
    let nowhere = w.path("no/such/m.fqbin");
    let (out, txt, npz, tok) = (text(&out), text(&txt), text(&npz), text(&tok));
    let toml = w.path("c.toml");
    fs::write(&toml, "method = \"none\"\nspeed = 11\n").expect("writes");
    let table: [(&[&str], i32, &str); 12] = [
        (&["compile"], 2, "required"),
        (&["compile", MODEL, "-o", out, "--config", text(&toml)], 2, "speed"),
        (&["compile", MODEL, "-o", out, "--max-extra=-5"], 2, "max-extra"),
        (&["compile", MODEL, "-o", out], 7, "--calib"),
        (&["compile", MODEL, "-o", text(&nowhere), "--method", "none"], 8, "not a folder"),
        (&["compile", MODEL, "-o", out, "--calib", txt], 2, "--tokenizer"),
        (&["compile", MODEL, "-o", out, "--calib", txt, "--tokenizer", tok], 7, "tokenizer"),
        (&["compile", MODEL, "-o", out, "--calib", npz], 7, ".npz"),
        (&["compile", MODEL, "-o", out, "--calib", "gone.npz"], 8, "gone.npz"),
        (&["compile", MODEL, "-o", out, "--method", "magic"], 2, "magic"),
        (&["compile", MODEL, "-o", out, "--method", "none", "--levels", "mmx"], 2, "mmx"),
        (&["compile", MODEL, "-o", out, "--target", "cuda:sm_70"], 2, "cuda:sm_70"),
    ];
    for (args, code, fragment) in table {
        expect(&w.fqc(args), code, fragment);
        assert!(!w.path("m.fqbin").exists(), "{args:?}");
    }
}

#[test]
fn inputs_that_do_not_fit() {
    let w = World::new();
    let model = w.compiled("m.fqbin");
    let model = text(&model);
    let table: [(&[&str], i32, &str); 6] = [
        (&["run", model], 2, "--inputs"),
        (&["run", model, "--inputs", "gone.npz"], 8, "gone.npz"),
        (&["run", model, "--text", "hi"], 2, "tokenizer"),
        (&["run", model, "--device", "cuda:0", "--inputs", "x.npz"], 5, "--target cpu,cuda"),
        (&["run", model, "--device", "tpu", "--inputs", "x.npz"], 2, "`cuda:N`"),
        (&["bench", model, "--shape", "pixels=1x2"], 2, "pixels"),
    ];
    for (args, code, fragment) in table {
        expect(&w.fqc(args), code, fragment);
    }
}

#[test]
fn inputs_of_wrong_shape_or_name() {
    use ndarray::{ArrayD, IxDyn};
    let w = World::new();
    let model = w.compiled("m.fqbin");
    let put = |name: &str, array: &str, shape: &[usize]| {
        let path = w.path(name);
        let file = fs::File::create(&path).expect("creates");
        let mut npz = ndarray_npy::NpzWriter::new(file);
        let values = ArrayD::<i64>::from_elem(IxDyn(shape), 5);
        npz.add_array(array, &values).expect("adds");
        npz.finish().expect("finishes");
        path
    };
    let rank = put("rank.npz", "input_ids", &[2, 3, 4]);
    expect(&w.fqc(&["run", text(&model), "--inputs", text(&rank)]), 7, "attention_mask");
    let other = put("other.npz", "pixels", &[2, 3]);
    expect(&w.fqc(&["run", text(&model), "--inputs", text(&other)]), 7, "");
    let out = w.path("q.fqbin");
    let done = w.fqc(&["compile", MODEL, "-o", text(&out), "--calib", text(&other)]);
    expect(&done, 7, "has no array");
    assert!(!out.exists());
}

#[test]
fn calibration_data_with_nan() {
    use ndarray::ArrayD;
    const KV: &str = "../../tests/models/tiny/llama_kv_ts.onnx";
    let w = World::new();
    let golden = fs::File::open("../../tests/models/golden/llama_kv_ts/1x5.npz").expect("opens");
    let mut golden = ndarray_npy::NpzReader::new(golden).expect("an npz");
    let data = w.path("nan.npz");
    let mut npz = ndarray_npy::NpzWriter::new(fs::File::create(&data).expect("creates"));
    for name in golden.names().expect("names") {
        let Some(input) = name.strip_prefix("in.") else { continue };
        let input = input.trim_end_matches(".npy");
        if let Ok(array) = golden.by_name::<ndarray::OwnedRepr<i64>, ndarray::IxDyn>(&name) {
            npz.add_array(input, &array).expect("adds");
        } else {
            let mut array: ArrayD<f32> = golden.by_name(&name).expect("floats");
            *array.iter_mut().last().expect("not empty") = f32::NAN;
            npz.add_array(input, &array).expect("adds");
        }
    }
    npz.finish().expect("finishes");
    let out = w.path("m.fqbin");
    let done = w.fqc(&["compile", KV, "-o", text(&out), "--calib", text(&data), "--quiet"]);
    expect(&done, 7, "NaN");
    assert!(!out.exists());
}

#[test]
fn compiled_files_that_are_damaged_foreign_or_for_another_machine() {
    let w = World::new();
    let model = w.compiled("m.fqbin");
    let whole = fs::read(&model).expect("reads");
    let bad = w.path("bad.fqbin");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    // The oldest reader that the file wants.
    let mut version = whole.clone();
    version[12] = 0xff;
    let cut = &whole[..whole.len() - 1];
    let files: [(&[u8], i32); 5] =
        [(b"", 3), (b"hello", 3), (cut, 3), (&flipped, 3), (&version, 5)];
    for (bytes, code) in files {
        fs::write(&bad, bytes).expect("writes");
        let done = w.fqc(&["run", text(&bad), "--inputs", "x.npz"]);
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{stderr}");
        let done = w.fqc(&["inspect", text(&bad)]);
        assert_eq!(done.status.code(), Some(code), "{}", String::from_utf8_lossy(&done.stderr));
    }
    // Another user has another key.
    let mut foreign = w.command(&["bench", text(&model), "--shape", "input_ids=1x4"]);
    let done = foreign.env("FQC_HOME", w.path("other")).output().expect("fqc starts");
    expect(&done, 5, "");
    let args = ["bench", text(&model), "--shape", "input_ids=1x4", "--runs", "1", "--trust"];
    let done = w.command(&args).env("FQC_HOME", w.path("other")).output().expect("fqc starts");
    expect(&done, 0, "");
    // The file has code for AVX2 only.
    let args = ["bench", text(&model), "--shape", "input_ids=1x4"];
    let done = w.command(&args).env("FQC_CPU_LEVEL", "amx-int8").output().expect("fqc starts");
    expect(&done, 5, "amx-int8");
    let done = w.command(&args).env("FQC_CPU_LEVEL", "mmx").output().expect("fqc starts");
    expect(&done, 2, "mmx");
}

#[test]
fn two_compilations_give_the_same_bytes() {
    let w = World::new();
    let (a, b) = (w.path("a.fqbin"), w.path("b.fqbin"));
    for out in [&a, &b] {
        let done = w.fqc(&[
            "compile",
            MODEL,
            "-o",
            text(out),
            "--calib",
            "random",
            "--windows",
            "4",
            "--window",
            "16",
            "--quiet",
        ]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    assert!(fs::read(a).expect("reads") == fs::read(b).expect("reads"), "the files differ");
}

#[test]
fn an_interrupt_leaves_no_file() {
    let w = World::new();
    fs::create_dir(w.path("out")).expect("a folder");
    let out = w.path("out/m.fqbin");
    let args =
        ["compile", MODEL, "-o", text(&out), "--calib", "random", "--windows", "100000", "--quiet"];
    let mut child = w.command(&args).spawn().expect("fqc starts");
    std::thread::sleep(std::time::Duration::from_millis(700));
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().expect("kill starts");
    assert!(sent.success());
    let status = child.wait().expect("fqc ends");
    assert_eq!(status.code(), Some(130));
    assert_eq!(w.names("out"), Vec::<String>::new());
}
