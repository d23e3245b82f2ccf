//! What went wrong in an import: a list of problems, because all of a model's problems are reported
//! in one run, each with the node it belongs to and what to do about it.

use std::collections::BTreeMap;
use std::fmt;

/// Who must act on a problem.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The file is broken or contradicts the standard.
    Invalid,
    /// The model is fine, but uses something that fqc does not do.
    Unsupported,
    /// A documented bound is exceeded.
    Limit,
    /// A file could not be read.
    Io,
}

/// The ONNX node that a problem belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// The node's name, or its first output where it has none.
    pub node: String,
    /// The operator with its domain.
    pub op: String,
    /// The version of the operator's domain that the model imports.
    pub opset: i64,
    /// Types of the node's operands as far as they are known.
    pub operands: Vec<String>,
}

/// One thing that keeps a model from being imported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub kind: Kind,
    /// Where; `None` for a problem of the whole model.
    pub site: Option<Box<Site>>,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

/// All problems of a model, in the order in which they were met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportError {
    pub problems: Vec<Problem>,
    /// Model inputs whose values decide shapes and must be bound to constants.
    pub needs: Vec<String>,
}

impl ImportError {
    pub(crate) fn one(kind: Kind, message: impl Into<String>, help: impl Into<String>) -> Self {
        let problem = Problem { kind, site: None, message: message.into(), help: help.into() };
        ImportError { problems: vec![problem], needs: Vec::new() }
    }

    /// The kind that decides the exit code: the worst of all problems.
    pub fn kind(&self) -> Kind {
        self.problems.iter().map(|p| p.kind).max().unwrap_or(Kind::Invalid)
    }
}

impl fmt::Display for ImportError {
    /// Problems with the same message and operator are grouped; at most three nodes of a group are
    /// named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: Vec<Vec<&Problem>> = Vec::new();
        let mut index: BTreeMap<(String, String), usize> = BTreeMap::new();
        for p in &self.problems {
            let op = p.site.as_ref().map(|s| s.op.clone()).unwrap_or_default();
            let at = *index.entry((op, p.message.clone())).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[at].push(p);
        }
        for (i, group) in groups.iter().enumerate() {
            let first = group[0];
            write!(f, "{}{}", if i > 0 { "\n" } else { "" }, first.message)?;
            for site in group.iter().filter_map(|p| p.site.as_ref()).take(3) {
                write!(f, "\n  --> node `{}` ({}, opset {})", site.node, site.op, site.opset)?;
                if !site.operands.is_empty() {
                    write!(f, " of {}", site.operands.join(", "))?;
                }
            }
            if group.len() > 3 {
                write!(f, "\n  ... and {} more", group.len() - 3)?;
            }
            if !first.help.is_empty() {
                write!(f, "\n  = help: {}", first.help)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ImportError {}

/// Why one node could not be imported; the walk over the model adds where.
#[derive(Debug)]
pub(crate) enum Fault {
    Problem {
        kind: Kind,
        message: String,
        help: String,
    },
    /// The value of this node decides a shape, but is known only when the model runs.
    Unknown {
        value: Option<fqc_ir::NodeId>,
        what: &'static str,
    },
    /// Two sizes that must be equal for the node to make sense.
    Equal(fqc_ir::Dim, fqc_ir::Dim),
}

pub(crate) type Res<T> = Result<T, Fault>;

impl Fault {
    pub fn invalid(message: impl Into<String>) -> Self {
        Fault::Problem { kind: Kind::Invalid, message: message.into(), help: String::new() }
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Fault::Problem { kind: Kind::Unsupported, message: message.into(), help: String::new() }
    }

    pub fn limit(message: impl Into<String>) -> Self {
        Fault::Problem { kind: Kind::Limit, message: message.into(), help: String::new() }
    }

    pub fn io(message: impl Into<String>) -> Self {
        Fault::Problem { kind: Kind::Io, message: message.into(), help: String::new() }
    }

    /// Adds what to do.
    pub fn help(self, text: impl Into<String>) -> Self {
        match self {
            Fault::Problem { kind, message, .. } => {
                Fault::Problem { kind, message, help: text.into() }
            }
            other => other,
        }
    }

    /// The message of a problem; empty for the other two, which the walk resolves itself.
    pub fn message(&self) -> &str {
        match self {
            Fault::Problem { message, .. } => message,
            Fault::Unknown { .. } | Fault::Equal(..) => "",
        }
    }
}

/// A name from a file, fit to be printed: control characters escaped, at most 120 characters.
pub(crate) fn shown(name: &str) -> String {
    let mut out: String = name.chars().take(120).flat_map(escaped).collect();
    if name.chars().nth(120).is_some() {
        out.push_str("...");
    }
    out
}

fn escaped(c: char) -> Vec<char> {
    let bidi =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || bidi { c.escape_unicode().collect() } else { vec![c] }
}
