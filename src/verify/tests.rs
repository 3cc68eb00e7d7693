//! The checks without Redis: the shape of values, and what would be much to write into one. The rest is in tests/it/verify.rs.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use crate::domain::id::{AppId, Owner, UserId};
use crate::ledger::UserKeys;
use crate::ledger::codec::encode;
use crate::ledger::inspection::UserState;

use super::checks::{self, Findings};
use super::stored::{Ledger, Record, Request, Subscription};
use super::value::Value;

fn ledger(live: u64, held: i64) -> Vec<u8> {
    let window = (1, 5, -1, 100, 300, 400, 20, held, 1);
    let groups = BTreeMap::from([("g", (window, false))]);
    encode(&(200, live, 150, i64::MAX >> 10, 1000, "p", groups, 1))
}

fn record(charge: i64) -> Vec<u8> {
    let claim = ("g", "G", 1, -1, true, 100, 300, 1, charge, [1], -1, 0);
    encode(&(1, 250, 900, "", "e", [0; 0], [claim]))
}

fn state(ledger: Vec<u8>, holds: usize, charge: i64, live: u64) -> UserState {
    let hold = |index| (ByteBuf::from(format!("r{index}")), "250".to_owned(), ByteBuf::from(record(charge)));
    UserState {
        redis_ms: 200,
        types: ["none", "string", "hash", "zset"].map(str::to_owned),
        expiries_ms: [-2, 61_000, 1000, 1000],
        subscription: ByteBuf::new(),
        ledger: ByteBuf::from(ledger),
        live,
        holds: (0..holds).map(hold).collect(),
        remembered: Vec::new(),
    }
}

fn found(state: &UserState) -> Vec<String> {
    let owner = Owner::new(&AppId::default(), &UserId::parse("u").unwrap());
    let mut findings = Findings::default();
    checks::user(&UserKeys::new(&owner), state, &mut findings);
    findings.found.into_iter().map(|finding| finding.what).collect()
}

#[test]
fn what_is_held_is_what_the_live_holds_hold() {
    assert_eq!(found(&state(ledger(10_000, 30_000), 10_000, 3, 10_000)), [""; 0]);
    assert_eq!(
        found(&state(ledger(3, 8), 3, 3, 3)),
        ["group \"g\", current window 1: held is 8, but its live holds hold 9"]
    );
    // The sum of amounts that are each possible may be larger than any counter.
    let most = (1 << 53) - 1;
    assert_eq!(
        found(&state(ledger(2000, most), 2000, most, 2000)),
        [format!("group \"g\", current window 1: held is {most}, but its live holds hold {}", i128::from(most) * 2000)]
    );
}

#[test]
fn more_live_holds_than_there_may_be_are_found_without_reading_them_all() {
    assert_eq!(
        found(&state(ledger(12_000, 36_000), 10_001, 3, 12_000)),
        ["the number of live holds is 12000, and not in 0 to 10000"]
    );
}

#[test]
fn what_was_never_written_is_told_precisely() {
    let undecodable = [
        (Ledger::decode(&[]).unwrap_err(), "the value is no MessagePack: "),
        (Ledger::decode(&[0xc1]).unwrap_err(), "the value is no MessagePack: "),
        (Ledger::decode(&[0x98, 1]).unwrap_err(), "the value is no MessagePack: "),
        (Ledger::decode(&encode(&[0; 7])).unwrap_err(), "the ledger is a list of 7, and not a list of 8"),
        (Ledger::decode(&encode(&(0, 0, 0, 0, 0, 7, [0; 0], 0))).unwrap_err(), "the plan is 7, and not text"),
        (Ledger::decode(&encode(&(0, 0, 0, 0, 0, "", [0], 0))).unwrap_err(), "groups is a list of 1, and not a map"),
        (
            Ledger::decode(&encode(&(u64::MAX, 0, 0, 0, 0, "", [0; 0], 0))).unwrap_err(),
            "the time is 18446744073709551615, and",
        ),
        (Record::decode(&encode(&[0; 9])).unwrap_err(), "the record is a list of 9, and not a list of 7 to 8"),
        (Record::decode(&encode(&(1, 0, 0, true, "", [0; 0], [0; 0]))).unwrap_err(), "the claims is a list of 0"),
        (
            Request::decode(&encode(&("reserve", "d", "n", 0))).unwrap_err(),
            "the request is a list of 4, and not that of",
        ),
        (Request::decode(&encode(&("count", "d", "n"))).unwrap_err(), "the request is a list of 3, and not that of"),
        (Subscription::decode(&encode(&())).unwrap_err(), "the subscription is nil, and not a list of 7"),
    ];
    for (error, expected) in undecodable {
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

#[test]
fn every_value_that_scripts_write_can_be_read() {
    let value = Value::read(&encode(&(1, -1, 0.5, "a", true, ((), [1], u64::MAX)))).unwrap();
    assert_eq!(value.to_string(), "a list of 6");
    let Value::List(values) = value else { panic!("{value}") };
    let shown: Vec<_> = values.iter().map(Value::to_string).collect();
    assert_eq!(shown, ["1", "-1", "0.5", "\"a\"", "true", "a list of 3"]);
    // Lua's text is bytes, and its empty map is an empty list.
    assert_eq!(
        Value::read(&[0xa1, 0xff]).unwrap().text("it").unwrap_err().to_string(),
        "it is \"\u{fffd}\", and not UTF-8"
    );
    assert_eq!(Value::read(&[0x90]).unwrap().map("it").unwrap(), []);
    assert_eq!(
        Value::read(&[0x81, 0x01, 0x01]).unwrap().map("it").unwrap_err().to_string(),
        "a key of it is 1, and not text"
    );
}
