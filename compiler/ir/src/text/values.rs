//! Constant data in the text: a few values in full, equal values once, the rest by the hash of their
//! bytes, looked up in a [`BlobSource`].

use super::lex::{Cursor, Result, quoted};
use crate::data::{Bytes, Const};
use crate::types::{Elem, Type};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::Arc;

/// More values than these are not written out.
const MAX_INLINE: usize = 16;
/// Bytes that a constant may get from `splat` or `rand`.
const MAX_MADE_BYTES: usize = 1 << 28;

/// Where a text that names data by its hash finds it.
pub trait BlobSource {
    fn blob(&self, hash: u64) -> Option<Bytes>;
}

/// Data by its hash.
#[derive(Clone, Debug, Default)]
pub struct Blobs {
    map: BTreeMap<u64, Bytes>,
}

impl Blobs {
    pub fn new() -> Self {
        Blobs::default()
    }

    /// Keeps the bytes and returns their hash.
    pub fn insert(&mut self, bytes: Bytes) -> u64 {
        let hash = content_hash(bytes.as_slice());
        bytes.release();
        self.map.insert(hash, bytes);
        hash
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.map.iter().map(|(&hash, bytes)| (hash, bytes))
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl BlobSource for Blobs {
    fn blob(&self, hash: u64) -> Option<Bytes> {
        self.map.get(&hash).cloned()
    }
}

/// The 64-bit hash that names bytes in a text; the same on every machine. It tells constants of one
/// model apart and does not resist an attacker.
pub fn content_hash(bytes: &[u8]) -> u64 {
    let step = |h: u64, word: u64| {
        let h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^ (h >> 32)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut h = words.iter().fold(bytes.len() as u64, |h, w| step(h, u64::from_le_bytes(*w)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    h = step(h, u64::from_le_bytes(last));
    step(h, 0)
}

/// The attributes of a constant.
pub(super) fn print(value: &Const, blobs: &mut Blobs) -> String {
    if let Some(text) = splat(value) {
        return format!("splat={text}");
    }
    if value.count() <= MAX_INLINE {
        let texts = texts(value);
        if encode(value.elem, &texts).is_ok_and(|b| b == value.bytes.as_slice()) {
            return format!("dense=[{}]", texts.join(", "));
        }
    }
    format!("blob=\"{:016x}\"", blobs.insert(value.bytes.clone()))
}

/// The one value of at least two equal ones.
fn splat(value: &Const) -> Option<String> {
    let bytes = value.bytes.as_slice();
    let size = value.elem.bits() as usize / 8;
    if size == 0 || bytes.len() < 2 * size || bytes[size..] != bytes[..bytes.len() - size] {
        return None;
    }
    let first = Const::new(value.elem, vec![], bytes[..size].to_vec())?;
    let text = texts(&first).pop()?;
    encode(value.elem, &[text.as_str()]).is_ok_and(|b| b == bytes[..size]).then_some(text)
}

fn texts(value: &Const) -> Vec<String> {
    let bytes = value.bytes.as_slice();
    if value.elem == Elem::Bool {
        return bytes.iter().map(|&v| if v == 0 { "false" } else { "true" }.to_owned()).collect();
    }
    if value.elem == Elem::U64 {
        return bytes.as_chunks().0.iter().map(|c| u64::from_le_bytes(*c).to_string()).collect();
    }
    if let Some(values) = value.to_i64() {
        return values.iter().map(i64::to_string).collect();
    }
    let pairs = bytes.as_chunks::<2>().0;
    match value.elem {
        Elem::F16 => {
            pairs.iter().map(|c| format!("{:?}", f16::from_le_bytes(*c).to_f32())).collect()
        }
        Elem::BF16 => {
            pairs.iter().map(|c| format!("{:?}", bf16::from_le_bytes(*c).to_f32())).collect()
        }
        Elem::F32 => {
            let values = bytes.as_chunks().0;
            values.iter().map(|c| format!("{:?}", f32::from_le_bytes(*c))).collect()
        }
        _ => bytes.as_chunks().0.iter().map(|c| format!("{:?}", f64::from_le_bytes(*c))).collect(),
    }
}

fn parsed<T: std::str::FromStr>(elem: Elem, text: &str) -> Result<T> {
    text.parse().map_err(|_| format!("`{text}` is not a value of {elem}"))
}

/// The bytes of values written as text.
fn encode<S: AsRef<str>>(elem: Elem, texts: &[S]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (i, text) in texts.iter().map(S::as_ref).enumerate() {
        match elem {
            Elem::Bool => out.push(u8::from(parsed::<bool>(elem, text)?)),
            Elem::I4 | Elem::U4 => {
                let range = if elem == Elem::I4 { -8..=7 } else { 0..=15 };
                let v: i8 = parsed(elem, text)?;
                if !range.contains(&v) {
                    return Err(format!("`{text}` is not a value of {elem}"));
                }
                let nibble = v as u8 & 15;
                match out.last_mut() {
                    Some(byte) if i % 2 == 1 => *byte |= nibble << 4,
                    _ => out.push(nibble),
                }
            }
            Elem::I8 => out.extend(parsed::<i8>(elem, text)?.to_le_bytes()),
            Elem::U8 => out.extend(parsed::<u8>(elem, text)?.to_le_bytes()),
            Elem::I16 => out.extend(parsed::<i16>(elem, text)?.to_le_bytes()),
            Elem::U16 => out.extend(parsed::<u16>(elem, text)?.to_le_bytes()),
            Elem::I32 => out.extend(parsed::<i32>(elem, text)?.to_le_bytes()),
            Elem::U32 => out.extend(parsed::<u32>(elem, text)?.to_le_bytes()),
            Elem::I64 => out.extend(parsed::<i64>(elem, text)?.to_le_bytes()),
            Elem::U64 => out.extend(parsed::<u64>(elem, text)?.to_le_bytes()),
            Elem::F16 => out.extend(f16::from_f32(parsed(elem, text)?).to_le_bytes()),
            Elem::BF16 => out.extend(bf16::from_f32(parsed(elem, text)?).to_le_bytes()),
            Elem::F32 => out.extend(parsed::<f32>(elem, text)?.to_le_bytes()),
            Elem::F64 => out.extend(parsed::<f64>(elem, text)?.to_le_bytes()),
        }
    }
    Ok(out)
}

/// The hash of `blob="…"` and its bytes.
fn blob(cursor: &mut Cursor, blobs: &dyn BlobSource) -> Result<Bytes> {
    let text = cursor.string()?;
    let hash = u64::from_str_radix(&text, 16).map_err(|_| format!("`{text}` is not a hash"))?;
    blobs.blob(hash).ok_or_else(|| format!("there is no blob `{text}`"))
}

/// Reads the attributes of a constant of type `ty`, without the braces.
pub(super) fn read(cursor: &mut Cursor, ty: &Type, blobs: &dyn BlobSource) -> Result<Const> {
    let shape = ty.const_shape().ok_or_else(|| format!("a constant of type {ty}"))?;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let made = || match count {
        Some(n) if n.checked_mul(8).is_some_and(|n| n <= MAX_MADE_BYTES) => Ok(n),
        _ => Err(format!("{ty} is too large to be written here")),
    };
    let elem = ty.elem;
    let key = cursor.word()?;
    cursor.expect("=")?;
    let bytes = match key {
        "blob" => blob(cursor, blobs)?,
        "dense" => encode(elem, &cursor.list(|c| c.number().map(str::to_owned))?)?.into(),
        "splat" => {
            let text = cursor.number()?;
            encode(elem, &vec![text; made()?])?.into()
        }
        "rand" => {
            let seed = cursor.parsed("a seed")?;
            cursor.expect(",")?;
            cursor.expect_word("in")?;
            cursor.expect("=")?;
            let range = cursor.list(|c| c.parsed("a number"))?;
            made()?;
            match range[..] {
                [lo, hi] if lo <= hi => {
                    return Ok(with_quant(random(elem, shape, seed, lo, hi), ty));
                }
                _ => return Err("`in` wants the lowest and the highest value".to_owned()),
            }
        }
        _ => return Err(format!("a constant has no `{key}`; use blob, dense, splat or rand")),
    };
    let got = bytes.as_slice().len();
    let value = Const::new(elem, shape, bytes)
        .ok_or_else(|| format!("the values take {got} bytes, which does not fit {ty}"))?;
    Ok(with_quant(value, ty))
}

fn with_quant(value: Const, ty: &Type) -> Const {
    Const { quant: ty.quant.clone(), ..value }
}

/// Values evenly spread over `lo..=hi`, the same for the same seed on every machine.
pub fn random(elem: Elem, shape: Vec<usize>, seed: u64, lo: f64, hi: f64) -> Const {
    let count = shape.iter().product();
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut bytes = Vec::with_capacity(elem.bytes(count));
    for i in 0..count {
        let real = lo + (hi - lo) * unit();
        let whole =
            (lo + ((hi - lo).floor() + 1.0) * ((real - lo) / (hi - lo).max(1e-300))).floor();
        let whole = whole.min(hi) as i64;
        match elem {
            Elem::Bool => bytes.push(u8::from(real * 2.0 >= lo + hi)),
            Elem::I4 | Elem::U4 if i % 2 == 1 => {
                let byte = bytes.last_mut().expect("an even element came before");
                *byte |= (whole as u8 & 15) << 4;
            }
            Elem::I4 | Elem::U4 => bytes.push(whole as u8 & 15),
            Elem::F16 => bytes.extend(f16::from_f64(real).to_le_bytes()),
            Elem::BF16 => bytes.extend(bf16::from_f64(real).to_le_bytes()),
            Elem::F32 => bytes.extend((real as f32).to_le_bytes()),
            Elem::F64 => bytes.extend(real.to_le_bytes()),
            _ => bytes.extend(&whole.to_le_bytes()[..elem.bits() as usize / 8]),
        }
    }
    Const::new(elem, shape, bytes).expect("as many values as the shape has")
}

/// Scales or multipliers: `[…]`, or `{blob="…"}` where there are many.
pub(super) fn print_floats(values: &[f32], blobs: &mut Blobs) -> String {
    let exact = values.iter().all(|v| !v.is_nan() || v.to_bits() == f32::NAN.to_bits());
    if values.len() <= MAX_INLINE && exact {
        let texts: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        return format!("[{}]", texts.join(", "));
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    format!("{{blob={}}}", quoted(&format!("{:016x}", blobs.insert(bytes.into()))))
}

pub(super) fn read_floats(cursor: &mut Cursor, blobs: &dyn BlobSource) -> Result<Arc<[f32]>> {
    if !cursor.eat("{") {
        return Ok(cursor.list(|c| c.parsed("a number"))?.into());
    }
    cursor.expect_word("blob")?;
    cursor.expect("=")?;
    let bytes = blob(cursor, blobs)?;
    cursor.expect("}")?;
    let (values, rest) = bytes.as_slice().as_chunks::<4>();
    if !rest.is_empty() {
        return Err(format!("a blob of {} bytes does not hold f32", bytes.as_slice().len()));
    }
    Ok(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
}
