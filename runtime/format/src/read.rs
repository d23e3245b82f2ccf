//! Reading a file: one validation of everything, then views. [`File::open`] takes the bytes
//! (usually a map), checks the table, every hash, every program and every code table, and hands
//! out slices of the same bytes, so weights stay mapped. Opening never executes anything.

use crate::error::{Error, Result};
use crate::image::{CodeImage, CodeView, TargetImage};
use crate::program::Program;
use crate::sign::{FileSignature, PublicKey};
use crate::table::{Kind, Section, Table};
use crate::verify::verify;

/// Which code may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only files signed by one of these keys.
    Keys(Vec<PublicKey>),
    /// Any file. Running a stranger's file is running a stranger's program.
    Anyone,
}

/// A target of a file: its verified program, and where its sections are in the table.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub program: Program,
    /// Index of the weight section, if there is one.
    pub weights: Option<usize>,
    /// Indices of the code sections, in the order of the file.
    pub code: Vec<usize>,
}

/// Everything known about a validated file but its bytes; owned, so that it can live beside a
/// map of them.
#[derive(Clone, Debug)]
pub struct Layout {
    pub table: Table,
    pub targets: Vec<Target>,
    pub manifest: Option<usize>,
    pub signature: Option<FileSignature>,
}

impl Layout {
    /// Validates a whole file.
    pub fn validate(bytes: &[u8]) -> Result<Layout> {
        let table = Table::decode(bytes)?;
        let mut layout = Layout { table, targets: Vec::new(), manifest: None, signature: None };
        let mut plans = Vec::new();
        for (i, section) in layout.table.sections.iter().enumerate() {
            let payload = &bytes[section.range()?];
            // Small parts that are parsed are copied first, so that what was hashed is what is
            // read even if someone writes to the file meanwhile.
            match section.kind {
                Kind::Plan => plans.push((i, checked_copy(section, payload)?)),
                Kind::Signature => {
                    let copy = checked_copy(section, payload)?;
                    layout.signature = Some(FileSignature::decode(&copy)?);
                }
                Kind::Manifest => {
                    check_hash(section, payload)?;
                    layout.manifest = Some(i);
                }
                Kind::Weights | Kind::Code | Kind::Other(_) => check_hash(section, payload)?,
            }
            let whole = matches!(section.kind, Kind::Manifest | Kind::Signature);
            if whole != section.target.is_empty() && !matches!(section.kind, Kind::Other(_)) {
                return Err(Error::malformed(format!("{} has a wrong target", section.label())));
            }
        }
        for (i, plan) in plans {
            let target = layout.target_of(&layout.table.sections[i].target, &plan, bytes)?;
            layout.targets.push(target);
        }
        layout.check_owners()?;
        Ok(layout)
    }

    fn target_of(&self, name: &str, plan: &[u8], bytes: &[u8]) -> Result<Target> {
        let sections = &self.table.sections;
        let of = |kind| {
            let found = sections.iter().enumerate();
            found.filter(move |(_, s)| s.kind == kind && s.target == name).map(|(i, _)| i)
        };
        let weights = of(Kind::Weights).next();
        let program = Program::decode(plan, self.table.format)?;
        verify(&program, weights.map_or(0, |w| sections[w].len))
            .map_err(|faults| Error::Program { target: name.to_string(), faults })?;
        let code: Vec<usize> = of(Kind::Code).collect();
        for &c in &code {
            let payload = &bytes[sections[c].range()?];
            CodeView::decode(&sections[c].level, payload, program.kernels.len())?;
        }
        Ok(Target { name: name.to_string(), program, weights, code })
    }

    /// Weights and code belong to a target that has a plan, and there is one at least.
    fn check_owners(&self) -> Result<()> {
        if self.targets.is_empty() {
            return Err(Error::malformed("there is no plan section"));
        }
        for section in &self.table.sections {
            let owned = matches!(section.kind, Kind::Weights | Kind::Code);
            if owned && !self.targets.iter().any(|t| t.name == section.target) {
                return Err(Error::malformed(format!("{} has no plan", section.label())));
            }
        }
        Ok(())
    }

    pub fn target(&self, name: &str) -> Option<&Target> {
        self.targets.iter().find(|t| t.name == name)
    }

    /// Checks that the file is signed by one of the keys, or that anyone is trusted.
    pub fn check_trust(&self, trust: &Trust) -> Result<()> {
        let Trust::Keys(keys) = trust else { return Ok(()) };
        let help = "code in an .fqbin runs as a program; compile the model yourself, or say \
                    explicitly that you trust this file";
        let Some(signature) = &self.signature else {
            return Err(Error::Untrusted(format!("the file is not signed; {help}")));
        };
        if !keys.contains(&signature.key) {
            let key = signature.key;
            return Err(Error::Untrusted(format!(
                "the file is signed by the unknown key {key}; {help}"
            )));
        }
        if !signature.verify(&self.table.content_id) {
            return Err(Error::Untrusted(format!("the file's signature is not valid; {help}")));
        }
        Ok(())
    }
}

/// A validated file and its bytes.
#[derive(Clone, Debug)]
pub struct File<'a> {
    bytes: &'a [u8],
    layout: Layout,
}

impl<'a> File<'a> {
    /// Validates the bytes of a file.
    pub fn open(bytes: &'a [u8]) -> Result<File<'a>> {
        Ok(File { bytes, layout: Layout::validate(bytes)? })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The JSON manifest; empty if there is none.
    pub fn manifest(&self) -> Result<&'a [u8]> {
        self.layout.manifest.map_or(Ok(&[]), |i| self.section(i))
    }

    /// The weights of a target; empty if it has none.
    pub fn weights(&self, target: &Target) -> Result<&'a [u8]> {
        target.weights.map_or(Ok(&[]), |i| self.section(i))
    }

    /// The code sections of a target.
    pub fn code(&self, target: &Target) -> Result<Vec<CodeView<'a>>> {
        let kernels = target.program.kernels.len();
        let sections = &self.layout.table.sections;
        let views = target.code.iter();
        views.map(|&i| CodeView::decode(&sections[i].level, self.section(i)?, kernels)).collect()
    }

    /// A target as an image of its own, with a copy of its bytes.
    pub fn image(&self, target: &Target) -> Result<TargetImage> {
        let code = self.code(target)?.into_iter().map(|code| CodeImage {
            level: code.level,
            entries: code.entries,
            bytes: code.bytes.to_vec(),
        });
        Ok(TargetImage {
            target: target.name.clone(),
            program: target.program.clone(),
            weights: self.weights(target)?.to_vec().into(),
            code: code.collect(),
        })
    }

    /// The bytes of a section by its index in the table.
    pub fn section(&self, index: usize) -> Result<&'a [u8]> {
        let section = self.layout.table.sections.get(index);
        let range = section.map(Section::range).transpose()?;
        range
            .and_then(|range| self.bytes.get(range))
            .ok_or_else(|| Error::malformed(format!("there is no section {index}")))
    }
}

/// Checks a section's bytes against the hash in its record.
pub fn check_hash(section: &Section, payload: &[u8]) -> Result<()> {
    if *blake3::hash(payload).as_bytes() == section.hash {
        Ok(())
    } else {
        Err(Error::Hash(section.label()))
    }
}

fn checked_copy(section: &Section, payload: &[u8]) -> Result<Vec<u8>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(payload.len())
        .map_err(|e| Error::limit(format!("no memory for {}: {e}", section.label())))?;
    copy.extend_from_slice(payload);
    check_hash(section, &copy)?;
    Ok(copy)
}
