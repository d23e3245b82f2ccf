//! Statistics in a file: the same results as without, the same bytes every time, refused where they do
//! not belong, and gone on with after an interrupt.

mod world;

use fqc::calibrate::{self, Progress};
use fqc::data::Rare;
use fqc::fqcal::Calibration;
use fqc::interrupt::Interrupt;
use fqc::pipeline::{self, Context};
use fqc::progress::Verbosity;
use fqc::{Exit, data};
use fqc_passes::quant::groups::Heads;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use world::{MODEL, World, expect, text};

const OTHER: &str = "../../tests/models/tiny/gpt2_ts_op17_eager.onnx";

#[test]
fn compiling_from_a_file_gives_the_bytes_of_compiling_from_the_data() {
    let w = World::new();
    w.novel(400);
    let (novel, tokenizer) = (w.path("novel.txt"), w.path("tokenizer.json"));
    let data = [
        "--calib",
        text(&novel),
        "--tokenizer",
        text(&tokenizer),
        "--windows",
        "8",
        "--window",
        "16",
        "--quiet",
    ];
    for model in [MODEL, OTHER] {
        let (a, b) = (w.path("a.fqcal"), w.path("b.fqcal"));
        for out in [&a, &b] {
            let one = ["calibrate", model, "-o", text(out), "--threads", "1"];
            expect(&w.fqc(&[&one[..], &data].concat()), 0, "");
        }
        assert!(fs::read(&a).expect("reads") == fs::read(&b).expect("reads"), "not the same bytes");
        let beside = text(&a);
        for head in [&[][..], &["--lm-head", "int8"]] {
            let compile = |name: &str, calib: &[&str]| {
                let out = w.path(name);
                let one = ["compile", model, "-o", text(&out), "--levels", "avx2"];
                expect(&w.fqc(&[&one[..], head, calib].concat()), 0, "");
                fs::read(out).expect("reads")
            };
            // Flattening wants the samples again, to measure what errors cost, and so does GPTQ;
            // smoothing does not.
            let smooth = ["--method", "smoothquant"];
            let direct = compile("direct.fqbin", &[&data[..], &smooth].concat());
            let kept = ["--calib", beside, "--quiet"];
            assert!(direct == compile("kept.fqbin", &[&kept[..], &smooth].concat()));
            let direct = compile("direct.fqbin", &data);
            assert!(direct == compile("both.fqbin", &[&data[..], &["--calib", beside]].concat()));
        }
        let shown = w.fqc(&["inspect", beside]);
        expect(&shown, 0, "");
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        assert_eq!(shown["origin"]["files"][0]["name"], "novel.txt");
        assert_eq!(shown["origin"]["windows"]["tokens"], 16);
    }
    let manifest = w.fqc(&["inspect", text(&w.path("kept.fqbin")), "--json"]);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).expect("JSON");
    let origin = &manifest["manifest"]["calibration"];
    let hash = blake3::hash(&fs::read(&tokenizer).expect("reads")).to_hex().to_string();
    assert_eq!(origin["tokenizer_hash"], hash);
    assert_eq!(origin["windows"]["count"], 8);
}

