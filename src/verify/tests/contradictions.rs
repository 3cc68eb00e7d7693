//! Tests that contradictions in a state are found.

use std::collections::BTreeMap;

use crate::ledger::formats;

use super::world::*;

pub type Case = (fn(&mut World), &'static [&'static str]);

/// Changes a user, and compares the findings with the expected ones: each expected text is part of a finding, and each
/// finding has one.
pub fn check(cases: &[Case]) {
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

/// Adds a mark for group `a`, with so much used.
fn add_mark(world: &mut World, used: i64) {
    world.schedules.push(formats::Schedule { start: 0, ends: 0, ..world.schedules[0].clone() });
    let schedule = i64::try_from(world.schedules.len()).unwrap();
    let own = formats::Counter { number: 1, schedule, used, held: 0 };
    world.windows.insert(1, (world.windows[0].0.clone(), Some(own)));
    world.windows[1].0.place = 0;
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
        (|world| world.head.format = 3, &["the state has format 3, and this version of Tollgate knows 2"]),
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
                ":1: note: belongs to a user whose",
                ":2: note: belongs",
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
        (|world| world.windows[0].0.period = 8, &["the period is 8, and neither in 1 to 7 nor a length"]),
        (|world| world.windows[0].0.period = 7, &["is of a lifetime, but starts at "]),
        // Wide windows are as good, also those of a given length.
        (|world| world.head.format = 2, &[]),
        (|world| (world.head.format, world.windows[0].0.period, world.reset) = (2, 400, 9), &[]),
        (
            |world| (world.head.format, world.windows[0].0.period) = (2, 100),
            &["the period is 100, and neither in 1 to 7 nor a length"],
        ),
        (
            |world| (world.head.format, world.reset) = (2, 10),
            &["was reset with writing 10 of the memory, which was written 9 times"],
        ),
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
        // A mark has no length, and counts nothing.
        (|world| add_mark(world, 0), &[]),
        (|world| add_mark(world, 1), &["group \"a\", earlier window 1: starts at 0, ends at 0", "not in order"]),
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
            &["is no multiple of 6400 ms", "note: page", "page {PAGE} has less: 0"],
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
        (|world| world.wrong_size = 1, &["the size of deadline 1 is 35 bytes, and not 36, as it says"]),
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
