//! The fixed header and the section table: their records, their bytes, and the rules that one
//! pass over them enforces (order, exact cover, alignment, no duplicates, a known vocabulary).

use crate::codec::Reader;
use crate::error::{Error, Result, printable};
use crate::len::ByteLen;
use crate::limits::LIMITS;

/// First bytes of every file. The line ends catch transfers in text mode.
pub const MAGIC: [u8; 8] = *b"FQBIN\r\n\x1a";
/// Version of the format that this crate writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 2;
/// Oldest version of the format that this crate still reads.
pub const OLDEST_READABLE: u32 = 1;
/// Length of the header.
pub const HEADER_LEN: usize = 256;
/// Length of a record of the section table.
pub const RECORD_LEN: usize = 128;
/// Alignment of weight and code sections in the file.
pub const PAGE: u32 = 4096;
/// Alignment of the other sections.
pub const LINE: u32 = 64;
/// Length of the target and level fields of a record.
const TAG_LEN: usize = 32;
/// Length of the producer field of the header.
const PRODUCER_LEN: usize = 64;
/// Where the content id and the header hash lie in the header.
const CONTENT_ID_AT: usize = 128;
const HEADER_HASH_AT: usize = 224;
/// Section flag: a reader that does not know the kind must refuse the file.
const FLAG_REQUIRED: u32 = 1;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// JSON for people and reports; opaque here.
    Manifest,
    /// Packed constants of a target.
    Weights,
    /// The program of a target.
    Plan,
    /// Machine code of a target at a level, with the table of kernel entries.
    Code,
    /// A signature over the content id.
    Signature,
    /// A kind from a later version that this reader may skip.
    Other(u32),
}

impl Kind {
    pub fn code(self) -> u32 {
        match self {
            Kind::Manifest => 1,
            Kind::Weights => 2,
            Kind::Plan => 3,
            Kind::Code => 4,
            Kind::Signature => 5,
            Kind::Other(code) => code,
        }
    }

    fn from_code(code: u32) -> Kind {
        match code {
            1 => Kind::Manifest,
            2 => Kind::Weights,
            3 => Kind::Plan,
            4 => Kind::Code,
            5 => Kind::Signature,
            other => Kind::Other(other),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Weights => "weights",
            Kind::Plan => "plan",
            Kind::Code => "code",
            Kind::Signature => "signature",
            Kind::Other(_) => "other",
        }
    }

    pub(crate) fn align(self) -> u32 {
        match self {
            Kind::Weights | Kind::Code => PAGE,
            _ => LINE,
        }
    }

    fn max_len(self) -> u64 {
        match self {
            Kind::Manifest => LIMITS.manifest_bytes,
            Kind::Plan => LIMITS.plan_bytes,
            Kind::Code => LIMITS.code_bytes,
            Kind::Weights | Kind::Signature | Kind::Other(_) => LIMITS.file_bytes,
        }
    }
}

/// A record of the section table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub kind: Kind,
    pub flags: u32,
    pub offset: u64,
    pub len: u64,
    pub align: u32,
    /// `cpu`, `cuda:sm_90a`, …; empty for sections of the whole file.
    pub target: String,
    /// Code level within the target; empty where there is none.
    pub level: String,
    /// BLAKE3 of the section's bytes.
    pub hash: [u8; 32],
}

impl Section {
    /// A new section; offset, length and hash are filled in by the writer.
    pub(crate) fn new(kind: Kind, target: &str, level: &str) -> Section {
        Section {
            kind,
            flags: FLAG_REQUIRED,
            offset: 0,
            len: 0,
            align: kind.align(),
            target: target.to_string(),
            level: level.to_string(),
            hash: [0; 32],
        }
    }

    /// The section's name in messages, such as ``section `code cpu avx2` ``.
    pub fn label(&self) -> String {
        let parts = [self.kind.name(), &self.target, &self.level];
        let parts: Vec<String> =
            parts.iter().filter(|p| !p.is_empty()).map(|p| printable(p)).collect();
        format!("section `{}`", parts.join(" "))
    }

