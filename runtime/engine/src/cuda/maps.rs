//! Tensor maps: how a kernel's bulk copies see an operand in memory.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUtensorMap, CUtensorMapDataType, CUtensorMapSwizzle};

use super::driver::failed;
use crate::error::Result;

/// Bytes of a row of a box, all of which are swizzled; strides are multiples of 16 bytes.
const SPAN: u32 = 128;

/// The words of a `CUtensorMap`.
pub(crate) type Map = [u64; 16];

/// A row-major matrix of bytes in boxes of 128 bytes of `rows` rows; what lies outside reads as zero.
pub(crate) fn of_matrix(address: u64, size: [u64; 2], pitch: u64, rows: u32) -> Result<Map> {
    let kind = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8;
    tensor_map(kind, address, &size, &[pitch], &[SPAN, rows])
}

/// The rows of all heads, halves: `size` is the width of a head, rows, heads, batches, and `pitches` are the
/// bytes from one row, head and batch to the next. Boxes are of 64 halves of `rows` rows; what lies outside
/// reads as zero.
pub(crate) fn of_heads(address: u64, size: [u64; 4], pitches: [u64; 3], rows: u32) -> Result<Map> {
    let kind = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16;
    tensor_map(kind, address, &size, &pitches, &[SPAN / 2, rows, 1, 1])
}

fn tensor_map(
    kind: CUtensorMapDataType,
    address: u64,
    size: &[u64],
    pitches: &[u64],
    span: &[u32],
) -> Result<Map> {
    // SAFETY: a tensor map is plain bytes.
    let mut map: CUtensorMap = unsafe { std::mem::zeroed() };
    let steps = [1u32; 4];
    // SAFETY: every pointer is to live values of the stated rank.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            kind,
            size.len() as u32,
            address as *mut c_void,
            size.as_ptr(),
            pitches.as_ptr(),
            span.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result().map_err(failed("describing an operand to the GPU"))?;
    // SAFETY: the map is 128 bytes of plain data.
    Ok(unsafe { ptr::read_unaligned((&raw const map).cast::<Map>()) })
}
