//! Symbolic sizes at the border: reading ONNX's `dim_param` texts, what can be proven about sizes
//! (symbols are never negative), broadcasting, and solving two sizes that must be equal.

use crate::error::{Fault, Res, shown};
use crate::limits;
use fqc_ir::Dim;
use fqc_ir::dim::Atom;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Symbols that turned out to be equal to an expression over the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Substitution {
    known: BTreeMap<Arc<str>, Dim>,
}

impl Substitution {
    pub fn apply(&self, dim: &Dim) -> Dim {
        dim.substitute(&|name| self.known.get(name).cloned())
    }

    /// Makes two sizes equal by eliminating one symbol; false if that is not possible.
    pub fn equate(&mut self, a: &Dim, b: &Dim) -> bool {
        let (a, b) = (self.apply(a), self.apply(b));
        let Some((name, value)) = solve(&a, &b) else { return false };
        let with = |n: &str| (n == &*name).then(|| value.clone());
        for known in self.known.values_mut() {
            *known = known.substitute(&with);
        }
        self.known.insert(name, value);
        true
    }
}

/// A symbol and its value that make `a == b` hold. A bare symbol on one side is eliminated first; of
/// two bare symbols the later name, so that the result does not depend on the order of the nodes.
fn solve(a: &Dim, b: &Dim) -> Option<(Arc<str>, Dim)> {
    if a == b {
        return None;
    }
    let free = |name: &str, other: &Dim| !other.symbols().iter().any(|s| &**s == name);
    match (a.as_sym(), b.as_sym()) {
        (Some(x), Some(y)) => {
            let (keep, drop) = if x < y { (x, y) } else { (y, x) };
            return Some((Arc::from(drop), Dim::sym(keep)));
        }
        (Some(x), None) if free(x, b) && nonneg(b) => return Some((Arc::from(x), b.clone())),
        (None, Some(y)) if free(y, a) && nonneg(a) => return Some((Arc::from(y), a.clone())),
        _ => {}
    }
    // Anything that divides both sides is taken out: 32*b*s == 32*b*t says s == t.
    let diff = a.clone() - b.clone();
    let common = common_factor(&diff);
    let diff = diff.exact_div(&common)?;
    let candidates: Vec<(Arc<str>, i64)> = diff
        .terms()
        .filter_map(|(atoms, k)| match atoms {
            [Atom::Sym(name)] if k == 1 || k == -1 => Some((name.clone(), k)),
            _ => None,
        })
        .collect();
    candidates.into_iter().rev().find_map(|(name, k)| {
        let rest = diff.clone() - Dim::sym(&*name) * Dim::from(k);
        let value = if k == 1 { -rest } else { rest };
        (free(&name, &value) && nonneg(&value)).then_some((name, value))
    })
}

/// The monomial that divides every term.
fn common_factor(dim: &Dim) -> Dim {
    let mut terms = dim.terms();
    let Some((first, _)) = terms.next() else { return Dim::one() };
    let mut shared: Vec<Atom> = first.to_vec();
    let mut coefficient = 0i64;
    for (atoms, k) in dim.terms() {
        coefficient = gcd(coefficient, k);
        let mut left = atoms.to_vec();
        shared.retain(|a| match left.iter().position(|x| x == a) {
            Some(i) => {
                left.swap_remove(i);
                true
            }
            None => false,
        });
    }
    shared.iter().fold(Dim::from(coefficient.max(1)), |product, atom| {
        product
            * match atom {
                Atom::Sym(name) => Dim::sym(&**name),
                Atom::FloorDiv(a, b) => a.floor_div(b),
                Atom::Min(a, b) => a.smaller(b),
                Atom::Max(a, b) => a.larger(b),
            }
    })
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { gcd(b, a.checked_rem(b).unwrap_or(0)) }
}

/// Whether the size is provably never negative.
pub(crate) fn nonneg(dim: &Dim) -> bool {
    dim.terms().all(|(atoms, k)| k >= 0 && atoms.iter().all(nonneg_atom))
}

fn nonneg_atom(atom: &Atom) -> bool {
    match atom {
        Atom::Sym(_) => true,
        Atom::FloorDiv(a, b) => nonneg(a) && nonneg(b),
        Atom::Min(a, b) => nonneg(a) && nonneg(b),
        Atom::Max(a, b) => nonneg(a) || nonneg(b),
    }
}

/// Whether `a >= b` provably.
pub(crate) fn at_least(a: &Dim, b: &Dim) -> bool {
    nonneg(&(a.clone() - b.clone()))
}

pub(crate) fn min(a: &Dim, b: &Dim) -> Dim {
    match () {
        () if at_least(a, b) => b.clone(),
        () if at_least(b, a) => a.clone(),
        () => a.smaller(b),
    }
}

pub(crate) fn max(a: &Dim, b: &Dim) -> Dim {
    match () {
        () if at_least(a, b) => a.clone(),
        () if at_least(b, a) => b.clone(),
        () => a.larger(b),
    }
}

/// Refuses sizes that are impossible or whose expression grows without bound.
pub(crate) fn check(dim: &Dim) -> Res<()> {
    let mut budget = 512usize;
    weigh(dim, &mut budget)?;
    match dim.as_const() {
        Some(v) if v > limits::DIM => {
            Err(Fault::limit(format!("a size of {v} is over the limit of {}", limits::DIM)))
        }
        _ => Ok(()),
    }
}

