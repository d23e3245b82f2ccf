//! Calibration statistics as a file, `.fqcal`:
//!
//! ```text
//! magic "FQCAL\r\n\x1a" · version u32 · header length u32 · header, JSON
//! the statistics of each value, as long as the header says
//! BLAKE3 of everything before, 32 bytes
//! ```
//!
//! Little-endian. The same statistics give the same bytes. A file is read whole and validated before
//! anything is taken from it: version, lengths, exact cover, hash, and every value.

use crate::exit::{Exit, Failure};
use crate::file;
use crate::hash;
use fqc_passes::quant::stats::{ChannelStats, Statistics};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

const MAGIC: [u8; 8] = *b"FQCAL\r\n\x1a";
const VERSION: u32 = 2;
const HASH: usize = 32;

/// Calibration as far as it went.
#[derive(Clone, PartialEq, Debug)]
pub struct Calibration {
    /// Hash of the float graph that was run.
    pub graph_hash: String,
    pub origin: Origin,
    /// Samples seen and samples there are.
    pub done: usize,
    pub total: usize,
    pub statistics: Statistics,
}

/// What data the statistics come from: everything that decides the samples.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Empty if the samples are made up.
    pub files: Vec<DataFile>,
    pub tokenizer_hash: Option<String>,
    /// How text is cut; `None` if there is none.
    pub windows: Option<Windows>,
}

/// A file by name and BLAKE3.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    pub name: String,
    pub hash: String,
}

/// Windows of a text: how many, their tokens, and where they start, as a share of the text.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Windows {
    pub count: usize,
    pub tokens: usize,
    pub start: f64,
}

/// The readable part of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    producer: String,
    graph_hash: String,
    origin: Origin,
    done: usize,
    total: usize,
    values: Vec<Value>,
}

/// One observed value.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Value {
    name: String,
    channels: usize,
    rows: u64,
    /// Length of its statistics.
    bytes: usize,
}

impl Calibration {
    /// What a file says of itself in readable form, and the statistics.
    fn parts(&self) -> (Header, Vec<u8>) {
        let mut values = Vec::new();
        let mut body = Vec::new();
        for (name, stats) in &self.statistics {
            let before = body.len();
            stats.write(&mut body);
            let (channels, rows) = (stats.channels(), stats.rows());
            values.push(Value { name: name.clone(), channels, rows, bytes: body.len() - before });
        }
        let header = Header {
            producer: concat!("fqc ", env!("CARGO_PKG_VERSION")).to_owned(),
            graph_hash: self.graph_hash.clone(),
            origin: self.origin.clone(),
            done: self.done,
            total: self.total,
            values,
        };
        (header, body)
    }

    /// What a file says of itself.
    pub fn header(&self) -> Header {
        self.parts().0
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Failure> {
        let (header, body) = self.parts();
        let header = serde_json::to_vec(&header).map_err(Failure::internal)?;
        let length = u32::try_from(header.len()).map_err(Failure::internal)?;
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend(header);
        out.extend(body);
        let hash = blake3::hash(&out);
        out.extend(hash.as_bytes());
        Ok(out)
    }

    /// What the bytes of a file mean; the fault if they are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Calibration, Failure> {
        let mut rest = Reader { bytes };
        if rest.take(MAGIC.len())? != MAGIC {
            return Err(damaged("it does not begin as a .fqcal file"));
        }
        let version = rest.u32()?;
        if version != VERSION {
            return Err(Failure::new(
                Exit::CannotRun,
                format!("has format version {version}, this fqc reads {VERSION}; calibrate again"),
            ));
        }
        let length = rest.u32()? as usize;
        let body = bytes.len().checked_sub(HASH).ok_or_else(cut)?;
        if blake3::hash(&bytes[..body]).as_bytes() != &bytes[body..] {
            return Err(damaged("its hash does not fit its content"));
        }
        let header: Header = serde_json::from_slice(rest.take(length)?)
            .map_err(|e| damaged(&format!("its header cannot be read: {e}")))?;
        header.check()?;
        let mut statistics = Statistics::new();
        for value in &header.values {
            let fault = |what: &str| damaged(&format!("value `{}`: {what}", value.name));
            let stats = ChannelStats::read(rest.take(value.bytes)?).map_err(fault)?;
            if (stats.channels(), stats.rows()) != (value.channels, value.rows) {
                return Err(fault("the header says something else"));
            }
            statistics.insert(value.name.clone(), stats);
        }
        if rest.bytes.len() != HASH {
            return Err(damaged("it is longer than its header says"));
        }
        let Header { graph_hash, origin, done, total, .. } = header;
        Ok(Calibration { graph_hash, origin, done, total, statistics })
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Calibration, Failure> {
        let bytes = fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
        Calibration::from_bytes(&bytes)
            .map_err(|e| Failure::new(e.exit, format!("`{}` {e}", path.display())))
    }

    /// Writes a file: beside it first, then in one step in its place.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        file::write(path, &self.to_bytes()?)
    }
}

impl Header {
    fn check(&self) -> Result<(), Failure> {
        let hashes = self.origin.files.iter().map(|f| &f.hash);
        let mut hashes = hashes.chain(&self.origin.tokenizer_hash).chain([&self.graph_hash]);
        if !hashes.all(|h| hash::is_hash(h)) {
            return Err(damaged("a hash in its header is none"));
        }
        if self.done > self.total || self.total == 0 {
            return Err(damaged("it has seen more samples than there are"));
        }
        if !self.values.is_sorted_by(|a, b| a.name < b.name) {
            return Err(damaged("its values are not in order"));
        }
        Ok(())
    }
}

/// What is left of a file.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(cut)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Failure> {
        let bytes = self.take(4)?.try_into().map_err(Failure::internal)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

fn cut() -> Failure {
    damaged("it ends too early")
}

fn damaged(what: &str) -> Failure {
    Failure::data(format!("holds no calibration: {what}; calibrate again"))
}

#[cfg(test)]
#[path = "fqcal_tests.rs"]
mod tests;
