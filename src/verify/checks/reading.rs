//! Reads a user page by page, and judges the whole: first the state, then the memories, and at the end what the one
//! says of the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::id::Field;
use crate::ledger::UserKeys;
use crate::ledger::formats::{COUNTS, PAGE_MS, TENTH_MS};
use crate::ledger::inspection::UserSnapshot;

use super::super::stored::{self, FieldKind, Head, Record, State, Sum, Undo};
use super::memory::{Fact, record_problems};
use super::state::state as check_state;
use super::{Charged, Findings, Generations, SLACK_MS, field_name};

/// The replaced values that count, by the field's name.
type Pending = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The parts of a user that were read so far.
pub struct Reading<'a> {
    keys: &'a UserKeys,
    names: [String; 3],
    seen: UserSnapshot,
    state: Option<State>,
    undos: [Option<Undo>; 2],
    records: [HashMap<Field, Fact>; 2],
    buckets: [BTreeMap<i64, Sum>; 2],
    /// True if a memory has a field that its undo does not list as absent before.
    has_more: [bool; 2],
    charged: Charged,
    findings: Findings,
}

/// The result of judging a user.
pub struct Judged {
    /// The findings.
    pub findings: Findings,
    /// Fields of live holds, whose keys should be there.
    pub live: Vec<Field>,
    /// The charges to compare with the plans of the archive.
    pub charged: Charged,
    /// The number of reservations that can still be committed, by plan.
    pub open: BTreeMap<[u8; 8], u64>,
    /// The state.
    pub state: Option<State>,
}

impl<'a> Reading<'a> {
    /// Starts with the first answer, whose pages are still to be added.
    pub fn of(keys: &'a UserKeys, seen: &UserSnapshot) -> Self {
        let mut reading = Self {
            keys,
            names: keys.all(),
            seen: seen.clone(),
            state: None,
            undos: [None, None],
            records: [HashMap::new(), HashMap::new()],
            buckets: [BTreeMap::new(), BTreeMap::new()],
            has_more: [false, false],
            charged: Charged::new(),
            findings: Findings::default(),
        };
        reading.types();
        reading.decode();
        reading
    }

    fn types(&mut self) {
        for ((key, found), expected) in self.names.iter().zip(&self.seen.types).zip(["string", "hash", "hash"]) {
            if found != "none" && found != expected {
                self.findings.contradiction(key, format!("is a {found}, and not a {expected}"));
            }
        }
    }

    fn decode(&mut self) {
        if self.seen.types[0] == "string" {
            match State::decode(&self.seen.state) {
                Ok(state) => {
                    let expires_at_ms = self.seen.expiries_ms[0];
                    check_state(self.keys.state(), &state, self.seen.redis_ms, expires_at_ms, &mut self.findings);
                    self.state = Some(state);
                }
                Err(error) => self.findings.contradiction(self.keys.state(), error.to_string()),
            }
        }
        for memory in 0..2 {
            if self.seen.undos[memory].is_empty() {
                if self.seen.types[memory + 1] == "hash" {
                    self.findings.contradiction(&self.names[memory + 1], "has no undo".to_owned());
                }
                continue;
            }
            match Undo::decode(&self.seen.undos[memory]) {
                Ok(undo) => self.undos[memory] = Some(undo),
                Err(error) => self.findings.contradiction(&self.names[memory + 1], error.to_string()),
            }
        }
        let Some(state) = &self.state else { return };
        if let Some(memory) = state.head.memory.clone() {
            let young = usize::from(state.head.head.young == 2);
            memory_expiry(self, young, memory.young_expires, memory.sequence);
            memory_expiry(self, 1 - young, memory.old_expires, memory.sequence);
        }
        self.undo_problems();
    }

    /// The pending undo's values are read as the memory's own are.
    fn undo_problems(&mut self) {
        let mut problems = Vec::new();
        let Some(state) = &self.state else { return };
        let Some(memory) = &state.head.memory else { return };
        for (index, undo) in self.undos.iter().enumerate() {
            let Some(undo) = undo else { continue };
            if undo.sequence > memory.sequence + 1 {
                let (found, noted) = (undo.sequence, memory.sequence);
                problems.push((index, format!("the undo has sequence {found}, but the state has {noted}")));
            }
            for (name, before) in &undo.before {
                let Some(before) = before else { continue };
                let error = match FieldKind::of(name) {
                    Some(FieldKind::Record(_)) => Record::decode(before).err(),
                    _ => stored::bucket(before).err(),
                };
                problems.extend(error.map(|error| (index, format!("{} before: {error}", field_name(name)))));
            }
        }
        for (index, problem) in problems {
            self.findings.contradiction(&self.names[index + 1], problem);
        }
    }

