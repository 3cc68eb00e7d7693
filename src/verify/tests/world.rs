//! A user with something of everything, whose parts a test may change before they are judged.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use crate::domain::id::{AppId, Field, Owner, UserId};
use crate::ledger::UserKeys;
use crate::ledger::formats::{self, PAGE_MS};
use crate::ledger::inspection::{HoldEntry, Holds, Page, UserSnapshot};

use super::super::Finding;
use super::super::checks::{self, Findings, HoldMoment, Judged, Reading};
use super::super::stored::NEVER_MS;

/// The user's time, and Redis's.
pub const NOW: i64 = 1_795_516_288_000;
/// A deadline that stands alone.
pub const ALONE: i64 = NOW + 60_000;
/// The end of a page.
pub const PAGE: i64 = (NOW / PAGE_MS + 10) * PAGE_MS;
/// A deadline of that page.
pub const PAGED: i64 = PAGE - 1_000;
/// The times at which the memories expire.
pub const EXPIRES: [i64; 2] = [NOW + 2_000_000, NOW + 1_000_000];

/// The records: two of `ALONE`, the second in the old memory, one of `PAGED`, and those that hold nothing.
pub const FIRST: Field = [1; 16];
pub const SECOND: Field = [2; 16];
pub const THIRD: Field = [3; 16];
pub const COMMITTED: Field = [4; 16];
pub const RELEASED: Field = [5; 16];
pub const TRACKED: Field = [6; 16];

/// The plan of all records.
pub const PLAN: [u8; 8] = [7; 8];

/// A record before it is written.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Record {
    pub head: formats::Record,
    pub spans: Vec<formats::Span>,
    pub claims: Vec<formats::Claim>,
    /// The committed amounts, the refunded amounts, and the quotas.
    pub columns: [Option<Vec<i64>>; 3],
    /// More about a record of format 2: the life, the due amounts and the locked ones.
    pub life: Option<(formats::Life, [i64; 2], [i64; 2])>,
}

impl Record {
    pub fn new(state: i64, deadline: i64, charges: [i64; 2]) -> Self {
        let head = formats::Record {
            format: 1,
            state,
            epoch: 3,
            deadline,
            forget: deadline.max(NOW) + 900_000,
            digest: [9; 8],
            suffix: [8; 6],
            plan: PLAN,
            // An event "e" without metadata, and 5 of the first name.
            what: vec![0xa1, b'e', 0x90],
            quantities: vec![0x92, 1, 5],
            ..formats::Record::default()
        };
        let claim = |(group, charge)| formats::Claim { group, balance: group + 2, span: group, charge };
        Self {
            head,
            spans: vec![span(NOW - 1000, NOW + 10_000_000), span(NOW - 2000, NOW + 20_000_000)],
            claims: (1..).zip(charges).map(claim).collect(),
            columns: [None, None, None],
            life: None,
        }
    }

    /// Makes it a record of format 2, of which these amounts were committed.
    pub fn with_life(&mut self, committed: [i64; 2]) -> &mut (formats::Life, [i64; 2], [i64; 2]) {
        self.head.format = 2;
        self.columns = [Some(committed.to_vec()), Some(vec![0, 0]), None];
        self.life.insert((
            formats::Life { made_at: NOW - 5000, sequence: 9, ..formats::Life::default() },
            [5, 1],
            [0, 0],
        ))
    }

    pub fn bytes(&self) -> Vec<u8> {
        let count = |length: usize| i64::try_from(length).unwrap();
        let columns = match &self.columns {
            [_, Some(_), _] => 2,
            [Some(_), None, _] => 1,
            _ => 0,
        };
        let head = formats::Record {
            columns: if self.head.columns != 0 {
                self.head.columns
            } else {
                columns + if self.columns[2].is_some() { 4 } else { 0 }
            },
            spans: count(self.spans.len()),
            claims: count(self.claims.len()),
            ..self.head.clone()
        };
        let mut bytes = Vec::new();
        head.write(&mut bytes);
        self.spans.iter().for_each(|span| span.write(&mut bytes));
        self.claims.iter().for_each(|claim| claim.write(&mut bytes));
        for (place, column) in self.columns.iter().enumerate() {
            for value in column.iter().flatten() {
                if place == 2 {
                    formats::Quota { units: *value }.write(&mut bytes);
                } else {
                    formats::Amount { units: *value }.write(&mut bytes);
                }
            }
        }
        if let Some((life, due, locked)) = &self.life {
            life.write(&mut bytes);
            due.iter().chain(locked).for_each(|units| formats::Amount { units: *units }.write(&mut bytes));
        }
        bytes
    }
}

