//! `fqc memory`: what weights take against FP16, and the share of linear-layer work in INT4: of a
//! compiled file, or by the same arithmetic of a decoder that is not at hand.

use super::{print, print_json};
use crate::exit::{Exit, Failure, file_failure};
use crate::memory::{Decoder, Memory};
use fqbin::File;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// A compiled file
    #[arg(conflicts_with = "decoder")]
    pub file: Option<PathBuf>,
    /// A decoder such as OPT instead: hidden size, feed-forward size, blocks, vocabulary, and rows of
    /// position embeddings. OPT-6.7B is 4096,16384,32,50272,2050
    #[arg(long, value_name = "D,F,L,V[,P]", value_delimiter = ',')]
    pub decoder: Option<Vec<u64>>,
    /// Share of the decoder's linear-layer work in INT4, the rest in INT8
    #[arg(long, default_value_t = 0.4829, requires = "decoder")]
    pub int4_share: f64,
    /// Extra channels of the decoder's layers, in percent
    #[arg(long, default_value_t = 8.0, requires = "decoder")]
    pub extra: f64,
    /// Bits of the decoder's embeddings; compiled files keep 16, or 32 with `--float f32`
    #[arg(long, default_value_t = 16, requires = "decoder")]
    pub table_bits: u64,
    /// Bits of its head: 0 if it shares the table of the embeddings; compiled files keep 16, 32 with
    /// `--float f32`, or 8 with `--lm-head int8`
    #[arg(long, default_value_t = 0, requires = "decoder")]
    pub head_bits: u8,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// No decoder is larger in any of its sizes.
const LARGEST: u64 = 1 << 24;

pub fn main(args: &Args) -> Result<(), Failure> {
    let memory = match (&args.decoder, &args.file) {
        (Some(sizes), _) => of_decoder(sizes, args)?,
        (None, Some(file)) => of_file(file)?,
        (None, None) => {
            return Err(Failure::usage("give a compiled file, or sizes with `--decoder`"));
        }
    };
    if args.json { print_json(&memory) } else { print(&memory.to_string()) }
}

fn of_decoder(sizes: &[u64], args: &Args) -> Result<Memory, Failure> {
    let (hidden, feed_forward, blocks, vocabulary, positions) = match *sizes {
        [d, f, l, v] => (d, f, l, v, 0),
        [d, f, l, v, p] => (d, f, l, v, p),
        _ => return Err(Failure::usage("`--decoder` has four or five sizes")),
    };
    if sizes.iter().any(|s| *s > LARGEST) {
        return Err(Failure::usage(format!("sizes of `--decoder` are at most {LARGEST}")));
    }
    let fits = (0.0..=1.0).contains(&args.int4_share) && (0.0..=400.0).contains(&args.extra);
    if !fits || args.table_bits.max(u64::from(args.head_bits)) > 64 {
        return Err(Failure::usage(
            "`--int4-share` is a share from 0 to 1, `--extra` a percentage from 0 to 400, \
             `--table-bits` and `--head-bits` at most 64",
        ));
    }
    let decoder = Decoder { hidden, feed_forward, blocks, vocabulary, positions };
    Ok(decoder.memory(args.int4_share, args.extra / 100.0, args.table_bits, args.head_bits))
}

/// What the manifest says.
fn of_file(path: &Path) -> Result<Memory, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let in_file = |e: fqbin::Error| file_failure(&e, format!("`{}`: {e}", path.display()));
    let file = File::open(&bytes).map_err(in_file)?;
    let manifest = file.manifest().map_err(in_file)?;
    let manifest: serde_json::Value = serde_json::from_slice(manifest)
        .map_err(|e| Failure::new(Exit::Model, format!("the manifest is not JSON: {e}")))?;
    serde_json::from_value(manifest["memory"].clone()).map_err(|_| {
        let path = path.display();
        Failure::new(
            Exit::Model,
            format!("`{path}` does not say what its layers take; compile it again"),
        )
    })
}
