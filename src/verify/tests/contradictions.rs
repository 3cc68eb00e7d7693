//! What contradicts itself is found, and what is odd but possible is not taken for it.

use std::collections::BTreeMap;

use crate::domain::id::base64url;
use crate::ledger::formats;
use crate::ledger::inspection::ArchivedPlan;

use super::super::checks::{self, Findings};
use super::super::stored::{NEVER_MS, Plan};
use super::world::*;

type Case = (fn(&mut World), &'static [&'static str]);

/// Changes a user and holds what is found against what is expected: each expected text is part of a finding, and each finding has one.
fn check(cases: &[Case]) {
    for (number, (change, expected)) in cases.iter().enumerate() {
        let mut world = World::default();
        change(&mut world);
        let found = world.found();
        let expected: Vec<String> = expected.iter().map(|text| with_times(text)).collect();
        for text in &expected {
            assert!(found.iter().any(|line| line.contains(text)), "case {number}: expected {text:?}, found {found:#?}");
        }
        for line in &found {
            assert!(expected.iter().any(|text| line.contains(text)), "case {number}: {expected:#?}, found also {line}");
        }
    }
}

fn with_times(text: &str) -> String {
    let times = [("{ALONE}", ALONE), ("{PAGED}", PAGED), ("{PAGE}", PAGE), ("{NOW}", NOW)];
    times.iter().fold(text.to_owned(), |text, (name, time)| text.replace(name, &time.to_string()))
}

#[test]
fn a_user_without_contradictions_has_none() {
    assert_eq!(World::default().found(), [""; 0]);
    let judged = World::default().judged(true);
    let counted = judged.findings;
    let counts = (counted.windows, counted.live_holds, counted.reservations, counted.tracked);
    assert_eq!(counts, (3, 3, 5, 1));
    assert_eq!(judged.live, [FIRST, SECOND, THIRD]);
    assert_eq!(judged.open, BTreeMap::from([(PLAN, 4)]));
}

