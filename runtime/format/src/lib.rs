//! The `.fqbin` file: writing, one validation, then views; and the program that the runtime
//! executes. This crate knows neither the compiler nor how to run anything.
//!
//! # The format
//!
//! All numbers are little-endian. A file is a header of 256 bytes, a table of section records of
//! 128 bytes, and the sections in the order of the table, each at the next multiple of its
//! alignment, with zero bytes between; the last one ends the file.
//!
//! | at | header | |
//! |---|---|---|
//! | 0 | magic | `FQBIN\r\n\x1a` |
//! | 8 | u32 format, u32 oldest format a reader must know | these 16 bytes never move |
//! | 16 | u32 length of the header, u32 number of sections | |
//! | 24 | u64 length of the file | |
//! | 32 | u64 required features, u64 optional features | an unknown required bit is refused |
//! | 48 | u64 offset of the table, u64 zero | |
//! | 64 | producer, 64 bytes | zero-padded UTF-8 |
//! | 128 | content id | BLAKE3 of versions, features, producer and all records but signatures |
//! | 160 | zero, 64 bytes | |
//! | 224 | header hash | BLAKE3 of header (this field zero) and table |
//!
//! | at | record | |
//! |---|---|---|
//! | 0 | u32 kind, u32 flags | flag 1: refuse the file if the kind is unknown |
//! | 8 | u64 offset, u64 length | |
//! | 24 | u32 alignment, u32 zero | 4096 for weights and code, else 64 |
//! | 32 | target, 32 bytes | `cpu`, `cuda:sm_90a`; zero-padded UTF-8 |
//! | 64 | level, 32 bytes | `avx2`, `avx512-vnni`, `avx512-bf16`, `amx-int8` |
//! | 96 | BLAKE3 of the section | |
//!
//! Kinds: 1 manifest (JSON, opaque here), 2 weights, 3 plan ([`Program`]), 4 code (u32 number of
//! kernel entries, u32 zero, u64 length of the code, u32 offset of each entry, zeros to 64, the
//! code), 5 signature (u32 1, Ed25519 public key, signature of `"fqbin content id v1\0"` and the
//! content id).
//!
//! For `cuda:` targets the code is cubins one after another, each at a multiple of 64; a kernel's
//! entry is where the cubin begins that has the symbol of its name up to the first dot. Its
//! attributes are `threads` of a block and, for generated kernels, `items`: work items of a block.
//! Kernels that read their first argument through a tensor map have `n`, `k`, `k_blocks`, `tokens`
//! and `channels` (of a tile), `cluster`, `split`, `shared` (bytes) and `max_rows` instead; those of
//! one product follow each other by growing `max_rows`, and a step names the first.
//!
//! A change of anything here is a new format version. Version 2 added to the end of a plan a u32:
//! 0, or one more than the symbol of [`Program::batch`].
//!
//! # Trust
//!
//! Any bytes whatsoever give an error or a [`File`] whose program is well formed. Code sections
//! are the exception: they are machine code, and running a stranger's file is running a
//! stranger's program. Checksums protect against accidents, signatures against people.

#![forbid(unsafe_code)]

mod arena;
mod binding;
mod builder;
mod codec;
mod error;
mod expr;
mod image;
mod len;
mod level;
mod limits;
mod program;
mod read;
mod sign;
mod table;
mod verify;
mod weights;
mod write;

pub use arena::{ARENA_ALIGN, ArenaLayout, Block, pack_arena, verify_arena};
pub use binding::{BindError, Binding, MAX_DIM};
pub use builder::ProgramBuilder;
pub use error::{Error, Result, printable};
pub use expr::{BinOp, EvalError, Expr, ExprId, SymbolId, display, eval_all};
pub use image::{CodeImage, CodeView, Image, TargetImage, check_entries};
pub use len::ByteLen;
pub use level::Level;
pub use limits::{LIMITS, Limits};
pub use program::{
    Access, Arg, Buffer, BufferId, Elem, Kernel, KernelId, Limit, Place, Port, Program, Relation,
    Step,
};
pub use read::{File, Layout, Target, Trust, check_hash};
pub use sign::{FileSignature, PublicKey, SecretKey};
pub use table::{
    FORMAT_VERSION, HEADER_LEN, Kind, MAGIC, OLDEST_READABLE, RECORD_LEN, Section, Table,
};
pub use verify::{Fault, verify};
pub use weights::Weights;
pub use write::{Written, to_bytes, write_file};
