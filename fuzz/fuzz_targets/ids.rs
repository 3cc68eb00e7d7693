//! `./dev fuzz ids`; the target itself is in `tests/fuzz/targets/ids.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::IDS.check(input));
