//! What is stored, decoded: only the shape is held against what the scripts write; the checks judge the numbers. The formats are those
//! of `lua/lib/ledger.lua`, `lua/lib/record.lua`, `lua/lib/once.lua` and `lua/lib/subscription.lua`.

use std::collections::BTreeMap;

use crate::domain::amount::Quantity;
use crate::domain::counted::counted;
use crate::ledger::packed::{Misfit, Reader};

use super::value::{Undecodable, Value, not_a};

/// At most this many windows of one group are kept.
const MOST_WINDOWS: usize = 8;

/// A user's ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The user's clock.
    pub time: i64,
    /// How many holds are live.
    pub live: i64,
    /// No live deadline is earlier.
    pub due: i64,
    /// Nothing is to be forgotten earlier.
    pub forget: i64,
    /// When memory and agenda expire.
    pub memory: i64,
    /// When the ledger's own key expires, as it was last told.
    pub expires: i64,
    /// By group: its windows, the one that was opened or entered last first.
    pub groups: BTreeMap<String, Vec<Window>>,
    /// The number of the latest window.
    pub opened: i64,
}

/// A window of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Window {
    pub unit: i64,
    pub period: i64,
    pub anchor: i64,
    pub start: i64,
    pub end: i64,
    pub kept: i64,
    pub used: i64,
    pub held: i64,
    pub number: i64,
}

/// What one group was charged by a reservation or a tracked event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Claim {
    pub group: String,
    pub unit: i64,
    pub quota: i64,
    pub start: i64,
    pub end: i64,
    /// The window's number.
    pub window: i64,
    pub charge: i64,
}

/// States of a reservation as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    Held,
    Committed,
    Released,
}

/// A reservation, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// As stored; a lapsed one is still held here.
    pub state: State,
    /// Until when it holds.
    pub deadline: i64,
    /// Until when it is remembered.
    pub forget: i64,
    /// Empty for a call without one.
    pub request_id: String,
    /// Each with what was committed (0: nothing yet), and how much of that was refunded.
    pub claims: Vec<(Claim, i64, i64)>,
    /// Whether it was committed late.
    pub late: bool,
}

/// What a request id has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// It made the reservation with this nonce.
    Reserve {
        /// Its name among the user's reservations.
        nonce: String,
    },
    /// It counted.
    Track {
        /// Until when that is remembered.
        forget: i64,
        /// Each with what of a refund could not be given back.
        claims: Vec<(Claim, i64)>,
    },
}

/// A subscription, as far as it can contradict itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Subscription {
    pub revision: String,
    pub plan: String,
    pub start: i64,
    pub end: i64,
    pub cycle_anchor: i64,
    pub fallen_to: String,
}

/// Says of what it is that it does not fit.
fn of(name: &str) -> impl Fn(Misfit) -> Undecodable + use<'_> {
    move |misfit| Undecodable::new(format!("{name} does not fit its format: {misfit}"))
}

/// A byte that is 0 or 1.
fn flag(reader: &mut Reader<'_>, what: &str, name: &str) -> Result<bool, Undecodable> {
    match reader.integer(1).map_err(of(name))? {
        0 => Ok(false),
        1 => Ok(true),
        other => not_a(format_args!("{what} of {name}"), other, "0 or 1"),
    }
}

fn at_end(reader: &Reader<'_>, name: &str) -> Result<(), Undecodable> {
    let rest = reader.0.len();
    if rest == 0 {
        return Ok(());
    }
    Err(Undecodable::new(format!("{name} is followed by {} too many", counted(rest, "byte"))))
}

impl Ledger {
    /// Decodes the value of a ledger key.
    ///
    /// # Errors
    /// Where it is not of the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        const NAME: &str = "the ledger";
        let mut reader = Reader(packed);
        let mut numbers = [0; 7];
        for (number, width) in numbers.iter_mut().zip([6, 2, 7, 7, 7, 7, 4]) {
            *number = reader.integer(width).map_err(of(NAME))?;
        }
        reader.text(1).map_err(of(NAME))?;
        let count = reader.integer(2).map_err(of(NAME))?;
        let mut groups = BTreeMap::new();
        for _ in 0..count {
            let id = reader.text(1).map_err(of(NAME))?;
            let name = format!("group {id:?}");
            let (mut windows, mut more) = (Vec::new(), true);
            while more {
                if windows.len() == MOST_WINDOWS {
                    return not_a(&name, "one of more windows", "one of at most 8");
                }
                let which = if windows.is_empty() { "current" } else { "earlier" };
                let (window, follows) = Window::decode(&mut reader, &format!("the {which} window of {name}"))?;
                windows.push(window);
                more = follows;
            }
            if groups.insert(id.to_owned(), windows).is_some() {
                return not_a(&name, "there twice", "there once");
            }
        }
        at_end(&reader, NAME)?;
        let [time, live, due, forget, memory, expires, opened] = numbers;
        Ok(Self { time, live, due, forget, memory, expires, groups, opened })
    }

    /// Every window, with its group and whether it is the current one.
    pub fn windows(&self) -> impl Iterator<Item = (&str, &Window, bool)> {
        self.groups.iter().flat_map(|(id, windows)| {
            windows.iter().enumerate().map(move |(place, window)| (id.as_str(), window, place == 0))
        })
    }
}

