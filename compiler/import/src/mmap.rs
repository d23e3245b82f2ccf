//! Maps files into memory. The only module of this crate with `unsafe`.

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// The contents of a regular file, read-only.
///
/// Another process that truncates the file while it is mapped makes later reads of the lost pages
/// fail with SIGBUS, as for every program that maps its inputs.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is private and read-only, so this process never writes through it. Its bytes
    // are only ever read as `u8` by value, for which any content is valid; a concurrent writer can
    // change numbers, not types.
    unsafe { Mmap::map(file) }
}
