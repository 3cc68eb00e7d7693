//! What travels to and from the scripts, in MessagePack: its integers are exact (SPEC section 6). The positions are those of
//! the scripts' headers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::{OrFalse, Terms};
use crate::domain::amount::{InvalidQuantity, MAX_UNITS, Quantity, Unit, Units};
use crate::domain::answer::{Committed, Decision, Hold, Reason, Released, ReservationState, Standing, Tracked};
use crate::domain::event::{Actual, Event, QUANTITY};
use crate::domain::fault::Fault;
use crate::domain::packed::{Misfit, Reader};
use crate::domain::plan::Quota;
use crate::domain::subscription::{QuotaOverride, Subscription};

use super::Stale;

/// Encodes a call's arguments.
///
/// # Panics
/// Never: numbers, text and maps of them can be encoded.
#[must_use]
pub fn encode(call: &impl Serialize) -> Vec<u8> {
    // What most calls need, so that it does not grow step by step.
    let mut packed = Vec::with_capacity(512);
    rmp_serde::encode::write(&mut packed, call).expect("numbers and text can be encoded");
    packed
}

/// An event, as the scripts read it: metadata, name, quantity, quantities, and the metadata that measures look up.
pub type EventParts<'a> = (
    &'a BTreeMap<String, String>,
    &'a str,
    OrFalse<Quantity>,
    &'a BTreeMap<String, Quantity>,
    OrFalse<BTreeMap<&'a str, MetadataNumber>>,
);

/// A metadata value that a measure may look up. The scripts read a number, or `true` for a value that is none: it is neither
/// absent nor anything to count.
#[derive(Debug, Clone, Copy)]
pub struct MetadataNumber(Result<Quantity, InvalidQuantity>);

impl Serialize for MetadataNumber {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(quantity) => quantity.serialize(serializer),
            Err(_) => serializer.serialize_bool(true),
        }
    }
}

/// The parts of an event, in the order in which the scripts take them, for rules that are not known here: any name may be measured.
#[must_use]
pub fn event(event: &Event) -> EventParts<'_> {
    event_measured(event, |_| true)
}

/// The parts of an event, in the order in which the scripts take them, for rules that measure only the names which `measured`
/// accepts.
pub fn event_measured(event: &Event, measured: impl Fn(&str) -> bool) -> EventParts<'_> {
    let numbers = event.measured_metadata(measured).into_iter().map(|(name, number)| (name, MetadataNumber(number)));
    let numbers = OrFalse(Some(numbers.collect::<BTreeMap<_, _>>()).filter(|numbers| !numbers.is_empty()));
    (&event.metadata, event.name.as_str(), OrFalse(event.quantity), &event.quantities, numbers)
}

/// What tells an event from another one under the same request id.
///
/// An event without any number is the same as one with quantity 1, and the numbers of the metadata stand here twice: earlier versions
/// wrote it so, and a retry may meet either version (ONCE).
#[must_use]
pub fn event_identity(event: &Event) -> EventParts<'_> {
    let Event { name, quantity, quantities, metadata } = event;
    let unsaid = quantities.is_empty() && !metadata.contains_key(QUANTITY);
    let quantity = quantity.or_else(|| unsaid.then_some(Quantity::ONE));
    let numbers = event.measured_metadata(|_| true).into_iter().filter(|(_, number)| number.is_ok());
    let numbers: BTreeMap<_, _> = numbers.map(|(name, number)| (name, MetadataNumber(number))).collect();
    (
        metadata,
        name.as_str(),
        OrFalse(quantity),
        quantities,
        OrFalse(Some(numbers).filter(|numbers| !numbers.is_empty())),
    )
}

/// The call of `can_use`.
#[must_use]
pub fn can_use_call(revision: &str, ended: bool, event: &Event) -> Vec<u8> {
    can_use_call_of(revision, ended, self::event(event))
}

/// The call of `can_use`, for an event in parts.
#[must_use]
pub fn can_use_call_of(revision: &str, ended: bool, event: EventParts<'_>) -> Vec<u8> {
    let (metadata, name, quantity, quantities, numbers) = event;
    encode(&(revision, ended, metadata, name, quantity, quantities, numbers))
}

