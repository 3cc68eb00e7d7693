//! The keys that show live holds. No script decides by them; people do.

use crate::domain::id::Field;
use crate::ledger::UserKeys;
use crate::ledger::inspection::{HoldEntry, Holds};

use super::super::stored::{Head, Record, RecordState, Undo};
use super::memory::{is_live, lapsed_early};
use super::{Findings, Generations, SLACK_MS};

/// The facts by which some of these keys are judged, as of the moment they were seen.
pub struct HoldMoment {
    redis_ms: i64,
    /// The head; none if there is none, or if it cannot be decoded.
    head: Option<Head>,
    /// True if the head cannot be decoded. That is reported elsewhere.
    is_undecodable: bool,
    undos: [Option<Undo>; 2],
}

impl HoldMoment {
    /// The moment at which these keys were seen.
    #[must_use]
    pub fn of(holds: &Holds) -> Self {
        let head = Head::decode(&holds.head).ok();
        Self {
            redis_ms: holds.redis_ms,
            is_undecodable: head.is_none() && !holds.head.is_empty(),
            head,
            undos: holds.undos.each_ref().map(|undo| Undo::decode(undo).ok()),
        }
    }

    fn generations(&self) -> Option<Generations<'_>> {
        Generations::of(self.head.as_ref()?, self.undos.each_ref().map(Option::as_ref))
    }

    /// The record that counts. One that cannot be decoded is reported by itself.
    fn record(&self, field: &Field, hold: &HoldEntry) -> Found {
        let values = hold.records.each_ref().map(|value| Some(value.as_slice()).filter(|value| !value.is_empty()));
        match self.generations().and_then(|generations| generations.value(field, values)) {
            None => Found::Nothing,
            Some(value) => Record::decode(value).map_or(Found::Undecodable, |record| Found::Record(Box::new(record))),
        }
    }

    /// Returns whether a script that wrote this record has failed, and perhaps took its key away.
    fn is_pending(&self, field: &Field) -> bool {
        let pending = self.generations().and_then(|generations| generations.pending);
        pending.is_some_and(|pending| pending.contains_key(field.as_slice()))
    }
}

enum Found {
    Nothing,
    Undecodable,
    Record(Box<Record>),
}

/// A key that shows a live hold, or should be there.
pub fn hold(keys: &UserKeys, moment: &HoldMoment, field: &Field, hold: &HoldEntry, findings: &mut Findings) {
    let key = keys.hold(field);
    let is_there = hold.kind != "none";
    if is_there && hold.kind != "string" {
        return findings.contradiction(&key, format!("is a {}, and not a string", hold.kind));
    }
    if moment.is_undecodable {
        return;
    }
    let record = match moment.record(field, hold) {
        Found::Undecodable => return,
        Found::Nothing => return unknown(&key, moment, hold, findings),
        Found::Record(record) => record,
    };
    let Some(head) = &moment.head else { return };
    if !is_there {
        let deadline = record.stored.deadline;
        // Where the user's clock was ahead, the key ended before the deadline.
        let expected = head.head.time <= moment.redis_ms + SLACK_MS && deadline > moment.redis_ms + SLACK_MS;
        if is_live(head, &record) && expected && !moment.is_pending(field) {
            findings.contradiction(&key, format!("is missing, but its reservation is live until {deadline}"));
        }
    } else if lapsed_early(head, &record) {
        let expires_at_ms = hold.expires_at_ms;
        let text = "shows a reservation that lapsed when Redis's clock, which had been ahead, was set right";
        if expires_at_ms < 0 {
            findings.contradiction(&key, format!("{text}, and never expires"));
        } else {
            findings.note(&key, format!("{text}; nothing decides by this key, and it expires at {expires_at_ms}"));
        }
    } else if matches!(record.state, RecordState::Tracked | RecordState::Extended) && is_of_the_past(head, hold) {
        // It showed a reservation that had the same request id, and is forgotten.
    } else if let Some(problem) = shown_problem(&record, hold) {
        findings.contradiction(&key, problem);
    }
}

/// Returns whether it expires before the user's time, which is ahead of Redis's.
fn is_of_the_past(head: &Head, hold: &HoldEntry) -> bool {
    (0..=head.head.time + SLACK_MS).contains(&hold.expires_at_ms)
}

/// A key without a record: a script failed that made it, its user was deleted, or the record was forgotten. It expires alone.
fn unknown(key: &str, moment: &HoldMoment, hold: &HoldEntry, findings: &mut Findings) {
    let expires_at_ms = hold.expires_at_ms;
    // A user's clock that is ahead may have forgotten it while Redis's lets the key live.
    let is_forgotten = moment.head.as_ref().is_some_and(|head| is_of_the_past(head, hold));
    if hold.kind == "none" || is_forgotten {
        return;
    }
    let text = "shows a reservation that nothing is known of";
    if expires_at_ms < 0 {
        findings.contradiction(key, format!("{text}, and never expires"));
    } else {
        findings.note(key, format!("{text}, and expires at {expires_at_ms}"));
    }
}

fn shown_problem(record: &Record, hold: &HoldEntry) -> Option<String> {
    let (deadline, expires_at_ms) = (record.stored.deadline, hold.expires_at_ms);
    if record.state != RecordState::Held {
        return Some(format!("shows a reservation that is {}", record.state.word()));
    }
    if expires_at_ms < 0 {
        return Some(format!("never expires, but its reservation is live until {deadline}"));
    }
    if expires_at_ms > deadline + SLACK_MS {
        return Some(format!("expires at {expires_at_ms}, but its reservation is live until {deadline}"));
    }
    let (text, name) = (String::from_utf8_lossy(&hold.text), &record.name);
    (text != *name).then(|| format!("shows {text:?}, but its reservation is of event {name:?}"))
}
