//! What is stored, decoded: only the shape is held against what the scripts write; the checks judge the numbers. The positions are
//! those of `lua/lib/ledger.lua`, `lua/lib/record.lua`, `lua/lib/once.lua` and `lua/lib/subscription.lua`.

use std::collections::BTreeMap;

use crate::domain::amount::Quantity;

use super::value::{Undecodable, Value};

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
    /// By group: the current window, and the previous one.
    pub groups: BTreeMap<String, (Window, Option<Window>)>,
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
    /// Each with what was committed (-1: nothing yet), and how much of that was refunded.
    pub claims: Vec<(Claim, i64, i64)>,
    /// There once it is committed.
    pub late: Option<bool>,
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

impl Ledger {
    /// Decodes the value of a ledger key.
    ///
    /// # Errors
    /// Where it is not of the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let value = Value::read(packed)?;
        let [time, live, due, forget, memory, plan, groups, opened] = value.list("the ledger", 8..=8)? else {
            return value.not("the ledger", "a list of 8");
        };
        plan.text("the plan")?;
        let mut windows = BTreeMap::new();
        for (id, pair) in groups.map("groups")? {
            let name = format!("group {id:?}");
            let [current, previous] = pair.list(&name, 2..=2)? else { return pair.not(&name, "a list of 2") };
            let current = Window::decode(current, &format!("the current window of {name}"))?;
            let previous = match previous {
                Value::Flag(false) => None,
                window => Some(Window::decode(window, &format!("the previous window of {name}"))?),
            };
            windows.insert(id.to_owned(), (current, previous));
        }
        Ok(Self {
            time: time.integer("the time")?,
            live: live.integer("the number of live holds")?,
            due: due.integer("the next deadline")?,
            forget: forget.integer("the next time to forget")?,
            memory: memory.integer("the expiry of the memory")?,
            groups: windows,
            opened: opened.integer("the number of windows opened")?,
        })
    }

    /// Every window, with its group and whether it is the current one.
    pub fn windows(&self) -> impl Iterator<Item = (&str, &Window, bool)> {
        self.groups.iter().flat_map(|(id, (current, previous))| {
            let previous = previous.iter().map(move |window| (id.as_str(), window, false));
            std::iter::once((id.as_str(), current, true)).chain(previous)
        })
    }
}

impl Window {
    fn decode(value: &Value, name: &str) -> Result<Self, Undecodable> {
        const FIELDS: [&str; 9] = ["unit", "period", "anchor", "start", "end", "kept", "used", "held", "number"];
        let mut numbers = [0; 9];
        for ((number, value), field) in numbers.iter_mut().zip(value.list(name, 9..=9)?).zip(FIELDS) {
            *number = value.integer(format_args!("{field} of {name}"))?;
        }
        let [unit, period, anchor, start, end, kept, used, held, number] = numbers;
        Ok(Self { unit, period, anchor, start, end, kept, used, held, number })
    }
}

impl Claim {
    /// The first nine positions.
    fn decode(values: &[Value], name: &str) -> Result<Self, Undecodable> {
        let [group, label, unit, quota, hard, start, end, window, charge, ..] = values else {
            return Value::List(values.to_vec()).not(name, "a list of at least 9");
        };
        let group = group.text(format_args!("the group of {name}"))?.to_owned();
        label.text(format_args!("the label of {name}"))?;
        hard.flag(format_args!("`hard` of {name}"))?;
        let integer = |value: &Value, field: &str| value.integer(format_args!("{field} of {name}"));
        Ok(Self {
            unit: integer(unit, "the unit")?,
            quota: integer(quota, "the quota")?,
            start: integer(start, "the start")?,
            end: integer(end, "the end")?,
            window: integer(window, "the window")?,
            charge: integer(charge, "the charge")?,
            group,
        })
    }
}

impl Record {
    /// Decodes the value of a reservation's field.
    ///
    /// # Errors
    /// Where it is not of the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let value = Value::read(packed)?;
        let fields = value.list("the record", 7..=8)?;
        let [state, deadline, forget, request_id, event, values, claims, late @ ..] = fields else {
            return value.not("the record", "a list of 7 or 8");
        };
        let state = match state.integer("the state")? {
            1 => State::Held,
            2 => State::Committed,
            3 => State::Released,
            _ => return state.not("the state", "1 (held), 2 (committed) or 3 (released)"),
        };
        event.text("the event")?;
        values.map("the values")?;
        let mut decoded = Vec::new();
        for (index, claim) in claims.list("the claims", 1..=usize::MAX)?.iter().enumerate() {
            let name = format!("claim {}", index + 1);
            let fields = claim.list(&name, 12..=12)?;
            fields[9].list(format_args!("the measures of {name}"), 1..=usize::MAX)?;
            decoded.push((
                Claim::decode(fields, &name)?,
                fields[10].integer(format_args!("what was committed of {name}"))?,
                fields[11].integer(format_args!("what was refunded of {name}"))?,
            ));
        }
        Ok(Self {
            state,
            deadline: deadline.integer("the deadline")?,
            forget: forget.integer("the time to forget it")?,
            request_id: request_id.text("the request id")?.to_owned(),
            claims: decoded,
            late: late.first().map(|late| late.flag("`late`")).transpose()?,
        })
    }
}

impl Request {
    /// Decodes the value of a request's field.
    ///
    /// # Errors
    /// Where it is not of the shape that scripts write.
    pub fn decode(packed: &[u8]) -> Result<Self, Undecodable> {
        let value = Value::read(packed)?;
        let fields = value.list("the request", 3..=5)?;
        fields[1].text("the digest")?;
        match (fields[0].text("the kind of request")?, fields) {
            ("reserve", [_, _, nonce]) => Ok(Self::Reserve { nonce: nonce.text("the nonce")?.to_owned() }),
            ("track", [_, _, event_id, forget, claims]) => {
                event_id.text("the event id")?;
                let mut decoded = Vec::new();
                for (index, claim) in claims.list("the claims", 1..=usize::MAX)?.iter().enumerate() {
                    let name = format!("claim {}", index + 1);
                    let fields = claim.list(&name, 10..=10)?;
                    let unapplied = fields[9].integer(format_args!("what was not applied of {name}"))?;
                    decoded.push((Claim::decode(fields, &name)?, unapplied));
                }
                Ok(Self::Track { forget: forget.integer("the time to forget it")?, claims: decoded })
            }
            _ => value.not("the request", "that of a reserve, with 3 values, or of a track, with 5"),
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
        let fields = value.list("the subscription", 7..=7)?;
        let [revision, plan, start, end, cycle_anchor, fallen_to, overrides] = fields else {
            return value.not("the subscription", "a list of 7");
        };
        for pair in overrides.list("the overrides", 0..=usize::MAX)? {
            let pair = pair.list("an override", 2..=2)?;
            let group = pair[0].text("the group of an override")?;
            let name = format!("the quota of {group:?}");
            if !matches!(pair[1].text(&name)?, "unlimited") && Quantity::from_decimal(pair[1].text(&name)?).is_err() {
                return pair[1].not(&name, "a number or \"unlimited\"");
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
