//! Packing orders of constant gemm operands, one for all code levels of a target.
//!
//! INT8 weights lie as `[N/16][K/4][16][4]`: sixteen columns, and for each of them four
//! consecutive rows of K, are one 64-byte line. A line is a `vpdpbusd` operand, sixteen lines are
//! an AMX tile. INT4 weights lie as `[N/16][K/8][16][4][2]`, two codes a byte: the low halves of 64
//! bytes are one such line, the high halves the next. bf16 weights lie as `[N/16][K/2][16][2]`: a line
//! is a `vdpbf16ps` operand, sixteen of them an AMX tile. f32 weights lie as `[N/16][K][16]`. Columns
//! past N and rows past K hold zero, so that a kernel never looks at a tail of the weight.

use half::bf16;

/// Columns of one packed group.
pub const GROUP: usize = 16;

/// Consecutive rows of K that lie side by side in a packed INT8 weight.
pub const DOT: usize = 4;

/// Lines that share the bytes of a packed INT4 weight.
pub const HALVES: usize = 2;

/// Multiple that K of a weight of codes is padded to.
pub const K_ALIGN: usize = 64;

/// Consecutive rows of K that lie side by side in a packed bf16 weight.
pub const PAIR: usize = 2;

/// Multiple that K of a bf16 weight is padded to: the rows of a tile.
pub const BF16_K_ALIGN: usize = 32;

/// Most rows of an INT4 weight: kernels may sum sixteen times the products of its codes and of
/// bytes, and so many stay within 32 bits.
pub const I4_K_MAX: usize = 65_536;

/// Number of sixteen-column groups that `n` columns take.
pub fn groups(n: usize) -> usize {
    n.div_ceil(GROUP)
}

/// Length in elements of a packed weight of `k` rows and `n` columns.
pub fn packed_len(k: usize, n: usize) -> usize {
    groups(n) * k * GROUP
}

/// Packs a row-major `[k, n]` INT8 weight; the result has `k_padded` rows.
pub fn pack_i8(w: &[i8], k: usize, n: usize, k_padded: usize) -> Vec<i8> {
    assert_eq!(w.len(), k * n, "a row-major [{k}, {n}] weight");
    assert!(k <= k_padded && k_padded.is_multiple_of(K_ALIGN), "{k} rows padded to {k_padded}");
    let mut packed = vec![0; packed_len(k_padded, n)];
    for (row, line) in w.chunks_exact(n.max(1)).enumerate() {
        for (column, &code) in line.iter().enumerate() {
            packed[i8_index(row, column, k_padded)] = code;
        }
    }
    packed
}

/// Where the code of a row and a column lies in a packed INT8 weight of `k_padded` rows.
pub fn i8_index(row: usize, column: usize, k_padded: usize) -> usize {
    let (group, lane) = (column / GROUP, column % GROUP);
    ((group * (k_padded / DOT) + row / DOT) * GROUP + lane) * DOT + row % DOT
}

/// Packs a row-major `[k, n]` weight of codes from -8 to 7, two a byte, the even element of the
/// packed order in the low half; the result has `k_padded` rows.
pub fn pack_i4(w: &[i8], k: usize, n: usize, k_padded: usize) -> Vec<u8> {
    assert_eq!(w.len(), k * n, "a row-major [{k}, {n}] weight");
    assert!(k <= k_padded && k_padded.is_multiple_of(K_ALIGN), "{k} rows padded to {k_padded}");
    let mut packed = vec![0; packed_len(k_padded, n) / 2];
    for (row, line) in w.chunks_exact(n.max(1)).enumerate() {
        for (column, &code) in line.iter().enumerate() {
            assert!((-8..8).contains(&code), "{code} has more than four bits");
            let at = i4_index(row, column, k_padded);
            packed[at / 2] |= (code as u8 & 15) << (4 * (at % 2));
        }
    }
    packed
}

/// Where the code of a row and a column lies in a packed INT4 weight of `k_padded` rows.
pub fn i4_index(row: usize, column: usize, k_padded: usize) -> usize {
    let (line, byte) = (row / DOT, row % DOT);
    let pair = i8_index(line / HALVES * DOT + byte, column, k_padded / HALVES);
    pair * HALVES + line % HALVES
}

