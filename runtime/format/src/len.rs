//! Byte counts and offsets with checked arithmetic. Everything the reader, the writer and the
//! arena packer compute about sizes goes through [`ByteLen`], so that an overflow is an error at
//! one place and never a wrapped number.

use crate::error::{Error, Result};

/// A byte count or offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(u64);

impl ByteLen {
    pub const ZERO: ByteLen = ByteLen(0);

    pub const fn new(bytes: u64) -> ByteLen {
        ByteLen(bytes)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub fn from_usize(bytes: usize) -> ByteLen {
        ByteLen(bytes as u64)
    }

    /// The length as an index into memory.
    pub fn to_usize(self) -> Result<usize> {
        usize::try_from(self.0)
            .ok()
            .filter(|&n| isize::try_from(n).is_ok())
            .ok_or_else(|| Error::limit(format!("{} bytes do not fit in memory", self.0)))
    }

    pub fn plus(self, other: ByteLen) -> Result<ByteLen> {
        self.0.checked_add(other.0).map(ByteLen).ok_or_else(overflow)
    }

    pub fn minus(self, other: ByteLen) -> Result<ByteLen> {
        self.0.checked_sub(other.0).map(ByteLen).ok_or_else(overflow)
    }

    pub fn times(self, factor: u64) -> Result<ByteLen> {
        self.0.checked_mul(factor).map(ByteLen).ok_or_else(overflow)
    }

    /// The next multiple of `align`, which must be a power of two.
    pub fn align_up(self, align: u64) -> Result<ByteLen> {
        if !align.is_power_of_two() {
            return Err(Error::malformed(format!("alignment {align} is not a power of two")));
        }
        let mask = align - 1;
        self.0.checked_add(mask).map(|n| ByteLen(n & !mask)).ok_or_else(overflow)
    }

    pub fn is_aligned(self, align: u64) -> bool {
        align.is_power_of_two() && self.0 & (align - 1) == 0
    }
}

fn overflow() -> Error {
    Error::malformed("a byte offset exceeds 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_wraps() {
        let max = ByteLen::new(u64::MAX);
        assert!(max.plus(ByteLen::new(1)).is_err());
        assert!(ByteLen::ZERO.minus(ByteLen::new(1)).is_err());
        assert!(max.times(2).is_err());
        assert!(max.align_up(64).is_err());
        assert!(max.to_usize().is_err());
        assert!(ByteLen::new(3).align_up(3).is_err());
        assert_eq!(ByteLen::new(65).align_up(64).unwrap().get(), 128);
        assert!(ByteLen::new(128).is_aligned(64));
        assert!(!ByteLen::new(129).is_aligned(64));
    }
}
