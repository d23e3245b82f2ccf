//! The Gram matrix of a group's quantised input, `Σ_t ω_t x̂_t x̂_tᵀ` with x̂ in codes: the Hessian of the
//! output error, which GPTQ works on. ω weighs each token by its size as in [`trial`](super::trial).

use super::choose::Choice;
use fqc_ir::quant::{digit, q_max, wide_code};

/// Rows that are added together.
const ROWS: usize = 64;

/// Of the flattened channels without padding; `4 * width²` bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct Gram {
    width: usize,
    /// Row-major; only the lower triangle is filled.
    sums: Vec<f32>,
}

impl Gram {
    pub fn new(choice: &Choice) -> Self {
        let width = choice.map.base as usize + choice.map.tail.len();
        Gram { width, sums: vec![0.0; width * width] }
    }

    /// Flattened channels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Takes in rows of the group's input as the float graph gives it.
    pub fn update(&mut self, values: &[f32], choice: &Choice) {
        let base = choice.map.base as usize;
        for rows in values.chunks(ROWS * base.max(1)) {
            let codes: Vec<f32> =
                rows.chunks_exact(base.max(1)).flat_map(|row| weighted(row, choice)).collect();
            self.add(&codes);
        }
    }

    fn add(&mut self, rows: &[f32]) {
        let width = self.width;
        for (a, sums) in self.sums.chunks_exact_mut(width.max(1)).enumerate() {
            // Copies are mostly zero, and so are the rows' products with them.
            let live: Vec<&[f32]> = rows.chunks_exact(width).filter(|row| row[a] != 0.0).collect();
            let sums = &mut sums[..=a];
            let (fours, rest) = live.as_chunks::<4>();
            for [p, q, r, s] in fours {
                let (fp, fq, fr, fs) = (p[a], q[a], r[a], s[a]);
                let pairs = p.iter().zip(*q).zip(r.iter().zip(*s));
                for (sum, ((p, q), (r, s))) in sums.iter_mut().zip(pairs) {
                    *sum += fp * p + fq * q + (fr * r + fs * s);
                }
            }
            for row in rest {
                let factor = row[a];
                sums.iter_mut().zip(*row).for_each(|(sum, v)| *sum += factor * v);
            }
        }
    }

    /// The element of two channels.
    pub fn at(&self, a: usize, b: usize) -> f32 {
        self.sums[a.max(b) * self.width + a.min(b)]
    }
}

/// The digits of a row in float, times the square root of its ω.
fn weighted(row: &[f32], choice: &Choice) -> Vec<f32> {
    let energy: f32 = row.iter().map(|v| v * v).sum();
    let root = (1.0 / (energy + choice.typical_energy)).sqrt();
    let inverse = 1.0 / choice.scale();
    let q = q_max(choice.widths.activations, choice.signed);
    let wide: Vec<i32> = row
        .iter()
        .zip(&choice.smooth)
        .map(|(x, s)| wide_code(x / s, inverse, choice.signed))
        .collect();
    let tail = choice.map.tail.iter().map(|&(j, k)| digit(wide[j as usize], u32::from(k), q));
    let base = wide.iter().map(|&c| digit(c, 1, q));
    base.chain(tail).map(|d| d as f32 * root).collect()
}
