//! How answers are read, and which ones are refused.

use super::*;
use crate::domain::plan::Thresholds;
use crate::ledger::NEVER_MS;

fn groups() -> Vec<GroupDescription> {
    let group = |id: &str, unit, quota, hard| GroupDescription {
        id: id.to_owned(),
        label: id.to_uppercase(),
        unit,
        quota,
        hard,
        thresholds: Thresholds::default(),
    };
    vec![group("a", Unit::Tokens, Quota::Limited(10), true), group("b", Unit::Cents, Quota::Unlimited, false)]
}

/// An answer as a script writes it.
fn packed(answer: &formats::Answer, rows: &[formats::Row], columns: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let rows_count = i64::try_from(rows.len()).unwrap();
    formats::Answer { kind: 1, rows: rows_count, ..answer.clone() }.write(&mut bytes);
    rows.iter().for_each(|row| row.write(&mut bytes));
    bytes.extend_from_slice(columns);
    bytes
}

fn span(start: i64, ends: i64) -> [u8; 12] {
    let mut bytes = Vec::new();
    formats::Span { start, ends }.write(&mut bytes);
    bytes.try_into().unwrap()
}

fn row(group: i64, used: i64) -> formats::Row {
    formats::Row { group, span: span(1_000, 2_000), used, held: 2, requested: 3 }
}

fn read(packed: &[u8]) -> Result<Answer, Fault> {
    match Reply::read(packed)? {
        Reply::Answer(answer, rows) => {
            let standings = standings(&answer, rows, "", &groups(), Counted::Nothing)?;
            answered(&answer, standings)
        }
        other => panic!("{other:?}"),
    }
}

fn done() -> formats::Answer {
    formats::Answer { outcome: 1, retry_after_ms: -1, ..formats::Answer::default() }
}

#[test]
fn rows_get_the_descriptions_of_the_plan() {
    let lifetime = formats::Row { span: span(0, NEVER_MS), ..row(2, 7) };
    let answer = formats::Answer { state: 1, suffix: *b"suffix", plan: *b"the plan", deadline: 5, ..done() };
    let read = read(&packed(&answer, &[row(1, 1), lifetime], &[])).unwrap();
    let expected = Standing {
        group_id: "a".to_owned(),
        label: "A".to_owned(),
        unit: Unit::Tokens,
        quota: Quota::Limited(10),
        hard: true,
        window_ms: Some((1_000, 2_000)),
        used: 1,
        held: 2,
        requested: 3,
        shortfall: 0,
        window_closed: false,
        unapplied: 0,
    };
    assert_eq!(read.standings[0], expected);
    let lifetime = &read.standings[1];
    assert_eq!((lifetime.unit, lifetime.quota, lifetime.hard), (Unit::Cents, Quota::Unlimited, false));
    assert_eq!((lifetime.window_ms, lifetime.used), (None, 7));
    let Answer { reason, state, suffix, plan, deadline_ms, retry_after_ms, .. } = read;
    assert_eq!((reason, state, deadline_ms, retry_after_ms), (None, Some(ReservationState::Held), 5, None));
    assert_eq!((&suffix, &plan), (b"suffix", b"the plan"));
}

#[test]
fn columns_follow_the_rows_in_their_order() {
    let mut columns = Vec::new();
    for units in [4, 0] {
        formats::Amount { units }.write(&mut columns);
    }
    for (unapplied, closed) in [(5, 0), (0, 1)] {
        formats::Closing { unapplied, closed }.write(&mut columns);
    }
    for units in [-1, 6] {
        formats::Quota { units }.write(&mut columns);
    }
    let rows = [row(2, 1), row(1, 2)];
    let read = read(&packed(&formats::Answer { columns: 7, ..done() }, &rows, &columns)).unwrap();
    let told = |standing: &Standing| {
        let Standing { group_id, shortfall, unapplied, window_closed, quota, .. } = standing.clone();
        (group_id, shortfall, unapplied, window_closed, quota)
    };
    assert_eq!(told(&read.standings[0]), ("b".to_owned(), 4, 5, false, Quota::Unlimited));
    assert_eq!(told(&read.standings[1]), ("a".to_owned(), 0, 0, true, Quota::Limited(6)));
}

#[test]
fn outcomes_states_and_flags_have_their_words() {
    let read = |answer: formats::Answer| read(&packed(&answer, &[], &[]));
    for (outcome, reason) in [
        (1, None),
        (2, Some(Reason::LimitReached)),
        (3, Some(Reason::UnmatchedEvent)),
        (4, Some(Reason::NoSubscription)),
    ] {
        assert_eq!(read(formats::Answer { outcome, ..done() }).unwrap().reason, reason);
    }
    for (state, word) in
        [(0, None), (1, Some("held")), (2, Some("committed")), (3, Some("released")), (4, Some("expired"))]
    {
        let told = read(formats::Answer { state, ..done() }).unwrap().state;
        assert_eq!(told.map(ReservationState::as_str), word);
    }
    let flags = |answer| read(answer).map(|answer| (answer.replayed, answer.overage, answer.late)).unwrap();
    assert_eq!(flags(done()), (false, false, false));
    assert_eq!(flags(formats::Answer { replayed: 1, ..done() }), (true, false, false));
    assert_eq!(flags(formats::Answer { overage: 1, ..done() }), (false, true, false));
    assert_eq!(flags(formats::Answer { late: 1, ..done() }), (false, false, true));
    assert_eq!(read(formats::Answer { retry_after_ms: 9, ..done() }).unwrap().retry_after_ms, Some(9));
}

