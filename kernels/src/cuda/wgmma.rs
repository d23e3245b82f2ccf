//! Prints `cuda/wgmma.cuh` and `cuda/wgmma_half.cuh`: the wgmma instructions, one C++ function each. Their operand
//! lists are too long to write by hand and too regular to need it.

use std::fmt::Write;

/// Tokens (wgmma's N) that the kernels may use. Integer wgmma also has 24, 48 and further
/// multiples of 16.
pub const TOKENS: [u32; 7] = [8, 16, 32, 64, 128, 192, 256];

const HEAD: &str = "\
// Integer wgmma as functions: 64 rows of A by kN columns of B, 32 codes deep, into s32.
// A comes from shared memory (a descriptor) or from registers; B always from shared memory.
// With `accumulate` zero the old accumulators are forgotten. FQC_TOKENS is the type of B: s8 or u8.
// Printed by kernels/src/cuda/wgmma.rs.
#pragma once

#include \"ptx.cuh\"

#ifndef FQC_TOKENS
#define FQC_TOKENS \"s8\"
#endif

template <int kN>
struct Wgmma;
";

/// The whole header.
pub fn header() -> String {
    let mut text = HEAD.to_owned();
    for n in TOKENS {
        let _ = write!(text, "\ntemplate <>\nstruct Wgmma<{n}> {{\n");
        function(&mut text, n, false);
        function(&mut text, n, true);
        text.push_str("};\n");
    }
    text
}

/// N that the products of halves use: tokens of a gemm, keys of a tile, widths of a head.
pub const HALF_COLUMNS: [u32; 4] = [16, 32, 64, 128];

/// Those of them that are widths of a head, whose other operand is in registers.
const HEADS: [u32; 2] = [64, 128];

const HALF_HEAD: &str = "\
// wgmma of halves as functions: 64 rows of A by kN columns of B, 16 halves deep, into floats. A comes
// from shared memory or from registers; B from shared memory, with K along its rows if transposed.
// With `accumulate` zero the old sums are forgotten. FQC_HALF is the type of both: f16 or bf16.
// Printed by kernels/src/cuda/wgmma.rs.
#pragma once

#include \"ptx.cuh\"

#ifndef FQC_HALF
#define FQC_HALF \"f16\"
#endif

template <int kN>
struct WgmmaHalf;
";

/// The whole header of the products of halves.
pub fn half_header() -> String {
    let mut text = HALF_HEAD.to_owned();
    for n in HALF_COLUMNS {
        let _ = write!(text, "\ntemplate <>\nstruct WgmmaHalf<{n}> {{\n");
        half_function(&mut text, n, false);
        if HEADS.contains(&n) {
            half_function(&mut text, n, true);
        }
        text.push_str("};\n");
    }
    text
}

fn half_function(text: &mut String, n: u32, registers: bool) {
    let sums = n / 2;
    let (name, operand) =
        if registers { ("registers_transposed", "const u32 (&a)[4]") } else { ("shared", "u64 a") };
    let _ = writeln!(
        text,
        "    static __device__ __forceinline__ void {name}(float (&d)[{sums}], {operand}, u64 b, int accumulate) {{"
    );
    let (a_text, b, flags) = if registers {
        (format!("{{%{}, %{}, %{}, %{}}}", sums, sums + 1, sums + 2, sums + 3), sums + 4, "1, 1, 1")
    } else {
        (format!("%{sums}"), sums + 1, "1, 1, 0, 0")
    };
    let _ = writeln!(
        text,
        "        asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{}, 0;\\n\"",
        b + 1
    );
    let _ = writeln!(
        text,
        "            \"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.\" FQC_HALF \".\" FQC_HALF \" {{\""
    );
    lines(text, sums, 16, |i| format!("%{i}"), "            \"", ", \"", "\"");
    let _ = writeln!(text, "            \"}}, {a_text}, %{b}, p, {flags};\\n}}\"");
    lines(text, sums, 8, |i| format!("\"+f\"(d[{i}])"), "            ", ",", "");
    let inputs =
        if registers { "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3])" } else { "\"l\"(a)" };
    let _ = writeln!(text, "            : {inputs}, \"l\"(b), \"r\"(accumulate));");
    text.push_str("    }\n");
}

fn function(text: &mut String, n: u32, registers: bool) {
    let accumulators = n / 2;
    let (name, operand) =
        if registers { ("registers", "const u32 (&a)[4]") } else { ("shared", "u64 a") };
    let _ = writeln!(
        text,
        "    static __device__ __forceinline__ void {name}(int (&d)[{accumulators}], {operand}, u64 b, int accumulate) {{"
    );
    let a = accumulators;
    let (a_text, next) = if registers {
        (format!("{{%{}, %{}, %{}, %{}}}", a, a + 1, a + 2, a + 3), a + 4)
    } else {
        (format!("%{a}"), a + 1)
    };
    let _ = writeln!(
        text,
        "        asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{}, 0;\\n\"",
        next + 1
    );
    let _ = writeln!(
        text,
        "            \"wgmma.mma_async.sync.aligned.m64n{n}k32.s32.s8.\" FQC_TOKENS \" {{\""
    );
    lines(text, accumulators, 16, |i| format!("%{i}"), "            \"", ", \"", "\"");
    let _ = writeln!(text, "            \"}}, {a_text}, %{next}, p;\\n}}\"");
    lines(text, accumulators, 8, |i| format!("\"+r\"(d[{i}])"), "            ", ",", "");
    let inputs =
        if registers { "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3])" } else { "\"l\"(a)" };
    let _ = writeln!(text, "            : {inputs}, \"l\"(b), \"r\"(accumulate));");
    text.push_str("    }\n");
}

/// `count` items, `width` to a line; all lines but the last end in `middle`, that in `last`.
fn lines(
    text: &mut String,
    count: u32,
    width: u32,
    item: impl Fn(u32) -> String,
    start: &str,
    middle: &str,
    last: &str,
) {
    for first in (0..count).step_by(width as usize) {
        let end = (first + width).min(count);
        let items: Vec<String> = (first..end).map(&item).collect();
        let colon = if start.ends_with('"') || first > 0 { "" } else { ": " };
        let tail = if end == count { last } else { middle };
        let _ = writeln!(text, "{start}{colon}{}{tail}", items.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `FQC_BLESS` set, rewrites the headers.
    #[test]
    fn the_headers_are_what_this_file_prints() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        for (name, text) in [("wgmma.cuh", header()), ("wgmma_half.cuh", half_header())] {
            let path = format!("{folder}/{name}");
            if std::env::var_os("FQC_BLESS").is_some() {
                std::fs::write(&path, &text).expect("a writable header");
            }
            let old = std::fs::read_to_string(&path).expect("the header");
            assert!(old == text, "kernels/cuda/{name} is old: run again with FQC_BLESS=1");
        }
    }
}
