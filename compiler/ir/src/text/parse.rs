//! Reads the text form of a graph. Every line is checked as it is read: operands exist, the written
//! type is the inferred one. Any input gives a graph or an error with its line, never a panic.

use super::attrs::{self, Context};
use super::lex::{Cursor, Result};
use super::quants::Quants;
use super::values::BlobSource;
use crate::graph::{Graph, Limit, NodeId};
use std::fmt;

/// Why a text is not a graph.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    /// Counted from one.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Before,
    Inside,
    Returned,
    After,
}

struct Parser<'a> {
    state: State,
    graph: Graph,
    quants: Quants,
    blobs: &'a dyn BlobSource,
}

/// The graph that a text describes; constants given by hash are looked up in `blobs`.
pub fn parse(text: &str, blobs: &dyn BlobSource) -> std::result::Result<Graph, ParseError> {
    let quants = Quants::default();
    let mut parser = Parser { state: State::Before, graph: Graph::default(), quants, blobs };
    for (i, line) in text.lines().enumerate() {
        let mut cursor = Cursor::new(line);
        if cursor.at_end() {
            continue;
        }
        let read = parser.statement(&mut cursor).and_then(|()| cursor.end());
        read.map_err(|message| ParseError { line: i + 1, message })?;
    }
    match parser.state {
        State::After => Ok(parser.graph),
        _ => Err(ParseError {
            line: text.lines().count().max(1),
            message: "the text ends before the graph does".to_owned(),
        }),
    }
}

impl Parser<'_> {
    fn statement(&mut self, cursor: &mut Cursor) -> Result<()> {
        match self.state {
            State::Before => {
                cursor.expect_word("graph")?;
                cursor.expect("@")?;
                self.graph = Graph::new(cursor.name()?);
                self.state = State::Inside;
                cursor.expect("{")
            }
            State::Inside => self.entity(cursor),
            State::Returned => {
                self.state = State::After;
                cursor.expect("}")
            }
            State::After => cursor.expected("nothing more"),
        }
    }

    fn entity(&mut self, cursor: &mut Cursor) -> Result<()> {
        match cursor.peek() {
            Some('!') => self.quants.read(cursor, self.blobs),
            Some('%') => self.node(cursor),
            _ if cursor.eat_word("limit") => self.limit(cursor),
            _ if cursor.eat_word("return") => self.outputs(cursor),
            _ => cursor.expected("`%`, `!`, `limit` or `return`"),
        }
    }

    fn limit(&mut self, cursor: &mut Cursor) -> Result<()> {
        let size = cursor.dim()?;
        let limit = if cursor.eat("<=") {
            Limit::AtMost(size, cursor.parsed("a number")?)
        } else {
            cursor.expect("==")?;
            Limit::Equal(size, cursor.dim()?)
        };
        self.graph.add_limit(limit);
        Ok(())
    }

    fn outputs(&mut self, cursor: &mut Cursor) -> Result<()> {
        self.state = State::Returned;
        if cursor.at_end() {
            return Ok(());
        }
        loop {
            let id = self.value(cursor)?;
            cursor.expect_word("as")?;
            self.graph.add_output(cursor.name()?, id);
            if !cursor.eat(",") {
                return Ok(());
            }
        }
    }

    fn value(&self, cursor: &mut Cursor) -> Result<NodeId> {
        cursor.expect("%")?;
        let name = cursor.name()?;
        self.graph.find(&name).ok_or_else(|| format!("`%{name}` is not defined above"))
    }

    fn node(&mut self, cursor: &mut Cursor) -> Result<()> {
        cursor.expect("%")?;
        let name = cursor.name()?;
        if self.graph.find(&name).is_some() {
            return Err(format!("`%{name}` is defined twice"));
        }
        cursor.expect(":")?;
        let ty = self.quants.read_type(cursor)?;
        cursor.expect("=")?;
        let mnemonic = cursor.word()?;
        let mut operands = Vec::new();
        if cursor.peek() == Some('%') {
            operands.push(self.value(cursor)?);
            while cursor.eat(",") {
                operands.push(self.value(cursor)?);
            }
        }
        let context = Context { quants: &self.quants, blobs: self.blobs };
        let op = attrs::read(mnemonic, &ty, cursor, &context)?;
        let id = self.graph.add(name, op, &operands).map_err(|e| e.to_string())?;
        let inferred = &self.graph.node(id).ty;
        if *inferred != ty {
            let what = if inferred.to_string() == ty.to_string() {
                "is quantised otherwise".to_owned()
            } else {
                format!("is {inferred}")
            };
            return Err(format!("the result {what}, not {}", self.quants.print_type(&ty)));
        }
        Ok(())
    }
}
