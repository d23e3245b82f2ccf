//! The words of the text form: names, symbols, strings, numbers and sizes. A [`Cursor`] never leaves
//! its line and never recurses deeper than a limit, so any input is read or refused.

use crate::dim::Dim;
use std::fmt::Write;

/// How deep sizes may nest.
const MAX_DIM_DEPTH: usize = 32;
/// How many terms a size may have when written out.
const MAX_DIM_TERMS: usize = 256;

/// Text in quotes, without control characters.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                write!(out, "\\u{{{:x}}}", u32::from(c)).expect("a string takes all");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A name as it is if it consists of harmless characters, else in quotes.
pub(super) fn name(text: &str) -> String {
    let bare = !text.is_empty() && text.chars().all(is_name_char);
    if bare { text.to_owned() } else { quoted(text) }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

/// A symbol of a size: an identifier as it is, anything else in quotes.
pub(crate) fn symbol(text: &str) -> String {
    let mut chars = text.chars();
    let bare = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(is_symbol_char);
    if bare { text.to_owned() } else { quoted(text) }
}

fn is_symbol_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.')
}

/// A place in one line of text.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    rest: &'a str,
}

/// What was expected and what is there instead.
pub(super) type Result<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    pub fn new(line: &'a str) -> Self {
        Cursor { rest: line }
    }

    /// Skips blanks.
    pub fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    pub fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest.chars().next()
    }

    /// Whether nothing but a comment is left.
    pub fn at_end(&mut self) -> bool {
        matches!(self.peek(), None | Some(';'))
    }

    pub fn end(&mut self) -> Result<()> {
        if self.at_end() { Ok(()) } else { self.expected("the end of the line") }
    }

    pub fn expected<T>(&mut self, what: &str) -> Result<T> {
        self.skip();
        let found: String = self.rest.chars().take(20).collect();
        Err(if found.is_empty() {
            format!("expected {what}, the line ends")
        } else {
            format!("expected {what}, found `{found}`")
        })
    }

    /// Takes `token` if it comes next.
    pub fn eat(&mut self, token: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    pub fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { self.expected(&format!("`{token}`")) }
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        self.skip();
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// A word of letters, digits and `_`.
    pub fn word(&mut self) -> Result<&'a str> {
        let word = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
        if word.is_empty() { self.expected("a word") } else { Ok(word) }
    }

    /// Takes the word `word` if it comes next, whole.
    pub fn eat_word(&mut self, word: &str) -> bool {
        let mut ahead = self.clone();
        let found = ahead.word().is_ok_and(|w| w == word);
        if found {
            *self = ahead;
        }
        found
    }

    pub fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.eat_word(word) { Ok(()) } else { self.expected(&format!("`{word}`")) }
    }

    /// A name, bare or in quotes.
    pub fn name(&mut self) -> Result<String> {
        if self.peek() == Some('"') {
            return self.string();
        }
        let name = self.take(is_name_char);
        if name.is_empty() { self.expected("a name") } else { Ok(name.to_owned()) }
    }

    /// A string in quotes.
    pub fn string(&mut self) -> Result<String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => match chars.next() {
                    Some('n') => out.push('\n'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    Some('u') => {
                        let (code, rest) = chars
                            .as_str()
                            .strip_prefix('{')
                            .and_then(|s| s.split_once('}'))
                            .ok_or("expected `\\u{…}`")?;
                        let c = u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
                        out.push(c.ok_or_else(|| format!("no character has the code `{code}`"))?);
                        chars = rest.chars();
                    }
                    _ => return Err("unknown escape in a string".to_owned()),
                },
                Some(c) => out.push(c),
                None => return Err("the line ends inside a string".to_owned()),
            }
        }
        self.rest = chars.as_str();
        Ok(out)
    }

    /// The characters of a number, infinity or NaN.
    pub fn number(&mut self) -> Result<&'a str> {
        let word = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-'));
        if word.is_empty() { self.expected("a number") } else { Ok(word) }
    }

    pub fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<T> {
        let mut ahead = self.clone();
        match ahead.number()?.parse() {
            Ok(value) => {
                *self = ahead;
                Ok(value)
            }
            Err(_) => self.expected(what),
        }
    }

    /// `[a, b, …]`, each read by `item`.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect("[")?;
        let mut out = Vec::new();
        if self.eat("]") {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat("]") {
                return Ok(out);
            }
            self.expect(",")?;
        }
    }

    /// A size such as `2*b*s+1`.
    pub fn dim(&mut self) -> Result<Dim> {
        self.sum(0)
    }

    fn sum(&mut self, depth: usize) -> Result<Dim> {
        if depth > MAX_DIM_DEPTH {
            return Err(format!("a size nests deeper than {MAX_DIM_DEPTH}"));
        }
        let mut sum = Dim::zero();
        let mut negative = self.eat("-");
        loop {
            sum = sum + self.product(depth, negative)?;
            if sum.terms().count() > MAX_DIM_TERMS {
                return Err(format!("a size has more than {MAX_DIM_TERMS} terms"));
            }
            negative = self.eat("-");
            if !negative && !self.eat("+") {
                return Ok(sum);
            }
        }
    }

    fn product(&mut self, depth: usize, negative: bool) -> Result<Dim> {
        let mut product = Dim::from(if negative { -1i64 } else { 1 });
        if self.peek().is_some_and(|c| c.is_ascii_digit()) {
            let digits = self.take(|c| c.is_ascii_digit());
            let size: i128 = digits.parse().map_err(|_| format!("{digits} is too large"))?;
            let value = i64::try_from(if negative { -size } else { size });
            product = Dim::from(value.map_err(|_| format!("{digits} is too large"))?);
            if !self.eat("*") {
                return Ok(product);
            }
        }
        loop {
            product = product * self.factor(depth)?;
            if product.terms().count() > MAX_DIM_TERMS {
                return Err(format!("a size has more than {MAX_DIM_TERMS} terms"));
            }
            if !self.eat("*") {
                return Ok(product);
            }
        }
    }

    fn factor(&mut self, depth: usize) -> Result<Dim> {
        if self.peek() == Some('"') {
            return Ok(Dim::sym(self.string()?));
        }
        let word = self.take(is_symbol_char);
        if !word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return self.expected("a size");
        }
        if !(matches!(word, "div" | "min" | "max") && self.eat("(")) {
            return Ok(Dim::sym(word));
        }
        let a = self.sum(depth + 1)?;
        self.expect(",")?;
        let b = self.sum(depth + 1)?;
        self.expect(")")?;
        Ok(match word {
            "div" => a.floor_div(&b),
            "min" => a.smaller(&b),
            _ => a.larger(&b),
        })
    }
}

impl Dim {
    /// Reads what `Display` writes; the error is a sentence.
    pub fn parse(text: &str) -> std::result::Result<Dim, String> {
        let mut cursor = Cursor::new(text);
        let dim = cursor.dim()?;
        if cursor.peek().is_some() {
            return cursor.expected("the end of the size");
        }
        Ok(dim)
    }
}
