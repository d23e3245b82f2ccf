//! Small scalar expression trees: the body of an element-wise node and the epilogue of a gemm. One
//! description for every backend; a new activation function is added here, in the interpreter and in
//! each backend's emitter, once.

use crate::types::Elem;

/// A function of one scalar. Floats follow IEEE; `Round` is half to even.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum UnaryOp {
    Neg,
    Abs,
    Sign,
    Floor,
    Ceil,
    Round,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Exp,
    Log,
    Sin,
    Cos,
    Tanh,
    Erf,
    Sigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `x * 0.5 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// `0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
    /// `x * sigmoid(x)`.
    Silu,
    /// `ln(1 + exp(x))`.
    Softplus,
    /// Boolean negation.
    Not,
    /// Float to bool.
    IsNan,
    /// Float to bool, either sign.
    IsInf,
}

/// A function of two scalars of one type; comparisons give bool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    /// Integers truncate toward zero; an integer divided by zero is zero.
    Div,
    /// Float: `powf`; integers by repeated multiplication, a negative power gives the truncated
    /// reciprocal, zero for base 0.
    Pow,
    /// NaN wins.
    Min,
    /// NaN wins.
    Max,
    /// Remainder with the sign of the divisor (Python's `%`); of integers by zero it is zero.
    Mod,
    /// Remainder with the sign of the dividend (C's `fmod`); of integers by zero it is zero.
    Rem,
    And,
    Or,
    Xor,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Name tables shared by printer and parser.
macro_rules! names {
    ($type:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        impl $type {
            pub const ALL: &'static [$type] = &[$($type::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),* }
            }

            pub fn parse(name: &str) -> Option<$type> {
                $type::ALL.iter().copied().find(|op| op.name() == name)
            }
        }
    };
}
pub(crate) use names;

names!(UnaryOp {
    Neg = "neg", Abs = "abs", Sign = "sign", Floor = "floor", Ceil = "ceil", Round = "round",
    Sqrt = "sqrt", Rsqrt = "rsqrt", Reciprocal = "reciprocal", Exp = "exp", Log = "log",
    Sin = "sin", Cos = "cos", Tanh = "tanh", Erf = "erf", Sigmoid = "sigmoid", Relu = "relu",
    Gelu = "gelu", GeluTanh = "gelu_tanh", Silu = "silu", Softplus = "softplus", Not = "not",
    IsNan = "is_nan", IsInf = "is_inf",
});

names!(BinaryOp {
    Add = "add", Sub = "sub", Mul = "mul", Div = "div", Pow = "pow", Min = "min", Max = "max",
    Mod = "mod", Rem = "rem", And = "and", Or = "or", Xor = "xor", Eq = "eq", Ne = "ne",
    Lt = "lt", Le = "le", Gt = "gt", Ge = "ge",
});

impl BinaryOp {
    /// Whether the result is bool whatever the operands are.
    pub fn is_comparison(self) -> bool {
        use BinaryOp::{Eq, Ge, Gt, Le, Lt, Ne};
        matches!(self, Eq | Ne | Lt | Le | Gt | Ge)
    }

    /// Whether operands must be bool.
    pub fn is_logical(self) -> bool {
        matches!(self, BinaryOp::And | BinaryOp::Or | BinaryOp::Xor)
    }
}

impl UnaryOp {
    /// Whether the result is bool.
    pub fn is_predicate(self) -> bool {
        matches!(self, UnaryOp::Not | UnaryOp::IsNan | UnaryOp::IsInf)
    }
}

/// A scalar constant in an expression.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Literal {
    F32(f32),
    I64(i64),
    Bool(bool),
}

/// A scalar expression over the operands of a node.
#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// Operand `i`.
    Arg(usize),
    Literal(Literal),
    Unary(UnaryOp, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// Condition, then, else.
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    Cast(Elem, Box<Expr>),
}

impl Expr {
    pub fn arg(i: usize) -> Expr {
        Expr::Arg(i)
    }

    pub fn f32(value: f32) -> Expr {
        Expr::Literal(Literal::F32(value))
    }

    pub fn unary(op: UnaryOp, a: Expr) -> Expr {
        Expr::Unary(op, Box::new(a))
    }

    pub fn binary(op: BinaryOp, a: Expr, b: Expr) -> Expr {
        Expr::Binary(op, Box::new(a), Box::new(b))
    }

    pub fn select(c: Expr, a: Expr, b: Expr) -> Expr {
        Expr::Select(Box::new(c), Box::new(a), Box::new(b))
    }