/// Packs a row-major `[k, n]` f32 weight as bf16, each value rounded to the nearest, half to even;
/// the result has `k` rows rounded up to [`BF16_K_ALIGN`], little-endian.
pub fn pack_bf16(w: &[f32], k: usize, n: usize) -> Vec<u8> {
    assert_eq!(w.len(), k * n, "a row-major [{k}, {n}] weight");
    let mut packed = vec![0; packed_len(k.next_multiple_of(BF16_K_ALIGN), n) * 2];
    for (row, line) in w.chunks_exact(n.max(1)).enumerate() {
        for (column, &value) in line.iter().enumerate() {
            let at = 2 * bf16_index(row, column, k);
            packed[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        }
    }
    packed
}

/// Where the value of a row and a column lies in a packed bf16 weight of `k` rows.
pub fn bf16_index(row: usize, column: usize, k: usize) -> usize {
    let pairs = k.next_multiple_of(BF16_K_ALIGN) / PAIR;
    let (group, lane) = (column / GROUP, column % GROUP);
    ((group * pairs + row / PAIR) * GROUP + lane) * PAIR + row % PAIR
}

/// Packs a row-major `[k, n]` f32 weight.
pub fn pack_f32(w: &[f32], k: usize, n: usize) -> Vec<f32> {
    assert_eq!(w.len(), k * n, "a row-major [{k}, {n}] weight");
    let mut packed = vec![0.0; packed_len(k, n)];
    for (row, line) in w.chunks_exact(n.max(1)).enumerate() {
        for (column, &value) in line.iter().enumerate() {
            packed[f32_index(row, column, k)] = value;
        }
    }
    packed
}

/// Where the value of a row and a column lies in a packed f32 weight of `k` rows.
pub fn f32_index(row: usize, column: usize, k: usize) -> usize {
    ((column / GROUP) * k + row) * GROUP + column % GROUP
}

/// First accumulator value of each column: it takes back the 128 that signed activation codes
/// carry as bytes. Unsigned codes start from zero.
pub fn accumulator_start(w: &[i8], k: usize, n: usize, signed: bool) -> Vec<i32> {
    assert_eq!(w.len(), k * n, "a row-major [{k}, {n}] weight");
    let mut start = vec![0; groups(n) * GROUP];
    if signed {
        for line in w.chunks_exact(n.max(1)) {
            for (first, &code) in start.iter_mut().zip(line) {
                *first -= 128 * i32::from(code);
            }
        }
    }
    start
}

/// A per-column table padded with zeros to whole groups.
pub fn pad_columns(table: &[f32]) -> Vec<f32> {
    let mut padded = table.to_vec();
    padded.resize(groups(table.len()) * GROUP, 0.0);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_four_rows_of_sixteen_columns() {
        let (k, n) = (5, 18);
        let w: Vec<i8> = (0..k * n).map(|i| i as i8).collect();
        let packed = pack_i8(&w, k, n, 64);
        assert_eq!(packed.len(), 2 * 64 * 16);
        assert_eq!(packed[..8], [0, 18, 36, 54, 1, 19, 37, 55]);
        assert_eq!(packed[64..68], [72, 0, 0, 0]);
        assert_eq!(packed[1024..1028], [16, 34, 52, 70]);
        assert_eq!(packed[1024 + 8..1024 + 64], [0; 56]);
    }

    #[test]
    fn the_halves_of_a_packed_i4_line_are_two_lines_of_i8() {
        let (k, n) = (75, 35);
        let w: Vec<i8> = (0..k * n).map(|i| (i * i % 16) as i8 - 8).collect();
        let (bytes, halves) = (pack_i8(&w, k, n, 128), pack_i4(&w, k, n, 128));
        assert_eq!(bytes.len(), 2 * halves.len());
        for (pair, line) in halves.chunks_exact(64).enumerate() {
            for (at, &byte) in line.iter().enumerate() {
                assert_eq!(((byte as i8) << 4) >> 4, bytes[128 * pair + at]);
                assert_eq!((byte as i8) >> 4, bytes[128 * pair + 64 + at]);
            }
        }
    }

    #[test]
    fn every_element_of_a_packed_f32_weight_is_where_the_index_says() {
        let (k, n) = (3, 17);
        let w: Vec<f32> = (1..=k * n).map(|i| i as f32).collect();
        let packed = pack_f32(&w, k, n);
        for row in 0..k {
            for column in 0..n {
                assert_eq!(packed[f32_index(row, column, k)], w[row * n + column]);
            }
        }
        assert_eq!(packed.iter().filter(|&&value| value != 0.0).count(), k * n);
    }

    #[test]
    fn a_line_of_bf16_holds_two_rows_of_sixteen_columns_rounded_half_to_even() {
        let (k, n) = (3, 17);
        let w: Vec<f32> = (1..=k * n).map(|i| i as f32).collect();
        let packed: Vec<bf16> = pack_bf16(&w, k, n)
            .chunks_exact(2)
            .map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]]))
            .collect();
        assert_eq!(packed.len(), 2 * 32 * 16);
        assert_eq!(packed[..4].iter().map(|x| x.to_f32()).collect::<Vec<_>>(), [1., 18., 2., 19.]);
        for row in 0..k {
            for column in 0..n {
                assert_eq!(packed[bf16_index(row, column, k)].to_f32(), w[row * n + column]);
            }
        }
        assert_eq!(packed.iter().filter(|&&value| value != bf16::ZERO).count(), k * n);
        // 257 and 259 are ties.
        let ties = pack_bf16(&[257.0, 259.0], 1, 2);
        assert_eq!(ties[..2], bf16::from_f32(256.0).to_le_bytes());
        assert_eq!(ties[4..6], bf16::from_f32(260.0).to_le_bytes());
    }

    #[test]
    fn the_first_accumulator_takes_back_the_offset() {
        let w = [1, -2, 3, 127, -127, 0];
        assert_eq!(accumulator_start(&w, 3, 2, true)[..2], [128 * 123, -128 * 125]);
        assert!(accumulator_start(&w, 3, 2, false).iter().all(|&first| first == 0));
        assert_eq!(accumulator_start(&w, 3, 2, true).len(), 16);
    }
}
