//! What this machine can do at most at a level, measured: dot products between registers, as many
//! chains as hide their latency, and copies of memory. Reports set kernels beside it.

use std::time::{Duration, Instant};

use fqbin::Level;
use inkwell::context::Context;

use super::CpuError;
use super::build::{Builder, Code, Val};
use super::exec::{self, Mapped};
use super::tiles::{HEIGHT, Native, TileOps};

/// Work items of one timed call of a dot product loop: some hundred microseconds.
const ROUNDS: i64 = 50_000;

/// Bytes of a line, which a copy moves at a time.
const LINE: usize = 64;

/// Lines that a work item of the copy moves.
const LINES: usize = 4;

/// What multiplies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Bytes into 32-bit integers.
    Codes,
    /// Pairs of bf16 into f32.
    Bf16,
    F32,
}

impl Unit {
    pub const ALL: [Unit; 3] = [Unit::Codes, Unit::Bf16, Unit::F32];

    fn kernel(self) -> &'static str {
        match self {
            Unit::Codes => "codes",
            Unit::Bf16 => "bf16",
            Unit::F32 => "f32",
        }
    }

    /// What multiplies in its place where a level lacks it.
    fn at(self, level: Level) -> Unit {
        if self == Unit::Bf16 && !level.has_bf16() { Unit::F32 } else { self }
    }

    /// Whether tile registers multiply.
    fn in_tiles(self, level: Level) -> bool {
        level == Level::AmxInt8 && self != Unit::F32
    }

    /// Multiplications of a work item.
    fn products(self, level: Level) -> usize {
        let rows = match self {
            Unit::Codes => 4,
            Unit::Bf16 => 2,
            Unit::F32 => 1,
        };
        match (self.in_tiles(level), self, level) {
            (true, ..) => 4 * 16 * 16 * 16 * rows,
            (false, Unit::Codes, Level::Avx2) => 16 * chains(level),
            _ => level.f32_lanes() as usize * rows * chains(level),
        }
    }
}

/// Accumulators of a loop.
fn chains(level: Level) -> usize {
    if level == Level::Avx2 { 12 } else { 24 }
}

/// Operands of a loop, few enough that they stay in registers beside its accumulators.
fn operands(level: Level) -> usize {
    if level == Level::Avx2 { 2 } else { 4 }
}

/// The loops of a level, ready to run.
pub struct Ceiling {
    level: Level,
    blob: Mapped,
}

impl Ceiling {
    /// Fails if the processor lacks the level.
    pub fn new(level: Level) -> Result<Ceiling, CpuError> {
        if !exec::available(level) {
            let reason = format!("this processor lacks `{level}`");
            return Err(CpuError::Unsupported { kernel: "ceiling".to_owned(), reason });
        }
        let context = Context::create();
        let code = Code::new(&context, "ceiling", level)?;
        for unit in Unit::ALL.into_iter().filter(|unit| unit.at(level) == *unit) {
            code.kernel(unit.kernel(), |b| {
                match unit.in_tiles(level) {
                    true => emit_tiles(b, &Native, unit),
                    false => emit_dots(b, unit),
                }
                Ok::<(), CpuError>(())
            })?;
        }
        code.kernel("copy", |b| {
            emit_copy(b);
            Ok::<(), CpuError>(())
        })?;
        Ok(Ceiling { level, blob: Mapped::new(&code.finish()?)? })
    }

    /// The best rate of dot products on `threads` threads at once, in 10^9 operations a second;
    /// a multiplication and its addition are two.
    pub fn rate(&self, unit: Unit, threads: usize, budget: Duration) -> f64 {
        let unit = unit.at(self.level);
        let rounds = if unit.in_tiles(self.level) { ROUNDS / 16 } else { ROUNDS };
        let ops = 2 * unit.products(self.level) as i64 * rounds;
        let mut memory: Vec<Memory> = (0..threads).map(|_| Memory::new(64)).collect();
        let calls = calls(&mut memory, budget, |memory| {
            let bufs = [memory.line(0)];
            // SAFETY: a loop touches a line for each of its chains, or one tile of sixteen lines
            // behind the first in its scratch; `memory` has more.
            unsafe { self.blob.call(unit.kernel(), &bufs, &[], 0..rounds, memory.line(0)) };
        });
        ops as f64 * calls / 1e9
    }

    /// The best rate of copies that read and write `bytes` in all, in 10^9 bytes a second, read and
    /// written ones counted. What fits in a cache stays there.
    pub fn copy(&self, bytes: usize, threads: usize, budget: Duration) -> f64 {
        let lines = (bytes / 2 / LINE / threads).next_multiple_of(LINES).max(LINES);
        let mut memory: Vec<Memory> = (0..threads).map(|_| Memory::new(2 * lines)).collect();
        let items = (lines / LINES) as i64;
        // Calls of at least a megabyte, so that looking at the clock does not count.
        let passes = ((1 << 20) / (lines * LINE)).max(1);
        let calls = calls(&mut memory, budget, |memory| {
            let bufs = [memory.line(0), memory.line(lines)];
            for _ in 0..passes {
                // SAFETY: both halves have the lines that the items cover.
                unsafe { self.blob.call("copy", &bufs, &[], 0..items, bufs[0]) };
            }
        });
        (2 * lines * LINE * passes) as f64 * calls / 1e9
    }
}

/// Lines of memory.
struct Memory {
    lines: Vec<[u8; LINE]>,
}