/// The arguments of `commit` that say what was used: whether anything is said, the quantity, the quantities.
#[must_use]
pub fn actual(actual: Option<&Actual>) -> (bool, OrFalse<Quantity>, BTreeMap<&str, Quantity>) {
    let quantities = actual.into_iter().flat_map(|actual| &actual.quantities);
    (
        actual.is_some(),
        OrFalse(actual.and_then(|actual| actual.quantity)),
        quantities.map(|(name, quantity)| (name.as_str(), *quantity)).collect(),
    )
}

/// The answer of a script, by its name.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Reply {
    Stale(i64, i64, serde_bytes::ByteBuf),
    Fault(String, String, String),
    Decision(String, String, String, i64, Rows, i64, bool),
    AlreadyCommitted(Vec<(String, u8, Units)>),
    Committed(String, Rows, bool, bool, bool),
    Released(String, Rows, bool),
    Tracked(String, String, Rows, bool),
    #[serde(deserialize_with = "one")]
    Usage(Rows),
    Subscription(i64, serde_bytes::ByteBuf, String),
    #[serde(deserialize_with = "one")]
    Put(i64),
    Deleted(Vec<String>),
}

/// An array of one.
fn one<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    <(T,)>::deserialize(deserializer).map(|(value,)| value)
}

/// Rows of `lua/lib/report.lua`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Rows(serde_bytes::ByteBuf);

/// An answer that does not fit its script: a bug, or somebody else's writing.
#[derive(Debug, thiserror::Error)]
#[error("a script answered {0}, which does not fit the question")]
struct Unfitting(String);

/// A script failed for one of several calls that travelled together.
#[derive(Debug, thiserror::Error)]
#[error("a script failed: {0}")]
struct ScriptError(String);

fn unfitting(what: impl std::fmt::Debug) -> Fault {
    Fault::Internal(Box::new(Unfitting(format!("{what:?}"))))
}

/// Decodes the answer of a script.
///
/// # Errors
/// What the script calls a fault; [`Fault::Internal`] for what no script answers.
pub fn decode(packed: &[u8]) -> Result<Reply, Fault> {
    let reply = rmp_serde::from_slice(packed).map_err(|error| Fault::Internal(Box::new(error)))?;
    match reply {
        Reply::Fault(reason, group, name) => Err(fault(reason, group, name)),
        Reply::AlreadyCommitted(committed) => {
            let committed = committed.into_iter().map(|(group, code, units)| Ok((group, unit(code)?, units)));
            Err(Fault::AlreadyCommitted { committed: committed.collect::<Result<_, Fault>>()? })
        }
        reply => Ok(reply),
    }
}

fn fault(reason: String, group: String, name: String) -> Fault {
    match reason.as_str() {
        "QUANTITY_MISSING" => Fault::QuantityMissing { group, quantity: name },
        "NOTHING_MEASURED" => Fault::Invalid {
            field: "actual".to_owned(),
            problem: format!(
                "names no quantity that a limit group of the reservation measures; {group:?} measures {name}: name what \
                 was used by these names, or leave `actual` out to commit as reserved"
            ),
            reason: "NOTHING_MEASURED",
        },
        "OUT_OF_RANGE" => Fault::OutOfRange {
            field: format!("the counter of limit group {group:?}"),
            problem: "would become larger than a counter can be (2^53 - 1, or 8000000000 cents)".to_owned(),
        },
        "REQUEST_ID_REUSED" => Fault::RequestIdReused,
        "RESERVATION_NOT_FOUND" => Fault::ReservationNotFound,
        "NOT_COMMITTED" => match state(&name) {
            Ok(state) => Fault::NotCommitted { state },
            Err(fault) => fault,
        },
        "REFUND_OF_ANOTHER_EVENT" => Fault::Invalid {
            field: "event.name".to_owned(),
            problem: format!("does not refund the reservation's event: name it {name}.refund"),
            reason: "REFUND_OF_ANOTHER_EVENT",
        },
        "PLAN_UNKNOWN" => Fault::PlanUnknown(name),
        "TOO_MANY_HOLDS" => Fault::TooManyHolds,
        "SCRIPT_ERROR" => Fault::Internal(Box::new(ScriptError(name))),
        _ => unfitting(reason),
    }
}

