//! `TensorProto` to constants: every element type of the IR, from raw bytes, typed fields or external
//! data. Exactly one source, of exactly the right length.

use crate::error::{Fault, Res};
use crate::external::External;
use crate::limits;
use fqc_ir::{Bytes, Const, Elem};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataLocation;

/// The IR's element type for an ONNX data type.
pub(crate) fn elem(data_type: i32) -> Res<Elem> {
    Ok(match data_type {
        1 => Elem::F32,
        2 => Elem::U8,
        3 => Elem::I8,
        4 => Elem::U16,
        5 => Elem::I16,
        6 => Elem::I32,
        7 => Elem::I64,
        9 => Elem::Bool,
        10 => Elem::F16,
        11 => Elem::F64,
        12 => Elem::U32,
        13 => Elem::U64,
        16 => Elem::BF16,
        21 => Elem::U4,
        22 => Elem::I4,
        other => {
            let name = data_type_name(other);
            return Err(Fault::unsupported(format!("element type {name} is not supported"))
                .help("supported are bool, integers of 4 to 64 bits, f16, bf16, f32 and f64"));
        }
    })
}

fn data_type_name(data_type: i32) -> String {
    let name = match data_type {
        8 => "string",
        14 => "complex64",
        15 => "complex128",
        17 => "float8e4m3fn",
        18 => "float8e4m3fnuz",
        19 => "float8e5m2",
        20 => "float8e5m2fnuz",
        23 => "float4e2m1",
        24 => "float8e8m0",
        25 => "uint2",
        26 => "int2",
        other => return format!("{other}"),
    };
    format!("`{name}`")
}

/// The constant that a tensor holds; inline bytes are moved out of the message.
pub(crate) fn take(tensor: &mut TensorProto, external: &mut External) -> Res<Const> {
    let elem = elem(tensor.data_type)?;
    let shape = sizes(&tensor.dims)?;
    let count: usize = shape.iter().product();
    let need = elem.bytes(count);
    if tensor.segment.is_some() {
        return Err(Fault::unsupported("tensors in segments are not supported"));
    }
    let sources = sources(tensor);
    let bytes: Bytes = match sources.as_slice() {
        [] => Vec::new().into(),
        [Source::External] => external.read(tensor, need)?,
        [Source::Raw] => std::mem::take(&mut tensor.raw_data).into(),
        [Source::Field(name)] => typed(tensor, elem, count, name)?.into(),
        several => {
            let names: Vec<&str> = several.iter().map(Source::name).collect();
            return Err(Fault::invalid(format!("data in {}", names.join(" and "))));
        }
    };
    let got = bytes.as_slice().len();
    if elem == Elem::Bool && bytes.as_slice().iter().any(|&b| b > 1) {
        return Err(Fault::invalid("a bool that is neither 0 nor 1"));
    }
    Const::new(elem, shape, bytes)
        .ok_or_else(|| Fault::invalid(format!("{got} bytes of data, the shape needs {need}")))
}

/// Like [`take`], for a tensor that must stay as it is: an attribute's.
pub(crate) fn copy(tensor: &TensorProto, external: &mut External) -> Res<Const> {
    take(&mut tensor.clone(), external)
}

/// Sizes within the limits, whose product does not overflow.
fn sizes(dims: &[i64]) -> Res<Vec<usize>> {
    if dims.len() > limits::RANK {
        return Err(Fault::limit(format!("{} axes, the limit is {}", dims.len(), limits::RANK)));
    }
    if let Some(d) = dims.iter().find(|&&d| d < 0) {
        return Err(Fault::invalid(format!("a size of {d} in shape {dims:?}")));
    }
    let count = dims.iter().try_fold(1i64, |n, &d| n.checked_mul(d));
    if dims.iter().any(|&d| d > limits::DIM) || count.is_none_or(|n| n > limits::ELEMENTS) {
        return Err(Fault::limit(format!("shape {dims:?} has too many elements")));
    }
    Ok(dims.iter().map(|&d| d as usize).collect())
}

/// Where a tensor's data may be.
enum Source {
    External,
    Raw,
    Field(&'static str),
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Source::External => "external files",
            Source::Raw => "`raw_data`",
            Source::Field(name) => name,
        }
    }
}

/// Every place where the tensor has data.
fn sources(t: &TensorProto) -> Vec<Source> {
    let is_external = t.data_location == Some(DataLocation::External as i32);
    [
        (Source::External, is_external),
        (Source::Raw, !t.raw_data.is_empty()),
        (Source::Field("`float_data`"), !t.float_data.is_empty()),
        (Source::Field("`int32_data`"), !t.int32_data.is_empty()),
        (Source::Field("`int64_data`"), !t.int64_data.is_empty()),
        (Source::Field("`double_data`"), !t.double_data.is_empty()),
        (Source::Field("`uint64_data`"), !t.uint64_data.is_empty()),
        (Source::Field("`string_data`"), !t.string_data.is_empty()),
    ]
    .into_iter()
    .filter_map(|(source, used)| used.then_some(source))
    .collect()
}

/// The bytes of a typed field, which must be the one that the standard names for the element type.
fn typed(t: &TensorProto, elem: Elem, count: usize, field: &str) -> Res<Vec<u8>> {
    let words = |range: std::ops::RangeInclusive<i64>, width: usize| {
        let mut out = Vec::with_capacity(t.int32_data.len() * width);
        for &v in &t.int32_data {
            if !range.contains(&i64::from(v)) {
                return Err(Fault::invalid(format!("value {v} does not fit `{elem}`")));
            }
            out.extend_from_slice(&v.to_le_bytes()[..width]);
        }
        Ok(out)
    };
    let wrong = || Fault::invalid(format!("data of type `{elem}` in {field}"));
    let expected = match elem {
        Elem::F32 => "`float_data`",
        Elem::F64 => "`double_data`",
        Elem::I64 => "`int64_data`",
        Elem::U32 | Elem::U64 => "`uint64_data`",
        _ => "`int32_data`",
    };
    if field != expected {
        return Err(wrong());
    }
    match elem {
        Elem::F32 => Ok(t.float_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Elem::F64 => Ok(t.double_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Elem::I64 => Ok(t.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Elem::U64 => Ok(t.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Elem::U32 => {
            let narrow = |&v| u32::try_from(v).map(u32::to_le_bytes);
            let all: Result<Vec<_>, _> = t.uint64_data.iter().map(narrow).collect();
            let all = all.map_err(|_| Fault::invalid("a value does not fit `u32`"))?;
            Ok(all.concat())
        }
        Elem::I32 => words(i64::from(i32::MIN)..=i64::from(i32::MAX), 4),
        Elem::I16 => words(-32768..=32767, 2),
        Elem::U16 | Elem::F16 | Elem::BF16 => words(0..=65535, 2),
        Elem::I8 => words(-128..=127, 1),
        Elem::U8 | Elem::Bool => words(0..=255, 1),
        // One entry holds a whole byte, that is, two elements.
        Elem::I4 | Elem::U4 => {
            let bytes = words(-128..=255, 1)?;
            if bytes.len() == count.div_ceil(2) { Ok(bytes) } else { Err(wrong()) }
        }
    }
}
