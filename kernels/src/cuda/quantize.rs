//! Instances of `quantize.cuh`: norm, activation or gate, then codes with their digits.

use super::gemm::Activation;
use std::fmt;

/// Element of the floats that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// float.
    F32,
}

/// What a row goes through before it is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Nothing.
    None,
    /// Mean and variance, gamma and beta.
    Layer,
    /// Root of the mean square, gamma.
    Rms,
}

/// What the second input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Combine {
    /// There is none.
    None,
    /// A residual, added.
    Add,
    /// A factor, after the activation: `act(gate) * up`.
    Multiply,
}

/// Codes of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Codes {
    /// Width of a code: 8 or 4.
    pub bits: u32,
    /// Codes from `-max` to `max` if true, from 0 to `max` otherwise.
    pub signed: bool,
    /// Two codes of four bits a byte, the earlier in the low half; a code a byte otherwise.
    pub packed: bool,
}

impl Codes {
    /// The largest code.
    pub fn max(self) -> i32 {
        fqc_ir::quant::q_max(self.bits as u8, self.signed)
    }
}

/// One instance. Row width, pitch and tail are run-time numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantizeConfig {
    /// Threads of a block; a block has one row at a time.
    pub threads: u32,
    /// Chunks of eight columns that a thread has: rows are at most `threads * chunks * 8` wide.
    pub chunks: u32,
    /// Element of `x`, `other`, `sum` and `normal`.
    pub element: Element,
    /// Normalisation.
    pub norm: Norm,
    /// Second input.
    pub combine: Combine,
    /// Activation of `x`, before the second input.
    pub activation: Activation,
    /// Whether `x + other` is written as well.
    pub sum: bool,
    /// Whether the normalised row is written as well.
    pub float: bool,
    /// Whether there is a tail.
    pub tail: bool,
    /// The codes.
    pub codes: Codes,
}

/// The widest row of any instance.
pub const MAX_WIDTH: usize = 32_768;

/// The widest row with a tail: its wide codes, two bytes each, lie in shared memory.
pub const MAX_TAIL_WIDTH: usize = 24_320;

impl QuantizeConfig {
    /// The same with threads and chunks for rows of `width`: sixteen columns a thread, and more
    /// threads or more columns where that is too few or too many threads.
    pub fn for_width(self, width: usize) -> Self {
        let chunks = if width <= 1024 {
            1
        } else if width <= 16_384 {
            2
        } else {
            4
        };
        let threads = width.div_ceil(8 * chunks).next_multiple_of(32) as u32;
        Self { threads, chunks: chunks as u32, ..self }
    }

    /// What is wrong with the instance, if anything is.
    pub fn fault(&self) -> Option<String> {
        if !(32..=1024).contains(&self.threads) || !self.threads.is_multiple_of(32) {
            return Some(format!("{} threads", self.threads));
        }
        if !(1..=4).contains(&self.chunks) {
            return Some(format!("{} chunks a thread", self.chunks));
        }
        let width = (self.threads * self.chunks * 8) as usize;
        if self.tail && width > MAX_TAIL_WIDTH {
            return Some(format!("a tail of rows of {width}, at most {MAX_TAIL_WIDTH}"));
        }
        if !matches!(self.codes.bits, 4 | 8) || self.codes.packed && self.codes.bits != 4 {
            return Some(format!(
                "codes of {} bits, packed {}",
                self.codes.bits, self.codes.packed
            ));
        }
        if self.sum && self.combine != Combine::Add {
            return Some("a sum of one input".into());
        }
        if self.float && self.norm == Norm::None {
            return Some("a normalised result without a norm".into());
        }
        None
    }

    /// The lines that specialise the source.
    pub fn source(&self) -> String {
        let Self { threads, chunks, element, norm, combine, activation, sum, float, tail, codes } =
            *self;
        let Codes { signed, packed, .. } = codes;
        format!(
            "#include \"quantize.cuh\"

struct Config {{
    static constexpr int kThreads = {threads};
    static constexpr int kChunks = {chunks};
    static constexpr Element kElement = Element::k{element:?};
    static constexpr Norm kNorm = Norm::k{norm:?};
    static constexpr Combine kCombine = Combine::k{combine:?};
    static constexpr Activation kActivation = Activation::k{activation:?};
    static constexpr bool kSum = {sum};
    static constexpr bool kFloat = {float};
    static constexpr bool kTail = {tail};
    static constexpr int kMax = {max};
    static constexpr bool kSigned = {signed};
    static constexpr bool kPacked = {packed};
}};

extern \"C\" __global__ void __launch_bounds__({threads})
{self}(const __grid_constant__ QuantizeArguments arguments) {{
    Quantize<Config>::run(arguments);
}}
",
            max = codes.max(),
        )
    }
}

