//! The keys of a user, each by itself and against the others: what must be seen at one moment.

use std::collections::BTreeMap;

use crate::catalog::NEVER_MS;
use crate::ledger::UserKeys;
use crate::ledger::inspection::{MOST_HOLDS, UserState};

use super::super::stored::{Ledger, Record, State, Subscription, Window};
use super::{FORGETTING, Findings, SLACK_MS, is_amount, time_of, unit_of};

const LIFETIME: i64 = 7;

/// ONE-CLOCK: a ledger that is further ahead of Redis had a wrong time.
const MOST_AHEAD_MS: i64 = 300_000;

/// The keys of a user, each by itself and against the others.
pub fn user(keys: &UserKeys, state: &UserState, findings: &mut Findings) {
    let names = keys.all();
    let [subscription_key, ledger_key, memory_key, agenda_key] =
        [&names[0], &names[1], &names[2], &names[3]].map(String::as_str);
    for ((key, found), expected) in names.iter().zip(&state.types).zip(["string", "string", "hash", "zset"]) {
        if found != "none" && found != expected {
            findings.contradiction(key, format!("is a {found}, and not a {expected}"));
        }
    }
    let [subscription_expiry, ledger_expiry, ..] = state.expiries_ms;
    if state.types[0] == "string" {
        subscription(subscription_key, &state.subscription, subscription_expiry, findings);
    }
    let ledger = match state.types[1].as_str() {
        "string" => match Ledger::decode(&state.ledger) {
            Ok(ledger) => Some(ledger),
            Err(error) => {
                findings.contradiction(ledger_key, error.to_string());
                None
            }
        },
        _ => None,
    };
    if state.types[1] == "none" {
        for (key, kind) in [(memory_key, &state.types[2]), (agenda_key, &state.types[3])] {
            if kind != "none" {
                findings.contradiction(key, "belongs to a user who has no ledger, which expires last".to_owned());
            }
        }
    }
    memory_expiries([memory_key, agenda_key], state, ledger.as_ref(), findings);
    let Some(ledger) = ledger else { return };
    if ledger.time > state.redis_ms + SLACK_MS {
        let ahead_ms = ledger.time - state.redis_ms;
        let what_follows = if ahead_ms > MOST_AHEAD_MS {
            "which was wrong: the next call follows Redis's again, and all live holds lapse"
        } else {
            "and stands until then"
        };
        findings.note(ledger_key, format!("the user's clock is {ahead_ms} ms ahead of Redis's, {what_follows}"));
    }
    findings.windows += ledger.windows().count() as u64;
    findings.live_holds += state.live;
    counters(ledger_key, &ledger, findings);
    windows(ledger_key, &ledger, findings);
    ledger_expires(ledger_key, &ledger, ledger_expiry, findings);
    holds(ledger_key, &ledger, state, findings);
}

fn subscription(key: &str, packed: &[u8], expires_at_ms: i64, findings: &mut Findings) {
    if expires_at_ms >= 0 {
        findings
            .contradiction(key, format!("expires at {expires_at_ms}, but a subscription stays until it is deleted"));
    }
    let subscription = match Subscription::decode(packed) {
        Ok(subscription) => subscription,
        Err(error) => return findings.contradiction(key, error.to_string()),
    };
    let Subscription { revision, plan, start, end, cycle_anchor, fallen_to } = subscription;
    for (name, text) in [("revision", revision), ("plan", plan)] {
        if text.is_empty() {
            findings.contradiction(key, format!("the {name} is empty"));
        }
    }
    for (name, time) in [("start", start), ("end", end), ("cycle anchor", cycle_anchor)] {
        if !(0..NEVER_MS).contains(&time) {
            findings.contradiction(key, format!("the {name} is {time}, and no time"));
        }
    }
    if !fallen_to.is_empty() && end == 0 {
        findings.contradiction(key, format!("has fallen to plan {fallen_to:?}, but has no end"));
    }
}

