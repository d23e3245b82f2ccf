//! What decides the widths of layers, through the command line: schemes of single layers, the aims, the
//! head, scales of whole weights; and what contradicts itself or names nothing.

mod world;

use serde_json::Value;
use world::{World, expect, text};

const LLAMA: &str = "../../tests/models/tiny/llama4_ts_op17_eager.onnx";

/// What is calibrated on.
const DATA: [&str; 6] = ["--calib", "random", "--windows", "4", "--window", "16"];

/// The weights of a block: q, k, v and out of 64 x (64 + 32 + 32 + 64), gate and up, down.
const ATTENTION: u64 = 64 * (64 + 32 + 32 + 64);
const GATED: u64 = 2 * 64 * 176;
const DOWN: u64 = 176 * 64;

/// The report of a compilation of the tiny Llama to `m.fqbin`.
fn compile(w: &World, more: &[&str]) -> Value {
    let out = w.path("m.fqbin");
    let args = ["compile", LLAMA, "-o", text(&out), "--levels", "avx2", "--quiet", "--json"];
    let done = w.fqc(&[&args[..], &DATA, more].concat());
    expect(&done, 0, "");
    serde_json::from_slice(&done.stdout).expect("one line of JSON")
}

fn work(report: &Value, part: &str) -> u64 {
    report["memory"][part]["work"].as_u64().expect("a number")
}

fn bytes(report: &Value, part: &str) -> u64 {
    report["memory"][part]["bytes"].as_u64().expect("a number")
}

/// KL divergence of `m.fqbin` from float.
fn divergence(w: &World) -> f64 {
    w.novel(300);
    let (out, novel, tokenizer) =
        (w.path("m.fqbin"), w.path("novel.txt"), w.path("tokenizer.json"));
    let args =
        ["eval", text(&out), "--against", LLAMA, "--text", text(&novel), "--json", "--quiet"];
    let more = ["--tokenizer", text(&tokenizer), "--windows", "4", "--window", "16"];
    let done = w.fqc(&[&args[..], &more].concat());
    expect(&done, 0, "");
    let scores: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    scores["language"]["against"]["kl"].as_f64().expect("a divergence")
}

#[test]
fn single_layers_have_schemes_of_their_own() {
    let w = World::new();
    let report =
        compile(&w, &["--layer", "*down_proj*=w4a8", "--layer", "*layers.0*up_proj*=w4a4"]);
    assert_eq!(work(&report, "int4"), 2 * DOWN + GATED, "gate goes with up");
    assert_eq!(work(&report, "int8"), 2 * ATTENTION + GATED);
    let widths = |g: &Value| g["widths"].as_str().expect("widths").to_owned();
    let groups = report["groups"].as_array().expect("groups");
    let count = |wanted: &str| groups.iter().filter(|g| widths(g) == wanted).count();
    assert_eq!([count("w4a8"), count("w4a4"), count("w8a8")], [2, 1, 5]);
    assert!(divergence(&w) < 1e-2);
    // The first that fits counts, over the scheme of all.
    let two = ["--layer", "*layers.1.mlp.down_proj*=w8a8", "--layer", "*down_proj*=w4a8"];
    let report = compile(&w, &[&two[..], &["--scheme", "w4a4"]].concat());
    assert_eq!(work(&report, "int8"), DOWN);
}

#[test]
fn aims_choose_between_none_and_all() {
    let w = World::new();
    let all = 2 * (ATTENTION + GATED + DOWN);
    for aim in ["--gamma", "--max-drop"] {
        let int4 = |bound: &str| work(&compile(&w, &[aim, bound]), "int4");
        let [none, some, full] = ["0", "0.003", "100"].map(int4);
        assert!(none == 0 && 0 < some && some < all && full == all, "{aim}: {some} of {all}");
    }
    let report = compile(&w, &["--int4-share", "0.4829", "--int4-activations", "4"]);
    assert!(work(&report, "int4") as f64 >= 0.4829 * all as f64);
    assert!(report["groups"].to_string().contains("w4a4"));
    let out = w.path("w4a4.fqbin");
    let args = ["compile", LLAMA, "-o", text(&out), "--scheme", "w4a4", "--strict"];
    expect(&w.fqc(&[&args[..], &DATA].concat()), 4, "are as fast and lose less");
    // What is settled counts as it is.
    let settled = ["--layer", "*=w8a8", "--int4-share", "0.5"];
    assert_eq!(work(&compile(&w, &settled), "int4"), 0);
}

