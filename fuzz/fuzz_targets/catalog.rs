//! `./dev fuzz catalog`; the target itself is in `tests/fuzz/targets/catalog.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::CATALOG.check(input));
