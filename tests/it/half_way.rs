//! A script that is stopped at one of its writes has done nothing: neither does a later call find what it left, nor does its own retry.
//!
//! Each write of each script is stopped, one after the other, in states that reach it: a new user, one with a memory, one whose
//! memories change places, and one with so many deadlines that new ones go to a page.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tollgate::catalog;
use tollgate::domain::amount::Quantity;
use tollgate::domain::event::{Actual, Event, EventName};
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{Owner, RequestId, ReservationId};
use tollgate::domain::reservation::OnExpiry;
use tollgate::ledger::{Ledger, Script};
use tollgate::meter::{ExtendCall, HoldTerms, Meter, MeterOptions, TrackCall};
use tollgate::subscriptions::Upsert;

use crate::support::{
    Step, fresh_user, nothing_contradicts_itself_of, owner, step_clock, stepped_ledger, stepped_scripts,
};

const CATALOG: &str = "
default_plan: free
plans:
  free:
    period: yearly
    limit_groups:
      - { id: units, unit: tokens, quota: 100000, match: [{ event: e }] }
      - { id: calls, unit: count, quota: 100000, match: [{ event: e, measure: events }] }
      - { id: fallbacks, unit: count, quota: 100000, match: [{ event: e, metadata: { model: fallback }, measure: events }] }
  pro:
    period: yearly
    on_plan_change: reset
    limit_groups:
      - { id: units, unit: tokens, quota: 200000, match: [{ event: e }] }
";

/// Commands that write, as the scripts call them.
const WRITES: [&str; 6] = ["SET", "HSET", "HDEL", "DEL", "UNLINK", "PEXPIREAT"];

/// The offsets of the calls that write in a script.
fn writes(source: &str) -> Vec<usize> {
    let calls = WRITES.iter().flat_map(|write| {
        let call = format!("call('{write}'");
        source.match_indices(&call).map(|(at, _)| at).collect::<Vec<_>>()
    });
    calls.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The script, stopped at this write.
fn stopped(script: &Script, write: usize) -> String {
    let source = &script.source;
    let Some(at) = writes(source).get(write).copied() else { return source.to_string() };
    let (shebang, _) = source.split_once('\n').expect("a script begins with a line of its own");
    let stop = "local function stop() error('stopped on purpose') end";
    let (before, after) = (&source[shebang.len() + 1..at], &source[at + "call".len()..]);
    format!("{shebang}\n{stop}\n{before}stop{after}")
}

/// What is done once it is stopped.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Reserve,
    ReserveWithoutId,
    Commit,
    CommitLate,
    CommitPaged,
    CommitPart,
    CommitPartOfPaged,
    CommitCounted,
    CommitChanged,
    CommitChangedLate,
    CommitChangedOfPaged,
    Extend,
    ExtendPaged,
    ReserveCounting,
    Release,
    ReleaseCounted,
    Track,
    TrackWithoutId,
    TrackAt,
    TrackAtWithoutId,
    Reset,
    ResetWithoutId,
    Refund,
    RefundReservation,
    Subscribe,
    Delete,
}

/// What a user has before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Used,
    Rotating,
    Paged,
    /// A Reserve was stopped before, with the memory written.
    LeftReserving,
    /// A Commit was.
    LeftCommitting,
    /// A clock was days ahead, and is right again.
    WrongClock,
}

const OPERATIONS: [Operation; 26] = [
    Operation::Reserve,
    Operation::ReserveWithoutId,
    Operation::Commit,
    Operation::CommitLate,
    Operation::CommitPaged,
    Operation::CommitPart,
    Operation::CommitPartOfPaged,
    Operation::CommitCounted,
    Operation::CommitChanged,
    Operation::CommitChangedLate,
    Operation::CommitChangedOfPaged,
    Operation::Extend,
    Operation::ExtendPaged,
    Operation::ReserveCounting,
    Operation::Release,
    Operation::ReleaseCounted,
    Operation::Track,
    Operation::TrackWithoutId,
    Operation::TrackAt,
    Operation::TrackAtWithoutId,
    Operation::Reset,
    Operation::ResetWithoutId,
    Operation::Refund,
    Operation::RefundReservation,
    Operation::Subscribe,
    Operation::Delete,
];

const STATES: [State; 7] = [
    State::New,
    State::Used,
    State::Rotating,
    State::Paged,
    State::LeftReserving,
    State::LeftCommitting,
    State::WrongClock,
];

