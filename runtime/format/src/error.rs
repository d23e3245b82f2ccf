//! The one error type of the crate, by who must act: the environment (`Io`), whoever made or
//! moved the file (`NotFqbin`, `Version`, `Truncated`, `Hash`, `Malformed`, `Limit`, `Program`),
//! or whoever decides about trust (`Untrusted`). Names from files are escaped and cut.

use std::path::PathBuf;

use crate::verify::Fault;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} `{path}`: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("this is not an .fqbin file: {0}")]
    NotFqbin(String),
    #[error("{0}")]
    Version(String),
    #[error("the file is cut short: {have} of {want} bytes, inside {inside}; copy it again")]
    Truncated { have: u64, want: u64, inside: String },
    #[error("the checksum of {0} does not match; the file is damaged, copy or compile it again")]
    Hash(String),
    #[error("malformed .fqbin: {0}")]
    Malformed(String),
    #[error("over a limit: {0}")]
    Limit(String),
    #[error("the program of target `{target}` is faulty: {}", list(.faults))]
    Program { target: String, faults: Vec<Fault> },
    #[error("{0}")]
    Untrusted(String),
}

impl Error {
    pub(crate) fn malformed(what: impl Into<String>) -> Error {
        Error::Malformed(what.into())
    }

    pub(crate) fn limit(what: impl Into<String>) -> Error {
        Error::Limit(what.into())
    }

    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

fn list(faults: &[Fault]) -> String {
    let shown: Vec<String> = faults.iter().take(5).map(Fault::to_string).collect();
    let more = faults.len().saturating_sub(shown.len());
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{tail}", shown.join("; "))
}

/// A name from a file as it may appear in a message: control characters escaped, at most 200
/// characters.
pub fn printable(name: &str) -> String {
    let mut out: String =
        name.chars().take(200).flat_map(|c| c.escape_debug().collect::<Vec<_>>()).collect();
    if name.chars().nth(200).is_some() {
        out.push('…');
    }
    out
}