#[test]
fn what_no_script_answers_is_not_taken_for_an_answer() {
    let internal = |packed: &[u8]| assert!(matches!(read(packed), Err(Fault::Internal(_))), "{packed:?}");
    internal(b"");
    internal(b"\x09");
    let whole = packed(&done(), &[row(1, 1)], &[]);
    assert!(read(&whole).is_ok());
    for length in 0..whole.len() {
        internal(&whole[..length]);
    }
    internal(&[&whole[..], b"x"].concat());
    for odd in [
        formats::Answer { outcome: 0, ..done() },
        formats::Answer { outcome: 5, ..done() },
        formats::Answer { state: 5, ..done() },
        formats::Answer { columns: 8, ..done() },
        formats::Answer { columns: 16, ..done() },
    ] {
        internal(&packed(&odd, &[], &[]));
    }
    for odd in [row(0, 1), row(3, 1), row(1, 1 << 53)] {
        internal(&packed(&done(), &[odd], &[]));
    }
    let quota = |units| {
        let mut column = Vec::new();
        formats::Quota { units }.write(&mut column);
        packed(&formats::Answer { columns: 4, ..done() }, &[row(1, 1)], &column)
    };
    assert!(read(&quota((1 << 53) - 1)).is_ok());
    internal(&quota(-2));
    internal(&quota(1 << 53));
}

fn fault(reason: &str, group: i64, name: &str) -> Fault {
    fault_of(reason, group, name.as_bytes())
}

fn fault_of(reason: &str, group: i64, name: &[u8]) -> Fault {
    let fault =
        formats::Fault { kind: 3, plan: [0; 8], group, reason: reason.as_bytes().to_vec(), name: name.to_vec() };
    let mut bytes = Vec::new();
    fault.write(&mut bytes);
    let Ok(Reply::Fault(read)) = Reply::read(&bytes) else { panic!("a fault") };
    assert_eq!(read, fault);
    told(&read, &groups(), "gone")
}

#[test]
fn faults_name_the_group_by_its_id() {
    assert!(matches!(fault("QUANTITY_MISSING", 2, "in"),
            Fault::QuantityMissing { group, quantity } if group == "b" && quantity == "in"));
    assert!(matches!(fault("OUT_OF_RANGE", 1, ""), Fault::OutOfRange { field, .. } if field.contains("\"a\"")));
    assert!(matches!(fault("OUT_OF_RANGE", 3, ""), Fault::OutOfRange { field, .. } if field.contains("number 3")));
    let names = rmp_serde::to_vec(&["in", "cached", "audio"]).unwrap();
    assert!(matches!(fault_of("PARTS_EXCEED_WHOLE", 2, &names),
            Fault::PartsExceedWhole { group, whole, parts } if group == "b" && whole == "in" && parts == ["cached", "audio"]));
    let nothing = fault("NOTHING_MEASURED", 2, "in, out");
    assert!(nothing.to_string().contains("\"b\" measures in, out"), "{nothing}");
    assert!(fault("REFUND_OF_ANOTHER_EVENT", 0, "e").to_string().contains("name it e.refund"));
    assert!(matches!(fault("PLAN_UNKNOWN", 0, ""), Fault::PlanUnknown(plan) if plan == "gone"));
    for (reason, expected) in [
        ("REQUEST_ID_REUSED", Fault::RequestIdReused),
        ("RESERVATION_NOT_FOUND", Fault::ReservationNotFound),
        ("PLAN_NOT_ARCHIVED", Fault::PlanNotArchived),
        ("FORMAT_UNKNOWN", Fault::FormatUnknown),
        ("TOO_MANY_HOLDS", Fault::TooManyHolds),
    ] {
        assert_eq!(fault(reason, 0, "").to_string(), expected.to_string());
    }
    for state in ["held", "committed", "released", "expired"] {
        assert!(
            matches!(fault("NOT_COMMITTED", 0, state), Fault::NotCommitted { state: told } if told.as_str() == state)
        );
    }
    for (reason, name) in [("NOT_COMMITTED", "x"), ("SCRIPT_ERROR", "why"), ("OTHER", ""), ("PARTS_EXCEED_WHOLE", "in")]
    {
        assert!(matches!(fault(reason, 0, name), Fault::Internal(_)), "{reason}");
    }
}

#[test]
fn a_reservation_that_was_committed_otherwise_says_what_each_group_was_charged() {
    let mut bytes = Vec::new();
    formats::CommittedOtherwise { kind: 4, plan: *b"the plan", claims: 2 }.write(&mut bytes);
    for (group, units) in [(2, 7), (1, 0)] {
        formats::CommittedClaim { group, units }.write(&mut bytes);
    }
    let Ok(Reply::CommittedOtherwise(plan, claims)) = Reply::read(&bytes) else { panic!("committed otherwise") };
    assert_eq!(&plan, b"the plan");
    let told: Vec<_> = claims.iter().map(|claim| committed(claim, &groups()).unwrap()).collect();
    assert_eq!(told, [("b".to_owned(), Unit::Cents, 7), ("a".to_owned(), Unit::Tokens, 0)]);
    assert!(matches!(Reply::read(&bytes[..bytes.len() - 1]), Err(Fault::Internal(_))));
}
