//! How a command ends: the table of exit codes, and the one error type that carries one.

use std::fmt;

/// Exit codes; stable, listed in the README.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Exit {
    /// A fault of fqc itself.
    Internal = 1,
    /// The command line does not make sense.
    Usage = 2,
    /// The model is broken or has something that is not supported.
    Model = 3,
    /// A bound that was asked for does not hold.
    Gate = 4,
    /// The file cannot run here: version, processor, driver, or code that is not trusted.
    CannotRun = 5,
    /// Over a limit of memory, size or time.
    Limit = 6,
    /// Calibration data or inputs that cannot be used.
    Data = 7,
    /// A file cannot be read or written.
    Io = 8,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
    /// Stopped by a termination signal.
    Terminated = 143,
}

/// Why a command failed: the exit code and the message, which names the place and the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, message)
    }

    pub fn data(message: impl Into<String>) -> Self {
        Failure::new(Exit::Data, message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Failure::new(Exit::Internal, format!("{message}; this is a fault of fqc, please report it"))
    }

    /// A file operation that failed.
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Failure::new(Exit::Io, format!("cannot {action} `{}`: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<fqrt::Error> for Failure {
    fn from(error: fqrt::Error) -> Self {
        use fqrt::Error as E;
        let exit = match &error {
            E::Io { .. } => Exit::Io,
            E::File { source, .. } => return file_failure(source, error.to_string()),
            E::CannotRun(_) | E::Device(_) => Exit::CannotRun,
            E::Input { .. } | E::Output { .. } => Exit::Data,
            E::Limit(_) => Exit::Limit,
            E::Kernel { code: 1, .. } => Exit::Data,
            E::Program(_) | E::Kernel { .. } => Exit::Internal,
            E::Cancelled => Exit::Interrupted,
        };
        Failure::new(exit, error.to_string())
    }
}

/// The exit code of a fault in a `.fqbin` file.
pub fn file_failure(source: &fqbin::Error, message: String) -> Failure {
    use fqbin::Error as E;
    let exit = match source {
        E::Io { .. } => Exit::Io,
        E::Version(_) | E::Untrusted(_) => Exit::CannotRun,
        E::Limit(_) => Exit::Limit,
        _ => Exit::Model,
    };
    Failure::new(exit, message)
}
