//! The vocabulary of fqc: the graph that passes rewrite and the plan that codegen reads.
//!
//! Everything here is plain data with a text form. This crate must never learn about files, ONNX,
//! LLVM or CUDA. Reading order: [`dim`], [`types`], [`quant`], [`data`], [`expr`], [`op`],
//! [`infer`], [`graph`], [`patch`], [`verify`], [`text`], [`plan`].

#![forbid(unsafe_code)]

pub mod data;
pub mod dim;
pub mod expr;
pub mod graph;
pub mod infer;
pub mod op;
pub mod patch;
pub mod plan;
pub mod quant;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod types;
pub mod verify;

pub use data::{Bytes, Const, Owner};
pub use dim::Dim;
pub use expr::{BinaryOp, Expr, UnaryOp};
pub use graph::{Graph, Node, NodeId};
pub use infer::InferError;
pub use op::Op;
pub use patch::{Patch, Value};
pub use quant::{FlattenMap, Quant, Quantizer, Scale};
pub use types::{Elem, Shape, Type};