#[test]
fn statistics_are_refused_where_they_do_not_belong() {
    let w = World::new();
    w.novel(200);
    let (kept, out) = (w.path("m.fqcal"), w.path("m.fqbin"));
    let (kept, out) = (text(&kept), text(&out));
    let small = ["--calib", "random", "--windows", "3", "--window", "8", "--quiet"];
    expect(&w.fqc(&[&["calibrate", MODEL, "-o", kept], &small[..]].concat()), 0, "");
    let whole = fs::read(kept).expect("reads");
    let put = |name: &str, bytes: &[u8]| {
        let path = w.path(name);
        fs::write(&path, bytes).expect("writes");
        text(&path).to_owned()
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let mut newer = whole.clone();
    newer[8] = 9;
    let mut unfinished = Calibration::from_bytes(&whole).expect("reads");
    unfinished.done -= 1;
    let unfinished = unfinished.to_bytes().expect("writes");
    let (cut, flipped) = (put("cut.fqcal", &whole[..99]), put("flipped.fqcal", &flipped));
    let (newer, empty) = (put("newer.fqcal", &newer), put("empty.fqcal", b""));
    let unfinished = put("m.fqcal.part", &unfinished);
    let novel = w.path("novel.txt");
    let table: [(&[&str], i32, &str); 15] = [
        (&["compile", OTHER, "-o", out, "--calib", kept], 7, "another model"),
        (&["compile", MODEL, "-o", out, "--calib", &cut], 7, "cut.fqcal"),
        (&["compile", MODEL, "-o", out, "--calib", &flipped], 7, "hash"),
        (&["compile", MODEL, "-o", out, "--calib", &empty], 7, "empty.fqcal"),
        (&["compile", MODEL, "-o", out, "--calib", &newer], 5, "version 9"),
        (&["compile", MODEL, "-o", out, "--calib", &unfinished], 7, "2 of 3"),
        (&["compile", MODEL, "-o", out, "--calib", "gone.fqcal"], 8, "gone.fqcal"),
        (&["compile", MODEL, "-o", out, "--calib", kept, "--calib", kept], 2, "one .fqcal"),
        (&["compile", MODEL, "-o", out, "--calib", text(&novel), "--calib", "random"], 2, "random"),
        (&["compile", MODEL, "-o", out, "--calib", kept], 7, "samples"),
        (&["calibrate", MODEL, "-o", "/proc/m.fqcal", "--calib", "random"], 8, "/proc"),
        (&["calibrate", MODEL, "-o", kept, "--calib", kept], 2, "samples"),
        (&["calibrate", MODEL, "-o", "m.stats", "--calib", "random"], 2, ".fqcal"),
        (&["calibrate", MODEL, "-o", kept], 7, "--calib"),
        (&["calibrate", MODEL, "-o", kept, "--calib", text(&novel)], 2, "--tokenizer"),
    ];
    for (args, code, fragment) in table {
        expect(&w.fqc(args), code, fragment);
        assert!(!Path::new(out).exists(), "{args:?}");
    }
    assert!(fs::read(kept).expect("reads") == whole, "a failed run leaves the file alone");
    // Other data beside the statistics.
    let tokenizer = w.path("tokenizer.json");
    let both = ["--calib", text(&novel), "--tokenizer", text(&tokenizer), "--calib", kept];
    let args = ["compile", MODEL, "-o", out, "--windows", "3", "--window", "8"];
    expect(&w.fqc(&[&args[..], &both].concat()), 7, "other data");
}

#[test]
fn an_interrupted_calibration_goes_on_as_if_nothing_had_been() {
    let interrupt = Interrupt::default();
    let verbosity = Verbosity::Quiet;
    let mut cx = Context::new(&interrupt, verbosity, 1);
    let float = pipeline::import(Path::new(OTHER), &mut cx).expect("imports");
    let batches = data::random(9, 12, &calibrate::wanted(&float)).expect("fills");
    let heads = Heads::Quantized;
    let whole =
        calibrate::run(&float, heads, &batches, &Rare::default(), &mut cx).expect("calibrates");

    let (rare, mut progress) = (Rare::default(), Progress::default());
    for stop in [2, 3, 9] {
        interrupt.flag().store(false, Ordering::Relaxed);
        let mut after = |p: &Progress| {
            interrupt.flag().store(p.done == stop, Ordering::Relaxed);
            Ok(())
        };
        let mut cx = Context::new(&interrupt, verbosity, 1);
        let end =
            calibrate::resume(&float, heads, &batches, &rare, &mut progress, &mut after, &mut cx);
        assert_eq!(end.err().map(|e| e.exit), (stop < 9).then_some(Exit::Interrupted));
        assert_eq!(progress.done, stop);
    }
    assert_eq!(progress.statistics, whole);
}

#[test]
fn an_interrupt_leaves_a_file_to_go_on_from() {
    let w = World::new();
    fs::create_dir(w.path("out")).expect("a folder");
    let out = w.path("out/m.fqcal");
    let args = |windows: &'static str| {
        ["calibrate", MODEL, "-o", text(&out), "--calib", "random", "--windows", windows, "--quiet"]
    };
    let mut child = w.command(&args("100000")).spawn().expect("fqc starts");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill starts").success());
    assert_eq!(child.wait().expect("fqc ends").code(), Some(130));
    // A slow machine may not have come to the first sample.
    for name in w.names("out") {
        assert_eq!(name, "m.fqcal.part");
        let part = Calibration::read(&w.path("out/m.fqcal.part")).expect("a whole file");
        assert!(0 < part.done && part.done < part.total && part.total == 100_000);
        let other = w.fqc(&[&args("5")[..], &["--resume"]].concat());
        expect(&other, 7, "other data");
        expect(&w.fqc(&args("5")), 0, "");
        assert_eq!(w.names("out"), ["m.fqcal"], "what was left is gone");
    }
}
