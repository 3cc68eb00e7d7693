//! `./dev fuzz replies`; the target itself is in `tests/fuzz/targets/replies.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tollgate_fuzz::REPLIES.check(input));
