//! Faults: what Redis, the network and the processes can do to us, under load, through the real server and a real Redis. After each
//! fault service resumes by itself, and the counters equal what was acknowledged.
//!
//! A program of its own, so that nothing else competes for the machine with what is timed out here.

// The figures of each campaign are for its reader.
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod support;

mod redis_faults;