fn unit(code: u8) -> Result<Unit, Fault> {
    Unit::from_code(code).ok_or_else(|| unfitting(("unit", code)))
}

fn state(name: &str) -> Result<ReservationState, Fault> {
    match name {
        "held" => Ok(ReservationState::Held),
        "committed" => Ok(ReservationState::Committed),
        "released" => Ok(ReservationState::Released),
        "expired" => Ok(ReservationState::Expired),
        _ => Err(unfitting(("state", name))),
    }
}

fn reason(outcome: &str) -> Result<Option<Reason>, Fault> {
    match outcome {
        "allowed" | "matched" => Ok(None),
        "limit_reached" | "blocked" => Ok(Some(Reason::LimitReached)),
        "unmatched_event" | "unmatched" => Ok(Some(Reason::UnmatchedEvent)),
        "no_subscription" => Ok(Some(Reason::NoSubscription)),
        _ => Err(unfitting(("outcome", outcome))),
    }
}

/// The rows, one after the other.
fn standings(rows: Rows) -> Result<Vec<Standing>, Fault> {
    let mut reader = Reader(&rows.0);
    let mut standings = Vec::new();
    while !reader.is_at_end() {
        standings.push(standing(&mut reader)?);
    }
    Ok(standings)
}

fn standing(row: &mut Reader<'_>) -> Result<Standing, Fault> {
    let fields = |row: &mut Reader<'_>| {
        let span = (row.integer(6)?, row.integer(7)?);
        let mut amounts = [0; 5];
        for amount in &mut amounts {
            *amount = row.integer(7)?;
        }
        Ok::<_, Misfit>((span, amounts, row.integer(1)? != 0))
    };
    let misfit = |error: Misfit| Fault::Internal(Box::new(error));
    let (span, amounts, window_closed) = fields(row).map_err(misfit)?;
    let terms = Terms::read(row).map_err(misfit)?;
    // A lifetime window starts at the beginning of time.
    let window_ms = (span != (0, crate::catalog::NEVER_MS)).then_some(span);
    let units = |amount: i64| u64::try_from(amount).map_err(|_| unfitting(("an amount", amount)));
    let quota = match terms.quota {
        -1 => Quota::Unlimited,
        quota => Quota::Limited(units(quota)?),
    };
    // EXACT: no counter can have more, and sums of a few of these do not overflow.
    if let Some(amount) = amounts.iter().chain([&terms.quota]).find(|amount| **amount > MAX_UNITS as i64) {
        return Err(unfitting(("an amount", amount)));
    }
    let [used, held, requested, shortfall, unapplied] = amounts;
    Ok(Standing {
        group_id: terms.id.to_owned(),
        label: terms.label.to_owned(),
        unit: unit(u8::try_from(terms.unit).map_err(|_| unfitting(("unit", terms.unit)))?)?,
        quota,
        hard: terms.hard,
        window_ms,
        used: units(used)?,
        held: units(held)?,
        requested: units(requested)?,
        shortfall: units(shortfall)?,
        window_closed,
        unapplied: units(unapplied)?,
    })
}

impl Reply {
    /// What `stale` says, if that is the answer; else the answer.
    ///
    /// # Errors
    /// None of its own; it is the other side of a choice.
    pub fn current(self) -> Result<Self, Stale> {
        match self {
            Self::Stale(now_ms, redis_ms, subscription) => {
                Err(Stale { now_ms, redis_ms, subscription: subscription.into_vec() })
            }
            reply => Ok(reply),
        }
    }

