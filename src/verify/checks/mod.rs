//! The invariants of stored data. They are pure functions: from the data seen at one moment to the contradictions in
//! it.
//!
//! Every script works out what is due before it writes a state, and writes the state at once. So these hold of what is stored at any
//! time, although a hold that has become due since the last script still counts in it: `held` of a window is what the deadlines of the
//! state hold there, and each of the deadlines holds what the live records with this deadline hold.
//!
//! One exception: nobody gives back the holds in a window that is no longer kept.

mod hold;
mod memory;
mod plan;
mod reading;
mod state;

use std::collections::BTreeMap;

use crate::domain::amount::Unit;
use crate::domain::id::{Field, base64url};

use super::stored::{FieldKind, Head, Undo};
use super::{Finding, Kind};

pub use hold::{HoldMoment, hold};
pub use plan::{archived_plan, record_plans};
pub use reading::{Judged, Reading, note_of_changes};

/// The tolerated difference between two readings of Redis's clock in one script, and of an expiry that was moved to
/// another node. In milliseconds.
const SLACK_MS: i64 = 1000;

/// The charges: a plan's digest, the place of its group, and the number of the window that was charged.
pub type Charged = std::collections::BTreeSet<([u8; 8], i64, i64)>;

/// The findings about one user, and the number of things that were looked at.
#[derive(Debug, Default)]
pub struct Findings {
    /// The findings, in the order of the checks.
    pub found: Vec<Finding>,
    /// Windows in the state.
    pub windows: u64,
    /// Live holds in the state.
    pub live_holds: u64,
    /// Reservations that are remembered.
    pub reservations: u64,
    /// Tracked events that are remembered.
    pub tracked: u64,
}

impl Findings {
    /// Adds findings from elsewhere.
    pub fn add(&mut self, other: Self) {
        let Self { found, windows, live_holds, reservations, tracked } = other;
        self.found.extend(found);
        self.windows += windows;
        self.live_holds += live_holds;
        self.reservations += reservations;
        self.tracked += tracked;
    }

    fn contradiction(&mut self, key: &str, what: String) {
        self.found.push(Finding { kind: Kind::Contradiction, key: key.to_owned(), what });
    }

    fn note(&mut self, key: &str, what: String) {
        self.found.push(Finding { kind: Kind::Note, key: key.to_owned(), what });
    }
}

/// The roles of the two memories, by index, and the fields of them that count.
struct Generations<'a> {
    head: &'a Head,
    /// The index of the young one.
    young: usize,
    /// True if the young memory's fields count.
    young_counts: bool,
    /// True if the old memory's fields count.
    old_counts: bool,
    /// The values that a script has replaced, if it failed before it wrote the state.
    pending: Option<&'a BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl<'a> Generations<'a> {
    /// Finds the roles; none if the state has no memory.
    fn of(head: &'a Head, undos: [Option<&'a Undo>; 2]) -> Option<Self> {
        let memory = head.memory.as_ref()?;
        let young = usize::from(head.head.young == 2);
        let pending = undos[young].filter(|undo| undo.sequence > memory.sequence).map(|undo| &undo.before);
        let counts = |expires_at_ms| expires_at_ms > head.head.time;
        let (young_counts, old_counts) = (counts(memory.young_expires), counts(memory.old_expires));
        Some(Self { head, young, young_counts, old_counts, pending })
    }

    /// Returns the value of a field that counts. Both memories may have the field.
    fn value<'b>(&self, field: &[u8], values: [Option<&'b [u8]>; 2]) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        let young = match self.pending.and_then(|pending| pending.get(field)) {
            Some(before) => before.as_deref(),
            None => values[self.young],
        };
        young.filter(|_| self.young_counts).or_else(|| values[1 - self.young].filter(|_| self.old_counts))
    }
}

/// Returns the name of a field in findings.
fn field_name(name: &[u8]) -> String {
    match FieldKind::of(name) {
        Some(FieldKind::Record(field)) => record_name(&field),
        Some(FieldKind::Bucket(deadline)) => format!("bucket {deadline}"),
        Some(FieldKind::Undo) => "undo".to_owned(),
        None => format!("field \"{}\"", name.escape_ascii()),
    }
}

fn record_name(field: &Field) -> String {
    format!("record {}", base64url(field))
}

fn unit_of(code: i64) -> Option<Unit> {
    u8::try_from(code).ok().and_then(Unit::from_code)
}

fn is_amount(amount: i64, unit: Unit) -> bool {
    u64::try_from(amount).is_ok_and(|amount| amount <= unit.max_units())
}
