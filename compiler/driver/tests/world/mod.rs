//! What the tests of the command line share: a folder with everything that they need.
#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A model without logits.
pub const MODEL: &str = "../../tests/models/tiny/bert_ts_op17_eager.onnx";

/// A folder with everything the cases need.
pub struct World {
    dir: TempDir,
}

impl World {
    pub fn new() -> World {
        World { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn fqc(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("fqc starts")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fqc"));
        command.args(args).env("FQC_HOME", self.path("home")).env("FQC_CPU_LEVEL", "");
        command.env_remove("FQC_CPU_LEVEL");
        command
    }

    /// Compiles the tiny model in float for one level.
    pub fn compiled(&self, name: &str) -> PathBuf {
        self.compiled_for(name, "cpu")
    }

    /// The same for some targets.
    pub fn compiled_for(&self, name: &str, targets: &str) -> PathBuf {
        let out = self.path(name);
        let done = self.fqc(&[
            "compile",
            MODEL,
            "-o",
            text(&out),
            "--method",
            "none",
            "--levels",
            "avx2",
            "--target",
            targets,
            "--quiet",
        ]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        out
    }

    /// Writes `NAME`, a tokenizer with the words `w0` to `w(N-1)` in this order.
    pub fn tokenizer(&self, name: &str, words: usize) {
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            (0..words).map(|i| (format!("w{i}"), i.into())).collect();
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
        });
        fs::write(self.path(name), json.to_string()).expect("writes");
    }

    /// Writes `novel.txt` of so many words and `tokenizer.json` for the tiny models; the tokens.
    pub fn novel(&self, words: usize) -> Vec<i64> {
        self.tokenizer("tokenizer.json", 512);
        let mut state = 7u64;
        let tokens: Vec<i64> = (0..words)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 33) % 512) as i64
            })
            .collect();
        let text: Vec<String> = tokens
            .iter()
            .enumerate()
            .map(|(i, t)| format!("w{t}{}", if i % 9 == 8 { "\n" } else { " " }))
            .collect();
        fs::write(self.path("novel.txt"), text.concat()).expect("writes");
        tokens
    }

    /// Names in a folder of this world.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a folder");
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// That a command ended with this code, said this, and did not panic.
pub fn expect(output: &Output, code: i32, fragment: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(fragment), "`{fragment}` is not in:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
