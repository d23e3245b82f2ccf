//! Integer expressions over the symbols of a program: sizes, offsets and work counts that are
//! known only once the input shapes are bound. A list of expressions is in SSA form (an operand
//! always comes earlier), so one forward sweep with checked 64-bit arithmetic evaluates all.

use std::fmt;

/// Index of an expression in [`Program::exprs`](crate::Program).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExprId(pub u32);

/// Index of a symbol in [`Program::symbols`](crate::Program).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymbolId(pub u32);

impl ExprId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl SymbolId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A binary operation. Division and remainder need a positive divisor and round towards minus
/// (`FloorDiv`, `Mod`) or plus (`CeilDiv`) infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BinOp {
    Add,
    Sub,
    Mul,
    FloorDiv,
    CeilDiv,
    Mod,
    Min,
    Max,
}

impl BinOp {
    pub const ALL: [BinOp; 8] = [
        BinOp::Add,
        BinOp::Sub,
        BinOp::Mul,
        BinOp::FloorDiv,
        BinOp::CeilDiv,
        BinOp::Mod,
        BinOp::Min,
        BinOp::Max,
    ];

    /// Evaluates with checked arithmetic; `None` on overflow or a divisor below one.
    pub fn apply(self, a: i64, b: i64) -> Option<i64> {
        match self {
            BinOp::Add => a.checked_add(b),
            BinOp::Sub => a.checked_sub(b),
            BinOp::Mul => a.checked_mul(b),
            BinOp::Min => Some(a.min(b)),
            BinOp::Max => Some(a.max(b)),
            BinOp::FloorDiv if b > 0 => a.checked_div_euclid(b),
            BinOp::Mod if b > 0 => a.checked_rem_euclid(b),
            BinOp::CeilDiv if b > 0 => {
                let floor = a.checked_div_euclid(b)?;
                if a.checked_rem_euclid(b)? == 0 { Some(floor) } else { floor.checked_add(1) }
            }
            BinOp::FloorDiv | BinOp::CeilDiv | BinOp::Mod => None,
        }
    }

    /// The operation's spelling in [`display`].
    pub fn name(self) -> &'static str {
        match self {
            BinOp::Add => "+",
            BinOp::Sub => "-",
            BinOp::Mul => "*",
            BinOp::FloorDiv => "floor_div",
            BinOp::CeilDiv => "ceil_div",
            BinOp::Mod => "mod",
            BinOp::Min => "min",
            BinOp::Max => "max",
        }
    }
}

/// One expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expr {
    Const(i64),
    Sym(SymbolId),
    Bin(BinOp, ExprId, ExprId),
}

/// Why an expression has no value for the bound symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    pub expr: ExprId,
    pub text: String,
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expression `{}` overflows or divides by a number below 1", self.text)
    }
}

/// Evaluates every expression into `values` (cleared first). `exprs` must be verified SSA; a
/// reference out of order is reported as an error and never read.
pub fn eval_all(
    exprs: &[Expr],
    names: &[String],
    symbols: &[i64],
    values: &mut Vec<i64>,
) -> Result<(), EvalError> {
    values.clear();
    for (i, expr) in exprs.iter().enumerate() {
        let value = match *expr {
            Expr::Const(c) => Some(c),
            Expr::Sym(s) => symbols.get(s.index()).copied(),
            Expr::Bin(op, a, b) => match (values.get(a.index()), values.get(b.index())) {
                (Some(&a), Some(&b)) => op.apply(a, b),
                _ => None,
            },
        };
        let expr = ExprId(i as u32);
        match value {
            Some(v) => values.push(v),
            None => return Err(EvalError { expr, text: display(exprs, names, expr) }),
        }
    }
    Ok(())
}

/// Text of an expression, such as `ceil_div(batch * seq, 64)`. Very deep ones are cut with `…`.
pub fn display(exprs: &[Expr], names: &[String], id: ExprId) -> String {
    fn go(exprs: &[Expr], names: &[String], id: ExprId, depth: usize, out: &mut String) {
        if depth == 0 || out.len() > 400 {
            out.push('…');
            return;
        }
        match exprs.get(id.index()) {
            None => out.push_str("<bad expression>"),
            Some(Expr::Const(c)) => out.push_str(&c.to_string()),
            Some(Expr::Sym(s)) => {
                out.push_str(names.get(s.index()).map_or("<bad symbol>", String::as_str))
            }
            Some(&Expr::Bin(op, a, b)) => {
                let infix = matches!(op, BinOp::Add | BinOp::Sub | BinOp::Mul);
                out.push_str(if infix { "(" } else { op.name() });
                out.push_str(if infix { "" } else { "(" });
                go(exprs, names, a, depth - 1, out);
                if infix {
                    out.push_str(&format!(" {} ", op.name()));
                } else {
                    out.push_str(", ");
                }
                go(exprs, names, b, depth - 1, out);
                out.push(')');
            }
        }
    }
    let mut out = String::new();
    go(exprs, names, id, 12, &mut out);
    let stripped = out.strip_prefix('(').and_then(|s| s.strip_suffix(')'));
    match stripped {
        Some(inner) => inner.to_string(),
        None => out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_checked() {
        assert_eq!(BinOp::FloorDiv.apply(-7, 2), Some(-4));
        assert_eq!(BinOp::CeilDiv.apply(-7, 2), Some(-3));
        assert_eq!(BinOp::CeilDiv.apply(7, 2), Some(4));
        assert_eq!(BinOp::Mod.apply(-7, 4), Some(1));
        for op in [BinOp::FloorDiv, BinOp::CeilDiv, BinOp::Mod] {
            assert_eq!(op.apply(1, 0), None);
            assert_eq!(op.apply(i64::MIN, -1), None);
        }
        assert_eq!(BinOp::Add.apply(i64::MAX, 1), None);
        assert_eq!(BinOp::Mul.apply(i64::MAX, 2), None);
        assert_eq!(BinOp::Sub.apply(i64::MIN, 1), None);
    }

    #[test]
    fn evaluates_and_prints() {
        let exprs = [
            Expr::Sym(SymbolId(0)),
            Expr::Const(64),
            Expr::Bin(BinOp::Mul, ExprId(0), ExprId(1)),
            Expr::Bin(BinOp::CeilDiv, ExprId(2), ExprId(0)),
        ];
        let names = ["seq".to_string()];
        let mut values = Vec::new();
        eval_all(&exprs, &names, &[5], &mut values).unwrap();
        assert_eq!(values, [5, 64, 320, 64]);
        assert_eq!(display(&exprs, &names, ExprId(3)), "ceil_div((seq * 64), seq)");
        let error = eval_all(&exprs, &names, &[0], &mut values).unwrap_err();
        assert_eq!(error.expr, ExprId(3));
    }
}
