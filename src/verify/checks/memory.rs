//! Checks memories: each field by itself. Also finds the amounts that records hold.

use std::collections::BTreeSet;

use crate::domain::amount::MAX_UNITS;
use crate::ledger::formats::{COUNTS, TENTH_MS};

use super::super::stored::{Head, NEVER_MS, Record, RecordState, State, nth};
use super::{is_amount, unit_of};

/// The facts about a record that the sums and counts need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// True for a tracked event or an Extend, false for a reservation.
    pub is_tracked: bool,
    /// The time until which it is remembered.
    pub forget: i64,
    /// The plan by which it can still be committed.
    pub open: Option<[u8; 8]>,
    /// Its hold, while it is live.
    pub hold: Option<Hold>,
}

/// The hold of a live reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Hold {
    pub deadline: i64,
    pub is_paged: bool,
    /// Numbers of windows, and amounts.
    pub parts: Vec<(i64, i64)>,
}

impl Fact {
    /// Extracts the facts about this record, at the time of this head.
    pub fn of(head: &Head, record: &Record) -> Self {
        let hold = is_live(head, record).then(|| Hold {
            deadline: record.stored.deadline,
            is_paged: record.stored.paged == 1,
            parts: parts(record),
        });
        let (state, forget) = (record.state, record.stored.forget);
        let may_be_committed = matches!(state, RecordState::Held | RecordState::Released) && forget > head.head.time;
        let open = may_be_committed.then_some(record.stored.plan);
        let is_tracked = matches!(state, RecordState::Tracked | RecordState::Extended);
        Self { is_tracked, forget, open, hold }
    }
}

/// The amounts that a live reservation holds, by the numbers of their windows.
fn parts(record: &Record) -> Vec<(i64, i64)> {
    let claims = record.claims.iter();
    let Some(life) = &record.life else { return claims.map(|claim| (claim.balance, claim.charge)).collect() };
    let counts = if life.stored.on_expiry == 1 { COUNTS } else { 0 };
    let committed = |index: usize| record.first.as_ref().map_or(0, |amounts| amounts[index]);
    claims
        .enumerate()
        .map(|(index, claim)| (claim.balance + counts, (claim.charge - committed(index)).max(0)))
        .collect()
}

/// Returns whether the record holds something when the state was written. ONE-CLOCK: holds from before the correction
/// of a wrong clock have lapsed.
pub fn is_live(head: &Head, record: &Record) -> bool {
    record.state == RecordState::Held && record.stored.deadline > head.head.time && !lapsed_early(head, record)
}

/// Returns whether its hold lapsed when a wrong clock was corrected.
pub fn lapsed_early(head: &Head, record: &Record) -> bool {
    let Some(memory) = &head.memory else { return false };
    record.state == RecordState::Held
        && record.stored.epoch != memory.epoch
        && record.stored.deadline > memory.corrected
}

/// Returns the problems of a record. `head` is of the moment of the record, `state` of that moment or an earlier one.
/// `expires_at_ms` is the time at which its memory expires.
pub fn record_problems(head: Option<&Head>, state: Option<&State>, expires_at_ms: i64, record: &Record) -> Vec<String> {
    let Record { stored, state: of_record, .. } = record;
    let (deadline, forget) = (stored.deadline, stored.forget);
    let mut problems = Vec::new();
    let in_order = match of_record {
        RecordState::Extended => deadline == 0 && forget == NEVER_MS,
        RecordState::Tracked => deadline == 0 && 0 < forget && forget < NEVER_MS,
        _ => 0 < deadline && deadline <= forget && forget < NEVER_MS,
    };
    if !in_order {
        problems.push(format!("the deadline {deadline} and the time to forget it, {forget}, are not in order"));
    }
    if deadline % TENTH_MS != 0 && !matches!(head, Some(head) if was_corrected(head)) {
        problems.push(format!("the deadline {deadline} is no multiple of {TENTH_MS} ms"));
    }
    if let Some(memory) = head.and_then(|head| head.memory.as_ref())
        && memory.epoch == stored.epoch
        && expires_at_ms >= 0
        && forget > expires_at_ms
        && *of_record != RecordState::Extended
    {
        problems.push(format!("is to be forgotten at {forget}, but its memory expires before, at {expires_at_ms}"));
    }
    claims_problems(head, state, record, &mut problems);
    problems.extend(settled_problems(record));
    problems.extend(life_problems(head, record));
    problems
}

/// A hold that lapsed then, and was settled later, has the time of the correction for its deadline.
fn was_corrected(head: &Head) -> bool {
    head.memory.as_ref().is_some_and(|memory| memory.corrected > 0)
}

