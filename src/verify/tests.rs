//! The checks without Redis: the shape of values, and what would be much to write into one. The rest is in tests/it/verify.rs.

use serde_bytes::ByteBuf;

use crate::catalog::NEVER_MS;
use crate::domain::id::{AppId, Owner, UserId};
use crate::ledger::UserKeys;
use crate::ledger::codec::encode;
use crate::ledger::inspection::UserState;
use crate::ledger::packed::{push_integer, push_text};

use super::checks::{self, Findings};
use super::stored::{Ledger, Record, Request, Subscription};
use super::value::{Undecodable, Value};

/// Integers, each with its width.
fn integers(bytes: &mut Vec<u8>, integers: &[(i64, usize)]) {
    for (integer, width) in integers {
        push_integer(bytes, *integer, *width);
    }
}

/// A ledger without groups, up to and with their number.
fn head(live: i64, plan: &str, groups: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    integers(&mut bytes, &[(200, 6), (live, 2), (150, 7), (NEVER_MS, 7), (1000, 7), (61_000, 7), (1, 4)]);
    push_text(&mut bytes, plan, 1);
    push_integer(&mut bytes, groups, 2);
    bytes
}

/// The window of group "g", and what it says of another one.
fn window(bytes: &mut Vec<u8>, held: i64, more: i64) {
    let window = [(1, 1), (5, 1), (-1, 7), (100, 6), (300, 7), (400, 7), (20, 7), (held, 7), (1, 4), (more, 1)];
    integers(bytes, &window);
}

fn ledger(live: i64, held: i64) -> Vec<u8> {
    let mut bytes = head(live, "p", 1);
    push_text(&mut bytes, "g", 1);
    window(&mut bytes, held, 0);
    bytes
}

/// Of group "g", with what follows its label.
fn claim(charge: i64, hard: i64, after: &[u8], measures: &[u8]) -> Vec<u8> {
    let mut terms = Vec::new();
    push_text(&mut terms, "g", 1);
    integers(&mut terms, &[(1, 1), (-1, 7), (hard, 1)]);
    push_text(&mut terms, "G", 2);
    terms.extend_from_slice(after);
    let mut bytes = Vec::new();
    integers(&mut bytes, &[(charge, 7), (0, 7), (0, 7), (100, 6), (300, 7), (1, 4)]);
    for (blob, width) in [(&terms[..], 2), (measures, 4)] {
        push_integer(&mut bytes, i64::try_from(blob.len()).unwrap(), width);
        bytes.extend_from_slice(blob);
    }
    bytes
}

fn record_of(late: i64, event: &[u8], claims: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    integers(&mut bytes, &[(1, 1), (late, 1), (250, 6), (900, 6)]);
    push_text(&mut bytes, "", 1);
    push_integer(&mut bytes, i64::try_from(event.len()).unwrap(), 4);
    [&bytes, event, claims].concat()
}

/// Values one after the other.
fn values<const COUNT: usize>(values: [Vec<u8>; COUNT]) -> Vec<u8> {
    values.concat()
}

fn event() -> Vec<u8> {
    values([encode(&"e"), encode(&1_000_000), encode(&[0; 0]), encode(&false)])
}

fn record(charge: i64) -> Vec<u8> {
    record_of(0, &event(), &claim(charge, 1, b"", &encode(&1)))
}

