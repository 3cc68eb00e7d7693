//! `./dev fuzz config`; the target itself is in `tests/fuzz/targets/config.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::CONFIG.check(input));
