//! Which tiles the gemms of a plan take: those that were measured, and those of the model of their time
//! elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use fqc_ir::expr::Expr;
use fqc_ir::plan::{Extra, Gemm, GemmOutput, Plan};
use fqc_ir::types::Elem;
use fqc_kernels::cuda::choose;
use fqc_kernels::cuda::gemm::{Output, Weights};
use fqc_kernels::cuda::pack::BLOCK_K;

pub use fqc_kernels::cuda::choose::{BUCKETS, Tile};

use super::fuse::Kind;
use super::generate::{Launches, pairing};
use super::writer::Pairing;
use super::{Arch, gemm};

/// What a gemm's time depends on, but for the rows. Its text, which is read back, is a list of these names
/// and values: `weights=w8a8; k=640; n=576; epilogue=add(arg0, arg1); extras=element; output=f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// `Int8`, `Int4` or `Bf16`.
    pub weights: Weights,
    pub k: usize,
    pub n: usize,
    /// Over the scaled sum and the extras.
    pub epilogue: Expr,
    pub extras: Vec<Extra>,
    pub output: Output,
    /// What makes a code of two neighbouring results.
    pub pair: Option<Expr>,
}

impl Layer {
    /// That of a gemm which stores elements of `stored`.
    pub(super) fn of(gemm: &Gemm, stored: Elem, pairing: Option<&Pairing<'_>>) -> Layer {
        let codes = |signed, bits| match (signed, bits) {
            (true, 8) => Output::S8,
            (false, 8) => Output::U8,
            (true, _) => Output::S4,
            (false, _) => Output::U4,
        };
        let output = match (pairing, gemm.output) {
            (Some(pairing), _) => codes(pairing.quantize.signed, pairing.quantize.bits),
            (None, GemmOutput::Codes { signed, bits }) => codes(signed, bits),
            (None, GemmOutput::I32) => Output::S32,
            (None, GemmOutput::F32) if stored == Elem::BF16 => Output::Bf16,
            (None, GemmOutput::F32) => Output::F32,
        };
        Layer {
            weights: gemm::weights(gemm),
            k: gemm.k,
            n: gemm.n,
            epilogue: gemm.epilogue.clone(),
            extras: gemm.extras.clone(),
            output,
            pair: pairing.map(|pairing| pairing.expr.clone()),
        }
    }

    /// The same with whole blocks of weights along K: what takes equally long has equal ones.
    #[must_use]
    pub fn in_blocks(&self) -> Layer {
        let block = if self.weights.float() { BLOCK_K / 2 } else { BLOCK_K };
        Layer { k: self.k.next_multiple_of(block), ..self.clone() }
    }

    /// The tiles for so many rows and their microseconds by the model, the cheapest first.
    pub fn ranked(&self, rows: usize) -> Vec<(Tile, f64)> {
        choose::ranked(rows, self.n, self.k, self.weights)
    }
}

/// The different gemms of a plan on Hopper, in the order of their first steps, and how many steps are of
/// each. Other architectures have one tile.
pub fn layers(plan: &Plan) -> Vec<(Layer, usize)> {
    let launches = Launches::of(plan, Arch::Sm90a);
    let mut layers: Vec<(Layer, usize)> = Vec::new();
    for (step, own, kind) in launches.gemms(Arch::Sm90a) {
        // What times a gemm alone does not rotate.
        if matches!(kind, Kind::Turned(_)) {
            continue;
        }
        let stored = launches.plan.buffer(step.results[0].buffer).elem;
        let layer = Layer::of(own, stored, pairing(step, kind).as_ref());
        match layers.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, steps)) => *steps += 1,
            None => layers.push((layer, 1)),
        }
    }
    layers
}

const WEIGHTS: [(&str, Weights); 3] =
    [("w8a8", Weights::Int8), ("w4a8", Weights::Int4), ("bf16", Weights::Bf16)];

const OUTPUTS: [(&str, Output); 7] = [
    ("f32", Output::F32),
    ("bf16", Output::Bf16),
    ("i32", Output::S32),
    ("s8", Output::S8),
    ("u8", Output::U8),
    ("s4", Output::S4),
    ("u4", Output::U4),
];

const EXTRAS: [(&str, Extra); 2] = [("column", Extra::PerColumn), ("element", Extra::PerElement)];

fn name<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, v)| v == value).map_or("?", |(name, _)| name)
}

fn value<T: Copy>(table: &[(&str, T)], name: &str) -> Result<T, String> {
    let found = table.iter().find(|(n, _)| *n == name);
    found.map(|(_, value)| *value).ok_or_else(|| format!("a gemm has no `{name}` there"))
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layer { weights, k, n, epilogue, extras, output, pair } = self;
        let extras: Vec<&str> = extras.iter().map(|extra| name(&EXTRAS, extra)).collect();
        write!(
            f,
            "weights={}; k={k}; n={n}; epilogue={epilogue}; extras={}; output={}",
            name(&WEIGHTS, weights),
            extras.join(","),
            name(&OUTPUTS, output)
        )?;
        pair.iter().try_for_each(|pair| write!(f, "; pair={pair}"))
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Layer, String> {
        let mut parts = text.split("; ");
        let mut part = |name: &str| {
            let part = parts.next().and_then(|part| part.strip_prefix(name)?.strip_prefix('='));
            part.ok_or_else(|| format!("a gemm without `{name}=` in its place"))
        };
        let size = |text: &str| {
            let size = text.parse().ok().filter(|size| (1..=MOST).contains(size));
            size.ok_or_else(|| format!("`{text}` is no size of a gemm"))
        };
        let weights = value(&WEIGHTS, part("weights")?)?;
        let (k, n) = (size(part("k")?)?, size(part("n")?)?);
        let epilogue = Expr::parse(part("epilogue")?)?;
        let extras = part("extras")?.split(',').filter(|name| !name.is_empty());
        let extras = extras.map(|name| value(&EXTRAS, name)).collect::<Result<_, _>>()?;
        let output = value(&OUTPUTS, part("output")?)?;
        let pair = part("pair").ok().map(Expr::parse).transpose()?;
        Ok(Layer { weights, k, n, epilogue, extras, output, pair })
    }
}

