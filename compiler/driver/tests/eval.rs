//! `fqc eval` against a computation of its own: the logits that `fqc run` writes, and the definitions
//! of loss, divergence and agreement over them.

mod world;

use serde_json::Value;
use world::{World, expect, text};

const WORDS: usize = 512;

/// The evaluation of a command as JSON.
fn eval(w: &World, args: &[&str]) -> Value {
    let done = w.fqc(&[&["eval"], args, &["--json", "--quiet"]].concat());
    expect(&done, 0, "");
    serde_json::from_slice(&done.stdout).expect("one line of JSON")
}

/// Logits of every window, each a list of rows, as one `fqc run` gives them.
fn logits(w: &World, model: &str, windows: &[Vec<i64>]) -> Vec<Vec<Vec<f64>>> {
    let (input, output) = (w.path("in.npz"), w.path("out.npz"));
    let shape = (windows.len(), windows[0].len());
    let ids = ndarray::Array2::from_shape_vec(shape, windows.concat()).expect("windows alike");
    let mut npz = ndarray_npy::NpzWriter::new(std::fs::File::create(&input).expect("creates"));
    npz.add_array("input_ids", &ids).expect("adds");
    npz.add_array("attention_mask", &ndarray::Array2::<i64>::ones(shape)).expect("adds");
    npz.finish().expect("finishes");
    expect(&w.fqc(&["run", model, "--inputs", text(&input), "--outputs", text(&output)]), 0, "");
    let file = std::fs::File::open(&output).expect("opens");
    let mut npz = ndarray_npy::NpzReader::new(file).expect("an npz");
    let all: ndarray::Array3<f32> = npz.by_name("out.npy").expect("the tiny models' output");
    let row = |row: ndarray::ArrayView1<f32>| row.iter().map(|v| f64::from(*v)).collect();
    all.outer_iter().map(|window| window.outer_iter().map(row).collect()).collect()
}

fn probabilities(row: &[f64]) -> Vec<f64> {
    let total: f64 = row.iter().map(|v| v.exp()).sum();
    row.iter().map(|v| v.exp() / total).collect()
}

fn likeliest(row: &[f64]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a vocabulary")
}

#[test]
fn the_scores_of_tiny_language_models_are_those_of_their_logits() {
    let w = World::new();
    let tokens = w.novel(300);
    let (size, count) = (16, 5);
    let first = tokens.len() / 5;
    let windows: Vec<Vec<i64>> =
        tokens[first..].chunks_exact(size).take(count).map(<[i64]>::to_vec).collect();
    let (novel, tokenizer) = (w.path("novel.txt"), w.path("tokenizer.json"));
    for name in ["gpt2_ts_op17_eager", "llama4_dy_op18_sdpa", "opt4_ts_op17_eager"] {
        let float = format!("../../tests/models/tiny/{name}.onnx");
        let compiled = w.path("m.fqbin");
        let compiled = text(&compiled);
        let done = w.fqc(&[
            "compile",
            &float,
            "-o",
            compiled,
            "--calib",
            "random",
            "--windows",
            "4",
            "--window",
            "16",
            "--levels",
            "avx2",
            "--quiet",
        ]);
        expect(&done, 0, "");
        let frame = [
            "--text",
            text(&novel),
            "--tokenizer",
            text(&tokenizer),
            "--windows",
            "5",
            "--window",
            "16",
            "--start",
            "0.2",
        ];
        let both = eval(&w, &[&[compiled, "--against", &float], &frame[..]].concat());
        let alone = eval(&w, &[&[float.as_str()], &frame[..]].concat());

        let (got, want) = (logits(&w, compiled, &windows), logits(&w, &float, &windows));
        let (mut loss, mut float_loss, mut kl, mut same) = (0.0, 0.0, 0.0, 0);
        for ((window, got), want) in windows.iter().zip(&got).zip(&want) {
            for at in 0..size {
                let (q, p) = (probabilities(&got[at]), probabilities(&want[at]));
                kl += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
                same += usize::from(likeliest(&got[at]) == likeliest(&want[at]));
                if let Some(next) = window.get(at + 1) {
                    loss -= q[*next as usize].ln();
                    float_loss -= p[*next as usize].ln();
                }
            }
        }
        let (predicted, positions) = ((count * (size - 1)) as f64, (count * size) as f64);
        let near = |value: &Value, want: f64| {
            let value = value.as_f64().expect("a number");
            assert!((value - want).abs() <= 1e-9 * want.abs().max(1.0), "{name}: {value}, {want}");
        };
        let scores = &both["language"];
        assert_eq!(scores["tokens"], predicted as u64, "{both}");
        near(&scores["loss"], loss / predicted);
        near(&scores["perplexity"], (loss / predicted).exp());
        near(&scores["against"]["perplexity"], (float_loss / predicted).exp());
        near(&scores["against"]["kl"], kl / positions);
        near(&scores["against"]["top1"], same as f64 / positions);
        near(&alone["language"]["perplexity"], (float_loss / predicted).exp());
        assert!(scores["against"]["kl"].as_f64() > Some(0.0), "INT8 is not float: {both}");
        assert!(alone["language"].get("against").is_none());
    }
}

