//! Packed weights of the Hopper kernels: blocks of 64 channels by 128 codes of K, each contiguous,
//! `[ceil(N / 64)][ceil(K / 128)]` of them. Channels past N and codes past K are zero.
//!
//! Inside a block, row `16 w + 8 h + r` (the row of the matrix instruction) is channel
//! `16 w + 2 r + h`: the two rows that a thread owns are then neighbouring channels.

/// Channels of one block.
pub const BLOCK_CHANNELS: usize = 64;

/// Codes of K of one block.
pub const BLOCK_K: usize = 128;

/// How many blocks lie along K.
pub fn k_blocks(k: usize) -> usize {
    k.div_ceil(BLOCK_K)
}

/// Bytes of one block.
pub fn block_bytes(int4: bool) -> usize {
    BLOCK_CHANNELS * BLOCK_K / if int4 { 2 } else { 1 }
}

/// Bytes of a packed `[n, k]` weight.
pub fn packed_bytes(n: usize, k: usize, int4: bool) -> usize {
    n.div_ceil(BLOCK_CHANNELS) * k_blocks(k) * block_bytes(int4)
}

/// The channel of a block that is row `row` of the matrix instruction.
pub fn channel_of_row(row: usize) -> usize {
    row / 16 * 16 + row % 8 * 2 + row / 8 % 2
}

/// Packs a row-major `[n, k]` weight of INT8 codes: rows of 128 bytes whose eight 16-byte pieces
/// are swizzled by the row, which is how wgmma wants an operand in shared memory.
pub fn pack_int8(w: &[i8], n: usize, k: usize) -> Vec<u8> {
    pack(w, n, k, false, |block, row, column, code| {
        let piece = (column / 16) ^ (row % 8);
        block[row * BLOCK_K + piece * 16 + column % 16] = code as u8;
    })
}

/// Packs a row-major `[n, k]` weight of INT4 codes, -8..=7: a byte holds the codes of one k of
/// channels `2 r` (low half) and `2 r + 1`; a thread's words are in the order in which it
/// unpacks them.
pub fn pack_int4(w: &[i8], n: usize, k: usize) -> Vec<u8> {
    pack(w, n, k, true, |block, row, column, code| {
        let (warp, high, r) = (row / 16, row / 8 % 2, row % 8);
        let (step, within) = (column / 32, column % 32);
        let (word, q, byte) = (within / 16, within % 16 / 4, within % 4);
        let thread = warp * 32 + r * 4 + q;
        let at = (step / 2 * 128 + thread) * 16 + (step % 2 * 2 + word) * 4 + byte;
        block[at] |= (code as u8 & 0xf) << (4 * high);
    })
}

/// Codes of K that share a factor.
pub const GROUP: usize = 64;

/// Bytes of one block of INT4 codes with their factors.
pub const GROUPED_BLOCK_BYTES: usize = BLOCK_CHANNELS * BLOCK_K / 2 + BLOCK_CHANNELS * 2;

/// The largest factor: with codes from -7 to 7, products stay within a byte.
pub const MAX_FACTOR: u8 = 18;

/// Packs a row-major `[n, k]` weight of INT4 codes, -7..=7, with the factors
/// `[n, ceil(k / 64)]`, 0..=18: as [`pack_int4`] with 8 added to each code, and after each block of
/// codes a byte for each channel pair's factors in its two groups. A factor for each 128 codes is
/// given twice.
pub fn pack_int4_grouped(codes: &[i8], factors: &[u8], n: usize, k: usize) -> Vec<u8> {
    let groups = k.div_ceil(GROUP);
    assert_eq!(factors.len(), n * groups, "row-major [{n}, {groups}] factors");
    assert!(factors.iter().all(|&factor| factor <= MAX_FACTOR), "factors up to {MAX_FACTOR}");
    let plain = pack_int4(codes, n, k);
    let mut packed = Vec::with_capacity(plain.len() / block_bytes(true) * GROUPED_BLOCK_BYTES);
    for (index, block) in plain.chunks_exact(block_bytes(true)).enumerate() {
        packed.extend(block.iter().map(|byte| byte ^ 0x88));
        let (first, group) = (index / k_blocks(k) * BLOCK_CHANNELS, index % k_blocks(k) * 2);
        for pair in (first..first + BLOCK_CHANNELS).step_by(2) {
            for (channel, group) in
                [(pair, group), (pair + 1, group), (pair, group + 1), (pair + 1, group + 1)]
            {
                let inside = channel < n && group < groups;
                packed.push(if inside { factors[channel * groups + group] } else { 0 });
            }
        }
    }
    packed
}

/// Packs a row-major `[n, k]` weight of INT4 codes, `k` even, for the native instruction: as
/// [`pack_int8`] packs bytes of two codes, the earlier in the low half. A block has 256 codes of K.
pub fn pack_native4(w: &[i8], n: usize, k: usize) -> Vec<u8> {
    pack_int8(&pack_pairs(w), n, k / 2)
}

