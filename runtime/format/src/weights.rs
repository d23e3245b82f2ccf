//! The constants of a target on their way into a file: pieces that somebody else keeps, so that no
//! second copy of all of them is made.

use std::fmt;
use std::sync::Arc;

/// What keeps the bytes of a piece.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Alignment of every piece. The program wants 64 of a weight; on a GPU the tiles of a gemm's weights that
/// begin inside a line of 128 bytes take up to a fifth longer.
const ALIGN: usize = 128;

/// Constants one after another, each at the next multiple of 128, zeros between.
#[derive(Clone, Default)]
pub struct Weights {
    /// Offset and bytes.
    pieces: Vec<(usize, Owner)>,
    len: usize,
}

impl Weights {
    pub fn new() -> Weights {
        Weights::default()
    }

    /// Appends a constant and returns its offset.
    pub fn push(&mut self, bytes: Owner) -> u64 {
        let offset = self.len.next_multiple_of(ALIGN);
        self.len = offset + (*bytes).as_ref().len();
        self.pieces.push((offset, bytes));
        offset as u64
    }

    /// Bytes of all pieces and what is between them.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes in order, in parts.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut end = 0;
        self.pieces.iter().flat_map(move |(offset, bytes)| {
            let between = &[0; ALIGN][..offset - end];
            let bytes = (**bytes).as_ref();
            end = offset + bytes.len();
            [between, bytes]
        })
    }

    /// All bytes in a block that is as long.
    pub fn copy_to(&self, mut block: &mut [u8]) {
        for part in self.parts() {
            let (own, rest) = block.split_at_mut(part.len());
            own.copy_from_slice(part);
            block = rest;
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len];
        self.copy_to(&mut all);
        all
    }
}

impl From<Vec<u8>> for Weights {
    fn from(bytes: Vec<u8>) -> Weights {
        let mut weights = Weights::new();
        weights.push(Arc::new(bytes));
        weights
    }
}

/// By content, however it is cut into pieces.
impl PartialEq for Weights {
    fn eq(&self, other: &Weights) -> bool {
        self.len == other.len && self.to_vec() == other.to_vec()
    }
}

impl Eq for Weights {}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({} bytes in {} pieces)", self.len, self.pieces.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_at_multiples_of_128_with_zeros_between() {
        let mut weights = Weights::new();
        assert_eq!(weights.push(Arc::new([1u8; 3])), 0);
        assert_eq!(weights.push(Arc::new([2u8; 128])), 128);
        assert_eq!(weights.push(Arc::new([0u8; 0])), 256);
        assert_eq!(weights.push(Arc::new([3u8; 1])), 256);
        let mut want = vec![1; 3];
        want.resize(128, 0);
        want.resize(256, 2);
        want.push(3);
        assert_eq!((weights.len(), weights.to_vec()), (257, want.clone()));
        assert_eq!(weights, want.into());
    }
}
