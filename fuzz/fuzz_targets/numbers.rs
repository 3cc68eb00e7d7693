//! `./dev fuzz numbers`; the target itself is in `tests/fuzz/targets/numbers.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::NUMBERS.check(input));