impl Operation {
    /// Whether it needs what only these states have.
    fn fits(self, state: State) -> bool {
        match self {
            Self::Reserve | Self::ReserveWithoutId | Self::Track | Self::TrackWithoutId | Self::Subscribe => true,
            Self::TrackAt | Self::TrackAtWithoutId | Self::ReserveCounting => true,
            Self::CommitPaged | Self::CommitPartOfPaged | Self::CommitChangedOfPaged | Self::ExtendPaged => {
                state == State::Paged
            }
            Self::CommitChanged | Self::CommitChangedLate => state != State::New,
            // When the clock was set right, the hold has lapsed.
            Self::Extend => state != State::New && state != State::WrongClock,
            Self::CommitPart | Self::CommitCounted | Self::ReleaseCounted => state != State::New,
            Self::Refund | Self::Delete | Self::Reset | Self::ResetWithoutId => state != State::New,
            Self::Commit | Self::CommitLate | Self::Release | Self::RefundReservation => state != State::New,
        }
    }

    fn script(self) -> &'static str {
        match self {
            Self::Reserve | Self::ReserveWithoutId | Self::ReserveCounting => "reserve",
            Self::Commit | Self::CommitLate | Self::CommitPaged => "commit",
            Self::CommitPart | Self::CommitPartOfPaged | Self::CommitCounted => "commit",
            Self::CommitChanged | Self::CommitChangedLate | Self::CommitChangedOfPaged => "commit_changed",
            Self::Extend | Self::ExtendPaged => "extend",
            Self::Release | Self::ReleaseCounted => "release",
            Self::Track | Self::TrackWithoutId => "track",
            Self::TrackAt | Self::TrackAtWithoutId => "track_at",
            Self::Reset | Self::ResetWithoutId => "reset",
            Self::Refund => "refund",
            Self::RefundReservation => "refund_reservation",
            Self::Subscribe => "subscription_put",
            Self::Delete => "user_delete",
        }
    }
}

fn event(name: &str, units: u32) -> Event {
    let quantity = Quantity::from_decimal(&units.to_string()).unwrap();
    Event::new(EventName::parse(name).unwrap(), Some(quantity), [].into(), [].into())
}

fn id(text: &str) -> Option<RequestId> {
    RequestId::parse(text).unwrap()
}

const MINUTE: Duration = Duration::from_secs(60);
const COUNTING: HoldTerms = HoldTerms { ttl: MINUTE, on_expiry: OnExpiry::Count };

/// A user, and the reservations that were made for it.
struct Subject {
    name: String,
    owner: Owner,
    held: Option<ReservationId>,
    lapsed: Option<ReservationId>,
    paged: Option<ReservationId>,
    committed: Option<ReservationId>,
    /// Its deadline has counted it.
    counted: Option<ReservationId>,
}

impl Subject {
    async fn prepare(meter: &Meter, half: &Meter, state: State) -> Self {
        let name = fresh_user("half");
        step_clock(&name, Step::To(1_900_000_000_000)).await;
        let owner = owner(&name);
        let mut subject = Self { owner, name, held: None, lapsed: None, paged: None, committed: None, counted: None };
        if state == State::New {
            return subject;
        }
        subject.held = Some(subject.reserve(meter, "held", 60 * MINUTE).await);
        let extend = ExtendCall {
            reservation: subject.held.clone().unwrap(),
            ttl: 60 * MINUTE,
            add: None,
            request_id: id("extended"),
        };
        assert!(!meter.extend(&extend).await.unwrap().replayed);
        subject.lapsed = Some(subject.reserve(meter, "lapsed", MINUTE).await);
        subject.counted = Some(subject.reserve(meter, "counted", COUNTING).await);
        let committed = subject.reserve(meter, "committed", MINUTE).await;
        meter.commit(&committed, None).await.unwrap();
        subject.committed = Some(committed);
        if state == State::Paged {
            // Beyond 2 KiB of deadlines new ones go to pages.
            for number in 0..80 {
                subject
                    .reserve(meter, &format!("many-{number}"), 30 * MINUTE + number * Duration::from_millis(100))
                    .await;
            }
            subject.paged = Some(subject.reserve(meter, "paged", 50 * MINUTE).await);
        }
        // The memories change places after 15 minutes, and what was settled is remembered a little longer.
        let rotates = matches!(state, State::Rotating | State::WrongClock);
        let step = if rotates { 15 * MINUTE + MINUTE / 2 } else { MINUTE };
        step_clock(&subject.name, Step::By(step)).await;
        let day = 24 * 60 * MINUTE;
        match state {
            State::LeftReserving => {
                let stopped = half.reserve(&subject.owner, &event("e", 3), MINUTE, id("left").as_ref()).await;
                assert!(stopped.is_err(), "it is stopped before the state is written");
            }
            State::LeftCommitting => {
                let left = subject.reserve(meter, "left", MINUTE).await;
                assert!(half.commit(&left, None).await.is_err(), "it is stopped before the state is written");
            }
            State::WrongClock => {
                subject.reserve(meter, "rotates", MINUTE).await;
                let right = step_clock(&subject.name, Step::By(Duration::ZERO)).await;
                step_clock(&subject.name, Step::By(10 * day)).await;
                subject.reserve(meter, "ahead", MINUTE).await;
                step_clock(&subject.name, Step::To(right)).await;
            }
            _ => {}
        }
        subject
    }

