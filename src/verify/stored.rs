//! Decodes stored data. It checks only that the shape is what scripts write; the checks judge the numbers. The formats
//! are those of `lua/formats.toml`.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::domain::amount::Quantity;
use crate::domain::counted::counted;
use crate::domain::id::Field;
pub use crate::ledger::NEVER_MS;
use crate::ledger::formats;
use crate::ledger::packed::{Misfit, Reader};

use super::value::{Undecodable, Value, not_a};

/// The format of records, and of states.
const FORMAT: i64 = 1;

/// The format of states whose windows are wide, or whose deadlines have parts that count.
const WIDE_FORMAT: i64 = 2;

/// The format of records with a life.
const LIFE_FORMAT: i64 = 2;

/// The field of a memory that has its undo.
pub const UNDO: &[u8] = b"u";

/// Converts a misfit into the error about the value with this name.
fn of(name: impl Display) -> impl Fn(Misfit) -> Undecodable {
    move |misfit| Undecodable::new(format!("{name} does not fit its format: {misfit}"))
}

fn at_end(reader: &Reader<'_>, name: impl Display) -> Result<(), Undecodable> {
    match reader.0.len() {
        0 => Ok(()),
        more => Err(Undecodable::new(format!("{name} is followed by {} too many", counted(more, "byte")))),
    }
}

/// Reads `count` values of one format, one after the other.
fn several<T>(
    reader: &mut Reader<'_>,
    count: i64,
    name: &str,
    read: impl Fn(&mut Reader<'_>) -> Result<T, Misfit>,
) -> Result<Vec<T>, Undecodable> {
    (1..=count).map(|number| read(reader).map_err(of(format_args!("{name} {number}")))).collect()
}

fn known_format(format: i64, newest: i64, name: &str) -> Result<(), Undecodable> {
    if (FORMAT..=newest).contains(&format) {
        return Ok(());
    }
    let text =
        format!("{name} has format {format}, and this version of Tollgate knows {newest}: verify with a newer one");
    Err(Undecodable::new(text))
}

fn text(bytes: &[u8], name: impl Display) -> Result<&str, Undecodable> {
    std::str::from_utf8(bytes).map_err(|_| of(name)(Misfit::NotText))
}

/// A user's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The beginning.
    pub head: Head,
    /// The terms. There are none without a subscription.
    pub terms: Option<formats::Terms>,
    /// The schedules of windows.
    pub schedules: Vec<formats::Schedule>,
    /// The counters of the plan's groups.
    pub counters: Vec<formats::Counter>,
    /// The deadlines, in the order of their times.
    pub deadlines: Vec<Deadline>,
    /// The windows of each group. The one that was opened or entered last comes first.
    pub groups: BTreeMap<String, Vec<Window>>,
    /// The subscription; empty if there is none.
    pub blob: Vec<u8>,
}

/// The beginning of a state: head and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The head.
    pub head: formats::Head,
    /// The memory, if there is one.
    pub memory: Option<formats::Memory>,
}

/// A deadline, or a page of them, with the amounts that come back then.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Deadline {
    pub at: i64,
    pub is_page: bool,
    pub sum: Sum,
}

/// The sum of some holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sum {
    /// The number of holds.
    pub holds: i64,
    /// Their amounts, by the number of the window.
    pub parts: BTreeMap<i64, i128>,
}

impl Sum {
    fn read(reader: &mut Reader<'_>, holds: i64, parts: i64, name: &str) -> Result<Self, Undecodable> {
        let mut sum = Self { holds, parts: BTreeMap::new() };
        for part in several(reader, parts, &format!("{name}, part"), formats::Part::read)? {
            if sum.parts.insert(part.balance, part.amount.into()).is_some() {
                return not_a(format_args!("window {} of {name}", part.balance), "there twice", "there once");
            }
        }
        Ok(sum)
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.holds += other.holds;
        for (window, amount) in &other.parts {
            *self.parts.entry(*window).or_default() += amount;
        }
    }
}

/// A window of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Its identity and its place.
    pub stored: formats::WideWindow,
    /// Its own counter, or that of its place, if there is one.
    pub counter: formats::Counter,
    /// The schedule of its counter, if there is one.
    pub schedule: formats::Schedule,
}