fn weigh(dim: &Dim, budget: &mut usize) -> Res<()> {
    for (atoms, _) in dim.terms() {
        *budget = budget
            .checked_sub(1 + atoms.len())
            .ok_or_else(|| Fault::limit("a symbolic size is too large an expression"))?;
        for atom in atoms {
            match atom {
                Atom::Sym(_) => {}
                Atom::FloorDiv(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                    weigh(a, budget)?;
                    weigh(b, budget)?;
                }
            }
        }
    }
    Ok(())
}

/// The size that two broadcast to.
pub(crate) fn broadcast(a: &Dim, b: &Dim) -> Res<Dim> {
    match (a.as_const(), b.as_const()) {
        _ if a == b => Ok(a.clone()),
        (Some(1), _) => Ok(b.clone()),
        (_, Some(1)) => Ok(a.clone()),
        (Some(x), Some(y)) => Err(Fault::invalid(format!("sizes {x} and {y} do not broadcast"))),
        _ => Err(Fault::Equal(a.clone(), b.clone())),
    }
}

/// The shape that two broadcast to.
pub(crate) fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Res<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::one();
    let at = |s: &[Dim], i: usize| {
        (i + s.len()).checked_sub(rank).map_or_else(|| one.clone(), |j| s[j].clone())
    };
    (0..rank).map(|i| broadcast(&at(a, i), &at(b, i))).collect()
}

/// Reads a `dim_param`: a name, or an expression of names and numbers with `+ - * /`, `//` and
/// parentheses, as exporters write. Anything else is a name of its own.
pub(crate) fn parse(text: &str) -> Dim {
    let mut parser = Parser { text: text.as_bytes(), at: 0, depth: 0 };
    match parser.sum() {
        Some(dim) if parser.rest().is_empty() => dim,
        _ => Dim::sym(symbol(text)),
    }
}

/// A name that is an identifier of the IR's text.
pub(crate) fn symbol(text: &str) -> String {
    let mut out: String = shown(text)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' })
        .collect();
    let reserved = matches!(out.as_str(), "div" | "min" | "max");
    if reserved || !out.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        out.insert(0, '_');
    }
    out
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn rest(&mut self) -> &[u8] {
        while self.text.get(self.at).is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
        &self.text[self.at..]
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token.as_bytes());
        if found {
            self.at += token.len();
        }
        found
    }

    fn sum(&mut self) -> Option<Dim> {
        let mut left = if self.eat("-") { -self.product()? } else { self.product()? };
        loop {
            if self.eat("+") {
                left = left + self.product()?;
            } else if self.eat("-") {
                left = left - self.product()?;
            } else {
                return Some(left);
            }
            check(&left).ok()?;
        }
    }

    fn product(&mut self) -> Option<Dim> {
        let mut left = self.atom()?;
        loop {
            if self.eat("*") {
                left = left * self.atom()?;
            } else if self.eat("//") || self.eat("/") {
                left = left.floor_div(&self.atom()?);
            } else {
                return Some(left);
            }
            check(&left).ok()?;
        }
    }

    fn atom(&mut self) -> Option<Dim> {
        if self.eat("(") {
            self.depth += 1;
            let inner = if self.depth < 32 { self.sum()? } else { return None };
            self.depth -= 1;
            return self.eat(")").then_some(inner);
        }
        let rest = self.rest();
        let word = |b: &&u8| b.is_ascii_alphanumeric() || **b == b'_' || **b == b'.';
        let len = rest.iter().take_while(word).count();
        let text = std::str::from_utf8(&rest[..len]).ok()?.to_owned();
        self.at += len;
        match text.as_bytes().first()? {
            b'0'..=b'9' => text.parse::<i64>().ok().map(Dim::from),
            _ => Some(Dim::sym(symbol(&text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dim_params_are_names_or_expressions() {
        let show = |t: &str| parse(t).to_string();
        assert_eq!(show("batch"), "batch");
        assert_eq!(show("past_sequence_length + 1"), "past_sequence_length+1");
        assert_eq!(show("2*(s1+s0)"), "2*s0+2*s1");
        assert_eq!(show("s0//2"), "div(s0,2)");
        assert_eq!(show("unk__12"), "unk__12");
        assert_eq!(show("what is this?"), "what_is_this_");
        assert_eq!(show("Max(1, s0)"), "Max_1__s0_");
    }

    #[test]
    fn equal_sizes_are_solved_for_one_symbol() {
        let solved = |a: &str, b: &str| {
            solve(&parse(a), &parse(b)).map(|(name, value)| format!("{name} = {value}"))
        };
        assert_eq!(solved("t", "p+s").as_deref(), Some("t = p+s"));
        assert_eq!(solved("b", "a").as_deref(), Some("b = a"));
        assert_eq!(solved("s", "4").as_deref(), Some("s = 4"));
        assert_eq!(solved("32*b*s", "32*b*t").as_deref(), Some("t = s"));
        assert_eq!(solved("s", "s+1"), None);
        assert_eq!(solved("p+s+1", "p+t+1").as_deref(), Some("t = s"));
    }
}
