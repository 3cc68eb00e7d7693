//! The state by itself: its numbers, windows, deadlines, and when its key expires.

use std::collections::BTreeMap;

use crate::domain::amount::MAX_UNITS;
use crate::domain::counted::counted;
use crate::domain::plan::Length;
use crate::ledger::formats::{COUNTS, FIRST_LENGTH, MOST_AHEAD_MS, MOST_WINDOWS, PAGE_MS, TENTH_MS};

use super::super::stored::{NEVER_MS, State, Subscription, Window};
use super::{Findings, SLACK_MS, is_amount, unit_of};

const LIFETIME: i64 = 7;

/// The most live holds a user may have.
const MOST_HOLDS: i64 = 10_000;

/// Checks the invariants of a state alone.
pub fn state(key: &str, state: &State, redis_ms: i64, expires_at_ms: i64, findings: &mut Findings) {
    let time = state.head.head.time;
    if time > redis_ms + SLACK_MS {
        let ahead_ms = time - redis_ms;
        let what_follows = if ahead_ms > MOST_AHEAD_MS {
            "which was wrong: the next call follows Redis's again, and all live holds lapse"
        } else {
            "and stands until then"
        };
        findings.note(key, format!("the user's clock is {ahead_ms} ms ahead of Redis's, {what_follows}"));
    }
    findings.windows += state.windows().count() as u64;
    findings.live_holds += u64::try_from(state.head.head.live).unwrap_or_default();
    for problem in head_problems(state) {
        findings.contradiction(key, problem);
    }
    windows(key, state, findings);
    deadlines(key, state, redis_ms, findings);
    held(key, state, findings);
    expiry(key, state, expires_at_ms, findings);
    subscription(key, state, findings);
}

fn head_problems(state: &State) -> Vec<String> {
    let mut problems = Vec::new();
    let head = &state.head.head;
    if head.live > MOST_HOLDS {
        problems.push(format!("the number of live holds is {}, and not in 0 to {MOST_HOLDS}", head.live));
    }
    if head.time == 0 || head.time == NEVER_MS {
        problems.push(format!("the time is {}, and no time", head.time));
    }
    let pages = state.deadlines.iter().filter(|deadline| deadline.is_page).count();
    if usize::try_from(head.pages) != Ok(pages) {
        problems.push(format!("the number of pages is {}, but its deadlines have {pages}", head.pages));
    }
    if let Some(memory) = &state.head.memory {
        if memory.since > head.time {
            problems.push(format!("the young memory began at {}, after the user's time {}", memory.since, head.time));
        }
        if memory.corrected > head.time {
            let corrected = memory.corrected;
            problems.push(format!("a wrong clock was corrected at {corrected}, after the user's time {}", head.time));
        }
        if memory.sequence == 0 {
            problems.push("has a memory that was never written".to_owned());
        }
    } else if head.live > 0 {
        problems.push(format!("has {}, but no memory", counted(usize::try_from(head.live).unwrap_or(0), "live hold")));
    }
    problems
}

fn windows(key: &str, state: &State, findings: &mut Findings) {
    let (mut numbers, mut places) = (BTreeMap::new(), BTreeMap::new());
    for (group, window, is_current) in state.windows() {
        let name = window_name(group, window, is_current);
        for problem in window_problems(window, state) {
            findings.contradiction(key, format!("{name}: {problem}"));
        }
        if let Some(other) = numbers.insert(window.number(), name.clone()) {
            findings.contradiction(key, format!("{name} has the same number as {other}"));
        }
        let place = window.stored.place;
        if place != 0
            && let Some(other) = places.insert(place, name.clone())
        {
            findings.contradiction(key, format!("{name} has the same counter as {other}"));
        }
    }
    for (counter, place) in state.counters.iter().zip(1..) {
        match (counter.number != 0, places.contains_key(&place)) {
            (true, false) => {
                let number = counter.number;
                findings.contradiction(key, format!("counter {place} is that of window {number}, which is not there"));
            }
            (false, false) if (counter.used, counter.held) != (0, 0) => {
                let (used, held) = (counter.used, counter.held);
                findings.contradiction(key, format!("counter {place} has no window, but used {used} and held {held}"));
            }
            _ => {}
        }
    }
    for (group, windows) in &state.groups {
        let count = windows.iter().filter(|window| !window.is_mark()).count();
        if count as i64 > MOST_WINDOWS {
            findings.contradiction(key, format!("group {group:?} has {count} windows, and not at most {MOST_WINDOWS}"));
        }
        for (place, one) in windows.iter().enumerate() {
            for other in windows[..place].iter().filter(|other| one.kind() == other.kind()) {
                let (first, second) = (&one.schedule, &other.schedule);
                if first.start < second.ends && second.start < first.ends {
                    let (one, other) = (one.number(), other.number());
                    findings.contradiction(key, format!("group {group:?}: windows {one} and {other} overlap"));
                }
            }
        }
    }
}

