//! Layer and root-mean-square normalisation of rows, with floats, codes or both as result; the
//! codes are made in the pass that normalises. What a row's sums wait for, in registers and in
//! divisions, is longer than they are: those of some rows are made together.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{NormKind, RowQuantize, Step, View};
use fqc_ir::types::Elem;

use super::CpuError;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::expr;
use super::pointwise::TASK_ELEMENTS;
use super::quantize::{self, Tables};
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::walk::{self, Chunk, FOLD_LANES, Row, Step as Stride, Walk};

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Norm {
    kind: NormKind,
    epsilon: f32,
    float: bool,
    quantize: Option<RowQuantize>,
    rows: Vec<Size>,
    /// The argument, then the results.
    views: Vec<ViewSpec>,
    n: Size,
    steps: Vec<Size>,
    /// Types and strides of gamma and beta.
    affine: Vec<(Elem, Size)>,
}

/// Takes a step apart.
pub fn call(
    step: &Step,
    kind: NormKind,
    epsilon: f32,
    float: bool,
    quantize: Option<&RowQuantize>,
    elems: &[Elem],
) -> Result<Call, CpuError> {
    let tables = if kind == NormKind::Layer { 2 } else { 1 };
    let arguments = 1 + tables + if quantize.is_some() { 3 } else { 0 };
    let results = usize::from(float) + usize::from(quantize.is_some());
    if step.args.len() != arguments || step.results.len() != results || results == 0 {
        return Err(unsupported(step, "has the wrong number of arguments or results"));
    }
    let x = &step.args[0];
    if let Some(q) = quantize {
        let codes = step.results.last().expect("there is a result");
        quantize::check(step, q, &step.args[1 + tables..], codes)?;
        if x.shape.last() != Some(&Dim::from(q.base)) || elems[0] == Elem::F64 {
            return Err(unsupported(step, "quantises rows of f32 with `base` channels"));
        }
    }
    if !elems[..=tables]
        .iter()
        .all(|e| e.is_float() && (*e == Elem::F64) == (elems[0] == Elem::F64))
    {
        return Err(unsupported(step, "wants floats"));
    }
    let rank = x.shape.len() - 1;
    let views: Vec<&View> = [x].into_iter().chain(&step.results).collect();
    let outer: Vec<&[Dim]> = views.iter().map(|v| &v.strides[..rank]).collect();
    let rows = Nest::new(&x.shape[..rank], &outer).collapse();
    let mut sizes = Sizes::default();
    let kinds: Vec<Elem> = [elems[0]].into_iter().chain(elems[arguments..].to_vec()).collect();
    let last: Vec<Dim> = views.iter().map(|v| v.strides[rank].clone()).collect();
    let affine = (1..=tables)
        .map(|i| {
            let stride = step.args[i].strides.last().cloned().unwrap_or_default();
            (elems[i], sizes.one(&stride))
        })
        .collect();
    let kernel = Norm {
        kind,
        epsilon,
        float,
        quantize: quantize.cloned(),
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &views, &kinds, &rows.strides),
        n: sizes.one(&x.shape[rank]),
        steps: sizes.all(&last),
        affine,
    };
    let grain = (TASK_ELEMENTS / x.shape[rank].as_const().unwrap_or(256).max(1)).max(1);
    let ops = x.count() * Dim::from(8i64);
    let scratch = quantize.map(quantize::scratch_bytes).unwrap_or_default();
    Ok(Call::new(Spec::Norm(kernel), sizes, rows.count(), grain, ops).with_scratch(scratch))
}

/// Rows of the fixed arguments.
struct Affine<'c> {
    gamma: Row<'c>,
    beta: Option<Row<'c>>,
}

/// What a row is normalised by.
struct Stats<'c> {
    mean: Option<Val<'c>>,
    inverse: Val<'c>,
}

/// `x` less the mean of its row, if that is subtracted.
fn centred<'c>(b: &Builder<'_, 'c>, mean: Option<Val<'c>>, x: Val<'c>) -> Val<'c> {
    mean.map_or(x, |mean| b.fsub(x, b.splat(mean, b.lanes(x))))
}