impl Window {
    /// The window, and whether another one of the group follows.
    fn decode(reader: &mut Reader<'_>, name: &str) -> Result<(Self, bool), Undecodable> {
        let misfit = of(name);
        let window = Self {
            unit: reader.integer(1).map_err(&misfit)?,
            period: reader.integer(1).map_err(&misfit)?,
            anchor: reader.signed(7).map_err(&misfit)?,
            start: reader.integer(6).map_err(&misfit)?,
            end: reader.integer(7).map_err(&misfit)?,
            kept: reader.integer(7).map_err(&misfit)?,
            used: reader.integer(7).map_err(&misfit)?,
            held: reader.integer(7).map_err(&misfit)?,
            number: reader.integer(4).map_err(&misfit)?,
        };
        Ok((window, flag(reader, "what follows", name)?))
    }
}

/// The claims up to the end, each with its second and third number; `measured` if each has measures.
fn claims(mut reader: Reader<'_>, measured: bool) -> Result<Vec<(Claim, i64, i64)>, Undecodable> {
    let mut claims = Vec::new();
    while !reader.is_at_end() {
        let name = format!("claim {}", claims.len() + 1);
        let misfit = of(&name);
        let mut numbers = [0; 6];
        for (number, width) in numbers.iter_mut().zip([7, 7, 7, 6, 7, 4]) {
            *number = reader.integer(width).map_err(&misfit)?;
        }
        let mut terms = Reader(reader.blob(2).map_err(&misfit)?);
        let group = terms.text(1).map_err(&misfit)?.to_owned();
        let unit = terms.integer(1).map_err(&misfit)?;
        let quota = terms.signed(7).map_err(&misfit)?;
        flag(&mut terms, "`hard`", &name)?;
        terms.text(2).map_err(&misfit)?;
        at_end(&terms, &format!("what {name} says of its group"))?;
        let measures = reader.blob(4).map_err(&misfit)?;
        if measures.is_empty() == measured {
            let what = if measured { "some" } else { "none" };
            return not_a(format_args!("measures of {name}"), counted(measures.len(), "byte"), what);
        }
        Value::read_all(measures, &format!("the measures of {name}"))?;
        let [charge, second, third, start, end, window] = numbers;
        claims.push((Claim { group, unit, quota, start, end, window, charge }, second, third));
    }
    if claims.is_empty() {
        return not_a("the list of claims", "empty", "one of at least 1");
    }
    Ok(claims)
}

impl Record {
    /// Decodes the value of a reservation's field.
    ///
    /// # Errors
    /// Where it is not of the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        const NAME: &str = "the record";
        let mut reader = Reader(packed);
        let state = match reader.integer(1).map_err(of(NAME))? {
            1 => State::Held,
            2 => State::Committed,
            3 => State::Released,
            other => return not_a("the state", other, "1 (held), 2 (committed) or 3 (released)"),
        };
        let late = flag(&mut reader, "`late`", NAME)?;
        let deadline = reader.integer(6).map_err(of(NAME))?;
        let forget = reader.integer(6).map_err(of(NAME))?;
        let request_id = reader.text(1).map_err(of(NAME))?.to_owned();
        match &Value::read_all(reader.blob(4).map_err(of(NAME))?, "the event")?[..] {
            [name, _, quantities, _, settled @ ..] if settled.len() <= 1 => {
                name.text("the event's name")?;
                quantities.map("the event's quantities")?;
                settled.iter().try_for_each(|settled| settled.map("the settled quantities").map(drop))?;
            }
            other => return not_a("the event", format!("one of {}", counted(other.len(), "value")), "one of 4 or 5"),
        }
        Ok(Self { state, deadline, forget, request_id, claims: claims(reader, true)?, late })
    }
}

impl Request {
    /// Decodes the value of a request's field.
    ///
    /// # Errors
    /// Where it is not of the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let values = Value::read_all(packed, "the request")?;
        let kind = values.first().map_or(Ok(""), |kind| kind.text("the kind of request"))?;
        match (kind, &values[..]) {
            ("reserve", [_, digest, nonce]) => {
                digest.text("the digest")?;
                Ok(Self::Reserve { nonce: nonce.text("the nonce")?.to_owned() })
            }
            ("track", [_, digest, event_id, forget, packed]) => {
                digest.text("the digest")?;
                event_id.text("the event id")?;
                let packed = packed.bytes("the claims")?;
                let claims = claims(Reader(packed), false)?.into_iter().map(|(claim, unapplied, _)| (claim, unapplied));
                Ok(Self::Track { forget: forget.integer("the time to forget it")?, claims: claims.collect() })
            }
            (_, values) => {
                let found = format!("one of {}", counted(values.len(), "value"));
                not_a("the request", found, "that of a reserve, with 3 values, or of a track, with 5")
            }
        }
    }
}

impl Subscription {
    /// Decodes the value of a subscription key.
    ///
    /// # Errors
    /// Where it is not of the shape that is written.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let value = Value::read(packed)?;
        let [revision, plan, start, end, cycle_anchor, fallen_to, overrides] = value.list("the subscription")?;
        for pair in overrides.values("the overrides")? {
            let [group, quota] = pair.list("an override")?;
            let name = format!("the quota of {:?}", group.text("the group of an override")?);
            let text = quota.text(&name)?;
            if text != "unlimited" && Quantity::from_decimal(text).is_err() {
                return not_a(name, quota, "a number or \"unlimited\"");
            }
        }
        Ok(Self {
            revision: revision.text("the revision")?.to_owned(),
            plan: plan.text("the plan")?.to_owned(),
            start: start.integer("the start")?,
            end: end.integer("the end")?,
            cycle_anchor: cycle_anchor.integer("the cycle anchor")?,
            fallen_to: fallen_to.text("the plan it fell to")?.to_owned(),
        })
    }
}