    /// Adds the pages of an answer: the first one, or another one.
    pub fn add(&mut self, seen: &UserSnapshot) {
        let head = Head::decode(&seen.state).ok();
        for (index, page) in seen.pages.iter().enumerate() {
            for (name, value) in page.fields() {
                self.add_field(head.as_ref(), index, seen.expiries_ms[index + 1], name, value);
            }
        }
    }

    fn add_field(&mut self, head: Option<&Head>, index: usize, expires_at_ms: i64, name: &[u8], value: &[u8]) {
        let is_undone = self.undos[index].as_ref().is_some_and(|undo| undo.before.get(name) == Some(&None));
        self.has_more[index] |= name != stored::UNDO && !is_undone;
        let problems = match FieldKind::of(name) {
            None => vec!["is neither a record nor a bucket nor the undo".to_owned()],
            Some(FieldKind::Undo) => Vec::new(),
            Some(FieldKind::Bucket(deadline)) => match stored::bucket(value) {
                Err(error) => vec![error.to_string()],
                Ok(sum) => {
                    self.buckets[index].insert(deadline, sum);
                    let is_tenth = deadline % TENTH_MS == 0;
                    let problem = || format!("its deadline is no multiple of {TENTH_MS} ms");
                    (!is_tenth).then(problem).into_iter().collect()
                }
            },
            Some(FieldKind::Record(field)) => match Record::decode(value) {
                Err(error) => vec![error.to_string()],
                Ok(record) => {
                    let plan = record.stored.plan;
                    if let Some(head) = head {
                        self.records[index].insert(field, Fact::of(head, &record));
                    }
                    // The memory of a state that is gone says nothing of the one that is there now.
                    let (head, state) = match head.filter(|head| head.memory.is_some()) {
                        Some(head) => (Some(head), self.state.as_ref()),
                        None => (None, None),
                    };
                    if head.is_some() {
                        self.charged.extend(record.claims.iter().map(|claim| (plan, claim.group, claim.balance)));
                    }
                    record_problems(head, state, expires_at_ms, &record)
                }
            },
        };
        for problem in problems {
            self.findings.contradiction(&self.names[index + 1], format!("{}: {problem}", field_name(name)));
        }
    }

    /// The last answer was added. `at_once`: nothing was written while it was read, so that the parts can be held against each other.
    pub fn finish(mut self, at_once: bool) -> Judged {
        let facts = self.take_facts();
        let mut open = BTreeMap::new();
        for fact in facts.values() {
            if let Some(plan) = fact.open {
                *open.entry(plan).or_default() += 1;
            }
            let is_remembered = self.state.as_ref().is_some_and(|state| fact.forget > state.head.head.time);
            self.findings.reservations += u64::from(is_remembered && !fact.is_tracked);
            self.findings.tracked += u64::from(is_remembered && fact.is_tracked);
        }
        let live: BTreeSet<Field> =
            facts.iter().filter(|(_, fact)| fact.hold.is_some()).map(|(field, _)| *field).collect();
        if at_once && let Some(state) = &self.state {
            let buckets = merged(&self.generations(), &self.buckets);
            sums(self.keys.state(), state, self.seen.redis_ms, &facts, &buckets, &mut self.findings);
        }
        let Self { findings, charged, state, .. } = self;
        Judged { findings, live: live.into_iter().collect(), charged, open, state }
    }

