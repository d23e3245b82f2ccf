//! The one error type of the runtime, by who must act: whoever made the file (`File`), the
//! machine's owner (`Io`, `CannotRun`, `Limit`, `Device`), the caller (`Input`, `Output`, `Cancelled`), or
//! whoever made the program (`Program`, `Kernel`).

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} `{path}`: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{path}`: {source}")]
    File { path: PathBuf, source: fqbin::Error },
    #[error("cannot run here: {0}")]
    CannotRun(String),
    #[error("input `{name}`: {what}")]
    Input { name: String, what: String },
    #[error("output `{name}`: {what}")]
    Output { name: String, what: String },
    #[error("over a limit: {0}")]
    Limit(String),
    #[error("the GPU failed: {0}")]
    Device(String),
    #[error("{0}")]
    Program(String),
    #[error("step {index} `{name}` ({family}) failed: {}", kernel_failure(*.code))]
    Kernel { index: usize, name: String, family: String, code: i32 },
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn input(name: &str, what: impl Into<String>) -> Error {
        Error::Input { name: fqbin::printable(name), what: what.into() }
    }

    pub(crate) fn output(name: &str, what: impl Into<String>) -> Error {
        Error::Output { name: fqbin::printable(name), what: what.into() }
    }
}

impl From<fqbin::BindError> for Error {
    fn from(error: fqbin::BindError) -> Error {
        match error {
            fqbin::BindError::Input { name, what } => Error::input(&name, what),
            fqbin::BindError::Limit(what) => Error::Limit(what),
            fqbin::BindError::Program(_) => Error::Program(error.to_string()),
        }
    }
}

fn kernel_failure(code: i32) -> String {
    match code {
        1 => "an index is out of range".to_string(),
        code => format!("the kernel returned {code}"),
    }
}
