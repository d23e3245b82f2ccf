//! Kernels of one step against small references, at every level this machine has, with sizes bound
//! at run time, in portions of different sizes, between guard bytes.

mod attention;
mod harness;
mod index;
mod math;
mod pairs;
mod pointwise;
mod products;
mod reduce;
mod rows;
