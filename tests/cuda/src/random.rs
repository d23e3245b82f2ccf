//! Pseudo-random operands: on the host for checks, on the device for benchmarks.

use crate::device::{Buffer, Device, address};
use anyhow::Result;
use cudarc::driver::DeviceRepr;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Codes from `-limit` to `limit`.
    pub fn codes(&mut self, count: usize, limit: i8) -> Vec<i8> {
        let span = 2 * limit as u64 + 1;
        (0..count).map(|_| (self.next() % span) as i64 as i8 - limit).collect()
    }

    pub fn floats(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        let unit = |bits: u64| (bits % (1 << 24)) as f32 / (1 << 24) as f32;
        (0..count).map(|_| low + (high - low) * unit(self.next())).collect()
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct FillArguments {
    out: u64,
    words: u64,
    seed: u64,
    halves: u32,
}

// SAFETY: the layout is that of the kernel's parameter.
unsafe impl DeviceRepr for FillArguments {}

const SOURCE: &str = "
struct Arguments { unsigned long long out, words, seed; unsigned halves; };
extern \"C\" __global__ void fill(Arguments a) {
    unsigned long long stride = 1ull * gridDim.x * blockDim.x;
    for (unsigned long long i = 1ull * blockIdx.x * blockDim.x + threadIdx.x; i < a.words; i += stride) {
        unsigned long long z = (i + a.seed) * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        unsigned word = z >> 32;
        if (a.halves) {
            float low = (int)(word << 16) * (1.0f / 2147483648.0f), high = (int)word * (1.0f / 2147483648.0f);
            asm(\"cvt.rn.f16x2.f32 %0, %1, %2;\" : \"=r\"(word) : \"f\"(high), \"f\"(low));
        }
        ((unsigned*)a.out)[i] = word;
    }
}";

/// Fills with random bytes, or with random IEEE halves in [-1, 1).
pub fn fill(device: &Device, buffer: &Buffer, seed: u64, halves: bool) -> Result<()> {
    let kernel = device.kernel("fill", || SOURCE.to_owned(), 0)?;
    let arguments = FillArguments {
        out: address(buffer, &device.stream),
        words: buffer.len() as u64 / 4,
        seed: seed << 40,
        halves: u32::from(halves),
    };
    device.launch(&kernel, &arguments, 1024, 256, 0, false)
}
