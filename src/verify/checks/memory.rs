//! What is remembered: each field of the memory against its agenda entry, and reservations and request ids against each other.

use std::collections::BTreeSet;

use crate::catalog::NEVER_MS;
use crate::ledger::UserKeys;
use crate::ledger::inspection::MemoryEntry;

use super::super::stored::{Claim, Record, Request, State};
use super::{FORGETTING, Findings, Moment, is_amount, time_of, unit_of, word};

/// One field of a user's memory, against its agenda entry and the field that belongs to it.
pub fn memory_entry(keys: &UserKeys, moment: &Moment, entry: &MemoryEntry, findings: &mut Findings) {
    let field = String::from_utf8_lossy(&entry.field).into_owned();
    let (name, problems) = match (field.split_at_checked(1), std::str::from_utf8(&entry.field)) {
        (Some(("r", nonce)), Ok(_)) => {
            findings.reservations += 1;
            (format!("reservation {nonce:?}"), reservation_problems(moment, nonce, entry))
        }
        (Some(("q", id)), Ok(_)) => {
            findings.requests += 1;
            (format!("request {id:?}"), request_problems(moment, id, entry))
        }
        _ => (format!("field {field:?}"), vec!["is neither a reservation nor a request".to_owned()]),
    };
    for problem in problems {
        findings.contradiction(&keys.memory(), format!("{name}: {problem}"));
    }
}

fn reservation_problems(moment: &Moment, nonce: &str, entry: &MemoryEntry) -> Vec<String> {
    let record = match Record::decode(&entry.value) {
        Ok(record) => record,
        Err(error) => return vec![error.to_string()],
    };
    let Record { state, deadline, forget, request_id, claims, late } = &record;
    let mut problems = Vec::new();
    if !(0 < *deadline && deadline <= forget && *forget < NEVER_MS) {
        problems.push(format!("the deadline {deadline} and the time to forget it, {forget}, are not in order"));
    }
    if *late && *state != State::Committed {
        problems.push(format!("is {}, and says that it was committed late", word(*state)));
    }
    claims_problems(moment, claims.iter().map(|(claim, _, _)| claim), &mut problems);
    for (claim, committed, refunded) in claims {
        problems.extend(settled_problem(*state, claim, *committed, *refunded));
    }
    problems.extend(agenda_problem(moment, &record, &entry.score));
    // ONCE: the retry finds it. The id of a forgotten one may have become another call's since.
    let remembered = moment.ledger.as_ref().is_some_and(|ledger| *forget > ledger.time);
    if !request_id.is_empty() && remembered {
        match Request::decode(&entry.other) {
            Ok(Request::Reserve { nonce: named }) if named == nonce => {}
            _ if entry.other.is_empty() => {
                problems.push(format!("its request {request_id:?} is not remembered"));
            }
            Ok(Request::Reserve { nonce: named }) => {
                problems.push(format!("its request {request_id:?} names reservation {named:?}"));
            }
            Ok(Request::Track { .. }) => problems.push(format!("its request {request_id:?} is that of a track")),
            // The request is reported by itself.
            Err(_) => {}
        }
    }
    problems
}

/// TRUTH: what was committed is there once it was, and never less than what was refunded.
fn settled_problem(state: State, claim: &Claim, committed: i64, refunded: i64) -> Option<String> {
    let group = &claim.group;
    if state != State::Committed {
        return ((committed, refunded) != (0, 0)).then(|| {
            let state = word(state);
            format!("group {group:?} is {state}, but committed {committed} and refunded {refunded}, and not 0 and 0")
        });
    }
    let in_range = unit_of(claim.unit).is_none_or(|unit| is_amount(committed, unit));
    (!in_range || !(0..=committed).contains(&refunded))
        .then(|| format!("group {group:?} committed {committed} and refunded {refunded}, which cannot be"))
}