    fn generations(&self) -> Option<Generations<'_>> {
        let head = &self.state.as_ref()?.head;
        Generations::of(head, self.undos.each_ref().map(Option::as_ref))
    }

    /// Returns the records that count, by field. A record that a failed script replaced counts as it was before.
    fn take_facts(&mut self) -> HashMap<Field, Fact> {
        let Some(generations) = self.generations() else {
            self.orphans();
            return HashMap::new();
        };
        let (young, pending) = (generations.young, generations.pending.cloned().unwrap_or_default());
        let head = generations.head.clone();
        self.undo(young, &head, &pending);
        merged(&self.generations(), &self.records)
    }

    fn undo(&mut self, young: usize, head: &Head, pending: &Pending) {
        for (name, before) in pending {
            let before = before.as_deref();
            match FieldKind::of(name) {
                Some(FieldKind::Record(field)) => {
                    self.records[young].remove(&field);
                    let record = before.and_then(|before| Record::decode(before).ok());
                    self.records[young].extend(record.map(|record| (field, Fact::of(head, &record))));
                }
                Some(FieldKind::Bucket(deadline)) => {
                    self.buckets[young].remove(&deadline);
                    let sum = before.and_then(|before| stored::bucket(before).ok());
                    self.buckets[young].extend(sum.map(|sum| (deadline, sum)));
                }
                Some(FieldKind::Undo) | None => {}
            }
        }
    }

    /// Memories of a user without a state, or with one that has none: what a script has left that failed before it wrote the state.
    fn orphans(&mut self) {
        if self.seen.types[0] == "string" && self.state.is_none() {
            return;
        }
        for index in 0..2 {
            if self.seen.types[index + 1] != "hash" {
                continue;
            }
            let (text, expires_at_ms) =
                ("belongs to a user whose state knows of no memory", self.seen.expiries_ms[index + 1]);
            if self.undos[index].is_some() && !self.has_more[index] {
                let text = format!("{text}: a script failed before it wrote the state, and nothing of this counts");
                self.findings.note(&self.names[index + 1], text);
            } else if expires_at_ms < 0 {
                self.findings.contradiction(&self.names[index + 1], format!("{text}, and never expires"));
            } else {
                let text =
                    format!("{text}: its state is gone, nothing of this counts, and it expires at {expires_at_ms}");
                self.findings.note(&self.names[index + 1], text);
            }
        }
    }
}

/// A memory expires when the state says so. `noted` is 0 if the state says that there is none.
fn memory_expiry(reading: &mut Reading<'_>, index: usize, noted: i64, sequence: i64) {
    let (key, expires_at_ms) = (&reading.names[index + 1].clone(), reading.seen.expiries_ms[index + 1]);
    let is_there = reading.seen.types[index + 1] != "none";
    // What a failed script has left may expire at another time, or never.
    let is_pending = reading.undos[index].as_ref().is_some_and(|undo| undo.sequence > sequence);
    if !is_there {
        if noted > reading.seen.redis_ms + SLACK_MS {
            let text = format!(
                "is gone, but the state says that it expires at {noted}: Redis's clock was ahead for a while, or somebody deleted it"
            );
            reading.findings.note(key, text);
        }
    } else if is_pending {
        let text =
            "a script failed after it wrote this memory and before it wrote the state: what it wrote does not count";
        reading.findings.note(key, text.to_owned());
    } else if expires_at_ms < 0 {
        reading.findings.contradiction(key, "never expires".to_owned());
    } else if expires_at_ms.abs_diff(noted) > SLACK_MS.unsigned_abs() {
        let text = format!("expires at {expires_at_ms}, but its state has noted {noted}");
        reading.findings.contradiction(key, text);
    }
}