#[test]
fn a_head_in_int8_keeps_its_bits_and_the_others_theirs() {
    let w = World::new();
    let float = compile(&w, &["--int4-share", "0.5"]);
    assert_eq!(bytes(&float, "head"), 2 * 64 * 512);
    let before = divergence(&w);
    let report = compile(&w, &["--lm-head", "int8", "--int4-share", "0.5"]);
    let extra = |g: &Value| g["extra"].as_u64().expect("extra channels");
    let head = report["groups"].as_array().expect("groups").iter().find(|g| {
        !float["groups"].as_array().expect("groups").iter().any(|f| f["input"] == g["input"])
    });
    let head = head.expect("one group more");
    assert_eq!(head["widths"], "w8a8");
    let rows = (64 + extra(head)).next_multiple_of(64);
    assert_eq!(bytes(&report, "head"), rows * 512 + 4 * 512);
    assert_eq!(work(&report, "int4"), work(&float, "int4"), "the head is no part of the share");
    let after = divergence(&w);
    assert!(after < 2.0 * before + 1e-4, "{before} {after}");
    let report = compile(&w, &["--lm-head", "int8", "--scheme", "w4a8"]);
    assert!(bytes(&report, "head") >= 64 * 512 && work(&report, "int8") == 0);
}

#[test]
fn headroom_is_more_channels_in_the_same_bytes() {
    let w = World::new();
    let extra = |report: &Value| report["extra_channels"].as_f64().expect("a share");
    let (bought, filled) = (compile(&w, &[]), compile(&w, &["--headroom"]));
    assert!(extra(&filled) > extra(&bought), "{} {}", extra(&filled), extra(&bought));
    assert_eq!(bytes(&filled, "int8"), bytes(&bought, "int8"));
}

#[test]
fn weights_with_one_scale_compile_and_run() {
    let w = World::new();
    for rounding in ["gptq", "nearest"] {
        let channels = compile(&w, &["--rounding", rounding]);
        let fine = divergence(&w);
        let whole = compile(&w, &["--rounding", rounding, "--per-tensor-weights"]);
        let coarse = divergence(&w);
        assert_eq!(whole["settings"]["per_tensor_weights"], true);
        assert!(fine != coarse && coarse < 1e-2, "{rounding}: {fine} {coarse}");
        assert_eq!(work(&channels, "int8"), work(&whole, "int8"));
    }
}

#[test]
fn the_account_is_that_of_the_file() {
    let w = World::new();
    let of = |scheme: &str| compile(&w, &["--method", "rtn", "--scheme", scheme]);
    let (eight, four) = (of("w8a8"), of("w4a8"));
    let file = |r: &Value| r["weight_bytes"].as_u64().expect("a number");
    // Widths that the packing does not pad: the account is exact.
    let saved = bytes(&eight, "int8") - bytes(&four, "int4");
    assert_eq!(file(&eight) - file(&four), saved);
    assert_eq!(saved, (2 * (ATTENTION + GATED) + 2 * DOWN / 176 * 192) / 2);
    let shown = w.fqc(&["memory", text(&w.path("m.fqbin"))]);
    expect(&shown, 0, "");
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    assert!(shown.contains("linears in INT4          14 100.00 %"), "{shown}");
    // A head that is the embeddings' transpose is no memory of its own in FP16.
    let head = |model: &str| {
        let out = w.path("m.fqbin");
        let args = ["compile", model, "-o", text(&out), "--method", "none", "--levels", "avx2"];
        let done = w.fqc(&[&args[..], &["--json", "--quiet"]].concat());
        expect(&done, 0, "");
        let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
        assert_eq!(bytes(&report, "head"), 4 * 64 * 512);
        report["memory"]["head"]["fp16_bytes"].as_u64()
    };
    assert_eq!(head(LLAMA), Some(2 * 64 * 512));
    assert_eq!(head("../../tests/models/tiny/opt4_dy_op18_sdpa.onnx"), Some(0));
    let opt = w.fqc(&["memory", "--decoder", "4096,16384,32,50272,2050"]);
    expect(&opt, 0, "");
    let opt = String::from_utf8(opt.stdout).expect("UTF-8");
    assert!(opt.contains("48.29 %") && opt.trim_end().ends_with("2.33"), "{opt}");
}

