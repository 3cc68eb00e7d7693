//! The targets, for cargo-fuzz. They are those of the short run in `tests/fuzz/`: see there.

#[path = "../../tests/fuzz/targets/mod.rs"]
mod targets;

pub use targets::*;