fn span(start: i64, ends: i64) -> formats::Span {
    formats::Span { start, ends }
}

fn parts(amounts: &[(i64, i64)]) -> Vec<formats::Part> {
    amounts.iter().map(|&(balance, amount)| formats::Part { balance, amount }).collect()
}

/// A bucket, as it is stored.
pub fn bucket(holds: i64, amounts: &[(i64, i64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let parts = parts(amounts);
    formats::Bucket { holds, parts: i64::try_from(parts.len()).unwrap() }.write(&mut bytes);
    parts.iter().for_each(|part| part.write(&mut bytes));
    bytes
}

/// The name of a bucket's field.
pub fn bucket_name(deadline: i64) -> Vec<u8> {
    [&b"d"[..], &deadline.to_le_bytes()[..6]].concat()
}

/// An undo, as it is stored: fields with what they were before.
pub fn undo(sequence: i64, fields: &[(&[u8], Option<Vec<u8>>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    formats::Undo { sequence, count: i64::try_from(fields.len()).unwrap() }.write(&mut bytes);
    for (field, before) in fields {
        let was = i64::from(before.is_some());
        let before = before.clone().unwrap_or_default();
        formats::UndoField { field: field.to_vec(), was, before }.write(&mut bytes);
    }
    bytes
}

/// A user before it is written.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct World {
    pub head: formats::Head,
    pub memory: Option<formats::Memory>,
    pub terms: Option<formats::Terms>,
    pub schedules: Vec<formats::Schedule>,
    pub counters: Vec<formats::Counter>,
    pub deadlines: Vec<(formats::Deadline, Vec<formats::Part>)>,
    /// The error of the size that a deadline gives.
    pub wrong_size: i64,
    pub windows: Vec<(formats::Window, Option<formats::Counter>)>,
    /// The writing of the memory with which all windows were reset, where they are wide.
    pub reset: i64,
    pub blob: Vec<u8>,
    /// The bytes that replace the state.
    pub state: Option<Vec<u8>>,
    pub records: [BTreeMap<Field, Record>; 2],
    /// Other fields of the memories.
    pub fields: [BTreeMap<Vec<u8>, Vec<u8>>; 2],
    pub redis_ms: i64,
    pub types: [&'static str; 3],
    pub expiries_ms: [i64; 3],
    /// The keys of holds: type, expiry, text.
    pub holds: BTreeMap<Field, (&'static str, i64, &'static str)>,
}

impl Default for World {
    fn default() -> Self {
        let head = formats::Head {
            format: 1,
            subscribed: 1,
            young: 1,
            time: NOW,
            expires: 0,
            current_until: NOW + 10_000_000,
            basis: [1; 8],
            opened: 4,
            live: 3,
            pages: 1,
            plan: b"p".to_vec(),
            ..formats::Head::default()
        };
        let memory = formats::Memory {
            sequence: 9,
            since: NOW - 5,
            young_expires: EXPIRES[0],
            old_expires: EXPIRES[1],
            epoch: 3,
            corrected: 0,
        };
        let schedule = |start, ends, kept| formats::Schedule { anchor: NEVER_MS, start, ends, kept };
        let counter = |number, schedule, used, held| formats::Counter { number, schedule, used, held };
        let window = |group: &str, unit, period, place| formats::Window {
            group: group.as_bytes().to_vec(),
            unit,
            period,
            place,
        };
        let deadline = |at, kind, holds| formats::Deadline { at, kind, holds, parts: 0 };
        let mut paged = Record::new(1, PAGED, [5, 1]);
        paged.head.paged = 1;
        let committed = Record {
            columns: [Some(vec![4, 1]), Some(vec![1, 0]), Some(vec![-1, 7])],
            head: formats::Record { settled: vec![0x92, 1, 4], ..Record::new(2, NOW - 100, [5, 1]).head },
            ..Record::new(2, NOW - 100, [5, 1])
        };
        let tracked = Record {
            columns: [Some(vec![2, 0]), None, None],
            head: formats::Record { what: Vec::new(), quantities: Vec::new(), ..Record::new(5, 0, [2, 1]).head },
            ..Record::new(5, 0, [2, 1])
        };
        let young = [
            (FIRST, Record::new(1, ALONE, [5, 1])),
            (THIRD, paged),
            (COMMITTED, committed),
            (RELEASED, Record::new(4, ALONE, [3, 1])),
            (TRACKED, tracked),
        ];
        // What it says of the first one counts no more.
        let old = [(SECOND, Record::new(1, ALONE, [2, 1])), (FIRST, Record::new(4, ALONE, [9, 1]))];
        let first_undo = undo(9, &[(&FIRST, None), (&bucket_name(PAGED), Some(bucket(0, &[])))]);
        let fields = [
            BTreeMap::from([(b"u".to_vec(), first_undo), (bucket_name(PAGED), bucket(1, &[(3, 5), (4, 1)]))]),
            BTreeMap::from([(b"u".to_vec(), undo(6, &[]))]),
        ];
        let shown = |deadline| ("string", deadline, "e");
        Self {
            head,
            memory: Some(memory),
            terms: Some(formats::Terms { revision: [1; 8], ends: 0 }),
            schedules: vec![
                schedule(NOW - 1000, NOW + 10_000_000, NOW + 20_000_000),
                schedule(NOW - 2000, NOW + 20_000_000, NOW + 40_000_000),
                schedule(0, NEVER_MS, NEVER_MS),
            ],
            counters: vec![counter(3, 1, 20, 12), counter(4, 2, 2, 3), counter(0, 0, 0, 0)],
            deadlines: vec![
                (deadline(ALONE, 0, 2), parts(&[(3, 7), (4, 2)])),
                (deadline(PAGE, 1, 1), parts(&[(3, 5), (4, 1)])),
            ],
            wrong_size: 0,
            windows: vec![
                (window("a", 2, 5, 1), None),
                (window("b", 1, 6, 2), None),
                (window("c", 4, 7, 0), Some(counter(2, 3, 5, 0))),
            ],
            reset: 0,
            // [plan, start, end, cycle anchor, overrides]
            blob: vec![0x95, 0xa1, b'p', 0, 0, 0, 0x91, 0x92, 0xa1, b'a', 0xa1, b'7'],
            state: None,
            records: [young.into_iter().collect(), old.into_iter().collect()],
            fields,
            redis_ms: NOW + 20,
            types: ["string", "hash", "hash"],
            expiries_ms: [-1, EXPIRES[0], EXPIRES[1]],
            holds: [(FIRST, shown(ALONE)), (SECOND, shown(ALONE)), (THIRD, shown(PAGED))].into_iter().collect(),
        }
    }
}

impl World {
    pub fn state_bytes(&self) -> Vec<u8> {
        if let Some(state) = &self.state {
            return state.clone();
        }
        let count = |length: usize| i64::try_from(length).unwrap();
        let mut deadlines = Vec::new();
        for (deadline, parts) in &self.deadlines {
            let before = deadlines.len();
            formats::Deadline { parts: count(parts.len()), ..deadline.clone() }.write(&mut deadlines);
            parts.iter().for_each(|part| part.write(&mut deadlines));
            let size = count(deadlines.len() - before) + 2 + self.wrong_size;
            formats::DeadlineEnd { size }.write(&mut deadlines);
        }
        let head = formats::Head {
            groups: count(self.counters.len()),
            schedules: count(self.schedules.len()),
            deadlines: count(deadlines.len()),
            ..self.head.clone()
        };
        let mut bytes = Vec::new();
        head.write(&mut bytes);
        self.memory.iter().for_each(|memory| memory.write(&mut bytes));
        self.terms.iter().for_each(|terms| terms.write(&mut bytes));
        self.schedules.iter().for_each(|schedule| schedule.write(&mut bytes));
        for counter in &self.counters {
            let formats::Counter { number, schedule, used, .. } = *counter;
            if self.head.live > 0 {
                counter.write(&mut bytes);
            } else {
                formats::IdleCounter { number, schedule, used }.write(&mut bytes);
            }
        }
        bytes.extend_from_slice(&deadlines);
        formats::Windows { count: count(self.windows.len()) }.write(&mut bytes);
        for (window, counter) in &self.windows {
            let formats::Window { group, unit, period, place } = window.clone();
            match self.head.format {
                2 => {
                    formats::WideWindow { group, unit, period, reset: self.reset, reset_at: 0, place }.write(&mut bytes)
                }
                _ => window.write(&mut bytes),
            }
            counter.iter().for_each(|counter| counter.write(&mut bytes));
        }
        formats::Subscription { blob: self.blob.clone() }.write(&mut bytes);
        bytes
    }

    pub fn record(&mut self, field: Field) -> &mut Record {
        let memory = usize::from(!self.records[0].contains_key(&field));
        self.records[memory].get_mut(&field).unwrap()
    }

    fn page(&self, memory: usize) -> Page {
        let mut fields: Vec<ByteBuf> = Vec::new();
        if self.types[memory + 1] == "hash" {
            for (field, record) in &self.records[memory] {
                fields.extend([ByteBuf::from(field.to_vec()), ByteBuf::from(record.bytes())]);
            }
            for (name, value) in &self.fields[memory] {
                fields.extend([ByteBuf::from(name.clone()), ByteBuf::from(value.clone())]);
            }
        }
        Page { next: String::new(), fields }
    }

    fn undos(&self) -> [ByteBuf; 2] {
        [0, 1].map(|memory| ByteBuf::from(self.fields[memory].get(&b"u"[..]).cloned().unwrap_or_default()))
    }

    pub fn seen(&self) -> UserSnapshot {
        UserSnapshot {
            redis_ms: self.redis_ms,
            types: self.types.map(str::to_owned),
            expiries_ms: self.expiries_ms,
            state: ByteBuf::from(if self.types[0] == "string" { self.state_bytes() } else { Vec::new() }),
            stamp: String::new(),
            undos: self.undos(),
            pages: [self.page(0), self.page(1)],
        }
    }

    pub fn judged(&self, at_once: bool) -> Judged {
        let (keys, seen) = (keys(), self.seen());
        let mut reading = Reading::of(&keys, &seen);
        reading.add(&seen);
        reading.finish(at_once)
    }

    /// Everything that is found, as it is printed, without what all keys have in common.
    pub fn found(&self) -> Vec<String> {
        let keys = keys();
        let mut findings = Findings::default();
        let judged = self.judged(true);
        findings.add(judged.findings);
        let shown = self.holds.keys().copied().chain(judged.live);
        let fields: std::collections::BTreeSet<Field> = shown.collect();
        let entry = |field: &Field| {
            let (kind, expires_at_ms, text) = self.holds.get(field).copied().unwrap_or(("none", -2, ""));
            let record = |memory: usize| self.records[memory].get(field).map(Record::bytes).unwrap_or_default();
            HoldEntry {
                kind: kind.to_owned(),
                expires_at_ms,
                text: ByteBuf::from(text),
                records: [ByteBuf::from(record(0)), ByteBuf::from(record(1))],
            }
        };
        let state = self.seen().state;
        let holds = Holds {
            redis_ms: self.redis_ms,
            head: ByteBuf::from(state[..state.len().min(399)].to_vec()),
            undos: self.undos(),
            holds: fields.iter().map(entry).collect(),
        };
        let moment = HoldMoment::of(&holds);
        for (field, hold) in fields.iter().zip(&holds.holds) {
            checks::hold(&keys, &moment, field, hold, &mut findings);
        }
        let short = |finding: &Finding| finding.to_string().strip_prefix(keys.state()).unwrap().to_owned();
        findings.found.iter().map(short).collect()
    }
}

/// The keys of the user.
pub fn keys() -> UserKeys {
    UserKeys::new(&Owner::new(&AppId::default(), &UserId::parse("u").unwrap()))
}
