//! The domain: parsed types and pure functions, no IO.
//!
//! A value of these types is valid: it was parsed once, at the border, and is not checked again. This module knows
//! neither tonic nor Redis.

pub mod amount;
pub mod answer;
pub mod caller;
pub mod counted;
pub mod descriptor;
pub mod event;
pub mod fault;
pub mod id;
pub mod pattern;
pub mod plan;
pub mod reservation;
pub mod subscription;
pub mod window;