#[test]
fn what_is_wrong_with_a_state_is_found() {
    check(&[
        (|world| world.head.live = 2, &[": the number of live holds is 2, but its deadlines have 3"]),
        (
            |world| world.head.live = 10_001,
            &["live holds is 10001, and not in 0 to 10000", "is 10001, but its deadlines have 3"],
        ),
        (|world| world.head.pages = 2, &["the number of pages is 2, but its deadlines have 1"]),
        (|world| world.head.format = 2, &["the state has format 2, and this version of Tollgate knows 1"]),
        (|world| world.state = Some(vec![1, 2]), &["the state does not fit its format: it ends after too few bytes"]),
        (|world| world.head.young = 3, &["the number of the young memory is 3"]),
        (|world| world.head.subscribed = 3, &["`subscribed` is 3"]),
        (|world| world.head.plan = vec![0xff], &["it has text that is not UTF-8"]),
        (|world| world.head.expires = 5000, &["has the expiry -1, but its state has noted 5000"]),
        (
            |world| world.expiries_ms[0] = NOW + 5000,
            &["but has a subscription, which stays", "but its state has noted -1"],
        ),
        (
            |world| world.types[0] = "list",
            &[
                "is a list, and not a string",
                ":1: belongs to a user whose",
                ":2: belongs",
                "note: shows a reservation that nothing",
            ],
        ),
        (|world| world.memory.as_mut().unwrap().since = NOW + 1, &["the young memory began at "]),
        (|world| world.memory.as_mut().unwrap().corrected = NOW + 1, &["a wrong clock was corrected at "]),
        (|world| world.counters[0].used = 1 << 53, &["group \"a\", current window 3: used is 9007199254740992"]),
        (
            |world| world.counters[0].held = 13,
            &["group \"a\", current window 3: held is 13, but its deadlines hold 12"],
        ),
        (
            |world| world.windows[2].1.as_mut().unwrap().held = 1,
            &["group \"c\", current window 2: held is 1, but its deadlines hold 0"],
        ),
        (|world| world.windows[0].0.unit = 5, &["the unit is 5, and not in 1 to 4"]),
        (|world| world.windows[0].0.period = 8, &["the period is 8, and not in 1 to 7"]),
        (|world| world.windows[0].0.period = 7, &["is of a lifetime, but starts at "]),
        (|world| world.schedules[2].ends -= 1, &["is of a lifetime, but starts at 0, ends at 281474976710654"]),
        (|world| world.schedules[0].kept = NOW, &["which are not in order"]),
        (
            |world| world.schedules[0].ends = NOW + 5,
            &["its counter is current from", "at another time in the state, of group \"a\""],
        ),
        (|world| world.head.current_until = NOW + 10_000_001, &["its counter is current from {NOW} until "]),
        (|world| world.windows[0].0.place = 9, &["the counter of window 1 is 9"]),
        (|world| world.counters[0].schedule = 9, &["the schedule of window 1 is 9"]),
        (
            |world| world.windows[2].1.as_mut().unwrap().number = 3,
            &["has the same number as group \"a\", current window 3", "held is 0, but its deadlines hold 12"],
        ),
        (
            |world| world.windows[2].1.as_mut().unwrap().number = 5,
            &["its number is not in 1 to 4, the number of windows opened"],
        ),
        (|world| world.windows.truncate(1), &["counter 2 is that of window 4, which is not there"]),
        (|world| world.counters[2].used = 1, &["counter 3 has no window, but used 1 and held 0"]),
        (
            |world| {
                let own = formats::Counter { number: 1, schedule: 1, used: 0, held: 0 };
                world.windows.insert(1, (world.windows[0].0.clone(), Some(own)));
                world.windows[1].0.place = 0;
            },
            &["group \"a\": windows 1 and 3 overlap"],
        ),
        (
            |world| {
                let own = formats::Counter { number: 1, schedule: 1, used: 0, held: 0 };
                world.windows.push((world.windows[0].0.clone(), Some(own)));
                world.windows[3].0.place = 0;
            },
            &["group \"a\" is in two places, and not in one"],
        ),
        (
            |world| {
                let place = world.windows[0].0.clone();
                world.windows.insert(1, (place, None));
            },
            &["has the same number as", "has the same counter as", "windows 3 and 3 overlap"],
        ),
        (
            |world| {
                world.head.opened = 20;
                for number in 5..13 {
                    let at = NOW - 100_000 + number;
                    let schedule = formats::Schedule { anchor: 5, start: at, ends: at + 1, kept: NOW + 7 };
                    world.schedules.push(schedule);
                    let schedule = i64::try_from(world.schedules.len()).unwrap();
                    let own = formats::Counter { number, schedule, used: 0, held: 0 };
                    let window = formats::Window { place: 0, ..world.windows[0].0.clone() };
                    world.windows.insert(1, (window, Some(own)));
                }
            },
            &["group \"a\" has 9 windows, and not at most 8"],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_deadlines_is_found() {
    check(&[
        (|world| world.deadlines.swap(0, 1), &["deadline {ALONE} stands behind one that is not before it"]),
        (
            |world| world.deadlines[0].0.at -= 1,
            &["is no multiple of 100 ms", "has more: ", "deadline {ALONE} is missing, with 2 live"],
        ),
        (
            |world| world.deadlines[1].0.at += 100,
            &["is no multiple of 12800 ms", "note: page", "page {PAGE} has less: 0"],
        ),
        (
            |world| world.deadlines[0].0.holds = 3,
            &["is 3, but its deadlines have 4", "deadline {ALONE} has more: 3 holds, and not 2"],
        ),
        (
            |world| world.deadlines[0].1[0].amount = 8,
            &["held is 12, but its deadlines hold 13", "deadline {ALONE} has more: 8 in window 3, and not 7"],
        ),
        (
            |world| world.deadlines[0].1[0].amount = 6,
            &["held is 12, but its deadlines hold 11", "deadline {ALONE} has less: 6 in window 3, and not 7"],
        ),
        (|world| world.deadlines[0].1[1].balance = 3, &["window 3 of deadline 1 is there twice, and not there once"]),
        (
            |world| world.deadlines[0].1[1].balance = 5,
            &["holds 2 in window 5, which cannot be", "held is 3, but its deadlines hold 1", "has less: 0 in window 4"],
        ),
        (|world| world.deadlines[0].0.kind = 2, &["the kind of deadline 1 is 2, and not 0 or 1"]),
        (
            |world| world.deadlines[1].0.holds = 0,
            &[
                "is 3, but its deadlines have 2",
                "page {PAGE} is that of no hold",
                "page {PAGE} has less: 0 holds, and not 1",
            ],
        ),
        // A page that holds more than its buckets comes back as a whole.
        (
            |world| {
                world.deadlines[1].1[0].amount = 6;
                world.counters[0].held = 13;
            },
            &["note: page {PAGE} has more: 6 in window 3, and not 5, as its buckets say"],
        ),
        (
            |world| {
                world.deadlines[1].1[0].amount = 4;
                world.counters[0].held = 11;
            },
            &[": page {PAGE} has less: 4 in window 3, and not 5, as its buckets say"],
        ),
        (
            |world| {
                world.fields[0].remove(&bucket_name(PAGED));
            },
            &["the bucket of deadline {PAGED} has less: 0", "note: page {PAGE} has more"],
        ),
        (
            |world| {
                world.records[0].remove(&THIRD);
                world.holds.remove(&THIRD);
            },
            &["the bucket of deadline {PAGED} has more: 1 holds, and not 0", "has more: 5 in window 3", "more: 1 in"],
        ),
        (
            |world| {
                world.head.time = ALONE;
                world.redis_ms = ALONE;
                world.records[1].remove(&SECOND);
                world.holds.clear();
                world.holds.insert(THIRD, ("string", PAGED, "e"));
            },
            &[
                "deadline {ALONE} had passed when the state was written",
                "has more: 2 holds, and not 0",
                "has more: 7 in window 3",
                "has more: 2 in window 4",
            ],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_a_subscription_is_found() {
    check(&[
        (
            |world| {
                world.head.subscribed = 0;
                world.terms = None;
            },
            &["has a subscription, and says that there is none"],
        ),
        (|world| world.head.subscribed = 2, &["has fallen to the default plan, but its subscription ends at 0"]),
        (|world| world.terms.as_mut().unwrap().ends = 9, &["the subscription ends at 0, but the scripts go by 9"]),
        (|world| world.terms.as_mut().unwrap().revision = [0; 8], &["the revision of the subscription is empty"]),
        (|world| world.blob = b"x".to_vec(), &["the subscription is 120, and not a list of 5"]),
        (|world| world.blob = vec![0x95, 0xa0, 0, 0, 0, 0x90], &["the plan of the subscription is empty"]),
        (|world| world.blob = vec![0x95, 0xa1, b'p', 0xff, 0, 0, 0x90], &["the start of the subscription is -1"]),
        (
            |world| world.blob = vec![0x95, 0xa1, b'p', 0, 0, 0, 0x91, 0x92, 0xa1, b'a', 0xa1, b'x'],
            &["the quota of \"a\" is \"x\", and not a number or \"unlimited\""],
        ),
    ]);
}

/// A user without a subscription, whose state expires.
fn unsubscribed(world: &mut World) {
    world.head.subscribed = 0;
    world.terms = None;
    world.blob = Vec::new();
    world.windows.truncate(2);
    world.schedules.truncate(2);
    world.head.expires = NOW + 50_000_000;
    world.expiries_ms[0] = NOW + 50_000_000;
}

#[test]
fn a_state_expires_after_what_needs_it() {
    check(&[
        (unsubscribed, &[]),
        (
            |world| {
                unsubscribed(world);
                world.expiries_ms[0] = -1;
            },
            &["never expires, but has neither", "has the expiry -1"],
        ),
        (
            |world| {
                unsubscribed(world);
                world.head.expires = NOW + 30_000_000;
                world.expiries_ms[0] = NOW + 30_000_000;
            },
            &["before the last window is kept until "],
        ),
        (
            |world| {
                unsubscribed(world);
                let memory = world.memory.as_mut().unwrap();
                memory.young_expires = NOW + 60_000_000;
                world.expiries_ms[1] = NOW + 60_000_000;
            },
            &["before the memories expire at "],
        ),
        (
            |world| {
                unsubscribed(world);
                world.expiries_ms[0] += 1000;
            },
            &[],
        ),
        (
            |world| {
                unsubscribed(world);
                world.expiries_ms[0] += 1001;
            },
            &["but its state has noted "],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_a_memory_is_found() {
    check(&[
        (|world| world.expiries_ms[1] = -1, &[":1: never expires"]),
        (|world| world.expiries_ms[2] += 1001, &[":2: expires at "]),
        (
            |world| {
                world.types[2] = "none";
                world.expiries_ms[2] = -2;
                world.records[1].clear();
                world.holds.remove(&SECOND);
            },
            &[
                ":2: is gone, but the state says that it expires at ",
                "has more: 2 holds, and not 1",
                "has more: 7 in window 3",
                "has more: 2 in window 4",
            ],
        ),
        (
            |world| {
                world.fields[0].remove(&b"u"[..]);
            },
            &[":1: has no undo"],
        ),
        (
            |world| {
                world.fields[0].insert(b"x".to_vec(), Vec::new());
            },
            &[":1: field \"x\": is neither a record nor a bucket nor the undo"],
        ),
        (
            |world| {
                world.fields[0].insert(bucket_name(ALONE), vec![1]);
            },
            &["the bucket does not fit its format: it ends after too few bytes"],
        ),
        (
            |world| {
                world.fields[0].insert(bucket_name(ALONE + 1), bucket(0, &[]));
            },
            &["its deadline is no multiple of 100 ms"],
        ),
        (
            |world| {
                world.fields[0].insert(bucket_name(PAGED - 100), bucket(1, &[]));
            },
            &["has more: 1 holds, and not 0, as its records say", ": page {PAGE} has less: 1 holds, and not 2"],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_an_undo_is_found() {
    check(&[
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), vec![1]);
            },
            &[":2: the undo does not fit its format"],
        ),
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), [undo(6, &[]), vec![1]].concat());
            },
            &[":2: the undo is followed by 1 byte too many"],
        ),
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), undo(6, &[(&FIRST, None), (&FIRST, None)]));
            },
            &["of the undo is there twice"],
        ),
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), undo(6, &[(b"x", None)]));
            },
            &["field \"x\" of the undo is another one, and not a record or a bucket"],
        ),
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), undo(6, &[(&FIRST, Some(Vec::new()))]));
            },
            &["of the undo is 1, and its value of 0 bytes, and not 0 without, or 1 with one"],
        ),
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), undo(6, &[(&FIRST, Some(vec![1]))]));
            },
            &[" before: the record does not fit its format"],
        ),
        (
            |world| {
                world.fields[1].insert(b"u".to_vec(), undo(6, &[(&bucket_name(ALONE), Some(vec![1]))]));
            },
            &["before: the bucket does not fit its format"],
        ),
        (
            |world| {
                world.fields[0].insert(b"u".to_vec(), undo(11, &[]));
            },
            &[":1: the undo has sequence 11, but the state has 9", ":1: note: a script failed"],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_a_record_is_found() {
    fn head(world: &mut World, change: fn(&mut formats::Record)) {
        change(&mut world.record(RELEASED).head);
    }
    check(&[
        (|world| head(world, |head| head.format = 2), &["the record has format 2, and this version"]),
        (|world| head(world, |head| head.state = 6), &["the state is 6, and not in 1 to 5"]),
        (|world| head(world, |head| head.paged = 2), &["`paged` of the record is 2"]),
        (|world| head(world, |head| head.deadline = 0), &["the deadline 0 and the time to forget it, "]),
        (|world| head(world, |head| head.forget = head.deadline - 1), &["are not in order"]),
        (|world| head(world, |head| head.forget = NEVER_MS), &["are not in order", "but its memory expires before"]),
        (|world| head(world, |head| head.forget = EXPIRES[0] + 1), &["but its memory expires before, at "]),
        (|world| head(world, |head| head.deadline += 1), &["is no multiple of 100 ms"]),
        (|world| head(world, |head| head.what = vec![0xc1]), &["the event is no MessagePack"]),
        (|world| head(world, |head| head.what = Vec::new()), &["the event is one of 0 values, and not one of 2"]),
        (|world| head(world, |head| head.what = vec![1, 0x90]), &["the event's name is 1, and not text"]),
        (|world| head(world, |head| head.what = vec![0xa1, b'e', 1]), &["the event's metadata is 1, and not a map"]),
        (
            |world| head(world, |head| head.what = vec![0xa1, b'e', 0x81, 0xa1, b'k', 1]),
            &["the event's metadata \"k\" is 1, and not text"],
        ),
        (|world| head(world, |head| head.quantities = vec![1]), &["the quantities is 1, and not a list"]),
        (|world| head(world, |head| head.quantities = vec![0x91, 1]), &["the quantities is of an odd length"]),
        (
            |world| head(world, |head| head.quantities = vec![0x94, 1, 5, 1, 5]),
            &["place 1 of the quantities is there twice"],
        ),
        (
            |world| head(world, |head| head.settled = vec![0x92, 1, 0xc2]),
            &["the value at place 1 of the settled quantities is false, and not a quantity"],
        ),
        (|world| head(world, |head| head.columns = 3), &["the code of the columns is 3"]),
        (|world| head(world, |head| head.columns = 8), &["the code of the columns is 8"]),
        (|world| head(world, |head| head.columns = 1), &["committed 1 does not fit its format"]),
        (|world| world.record(RELEASED).claims.clear(), &["the list of claims is empty, and not one of at least 1"]),
        (|world| world.record(RELEASED).spans[0].ends = 1, &["span 1 starts at", "its window 3 is at another time"]),
        (|world| world.record(RELEASED).claims[0].group = 0, &["group 0 has no place in a plan"]),
        (|world| world.record(RELEASED).claims[0].group = 2, &["group 2 is charged twice"]),
        (|world| world.record(RELEASED).claims[0].span = 3, &["its span is number 3, and there are 2"]),
        (
            |world| world.record(RELEASED).claims[0].window = 5,
            &["its window is number 5, and not in 1 to 4, as were opened"],
        ),
        (|world| world.record(RELEASED).claims[0].charge = 1 << 53, &["the charge is 9007199254740992"]),
        (
            |world| {
                world.windows[0].0.unit = 4;
                world.record(RELEASED).claims[0].charge = 8_000_000_000_000_001;
            },
            &["the charge is 8000000000000001, and not in 0 to 8000000000000000"],
        ),
        (
            |world| world.record(RELEASED).columns[0] = Some(vec![3, 1]),
            &["is released, but group 1 committed 3", "is released, but group 2 committed 1 and refunded 0"],
        ),
        (
            |world| world.record(COMMITTED).columns[1] = Some(vec![5, 0]),
            &["group 1 committed 4 and refunded 5, which cannot be"],
        ),
        (
            |world| world.record(COMMITTED).columns[0] = Some(vec![1 << 53, 1]),
            &["committed 9007199254740992 and refunded 1, which cannot be"],
        ),
        (|world| world.record(COMMITTED).columns[2] = Some(vec![-2, 1]), &["group 1: the quota is -2"]),
        (|world| world.record(TRACKED).columns[0] = Some(vec![3, 0]), &["group 1 did not apply 3 of 2"]),
        (|world| world.record(TRACKED).columns[1] = Some(vec![0, 0]), &["is a tracked event, but group "]),
        (|world| world.record(TRACKED).head.deadline = 100, &["are not in order"]),
        // SELF-CONTAINED: what a deadline gives back is what its records say.
        (
            |world| world.record(FIRST).claims[0].charge = 6,
            &["deadline {ALONE} has less: 7 in window 3, and not 8, as its records say"],
        ),
        (
            |world| world.record(FIRST).head.state = 4,
            &["deadline {ALONE} has more: ", "shows a reservation that is released"],
        ),
        (
            |world| world.record(FIRST).head.paged = 1,
            &["deadline {ALONE} has more: ", "the bucket of deadline {ALONE} has less: 0"],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_the_key_of_a_hold_is_found() {
    check(&[
        (
            |world| {
                world.holds.remove(&FIRST);
            },
            &[":h:AQEBAQEBAQEBAQEBAQEBAQ: is missing, but its reservation is live until {ALONE}"],
        ),
        (|world| world.holds.get_mut(&FIRST).unwrap().0 = "list", &["is a list, and not a string"]),
        (|world| world.holds.get_mut(&FIRST).unwrap().1 = -1, &["never expires, but its reservation is live until"]),
        (|world| world.holds.get_mut(&FIRST).unwrap().1 += 1001, &["but its reservation is live until {ALONE}"]),
        (|world| world.holds.get_mut(&FIRST).unwrap().1 -= 30_000, &[]),
        (|world| world.holds.get_mut(&FIRST).unwrap().2 = "x", &["shows \"x\", but its reservation is of event \"e\""]),
        (
            |world| {
                world.holds.insert(COMMITTED, ("string", ALONE, "e"));
            },
            &["shows a reservation that is committed"],
        ),
        (
            |world| {
                world.holds.insert(TRACKED, ("string", ALONE, "e"));
            },
            &["shows a reservation that is a tracked event"],
        ),
        // A script has failed that made it, or its user was deleted.
        (
            |world| {
                world.holds.insert([0; 16], ("string", ALONE, "e"));
            },
            &["note: shows a reservation that nothing is known of, and expires at {ALONE}"],
        ),
        (
            |world| {
                world.holds.insert([0; 16], ("string", -1, "e"));
            },
            &["AAAA: shows a reservation that nothing is known of, and never expires"],
        ),
        (
            |world| {
                world.holds.insert([0; 16], ("string", NOW, "e"));
            },
            &[],
        ),
    ]);
}

/// As a script leaves it that wrote the memory and not the state: `FIRST` was committed, a new one reserved for a page.
fn half_done(world: &mut World) {
    let before = world.records[0][&FIRST].bytes();
    world.record(FIRST).head.state = 2;
    world.holds.remove(&FIRST);
    let mut made = world.records[0][&THIRD].clone();
    made.head.suffix = [0; 6];
    world.records[0].insert([0; 16], made);
    let name = bucket_name(PAGED);
    let bucket_before = world.fields[0].insert(name.clone(), bucket(2, &[(3, 10), (4, 2)]));
    let fields: [(&[u8], _); 3] = [(&FIRST, Some(before)), (&[0; 16], None), (&name, bucket_before)];
    let undo = undo(10, &fields);
    world.fields[0].insert(b"u".to_vec(), undo);
    world.expiries_ms[1] += 120_000;
}

#[test]
fn what_is_odd_but_possible_is_no_contradiction() {
    const FAILED: &str = ":1: note: a script failed after it wrote this memory and before it wrote the state: what it wrote does not count";
    let cases: &[(fn(&mut World), &[&str])] = &[
        (half_done, &[FAILED]),
        // What a failed script has replaced is not counted twice, where the old memory has the field as well.
        (
            |world| {
                let second = Record::new(2, ALONE, [2, 1]);
                world.records[0].insert(SECOND, second);
                world.fields[0].insert(b"u".to_vec(), undo(10, &[(&SECOND, None)]));
            },
            &[FAILED],
        ),
        // It has failed before the first state was written.
        (
            |world| {
                world.types = ["none", "hash", "none"];
                world.expiries_ms = [-2, -1, -2];
                world.records = [BTreeMap::from([(FIRST, Record::new(1, ALONE, [5, 1]))]), BTreeMap::new()];
                world.fields = [BTreeMap::from([(b"u".to_vec(), undo(1, &[(&FIRST, None)]))]), BTreeMap::new()];
                world.holds.clear();
            },
            &[":1: note: belongs to a user whose state knows of no memory: a script failed before it wrote the state"],
        ),
        (
            |world| {
                world.types[0] = "none";
                world.expiries_ms[0] = -2;
                world.holds.clear();
            },
            &[":1: belongs to a user whose state knows of no memory", ":2: belongs to a user"],
        ),
        // The old memory has expired, and nothing in it counts.
        (
            |world| {
                world.memory.as_mut().unwrap().old_expires = NOW - 5;
                world.types[2] = "none";
                world.expiries_ms[2] = -2;
                world.records[1].clear();
                world.holds.remove(&SECOND);
                world.deadlines[0].0.holds = 1;
                world.deadlines[0].1 = vec![part(3, 5), part(4, 1)];
                world.head.live = 2;
                (world.counters[0].held, world.counters[1].held) = (10, 2);
            },
            &[],
        ),
        // Nobody gives back what a window holds that is kept no longer.
        (
            |world| {
                world.head.current_until = 0;
                (world.schedules[0].start, world.schedules[0].ends, world.schedules[0].kept) = (1, 2, 3);
                for record in world.records.iter_mut().flat_map(|records| records.values_mut()) {
                    record.spans[0] = formats::Span { start: 1, ends: 2 };
                }
                world.counters[0].held = 9;
                world.deadlines[0].1[0].amount = 1;
            },
            &[],
        ),
        // The key ends by Redis's clock, the reservation by the user's, which is ahead.
        (
            |world| {
                world.redis_ms = NOW - 60_000;
                world.holds.remove(&FIRST);
            },
            &["note: the user's clock is 60000 ms ahead of Redis's, and stands until then"],
        ),
        (
            |world| world.redis_ms = NOW - 300_001,
            &[
                "note: the user's clock is 300001 ms ahead of Redis's, which was wrong: the next call follows Redis's again",
            ],
        ),
        // All live holds lapsed when a wrong clock was set right; the keys that it wrote stay.
        (
            |world| {
                let memory = world.memory.as_mut().unwrap();
                (memory.epoch, memory.corrected) = (4, NOW);
                world.deadlines.clear();
                (world.head.live, world.head.pages) = (0, 0);
                (world.counters[0].held, world.counters[1].held) = (0, 0);
            },
            &[
                "the bucket of deadline {PAGED} has more",
                "page {PAGE} has less",
                "note: shows a reservation that lapsed when Redis's clock, which had been ahead, was set right",
            ],
        ),
    ];
    check(cases);
}

fn part(balance: i64, amount: i64) -> formats::Part {
    formats::Part { balance, amount }
}

#[test]
fn what_was_not_seen_at_one_moment_is_not_held_against_each_other() {
    let mut world = World::default();
    world.record(FIRST).claims[0].charge = 6;
    assert_eq!(world.judged(true).findings.found.len(), 1);
    let judged = world.judged(false);
    assert_eq!(judged.findings.found, []);
    assert_eq!(judged.live, [FIRST, SECOND, THIRD]);
}

#[test]
fn the_sum_of_amounts_that_are_each_possible_may_be_larger_than_any_counter() {
    let mut world = World::default();
    let most = (1 << 53) - 1;
    for field in [FIRST, SECOND] {
        world.record(field).claims[0].charge = most;
    }
    world.deadlines[0].1[0].amount = 1 << 54;
    world.counters[0].held = most;
    let found = world.found();
    assert!(
        found.iter().any(|line| line.ends_with("held is 9007199254740991, but its deadlines hold 18014398509481989"))
    );
    assert!(
        found.iter().any(|line| line.contains("has more: 18014398509481984 in window 3, and not 18014398509481982"))
    );
}

/// A plan of two groups, as the archive has it.
fn plan_message(second: &str) -> Vec<u8> {
    let group = |id: &'static str, unit, schedule| (id, unit, schedule, -1, true, "label", [(1, "e", [0; 0], 1)]);
    rmp_serde::to_vec(&(
        "p",
        "carry",
        ["tokens"],
        [(5, false), (6, false)],
        [group("a", 2, 1), (group(second_id(second), 1, 2))],
    ))
    .unwrap()
}

fn second_id(id: &str) -> &'static str {
    if id == "b" { "b" } else { "other" }
}

#[test]
fn plans_are_what_their_keys_say_and_records_mean_their_groups() {
    let archived = |kind: &str, expires_at_ms, message: Vec<u8>| {
        let mut findings = Findings::default();
        let digest = super::super::checks::digest_of(&plan_message("b"));
        let message = serde_bytes::ByteBuf::from(message);
        let archived = ArchivedPlan { kind: kind.to_owned(), expires_at_ms, message };
        let plan = checks::archived_plan(&digest, &archived, &mut findings);
        (plan.is_some(), findings.found.into_iter().map(|finding| finding.what).collect::<Vec<_>>())
    };
    assert_eq!(archived("string", NOW, plan_message("b")), (true, Vec::new()));
    assert_eq!(archived("none", -2, Vec::new()), (false, Vec::new()));
    assert_eq!(archived("hash", NOW, Vec::new()), (false, vec!["is a hash, and not a string".to_owned()]));
    assert_eq!(archived("string", -1, plan_message("b")), (true, vec!["never expires".to_owned()]));
    let (known, found) = archived("string", NOW, plan_message("c"));
    assert!(!known && found[0].starts_with("has a plan whose digest is "), "{found:?}");

    let plan = |second| Plan::decode(&plan_message(second)).unwrap();
    let judge = |plan: Option<Plan>| {
        let mut judged = World::default().judged(true);
        checks::record_plans(&keys(), &mut judged, &BTreeMap::from([(PLAN, plan)]));
        judged.findings.found.into_iter().map(|finding| finding.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(judge(Some(plan("b"))), [""; 0]);
    let found = judge(Some(plan("c")));
    assert!(found.len() == 1 && found[0].contains("has window 4 for group \"other\" of plan "), "{found:?}");
    let mut short = plan("b");
    short.groups.pop();
    let found = judge(Some(short));
    assert!(
        found.len() == 1 && found[0].contains("has group 2 of plan ") && found[0].ends_with("which has 1"),
        "{found:?}"
    );
    let found = judge(None);
    let text = format!(": note: plan {} is not in the archive: 4 of its reservations", base64url(&PLAN));
    assert!(found.len() == 1 && found[0].contains(&text), "{found:?}");
}