    async fn reserve(&self, meter: &Meter, request_id: &str, terms: impl Into<HoldTerms>) -> ReservationId {
        let reserved = meter.reserve(&self.owner, &event("e", 5), terms, id(request_id).as_ref()).await.unwrap();
        reserved.hold.unwrap().id
    }

    /// Does it. Whether it was done before.
    async fn act(&self, meter: &Meter, operation: Operation) -> Result<bool, Fault> {
        let track = |name, units, request_id, reservation: Option<&ReservationId>| TrackCall {
            event: event(name, units),
            request_id: id(request_id),
            enforce: false,
            reservation: reservation.cloned(),
            at_ms: None,
        };
        // Yesterday, in the same window.
        let track_at = |request_id| TrackCall { at_ms: Some(1_899_900_000_000), ..track("e", 7, request_id, None) };
        let reserve = async |request_id: &str, terms: HoldTerms| {
            let reserved = meter.reserve(&self.owner, &event("e", 7), terms, id(request_id).as_ref()).await?;
            Ok(reserved.hold.unwrap().replayed)
        };
        let tracked = async |call: TrackCall| Ok(meter.track(&self.owner, &call).await?.replayed);
        let actual = Actual { quantity: Some(Quantity::from_decimal("4").unwrap()), ..Actual::default() };
        let commit = async |reservation: &Option<ReservationId>| {
            Ok(meter.commit(reservation.as_ref().unwrap(), Some(&actual)).await?.replayed)
        };
        let fallback = Actual { metadata: [("model".to_owned(), "fallback".to_owned())].into(), ..actual.clone() };
        let commit_changed = async |reservation: &Option<ReservationId>| {
            Ok(meter.commit(reservation.as_ref().unwrap(), Some(&fallback)).await?.replayed)
        };
        let commit_part = async |reservation: &Option<ReservationId>| {
            let part = meter.commit_part(reservation.as_ref().unwrap(), &actual, Some(59 * MINUTE)).await?;
            Ok(part.replayed)
        };
        let extend = async |reservation: &Option<ReservationId>| {
            let (reservation, add) = (reservation.clone().unwrap(), Some(actual.clone()));
            let call = ExtendCall { reservation, ttl: 58 * MINUTE, add, request_id: id("act") };
            Ok(meter.extend(&call).await?.replayed)
        };
        match operation {
            Operation::Reserve => reserve("act", MINUTE.into()).await,
            Operation::ReserveWithoutId => reserve("", MINUTE.into()).await,
            Operation::ReserveCounting => reserve("act", COUNTING).await,
            Operation::CommitPart => commit_part(&self.held).await,
            Operation::CommitPartOfPaged => commit_part(&self.paged).await,
            Operation::CommitCounted => commit(&self.counted).await,
            Operation::CommitChanged => commit_changed(&self.held).await,
            Operation::CommitChangedLate => commit_changed(&self.lapsed).await,
            Operation::CommitChangedOfPaged => commit_changed(&self.paged).await,
            Operation::Extend => extend(&self.held).await,
            Operation::ExtendPaged => extend(&self.paged).await,
            Operation::ReleaseCounted => Ok(meter.release(self.counted.as_ref().unwrap()).await?.replayed),
            Operation::Commit => commit(&self.held).await,
            Operation::CommitLate => commit(&self.lapsed).await,
            Operation::CommitPaged => commit(&self.paged).await,
            Operation::Release => Ok(meter.release(self.held.as_ref().unwrap()).await?.replayed),
            Operation::Track => tracked(track("e", 7, "act", None)).await,
            Operation::TrackWithoutId => tracked(track("e", 7, "", None)).await,
            Operation::TrackAt => tracked(track_at("act")).await,
            Operation::TrackAtWithoutId => tracked(track_at("")).await,
            Operation::Reset => Ok(meter.reset(&self.owner, &[], id("act").as_ref()).await?.replayed),
            Operation::ResetWithoutId => Ok(meter.reset(&self.owner, &[], None).await?.replayed),
            Operation::Refund => tracked(track("e.refund", 2, "act", None)).await,
            Operation::RefundReservation => tracked(track("e.refund", 2, "act", self.committed.as_ref())).await,
            Operation::Subscribe => {
                let upsert = Upsert { plan_id: Some("pro".to_owned()), ..Upsert::default() };
                meter.upsert_subscription(&self.owner, &upsert).await.map(|_| false)
            }
            Operation::Delete => meter.delete_user(&self.owner).await.map(|()| false),
        }
    }

