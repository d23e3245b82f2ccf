//! Plan to machine code. The CPU side goes through LLVM and gives one flat, position-independent
//! blob a level; nothing here knows the graph.

pub mod cpu;
