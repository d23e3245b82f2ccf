//! Maps files into memory. The only module of this crate with `unsafe`.

use fqc_ir::Owner;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::ops::Range;

/// A mapped file.
pub(crate) struct Mapped(Mmap);

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(unix)]
    fn release(&self, part: Range<usize>) {
        use memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the map is a read-only view of a file. Pages that are given back are read from the
        // file again at the next access, so no byte of the slice changes by it. A refusal changes
        // nothing.
        let _ = unsafe { self.0.unchecked_advise_range(DontNeed, part.start, part.len()) };
    }
}

/// The contents of a regular file, read-only.
///
/// Another process that truncates the file while it is mapped makes later reads of the lost pages
/// fail with SIGBUS, as for every program that maps its inputs.
pub(crate) fn map(file: &File) -> io::Result<Mapped> {
    // SAFETY: the map is private and read-only, so this process never writes through it. Its bytes
    // are only ever read as `u8` by value, for which any content is valid; a concurrent writer can
    // change numbers, not types.
    unsafe { Mmap::map(file) }.map(Mapped)
}