    pub fn cast(elem: Elem, a: Expr) -> Expr {
        Expr::Cast(elem, Box::new(a))
    }

    /// The expression with every argument replaced.
    pub fn map_args(&self, with: &dyn Fn(usize) -> Expr) -> Expr {
        match self {
            Expr::Arg(i) => with(*i),
            Expr::Literal(l) => Expr::Literal(*l),
            Expr::Unary(op, a) => Expr::unary(*op, a.map_args(with)),
            Expr::Binary(op, a, b) => Expr::binary(*op, a.map_args(with), b.map_args(with)),
            Expr::Select(c, a, b) => {
                Expr::select(c.map_args(with), a.map_args(with), b.map_args(with))
            }
            Expr::Cast(elem, a) => Expr::cast(*elem, a.map_args(with)),
        }
    }

    /// One more than the highest argument used.
    pub fn arity(&self) -> usize {
        match self {
            Expr::Arg(i) => i + 1,
            Expr::Literal(_) => 0,
            Expr::Unary(_, a) | Expr::Cast(_, a) => a.arity(),
            Expr::Binary(_, a, b) => a.arity().max(b.arity()),
            Expr::Select(c, a, b) => c.arity().max(a.arity()).max(b.arity()),
        }
    }

    /// How often argument `i` occurs.
    pub fn uses(&self, i: usize) -> usize {
        match self {
            Expr::Arg(j) => usize::from(*j == i),
            Expr::Literal(_) => 0,
            Expr::Unary(_, a) | Expr::Cast(_, a) => a.uses(i),
            Expr::Binary(_, a, b) => a.uses(i) + b.uses(i),
            Expr::Select(c, a, b) => c.uses(i) + a.uses(i) + b.uses(i),
        }
    }

    /// Number of nodes of the tree.
    pub fn size(&self) -> usize {
        match self {
            Expr::Arg(_) | Expr::Literal(_) => 1,
            Expr::Unary(_, a) | Expr::Cast(_, a) => 1 + a.size(),
            Expr::Binary(_, a, b) => 1 + a.size() + b.size(),
            Expr::Select(c, a, b) => 1 + c.size() + a.size() + b.size(),
        }
    }

    /// The element type of the result, given those of the arguments; the error is a sentence.
    pub fn elem(&self, args: &[Elem]) -> Result<Elem, String> {
        match self {
            Expr::Arg(i) => {
                args.get(*i).copied().ok_or_else(|| format!("uses argument {i} of {}", args.len()))
            }
            Expr::Literal(Literal::F32(_)) => Ok(Elem::F32),
            Expr::Literal(Literal::I64(_)) => Ok(Elem::I64),
            Expr::Literal(Literal::Bool(_)) => Ok(Elem::Bool),
            Expr::Unary(op, a) => unary_elem(*op, a.elem(args)?),
            Expr::Binary(op, a, b) => binary_elem(*op, a.elem(args)?, b.elem(args)?),
            Expr::Select(c, a, b) => {
                let (c, a, b) = (c.elem(args)?, a.elem(args)?, b.elem(args)?);
                if c != Elem::Bool {
                    return Err(format!("`select` wants a bool condition, not {c}"));
                }
                if a == b { Ok(a) } else { Err(format!("`select` between {a} and {b}")) }
            }
            Expr::Cast(elem, a) => a.elem(args).map(|_| *elem),
        }
    }
}

/// The result type of a unary operation.
pub fn unary_elem(op: UnaryOp, a: Elem) -> Result<Elem, String> {
    use UnaryOp::{Abs, Neg, Not, Relu, Sign};
    let fits = match op {
        Not => a == Elem::Bool,
        Neg | Abs | Sign | Relu => a != Elem::Bool,
        _ => a.is_float(),
    };
    if !fits {
        return Err(format!("`{}` does not take {a}", op.name()));
    }
    Ok(if op.is_predicate() { Elem::Bool } else { a })
}

/// The result type of a binary operation.
pub fn binary_elem(op: BinaryOp, a: Elem, b: Elem) -> Result<Elem, String> {
    if a != b {
        return Err(format!("`{}` of {a} and {b}", op.name()));
    }
    let equality = matches!(op, BinaryOp::Eq | BinaryOp::Ne);
    let fits = if op.is_logical() { a == Elem::Bool } else { equality || a != Elem::Bool };
    if !fits {
        return Err(format!("`{}` does not take {a}", op.name()));
    }
    Ok(if op.is_comparison() { Elem::Bool } else { a })
}
