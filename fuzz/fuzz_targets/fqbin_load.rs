//! Any bytes into the `.fqbin` reader, and any edits into a sample file with its checksums
//! repaired. Run with `cargo +nightly fuzz run fqbin_load` from the root of the repository; the
//! same entry point runs as a plain test in `runtime/format/tests/mutations.rs`.

#![no_main]

#[path = "../../runtime/format/tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|data: &[u8]| support::fuzz_entry(data));
