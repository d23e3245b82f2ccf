//! Quantisation of linear layers, one rewrite a file. In order:
//!
//! - [`groups`] finds the linears that share an input; [`stats`] is what calibration saw of each input.
//! - [`search`] makes the choices for all groups: [`choose`] tries exponents and thresholds for each at
//!   each of its [`widths`] by what they cost ([`trial`]), [`assign`] says which groups take four bits and
//!   [`budget`] how many extra channels each gets, by what its errors cost the model ([`probe`]);
//!   [`refine`] then goes through the channels one by one.
//! - [`smooth`] and [`flatten`] rewrite the float graph without changing its values.
//! - Weights are rounded by [`round`] (GPTQ, from a [`gram`] matrix and its [`cholesky`] factor) or to
//!   [`nearest`].
//! - [`insert_qdq`] puts the roundings in; [`fold_qdq`] and [`fold_quantize`] merge them with their
//!   neighbours; [`narrow_table`] halves embeddings; [`passes`] has all of these as passes.
//!
//! [`measure`] is the loss that reports show.

pub mod assign;
pub mod budget;
pub mod cholesky;
pub mod choose;
pub mod flatten;
pub mod fold_qdq;
pub mod fold_quantize;
pub mod gram;
pub mod groups;
pub mod insert_qdq;
pub mod measure;
pub mod narrow_table;
pub mod nearest;
pub mod parallel;
pub mod passes;
pub mod probe;
pub mod refine;
pub mod round;
pub mod search;
pub mod smooth;
pub mod stats;
pub mod trial;
pub mod widths;