impl Head {
    /// Decodes the beginning of a state.
    ///
    /// # Errors
    /// If it does not have the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        Self::read(&mut Reader(packed))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Undecodable> {
        const NAME: &str = "the state";
        known_format(reader.clone().integer(1).map_err(of(NAME))?, WIDE_FORMAT, NAME)?;
        let head = formats::Head::read(reader).map_err(of(NAME))?;
        text(&head.plan, NAME)?;
        if !(0..=2).contains(&head.young) {
            return not_a("the number of the young memory", head.young, "1 or 2, or 0 for none");
        }
        let memory = (head.young != 0).then(|| formats::Memory::read(reader).map_err(of(NAME))).transpose()?;
        Ok(Self { head, memory })
    }
}

impl State {
    /// Decodes the value of a state key.
    ///
    /// # Errors
    /// If it does not have the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        const NAME: &str = "the state";
        let mut reader = Reader(packed);
        let beginning = Head::read(&mut reader)?;
        let head = &beginning.head;
        if !(0..=2).contains(&head.subscribed) {
            return not_a("`subscribed`", head.subscribed, "0, 1 or 2");
        }
        let terms = (head.subscribed != 0).then(|| formats::Terms::read(&mut reader).map_err(of(NAME))).transpose()?;
        let schedules = several(&mut reader, head.schedules, "schedule", formats::Schedule::read)?;
        let is_live = head.live > 0;
        let counters = several(&mut reader, head.groups, "counter", |reader| counter(reader, is_live))?;
        let length = usize::try_from(head.deadlines).unwrap_or(usize::MAX);
        let deadlines = deadlines(Reader(reader.bytes(length).map_err(of("the list of deadlines"))?))?;
        let count = formats::Windows::read(&mut reader).map_err(of(NAME))?.count;
        let mut groups: BTreeMap<String, Vec<Window>> = BTreeMap::new();
        let mut last = String::new();
        for number in 1..=count {
            let window = Window::read(&mut reader, head.format, number, &counters, &schedules)?;
            let group = text(&window.stored.group, format_args!("window {number}"))?.to_owned();
            if group != last && groups.contains_key(&group) {
                return not_a(format_args!("group {group:?}"), "in two places", "in one");
            }
            last.clone_from(&group);
            groups.entry(group).or_default().push(window);
        }
        let blob = formats::Subscription::read(&mut reader).map_err(of(NAME))?.blob;
        // What follows is of a later version.
        Ok(Self { head: beginning, terms, schedules, counters, deadlines, groups, blob })
    }

    /// Every window, with its group and whether it is the current one.
    pub fn windows(&self) -> impl Iterator<Item = (&str, &Window, bool)> {
        self.groups.iter().flat_map(|(id, windows)| {
            windows.iter().enumerate().map(move |(place, window)| (id.as_str(), window, place == 0))
        })
    }
}

/// A counter as it is stored while holds are live, or while none is.
fn counter(reader: &mut Reader<'_>, is_live: bool) -> Result<formats::Counter, Misfit> {
    if is_live {
        return formats::Counter::read(reader);
    }
    let formats::IdleCounter { number, schedule, used } = formats::IdleCounter::read(reader)?;
    Ok(formats::Counter { number, schedule, used, held: 0 })
}

fn deadlines(mut reader: Reader<'_>) -> Result<Vec<Deadline>, Undecodable> {
    let mut deadlines = Vec::new();
    while !reader.is_at_end() {
        let name = format!("deadline {}", deadlines.len() + 1);
        let before = reader.0.len();
        let formats::Deadline { at, kind, holds, parts } = formats::Deadline::read(&mut reader).map_err(of(&name))?;
        if !(0..=1).contains(&kind) {
            return not_a(format_args!("the kind of {name}"), kind, "0 or 1");
        }
        let sum = Sum::read(&mut reader, holds, parts, &name)?;
        let noted = formats::DeadlineEnd::read(&mut reader).map_err(of(&name))?.size;
        let size = before - reader.0.len();
        if usize::try_from(noted) != Ok(size) {
            return not_a(format_args!("the size of {name}"), counted(size, "byte"), &format!("{noted}, as it says"));
        }
        deadlines.push(Deadline { at, is_page: kind == 1, sum });
    }
    Ok(deadlines)
}

impl Window {
    fn read(
        reader: &mut Reader<'_>,
        format: i64,
        number: i64,
        counters: &[formats::Counter],
        schedules: &[formats::Schedule],
    ) -> Result<Self, Undecodable> {
        let name = format!("window {number}");
        let stored = stored_window(reader, format).map_err(of(&name))?;
        let counter = match stored.place {
            // It has its held amount at any time.
            0 => formats::Counter::read(reader).map_err(of(&name))?,
            place => match nth(counters, place) {
                Some(counter) => counter.clone(),
                None => return not_a(format_args!("the counter of {name}"), place, "one of those of the state"),
            },
        };
        let Some(schedule) = nth(schedules, counter.schedule).cloned() else {
            return not_a(format_args!("the schedule of {name}"), counter.schedule, "one of those of the state");
        };
        Ok(Self { stored, counter, schedule })
    }

