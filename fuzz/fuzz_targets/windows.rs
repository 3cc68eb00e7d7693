//! `./dev fuzz windows`; the target itself is in `tests/fuzz/targets/windows.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::WINDOWS.check(input));