    /// What is used and held of each group.
    async fn standings(&self, meter: &Meter) -> Vec<(String, u64, u64)> {
        let usage = meter.usage(&self.owner, None, None).await.unwrap();
        let standings = usage.standings.into_iter();
        standings.map(|standing| (standing.group_id, standing.used, standing.held)).collect()
    }
}

fn meter(ledger: Ledger) -> Meter {
    let catalog = catalog::parse(CATALOG, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    Meter::new(Arc::new(catalog), ledger, MeterOptions::default())
}

/// A meter whose scripts are stopped, each at its write by this rule.
fn stopping(ledger: &Ledger, write: impl Fn(&Script) -> Option<usize>) -> Meter {
    let scripts = stepped_scripts().changed(|script| match write(script) {
        Some(write) => stopped(script, write),
        None => script.source.to_string(),
    });
    meter(ledger.clone().with_scripts(Box::leak(Box::new(scripts))))
}

#[tokio::test]
async fn a_script_that_is_stopped_at_any_write_has_done_nothing() {
    let ledger = stepped_ledger().await;
    let healthy = meter(ledger.clone());
    let sites = |name: &str| {
        let script = stepped_scripts().all().into_iter().find(|script| script.name == name).unwrap();
        writes(&script.source).len()
    };
    // The last write with an expiry that stays is that of the state, which the memory was written before.
    let half = stopping(&ledger, |script| {
        let source = &script.source;
        writes(source).iter().position(|at| source[*at..].starts_with("call('SET', led.key, packed, 'KEEPTTL')"))
    });
    let mut reached = BTreeSet::new();
    for operation in OPERATIONS {
        for write in 0..sites(operation.script()) {
            let broken = stopping(&ledger, |script| (script.name == operation.script()).then_some(write));
            for state in STATES.into_iter().filter(|state| operation.fits(*state)) {
                if is_undone(&healthy, &half, &broken, operation, state, write).await {
                    reached.insert((operation.script(), write));
                }
            }
        }
    }
    // Scripts share libraries, so that each has some writes that it never comes to. Another one does.
    let (mut all, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for script in stepped_scripts().all().into_iter().filter(|script| script.writes && script.name != "api_key_put") {
        for (write, at) in writes(&script.source).into_iter().enumerate() {
            let line = script.source[at..].lines().next().unwrap_or_default();
            all.insert(line);
            if reached.contains(&(script.name, write)) {
                seen.insert(line);
            }
        }
    }
    assert!(all.len() > 10, "{all:?}");
    assert_eq!(all.difference(&seen).collect::<Vec<_>>(), Vec::<&&str>::new(), "these writes are not reached");
    nothing_contradicts_itself_of("half").await;
}

/// Whether the write is reached. If it is, the call has failed, and nothing has happened.
async fn is_undone(
    healthy: &Meter,
    half: &Meter,
    broken: &Meter,
    operation: Operation,
    state: State,
    write: usize,
) -> bool {
    let what = format!("{operation:?} in state {state:?}, stopped at write {write}");
    let subject = Subject::prepare(healthy, half, state).await;
    let before = subject.standings(healthy).await;
    match subject.act(broken, operation).await {
        Ok(_) => return false,
        Err(Fault::Internal(error)) => {
            assert!(format!("{error:?}").contains("stopped on purpose"), "{what}: {error:?}")
        }
        Err(fault) => panic!("{what}: {fault:?}"),
    }
    assert_eq!(subject.standings(healthy).await, before, "{what}: something has happened");
    // Others go on, and write the same memory.
    subject.reserve(healthy, "other", MINUTE).await;
    assert!(!subject.act(healthy, operation).await.unwrap(), "{what}: the retry finds it done");
    let after = subject.standings(healthy).await;
    let is_remembered = !matches!(
        operation,
        Operation::ReserveWithoutId
            | Operation::TrackWithoutId
            | Operation::TrackAtWithoutId
            | Operation::ResetWithoutId
            // Its retry is harmless, and does not say that it is one.
            | Operation::CommitPart
            | Operation::CommitPartOfPaged
            | Operation::Subscribe
            | Operation::Delete
    );
    if is_remembered {
        assert!(subject.act(healthy, operation).await.unwrap(), "{what}: the second retry does not find it");
        assert_eq!(subject.standings(healthy).await, after, "{what}: a replay has changed something");
    }

    let control = Subject::prepare(healthy, half, state).await;
    control.reserve(healthy, "other", MINUTE).await;
    control.act(healthy, operation).await.unwrap();
    assert_eq!(after, control.standings(healthy).await, "{what}: it ends otherwise than without the failure");
    true
}
