//! Concurrent histories: clients of three replicas call at the same time, and there must be an order, one after another, in which the
//! reference model gives the same answers: each call at one moment between its start and its end (linearizability, per user).
//!
//! The user's clock is stepped, and stands still in between, so that the order is all that is unknown.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tollgate::ledger::Ledger;

use crate::answers::Answer;
use crate::operations::{Actual, Call, OnExpiry, Operation, Quota, Refund, When};
use crate::real::{Names, Real};
use crate::reference::{Model, Settings};
use crate::sketch::{Anchor, Catalog, Event, Group, MICRO, Measure, PICO, Period, Plan, Rule, Term, Threshold, Unit};
use crate::support::Step;

const CLIENTS: u32 = 4;
const CALLS: u32 = 4;

/// 2033-05-18T03:33:20Z, far from the ends of the windows.
const START: i64 = 2_000_000_000_000;

/// A call with its answer, and when it began and ended: no two of these are equal.
#[derive(Debug, Clone)]
pub struct Record {
    pub operation: Operation,
    pub answer: Answer,
    pub began: u32,
    pub ended: u32,
}

/// Tight limits, so that the calls get into each other's way.
fn settings(random: &mut Rng) -> Settings {
    let measure =
        |name: &str| Measure::Terms(vec![Term { name: name.to_owned(), weight: PICO, default: None, part_of: None }]);
    let group = |id: &str, quota, hard, measure| Group {
        id: id.to_owned(),
        label: id.to_owned(),
        unit: Unit::Tokens,
        quota,
        hard,
        period: Period::Yearly,
        anchor: Anchor::Calendar,
        thresholds: vec![Threshold::Share(MICRO / 2), Threshold::Amount(2 * MICRO), Threshold::Share(MICRO)],
        rules: vec![Rule { pattern: "*".to_owned(), conditions: Vec::new(), measure }],
    };
    let plan = |random: &mut Rng, id: &str, change| Plan {
        id: id.to_owned(),
        zone: "UTC",
        change,
        groups: vec![
            group("g0", Some(random.u128(3..12)), true, measure("quantity")),
            group("g1", Some(random.u128(2..6)), true, Measure::Events),
            group("g2", Some(4), false, measure("quantity")),
        ],
    };
    let plans = vec![plan(random, "free", "block"), plan(random, "pro", "carry"), plan(random, "max", "reset")];
    let catalog = Catalog { default_plan: Some("free".to_owned()), plans };
    Settings { catalogs: vec![catalog; 3], settlement_ms: 60_000, replay_ms: 60_000 }
}

struct Client {
    random: Rng,
    /// Time passes, or plans change: an upsert reads and writes in two steps, and takes its time from the first.
    stepping: bool,
    real: Arc<Real>,
    names: Arc<Mutex<Names>>,
    made: Arc<Mutex<Vec<u32>>>,
    moment: Arc<AtomicU32>,
}

impl Client {
    fn event(&mut self) -> Event {
        Event { name: "e".to_owned(), quantity: Some(self.random.u128(1..=4) * MICRO), ..Event::default() }
    }

    fn request_id(&mut self) -> String {
        ["", "a", "b"][self.random.usize(..3)].to_owned()
    }

    fn actual(&mut self) -> Actual {
        Actual { quantity: Some(self.random.u128(1..=5) * MICRO), ..Actual::default() }
    }

    /// One that somebody made, so that clients settle each other's.
    fn reservation(&mut self) -> u32 {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.is_empty() { u32::MAX } else { made[self.random.usize(..made.len())] }
    }

    fn call(&mut self) -> Call {
        match self.random.u32(..20) {
            0..6 => {
                let (event, request_id) = (self.event(), self.request_id());
                let on_expiry = [OnExpiry::Release, OnExpiry::Count][self.random.usize(..2)];
                Call::Reserve { event, ttl_ms: Some(1000), request_id, on_expiry }
            }
            6 => {
                let (of, add) = (self.reservation(), self.random.bool().then(|| self.actual()));
                Call::Extend { of, ttl_ms: Some(1000), add, request_id: self.request_id() }
            }
            7..9 => {
                let (of, actual) = (self.reservation(), Some(self.actual()));
                Call::Commit { of, actual, partial: true, ttl_ms: self.random.bool().then_some(1000) }
            }
            9 => {
                let actual = Some(self.actual()).filter(|_| self.random.bool());
                Call::commit(self.reservation(), actual)
            }
            10..12 => Call::Release { of: self.reservation() },
            12..14 => {
                let (event, request_id) = (self.event(), self.request_id());
                Call::Track { event, request_id, enforce: self.random.bool(), refund: None, at: None }
            }
            14 => {
                let mut event = self.event();
                event.name.push_str(".refund");
                let of = self.reservation();
                let refund = self.random.bool().then_some(Refund { of, in_metadata: false });
                Call::Track { event, request_id: self.request_id(), enforce: false, refund, at: None }
            }
            15 if self.random.bool() => Call::Reservation { of: self.reservation() },
            15 => Call::CanUse { event: self.event() },
            16 => Call::Usage { pattern: String::new(), at: None },
            _ if self.stepping => Call::Step(When::After([1, 999, 1000][self.random.usize(..3)])),
            17 => Call::Cancel { end: None },
            _ => {
                let quota = Quota::Amount(self.random.u128(0..9) * MICRO);
                let overrides = self.random.bool().then(|| [("g0".to_owned(), quota)].into());
                let plan = ["free", "pro", "max"][self.random.usize(..3)].to_owned();
                Call::Upsert { plan, overrides, end: None, anchor: None, etag: None, wrong_end: None }
            }
        }
    }

