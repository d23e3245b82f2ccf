//! What a file holds, as plain values: the manifest and, for each target, a program, its weights
//! and its code. Codegen makes an [`Image`]; [`write_file`](crate::write_file) turns it into
//! bytes. The payload of a code section (entry table, then code) is defined here too.

use crate::codec::Reader;
use crate::error::{Error, Result};
use crate::len::ByteLen;
use crate::limits::LIMITS;
use crate::program::Program;
use crate::weights::Weights;

/// Machine code of one target at one level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeImage {
    /// Name of the level; see [`Level::name`](crate::Level::name). Empty where there is one only.
    pub level: String,
    /// Offset of each kernel's entry in `bytes`, in the order of `Program::kernels`. Empty for
    /// targets whose loader finds kernels by name.
    pub entries: Vec<u32>,
    /// Flat, position-independent code, or the target's own container.
    pub bytes: Vec<u8>,
}

/// Everything of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetImage {
    /// `cpu`, `cuda:sm_90a`, ….
    pub target: String,
    pub program: Program,
    pub weights: Weights,
    pub code: Vec<CodeImage>,
}

/// Everything of a file but its signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Name and version of the maker, such as `fqc 0.1.0`.
    pub producer: String,
    /// JSON for people and reports.
    pub manifest: Vec<u8>,
    pub targets: Vec<TargetImage>,
}

/// Alignment of the code within its section, and so in memory.
const CODE_ALIGN: u64 = 64;

impl CodeImage {
    /// The section's payload: count, zero, length of the code, entries, zero padding, code.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let count = u32::try_from(self.entries.len())
            .map_err(|_| Error::limit(format!("{} kernel entries", self.entries.len())))?;
        out.extend(count.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend((self.bytes.len() as u64).to_le_bytes());
        for entry in &self.entries {
            out.extend(entry.to_le_bytes());
        }
        let padded = ByteLen::from_usize(out.len()).align_up(CODE_ALIGN)?.to_usize()?;
        out.resize(padded, 0);
        out.extend(&self.bytes);
        Ok(out)
    }
}

/// The code section of a file, still in the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeView<'a> {
    pub level: String,
    pub entries: Vec<u32>,
    pub bytes: &'a [u8],
}

impl<'a> CodeView<'a> {
    /// Reads a code section's payload. Where there are entries they must be as many as the
    /// program has kernels, and lie inside the code.
    pub fn decode(level: &str, payload: &'a [u8], kernels: usize) -> Result<CodeView<'a>> {
        let mut r = Reader::new(payload, "a code section");
        let count = r.count("kernel entries", LIMITS.kernels, 4)?;
        let reserved = r.u32()?;
        let len = ByteLen::new(r.u64()?);
        let entries: Vec<u32> = (0..count).map(|_| r.u32()).collect::<Result<_>>()?;
        let head = ByteLen::from_usize(16 + 4 * count);
        let padding = head.align_up(CODE_ALIGN)?.minus(head)?.to_usize()?;
        if reserved != 0 || r.take(padding)?.iter().any(|&b| b != 0) {
            return Err(Error::malformed("reserved bytes of a code section are not zero"));
        }
        let bytes = r.take(len.to_usize()?)?;
        r.finish()?;
        let view = CodeView { level: level.to_string(), entries, bytes };
        check_entries(&view.entries, bytes.len(), kernels)?;
        Ok(view)
    }
}

/// Entries are one for each kernel, or none at all, and lie inside the code.
pub fn check_entries(entries: &[u32], code_len: usize, kernels: usize) -> Result<()> {
    if !entries.is_empty() && entries.len() != kernels {
        let count = entries.len();
        return Err(Error::malformed(format!("{count} code entries for {kernels} kernels")));
    }
    match entries.iter().find(|&&e| e as usize >= code_len) {
        Some(e) => Err(Error::malformed(format!("entry {e} is outside {code_len} bytes of code"))),
        None => Ok(()),
    }
}
