//! Tests that contradictions in memories, in keys of holds and in plans are found, and that odd but possible data is
//! noted.

use std::collections::BTreeMap;

use crate::domain::id::base64url;
use crate::ledger::formats;
use crate::ledger::inspection::ArchivedPlan;

use super::super::checks::{self, Findings};
use super::super::stored::{NEVER_MS, Plan};
use super::contradictions::{Case, check};
use super::world::*;

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
                ":2: note: is gone, but the state says that it expires at ",
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
        (|world| head(world, |head| head.format = 3), &["the record has format 3, and this version"]),
        (|world| head(world, |head| head.state = 7), &["the state is 7, and not in 1 to 6"]),
        (|world| head(world, |head| head.state = 6), &["the reservation of an Extend is 3 bytes, and not a field"]),
        (
            |world| {
                world.record(TRACKED).head.state = 6;
                world.record(TRACKED).head.what = FIRST.to_vec();
                world.record(TRACKED).columns[0] = None;
            },
            &["the deadline 0 and the time to forget it, "],
        ),
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
        (
            |world| head(world, |head| head.settled = vec![0x92, 0xc2, 0xa1, b'x']),
            &["the value at place 2 of the settled quantities is"],
        ),
        (
            |world| head(world, |head| head.settled = vec![0x91, 1, 0x92, 1, 0xa1, b'x']),
            &["the value at place 2 of the settled quantities is"],
        ),
        (
            |world| head(world, |head| head.settled = vec![0x90, 0x91, 1, 0x90]),
            &["the settled quantities is 3 lists, and not 1 or 2"],
        ),
        (
            |world| head(world, |head| head.quantities = vec![0x91, 0x93, 1, 2, 3]),
            &["the value at place 1 of the quantities is"],
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
            |world| world.record(RELEASED).claims[0].balance = 5,
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
        (
            |world| world.record(RELEASED).with_life([2, 1]).0.on_expiry = 2,
            &["`on_expiry` of the record is 2, and not 0 or 1"],
        ),
        (
            |world| world.record(RELEASED).with_life([2, 1]).0.extensions = vec![1],
            &["the list of Extends is 1 byte, and not 16 bytes for each"],
        ),
        (|world| world.record(RELEASED).with_life([2, 1]).0.named = vec![1], &["the named quantities is 1"]),
        (|world| world.record(RELEASED).with_life([2, 1]).0.added = vec![1], &["the added quantities is 1"]),
        (
            |world| world.record(RELEASED).with_life([2, 1]).0.sequence = 10,
            &["was written with writing 10 of the memory, which was written 9 times"],
        ),
        (|world| world.record(RELEASED).with_life([2, 1]).2[0] = 4, &["group 1: 5 is due and 4 of 3 locked"]),
        (
            |world| world.record(RELEASED).with_life([2, 1]).1[0] = 1 << 53,
            &["group 1: 9007199254740992 is due and 0 of 3 locked"],
        ),
        (
            |world| {
                world.record(RELEASED).with_life([2, 1]);
                world.record(RELEASED).columns[1] = Some(vec![3, 0]);
            },
            &["group 1 committed 2 and refunded 3, which cannot be"],
        ),
        // What is committed is not held any more.
        (
            |world| {
                world.record(FIRST).with_life([2, 0]);
            },
            &["deadline {ALONE} has more: 7 in window 3, and not 5, as its records say"],
        ),
        (
            |world| world.record(FIRST).with_life([0, 0]).0.on_expiry = 1,
            &[
                "deadline {ALONE} has more: 7 in window 3, and not 2, as its records say",
                "deadline {ALONE} has more: 2 in window 4, and not 1, as its records say",
                "deadline {ALONE} has less: 0 in window 3, which counts, and not 5, as its records say",
                "deadline {ALONE} has less: 0 in window 4, which counts, and not 1, as its records say",
            ],
        ),
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

/// Leaves the world as a script does that wrote the memory and not the state: `FIRST` was committed, a new one reserved
/// for a page.
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
    let cases: &[Case] = &[
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
            &[":1: note: belongs to a user whose state knows of no memory", ":2: note: belongs to a user"],
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
        let digest = crate::ledger::digest_of(&plan_message("b"));
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

#[test]
fn windows_are_not_compared_with_the_records_of_a_state_that_is_gone() {
    let mut world = World::default();
    assert!(!world.judged(true).charged.is_empty());
    // The state began anew, and numbers its windows from 1 again.
    world.head.young = 0;
    world.memory = None;
    assert!(world.judged(true).charged.is_empty());
}
