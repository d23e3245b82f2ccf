//! Upper bounds on what a model file may ask of the importer. Each is far above any real model.

/// Bytes of the protobuf part of a model.
pub const PROTO_BYTES: u64 = 2 << 30;
/// Nesting of protobuf messages (prost itself stops at 100).
pub const PROTO_DEPTH: usize = 64;
/// Memory that the decoded messages may take beside the bytes of the file itself.
pub const DECODED_BYTES: u64 = 1 << 30;
/// Nodes of the graph, after model-local functions are expanded.
pub const NODES: usize = 1 << 20;
/// Depth of model-local function calls and of `If` branches.
pub const CALL_DEPTH: usize = 64;
/// Bytes of a name.
pub const NAME_BYTES: usize = 4096;
/// Axes of a tensor.
pub const RANK: usize = 16;
/// A single size.
pub const DIM: i64 = 1 << 40;
/// Elements of one tensor.
pub const ELEMENTS: i64 = 1 << 40;
/// Elements of a tensor whose values are followed as symbolic dimensions.
pub const TRACKED: usize = 1024;
/// Pairs of sizes that may turn out to be equal; each costs one more walk over the model.
pub const EQUALITIES: usize = 256;