    /// The number that claims know it by.
    pub fn number(&self) -> i64 {
        self.counter.number
    }

    /// Returns whether it has no length. Such a window counts nothing. It keeps those behind it from being current again.
    pub fn is_mark(&self) -> bool {
        self.schedule.start == self.schedule.ends
    }

    /// Returns the properties that identify the window, apart from its start.
    pub fn kind(&self) -> (i64, i64, i64) {
        (self.stored.unit, self.stored.period, self.schedule.anchor)
    }
}

/// A window of a state with this format.
fn stored_window(reader: &mut Reader<'_>, format: i64) -> Result<formats::WideWindow, Misfit> {
    if format == WIDE_FORMAT {
        return formats::WideWindow::read(reader);
    }
    let formats::Window { group, unit, period, place } = formats::Window::read(reader)?;
    Ok(formats::WideWindow { group, unit, period, reset: 0, reset_at: 0, place })
}

/// Returns the value at a place that is counted from 1.
pub fn nth<T>(values: &[T], place: i64) -> Option<&T> {
    usize::try_from(place).ok()?.checked_sub(1).and_then(|index| values.get(index))
}

/// States of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecordState {
    Held,
    Committed { late: bool },
    Released,
    Tracked,
    Extended,
}

impl RecordState {
    /// Returns a word for the state.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Committed { .. } => "committed",
            Self::Released => "released",
            Self::Tracked => "a tracked event",
            Self::Extended => "an Extend",
        }
    }
}

/// A reservation or a tracked event, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The part before the spans.
    pub stored: formats::Record,
    /// The stored state. A reservation that has lapsed is still `Held` here.
    pub state: RecordState,
    /// The event's name; empty for a tracked event that is remembered without it.
    pub name: String,
    /// Starts and ends of windows.
    pub spans: Vec<formats::Span>,
    /// The charges of the groups.
    pub claims: Vec<formats::Claim>,
    /// The committed amounts, or the parts of a tracked refund that could not be applied, by claim.
    pub first: Option<Vec<i64>>,
    /// The refunded amounts, by claim.
    pub second: Option<Vec<i64>>,
    /// The quotas, by claim.
    pub quotas: Option<Vec<i64>>,
    /// More about a reservation that was extended or committed in part, or that counts at its deadline.
    pub life: Option<Life>,
}

/// More about a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The part before the columns.
    pub stored: formats::Life,
    /// The amounts that a final commit counts which names nothing, by claim.
    pub due: Vec<i64>,
    /// The amounts that were counted before a reset, by claim.
    pub locked: Vec<i64>,
}

impl Life {
    fn read(reader: &mut Reader<'_>, claims: i64) -> Result<Self, Undecodable> {
        const NAME: &str = "the life of the record";
        let stored = formats::Life::read(reader).map_err(of(NAME))?;
        if !(0..=1).contains(&stored.on_expiry) {
            return not_a("`on_expiry` of the record", stored.on_expiry, "0 or 1");
        }
        quantities(&stored.named, "the named quantities")?;
        quantities(&stored.added, "the added quantities")?;
        if !stored.settled_what.is_empty() {
            event_name(&stored.settled_what, RecordState::Committed { late: false })?;
        }
        if !stored.extensions.len().is_multiple_of(size_of::<Field>()) {
            let bytes = counted(stored.extensions.len(), "byte");
            return not_a("the list of Extends", bytes, "16 bytes for each");
        }
        let mut column = |name| {
            let read = |reader: &mut Reader<'_>| formats::Amount::read(reader).map(|amount| amount.units);
            several(reader, claims, name, read)
        };
        Ok(Self { due: column("due")?, locked: column("locked")?, stored })
    }
}

