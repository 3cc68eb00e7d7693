//! The keys that show live holds. No script decides by them; people do.

use crate::ledger::UserKeys;
use crate::ledger::inspection::HoldEntry;

use super::super::stored::{Record, State};
use super::{FORGETTING, Findings, Moment, SLACK_MS, time_of, word};

/// No reservation lives longer. So Redis's clock was ahead when it wrote a key that expires later than that.
const LONGEST_HOLD_MS: i64 = 3_600_000;

/// A key that shows a live hold, or should be there.
pub fn hold(keys: &UserKeys, moment: &Moment, nonce: &str, hold: &HoldEntry, findings: &mut Findings) {
    let expires_at_ms = hold.expires_at_ms;
    let expires_soon = (0..=moment.redis_ms + LONGEST_HOLD_MS + SLACK_MS).contains(&expires_at_ms);
    if hold.kind == "string" && hold.record.is_empty() && moment.ledger.is_none() && expires_soon {
        // DeleteUser deletes these keys last; they expire alone where it does not come to that.
        let text = format!("shows a reservation of a user who was deleted, and expires at {expires_at_ms}");
        findings.note(&keys.hold(nonce), text);
    } else if outlives_a_wrong_clock(moment, hold) {
        let text = format!(
            "shows a reservation that lapsed when Redis's clock, which had been ahead, was set right; nothing decides by this key, and it \
             expires at {expires_at_ms}"
        );
        findings.note(&keys.hold(nonce), text);
    } else if let Some(problem) = hold_problem(moment, hold) {
        findings.contradiction(&keys.hold(nonce), problem);
    }
}

/// Whether the reservation of this key lapsed early, or was forgotten, because the clock that the key was written by was wrong.
///
/// All live holds lapse with the first call after such a clock was set right. Scripts do not spell keys, so that those of the holds stay
/// until they expire. A key that shows a hold which is still live, or one that has been settled, is another matter.
fn outlives_a_wrong_clock(moment: &Moment, hold: &HoldEntry) -> bool {
    let HoldEntry { kind, expires_at_ms, text: _, score, record } = hold;
    if kind != "string" || *expires_at_ms < 0 {
        return false;
    }
    if record.is_empty() {
        return *expires_at_ms > moment.redis_ms + LONGEST_HOLD_MS + SLACK_MS;
    }
    // Only such a lapse moves a deadline to an earlier time.
    let has_lapsed = time_of(score).is_ok_and(|score| score >= FORGETTING);
    has_lapsed
        && Record::decode(record).is_ok_and(|record| {
            let has_passed = moment.ledger.as_ref().is_some_and(|ledger| record.deadline <= ledger.time);
            record.state == State::Held && has_passed && *expires_at_ms > record.deadline + SLACK_MS
        })
}

fn hold_problem(moment: &Moment, hold: &HoldEntry) -> Option<String> {
    let HoldEntry { kind, expires_at_ms, text, score, record } = hold;
    let is_there = kind != "none";
    if is_there && kind != "string" {
        return Some(format!("is a {kind}, and not a string"));
    }
    let time = moment.ledger.as_ref().map(|ledger| ledger.time);
    if record.is_empty() {
        // A user's clock that is ahead may have forgotten it while Redis's lets the key live.
        let forgotten = time.is_some_and(|time| *expires_at_ms >= 0 && *expires_at_ms <= time + SLACK_MS);
        return (is_there && !forgotten).then(|| "shows a reservation that nothing is known of".to_owned());
    }
    // A record that cannot be decoded is reported by itself.
    let record = Record::decode(record).ok()?;
    let deadline = record.deadline;
    if !is_there {
        let is_live = record.state == State::Held && time_of(score).is_ok_and(|score| score < FORGETTING);
        // Where the user's clock was ahead, the key ended before the deadline.
        let expected =
            time.is_some_and(|time| time <= moment.redis_ms + SLACK_MS) && deadline > moment.redis_ms + SLACK_MS;
        return (is_live && expected).then(|| format!("is missing, but its reservation is live until {deadline}"));
    }
    if record.state != State::Held {
        return Some(format!("shows a reservation that is {}", word(record.state)));
    }
    if *expires_at_ms < 0 {
        return Some(format!("never expires, but its reservation is live until {deadline}"));
    }
    if *expires_at_ms > deadline + SLACK_MS {
        return Some(format!("expires at {expires_at_ms}, but its reservation is live until {deadline}"));
    }
    let shown: Vec<_> = record.claims.iter().map(|(claim, _, _)| format!("{}={}", claim.group, claim.charge)).collect();
    let (shown, text) = (shown.join(" "), String::from_utf8_lossy(text));
    (text != shown).then(|| format!("shows {text:?}, but its reservation holds {shown:?}"))
}