    /// Where the section's bytes lie in the file.
    pub fn range(&self) -> Result<std::ops::Range<usize>> {
        let start = ByteLen::new(self.offset);
        Ok(start.to_usize()?..start.plus(ByteLen::new(self.len))?.to_usize()?)
    }

    pub(crate) fn encode(&self) -> Result<[u8; RECORD_LEN]> {
        let mut out = Vec::with_capacity(RECORD_LEN);
        out.extend(self.kind.code().to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(self.align.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(tag::<TAG_LEN>("target", &self.target)?);
        out.extend(tag::<TAG_LEN>("level", &self.level)?);
        out.extend(self.hash);
        out.try_into().map_err(|_| Error::malformed("a section record has the wrong size"))
    }

    fn decode(r: &mut Reader<'_>) -> Result<Section> {
        let kind = Kind::from_code(r.u32()?);
        let (flags, offset, len, align) = (r.u32()?, r.u64()?, r.u64()?, r.u32()?);
        if r.u32()? != 0 {
            return Err(Error::malformed("reserved bytes of a section record are not zero"));
        }
        let target = untag("target", &r.array::<TAG_LEN>()?)?;
        let level = untag("level", &r.array::<TAG_LEN>()?)?;
        let hash = r.array()?;
        Ok(Section { kind, flags, offset, len, align, target, level, hash })
    }
}

/// A zero-padded text field.
fn tag<const N: usize>(what: &str, text: &str) -> Result<[u8; N]> {
    let mut out = [0; N];
    if text.len() >= N || text.contains('\0') {
        let max = N - 1;
        let text = printable(text);
        return Err(Error::limit(format!("{what} `{text}` is longer than {max} bytes or has NUL")));
    }
    out[..text.len()].copy_from_slice(text.as_bytes());
    Ok(out)
}

fn untag(what: &str, bytes: &[u8]) -> Result<String> {
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let bad = || Error::malformed(format!("the {what} field is not zero-padded UTF-8"));
    if len == bytes.len() || bytes[len..].iter().any(|&b| b != 0) {
        return Err(bad());
    }
    std::str::from_utf8(&bytes[..len]).map(str::to_string).map_err(|_| bad())
}

/// The header and the table as one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub format: u32,
    pub min_reader: u32,
    pub file_len: u64,
    pub required_features: u64,
    pub optional_features: u64,
    /// Name and version of the program that wrote the file.
    pub producer: String,
    /// BLAKE3 over the header and every section but signatures.
    pub content_id: [u8; 32],
    pub sections: Vec<Section>,
}

impl Table {
    /// The content id that the fields and sections give.
    pub fn compute_content_id(&self) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new_derive_key("fqbin 2026 content id");
        hasher.update(&self.format.to_le_bytes());
        hasher.update(&self.min_reader.to_le_bytes());
        hasher.update(&self.required_features.to_le_bytes());
        hasher.update(&self.optional_features.to_le_bytes());
        hasher.update(&tag::<PRODUCER_LEN>("producer", &self.producer)?);
        for section in self.sections.iter().filter(|s| s.kind != Kind::Signature) {
            // The offset depends on how many records the table has, so on whether there is a
            // signature; exact cover fixes it from the lengths.
            hasher.update(&Section { offset: 0, ..section.clone() }.encode()?);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Header and table as bytes.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(HEADER_LEN + RECORD_LEN * self.sections.len());
        out.extend(MAGIC);
        out.extend(self.format.to_le_bytes());
        out.extend(self.min_reader.to_le_bytes());
        out.extend((HEADER_LEN as u32).to_le_bytes());
        out.extend((self.sections.len() as u32).to_le_bytes());
        out.extend(self.file_len.to_le_bytes());
        out.extend(self.required_features.to_le_bytes());
        out.extend(self.optional_features.to_le_bytes());
        out.extend((HEADER_LEN as u64).to_le_bytes());
        out.extend([0; 8]);
        out.extend(tag::<PRODUCER_LEN>("producer", &self.producer)?);
        out.extend(self.content_id);
        out.resize(HEADER_LEN, 0);
        for section in &self.sections {
            out.extend(section.encode()?);
        }
        let hash = header_hash(&out);
        out[HEADER_HASH_AT..HEADER_LEN].copy_from_slice(&hash);
        Ok(out)
    }