impl Norm {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let strides: Vec<&[Size]> = self.views.iter().map(|v| v.strides.as_slice()).collect();
        let walk = Walk::new(b, &self.rows, &strides);
        let mut next = 0..;
        let mut buffer = || b.buf(next.next().expect("an endless range"));
        let source = buffer();
        let mut table = |&(elem, stride): &(Elem, Size)| Row {
            elem,
            base: buffer(),
            step: Stride::new(b, stride),
        };
        let gamma = table(&self.affine[0]);
        let affine = Affine { gamma, beta: self.affine.get(1).map(table) };
        let tables = 1 + self.affine.len() as u32;
        let results = tables + if self.quantize.is_some() { 3 } else { 0 };
        let tables = self.quantize.as_ref().map(|_| Tables::new(b, tables));
        let buffers: Vec<_> = [source]
            .into_iter()
            .chain((1..self.views.len()).map(|i| b.buf(results + i as u32 - 1)))
            .collect();
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let steps: Vec<_> = self.steps.iter().map(|&s| Stride::new(b, s)).collect();
        let row = |offsets: &Vec<_>| {
            let view = |i: usize| {
                let offset = b.add(starts[i], offsets[i]);
                Row::new(b, self.views[i].elem, buffers[i], offset, steps[i])
            };
            (0..self.views.len()).map(view).collect::<Vec<Row<'_>>>()
        };
        walk.groups(b, [b.begin(), b.end()], self.together(b), |offsets| {
            let rows: Vec<Vec<Row<'_>>> = offsets.iter().map(row).collect();
            let of_x: Vec<Row<'_>> = rows.iter().map(|views| views[0]).collect();
            for (rows, stats) in rows.iter().zip(self.stats(b, &of_x)) {
                self.emit_row(b, rows, stats, &affine, tables.as_ref());
            }
        });
    }

    /// Rows whose sums are added at the same time: as many as registers hold the parts of.
    fn together(&self, b: &Builder<'_, '_>) -> i64 {
        if b.level().has_avx512() && self.views[0].elem != Elem::F64 { 4 } else { 1 }
    }

    /// Mean, if it is subtracted, and inverse deviation of each row.
    fn stats<'c>(&self, b: &Builder<'_, 'c>, rows: &[Row<'c>]) -> Vec<Stats<'c>> {
        let n = self.n.val(b);
        let scalar = expr::register_type(b, rows[0].elem, 1);
        let (count, zero) = (b.sitofp(n, scalar), b.zero(scalar));
        let tail = walk::tail_for(b, rows);
        let sums = |term: &dyn Fn(usize, Val<'c>, Chunk<'c>) -> Val<'c>| {
            walk::folds(b, n, tail, zero, |p, q| b.fadd(p, q), rows.len(), term)
        };
        let read = |at: usize, i, chunk| rows[at].read(b, i, chunk).val;
        let means: Vec<Option<Val<'c>>> = match self.kind {
            NormKind::Layer => sums(&read).iter().map(|&sum| Some(b.fdiv(sum, count))).collect(),
            NormKind::Rms => vec![None; rows.len()],
        };
        let squares = sums(&|at, i, chunk| {
            let d = centred(b, means[at], read(at, i, chunk));
            b.fmul(d, d)
        });
        let inverse = |&squares: &Val<'c>| {
            let variance = b.fadd(b.fdiv(squares, count), b.fconst(scalar, self.epsilon.into()));
            b.fdiv(b.fconst(scalar, 1.0), b.sqrt(variance))
        };
        let stats = |(mean, squares)| Stats { mean, inverse: inverse(squares) };
        means.into_iter().zip(&squares).map(stats).collect()
    }

    fn emit_row<'c>(
        &self,
        b: &Builder<'_, 'c>,
        rows: &[Row<'c>],
        stats: Stats<'c>,
        affine: &Affine<'c>,
        tables: Option<&Tables<'c>>,
    ) {
        let (x, n) = (rows[0], self.n.val(b));
        let out = self.float.then(|| rows[1]);
        let normalised = |i, chunk: Chunk<'c>| {
            let d = centred(b, stats.mean, x.read(b, i, chunk).val);
            let d = b.fmul(d, b.splat(stats.inverse, chunk.lanes));
            let gamma = affine.gamma.read(b, i, chunk).val;
            let y = match affine.beta {
                Some(beta) => b.fma(d, gamma, beta.read(b, i, chunk).val),
                None => b.fmul(d, gamma),
            };
            if let Some(out) = out {
                out.write(b, i, chunk, y);
            }
            y
        };
        let mut floats = vec![x, affine.gamma];
        floats.extend(affine.beta);
        floats.extend(out);
        let tail = walk::tail_for(b, &floats);
        match (&self.quantize, tables) {
            (Some(q), Some(tables)) => {
                let codes = rows.last().expect("there is a result").base;
                quantize::row(b, q, tables, codes, tail, normalised);
            }
            _ => walk::span(b, b.i64c(0), n, FOLD_LANES, tail, |i, chunk| {
                normalised(i, chunk);
            }),
        }
    }
}
