//! Symbolic dimensions: integer polynomials over named symbols, kept in a normal form so that equal
//! expressions compare equal. Arithmetic saturates; anything near `i64::MAX` is refused later by the
//! size limits.

use crate::text;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One factor of a monomial.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Atom {
    /// A named size, bound when the model runs.
    Sym(Arc<str>),
    /// `floor(a / b)` that could not be simplified.
    FloorDiv(Box<Dim>, Box<Dim>),
    /// The smaller of two.
    Min(Box<Dim>, Box<Dim>),
    /// The larger of two.
    Max(Box<Dim>, Box<Dim>),
}

/// A size: a sum of monomials with integer coefficients, sorted, without zero terms.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Dim {
    terms: BTreeMap<Vec<Atom>, i64>,
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        let mut terms = BTreeMap::new();
        if value != 0 {
            terms.insert(Vec::new(), value);
        }
        Dim { terms }
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Dim::from(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl Dim {
    /// The size that `name` is bound to.
    pub fn sym(name: impl AsRef<str>) -> Self {
        Dim::from_atom(Atom::Sym(Arc::from(name.as_ref())))
    }

    pub fn zero() -> Self {
        Dim::default()
    }

    pub fn one() -> Self {
        Dim::from(1i64)
    }

    fn from_atom(atom: Atom) -> Self {
        Dim { terms: BTreeMap::from([(vec![atom], 1)]) }
    }

    /// The value, if no symbol is left in it.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get([].as_slice()).copied(),
            _ => None,
        }
    }

    pub fn is_const(&self) -> bool {
        self.as_const().is_some()
    }

    /// The name, if the dimension is one bare symbol.
    pub fn as_sym(&self) -> Option<&str> {
        match self.terms.iter().next() {
            Some((atoms, 1)) if self.terms.len() == 1 && atoms.len() == 1 => match &atoms[0] {
                Atom::Sym(name) => Some(name),
                _ => None,
            },
            _ => None,
        }
    }

    /// The terms: monomial and coefficient, in normal order.
    pub fn terms(&self) -> impl Iterator<Item = (&[Atom], i64)> {
        self.terms.iter().map(|(atoms, &k)| (atoms.as_slice(), k))
    }

    fn add_term(&mut self, atoms: Vec<Atom>, k: i64) {
        let sum = self.terms.get(&atoms).copied().unwrap_or(0).saturating_add(k);
        if sum == 0 {
            self.terms.remove(&atoms);
        } else {
            self.terms.insert(atoms, sum);
        }
    }

    /// `floor(self / other)`, simplified where every term divides.
    pub fn floor_div(&self, other: &Dim) -> Dim {
        if let Some(k) = other.as_const() {
            if k == 1 {
                return self.clone();
            }
            if k != 0 {
                if let Some(a) = self.as_const() {
                    return Dim::from(a.checked_div_euclid(k).unwrap_or(i64::MAX));
                }
                if k > 0 && self.terms.values().all(|v| v % k == 0) {
                    return Dim {
                        terms: self.terms.iter().map(|(a, v)| (a.clone(), v / k)).collect(),
                    };
                }
            }
        }
        if let Some(q) = self.exact_div(other) {
            return q;
        }
        Dim::from_atom(Atom::FloorDiv(Box::new(self.clone()), Box::new(other.clone())))
    }

    /// `self / other` when `other` is one monomial that divides every term.
    pub fn exact_div(&self, other: &Dim) -> Option<Dim> {
        if other.terms.len() != 1 {
            return (self == other && !other.terms.is_empty()).then(Dim::one);
        }
        let (by, k) = other.terms.iter().next()?;
        let mut out = Dim::zero();
        for (atoms, v) in &self.terms {
            if v.checked_rem(*k) != Some(0) {
                return None;
            }
            let mut rest = atoms.clone();
            for a in by {
                let at = rest.iter().position(|x| x == a)?;
                rest.remove(at);
            }
            out.add_term(rest, v / k);
        }
        Some(out)
    }

    /// `ceil(self / k)` for a positive constant `k`.
    pub fn ceil_div(&self, k: i64) -> Dim {
        (self.clone() + Dim::from(k - 1)).floor_div(&Dim::from(k))
    }

    pub fn smaller(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.min(b)),
            _ if self == other => self.clone(),
            _ => {
                let (a, b) = if self <= other { (self, other) } else { (other, self) };
                Dim::from_atom(Atom::Min(Box::new(a.clone()), Box::new(b.clone())))
            }
        }
    }

    pub fn larger(&self, other: &Dim) -> Dim {
        match (self.as_const(), other.as_const()) {
            (Some(a), Some(b)) => Dim::from(a.max(b)),
            _ if self == other => self.clone(),
            _ => {
                let (a, b) = if self <= other { (self, other) } else { (other, self) };
                Dim::from_atom(Atom::Max(Box::new(a.clone()), Box::new(b.clone())))
            }
        }
    }

    /// The value under a binding of symbols; `None` for an unbound symbol, a division by zero or an
    /// overflow.
    pub fn eval(&self, binding: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i64;
        for (atoms, &k) in &self.terms {
            let mut product = k;
            for atom in atoms {
                let v = match atom {
                    Atom::Sym(name) => binding(name)?,
                    Atom::FloorDiv(a, b) => {
                        let b = b.eval(binding)?;
                        a.eval(binding)?.checked_div_euclid(b)?
                    }
                    Atom::Min(a, b) => a.eval(binding)?.min(b.eval(binding)?),
                    Atom::Max(a, b) => a.eval(binding)?.max(b.eval(binding)?),
                };
                product = product.checked_mul(v)?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }

    /// The expression with symbols replaced.
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        let mut out = Dim::zero();
        for (atoms, &k) in &self.terms {
            let mut product = Dim::from(k);
            for atom in atoms {
                let v = match atom {
                    Atom::Sym(name) => with(name).unwrap_or_else(|| Dim::sym(name)),
                    Atom::FloorDiv(a, b) => a.substitute(with).floor_div(&b.substitute(with)),
                    Atom::Min(a, b) => a.substitute(with).smaller(&b.substitute(with)),
                    Atom::Max(a, b) => a.substitute(with).larger(&b.substitute(with)),
                };
                product = product * v;
            }
            out = out + product;
        }
        out
    }

    /// Every symbol in the expression, in order, once.
    pub fn symbols(&self) -> Vec<Arc<str>> {
        fn walk(dim: &Dim, out: &mut Vec<Arc<str>>) {
            for atom in dim.terms.keys().flatten() {
                match atom {
                    Atom::Sym(name) => out.push(name.clone()),
                    Atom::FloorDiv(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                        walk(a, out);
                        walk(b, out);
                    }
                }
            }
        }
        let mut out = Vec::new();
        walk(self, &mut out);
        out.sort();
        out.dedup();
        out
    }
}