    async fn run(mut self, client: u32) -> Vec<Record> {
        let mut records = Vec::new();
        for index in 0..CALLS {
            let number = client * CALLS + index;
            let operation = Operation { number, replica: client as usize % 3, user: 0, call: self.call() };
            let began = self.moment.fetch_add(1, Ordering::SeqCst);
            let answer = match &operation.call {
                Call::Step(When::After(ms)) => {
                    let by = Duration::from_millis(u64::try_from(*ms).expect("time goes on"));
                    self.real.set_clock(0, Step::By(by)).await;
                    Answer::Stepped
                }
                _ => {
                    let names = |of| self.names.lock().unwrap_or_else(PoisonError::into_inner).reservation(of);
                    self.real.send(&operation, names, |_| unreachable!("no call of these names a time")).await
                }
            };
            let ended = self.moment.fetch_add(1, Ordering::SeqCst);
            self.names.lock().unwrap_or_else(PoisonError::into_inner).learn(number, &answer);
            if matches!(&answer, Answer::Reserve(reserved) if reserved.allowed && !reserved.replayed) {
                self.made.lock().unwrap_or_else(PoisonError::into_inner).push(number);
            }
            records.push(Record { operation, answer, began, ended });
        }
        records
    }
}

/// A history of a user of its own, with what it started from.
pub async fn record(seed: u64, ledgers: &[Ledger]) -> (Settings, Vec<Record>) {
    let mut random = Rng::with_seed(seed);
    let settings = settings(&mut random);
    let real = Arc::new(Real::new(&settings, ledgers, 1));
    real.set_clock(0, Step::To(START)).await;
    let names = Arc::new(Mutex::new(Names::default()));
    let made = Arc::new(Mutex::new(Vec::new()));
    let moment = Arc::new(AtomicU32::new(0));
    let stepping = seed.is_multiple_of(2);
    let clients = (0..CLIENTS).map(|number| {
        let client = Client {
            random: random.fork(),
            stepping,
            real: Arc::clone(&real),
            names: Arc::clone(&names),
            made: Arc::clone(&made),
            moment: Arc::clone(&moment),
        };
        tokio::spawn(client.run(number))
    });
    let clients: Vec<_> = clients.collect();
    let mut records = Vec::new();
    for client in clients {
        records.extend(client.await.expect("a client ends"));
    }
    real.clean_up().await;
    let names = names.lock().unwrap_or_else(PoisonError::into_inner);
    for record in &mut records {
        let answer = std::mem::replace(&mut record.answer, Answer::Deleted);
        record.answer = names.symbolic(0, answer);
    }
    (settings, records)
}

/// How many pairs of calls ran at the same time.
pub fn overlaps(records: &[Record]) -> usize {
    let pairs =
        records.iter().enumerate().flat_map(|(index, one)| records[index + 1..].iter().map(move |two| (one, two)));
    pairs.filter(|(one, two)| one.began < two.ended && two.began < one.ended).count()
}

/// What the model says of a history.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some order explains all answers.
    Explained,
    /// No order does, but some order explains all answers before a call about which SPEC is silent.
    Silent,
    /// No order explains it.
    Impossible,
}

/// Looks for an order that explains all answers: a search over the calls that may come next, which remembers where it has been.
pub fn judge(settings: &Settings, records: &[Record]) -> Verdict {
    let model = Model::new(settings.clone(), 1, START);
    let mut search = Search { records, seen: HashSet::new(), is_silent: false };
    match search.explains(&model, 0) {
        true => Verdict::Explained,
        false if search.is_silent => Verdict::Silent,
        false => Verdict::Impossible,
    }
}

struct Search<'a> {
    records: &'a [Record],
    /// The calls that were done, and the model after them.
    seen: HashSet<(u32, String)>,
    /// True once some order has come to a call about which SPEC is silent.
    is_silent: bool,
}

impl Search<'_> {
    fn explains(&mut self, model: &Model, done: u32) -> bool {
        let records = self.records;
        let open = || records.iter().enumerate().filter(|(index, _)| done & (1 << index) == 0);
        // What began after another open call has ended comes after it.
        let Some(first_end) = open().map(|(_, record)| record.ended).min() else { return true };
        if !self.seen.insert((done, format!("{:?} {:?}", model.clock, model.users))) {
            return false;
        }
        open().filter(|(_, record)| record.began < first_end).any(|(index, record)| {
            if gave_up(record, records) {
                return self.explains(model, done | 1 << index);
            }
            let mut next = Model { covered: Default::default(), ..model.clone() };
            let expected = next.apply(&record.operation);
            if next.silent {
                self.is_silent = true;
                return false;
            }
            record.answer.is(&expected) && self.explains(&next, done | 1 << index)
        })
    }
}

/// A call that was compiled again and again, as the subscription changed under it, and was given up: it has done nothing. The first of
/// its four attempts may have missed a change of before it began.
fn gave_up(record: &Record, records: &[Record]) -> bool {
    if !matches!(&record.answer, Answer::Fault(_, reason, _) if reason == "CONTENDED") {
        return false;
    }
    let changes = |other: &&Record| {
        matches!(other.operation.call, Call::Upsert { .. } | Call::Cancel { .. })
            && other.began < record.ended
            && record.began < other.ended
    };
    records.iter().filter(changes).count() >= 3
}

/// An answer that cannot have been given: one token more is held or used than there is.
pub fn tamper(records: &mut [Record]) -> bool {
    for record in records.iter_mut().rev() {
        let limits = match &mut record.answer {
            Answer::Reserve(answer) => &mut answer.limits,
            Answer::Commit(answer) => &mut answer.limits,
            Answer::Track(answer) => &mut answer.limits,
            _ => continue,
        };
        if let Some(row) = limits.first_mut() {
            row.used += 100.0;
            return true;
        }
    }
    false
}
