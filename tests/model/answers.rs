//! Answers as the API gives them, with reservations and events named by the operation that made them (`r7`, `e9`).

use std::collections::BTreeMap;

use prost_types::{Duration, Timestamp};
use tollgate::grpc::v1;
use tonic::Code;

use crate::price::{Unmeasured, value_of};
use crate::sketch::{Event, Group, Unit};
use crate::user::{Claim, Reservation, User};
use crate::windows::NEVER;

/// The answer of any RPC.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Reserve(v1::ReserveResponse),
    Commit(v1::CommitResponse),
    Release(v1::ReleaseResponse),
    Extend(v1::ExtendResponse),
    Track(v1::TrackResponse),
    CanUse(v1::CanUseResponse),
    Usage(v1::GetUsageResponse),
    Reset(v1::ResetUsageResponse),
    Subscription(Option<v1::Subscription>),
    Reservation(v1::Reservation),
    /// Of all pages, in the order of their names.
    Holds(Vec<v1::Reservation>),
    Deleted,
    Stepped,
    Fault(Code, String, BTreeMap<String, String>),
}

pub fn fault(code: Code, reason: &str) -> Answer {
    Answer::Fault(code, reason.to_owned(), BTreeMap::new())
}

/// With what a program may want to know of it.
pub fn fault_with(code: Code, reason: &str, facts: Vec<(&str, String)>) -> Answer {
    let facts = facts.into_iter().map(|(key, value)| (key.to_owned(), value));
    Answer::Fault(code, reason.to_owned(), facts.collect())
}

pub fn invalid(reason: &str) -> Answer {
    fault(Code::InvalidArgument, reason)
}

/// SPEC does not say which facts a fault has.
const ANY: &str = "*";

/// Of a group that matches.
pub fn unmeasured(group: &str, why: Unmeasured) -> Answer {
    match why {
        Unmeasured::Missing(quantity) => {
            let facts = vec![("limit_group_id", group.to_owned()), ("quantity", quantity)];
            fault_with(Code::InvalidArgument, "QUANTITY_MISSING", facts)
        }
        Unmeasured::NotANumber(_) => invalid("INVALID_FIELD"),
        Unmeasured::Exceeded(whole, parts) => {
            let facts = vec![("limit_group_id", group.to_owned()), ("quantity", whole), ("parts", parts.join(", "))];
            fault_with(Code::InvalidArgument, "PARTS_EXCEED_WHOLE", facts)
        }
    }
}

/// Of a commit or an Extend, in this field.
pub fn nothing_measured(field: &str) -> Answer {
    fault_with(Code::InvalidArgument, "NOTHING_MEASURED", vec![(ANY, field.to_owned())])
}

/// An etag that nobody has named: where calls run at the same time, nobody knows which of them has made it.
pub const SOME_ETAG: &str = "*";

impl Answer {
    /// The subscription that it tells.
    pub fn subscription_mut(&mut self) -> Option<&mut v1::Subscription> {
        match self {
            Self::Usage(usage) => usage.subscription.as_mut(),
            Self::Subscription(subscription) => subscription.as_mut(),
            _ => None,
        }
    }

    /// Whether this is what the model expects, as far as SPEC says it.
    pub fn is(&self, expected: &Self) -> bool {
        match (self, expected) {
            (Self::Fault(code, reason, _), Self::Fault(expected, expected_reason, facts))
                if facts.contains_key(ANY) =>
            {
                (code, reason) == (expected, expected_reason)
            }
            (Self::Usage(_) | Self::Subscription(_), _) => {
                let mut expected = expected.clone();
                let found = self.clone().subscription_mut().map(|found| found.etag.clone());
                if let Some(expected) = expected.subscription_mut()
                    && found.as_deref() == Some(SOME_ETAG)
                {
                    SOME_ETAG.clone_into(&mut expected.etag);
                }
                *self == expected
            }
            _ => self == expected,
        }
    }
}

pub fn already_committed(reservation: &Reservation) -> Answer {
    let committed = |claim: &Claim| {
        let shown = claim.unit.shown(claim.committed.expect("it is committed"));
        (format!("committed.{}", claim.group), shown.to_string())
    };
    let facts = reservation.claims.iter().map(committed).collect();
    Answer::Fault(Code::FailedPrecondition, "ALREADY_COMMITTED".to_owned(), facts)
}

pub fn denied(matched: bool, reason: v1::Reason) -> v1::ReserveResponse {
    v1::ReserveResponse { matched, reasons: vec![reason.into()], ..Default::default() }
}

