//! Executable memory. Code is copied into anonymous memory, checked there, and only then made
//! executable; it is never writable and executable at once. The unsafe code of this file turns
//! addresses inside that memory into function pointers.

use fqbin::{CodeImage, CodeView, Section, check_entries};

use crate::error::{Error, Result};

/// A kernel; see `fqbin::Program` for the contract.
pub(crate) type KernelFn = unsafe extern "C" fn(
    bufs: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
    scratch: *mut u8,
) -> i32;

/// Loaded machine code and the entries of its kernels.
pub(crate) struct Code {
    kernels: Vec<KernelFn>,
    /// Keeps the pages alive; the kernels point into it.
    _pages: memmap2::Mmap,
}

impl Code {
    /// Loads a code section of a file; its hash is checked on the copy.
    pub(crate) fn from_section(section: &Section, payload: &[u8], kernels: usize) -> Result<Code> {
        let in_file = |source| Error::File { path: "(code)".into(), source };
        let pages = copy(payload)?;
        let payload = &pages[..payload.len()];
        fqbin::check_hash(section, payload).map_err(in_file)?;
        let view = CodeView::decode(&section.level, payload, kernels).map_err(in_file)?;
        let start = payload.len() - view.bytes.len();
        let entries = view.entries;
        Code::protect(pages, start, &entries, kernels)
    }

    /// Loads code that was made in this process.
    pub(crate) fn from_image(image: &CodeImage, kernels: usize) -> Result<Code> {
        let faulty = |e: fqbin::Error| Error::Program(e.to_string());
        check_entries(&image.entries, image.bytes.len(), kernels).map_err(faulty)?;
        Code::protect(copy(&image.bytes)?, 0, &image.entries, kernels)
    }

    /// Makes the pages executable. `entries` are offsets from `start`, checked to lie inside.
    fn protect(
        pages: memmap2::MmapMut,
        start: usize,
        entries: &[u32],
        kernels: usize,
    ) -> Result<Code> {
        if entries.len() != kernels {
            let count = entries.len();
            let what = format!("the code has {count} entries for {kernels} kernels");
            return Err(Error::Program(what));
        }
        let pages = pages
            .make_exec()
            .map_err(|e| Error::CannotRun(format!("the system does not allow new code: {e}")))?;
        let kernels = entries
            .iter()
            .map(|&entry| {
                let address: *const u8 = &pages[start + entry as usize];
                // SAFETY: the address is inside executable pages that live as long as `Code`.
                // That the bytes there are a function of this type is what the caller vouched
                // for by trusting the code.
                unsafe { std::mem::transmute::<*const u8, KernelFn>(address) }
            })
            .collect();
        Ok(Code { kernels, _pages: pages })
    }

    pub(crate) fn kernel(&self, index: usize) -> KernelFn {
        self.kernels[index]
    }
}

fn copy(bytes: &[u8]) -> Result<memmap2::MmapMut> {
    let mut pages = memmap2::MmapMut::map_anon(bytes.len().max(1))
        .map_err(|e| Error::Limit(format!("no memory for {} bytes of code: {e}", bytes.len())))?;
    pages[..bytes.len()].copy_from_slice(bytes);
    Ok(pages)
}
