//! Module to blob: optimise, emit an ELF object into memory, lay its code and constants out
//! contiguously, apply every relocation inside, refuse everything that would need a linker.
//!
//! A blob can be mapped at any page-aligned address; an entry is a byte offset into it.

use std::collections::BTreeMap;

use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{FileType, TargetMachine};
use object::elf;
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget,
    SectionIndex, SectionKind, SymbolKind,
};

use super::CpuError;

/// Flat, position-independent machine code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Code and constants. The base must be aligned to [`Blob::ALIGN`].
    pub bytes: Vec<u8>,
    /// Byte offset of every kernel, by name.
    pub entries: BTreeMap<String, u32>,
}

impl Blob {
    /// Alignment that sections inside a blob may ask for at most.
    pub const ALIGN: u64 = 4096;
}

/// Verifies and optimises `module` and turns it into a blob.
pub fn compile(module: &Module<'_>, machine: &TargetMachine) -> Result<Blob, CpuError> {
    module.verify().map_err(|error| CpuError::Llvm(error.to_string()))?;
    optimise(module, machine)?;
    let buffer = machine
        .write_to_memory_buffer(module, FileType::Object)
        .map_err(|error| CpuError::Llvm(error.to_string()))?;
    let name = module.get_name().to_string_lossy().into_owned();
    flatten_elf(buffer.as_slice()).map_err(|reason| CpuError::Object { module: name, reason })
}

/// The assembly of `module` after optimisation, for reading.
pub fn assembly(module: &Module<'_>, machine: &TargetMachine) -> Result<String, CpuError> {
    module.verify().map_err(|error| CpuError::Llvm(error.to_string()))?;
    optimise(module, machine)?;
    let buffer = machine
        .write_to_memory_buffer(module, FileType::Assembly)
        .map_err(|error| CpuError::Llvm(error.to_string()))?;
    Ok(String::from_utf8_lossy(buffer.as_slice()).into_owned())
}

/// Kernels are vectorised and unrolled by their emitters; LLVM cleans up, schedules and allocates.
fn optimise(module: &Module<'_>, machine: &TargetMachine) -> Result<(), CpuError> {
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(false);
    options.set_loop_slp_vectorization(false);
    options.set_loop_unrolling(false);
    options.set_loop_interleaving(false);
    module
        .run_passes("default<O3>", machine, options)
        .map_err(|error| CpuError::Llvm(error.to_string()))
}

/// Lays out code first, then constants, and relocates.
fn flatten_elf(elf: &[u8]) -> Result<Blob, String> {
    let file = ElfFile64::<Endianness>::parse(elf).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut bases: BTreeMap<usize, u64> = BTreeMap::new();
    for wanted in [SectionKind::Text, SectionKind::ReadOnlyData] {
        for section in file.sections() {
            if place_of(&section)? != Some(wanted) {
                continue;
            }
            let align = section.align().max(1);
            if align > Blob::ALIGN {
                return Err(format!("section `{}` wants alignment {align}", name_of(&section)));
            }
            let base = (bytes.len() as u64).next_multiple_of(align);
            let fill = if wanted == SectionKind::Text { 0xcc } else { 0 };
            bytes.resize(base as usize, fill);
            bytes.extend_from_slice(section.data().map_err(|error| error.to_string())?);
            bases.insert(section.index().0, base);
        }
    }
    relocate(&file, &bases, &mut bytes)?;
    let entries = entries_of(&file, &bases)?;
    Ok(Blob { bytes, entries })
}

/// Where a section goes: code, constants, or nowhere. Writable data has no place in a blob.
fn place_of<'d, S: ObjectSection<'d>>(section: &S) -> Result<Option<SectionKind>, String> {
    match section.kind() {
        SectionKind::Text if section.size() > 0 => Ok(Some(SectionKind::Text)),
        SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => {
            Ok((!name_of(section).starts_with(".eh_frame")).then_some(SectionKind::ReadOnlyData))
        }
        SectionKind::ReadOnlyDataWithRel
        | SectionKind::Data
        | SectionKind::UninitializedData
        | SectionKind::Tls
            if section.size() > 0 =>
        {
            Err(format!("section `{}` would have to be written at load time", name_of(section)))
        }
        _ => Ok(None),
    }
}

fn name_of<'d, S: ObjectSection<'d>>(section: &S) -> String {
    section.name().unwrap_or("?").to_owned()
}

fn relocate(
    file: &ElfFile64<'_, Endianness>,
    bases: &BTreeMap<usize, u64>,
    bytes: &mut [u8],
) -> Result<(), String> {
    for section in file.sections() {
        let Some(&base) = bases.get(&section.index().0) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err("a relocation is not of ELF".to_owned());
            };
            let target = target_address(file, relocation.target(), bases)?;
            let place = base.checked_add(offset).ok_or("relocation offset overflows")?;
            let value = (target as i64)
                .checked_add(relocation.addend())
                .and_then(|sum| sum.checked_sub(place as i64))
                .ok_or("relocation value overflows")?;
            let patch: &[u8] = match r_type {
                elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
                    &i32::try_from(value).map_err(|_| "relocation out of range")?.to_le_bytes()
                }
                elf::R_X86_64_PC64 => &value.to_le_bytes(),
                other => {
                    return Err(format!("relocation type {other} in `{}`", name_of(&section)));
                }
            };
            let place = place as usize;
            bytes
                .get_mut(place..place + patch.len())
                .ok_or("relocation outside of its section")?
                .copy_from_slice(patch);
        }
    }
    Ok(())
}

fn target_address(
    file: &ElfFile64<'_, Endianness>,
    target: RelocationTarget,
    bases: &BTreeMap<usize, u64>,
) -> Result<u64, String> {
    let base_of = |section: SectionIndex, what: &str| {
        bases
            .get(&section.0)
            .copied()
            .ok_or_else(|| format!("`{what}` is in a section that is not laid out"))
    };
    match target {
        RelocationTarget::Symbol(index) => {
            let symbol = file.symbol_by_index(index).map_err(|error| error.to_string())?;
            let name = symbol.name().unwrap_or("?");
            let section = symbol.section_index().ok_or_else(|| {
                format!("undefined symbol `{name}`: kernels call nothing outside")
            })?;
            Ok(base_of(section, name)? + symbol.address())
        }
        RelocationTarget::Section(index) => base_of(index, "section"),
        _ => Err("a relocation has no target".to_owned()),
    }
}

fn entries_of(
    file: &ElfFile64<'_, Endianness>,
    bases: &BTreeMap<usize, u64>,
) -> Result<BTreeMap<String, u32>, String> {
    let mut entries = BTreeMap::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || !symbol.is_global() {
            continue;
        }
        let name = symbol.name().map_err(|error| error.to_string())?;
        let section = symbol.section_index().ok_or_else(|| format!("undefined symbol `{name}`"))?;
        let base = bases.get(&section.0).ok_or_else(|| format!("`{name}` is not in code"))?;
        let offset = u32::try_from(base + symbol.address())
            .map_err(|_| format!("`{name}` lies beyond 4 GiB"))?;
        entries.insert(name.to_owned(), offset);
    }
    Ok(entries)
}