pub fn uncounted(match_status: v1::MatchStatus, reason: v1::Reason) -> Answer {
    let reasons = vec![reason.into()];
    Answer::Track(v1::TrackResponse { match_status: match_status.into(), reasons, ..Default::default() })
}

/// Where a group stands; `counted` is used and held, none if the window is closed.
struct Standing<'a> {
    id: &'a str,
    label: &'a str,
    unit: Unit,
    quota: Option<u128>,
    hard: bool,
    bounds: (i64, i64),
    counted: Option<(u128, u128)>,
}

fn shown(standing: Standing<'_>) -> v1::LimitStatus {
    let Standing { id, label, unit, quota, hard, bounds, counted } = standing;
    let (used, held) = counted.unwrap_or_default();
    let bounds = Some(bounds).filter(|bounds| *bounds != (0, NEVER));
    v1::LimitStatus {
        limit_group_id: id.to_owned(),
        label: label.to_owned(),
        unit: unit.word().to_owned(),
        quota: quota.map_or(f64::INFINITY, |quota| unit.shown(quota)),
        unlimited: quota.is_none(),
        used: unit.shown(used),
        held: unit.shown(held),
        remaining: quota.map_or(f64::INFINITY, |quota| unit.shown(quota.saturating_sub(used + held))),
        exceeded: quota.is_some_and(|quota| used + held > quota),
        hard,
        window_start: bounds.map(|(start, _)| timestamp(start)),
        reset_time: bounds.map(|(_, end)| timestamp(end)),
        window_closed: counted.is_none(),
        ..Default::default()
    }
}

/// The row of a group of the plan.
pub fn row(group: &Group, bounds: (i64, i64), counted: (u128, u128)) -> v1::LimitStatus {
    let Group { id, label, unit, quota, hard, .. } = group;
    shown(Standing { id, label, unit: *unit, quota: *quota, hard: *hard, bounds, counted: Some(counted) })
}

/// The row of what was charged, as it was then; its window as it is now.
pub fn claim_row(user: &User, claim: &Claim, requested: u128, unapplied: u128) -> v1::LimitStatus {
    let Claim { group, label, unit, quota, hard, bounds, window, .. } = claim;
    let kept = window.filter(|_| user.is_kept(*window));
    let counted = kept.map(|window| (user.windows[window].used, user.held(window)));
    let (quota, hard, bounds) = (*quota, *hard, *bounds);
    v1::LimitStatus {
        requested: unit.shown(requested),
        unapplied: unit.shown(unapplied),
        ..shown(Standing { id: group, label, unit: *unit, quota, hard, bounds, counted })
    }
}

/// What is kept of the reserved event, with what Extend has added.
fn with_added(reservation: &Reservation) -> Event {
    let mut event = reservation.kept.clone();
    for name in &reservation.measured {
        let more: Vec<_> = reservation.added.iter().filter(|add| add.names(name)).map(|add| add.of(name)).collect();
        if more.is_empty() {
            continue;
        }
        let there = value_of(name, &reservation.kept).unwrap_or_default() + more.iter().sum::<u128>();
        if name == "quantity" {
            event.quantity = Some(there);
        } else {
            event.quantities.insert(name.clone(), there);
        }
    }
    event
}

/// A reservation as it is looked up.
pub fn reservation(user: &User, of: u32) -> v1::Reservation {
    let reservation = &user.reservations[&of];
    if reservation.again {
        user.windows.silent.set(true);
    }
    let charge = |claim: &Claim| {
        let bounds = Some(claim.bounds).filter(|bounds| *bounds != (0, NEVER));
        v1::Charge {
            limit_group_id: claim.group.clone(),
            unit: claim.unit.word().to_owned(),
            reserved_amount: claim.unit.shown(claim.charge),
            committed: claim.unit.shown(claim.total()),
            refunded: claim.unit.shown(claim.refunded()),
            window_start: bounds.map(|(start, _)| timestamp(start)),
            reset_time: bounds.map(|(_, end)| timestamp(end)),
        }
    };
    v1::Reservation {
        reservation_id: format!("r{of}"),
        user_id: user.name.clone(),
        event: Some(with_added(reservation).message()),
        state: reservation.state_at(user.now).shown().into(),
        expire_time: Some(timestamp(reservation.deadline)),
        charges: reservation.claims.iter().map(charge).collect(),
        late: reservation.late,
        on_expiry: if reservation.counts { v1::OnExpiry::Count } else { v1::OnExpiry::Release }.into(),
    }
}

pub fn timestamp(ms: i64) -> Timestamp {
    Timestamp { seconds: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as i32 }
}

pub fn duration(ms: i64) -> Duration {
    Duration { seconds: ms / 1000, nanos: (ms % 1000 * 1_000_000) as i32 }
}
