//! Writing a file. The bytes are a function of the image and the key alone. [`write_file`] writes
//! a temporary file beside the target, syncs it, reads it back and validates it, renames it and
//! syncs the directory; the temporary file is gone on every error path.

use std::fs;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::len::ByteLen;
use crate::limits::LIMITS;
use crate::read::Layout;
use crate::sign::{FileSignature, SecretKey};
use crate::table::{FORMAT_VERSION, HEADER_LEN, Kind, RECORD_LEN, Section, Table};
use crate::verify::verify;
use crate::weights::Weights;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub content_id: [u8; 32],
    pub bytes: u64,
}

/// Bytes of a section in parts: borrowed where they are large.
enum Payload<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    Weights(&'a Weights),
}

impl Payload<'_> {
    fn parts(&self) -> Box<dyn Iterator<Item = &[u8]> + '_> {
        match self {
            Payload::Borrowed(bytes) => Box::new(std::iter::once(*bytes)),
            Payload::Owned(bytes) => Box::new(std::iter::once(&bytes[..])),
            Payload::Weights(weights) => Box::new(weights.parts()),
        }
    }

    /// Number of bytes and their hash.
    fn measure(&self) -> (u64, [u8; 32]) {
        let mut hasher = blake3::Hasher::new();
        self.parts().for_each(|part| {
            hasher.update(part);
        });
        (hasher.count(), *hasher.finalize().as_bytes())
    }
}

/// The file as bytes in memory.
pub fn to_bytes(image: &Image, key: Option<&SecretKey>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let path = Path::new("(memory)");
    write_to(&mut out, image, key)?.map_err(Error::io("write", path))?;
    Ok(out)
}

/// Writes the file at `path`, replacing an older one in a single step.
pub fn write_file(path: &Path, image: &Image, key: Option<&SecretKey>) -> Result<Written> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    // A rename would replace a folder's or device's entry, which nobody means.
    if path.file_name().is_none() || fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        let source = std::io::Error::other("it is not a regular file");
        return Err(Error::io("write", path)(source));
    }
    let temp = TempFile::create(path, dir)?;
    let written = {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(&temp.path)
            .map_err(Error::io("write", &temp.path))?;
        let mut buffered = BufWriter::new(&mut file);
        let written = write_to(&mut buffered, image, key)?.map_err(Error::io("write", path))?;
        drop(buffered);
        file.sync_all().map_err(Error::io("sync", path))?;
        written
    };
    temp.validate(&written)?;
    fs::rename(&temp.path, path).map_err(Error::io("rename to", path))?;
    temp.keep();
    let handle = fs::File::open(dir).map_err(Error::io("open", dir))?;
    handle.sync_all().map_err(Error::io("sync", dir))?;
    Ok(written)
}

/// Writes everything; the outer error is about the image, the inner one about the output.
fn write_to(
    out: &mut impl Write,
    image: &Image,
    key: Option<&SecretKey>,
) -> Result<std::io::Result<Written>> {
    let mut parts = parts(image)?;
    if key.is_some() {
        let payload = Payload::Owned(vec![0; FileSignature::LEN]);
        parts.push((Section::new(Kind::Signature, "", ""), payload));
    }
    if parts.len() > LIMITS.sections as usize {
        let (count, max) = (parts.len(), LIMITS.sections);
        return Err(Error::limit(format!("{count} sections, at most {max} are allowed")));
    }
    let mut end = ByteLen::from_usize(HEADER_LEN + RECORD_LEN * parts.len());
    for (section, payload) in &mut parts {
        let start = end.align_up(u64::from(section.align))?;
        section.offset = start.get();
        (section.len, section.hash) = payload.measure();
        end = start.plus(ByteLen::new(section.len))?;
    }
    let mut table = Table {
        format: FORMAT_VERSION,
        min_reader: FORMAT_VERSION,
        file_len: end.get(),
        required_features: 0,
        optional_features: 0,
        producer: image.producer.clone(),
        content_id: [0; 32],
        sections: parts.iter().map(|(section, _)| section.clone()).collect(),
    };
    table.content_id = table.compute_content_id()?;
    if let (Some(key), Some((section, payload))) = (key, parts.last_mut()) {
        let signature = FileSignature::sign(key, &table.content_id).encode();
        section.hash = *blake3::hash(&signature).as_bytes();
        *payload = Payload::Owned(signature);
        if let Some(record) = table.sections.last_mut() {
            record.hash = section.hash;
        }
    }
    let head = table.encode()?;
    Ok(emit(out, &head, &parts)
        .map(|()| Written { content_id: table.content_id, bytes: end.get() }))
}

fn emit(
    out: &mut impl Write,
    head: &[u8],
    parts: &[(Section, Payload<'_>)],
) -> std::io::Result<()> {
    out.write_all(head)?;
    let mut at = head.len() as u64;
    for (section, payload) in parts {
        // Offsets were computed above and only grow; padding is below a page.
        let padding = section.offset.saturating_sub(at) as usize;
        out.write_all(&[0; 4096][..padding.min(4096)])?;
        for part in payload.parts() {
            out.write_all(part)?;
        }
        at = section.offset + section.len;
    }
    out.flush()
}

/// The sections in their order: manifest, then weights, plan and code of each target by name.
fn parts(image: &Image) -> Result<Vec<(Section, Payload<'_>)>> {
    let mut parts =
        vec![(Section::new(Kind::Manifest, "", ""), Payload::Borrowed(&image.manifest[..]))];
    let mut targets: Vec<_> = image.targets.iter().collect();
    targets.sort_by(|a, b| a.target.cmp(&b.target));
    for target in targets {
        let name = &target.target;
        verify(&target.program, target.weights.len() as u64)
            .map_err(|faults| Error::Program { target: name.clone(), faults })?;
        if !target.weights.is_empty() {
            let payload = Payload::Weights(&target.weights);
            parts.push((Section::new(Kind::Weights, name, ""), payload));
        }
        let plan = Payload::Owned(target.program.encode());
        parts.push((Section::new(Kind::Plan, name, ""), plan));
        let mut code: Vec<_> = target.code.iter().collect();
        code.sort_by(|a, b| a.level.cmp(&b.level));
        for code in code {
            let payload = Payload::Owned(code.encode()?);
            parts.push((Section::new(Kind::Code, name, &code.level), payload));
        }
    }
    Ok(parts)
}

/// A temporary file that is removed when dropped, unless it was renamed away.
struct TempFile {
    path: PathBuf,
    keep: bool,
}

impl TempFile {
    fn create(target: &Path, dir: &Path) -> Result<TempFile> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let mut attempt = 0;
        loop {
            let path = dir.join(format!(".{name}.tmp-{}-{attempt}", std::process::id()));
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(TempFile { path, keep: false }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 100 => {
                    attempt += 1;
                }
                Err(e) => return Err(Error::io("write", target)(e)),
            }
        }
    }

    /// Reads the file back from the disk and validates it as a stranger's.
    fn validate(&self, written: &Written) -> Result<()> {
        let mut bytes = Vec::new();
        let mut file = fs::File::open(&self.path).map_err(Error::io("read", &self.path))?;
        bytes
            .try_reserve_exact(ByteLen::new(written.bytes).to_usize()?)
            .map_err(|e| Error::limit(format!("no memory to read the file back: {e}")))?;
        file.read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
        let layout = Layout::validate(&bytes)?;
        if layout.table.content_id != written.content_id {
            return Err(Error::Hash("the written file".into()));
        }
        Ok(())
    }

    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.keep {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}