fn window_name(group: &str, window: &Window, is_current: bool) -> String {
    let which = if is_current { "current" } else { "earlier" };
    format!("group {group:?}, {which} window {}", window.number())
}

fn window_problems(window: &Window, state: &State) -> Vec<String> {
    let (stored, counter, schedule) = (&window.stored, &window.counter, &window.schedule);
    let (unit, period, start, ends, kept) = (stored.unit, stored.period, schedule.start, schedule.ends, schedule.kept);
    let mut problems = Vec::new();
    match unit_of(unit) {
        None => problems.push(format!("the unit is {unit}, and not in 1 to 4")),
        Some(unit) => {
            for (name, amount) in [("used", counter.used), ("held", counter.held)] {
                if !is_amount(amount, unit) {
                    problems.push(format!("{name} is {amount}, and not in 0 to {}", unit.max_units()));
                }
            }
        }
    }
    let is_length = (FIRST_LENGTH + 1..=FIRST_LENGTH + i64::from(Length::MOST_MINUTES)).contains(&period);
    if !(1..=LIFETIME).contains(&period) && !is_length {
        problems.push(format!("the period is {period}, and neither in 1 to {LIFETIME} nor a length"));
    }
    let sequence = state.head.memory.as_ref().map_or(0, |memory| memory.sequence);
    if stored.reset > sequence {
        problems
            .push(format!("was reset with writing {} of the memory, which was written {sequence} times", stored.reset));
    }
    if period == LIFETIME && (start, ends, kept) != (0, NEVER_MS, NEVER_MS) {
        problems.push(format!("is of a lifetime, but starts at {start}, ends at {ends} and is kept until {kept}"));
    }
    let is_empty_mark = window.is_mark() && (counter.used, counter.held) == (0, 0);
    if period != LIFETIME && !((start < ends || is_empty_mark) && ends < kept && kept < NEVER_MS) {
        problems.push(format!("starts at {start}, ends at {ends} and is kept until {kept}, which are not in order"));
    }
    let head = &state.head.head;
    if !(1..=head.opened).contains(&counter.number) {
        problems.push(format!("its number is not in 1 to {}, the number of windows opened", head.opened));
    }
    // While the counters are those of the current windows, scripts do not look at when these end.
    let until = head.current_until;
    if stored.place != 0 && head.time < until && !(start <= head.time && until <= ends) {
        let time = head.time;
        problems.push(format!(
            "its counter is current from {time} until {until}, but it starts at {start} and ends at {ends}"
        ));
    }
    problems
}

fn deadlines(key: &str, state: &State, redis_ms: i64, findings: &mut Findings) {
    let head = &state.head.head;
    let mut before = None;
    for deadline in &state.deadlines {
        let (at, time) = (deadline.at, head.time);
        let name = if deadline.is_page { format!("page {at}") } else { format!("deadline {at}") };
        if before.is_some_and(|before| before >= (at, deadline.is_page)) {
            findings.contradiction(key, format!("{name} stands behind one that is not before it"));
        }
        before = Some((at, deadline.is_page));
        let step = if deadline.is_page { PAGE_MS } else { TENTH_MS };
        if at % step != 0 {
            findings.contradiction(key, format!("{name} is no multiple of {step} ms"));
        }
        // A clock that is ahead was set, perhaps with nothing given back.
        if at <= time && time <= redis_ms {
            findings
                .contradiction(key, format!("{name} had passed when the state was written at {time}, and it holds"));
        }
        if deadline.sum.holds == 0 {
            findings.contradiction(key, format!("{name} is that of no hold"));
        }
        for (window, amount) in &deadline.sum.parts {
            let number = window % COUNTS;
            if !(1..=head.opened).contains(&number) || *amount > MAX_UNITS.into() {
                findings.contradiction(key, format!("{name} holds {amount} in window {number}, which cannot be"));
            }
            // A version that knows only the first format would give it back.
            if *window >= COUNTS && head.format == 1 {
                findings.contradiction(key, format!("{name} counts in window {number}, but the state has format 1"));
            }
        }
    }
    let holds: i64 = state.deadlines.iter().map(|deadline| deadline.sum.holds).sum();
    if holds != head.live {
        let live = head.live;
        findings.contradiction(key, format!("the number of live holds is {live}, but its deadlines have {holds}"));
    }
}

