//! Quantisation of linear layers, one rewrite a file. In order: [`groups`] finds the linears that
//! share an input; [`choose`] picks smoothing factors and a threshold for each group from
//! [`stats`], [`budget`] how many extra channels it gets, and [`refine`] goes through the channels
//! one by one; [`smooth`] and [`flatten`] rewrite the float graph without changing its values;
//! [`insert_qdq`] rounds; [`fold_qdq`] and [`fold_quantize`] merge the roundings with their
//! neighbours.

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