/// Merges the memories: all fields of the young one, and those that only the old one has.
fn merged<K, V, M>(generations: &Option<Generations<'_>>, memories: &[M; 2]) -> M
where
    K: Clone + Eq,
    V: Clone,
    M: Default + Clone + Extend<(K, V)>,
    for<'b> &'b M: IntoIterator<Item = (&'b K, &'b V)>,
{
    let mut all = M::default();
    let Some(generations) = generations else { return all };
    for (memory, counts) in
        [(1 - generations.young, generations.old_counts), (generations.young, generations.young_counts)]
    {
        if counts {
            all.extend(memories[memory].into_iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    all
}

/// NO-LEAK: each deadline of the state holds what the live records with this deadline hold, no more and no less.
///
/// Once a memory has expired, its records are gone: what is due by then comes back without them.
fn sums(
    key: &str,
    state: &State,
    redis_ms: i64,
    facts: &HashMap<Field, Fact>,
    buckets: &BTreeMap<i64, Sum>,
    findings: &mut Findings,
) {
    let time = state.head.head.time;
    let a_memory_has_expired = state
        .head
        .memory
        .as_ref()
        .is_none_or(|memory| memory.young_expires <= redis_ms || (1..=redis_ms).contains(&memory.old_expires));
    let kept: BTreeSet<i64> = state
        .windows()
        .filter(|(_, window, _)| window.schedule.kept > time)
        .map(|(_, window, _)| window.number())
        .collect();
    // What was held alone, and in pages, by deadline.
    let (mut alone, mut paged): (BTreeMap<i64, Sum>, BTreeMap<i64, Sum>) = Default::default();
    for hold in facts.values().filter_map(|fact| fact.hold.as_ref()) {
        let sum = if hold.is_paged { &mut paged } else { &mut alone }.entry(hold.deadline).or_default();
        sum.holds += 1;
        for (window, amount) in &hold.parts {
            *sum.parts.entry(*window).or_default() += i128::from(*amount);
        }
    }
    let none = Sum::default();
    let mut expected = alone;
    let mut of_pages: BTreeMap<i64, Sum> = BTreeMap::new();
    for deadline in &state.deadlines {
        let at = deadline.at;
        if deadline.is_page {
            of_pages.insert(at, deadline.sum.clone());
            continue;
        }
        let records = expected.remove(&at).unwrap_or_default();
        if at <= redis_ms && a_memory_has_expired {
            continue;
        }
        for difference in differences(&deadline.sum, &records, &kept) {
            findings.contradiction(key, format!("deadline {at} {difference}, as its records say"));
        }
    }
    for (at, records) in expected {
        let holds = records.holds;
        findings.contradiction(key, format!("deadline {at} is missing, with {holds} live in the records"));
    }
    let future: BTreeMap<i64, Sum> =
        buckets.range(time + 1..).map(|(deadline, sum)| (*deadline, sum.clone())).collect();
    for deadline in paged.keys().chain(future.keys()).collect::<BTreeSet<_>>() {
        let (bucket, records) = (future.get(deadline).unwrap_or(&none), paged.get(deadline).unwrap_or(&none));
        for difference in differences(bucket, records, &kept) {
            findings.contradiction(key, format!("the bucket of deadline {deadline} {difference}, as its records say"));
        }
    }
    let mut in_buckets: BTreeMap<i64, Sum> = BTreeMap::new();
    for (deadline, bucket) in &future {
        let page = (deadline + PAGE_MS - 1) / PAGE_MS * PAGE_MS;
        in_buckets.entry(page).or_default().add(bucket);
    }
    for page in of_pages.keys().chain(in_buckets.keys()).collect::<BTreeSet<_>>() {
        let (entry, sum) = (of_pages.get(page).unwrap_or(&none), in_buckets.get(page).unwrap_or(&none));
        for difference in differences(entry, sum, &kept) {
            let text = format!("page {page} {difference}, as its buckets say");
            // Without its buckets, a page comes back as a whole at its end.
            if difference.starts_with(MORE) { findings.note(key, text) } else { findings.contradiction(key, text) }
        }
    }
}

/// The beginning of a difference whose first side has more.
const MORE: &str = "has more: ";

/// Lists the differences of two sums, in windows that are kept.
fn differences(found: &Sum, expected: &Sum, kept: &BTreeSet<i64>) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: String, found: i128, expected: i128| {
        if found != expected {
            let which = if found > expected { MORE } else { "has less: " };
            differences.push(format!("{which}{found}{what}, and not {expected}"));
        }
    };
    compare(" holds".to_owned(), found.holds.into(), expected.holds.into());
    for window in found.parts.keys().chain(expected.parts.keys()).collect::<BTreeSet<_>>() {
        let number = window % COUNTS;
        if kept.contains(&number) {
            let of = |sum: &Sum| sum.parts.get(window).copied().unwrap_or_default();
            let counts = if *window >= COUNTS { ", which counts" } else { "" };
            compare(format!(" in window {number}{counts}"), of(found), of(expected));
        }
    }
    differences
}

/// Notes that a user's changes kept parts from being read at one moment.
pub fn note_of_changes(keys: &UserKeys, findings: &mut Findings) {
    let text = "changed each time that it was read: what its deadlines hold was not held against the records";
    findings.note(keys.state(), text.to_owned());
}
