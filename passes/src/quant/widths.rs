//! Widths of codes.

use fqc_ir::Elem;
use std::fmt;

/// Bits of the codes of one group of linear layers, 8 or 4 each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Widths {
    /// Of the shared input.
    pub activations: u8,
    pub weights: u8,
}

impl Widths {
    pub const W8A8: Widths = Widths { activations: 8, weights: 8 };
    pub const W4A8: Widths = Widths { activations: 8, weights: 4 };
    pub const W4A4: Widths = Widths { activations: 4, weights: 4 };

    /// How the weights are kept: codes of four bits are packed two a byte.
    pub fn weight_elem(self) -> Elem {
        if self.weights == 4 { Elem::I4 } else { Elem::I8 }
    }
}

impl fmt::Display for Widths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}a{}", self.weights, self.activations)
    }
}