    /// Reads and checks header and table. `bytes` is the whole file. Order of checks: magic,
    /// version, table inside the file, header hash, length, features, sections.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Table> {
        check_magic(bytes)?;
        let (format, min_reader) = check_version(bytes)?;
        let cut = |inside: &str| Error::Truncated {
            have: bytes.len() as u64,
            want: HEADER_LEN as u64,
            inside: inside.to_string(),
        };
        let header = bytes.get(..HEADER_LEN).ok_or_else(|| cut("the header"))?;
        let mut r = Reader::new(&header[16..], "the header");
        let (header_len, count) = (r.u32()?, r.u32()?);
        let file_len = r.u64()?;
        if header_len != HEADER_LEN as u32 || count == 0 || count > LIMITS.sections {
            return Err(damaged(
                bytes,
                format!("{count} sections, a header of {header_len} bytes"),
            ));
        }
        let head_len = HEADER_LEN + RECORD_LEN * count as usize;
        let Some(head) = bytes.get(..head_len) else {
            let (have, want) = (bytes.len() as u64, file_len.max(head_len as u64));
            return Err(Error::Truncated { have, want, inside: "the section table".into() });
        };
        // A copy, so that a file changed under us cannot differ between check and use.
        let mut head = head.to_vec();
        let stored: Vec<u8> = head[HEADER_HASH_AT..HEADER_LEN].to_vec();
        head[HEADER_HASH_AT..HEADER_LEN].fill(0);
        if header_hash(&head)[..] != stored {
            return Err(Error::Hash("the header".into()));
        }
        let table = Table::decode_fields(&head, format, min_reader, count)?;
        table.check_sections(bytes)?;
        if table.compute_content_id()? != table.content_id {
            return Err(Error::Hash("the content id".into()));
        }
        Ok(table)
    }

    fn decode_fields(head: &[u8], format: u32, min_reader: u32, count: u32) -> Result<Table> {
        let mut r = Reader::new(&head[24..], "the header");
        let file_len = r.u64()?;
        let (required_features, optional_features) = (r.u64()?, r.u64()?);
        let (table_at, reserved) = (r.u64()?, r.u64()?);
        let producer = untag("producer", &r.array::<PRODUCER_LEN>()?)?;
        let content_id = r.array()?;
        let reserved_tail = r.array::<{ HEADER_HASH_AT - CONTENT_ID_AT - 32 }>()?;
        if table_at != HEADER_LEN as u64 || reserved != 0 || reserved_tail.iter().any(|&b| b != 0) {
            return Err(Error::malformed("reserved bytes of the header are not zero"));
        }
        if required_features != 0 {
            return Err(Error::Version(format!(
                "the file needs features {required_features:#x} that this reader does not have; \
                 it was made by `{}`, update fqc",
                printable(&producer)
            )));
        }
        let mut r = Reader::new(&head[HEADER_LEN..], "the section table");
        let sections = (0..count).map(|_| Section::decode(&mut r)).collect::<Result<_>>()?;
        let (required, optional) = (required_features, optional_features);
        Ok(Table {
            format,
            min_reader,
            file_len,
            required_features: required,
            optional_features: optional,
            producer,
            content_id,
            sections,
        })
    }