/// NO-LEAK: what is held is what comes back at the deadlines.
fn held(key: &str, state: &State, findings: &mut Findings) {
    let mut holding: BTreeMap<i64, i128> = BTreeMap::new();
    for (window, amount) in state.deadlines.iter().flat_map(|deadline| &deadline.sum.parts) {
        *holding.entry(*window % COUNTS).or_default() += amount;
    }
    let kept = state.windows().filter(|(_, window, _)| window.schedule.kept > state.head.head.time);
    for (group, window, is_current) in kept {
        let expected = holding.get(&window.number()).copied().unwrap_or_default();
        let held = window.counter.held;
        if i128::from(held) != expected {
            let name = window_name(group, window, is_current);
            findings.contradiction(key, format!("{name}: held is {held}, but its deadlines hold {expected}"));
        }
    }
}

fn expiry(key: &str, state: &State, expires_at_ms: i64, findings: &mut Findings) {
    let head = &state.head.head;
    let kept = state.windows().map(|(_, window, _)| window.schedule.kept).max().unwrap_or_default();
    let stays = if head.subscribed != 0 {
        Some("a subscription, which stays until it is deleted")
    } else {
        (kept >= NEVER_MS).then_some("a lifetime group")
    };
    let memory = state.head.memory.as_ref().map_or(0, |memory| memory.young_expires.max(memory.old_expires));
    match stays {
        Some(what) if expires_at_ms >= 0 => {
            findings.contradiction(key, format!("expires at {expires_at_ms}, but has {what}"));
        }
        None if expires_at_ms < 0 => {
            findings
                .contradiction(key, "never expires, but has neither a subscription nor a lifetime group".to_owned());
        }
        None if expires_at_ms < kept => {
            let text = format!("expires at {expires_at_ms}, before the last window is kept until {kept}");
            findings.contradiction(key, text);
        }
        None if expires_at_ms < memory => {
            let text = format!("expires at {expires_at_ms}, before the memories expire at {memory}");
            findings.contradiction(key, text);
        }
        _ => {}
    }
    // A script that finds it noted leaves the key's expiry alone.
    let noted = if head.expires == 0 { -1 } else { head.expires };
    if (noted < 0) != (expires_at_ms < 0) || noted.abs_diff(expires_at_ms) > SLACK_MS.unsigned_abs() {
        findings.contradiction(key, format!("has the expiry {expires_at_ms}, but its state has noted {noted}"));
    }
}

fn subscription(key: &str, state: &State, findings: &mut Findings) {
    let head = &state.head.head;
    let Some(terms) = &state.terms else {
        if !state.blob.is_empty() {
            findings.contradiction(key, "has a subscription, and says that there is none".to_owned());
        }
        return;
    };
    if head.subscribed == 2 && (terms.ends == 0 || terms.ends > head.time) {
        let (ends, time) = (terms.ends, head.time);
        let text =
            format!("has fallen to the default plan, but its subscription ends at {ends}, and the time is {time}");
        findings.contradiction(key, text);
    }
    if terms.revision == [0; 8] {
        findings.contradiction(key, "the revision of the subscription is empty".to_owned());
    }
    let Subscription { plan, start, end, cycle_anchor } = match Subscription::decode(&state.blob) {
        Ok(subscription) => subscription,
        Err(error) => return findings.contradiction(key, error.to_string()),
    };
    if plan.is_empty() {
        findings.contradiction(key, "the plan of the subscription is empty".to_owned());
    }
    for (name, time) in [("start", start), ("end", end), ("cycle anchor", cycle_anchor)] {
        if !(0..NEVER_MS).contains(&time) {
            findings.contradiction(key, format!("the {name} of the subscription is {time}, and no time"));
        }
    }
    if end != terms.ends {
        let noted = terms.ends;
        findings.contradiction(key, format!("the subscription ends at {end}, but the scripts go by {noted}"));
    }
}
