//! `fqc analyze` and `fqc methods` on a tiny model: what they say is what compiling and evaluating by
//! hand gives, every time the same, and the page needs nothing but itself.

mod world;

use serde_json::Value;
use std::fs;
use world::{MODEL, World, expect, text};

const LLAMA: &str = "../../tests/models/tiny/llama4_ts_op17_eager.onnx";

/// The lines of JSON that a command prints.
fn lines(w: &World, args: &[&str]) -> Vec<Value> {
    let done = w.fqc(&[args, &["--json", "--quiet"]].concat());
    expect(&done, 0, "");
    let text = String::from_utf8(done.stdout).expect("UTF-8");
    text.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn near(a: &Value, b: &Value) {
    let (a, b) = (number(a), number(b));
    assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} {b}");
}

/// What is calibrated on.
const DATA: [&str; 6] = ["--calib", "random", "--windows", "4", "--window", "16"];

/// A calibration of the tiny Llama, its text and its tokenizer.
fn calibrated(w: &World) -> [String; 3] {
    w.novel(300);
    let [kept, novel, tokenizer] =
        ["m.fqcal", "novel.txt", "tokenizer.json"].map(|name| text(&w.path(name)).to_owned());
    expect(&w.fqc(&[&["calibrate", LLAMA, "-o", &kept, "--quiet"], &DATA[..]].concat()), 0, "");
    [kept, novel, tokenizer]
}

/// What compiling to a file and evaluating it gives.
fn by_hand(w: &World, files: &[String; 3], settings: &[&str]) -> Value {
    let [kept, novel, tokenizer] = files;
    let out = w.path("m.fqbin");
    let compile = ["compile", LLAMA, "-o", text(&out), "--calib", kept, "--quiet"];
    expect(&w.fqc(&[&compile[..], &DATA, settings].concat()), 0, "");
    let frame = ["--text", novel, "--tokenizer", tokenizer, "--windows", "4", "--window", "16"];
    let eval = ["eval", text(&out), "--against", LLAMA];
    lines(w, &[&eval[..], &frame].concat()).remove(0)
}

#[test]
fn the_methods_are_those_of_compile_and_eval() {
    let w = World::new();
    let files = calibrated(&w);
    let [kept, novel, tokenizer] = &files;
    let frame = ["--eval", novel, "--tokenizer", tokenizer, "--eval-windows", "4"];
    let methods = ["methods", LLAMA, "--calib", kept, "--eval-window", "16"];
    let methods = [&methods[..], &DATA, &frame].concat();
    let rows = lines(&w, &methods);
    assert_eq!(rows.len(), 1 + 3 * 3);
    assert_eq!(rows[0]["method"], "none");
    assert!(rows[0].get("scheme").is_none());
    assert!(number(&rows[0]["scores"]["language"]["against"]["kl"]).abs() < 1e-9);
    for (method, scheme) in [("flattenquant", "w8a8"), ("rtn", "w4a8"), ("smoothquant", "w4a4")] {
        let same = |r: &&Value| r["method"] == method && r["scheme"] == scheme;
        let row = rows.iter().find(same).expect("a row for each");
        let hand = by_hand(&w, &files, &["--method", method, "--scheme", scheme]);
        let (row_scores, hand) = (&row["scores"]["language"], &hand["language"]);
        near(&row_scores["perplexity"], &hand["perplexity"]);
        near(&row_scores["against"]["kl"], &hand["against"]["kl"]);
        assert_eq!(row_scores["against"]["top1"], hand["against"]["top1"]);
        let share = number(&row["int4_share"]);
        assert_eq!(share, if scheme == "w8a8" { 0.0 } else { 1.0 });
        assert_eq!(number(&row["extra_channels"]) > 0.0, method == "flattenquant", "{row}");
    }
    let some = lines(&w, &[&methods[..], &["--method", "rtn", "--scheme", "w8a8,w4a4"]].concat());
    assert_eq!(some, [rows[1].clone(), rows[3].clone()]);
    let table = w.fqc(&[&methods[..], &["--method", "none,rtn", "--quiet"]].concat());
    let table = String::from_utf8(table.stdout).expect("UTF-8");
    assert_eq!(table.lines().count(), 5, "a head and a line each:\n{table}");
}