    /// Sections follow each other in order, cover the file exactly, and are known and unique.
    fn check_sections(&self, bytes: &[u8]) -> Result<()> {
        let head = HEADER_LEN + RECORD_LEN * self.sections.len();
        let mut end = ByteLen::from_usize(head);
        for (i, section) in self.sections.iter().enumerate() {
            let label = section.label();
            if let Kind::Other(code) = section.kind
                && section.flags & FLAG_REQUIRED != 0
            {
                return Err(Error::Version(format!(
                    "the file has a section of the unknown kind {code}; it was made by `{}`, \
                     update fqc",
                    printable(&self.producer)
                )));
            }
            if section.flags & !FLAG_REQUIRED != 0 {
                return Err(Error::malformed(format!("{label} has unknown flags")));
            }
            if !section.align.is_power_of_two() || section.align > PAGE {
                return Err(Error::malformed(format!("{label} has alignment {}", section.align)));
            }
            if section.align < section.kind.align() {
                let (have, want) = (section.align, section.kind.align());
                return Err(Error::malformed(format!("{label} has alignment {have}, not {want}")));
            }
            if section.len > section.kind.max_len() {
                let (len, max) = (section.len, section.kind.max_len());
                return Err(Error::limit(format!("{label} has {len} bytes, at most {max}")));
            }
            let start = end.align_up(u64::from(section.align))?;
            if section.offset != start.get() {
                let (have, want) = (section.offset, start.get());
                return Err(Error::malformed(format!("{label} is at {have}, not at {want}")));
            }
            let same = |s: &Section| {
                s.kind == section.kind && s.target == section.target && s.level == section.level
            };
            if self.sections[..i].iter().any(same) {
                return Err(Error::malformed(format!("{label} appears twice")));
            }
            let next = start.plus(ByteLen::new(section.len))?;
            let have = bytes.len() as u64;
            if next.get() > have {
                return Err(Error::Truncated { have, want: self.file_len, inside: label });
            }
            if bytes[end.to_usize()?..start.to_usize()?].iter().any(|&b| b != 0) {
                return Err(Error::malformed(format!("the padding before {label} is not zero")));
            }
            end = next;
        }
        if end.get() != self.file_len || bytes.len() as u64 != self.file_len {
            let (end, have, said) = (end.get(), bytes.len(), self.file_len);
            return Err(Error::malformed(format!(
                "the sections end at {end}, the header says {said} and the file has {have} bytes"
            )));
        }
        Ok(())
    }
}

fn header_hash(head: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("fqbin 2026 header");
    hasher.update(&head[..HEADER_HASH_AT]);
    hasher.update(&[0; 32]);
    hasher.update(&head[HEADER_LEN..]);
    *hasher.finalize().as_bytes()
}

/// The fields are absurd: a flipped bit, or a maker that got it wrong.
fn damaged(bytes: &[u8], what: String) -> Error {
    let zeroed = bytes.get(8..HEADER_LEN).is_some_and(|h| h.iter().all(|&b| b == 0));
    Error::malformed(if zeroed { "the header is all zero".to_string() } else { what })
}

fn check_magic(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(&MAGIC) {
        return Ok(());
    }
    if !bytes.is_empty() && MAGIC.starts_with(bytes) {
        let (have, want) = (bytes.len() as u64, HEADER_LEN as u64);
        return Err(Error::Truncated { have, want, inside: "the header".into() });
    }
    let what = match bytes {
        [] => "it is empty",
        [b'F', b'Q', b'B', b'I', b'N', ..] => {
            "its first bytes were changed; was it copied as text? copy it in binary mode"
        }
        [0x7f, b'E', b'L', b'F', ..] => "it is an ELF program",
        [b'G', b'G', b'U', b'F', ..] => "it is a GGUF model",
        [b'P', b'K', 3, 4, ..] => "it is a zip archive",
        [_, _, _, _, _, _, _, _, b'{', ..] => "it looks like safetensors",
        [0x08, ..] => "it looks like an ONNX model; compile it first with `fqc compile`",
        _ => "it does not begin with the format's magic bytes",
    };
    Err(Error::NotFqbin(what.to_string()))
}

fn check_version(bytes: &[u8]) -> Result<(u32, u32)> {
    let Some(fixed) = bytes.get(8..16) else {
        let (have, want) = (bytes.len() as u64, HEADER_LEN as u64);
        return Err(Error::Truncated { have, want, inside: "the header".into() });
    };
    let mut r = Reader::new(fixed, "the header");
    let (format, min_reader) = (r.u32()?, r.u32()?);
    if min_reader > FORMAT_VERSION {
        return Err(Error::Version(format!(
            "the file has format {format} and needs a reader of format {min_reader}; this one \
             reads up to {FORMAT_VERSION}, update fqc"
        )));
    }
    if format < OLDEST_READABLE {
        return Err(Error::Version(format!(
            "the file has format {format}, which is no longer read (oldest: {OLDEST_READABLE}); \
             compile the model again"
        )));
    }
    if min_reader > format || min_reader == 0 {
        return Err(Error::malformed(format!("format {format} with oldest reader {min_reader}")));
    }
    Ok((format, min_reader))
}
