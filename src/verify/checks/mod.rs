//! What must hold of what is stored. Pure functions: from what was seen at one moment to what contradicts itself in it.
//!
//! Every script works out what is due before it writes a ledger, and writes agenda and ledger at once. So these hold of what is stored
//! at any time, although a hold that has become due since the last script still counts in it: `held` of a window is what the
//! first half of the agenda holds there, `live` is the length of that half, and `due` is no later than its first deadline.
//!
//! Two exceptions: in a window that is kept no longer, nobody gives back what it holds; and an agenda that has expired has
//! taken its deadlines along, which the next call that looks takes for due.

mod hold;
mod memory;
mod user;

use crate::domain::amount::Unit;
use crate::ledger::inspection::Part;

use super::stored::{Ledger, State};
use super::{Finding, Kind};

pub use hold::hold;
pub use memory::{memory_entry, unknown_entry};
pub use user::user;

/// Agenda scores from here on are times to forget.
const FORGETTING: i64 = 100_000_000_000_000;

/// By how much two readings of Redis's clock in one script may differ, and an expiry that was moved to another node.
const SLACK_MS: i64 = 1000;

/// What is found of one user, and how much was looked at.
#[derive(Debug, Default)]
pub struct Findings {
    /// In the order of the checks.
    pub found: Vec<Finding>,
    /// Windows in the ledger.
    pub windows: u64,
    /// Live holds in the agenda.
    pub live_holds: u64,
    /// Records of reservations.
    pub reservations: u64,
    /// Memories of request ids.
    pub requests: u64,
}

impl Findings {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: Self) {
        let Self { found, windows, live_holds, reservations, requests } = other;
        self.found.extend(found);
        self.windows += windows;
        self.live_holds += live_holds;
        self.reservations += reservations;
        self.requests += requests;
    }

    fn contradiction(&mut self, key: &str, what: String) {
        self.found.push(Finding { kind: Kind::Contradiction, key: key.to_owned(), what });
    }

    fn note(&mut self, key: &str, what: String) {
        self.found.push(Finding { kind: Kind::Note, key: key.to_owned(), what });
    }
}

/// What a part of the memory or some holds are judged by.
pub struct Moment {
    redis_ms: i64,
    /// None if there is none, or none that can be decoded.
    ledger: Option<Ledger>,
}

impl Moment {
    /// When this part was seen.
    #[must_use]
    pub fn of<T>(part: &Part<T>) -> Self {
        Self { redis_ms: part.redis_ms, ledger: Ledger::decode(&part.ledger).ok() }
    }
}

/// A score of the agenda.
fn time_of(score: &str) -> Result<i64, String> {
    let number: f64 = score.parse().map_err(|_| format!("{score:?} is no score"))?;
    // Scores are integers far below 2^53.
    if number.fract() == 0.0 && (0.0..9e15).contains(&number) {
        Ok(number as i64)
    } else {
        Err(format!("its score in the agenda is {score}, and no time"))
    }
}

fn unit_of(code: i64) -> Option<Unit> {
    u8::try_from(code).ok().and_then(Unit::from_code)
}

fn is_amount(amount: i64, unit: Unit) -> bool {
    u64::try_from(amount).is_ok_and(|amount| amount <= unit.max_units())
}

fn word(state: State) -> &'static str {
    match state {
        State::Held => "held",
        State::Committed => "committed",
        State::Released => "released",
    }
}
