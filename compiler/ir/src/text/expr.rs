//! The text form of scalar expressions: `mul(arg0, sigmoid(arg1))`. Floats always have a point, an
//! exponent or letters, integers never; a cast names its type first.

use super::lex::{Cursor, Result};
use crate::expr::{BinaryOp, Expr, Literal, UnaryOp};
use crate::types::Elem;
use std::fmt;

/// How deep an expression may nest in the text.
const MAX_DEPTH: usize = 256;

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Arg(i) => write!(f, "arg{i}"),
            Expr::Literal(Literal::F32(v)) => write!(f, "{v:?}"),
            Expr::Literal(Literal::I64(v)) => write!(f, "{v}"),
            Expr::Literal(Literal::Bool(v)) => write!(f, "{v}"),
            Expr::Unary(op, a) => write!(f, "{}({a})", op.name()),
            Expr::Binary(op, a, b) => write!(f, "{}({a}, {b})", op.name()),
            Expr::Select(c, a, b) => write!(f, "select({c}, {a}, {b})"),
            Expr::Cast(elem, a) => write!(f, "cast({elem}, {a})"),
        }
    }
}

impl Expr {
    /// Reads what `Display` writes; the error is a sentence.
    pub fn parse(text: &str) -> std::result::Result<Expr, String> {
        let mut cursor = Cursor::new(text);
        let expr = read(&mut cursor)?;
        if cursor.peek().is_some() {
            return cursor.expected("the end of the expression");
        }
        Ok(expr)
    }
}

pub(super) fn read(cursor: &mut Cursor) -> Result<Expr> {
    nested(cursor, 0)
}

fn nested(cursor: &mut Cursor, depth: usize) -> Result<Expr> {
    if depth > MAX_DEPTH {
        return Err(format!("an expression nests deeper than {MAX_DEPTH}"));
    }
    let mut ahead = cursor.clone();
    if let Ok(word) = ahead.word()
        && ahead.eat("(")
    {
        *cursor = ahead;
        return call(cursor, word, depth + 1);
    }
    let mut ahead = cursor.clone();
    let word = ahead.number()?;
    let literal = match word {
        "true" => Some(Literal::Bool(true)),
        "false" => Some(Literal::Bool(false)),
        _ => match word.parse() {
            Ok(v) => Some(Literal::I64(v)),
            Err(_) => word.parse().ok().map(Literal::F32),
        },
    };
    let argument = word.strip_prefix("arg").and_then(|i| i.parse::<u16>().ok());
    let expr = match (argument, literal) {
        (Some(i), _) => Expr::Arg(usize::from(i)),
        (None, Some(literal)) => Expr::Literal(literal),
        (None, None) => return cursor.expected("an expression"),
    };
    *cursor = ahead;
    Ok(expr)
}

fn call(cursor: &mut Cursor, word: &str, depth: usize) -> Result<Expr> {
    if word == "cast" {
        let name = cursor.word()?;
        let elem = Elem::parse(name).ok_or_else(|| format!("no element type `{name}`"))?;
        cursor.expect(",")?;
        let a = nested(cursor, depth)?;
        cursor.expect(")")?;
        return Ok(Expr::cast(elem, a));
    }
    let mut args = vec![nested(cursor, depth)?];
    while cursor.eat(",") {
        args.push(nested(cursor, depth)?);
        if args.len() > 3 {
            break;
        }
    }
    cursor.expect(")")?;
    let count = args.len();
    let mut args = args.into_iter();
    let taken = [args.next(), args.next(), args.next(), args.next()];
    match (UnaryOp::parse(word), BinaryOp::parse(word), taken) {
        (Some(op), _, [Some(a), None, None, None]) => Ok(Expr::unary(op, a)),
        (_, Some(op), [Some(a), Some(b), None, None]) => Ok(Expr::binary(op, a, b)),
        (_, _, [Some(c), Some(a), Some(b), None]) if word == "select" => Ok(Expr::select(c, a, b)),
        _ => Err(format!("no function `{word}` of {count} arguments")),
    }
}
