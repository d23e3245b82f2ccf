//! Prints `cuda/wgmma.cuh`: the integer wgmma instructions, one C++ function each. Their operand
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

    /// With `FQC_BLESS` set, rewrites the header.
    #[test]
    fn the_header_is_what_this_file_prints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/wgmma.cuh");
        if std::env::var_os("FQC_BLESS").is_some() {
            std::fs::write(path, header()).expect("a writable header");
        }
        let text = std::fs::read_to_string(path).expect("the header");
        assert!(text == header(), "kernels/cuda/wgmma.cuh is old: run again with FQC_BLESS=1");
    }
}