/// The largest K or N that is read from a text.
const MOST: usize = 1 << 22;

/// Measured tiles by gemm and by the rows of [`BUCKETS`].
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    tiles: BTreeMap<String, BTreeMap<usize, Tile>>,
}

impl Tuning {
    /// Settles the tile of a gemm for the number of rows of a bucket.
    ///
    /// # Errors
    /// A sentence, if there is no such bucket, or a tile that the gemm cannot take.
    pub fn set(&mut self, layer: &Layer, rows: usize, tile: Tile) -> Result<(), String> {
        if !BUCKETS.contains(&rows) {
            return Err(format!("tiles are chosen for {BUCKETS:?} rows, not for {rows}"));
        }
        if !choose::candidates(layer.k, layer.weights).contains(&tile) {
            return Err(format!("this gemm cannot take `{tile}`"));
        }
        self.tiles.entry(layer.to_string()).or_default().insert(rows, tile);
        Ok(())
    }

    /// Whether anything is known of a gemm.
    pub fn knows(&self, layer: &Layer) -> bool {
        self.tiles.contains_key(&layer.to_string())
    }

    /// The tiles of a gemm, each with the rows up to which it is taken.
    pub(super) fn tiles(&self, layer: &Layer) -> Vec<(i64, Tile)> {
        let measured = self.tiles.get(&layer.to_string());
        let mut tiles: Vec<(i64, Tile)> = Vec::new();
        for rows in BUCKETS {
            let own = measured.and_then(|measured| measured.get(&rows).copied());
            let Some(tile) = own.or_else(|| Some(layer.ranked(rows).first()?.0)) else { continue };
            match tiles.last_mut() {
                Some((max_rows, same)) if *same == tile => *max_rows = rows as i64,
                _ => tiles.push((rows as i64, tile)),
            }
        }
        if let Some((max_rows, _)) = tiles.last_mut() {
            *max_rows = i64::from(i32::MAX);
        }
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = [
        "weights=w8a8; k=640; n=576; epilogue=add(arg0, arg1); extras=element; output=f32",
        "weights=bf16; k=576; n=49152; epilogue=arg0; extras=; output=f32",
        "weights=w4a8; k=640; n=3328; epilogue=add(arg0, arg1); extras=column; output=u8; \
         pair=mul(silu(arg0), arg1)",
    ];

    #[test]
    fn a_gemm_is_read_as_it_is_written() {
        for text in TEXTS {
            let layer: Layer = text.parse().expect("a gemm");
            assert_eq!(layer.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused_and_named() {
        for (text, named) in [
            ("", "weights="),
            ("weights=w9a9; k=1", "`w9a9`"),
            ("weights=w8a8; n=1", "`k=`"),
            ("weights=w8a8; k=0; n=1", "`0`"),
            ("weights=w8a8; k=-1; n=1", "`-1`"),
            ("weights=w8a8; k=99999999999999999999; n=1", "no size"),
            ("weights=w8a8; k=64; n=64; epilogue=run(arg0); extras=; output=f32", "`run`"),
            ("weights=w8a8; k=64; n=64; epilogue=arg0; extras=row; output=f32", "`row`"),
            ("weights=w8a8; k=64; n=64; epilogue=arg0; extras=; output=f64", "`f64`"),
            ("weights=w8a8; k=64; n=64; epilogue=arg0; extras=; output=u8; pair=x", "expression"),
        ] {
            let fault = text.parse::<Layer>().expect_err(text);
            assert!(fault.contains(named), "{text}: {fault}");
        }
    }

    #[test]
    fn measured_tiles_stand_before_the_model() {
        let layer: Layer = TEXTS[0].parse().expect("a gemm");
        let model = Tuning::default().tiles(&layer);
        let tile = |name: &str| name.parse::<Tile>().expect("a tile");
        let mut tuning = Tuning::default();
        tuning.set(&layer, 16, tile("128x64_k4")).expect("fits");
        tuning.set(&layer, 4096, tile("128x16_k2")).expect("fits");
        let tiles = tuning.tiles(&layer);
        assert_eq!(tiles.first(), Some(&(16, tile("128x64_k4"))));
        assert_eq!(tiles.last(), Some(&(i64::from(i32::MAX), tile("128x16_k2"))));
        let between = |tiles: &[(i64, Tile)]| tiles.iter().find(|(m, _)| *m >= 512).map(|t| t.1);
        assert_eq!(between(&tiles), between(&model));
        assert!(tuning.knows(&layer) && !tuning.knows(&TEXTS[1].parse().expect("a gemm")));
        assert!(tuning.set(&layer, 17, tile("128x16_k2")).unwrap_err().contains("not for 17"));
        assert!(tuning.set(&layer, 16, tile("128x16_k8")).unwrap_err().contains("k8"));
        let halves = TEXTS[1].parse().expect("a gemm");
        assert!(tuning.set(&halves, 16, tile("128x16_k2")).is_err());
    }
}