impl Record {
    /// Decodes the value of a record's field.
    ///
    /// # Errors
    /// If it does not have the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        const NAME: &str = "the record";
        let mut reader = Reader(packed);
        known_format(reader.clone().integer(1).map_err(of(NAME))?, LIFE_FORMAT, NAME)?;
        let stored = formats::Record::read(&mut reader).map_err(of(NAME))?;
        let state = match stored.state {
            1 => RecordState::Held,
            2 => RecordState::Committed { late: false },
            3 => RecordState::Committed { late: true },
            4 => RecordState::Released,
            5 => RecordState::Tracked,
            6 => RecordState::Extended,
            other => return not_a("the state", other, "in 1 to 6"),
        };
        if !(0..=1).contains(&stored.paged) {
            return not_a("`paged` of the record", stored.paged, "0 or 1");
        }
        let name = event_name(&stored.what, state)?;
        quantities(&stored.quantities, "the quantities")?;
        settled_quantities(&stored.settled)?;
        let [columns, has_quotas] = [stored.columns & 3, stored.columns & 4];
        if columns == 3 || stored.columns != columns + has_quotas {
            return not_a("the code of the columns", stored.columns, "0, 1 or 2, and 4 more with quotas");
        }
        let spans = several(&mut reader, stored.spans, "span", formats::Span::read)?;
        let claims = several(&mut reader, stored.claims, "claim", formats::Claim::read)?;
        if claims.is_empty() {
            return not_a("the list of claims", "empty", "one of at least 1");
        }
        let mut column = |name, is_there: bool| {
            let read = |reader: &mut Reader<'_>| formats::Amount::read(reader).map(|amount| amount.units);
            is_there.then(|| several(&mut reader, stored.claims, name, read)).transpose()
        };
        let first = column("committed", columns >= 1)?;
        let second = column("refunded", columns >= 2)?;
        let read = |reader: &mut Reader<'_>| formats::Quota::read(reader).map(|quota| quota.units);
        let quotas = (has_quotas > 0).then(|| several(&mut reader, stored.claims, "quota", read)).transpose()?;
        let has_life = stored.format == LIFE_FORMAT;
        let life = has_life.then(|| Life::read(&mut reader, stored.claims)).transpose()?;
        // What follows is when a reservation was made and committed, or of a later version.
        Ok(Self { stored, state, name, spans, claims, first, second, quotas, life })
    }
}

/// The name of the event, which its metadata follow.
fn event_name(packed: &[u8], state: RecordState) -> Result<String, Undecodable> {
    if state == RecordState::Extended {
        let is_field = packed.len() == size_of::<Field>();
        let bytes = counted(packed.len(), "byte");
        return if is_field { Ok(String::new()) } else { not_a("the reservation of an Extend", bytes, "a field") };
    }
    match &Value::read_all(packed, "the event")?[..] {
        [] if state == RecordState::Tracked => Ok(String::new()),
        [name, metadata] => {
            for (key, value) in metadata.map("the event's metadata")? {
                value.text(format_args!("the event's metadata {key:?}"))?;
            }
            Ok(name.text("the event's name")?.to_owned())
        }
        other => not_a("the event", format!("one of {}", counted(other.len(), "value")), "one of 2"),
    }
}

/// A list of what each of the plan's names has, or nothing.
fn quantities(packed: &[u8], name: &str) -> Result<(), Undecodable> {
    if packed.is_empty() { Ok(()) } else { quantity_list(&Value::read(packed)?, name) }
}

/// The same, perhaps before a second list: of what was refunded.
fn settled_quantities(packed: &[u8]) -> Result<(), Undecodable> {
    const NAME: &str = "the settled quantities";
    match &Value::read_all(packed, NAME)?[..] {
        lists @ ([] | [_] | [_, _]) => lists.iter().try_for_each(|list| quantity_list(list, NAME)),
        other => not_a(NAME, counted(other.len(), "list"), "1 or 2"),
    }
}

fn quantity_list(value: &Value, name: &str) -> Result<(), Undecodable> {
    for (place, value) in (1..).zip(value.values(name)?) {
        match value {
            Value::Integer(_) | Value::Flag(_) => {}
            Value::List(parts) if matches!(parts[..], [Value::Integer(_), Value::Integer(_)]) => {}
            other => return not_a(format_args!("the value at place {place} of {name}"), other, "a quantity"),
        }
    }
    Ok(())
}

/// The kind of a memory's field, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// A reservation or a tracked event.
    Record(Field),
    /// The deadline of a page.
    Bucket(i64),
    /// The undo of the memory's last writing.
    Undo,
}

impl FieldKind {
    /// Reads a name; `None` for one that no script writes.
    pub fn of(name: &[u8]) -> Option<Self> {
        match name {
            UNDO => Some(Self::Undo),
            [b'd', deadline @ ..] if deadline.len() == 6 => Reader(deadline).integer(6).ok().map(Self::Bucket),
            _ => name.try_into().ok().map(Self::Record),
        }
    }
}

