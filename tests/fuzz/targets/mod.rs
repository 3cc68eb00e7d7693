//! What is fuzzed: one target per place where bytes come in that somebody else wrote. A target takes any bytes, and panics where
//! what is promised of them does not hold.
//!
//! `tests/fuzz/main.rs` runs the targets for a moment, with every `cargo test`; the package in `fuzz/` includes this module and runs
//! them for as long as one likes, guided by coverage.

mod catalog;
mod config;
mod ids;
mod numbers;
mod patterns;
mod replies;
mod requests;
mod windows;

use std::time::{Duration, Instant};

use tollgate::domain::fault::Fault;

/// A function over any bytes, and the memory that it may need.
pub struct Target {
    /// As the corpus and the command line call it.
    pub name: &'static str,
    /// Inputs that are made up are at most this long.
    pub longest: usize,
    /// At most this many bytes of memory at once, whatever the input.
    pub flat_bytes: usize,
    /// And at most this many more for each byte of the input.
    pub bytes_per_byte: usize,
    run: fn(&[u8]),
}

/// Messages of every RPC, as bytes from the wire. A map makes a node and a string of an entry of five bytes. Two bytes of a batch make a
/// request of 288 bytes, in a list that grows by doubling.
pub const REQUESTS: Target =
    Target { name: "requests", longest: 4096, flat_bytes: 64 << 10, bytes_per_byte: 240, run: requests::run };

/// The text of a catalog; one that is valid is compiled as well.
pub const CATALOG: Target =
    Target { name: "catalog", longest: 8192, flat_bytes: 8 << 20, bytes_per_byte: 1000, run: catalog::run };

/// A period, a zone, an anchor and a time.
pub const WINDOWS: Target =
    Target { name: "windows", longest: 48, flat_bytes: 64 << 10, bytes_per_byte: 0, run: windows::run };

/// What a script answers, and what is stored of a subscription. A list whose length is a lie makes room for a megabyte at once.
pub const REPLIES: Target =
    Target { name: "replies", longest: 4096, flat_bytes: 8 << 20, bytes_per_byte: 200, run: replies::run };

/// Two users, or a reservation id.
pub const IDS: Target = Target { name: "ids", longest: 2048, flat_bytes: 64 << 10, bytes_per_byte: 50, run: ids::run };

/// A double and decimal text.
pub const NUMBERS: Target =
    Target { name: "numbers", longest: 256, flat_bytes: 64 << 10, bytes_per_byte: 50, run: numbers::run };

/// Two patterns of event names.
pub const PATTERNS: Target =
    Target { name: "patterns", longest: 300, flat_bytes: 256 << 10, bytes_per_byte: 50, run: patterns::run };

/// The text of a configuration file.
pub const CONFIG: Target =
    Target { name: "config", longest: 2048, flat_bytes: 4 << 20, bytes_per_byte: 1000, run: config::run };

/// All of them.
pub const ALL: [&Target; 8] = [&REQUESTS, &CATALOG, &WINDOWS, &REPLIES, &IDS, &NUMBERS, &PATTERNS, &CONFIG];

/// No input takes longer. Most take less than a millisecond.
const LONGEST: Duration = Duration::from_secs(1);

impl Target {
    /// Runs the target on one input.
    ///
    /// # Panics
    /// Where a promise is broken, or time or memory goes beyond the bounds.
    pub fn check(&self, input: &[u8]) {
        let most_bytes = self.flat_bytes + self.bytes_per_byte * input.len();
        let mut beyond = String::new();
        // The first run may make what is there for all, and a busy machine can stop any run for a second; but not three in a row.
        for _ in 0..3 {
            let begun = Instant::now();
            let bytes = allocation_counter::measure(|| (self.run)(input)).bytes_max;
            let took = begun.elapsed();
            if bytes <= most_bytes as u64 && took <= LONGEST {
                return;
            }
            beyond = format!("needs {bytes} bytes of memory, of {most_bytes}, and {took:?}, of {LONGEST:?}");
        }
        panic!("{beyond}");
    }
}

/// A fault that a caller or a log is told: in words, short, and on one line, whatever was sent.
fn check_fault(fault: &Fault) {
    let told = fault.to_string();
    assert!(told.len() <= 1024, "a fault of {} bytes", told.len());
    assert!(!told.chars().any(char::is_control), "{told:?}");
    if let Fault::Invalid { field, problem, .. } | Fault::OutOfRange { field, problem } = fault {
        assert!(!field.is_empty() && !problem.is_empty(), "{told:?}");
    }
}

/// Takes numbers off the front of an input. After its end there are zeros, so that every input is one.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn long(&mut self) -> i64 {
        i64::from_le_bytes(self.take())
    }
}