#[test]
fn a_compilation_ends_with_the_short_form() {
    let w = World::new();
    let out = w.path("m.fqbin");
    let args = ["compile", LLAMA, "-o", text(&out), "--levels", "avx2", "--quiet"];
    let done = w.fqc(&[&args[..], &DATA, &["--layer", "*down_proj*=w4a8"]].concat());
    expect(&done, 0, "");
    let said = String::from_utf8(done.stdout).expect("UTF-8");
    let share = 100.0 * DOWN as f64 / (ATTENTION + GATED + DOWN) as f64;
    for part in [
        "8 groups, ".to_owned(),
        " % extra channels in the mean".to_owned(),
        format!("14 linear layers, {share:.1} % of the work in INT4, {:.1} %", 100.0 - share),
        "losses are with weights to nearest; GPTQ".to_owned(),
        "times less than 0.2 MB in FP16".to_owned(),
        "MB; the model in FP16 has 0.3 MB".to_owned(),
    ] {
        assert!(said.contains(&part), "`{part}` is not in:\n{said}");
    }
}

#[test]
fn statistics_alone_do_not_tell_what_int4_costs() {
    let w = World::new();
    let (kept, out) = (w.path("m.fqcal"), w.path("m.fqbin"));
    let kept = text(&kept);
    expect(&w.fqc(&[&["calibrate", LLAMA, "-o", kept, "--quiet"], &DATA[..]].concat()), 0, "");
    let args = ["compile", LLAMA, "-o", text(&out), "--levels", "avx2", "--quiet", "--calib", kept];
    let aim = ["--rounding", "nearest", "--int4-share", "0.5"];
    let done = w.fqc(&[&args[..], &aim].concat());
    expect(&done, 0, "warning: the statistics alone");
    expect(&done, 0, "give the calibration samples beside the .fqcal");
    std::fs::remove_file(&out).expect("was written");
    let done = w.fqc(&[&args[..], &aim, &["--strict"]].concat());
    expect(&done, 4, "(`--strict`)");
    assert!(!out.exists());
    let both = w.fqc(&[&args[..], &aim, &DATA].concat());
    expect(&both, 0, "");
    assert!(!String::from_utf8_lossy(&both.stderr).contains("warning"), "samples are there");
}

#[test]
fn settings_that_make_no_sense() {
    let w = World::new();
    let out = w.path("m.fqbin");
    let config = w.path("two.toml");
    std::fs::write(&config, "gamma = 0.1\nmax_drop = 0.1\n").expect("writes");
    let table: [(&[&str], &str); 14] = [
        (&["--layer", "nothing=w4a8"], "no linear layer fits `nothing`"),
        (&["--layer", "out=w8a8"], "`--lm-head int8`"),
        (&["--layer", "*down_proj*"], "NAME=SCHEME"),
        (&["--layer", "*down_proj*=w3a8"], "w3a8"),
        (&["--int4-share", "48.29"], "from 0 to 1"),
        (&["--gamma=-0.1"], "from 0 on"),
        (&["--max-drop", "NaN"], "from 0 on"),
        (&["--gamma", "0.1", "--max-drop", "0.1"], "cannot be used with"),
        (&["--config", text(&config)], "at most"),
        (&["--gamma", "0.1", "--method", "none"], "quantises nothing"),
        (&["--gamma", "0.1", "--scheme", "w4a8"], "--scheme"),
        (&["--sequential", "--rounding", "nearest"], "--sequential"),
        (&["--rounding", "gptq", "--method", "rtn"], "--rounding gptq"),
        (&["--int4-activations", "5"], "4 or 8"),
    ];
    for (more, fragment) in table {
        let args = ["compile", LLAMA, "-o", text(&out)];
        expect(&w.fqc(&[&args[..], &DATA, more].concat()), 2, fragment);
        assert!(!out.exists(), "{more:?}");
    }
    for (args, code, fragment) in [
        (&["memory"][..], 2, "--decoder"),
        (&["memory", "gone.fqbin"], 8, "gone.fqbin"),
        (&["memory", LLAMA], 3, "llama4"),
        (&["memory", "--decoder", "1,2"], 2, "four or five"),
        (&["memory", "--decoder", "1,2,3,99999999999"], 2, "at most"),
        (&["memory", "--decoder", "1,2,3,4", "--int4-share", "2"], 2, "--int4-share"),
    ] {
        expect(&w.fqc(args), code, fragment);
    }
}
