//! `./dev fuzz requests`; the target itself is in `tests/fuzz/targets/requests.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::REQUESTS.check(input));