#[test]
fn an_analysis_ranks_sums_up_and_repeats_itself() {
    let w = World::new();
    let files = calibrated(&w);
    let [kept, novel, tokenizer] = &files;
    let pages = [w.path("a.html"), w.path("b.html")];
    let one = |page: &std::path::Path, threads: &str| {
        let frame = ["--eval", novel, "--tokenizer", tokenizer, "--eval-windows", "4"];
        let args = ["analyze", LLAMA, "--calib", kept, "--eval-window", "16", "--html"];
        let more = [text(page), "--shares", "0,50,100", "--threads", threads];
        lines(&w, &[&args[..], &more, &DATA, &frame].concat()).remove(0)
    };
    let analysis = one(&pages[0], "1");
    assert_eq!(analysis, one(&pages[1], "2"), "threads change nothing");
    let page = fs::read_to_string(&pages[0]).expect("reads");
    assert!(page == fs::read_to_string(&pages[1]).expect("reads"));

    let groups = analysis["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 8, "two blocks of attention, its output, gate with up, and down");
    assert!(groups.is_sorted_by(|a, b| number(&a["loss"]) >= number(&b["loss"])));
    let work: f64 = groups.iter().map(|g| number(&g["work"])).sum();
    assert!((work - 1.0).abs() < 1e-12);
    for g in groups {
        let loss = |i: usize| number(&g["at"][i]["loss"]);
        assert_eq!(g["at"][0]["loss"], g["loss"], "W8A8 is what was chosen");
        assert!(0.0 < loss(0) && loss(0) < 0.01 && loss(0) < loss(1) && loss(1) < loss(2), "{g}");
        let max = |stage: &str| number(&g["maxima"][stage]["max"]);
        assert!(max("flattened") <= max("smoothed") && max("flattened") <= number(&g["threshold"]));
        let label = g["label"].as_str().expect("a label");
        assert!(label.starts_with("layers.") && page.contains(label), "{label}");
    }
    let layers: std::collections::BTreeSet<u64> =
        groups.iter().filter_map(|g| g["layer"].as_u64()).collect();
    assert_eq!(layers, (0..8).collect());

    let points = analysis["curve"]["points"].as_array().expect("a curve");
    let shares: Vec<f64> = points.iter().map(|p| number(&p["int4_share"])).collect();
    assert!(shares[0] == 0.0 && (0.5..0.8).contains(&shares[1]) && shares[2] == 1.0, "{shares:?}");
    for (point, share) in ["0", "0.5", "1"].into_iter().enumerate() {
        let hand = by_hand(&w, &files, &["--int4-share", share]);
        near(&points[point]["scores"]["language"]["perplexity"], &hand["language"]["perplexity"]);
    }
    assert!(analysis["note"].as_str().is_some_and(|n| n.contains("GPTQ")), "{}", analysis["note"]);
    self_contained(&page);
}

/// That a page names nothing outside itself, and closes what it opens.
fn self_contained(page: &str) {
    for word in ["http", "<script", "src=", "url(", "@import", "<link", "NaN", "inf'"] {
        assert!(!page.contains(word), "the page has `{word}`");
    }
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '\n']).next().expect("a name");
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in order");
        } else if !tag.ends_with('/') && !["meta", "!doctype"].contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} is not closed");
    let named = page.matches("<title>").count();
    assert!(named > 50, "dots, lines and bars have tooltips");
}

#[test]
fn an_encoder_has_cosines_and_compile_ends_with_the_largest_losses() {
    let w = World::new();
    w.novel(200);
    let (novel, tokenizer) = (w.path("novel.txt"), w.path("tokenizer.json"));
    let data = ["--calib", "random", "--windows", "3", "--window", "8"];
    let frame = ["--eval", text(&novel), "--tokenizer", text(&tokenizer), "--eval-windows", "2"];
    let page = w.path("m.html");
    let more = ["--eval-window", "8", "--html", text(&page), "--shares", "0,100", "--lines", "2"];
    let args = [&["analyze", MODEL][..], &data, &frame, &more].concat();
    let done = w.fqc(&args);
    expect(&done, 0, "");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        said.contains("and 6 more") && said.contains("cosine 0.9") && said.contains("GPTQ"),
        "{said}"
    );
    self_contained(&fs::read_to_string(&page).expect("reads"));
    let out = w.path("m.fqbin");
    let compile = ["compile", MODEL, "-o", text(&out), "--levels", "avx2"];
    let done = w.fqc(&[&compile[..], &data].concat());
    expect(&done, 0, "");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.starts_with("largest losses") && said.contains("and 3 more"), "{said}");
}

#[test]
fn analyses_that_make_no_sense() {
    let w = World::new();
    w.novel(100);
    let (novel, tokenizer, away) =
        (w.path("novel.txt"), w.path("tokenizer.json"), w.path("no/such.html"));
    let (novel, tokenizer, away) = (text(&novel), text(&tokenizer), text(&away));
    let eval = ["--eval", novel, "--tokenizer", tokenizer];
    let table: [(&[&str], i32, &str); 13] = [
        (&["analyze", LLAMA], 7, "--calib"),
        (&["analyze", LLAMA, "--calib", "random", "--method", "none"], 2, "--method none"),
        (&["analyze", LLAMA, "--calib", "random", "--shares", "120"], 2, "--shares"),
        (&["analyze", LLAMA, "--calib", "random", "--html", away], 8, "not a folder"),
        (&["analyze", LLAMA, "--calib", "random", "--eval", novel], 2, "--tokenizer"),
        (&["analyze", LLAMA, "--calib", "random", "--low", "w2a2"], 2, "w2a2"),
        (&["analyze", LLAMA, "--calib", "random", "--low", "w8a8"], 2, "--low"),
        (&["analyze", "gone.onnx", "--calib", "random"], 8, "gone.onnx"),
        (&["analyze", novel, "--calib", "random"], 3, "novel.txt"),
        (&["methods", LLAMA, "--calib", "random"], 2, "--eval"),
        (&["methods", LLAMA, "--calib", "random", "--eval-window", "1"], 2, "--eval"),
        (&["methods", LLAMA, "--eval-window", "1"], 2, "--eval-window"),
        (&["methods", LLAMA], 7, "--calib"),
    ];
    for (i, (args, code, fragment)) in table.into_iter().enumerate() {
        let more: &[&str] = if i >= 11 { &eval } else { &[] };
        let small = ["--windows", "2", "--window", "8", "--eval-windows", "2"];
        let window = if i == 12 { &["--eval-window", "8"][..] } else { &[] };
        expect(&w.fqc(&[args, more, &small, window].concat()), code, fragment);
    }
}
