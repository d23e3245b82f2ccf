//! Memory that is not a `Vec`: 64-byte aligned blocks, the map of a file, and slices of numbers
//! seen as bytes and back. The unsafe code of this file is about allocation and plain-data casts.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, Range};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// Alignment of every block, arena and scratch area.
pub const ALIGN: usize = 64;

/// Blocks from this size on ask for huge pages.
const HUGE: usize = 4 << 20;

/// An owned block of bytes at a multiple of 64, zeroed when made.
///
/// It is cut out of an allocation with the usual alignment, because the allocator then takes
/// large blocks as untouched zero pages from the system instead of clearing them.
pub struct AlignedBytes {
    start: NonNull<u8>,
    len: usize,
    /// What was allocated, if anything was.
    allocation: Option<(NonNull<u8>, Layout)>,
}

// SAFETY: the block is owned by this value alone, as a `Box<[u8]>` would be.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared references give out `&[u8]` only.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    pub fn zeroed(len: usize) -> Result<AlignedBytes> {
        if len == 0 {
            return Ok(AlignedBytes::default());
        }
        let no_memory = || Error::Limit(format!("no memory for {len} bytes"));
        let whole = len.checked_add(ALIGN).ok_or_else(no_memory)?;
        let layout = Layout::from_size_align(whole, 16).map_err(|_| no_memory())?;
        // SAFETY: the layout has a size above 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(no_memory)?;
        let skip = base.as_ptr().addr().next_multiple_of(ALIGN) - base.as_ptr().addr();
        // SAFETY: `skip` is below `ALIGN`, by which the allocation exceeds `len`.
        let start = unsafe { base.add(skip) };
        if len >= HUGE {
            advise_huge(start, len);
        }
        Ok(AlignedBytes { start, len, allocation: Some((base, layout)) })
    }

    pub fn copy_of(bytes: &[u8]) -> Result<AlignedBytes> {
        let mut block = AlignedBytes::zeroed(bytes.len())?;
        block.as_mut_slice().copy_from_slice(bytes);
        Ok(block)
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `start` is valid for `len` initialised bytes, dangling only if `len` is 0, and
        // `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Default for AlignedBytes {
    fn default() -> AlignedBytes {
        #[repr(align(64))]
        struct Line;
        AlignedBytes { start: NonNull::<Line>::dangling().cast(), len: 0, allocation: None }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `as_mut_slice`, and `&self` rules out writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if let Some((base, layout)) = self.allocation {
            // SAFETY: `base` came from `alloc_zeroed` with this layout and is freed once.
            unsafe { dealloc(base.as_ptr(), layout) }
        }
    }
}

/// Asks for huge pages inside a block; a refusal changes nothing but speed.
#[cfg(target_os = "linux")]
fn advise_huge(start: NonNull<u8>, len: usize) {
    const PAGE: usize = 4096;
    let address = start.as_ptr().addr();
    let (first, end) = (address.next_multiple_of(PAGE), (address + len) / PAGE * PAGE);
    if first < end {
        // SAFETY: the pages lie inside a block that we own, and the advice changes no bytes.
        unsafe {
            let page = start.as_ptr().add(first - address);
            libc::madvise(page.cast(), end - first, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_start: NonNull<u8>, _len: usize) {}

/// The bytes of a model file.
pub(crate) enum FileBytes {
    Mapped(memmap2::Mmap),
    Read(AlignedBytes),
}

impl FileBytes {
    /// Maps a file read-only. All of it is read soon, to be checked, so its pages come at once.
    pub(crate) fn map(file: &std::fs::File) -> std::io::Result<FileBytes> {
        // SAFETY: a map is sound as long as nobody truncates or rewrites the file in place, which
        // the documentation of `Load::Map` forbids; what is parsed or executed is copied first,
        // so such a writer can only spoil weights or stop the process.
        unsafe { memmap2::MmapOptions::new().populate().map(file) }.map(FileBytes::Mapped)
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Read(bytes) => bytes,
        }
    }
}

/// The weights of a model: a range of the file, or a block of their own.
pub(crate) enum Weights {
    File(FileBytes, Range<usize>),
    Owned(AlignedBytes),
}

impl Deref for Weights {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            // The range was validated against these very bytes.
            Weights::File(bytes, range) => &bytes[range.clone()],
            Weights::Owned(bytes) => bytes,
        }
    }
}

/// A number type without padding of which every bit pattern is a value.
///
/// # Safety
/// Implementors are such types.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: primitive numbers have no padding and no invalid bit patterns.
        unsafe impl Plain for $t {}
    )* };
}

plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// Numbers as bytes.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `T` has no padding, bytes need no alignment, and the lifetime is kept.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// Numbers as bytes that can be written.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    let len = std::mem::size_of_val(values);
    // SAFETY: as in `bytes_of`; every bit pattern written is a valid `T`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// Bytes as numbers; `None` if they are misaligned or do not divide evenly.
pub fn numbers_of<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: every bit pattern is a valid `T`.
    let (head, numbers, tail) = unsafe { bytes.align_to::<T>() };
    (head.is_empty() && tail.is_empty()).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeroed_and_checked() {
        for len in [0, 1, 63, 64, 65, 4096, HUGE + 5] {
            let mut block = AlignedBytes::zeroed(len).unwrap();
            assert_eq!((block.len(), block.as_ptr().addr() % ALIGN), (len, 0));
            assert!(block.iter().all(|&b| b == 0));
            block.as_mut_slice().fill(7);
            assert_eq!(&*AlignedBytes::copy_of(&block).unwrap(), &*block);
        }
        assert!(AlignedBytes::zeroed(usize::MAX).is_err());
        assert!(AlignedBytes::zeroed(isize::MAX as usize).is_err());
    }

    #[test]
    fn numbers_and_bytes_convert() {
        let mut numbers = [1.5f32, -2.0];
        bytes_of_mut(&mut numbers)[3] |= 0x80;
        assert_eq!(numbers, [-1.5, -2.0]);
        let bytes = bytes_of(&numbers);
        assert_eq!(numbers_of::<f32>(bytes), Some(&numbers[..]));
        assert_eq!(numbers_of::<f32>(&bytes[1..5]), None);
        assert_eq!(numbers_of::<f32>(&bytes[..7]), None);
    }
}
