//! `./dev fuzz patterns`; the target itself is in `tests/fuzz/targets/patterns.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::PATTERNS.check(input));