fn counters(key: &str, ledger: &Ledger, findings: &mut Findings) {
    let Ledger { time, live, due, forget, memory, expires, opened, groups: _ } = ledger;
    let most_holds = i64::try_from(MOST_HOLDS).unwrap_or(i64::MAX);
    let bounded = [
        ("the time", *time, NEVER_MS),
        ("the number of live holds", *live, most_holds),
        ("the next deadline", *due, NEVER_MS),
        ("the next time to forget", *forget, NEVER_MS),
        ("the expiry of the memory", *memory, NEVER_MS),
        ("the expiry of the ledger", *expires, NEVER_MS),
        ("the number of windows opened", *opened, NEVER_MS),
    ];
    for (name, number, most) in bounded {
        if !(0..=most).contains(&number) {
            findings.contradiction(key, format!("{name} is {number}, and not in 0 to {most}"));
        }
    }
}

fn windows(key: &str, ledger: &Ledger, findings: &mut Findings) {
    let mut numbers = BTreeMap::new();
    for (group, window, is_current) in ledger.windows() {
        let name = window_name(group, window, is_current);
        for problem in window_problems(window, ledger) {
            findings.contradiction(key, format!("{name}: {problem}"));
        }
        if let Some(other) = numbers.insert(window.number, name.clone()) {
            findings.contradiction(key, format!("{name} has the same number as {other}"));
        }
    }
    for (group, windows) in &ledger.groups {
        for (place, one) in windows.iter().enumerate() {
            let same = |other: &&Window| (one.unit, one.period, one.anchor) == (other.unit, other.period, other.anchor);
            for other in windows[..place].iter().filter(same) {
                if one.start < other.end && other.start < one.end {
                    let (one, other) = (one.number, other.number);
                    findings.contradiction(key, format!("group {group:?}: windows {one} and {other} overlap"));
                }
            }
        }
    }
}

fn window_name(group: &str, window: &Window, is_current: bool) -> String {
    let which = if is_current { "current" } else { "earlier" };
    format!("group {group:?}, {which} window {}", window.number)
}

fn window_problems(window: &Window, ledger: &Ledger) -> Vec<String> {
    let Window { unit, period, anchor, start, end, kept, used, held, number } = *window;
    let mut problems = Vec::new();
    match unit_of(unit) {
        None => problems.push(format!("the unit is {unit}, and not in 1 to 4")),
        Some(unit) => {
            for (name, amount) in [("used", used), ("held", held)] {
                if !is_amount(amount, unit) {
                    problems.push(format!("{name} is {amount}, and not in 0 to {}", unit.max_units()));
                }
            }
        }
    }
    if !(1..=LIFETIME).contains(&period) {
        problems.push(format!("the period is {period}, and not in 1 to {LIFETIME}"));
    }
    if anchor < -1 {
        problems.push(format!("the anchor is {anchor}, and neither -1 for the calendar nor a time"));
    }
    if period == LIFETIME && (start, end, kept) != (0, NEVER_MS, NEVER_MS) {
        problems.push(format!("is of a lifetime, but starts at {start}, ends at {end} and is kept until {kept}"));
    }
    if period != LIFETIME && !(start < end && end < kept && kept < NEVER_MS) {
        problems.push(format!("starts at {start}, ends at {end} and is kept until {kept}, which are not in order"));
    }
    if !(1..=ledger.opened).contains(&number) {
        problems.push(format!("its number is not in 1 to {}, the number of windows opened", ledger.opened));
    }
    problems
}

fn ledger_expires(key: &str, ledger: &Ledger, expires_at_ms: i64, findings: &mut Findings) {
    let kept = ledger.windows().map(|(_, window, _)| window.kept).max().unwrap_or_default();
    if kept >= NEVER_MS {
        if expires_at_ms >= 0 {
            findings.contradiction(key, format!("expires at {expires_at_ms}, but has a lifetime group"));
        }
    } else if expires_at_ms < 0 {
        findings.contradiction(key, "never expires, but has no lifetime group".to_owned());
    } else if expires_at_ms < kept {
        findings.contradiction(key, format!("expires at {expires_at_ms}, before the last window is kept until {kept}"));
    } else if expires_at_ms < ledger.memory {
        let memory = ledger.memory;
        findings.contradiction(key, format!("expires at {expires_at_ms}, before the memory expires at {memory}"));
    }
    // A script that finds it noted leaves the key's expiry alone.
    let noted = if ledger.expires == NEVER_MS { -1 } else { ledger.expires };
    if (noted < 0) != (expires_at_ms < 0) || noted.abs_diff(expires_at_ms) > SLACK_MS.unsigned_abs() {
        findings.contradiction(key, format!("has the expiry {expires_at_ms}, but its ledger has noted {noted}"));
    }
}