/// Packs a row-major `[n, k]` weight of halves of either kind, given as their bits: as
/// [`pack_int8`] packs their bytes. A block has 64 halves of K.
pub fn pack_halves(w: &[u16], n: usize, k: usize) -> Vec<u8> {
    let bytes: Vec<i8> = w.iter().flat_map(|half| half.to_le_bytes()).map(|b| b as i8).collect();
    pack_int8(&bytes, n, k * 2)
}

/// Two codes of four bits a byte, the earlier in the low half.
fn pack_pairs(codes: &[i8]) -> Vec<i8> {
    codes.chunks_exact(2).map(|pair| pair[0] & 0xf | pair[1] << 4).collect()
}

fn pack(
    w: &[i8],
    n: usize,
    k: usize,
    int4: bool,
    place: impl Fn(&mut [u8], usize, usize, i8),
) -> Vec<u8> {
    assert_eq!(w.len(), n * k, "a row-major [{n}, {k}] weight");
    let mut packed = vec![0; packed_bytes(n, k, int4)];
    for (index, block) in packed.chunks_exact_mut(block_bytes(int4)).enumerate() {
        let first_channel = index / k_blocks(k) * BLOCK_CHANNELS;
        let first_k = index % k_blocks(k) * BLOCK_K;
        for row in 0..BLOCK_CHANNELS {
            let channel = first_channel + channel_of_row(row);
            if channel < n {
                let codes = &w[channel * k + first_k..channel * k + k.min(first_k + BLOCK_K)];
                for (column, &code) in codes.iter().enumerate() {
                    place(block, row, column, code);
                }
            }
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_instruction_are_all_channels_of_a_block() {
        let mut channels: Vec<usize> = (0..BLOCK_CHANNELS).map(channel_of_row).collect();
        assert_eq!(channels[..4], [0, 2, 4, 6]);
        assert_eq!(channels[8..10], [1, 3]);
        channels.sort_unstable();
        assert!(channels.into_iter().eq(0..BLOCK_CHANNELS));
    }

    #[test]
    fn every_int8_code_has_one_place() {
        let (n, k) = (72, 130);
        let w: Vec<i8> = (0..n * k).map(|i| (i % 127 + 1) as i8).collect();
        let packed = pack_int8(&w, n, k);
        assert_eq!(packed.len(), 2 * 2 * 8192);
        assert_eq!(packed.iter().filter(|&&byte| byte != 0).count(), n * k);
        // Row 1 is channel 2; its first piece is swizzled to the second place.
        assert_eq!(packed[128 + 16], w[2 * k] as u8);
        // Code 128 of channel 1 (row 8) opens the second block.
        assert_eq!(packed[8192 + 8 * 128], w[k + 128] as u8);
    }

    #[test]
    fn a_byte_of_int4_holds_neighbouring_channels() {
        let (n, k) = (64, 128);
        let w: Vec<i8> = (0..n * k).map(|i| ((i / k * 3 + i % k) % 15) as i8 - 7).collect();
        let packed = pack_int4(&w, n, k);
        assert_eq!(packed.len(), 4096);
        let code = |channel: usize, column: usize| w[channel * k + column] as u8 & 0xf;
        assert_eq!(packed[0], code(0, 0) | code(1, 0) << 4);
        assert_eq!(packed[1], code(0, 1) | code(1, 1) << 4);
        // Thread 1 starts at column 4, thread 4 at channel 2, word 1 at column 16.
        assert_eq!(packed[16], code(0, 4) | code(1, 4) << 4);
        assert_eq!(packed[64], code(2, 0) | code(3, 0) << 4);
        assert_eq!(packed[4], code(0, 16) | code(1, 16) << 4);
        // Step 2 of K is the second half.
        assert_eq!(packed[2048], code(0, 64) | code(1, 64) << 4);
    }

    #[test]
    fn factors_follow_the_codes_of_their_block() {
        let (n, k) = (66, 200);
        let codes = vec![-7i8; n * k];
        let factors: Vec<u8> = (0..n * 4).map(|i| (i % 19) as u8).collect();
        let packed = pack_int4_grouped(&codes, &factors, n, k);
        assert_eq!(packed.len(), 4 * GROUPED_BLOCK_BYTES);
        assert_eq!(packed[0], 0x11);
        // Channels 2 and 3 in groups 0 and 1, then (second block) in groups 2 and 3.
        assert_eq!(packed[4096 + 4..4096 + 8], [8, 12, 9, 13]);
        let second = GROUPED_BLOCK_BYTES + 4096;
        assert_eq!(packed[second + 4..second + 8], [10, 14, 11, 15]);
    }
}
