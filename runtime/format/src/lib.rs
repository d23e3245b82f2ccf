//! Under construction.
#![forbid(unsafe_code)]
mod builder;
mod expr;
mod program;

pub use builder::ProgramBuilder;
pub use expr::{BinOp, EvalError, Expr, ExprId, SymbolId, display, eval_all};
pub use program::{
    Access, Arg, Buffer, BufferId, Elem, Kernel, KernelId, Limit, Place, Port, Program, Relation,
    Step,
};
