//! The text form of graphs and plans. Printing, parsing and printing again gives the same bytes.
//!
//! ```text
//! graph @t {
//!   limit b*s <= 4096
//!   !q0 = quant i8 scale=0.0235 flatten={base=6, tail=[3:2, 3:3], padded=64}
//!   %bias: f32[4] = const {dense=[0.5, -1.0, 0.0, 2.0]}
//!   %x: f32[b,s,6] = input
//!   %x.q: i8[b,s,64] !q0 = quantize %x {out={quant=!q0, inverse=[42.55319]}}
//!   %y: f32[b,s,64] = dequantize %x.q
//!   return %y as y
//! }
//! ```
//!
//! `;` starts a comment. A constant is `dense=[…]`, `splat=…`, `blob="hash"` or, in hand-written
//! texts, `rand=seed, in=[lo, hi]`. Names and symbols with odd characters stand in quotes.

mod attrs;
mod expr;
mod lex;
mod parse;
mod plan;
mod print;
mod quants;
mod values;

pub(crate) use lex::symbol;
pub use parse::{ParseError, parse};
pub use plan::print_plan;
pub(crate) use print::{join, lines};
pub use print::{print, print_with_blobs, print_with_origins};
pub use values::{BlobSource, Blobs, content_hash, random};

#[cfg(test)]
mod tests;