    /// The answer of `reserve` and `can_use`.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn decision(self) -> Result<(Decision, Option<Hold>), Fault> {
        let Self::Decision(outcome, nonce, state_name, deadline_ms, rows, wait_ms, replayed) = self else {
            return Err(unfitting(self));
        };
        let decision = Decision {
            denied: reason(&outcome)?,
            standings: standings(rows)?,
            retry_after_ms: u64::try_from(wait_ms).ok(),
        };
        let hold = if nonce.is_empty() {
            None
        } else {
            Some(Hold { nonce, state: state(&state_name)?, deadline_ms, replayed })
        };
        Ok((decision, hold))
    }

    /// The answer of `commit`.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn committed(self) -> Result<Committed, Fault> {
        match self {
            Self::Committed(_, rows, overage, late, replayed) => {
                Ok(Committed { standings: standings(rows)?, overage, late, replayed })
            }
            other => Err(unfitting(other)),
        }
    }

    /// The answer of `release`.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn released(self) -> Result<Released, Fault> {
        match self {
            Self::Released(name, rows, replayed) => {
                Ok(Released { state: state(&name)?, standings: standings(rows)?, replayed })
            }
            other => Err(unfitting(other)),
        }
    }

    /// The answer of `track` and the refunds.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn tracked(self) -> Result<Tracked, Fault> {
        match self {
            Self::Tracked(outcome, event_id, rows, replayed) => {
                Ok(Tracked { uncounted: reason(&outcome)?, event_id, standings: standings(rows)?, replayed })
            }
            other => Err(unfitting(other)),
        }
    }

    /// The answer of `usage`.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn usage(self) -> Result<Vec<Standing>, Fault> {
        match self {
            Self::Usage(rows) => standings(rows),
            other => Err(unfitting(other)),
        }
    }

    /// The answer of `subscription_get`: the user's time, the subscription, the plan last used with the ledger.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn subscription(self) -> Result<(i64, Option<Subscription>, String), Fault> {
        match self {
            Self::Subscription(now_ms, packed, plan) => Ok((now_ms, decode_subscription(&packed)?, plan)),
            other => Err(unfitting(other)),
        }
    }

    /// The answer of `subscription_put`: how many clocks it corrected.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn put(self) -> Result<i64, Fault> {
        match self {
            Self::Put(corrected) => Ok(corrected),
            other => Err(unfitting(other)),
        }
    }

    /// The answer of `user_delete`: the nonces of the live holds.
    ///
    /// # Errors
    /// [`Fault::Internal`] for another answer.
    pub fn deleted(self) -> Result<Vec<String>, Fault> {
        match self {
            Self::Deleted(nonces) => Ok(nonces),
            other => Err(unfitting(other)),
        }
    }
}

/// A subscription as it is stored; `lua/lib/subscription.lua` reads it.
#[derive(Serialize, Deserialize)]
struct Stored(String, String, i64, i64, i64, String, Vec<(String, String)>);

const UNLIMITED: &str = "unlimited";

/// Encodes a subscription for the store.
#[must_use]
pub fn encode_subscription(subscription: &Subscription) -> Vec<u8> {
    let Subscription { revision, plan_id, start_ms, end_ms, cycle_anchor_ms, fallen_to, overrides } =
        subscription.clone();
    let overrides = overrides.into_iter().map(|(group, quota)| match quota {
        QuotaOverride::Amount(amount) => (group, amount.to_string()),
        QuotaOverride::Unlimited => (group, UNLIMITED.to_owned()),
    });
    encode(&Stored(
        revision,
        plan_id,
        start_ms,
        end_ms.unwrap_or_default(),
        cycle_anchor_ms,
        fallen_to.unwrap_or_default(),
        overrides.collect(),
    ))
}

/// Decodes what [`encode_subscription`] wrote; nothing is none.
///
/// # Errors
/// [`Fault::Internal`] for what it did not write.
pub fn decode_subscription(packed: &[u8]) -> Result<Option<Subscription>, Fault> {
    if packed.is_empty() {
        return Ok(None);
    }
    let Stored(revision, plan_id, start_ms, end_ms, cycle_anchor_ms, fallen_to, overrides) =
        rmp_serde::from_slice(packed).map_err(|error| Fault::Internal(Box::new(error)))?;
    let overrides = overrides.into_iter().map(|(group, quota)| {
        let quota = match quota.as_str() {
            UNLIMITED => QuotaOverride::Unlimited,
            amount => QuotaOverride::Amount(Quantity::from_decimal(amount).map_err(|_| unfitting(&quota))?),
        };
        Ok((group, quota))
    });
    Ok(Some(Subscription {
        revision,
        plan_id,
        start_ms,
        end_ms: (end_ms != 0).then_some(end_ms),
        cycle_anchor_ms,
        fallen_to: (!fallen_to.is_empty()).then_some(fallen_to),
        overrides: overrides.collect::<Result<_, Fault>>()?,
    }))
}