impl std::ops::Add for Dim {
    type Output = Dim;
    fn add(mut self, other: Dim) -> Dim {
        for (atoms, k) in other.terms {
            self.add_term(atoms, k);
        }
        self
    }
}

impl std::ops::Neg for Dim {
    type Output = Dim;
    fn neg(mut self) -> Dim {
        for k in self.terms.values_mut() {
            *k = k.saturating_neg();
        }
        self
    }
}

impl std::ops::Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + -other
    }
}

impl std::ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        let mut out = Dim::zero();
        for (a, x) in &self.terms {
            for (b, y) in &other.terms {
                let mut atoms: Vec<Atom> = a.iter().chain(b).cloned().collect();
                atoms.sort();
                out.add_term(atoms, x.saturating_mul(*y));
            }
        }
        out
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Sym(name) => f.write_str(&text::symbol(name)),
            Atom::FloorDiv(a, b) => write!(f, "div({a},{b})"),
            Atom::Min(a, b) => write!(f, "min({a},{b})"),
            Atom::Max(a, b) => write!(f, "max({a},{b})"),
        }
    }
}

impl fmt::Display for Dim {
    /// Symbols first, the constant last: `2*b*s+1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        let constant = self.terms.get([].as_slice());
        let symbolic = self.terms.iter().filter(|(atoms, _)| !atoms.is_empty());
        for (i, (atoms, k)) in symbolic.enumerate() {
            let sign = if *k < 0 {
                "-"
            } else if i > 0 {
                "+"
            } else {
                ""
            };
            f.write_str(sign)?;
            if k.unsigned_abs() != 1 {
                write!(f, "{}*", k.unsigned_abs())?;
            }
            for (j, atom) in atoms.iter().enumerate() {
                write!(f, "{}{atom}", if j > 0 { "*" } else { "" })?;
            }
        }
        match constant {
            Some(k) if self.terms.len() > 1 => write!(f, "{k:+}"),
            Some(k) => write!(f, "{k}"),
            None => Ok(()),
        }
    }
}

/// The product of a shape's dimensions.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::one(), |acc, d| acc * d.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_form_makes_equal_expressions_equal() {
        let (b, s) = (Dim::sym("b"), Dim::sym("s"));
        let left = (b.clone() + Dim::one()) * s.clone();
        let right = s.clone() * b.clone() + s.clone();
        assert_eq!(left, right);
        assert_eq!(left.to_string(), "b*s+s");
        assert_eq!((left.clone() - right).as_const(), Some(0));
        assert_eq!(
            (b.clone() * s.clone() * Dim::from(384i64)).exact_div(&s),
            Some(b * 384i64.into())
        );
        assert_eq!(s.floor_div(&2i64.into()).to_string(), "div(s,2)");
        assert_eq!(left.eval(&|n| Some(if n == "b" { 2 } else { 5 })), Some(15));
    }
}