/// Decodes the value of a bucket's field.
///
/// # Errors
/// If it does not have the shape that scripts write.
pub fn bucket(packed: &[u8]) -> Result<Sum, Undecodable> {
    const NAME: &str = "the bucket";
    let mut reader = Reader(packed);
    let formats::Bucket { holds, parts } = formats::Bucket::read(&mut reader).map_err(of(NAME))?;
    let sum = Sum::read(&mut reader, holds, parts, NAME)?;
    at_end(&reader, NAME)?;
    Ok(sum)
}

/// The values that the last write of a memory has replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undo {
    /// The sequence number of that write.
    pub sequence: i64,
    /// Each field, with its value before; `None` if it was not there.
    pub before: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Undo {
    /// Decodes the value of an undo.
    ///
    /// # Errors
    /// If it does not have the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        const NAME: &str = "the undo";
        let mut reader = Reader(packed);
        let formats::Undo { sequence, count } = formats::Undo::read(&mut reader).map_err(of(NAME))?;
        let mut before = BTreeMap::new();
        for field in several(&mut reader, count, "field of the undo", formats::UndoField::read)? {
            let name = field.field.escape_ascii().to_string();
            let value = match (field.was, field.before.is_empty()) {
                (0, true) => None,
                (1, false) => Some(field.before),
                (was, _) => {
                    let found = format!("{was}, and its value of {}", counted(field.before.len(), "byte"));
                    return not_a(
                        format_args!("`was` of field {name:?} of the undo"),
                        found,
                        "0 without, or 1 with one",
                    );
                }
            };
            if matches!(FieldKind::of(&field.field), None | Some(FieldKind::Undo)) {
                return not_a(format_args!("field {name:?} of the undo"), "another one", "a record or a bucket");
            }
            if before.insert(field.field, value).is_some() {
                return not_a(format_args!("field {name:?} of the undo"), "there twice", "there once");
            }
        }
        at_end(&reader, NAME)?;
        Ok(Self { sequence, before })
    }
}

/// The parts of an archived plan that records can contradict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Id, unit and period of each group.
    pub groups: Vec<(String, i64, i64)>,
}

impl Plan {
    /// Decodes a plan of the archive.
    ///
    /// # Errors
    /// If it does not have the shape that is written.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let value = Value::read(packed)?;
        let [id, change, names, schedules, groups] = value.list("the plan")?;
        id.text("the plan's id")?;
        match change.text("the plan's change")? {
            "carry" | "reset" | "block" => {}
            other => return not_a("the plan's change", format!("{other:?}"), "carry, reset or block"),
        }
        for name in names.values("the plan's names")? {
            name.text("one of the plan's names")?;
        }
        let mut periods = Vec::new();
        for schedule in schedules.values("the plan's schedules")? {
            let [period, _anchored] = schedule.list("one of the plan's schedules")?;
            periods.push(period.integer("the period of a schedule")?);
        }
        let mut found = Vec::new();
        for group in groups.values("the plan's groups")? {
            let [id, unit, schedule, quota, _hard, label, rules] = group.list("one of the plan's groups")?;
            let place = schedule.integer("the schedule of a group")?;
            let Some(period) = nth(&periods, place) else {
                return not_a("the schedule of a group", place, "one of the plan's");
            };
            quota.integer("the quota of a group")?;
            label.text("the label of a group")?;
            for rule in rules.values("the rules of a group")? {
                let [_kind, _pattern, _conditions, _measure] = rule.list("a rule of a group")?;
            }
            found.push((id.text("the id of a group")?.to_owned(), unit.integer("the unit of a group")?, *period));
        }
        Ok(Self { groups: found })
    }
}

/// The parts of a subscription that can contradict each other.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Subscription {
    pub plan: String,
    pub start: i64,
    pub end: i64,
    pub cycle_anchor: i64,
}

impl Subscription {
    /// Decodes the blob of a state, which `src/ledger/subscription.rs` writes.
    ///
    /// # Errors
    /// If it does not have the shape that is written.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let value = Value::read(packed)?;
        let [plan, start, end, cycle_anchor, overrides] = value.list("the subscription")?;
        for pair in overrides.values("the overrides")? {
            let [group, quota] = pair.list("an override")?;
            let name = format!("the quota of {:?}", group.text("the group of an override")?);
            let text = quota.text(&name)?;
            if text != "unlimited" && Quantity::from_decimal(text).is_err() {
                return not_a(name, quota, "a number or \"unlimited\"");
            }
        }
        Ok(Self {
            plan: plan.text("the plan")?.to_owned(),
            start: start.integer("the start")?,
            end: end.integer("the end")?,
            cycle_anchor: cycle_anchor.integer("the cycle anchor")?,
        })
    }
}