fn track(claims: &[u8]) -> Vec<u8> {
    values([encode(&"track"), encode(&"d"), encode(&"e"), encode(&900), encode(&serde_bytes::Bytes::new(claims))])
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

fn told<T: std::fmt::Debug>(decoded: Result<T, Undecodable>) -> String {
    decoded.unwrap_err().to_string()
}

#[test]
fn what_ends_at_any_byte_before_its_end_is_too_short() {
    let (ledger, record) = (ledger(1, 1), record(3));
    assert!(Ledger::decode(&ledger).is_ok() && Record::decode(&record).is_ok());
    for end in 0..ledger.len() {
        let error = told(Ledger::decode(&ledger[..end]));
        assert!(error.ends_with("does not fit its format: it ends after too few bytes"), "{end}: {error}");
    }
    let claimed = record_of(0, &event(), b"").len();
    for end in (0..record.len()).filter(|end| *end != claimed) {
        let error = told(Record::decode(&record[..end]));
        assert!(error.ends_with("does not fit its format: it ends after too few bytes"), "{end}: {error}");
    }
    assert_eq!(told(Record::decode(&record[..claimed])), "the list of claims is empty, and not one of at least 1");
}

#[test]
fn what_was_never_written_is_told_precisely() {
    const NOT_TEXT: &str = "does not fit its format: it has text that is not UTF-8";
    let of_groups = |count, windows: &[(i64, i64)]| {
        let mut bytes = head(0, "p", count);
        for group in windows.chunks(2) {
            push_text(&mut bytes, "g", 1);
            for (held, more) in group {
                window(&mut bytes, *held, *more);
            }
        }
        told(Ledger::decode(&bytes))
    };
    let of_chain = |windows: &[(i64, i64)]| {
        let mut bytes = head(0, "p", 1);
        push_text(&mut bytes, "g", 1);
        windows.iter().for_each(|(held, more)| window(&mut bytes, *held, *more));
        told(Ledger::decode(&bytes))
    };
    assert_eq!(of_groups(0, &[(0, 0)]), "the ledger is followed by 50 bytes too many");
    assert_eq!(of_groups(1, &[(0, 2)]), "what follows of the current window of group \"g\" is 2, and not 0 or 1");
    let nine = "group \"g\" is one of more windows, and not one of at most 8";
    assert_eq!(of_chain(&[(0, 1); 9]), nine);
    assert_eq!(of_groups(2, &[(0, 1), (0, 0), (0, 0)]), "group \"g\" is there twice, and not there once");
    let mut other_text = ledger(1, 1);
    let at = head(1, "p", 1).len() - 3;
    other_text[at] = 0xff;
    assert_eq!(told(Ledger::decode(&other_text)), format!("the ledger {NOT_TEXT}"));
    other_text[at] = b'p';
    other_text[at + 4] = 0xff;
    assert_eq!(told(Ledger::decode(&other_text)), format!("the ledger {NOT_TEXT}"));

    let of_claim = |claim: &[u8]| told(Record::decode(&record_of(0, &event(), claim)));
    let measures = encode(&1);
    assert_eq!(of_claim(&claim(1, 2, b"", &measures)), "`hard` of claim 1 is 2, and not 0 or 1");
    let followed = "what claim 1 says of its group is followed by 1 byte too many";
    assert_eq!(of_claim(&claim(1, 1, b"x", &measures)), followed);
    assert_eq!(of_claim(&claim(1, 1, b"", b"")), "measures of claim 1 is 0 bytes, and not some");
    assert!(of_claim(&claim(1, 1, b"", &[0xc1])).starts_with("the measures of claim 1 is no MessagePack: "));
    let second = [claim(1, 1, b"", &measures), vec![0]].concat();
    assert_eq!(of_claim(&second), "claim 2 does not fit its format: it ends after too few bytes");

    let of_event = |event: &[u8]| told(Record::decode(&record_of(0, event, &claim(1, 1, b"", &measures))));
    assert_eq!(of_event(b""), "the event is one of 0 values, and not one of 4 or 5");
    assert!(of_event(&[0xc1]).starts_with("the event is no MessagePack: "));
    assert_eq!(of_event(&[1, 1, 0x90, 0xc2]), "the event's name is 1, and not text");
    assert_eq!(of_event(&[0xa1, b'e', 1, 1, 0xc2]), "the event's quantities is 1, and not a map");
    let late = record_of(2, &event(), &claim(1, 1, b"", &measures));
    assert_eq!(told(Record::decode(&late)), "`late` of the record is 2, and not 0 or 1");
    let unknown = [&[4], &record(1)[1..]].concat();
    assert_eq!(told(Record::decode(&unknown)), "the state is 4, and not 1 (held), 2 (committed) or 3 (released)");

    let of_request = |packed: &[u8]| told(Request::decode(packed));
    let needed = "and not that of a reserve, with 3 values, or of a track, with 5";
    let long = values([encode(&"reserve"), encode(&"d"), encode(&"n"), encode(&0)]);
    assert_eq!(of_request(&long), format!("the request is one of 4 values, {needed}"));
    let other = values([encode(&"count"), encode(&"d"), encode(&"n")]);
    assert_eq!(of_request(&other), format!("the request is one of 3 values, {needed}"));
    assert_eq!(of_request(b""), format!("the request is one of 0 values, {needed}"));
    assert_eq!(of_request(&[7]), "the kind of request is 7, and not text");
    assert_eq!(of_request(&values([encode(&"reserve"), encode(&1), encode(&"n")])), "the digest is 1, and not text");
    assert!(of_request(&[0xc1]).starts_with("the request is no MessagePack: "));
    assert!(Request::decode(&track(&claim(1, 1, b"", b""))).is_ok());
    assert_eq!(of_request(&track(&claim(1, 1, b"", &measures))), "measures of claim 1 is 1 byte, and not none");
    assert_eq!(of_request(&track(b"")), "the list of claims is empty, and not one of at least 1");

    let of_subscription = |packed: &[u8]| told(Subscription::decode(packed));
    assert!(of_subscription(&[]).starts_with("the value is no MessagePack: "));
    assert!(of_subscription(&[0x97, 1]).starts_with("the value is no MessagePack: "));
    assert_eq!(of_subscription(&[1, 1]), "the value is followed by 1 byte too many");
    assert_eq!(of_subscription(&encode(&())), "the subscription is nil, and not a list of 7");
    assert_eq!(of_subscription(&encode(&[0; 6])), "the subscription is a list of 6, and not a list of 7");
    let large = encode(&("r", "p", u64::MAX, 0, 0, "", [0; 0]));
    assert_eq!(of_subscription(&large), "the start is 18446744073709551615, and not an integer of 64 bits");
    assert_eq!(of_subscription(&encode(&("r", "p", 0, 0, 0, "", 5))), "the overrides is 5, and not a list");
    let third = encode(&("r", "p", 0, 0, 0, "", [("g", "1", "2")]));
    assert_eq!(of_subscription(&third), "an override is a list of 3, and not a list of 2");
}

#[test]
fn the_expiry_that_a_ledger_has_noted_is_that_of_its_key() {
    let expiring = |expires_at_ms| {
        let mut state = state(ledger(0, 0), 0, 0, 0);
        state.expiries_ms[1] = expires_at_ms;
        found(&state)
    };
    for within in [60_000, 61_000, 62_000] {
        assert_eq!(expiring(within), [""; 0]);
    }
    for beyond in [59_999, 62_001] {
        assert_eq!(expiring(beyond), [format!("has the expiry {beyond}, but its ledger has noted 61000")]);
    }
    let noted = "has the expiry -1, but its ledger has noted 61000";
    assert_eq!(expiring(-1), ["never expires, but has no lifetime group", noted]);
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