#[test]
fn a_model_is_at_no_distance_from_itself() {
    let w = World::new();
    w.novel(100);
    let (novel, tokenizer) = (w.path("novel.txt"), w.path("tokenizer.json"));
    let frame = [
        "--text",
        text(&novel),
        "--tokenizer",
        text(&tokenizer),
        "--windows",
        "2",
        "--window",
        "20",
    ];
    let bert = "../../tests/models/tiny/bert_ts_op17_eager.onnx";
    let scores = eval(&w, &[&[bert, "--against", bert], &frame[..]].concat());
    let outputs = scores["encoder"].as_array().expect("BERT has no logits").clone();
    assert!(!outputs.is_empty());
    for output in outputs {
        assert!(output["min"].as_f64() > Some(1.0 - 1e-12), "{output}");
        assert_eq!(output["rows"], 40, "a row for each token");
    }
    let llama = "../../tests/models/tiny/llama4_ts_op17_eager.onnx";
    let scores = eval(&w, &[&[llama, "--against", llama], &frame[..]].concat());
    let against = &scores["language"]["against"];
    assert!(against["kl"].as_f64().expect("a number").abs() < 1e-12 && against["top1"] == 1.0);
}

#[test]
fn evaluations_that_make_no_sense() {
    let w = World::new();
    w.novel(100);
    let bert = "../../tests/models/tiny/bert_ts_op17_eager.onnx";
    let llama = "../../tests/models/tiny/llama4_ts_op17_eager.onnx";
    let (novel, tokenizer) = (w.path("novel.txt"), w.path("tokenizer.json"));
    let (novel, tokenizer) = (text(&novel), text(&tokenizer));
    let latin1 = w.path("latin1.txt");
    std::fs::write(&latin1, b"caf\xe9").expect("writes");
    w.tokenizer("wide.json", 2 * WORDS);
    let wide_words = w.path("wide.txt");
    std::fs::write(&wide_words, "w700 ".repeat(60)).expect("writes");
    let wide = w.path("wide.json");
    let table: [(&[&str], i32, &str); 14] = [
        (&[llama], 2, "--text"),
        (&[llama, "--text", novel], 2, "--tokenizer"),
        (&[llama, "--text", "gone.txt", "--tokenizer", tokenizer], 8, "gone.txt"),
        (&[llama, "--text", novel, "--tokenizer", "gone.json"], 8, "gone.json"),
        (&[llama, "--text", novel, "--tokenizer", novel], 7, "no tokenizer"),
        (&[llama, "--text", text(&latin1), "--tokenizer", tokenizer], 7, "UTF-8"),
        (&[llama, "--text", novel, "--tokenizer", tokenizer], 7, "12 are wanted"),
        (&[llama, "--text", novel, "--tokenizer", tokenizer, "--window", "1"], 2, "--window"),
        (&[llama, "--text", novel, "--tokenizer", tokenizer, "--start", "1"], 2, "--start"),
        (&[llama, "--text", novel, "--tokenizer", tokenizer, "--start", "NaN"], 2, "--start"),
        (&["gone.onnx", "--text", novel, "--tokenizer", tokenizer, "--window", "4"], 8, "gone"),
        (&[novel, "--text", novel, "--tokenizer", tokenizer, "--window", "4"], 3, "novel.txt"),
        (&[bert, "--text", novel, "--tokenizer", tokenizer, "--window", "4"], 2, "--against"),
        (&[llama, "--text", novel, "--tokenizer", tokenizer, "--max-kl", "1"], 2, "--against"),
    ];
    for (args, code, fragment) in table {
        expect(&w.fqc(&[&["eval"], args].concat()), code, fragment);
    }
    let frame = ["--text", novel, "--tokenizer", tokenizer, "--window", "4", "--quiet"];
    let gates: [(&[&str], i32, &str); 6] = [
        (&[llama, "--against", bert], 2, "another model"),
        (&[llama, "--max-perplexity", "2"], 4, "perplexity"),
        (&[llama, "--max-perplexity", "1e9"], 0, ""),
        (&[llama, "--against", llama, "--min-cosine", "0.9"], 2, "--min-cosine"),
        (&[bert, "--against", bert, "--min-cosine", "1.5"], 4, "cosine"),
        (&[bert, "--against", bert, "--max-kl", "1"], 2, "--max-kl"),
    ];
    for (args, code, fragment) in gates {
        expect(&w.fqc(&[&["eval"], args, &frame[..]].concat()), code, fragment);
    }
    let args = ["eval", llama, "--text", text(&wide_words), "--tokenizer", text(&wide)];
    let done = w.fqc(&[&args[..], &["--windows", "1", "--window", "8"]].concat());
    expect(&done, 7, "window 0");
}
