//! The text form of graphs and plans.

mod lex;

pub(crate) use lex::symbol;