/// Memory and agenda expire together, when the ledger says, and not before the last entry is forgotten.
fn memory_expiries(keys: [&str; 2], state: &UserState, ledger: Option<&Ledger>, findings: &mut Findings) {
    let live = state.holds.iter().filter_map(|(_, _, record)| Record::decode(record).ok()).map(|record| record.forget);
    let remembered = state.remembered.iter().filter_map(|score| time_of(score).ok()).map(|score| score - FORGETTING);
    let last = live.chain(remembered).max();
    for ((key, kind), expires_at_ms) in keys.into_iter().zip(&state.types[2..]).zip(&state.expiries_ms[2..]) {
        if kind == "none" {
            continue;
        }
        if *expires_at_ms < 0 {
            findings.contradiction(key, "never expires".to_owned());
            continue;
        }
        if let Some(last) = last.filter(|last| expires_at_ms < last) {
            let text = format!("expires at {expires_at_ms}, before its last entry is forgotten at {last}");
            findings.contradiction(key, text);
        }
        if let Some(ledger) = ledger.filter(|ledger| expires_at_ms.abs_diff(ledger.memory) > SLACK_MS.unsigned_abs()) {
            let noted = ledger.memory;
            findings.contradiction(key, format!("expires at {expires_at_ms}, but its ledger has noted {noted}"));
        }
    }
}

/// NO-LEAK: what is held is what the live holds hold, and comes back in time.
fn holds(key: &str, ledger: &Ledger, state: &UserState, findings: &mut Findings) {
    if let Some(first) = state.remembered.first().and_then(|score| time_of(score).ok()) {
        let forget_at = first - FORGETTING;
        if ledger.forget > forget_at {
            let noted = ledger.forget;
            findings.contradiction(
                key,
                format!("the next time to forget is {noted}, but the agenda's first entry is forgotten at {forget_at}"),
            );
        }
    }
    let agenda_expired = state.types[3] == "none" && ledger.memory <= state.redis_ms;
    if agenda_expired && ledger.live > 0 {
        // All of it is due, and the next call gives it back, provided that it looks.
        if ledger.due > ledger.memory {
            let (due, memory) = (ledger.due, ledger.memory);
            findings.contradiction(
                key,
                format!("the next deadline is {due}, but the agenda with all deadlines has expired at {memory}"),
            );
        }
        return;
    }
    if u64::try_from(ledger.live) != Ok(state.live) {
        let (noted, live) = (ledger.live, state.live);
        findings.contradiction(key, format!("the number of live holds is {noted}, but the agenda has {live}"));
    }
    if let Some(first) = state.holds.first().and_then(|(_, score, _)| time_of(score).ok())
        && ledger.due > first
    {
        let due = ledger.due;
        findings.contradiction(key, format!("the next deadline is {due}, but the agenda's first is {first}"));
    }
    if state.live > state.holds.len() as u64 {
        // The agenda has more than it may, which is reported; the rest was not read.
        return;
    }
    let mut holding: BTreeMap<(String, i64), i128> = BTreeMap::new();
    for (_, _, record) in &state.holds {
        let Ok(record) = Record::decode(record) else { continue };
        if record.state == State::Held {
            for (claim, _, _) in record.claims {
                *holding.entry((claim.group, claim.window)).or_default() += i128::from(claim.charge);
            }
        }
    }
    for (group, window, is_current) in ledger.windows().filter(|(_, window, _)| window.kept > ledger.time) {
        let expected = holding.get(&(group.to_owned(), window.number)).copied().unwrap_or_default();
        if i128::from(window.held) != expected {
            let name = window_name(group, window, is_current);
            let held = window.held;
            findings.contradiction(key, format!("{name}: held is {held}, but its live holds hold {expected}"));
        }
    }
}