/// The kernel's name.
impl fmt::Display for QuantizeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Codes { bits, signed, packed } = self.codes;
        write!(f, "quantize_{:?}_{:?}", self.norm, self.element)?;
        if self.combine != Combine::None {
            write!(f, "_{:?}", self.combine)?;
        }
        if self.activation != Activation::None {
            write!(f, "_{:?}", self.activation)?;
        }
        for (set, name) in
            [(self.sum, "_sum"), (self.float, "_float"), (self.tail, "_tail"), (packed, "_packed")]
        {
            f.write_str(if set { name } else { "" })?;
        }
        let sign = if signed { 's' } else { 'u' };
        write!(f, "_{sign}{bits}_{}x{}", self.threads, self.chunks)
    }
}

/// An entry of the tail that stands for zero.
pub const ZERO: u32 = 0xffff_0000;

/// The tail as the kernel reads it, for the columns from `width` to `padded`: source column and,
/// sixteen bits higher, what lower digits hold, `(digit - 1) * max`.
///
/// # Errors
/// What does not fit: columns from 2^16 on, digits above the 16 bits of a wide code.
pub fn pack_tail(
    tail: &[(u32, u16)],
    width: usize,
    padded: usize,
    codes: Codes,
) -> Result<Vec<u32>, String> {
    let max = codes.max() as u32;
    let entry = |&(source, digit): &(u32, u16)| {
        let digit = u32::from(digit);
        // The digit ends at `digit * max`; wide codes are cut at 2^15 - 1.
        if source >= 1 << 16 || digit == 0 || digit * max > i16::MAX as u32 {
            return Err(format!("digit {digit} of column {source}: beyond 16 bits"));
        }
        Ok(source | ((digit - 1) * max) << 16)
    };
    let mut entries = tail.iter().map(entry).collect::<Result<Vec<u32>, String>>()?;
    if width + entries.len() > padded || !padded.is_multiple_of(16) || !width.is_multiple_of(8) {
        return Err(format!("{width} columns and {} digits in {padded}", entries.len()));
    }
    entries.resize(padded - width, ZERO);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORM: QuantizeConfig = QuantizeConfig {
        threads: 256,
        chunks: 2,
        element: Element::F16,
        norm: Norm::Rms,
        combine: Combine::Add,
        activation: Activation::None,
        sum: true,
        float: false,
        tail: true,
        codes: Codes { bits: 8, signed: true, packed: false },
    };

    #[test]
    fn an_instance_prints_its_name_and_its_configuration() {
        insta::assert_snapshot!(NORM.source());
    }

    #[test]
    fn a_block_is_as_wide_as_its_row() {
        for width in [8, 384, 768, 4096, 5120, 9216, 16_384, 28_672, MAX_WIDTH] {
            let config = QuantizeConfig { tail: width < 20_000, ..NORM }.for_width(width);
            assert_eq!(config.fault(), None, "{width}");
            assert!((config.threads * config.chunks * 8) as usize >= width, "{width}");
        }
        assert_eq!(NORM.for_width(4096), NORM);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let fault = |config: QuantizeConfig| config.fault().unwrap_or_default();
        assert!(fault(NORM.for_width(28_672)).contains("at most 24320"));
        assert!(fault(QuantizeConfig { threads: 48, ..NORM }).contains("48 threads"));
        assert!(fault(QuantizeConfig { combine: Combine::None, ..NORM }).contains("a sum"));
        assert!(fault(QuantizeConfig { float: true, norm: Norm::None, ..NORM }).contains("norm"));
    }

    #[test]
    fn a_tail_names_source_and_what_lies_below() {
        let codes = NORM.codes;
        let tail = pack_tail(&[(3, 2), (3, 3), (700, 2)], 768, 784, codes).expect("a tail");
        assert_eq!(tail[..4], [3 | 127 << 16, 3 | 254 << 16, 700 | 127 << 16, ZERO]);
        assert_eq!(tail.len(), 16);
        assert!(pack_tail(&[(3, 300)], 768, 784, codes).is_err());
        assert!(pack_tail(&[(3, 2); 20], 768, 784, codes).is_err());
    }
}