impl Memory {
    fn new(lines: usize) -> Memory {
        Memory { lines: vec![[1; LINE]; lines + 1] }
    }

    /// The address of a line.
    fn line(&mut self, index: usize) -> *mut u8 {
        let first = self.lines.as_mut_ptr().cast::<u8>();
        first.wrapping_add(first.align_offset(LINE) + index * LINE)
    }
}

/// Calls a second of `part`, summed over threads that run it all the while, each in memory of its
/// own; a thread counts by its fastest call. There is at least one.
fn calls(memory: &mut [Memory], budget: Duration, part: impl Fn(&mut Memory) + Sync) -> f64 {
    let fastest = |memory: &mut Memory| {
        let (begin, mut fastest) = (Instant::now(), Duration::MAX);
        loop {
            let start = Instant::now();
            part(memory);
            fastest = fastest.min(start.elapsed());
            if begin.elapsed() >= budget {
                return fastest.as_secs_f64();
            }
        }
    };
    std::thread::scope(|scope| {
        let fastest = &fastest;
        let threads: Vec<_> =
            memory.iter_mut().map(|memory| scope.spawn(move || fastest(memory))).collect();
        let seconds = threads.into_iter().map(|t| t.join().expect("a timed loop does not panic"));
        seconds.map(|seconds| 1.0 / seconds).sum()
    })
}

/// Four dot products of tiles a work item, between registers.
fn emit_tiles(b: &Builder<'_, '_>, ops: &impl TileOps, unit: Unit) {
    let tiles = b.offset(b.scratch(), b.i64c(LINE as i64));
    ops.configure(b, b.scratch(), b.i64c(HEIGHT));
    for tile in 0..8 {
        ops.load(b, tile, tiles, b.i64c(LINE as i64));
    }
    b.for_range(b.begin(), b.end(), 1, |_| {
        for sum in 0..4 {
            match unit {
                Unit::Codes => ops.dot(b, sum, 4 + sum / 2, 6 + sum % 2),
                _ => ops.dot_bf16(b, sum, 4 + sum / 2, 6 + sum % 2),
            }
        }
    });
    for sum in 0..4 {
        ops.store(b, sum, tiles, b.i64c(LINE as i64));
    }
    ops.release(b);
}

/// A dot product a chain and work item, between registers.
fn emit_dots(b: &Builder<'_, '_>, unit: Unit) {
    let lanes = b.level().f32_lanes();
    let ty = if unit == Unit::Codes { b.i32v(lanes) } else { b.f32v(lanes) };
    let line = |i: usize| b.offset(b.buf(0), b.i64c((LINE * i) as i64));
    let chains = chains(b.level());
    let operands: Vec<Val<'_>> = (0..operands(b.level())).map(|i| b.load(ty, line(i), 4)).collect();
    // Sums that began alike would be one.
    let init: Vec<Val<'_>> = (0..chains).map(|i| b.load(ty, line(i), 4)).collect();
    let sums = b.for_carried(b.begin(), b.end(), 1, &init, |i, sums| {
        sums.iter().zip(operands.iter().cycle()).map(|(&sum, &x)| dot(b, unit, sum, x, i)).collect()
    });
    for (i, &sum) in sums.iter().enumerate() {
        b.store(sum, line(i), 4);
    }
}

/// One more product on `sum`. Without a fused instruction the other factor changes from round to
/// round, or the product would be computed once.
fn dot<'c>(b: &Builder<'_, 'c>, unit: Unit, sum: Val<'c>, x: Val<'c>, round: Val<'c>) -> Val<'c> {
    match (unit, b.level()) {
        (Unit::F32, _) => b.fma(x, x, sum),
        (Unit::Bf16, _) => {
            let pairs = b.bitcast(x, b.vec(b.bf16(), 32));
            b.call("llvm.x86.avx512bf16.dpbf16ps.512", &[], &[sum, pairs, pairs])
        }
        (Unit::Codes, Level::Avx2) => {
            let words = b.vec(b.int(16), 16);
            let other = b.bitcast(b.splat(round, 4), words);
            let args = [b.bitcast(x, words), other];
            b.add(sum, b.call("llvm.x86.avx2.pmadd.wd", &[], &args))
        }
        (Unit::Codes, _) => {
            let bytes = b.bitcast(x, b.vec(b.int(8), 64));
            b.call("llvm.x86.avx512.vpdpbusd.512", &[], &[sum, bytes, bytes])
        }
    }
}

/// Copies lines of the first buffer to the second.
fn emit_copy(b: &Builder<'_, '_>) {
    let lanes = b.level().f32_lanes();
    let (ty, step) = (b.f32v(lanes), 4 * i64::from(lanes));
    let item = (LINES * LINE) as i64;
    b.for_range(b.begin(), b.end(), 1, |i| {
        let at = b.mul(i, b.i64c(item));
        for byte in (0..item).step_by(step as usize) {
            let at = b.add(at, b.i64c(byte));
            b.store(b.load(ty, b.offset(b.buf(0), at), 32), b.offset(b.buf(1), at), 32);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_every_level_here_has_a_rate() {
        let budget = Duration::from_millis(2);
        for level in Level::ALL.into_iter().filter(|&level| exec::available(level)) {
            let ceiling = Ceiling::new(level).expect("loops");
            for unit in Unit::ALL {
                assert!(ceiling.rate(unit, 2, budget) > 0.1, "{unit:?} at {level}");
            }
            assert!(ceiling.copy(1 << 16, 2, budget) > 0.01);
        }
    }
}