fn life_problems(head: Option<&Head>, record: &Record) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(life) = &record.life else { return problems };
    let memory = head.and_then(|head| head.memory.as_ref());
    if let Some(memory) = memory
        && life.stored.sequence > memory.sequence
    {
        let (found, noted) = (life.stored.sequence, memory.sequence);
        problems.push(format!("was written with writing {found} of the memory, which was written {noted} times"));
    }
    for (index, claim) in record.claims.iter().enumerate() {
        let (group, due, locked) = (claim.group, life.due[index], life.locked[index]);
        let counted = record.first.as_ref().map_or(0, |amounts| amounts[index]).max(claim.charge);
        if !is_possible(due) || locked > counted {
            problems.push(format!("group {group}: {due} is due and {locked} of {counted} locked, which cannot be"));
        }
    }
    problems
}

/// TRUTH: what was committed is there once it was, and never less than what was refunded.
fn settled_problems(record: &Record) -> Vec<String> {
    let mut problems = Vec::new();
    let Record { state, first, second, quotas, .. } = record;
    let word = state.word();
    for (index, claim) in record.claims.iter().enumerate() {
        let of = |column: &Option<Vec<i64>>| column.as_ref().map(|values| values[index]);
        let group = claim.group;
        match (state, of(first), of(second)) {
            (_, None, None) => {}
            (_, Some(committed), refunded) if has_committed(record) => {
                let refunded = refunded.unwrap_or_default();
                if !is_possible(committed) || refunded > committed {
                    problems
                        .push(format!("group {group} committed {committed} and refunded {refunded}, which cannot be"));
                }
            }
            (RecordState::Tracked, Some(unapplied), None) => {
                let charge = claim.charge;
                if unapplied > charge {
                    problems.push(format!("group {group} did not apply {unapplied} of {charge}"));
                }
            }
            (_, committed, refunded) => {
                let (committed, refunded) = (committed.unwrap_or_default(), refunded.unwrap_or_default());
                problems.push(format!("is {word}, but group {group} committed {committed} and refunded {refunded}"));
            }
        }
        if let Some(quota) = of(quotas)
            && quota != -1
            && !is_possible(quota)
        {
            problems.push(format!("group {group}: the quota is {quota}, and neither -1 nor an amount"));
        }
    }
    problems
}

/// Returns whether something of the reservation was counted, or can be.
fn has_committed(record: &Record) -> bool {
    record.life.is_some() || matches!(record.state, RecordState::Committed { .. })
}

fn is_possible(amount: i64) -> bool {
    u64::try_from(amount).is_ok_and(|amount| amount <= MAX_UNITS)
}

fn claims_problems(head: Option<&Head>, state: Option<&State>, record: &Record, problems: &mut Vec<String>) {
    let mut groups = BTreeSet::new();
    for (span, number) in record.spans.iter().zip(1..) {
        if span.start >= span.ends {
            problems.push(format!("span {number} starts at {} and ends at {}", span.start, span.ends));
        }
    }
    for claim in &record.claims {
        let name = format!("group {}", claim.group);
        if claim.group == 0 {
            problems.push(format!("{name} has no place in a plan"));
        }
        if !groups.insert(claim.group) {
            problems.push(format!("{name} is charged twice"));
        }
        if !is_possible(claim.charge) {
            problems.push(format!("{name}: the charge is {}, and not in 0 to {MAX_UNITS}", claim.charge));
        }
        let span = nth(&record.spans, claim.span);
        if span.is_none() {
            problems.push(format!("{name}: its span is number {}, and there are {}", claim.span, record.spans.len()));
        }
        let Some(head) = head else { continue };
        let (opened, window) = (head.head.opened, claim.balance);
        // Of what happened when no window was there, or in one that was gone.
        let has_no_window = window == 0 && record.state == RecordState::Tracked;
        if !(1..=opened).contains(&window) && !has_no_window {
            problems.push(format!("{name}: its window is number {window}, and not in 1 to {opened}, as were opened"));
        }
        // SELF-CONTAINED: the window's number says which one it is.
        let stored = state.and_then(|state| state.windows().find(|(_, found, _)| found.number() == window));
        let Some((group, found, _)) = stored else { continue };
        let schedule = &found.schedule;
        if span.is_some_and(|span| (span.start, span.ends) != (schedule.start, schedule.ends)) {
            problems.push(format!("{name}: its window {window} is at another time in the state, of group {group:?}"));
        }
        if let Some(unit) = unit_of(found.stored.unit)
            && is_possible(claim.charge)
            && !is_amount(claim.charge, unit)
        {
            problems.push(format!("{name}: the charge is {}, and not in 0 to {}", claim.charge, unit.max_units()));
        }
    }
}