/// Every live hold is in the first half of the agenda, and nothing else is.
fn agenda_problem(moment: &Moment, record: &Record, score: &str) -> Option<String> {
    let Record { state, deadline, forget, .. } = record;
    if score.is_empty() {
        return Some("has no entry in the agenda".to_owned());
    }
    let score = match time_of(score) {
        Ok(score) => score,
        Err(problem) => return Some(problem),
    };
    if score >= FORGETTING {
        if score - FORGETTING != *forget {
            let noted = score - FORGETTING;
            return Some(format!("is to be forgotten at {forget}, but at {noted} by the agenda"));
        }
        let time = moment.ledger.as_ref()?.time;
        return (*state == State::Held && *deadline > time).then(|| {
            format!("is live until {deadline} at the user's time {time}, but not among the agenda's deadlines")
        });
    }
    if *state != State::Held {
        return Some(format!("is {}, but among the agenda's deadlines", word(*state)));
    }
    if score != *deadline {
        return Some(format!("has the deadline {deadline}, but {score} by the agenda"));
    }
    let time = moment.ledger.as_ref()?.time;
    // A clock that is ahead was set, perhaps with nothing given back.
    (*deadline <= time && time <= moment.redis_ms)
        .then(|| format!("its deadline {deadline} had passed when the ledger was written at {time}, and it holds"))
}

fn request_problems(moment: &Moment, id: &str, entry: &MemoryEntry) -> Vec<String> {
    let mut problems = Vec::new();
    let scored = match entry.score.as_str() {
        "" => None,
        score => match time_of(score) {
            Ok(score) => Some(score - FORGETTING),
            Err(problem) => {
                problems.push(problem);
                return problems;
            }
        },
    };
    match Request::decode(&entry.value) {
        Err(error) => problems.push(error.to_string()),
        Ok(Request::Reserve { nonce }) => {
            match Record::decode(&entry.other) {
                _ if entry.other.is_empty() => problems.push(format!("its reservation {nonce:?} is not remembered")),
                Ok(record) if record.request_id != id => {
                    problems.push(format!("its reservation {nonce:?} names request {:?}", record.request_id));
                }
                // A record that is none is reported by itself.
                _ => {}
            }
            // The agenda may still have the entry of a track that had the id before, and is forgotten.
            if let (Some(forget), Some(ledger)) = (scored, &moment.ledger)
                && forget > ledger.time
            {
                problems.push(format!("is that of a reserve, but the agenda forgets it by itself at {forget}"));
            }
        }
        Ok(Request::Track { forget, claims }) => {
            match scored {
                None => problems.push("has no entry in the agenda".to_owned()),
                Some(scored) if scored != forget => {
                    problems.push(format!("is to be forgotten at {forget}, but at {scored} by the agenda"));
                }
                Some(_) => {}
            }
            claims_problems(moment, claims.iter().map(|(claim, _)| claim), &mut problems);
            for (claim, unapplied) in &claims {
                if !(0..=claim.charge).contains(unapplied) {
                    let (group, charge) = (&claim.group, claim.charge);
                    problems.push(format!("group {group:?} did not apply {unapplied} of {charge}"));
                }
            }
        }
    }
    problems
}

fn claims_problems<'a>(moment: &Moment, claims: impl Iterator<Item = &'a Claim>, problems: &mut Vec<String>) {
    let mut groups = BTreeSet::new();
    for claim in claims {
        let Claim { group, unit, quota, start, end, window, charge } = claim;
        let name = format!("group {group:?}");
        if !groups.insert(group) {
            problems.push(format!("{name} is charged twice"));
        }
        match unit_of(*unit) {
            None => problems.push(format!("{name}: the unit is {unit}, and not in 1 to 4")),
            Some(unit) => {
                if !is_amount(*charge, unit) {
                    problems.push(format!("{name}: the charge is {charge}, and not in 0 to {}", unit.max_units()));
                }
                if *quota != -1 && !is_amount(*quota, unit) {
                    problems.push(format!("{name}: the quota is {quota}, and neither -1 nor an amount"));
                }
            }
        }
        if start >= end {
            problems.push(format!("{name}: its window starts at {start} and ends at {end}"));
        }
        let Some(ledger) = &moment.ledger else { continue };
        if !(1..=ledger.opened).contains(window) {
            let opened = ledger.opened;
            problems.push(format!("{name}: its window is number {window}, and not in 1 to {opened}, as were opened"));
        }
        // SELF-CONTAINED: the window's number says which one it is.
        if let Some((other, found, _)) = ledger.windows().find(|(_, found, _)| found.number == *window)
            && (other, found.unit, found.start, found.end) != (group, *unit, *start, *end)
        {
            problems.push(format!("{name}: its window {window} is another one in the ledger, of group {other:?}"));
        }
    }
}

/// An entry of the agenda that the memory knows nothing of.
pub fn unknown_entry(keys: &UserKeys, entry: &[u8], score: &str, findings: &mut Findings) {
    let entry = String::from_utf8_lossy(entry);
    findings.contradiction(&keys.agenda(), format!("the memory knows nothing of entry {entry:?} with score {score}"));
}
