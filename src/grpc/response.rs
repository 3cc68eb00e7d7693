//! Writing answers out: domain to protobuf, thin and total.

use prost::Message as _;
use prost_types::Timestamp;
use tonic::Status;

use crate::domain::amount::{Unit, Units};
use crate::domain::answer::{
    Committed, Crossed, Decision, Extended, Hold, Reason, Released, ReservationState, Reset, Standing, Tracked,
};
use crate::domain::event::Event;
use crate::domain::id::Owner;
use crate::domain::plan::{LimitGroup, OnPlanChange, Plan, Quota, Threshold, Thresholds};
use crate::domain::reservation::{Charge, OnExpiry, Reservation};
use crate::domain::subscription::{QuotaOverride, Subscription};
use crate::meter::{Reserved, Usage};
use crate::reservations::Page;

use super::v1;

pub(super) fn reserve(reserved: Reserved) -> v1::ReserveResponse {
    let Reserved { decision, hold, degraded } = reserved;
    let Decision { denied, standings, retry_after_ms } = decision;
    let (reservation_id, state, expire_time, replayed) = match hold {
        Some(Hold { id, state, deadline_ms, replayed }) => {
            (id.to_string(), self::state(state), Some(timestamp(deadline_ms)), replayed)
        }
        None => (String::new(), v1::ReservationState::Unspecified, None, false),
    };
    v1::ReserveResponse {
        allowed: denied.is_none(),
        matched: matched(denied),
        reservation_id,
        state: state.into(),
        expire_time,
        reasons: reasons(denied),
        limits: limits(standings),
        retry_after: retry_after_ms.map(duration),
        degraded,
        replayed,
    }
}

pub(super) fn can_use(decision: Decision) -> v1::CanUseResponse {
    let Decision { denied, standings, retry_after_ms } = decision;
    // Nothing is held for this call, so that what Reserve would hold counts here.
    let exceeding: Vec<bool> =
        standings.iter().map(|standing| denied.is_none() && standing.would_exceed(standing.requested)).collect();
    let mut limits = limits(standings);
    for (limit, exceeds) in limits.iter_mut().zip(exceeding) {
        limit.exceeded |= exceeds;
    }
    v1::CanUseResponse {
        allowed: denied.is_none(),
        matched: matched(denied),
        reasons: reasons(denied),
        limits,
        retry_after: retry_after_ms.map(duration),
    }
}

pub(super) fn commit(committed: Committed) -> v1::CommitResponse {
    let Committed { state, standings, overage, late, replayed, exhausted, deadline_ms, crossed } = committed;
    v1::CommitResponse {
        state: self::state(state).into(),
        limits: limits(standings),
        overage,
        late,
        replayed,
        exhausted,
        expire_time: deadline_ms.map(timestamp),
        crossed: crossed.into_iter().map(self::crossed).collect(),
    }
}

pub(super) fn extend(extended: Extended) -> v1::ExtendResponse {
    let Extended { denied, deadline_ms, standings, retry_after_ms, replayed } = extended;
    v1::ExtendResponse {
        extended: denied.is_none(),
        expire_time: Some(timestamp(deadline_ms)),
        reasons: reasons(denied),
        limits: limits(standings),
        retry_after: retry_after_ms.map(duration),
        replayed,
    }
}

pub(super) fn release(released: Released) -> v1::ReleaseResponse {
    let Released { state, standings, replayed } = released;
    v1::ReleaseResponse { state: self::state(state).into(), limits: limits(standings), replayed }
}

pub(super) fn reset_usage(reset: Reset) -> v1::ResetUsageResponse {
    let Reset { standings, replayed } = reset;
    v1::ResetUsageResponse { limits: limits(standings), replayed }
}

pub(super) fn track(tracked: Tracked) -> v1::TrackResponse {
    let Tracked { uncounted, event_id, standings, replayed, crossed } = tracked;
    let match_status = match uncounted {
        None => v1::MatchStatus::Matched,
        Some(Reason::LimitReached) => v1::MatchStatus::Blocked,
        Some(Reason::UnmatchedEvent) => v1::MatchStatus::Unmatched,
        Some(Reason::NoSubscription) => v1::MatchStatus::NoSubscription,
    };
    v1::TrackResponse {
        event_id,
        match_status: match_status.into(),
        limits: limits(standings),
        reasons: reasons(uncounted),
        replayed,
        crossed: crossed.into_iter().map(self::crossed).collect(),
    }
}

fn crossed(crossed: Crossed) -> v1::CrossedThreshold {
    let Crossed { group_id, label, unit, threshold: Threshold { units, share }, used, quota, window_ms } = crossed;
    v1::CrossedThreshold {
        limit_group_id: group_id,
        label,
        unit: unit.as_str().to_owned(),
        share: share.map(to_f64),
        amount: unit.to_f64(units),
        used: unit.to_f64(used),
        quota: amount(unit, limited(quota)),
        unlimited: quota == Quota::Unlimited,
        window_start: window_ms.map(|(start_ms, _)| timestamp(start_ms)),
        reset_time: window_ms.map(|(_, end_ms)| timestamp(end_ms)),
    }
}

/// A reservation, of the user that its id names.
pub(super) fn reservation(reservation: Reservation) -> v1::Reservation {
    let Reservation { id, event, state, deadline_ms, charges, late, on_expiry } = reservation;
    v1::Reservation {
        reservation_id: id.to_string(),
        user_id: id.owner.user().into_owned(),
        event: Some(self::event(event)),
        state: self::state(state).into(),
        expire_time: Some(timestamp(deadline_ms)),
        charges: charges.into_iter().map(charge).collect(),
        late,
        on_expiry: match on_expiry {
            OnExpiry::Release => v1::OnExpiry::Release.into(),
            OnExpiry::Count => v1::OnExpiry::Count.into(),
        },
    }
}

fn event(event: Event) -> v1::Event {
    let Event { name, quantity, quantities, metadata } = event;
    v1::Event {
        name: name.as_str().to_owned(),
        quantity: quantity.map(to_f64),
        quantities: quantities.into_iter().map(|(name, quantity)| (name, to_f64(quantity))).collect(),
        metadata,
    }
}

fn charge(charge: Charge) -> v1::Charge {
    let Charge { group_id, unit, reserved, committed, refunded, window_ms } = charge;
    v1::Charge {
        limit_group_id: group_id,
        unit: unit.as_str().to_owned(),
        reserved_amount: unit.to_f64(reserved),
        committed: unit.to_f64(committed),
        refunded: unit.to_f64(refunded),
        window_start: window_ms.map(|(start_ms, _)| timestamp(start_ms)),
        reset_time: window_ms.map(|(_, end_ms)| timestamp(end_ms)),
    }
}

pub(super) fn reservations(owner: &Owner, page: Page) -> v1::ListReservationsResponse {
    let Page { reservations, next } = page;
    v1::ListReservationsResponse {
        reservations: reservations.into_iter().map(reservation).collect(),
        next_page_token: next.map(|next| next.token(owner)).unwrap_or_default(),
    }
}

/// The outcome of one request of a batch: what Track would answer, or its fault with all details.
pub(super) fn batch_result(outcome: Result<v1::TrackResponse, Status>) -> v1::BatchTrackResult {
    let result = match outcome {
        Ok(response) => v1::batch_track_result::Result::Response(response),
        Err(status) => v1::batch_track_result::Result::Status(
            // The details of a status are this message, encoded.
            tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: Vec::new(),
            }),
        ),
    };
    v1::BatchTrackResult { result: Some(result) }
}

pub(super) fn usage(user_id: String, usage: Usage) -> v1::GetUsageResponse {
    let Usage { subscription, plan_id, standings } = usage;
    v1::GetUsageResponse {
        subscription: subscription.map(|subscription| self::subscription(user_id, &subscription)),
        limits: limits(standings),
        plan_id: plan_id.unwrap_or_default(),
    }
}

pub(super) fn subscription(user_id: String, subscription: &Subscription) -> v1::Subscription {
    let Subscription { revision: _, plan_id, start_ms, end_ms, cycle_anchor_ms, fallen_to: _, overrides } =
        subscription;
    let etag = subscription.etag();
    let quota = |quota: &QuotaOverride| {
        let limit = match quota {
            QuotaOverride::Amount(amount) => v1::quota::Limit::Amount(to_f64(*amount)),
            QuotaOverride::Unlimited => v1::quota::Limit::Unlimited(true),
        };
        v1::Quota { limit: Some(limit) }
    };
    let quotas = overrides.iter().map(|(id, override_)| (id.clone(), quota(override_))).collect();
    v1::Subscription {
        user_id,
        plan_id: plan_id.clone(),
        start_time: Some(timestamp(*start_ms)),
        end_time: end_ms.map(timestamp),
        cycle_anchor: Some(timestamp(*cycle_anchor_ms)),
        overrides: (!overrides.is_empty()).then_some(v1::QuotaOverrides { quotas }),
        etag,
    }
}

pub(super) fn plan(plan: &Plan, is_default: bool) -> v1::Plan {
    let Plan { id, name, on_plan_change, timezone, zone: _, groups } = plan;
    let on_plan_change = match on_plan_change {
        OnPlanChange::Carry => "carry",
        OnPlanChange::Reset => "reset",
        OnPlanChange::Block => "block",
    };
    v1::Plan {
        plan_id: id.clone(),
        name: name.clone(),
        is_default,
        timezone: timezone.clone(),
        on_plan_change: on_plan_change.to_owned(),
        limit_groups: groups.iter().map(limit_group).collect(),
    }
}

fn limit_group(group: &LimitGroup) -> v1::LimitGroup {
    let LimitGroup { id, label, unit, quota, period, anchor, hard, thresholds, rules } = group;
    let Thresholds { shares, amounts } = thresholds;
    let (quota, unlimited) = (amount(*unit, limited(*quota)), *quota == Quota::Unlimited);
    let mut events: Vec<String> = Vec::new();
    for rule in rules {
        let event = rule.event.to_string();
        if !events.contains(&event) {
            events.push(event);
        }
    }
    v1::LimitGroup {
        limit_group_id: id.clone(),
        label: label.clone(),
        unit: unit.as_str().to_owned(),
        quota,
        unlimited,
        period: period.to_string(),
        anchor: anchor.as_str().to_owned(),
        hard: *hard,
        thresholds: shares.iter().map(|share| to_f64(*share)).collect(),
        events,
        threshold_amounts: amounts.iter().map(|units| unit.to_f64(*units)).collect(),
    }
}

/// The double nearest to the exact decimal: both operands of the division are exact.
fn to_f64(quantity: crate::domain::amount::Quantity) -> f64 {
    if quantity.micro_part() == 0 {
        return quantity.whole_part() as f64;
    }
    (u128::from(quantity.whole_part()) * 1_000_000 + u128::from(quantity.micro_part())) as f64 / 1e6
}

fn limits(standings: Vec<Standing>) -> Vec<v1::LimitStatus> {
    standings.into_iter().map(limit).collect()
}

fn limit(standing: Standing) -> v1::LimitStatus {
    let (remaining, exceeded) = (standing.remaining(), standing.exceeded());
    let Standing {
        group_id,
        label,
        unit,
        quota,
        hard,
        window_ms,
        used,
        held,
        requested,
        shortfall,
        window_closed,
        unapplied,
    } = standing;
    v1::LimitStatus {
        limit_group_id: group_id,
        label,
        unit: unit.as_str().to_owned(),
        quota: amount(unit, limited(quota)),
        unlimited: quota == Quota::Unlimited,
        used: unit.to_f64(used),
        held: unit.to_f64(held),
        remaining: amount(unit, remaining),
        requested: unit.to_f64(requested),
        shortfall: unit.to_f64(shortfall),
        exceeded,
        hard,
        window_start: window_ms.map(|(start_ms, _)| timestamp(start_ms)),
        reset_time: window_ms.map(|(_, end_ms)| timestamp(end_ms)),
        window_closed,
        unapplied: unit.to_f64(unapplied),
    }
}

/// A quota in smallest units; none is unlimited.
fn limited(quota: Quota) -> Option<Units> {
    match quota {
        Quota::Limited(units) => Some(units),
        Quota::Unlimited => None,
    }
}

/// Converts an amount for the API. Without a limit it is infinite, so that a client can compare it with the amount it
/// needs.
fn amount(unit: Unit, units: Option<Units>) -> f64 {
    units.map_or(f64::INFINITY, |units| unit.to_f64(units))
}

fn matched(denied: Option<Reason>) -> bool {
    matches!(denied, None | Some(Reason::LimitReached))
}

fn reasons(denied: Option<Reason>) -> Vec<i32> {
    let reason = |reason| match reason {
        Reason::LimitReached => v1::Reason::LimitReached,
        Reason::UnmatchedEvent => v1::Reason::UnmatchedEvent,
        Reason::NoSubscription => v1::Reason::NoSubscription,
    };
    denied.map(|denied| reason(denied).into()).into_iter().collect()
}

fn state(state: ReservationState) -> v1::ReservationState {
    match state {
        ReservationState::Held => v1::ReservationState::Held,
        ReservationState::Committed => v1::ReservationState::Committed,
        ReservationState::Released => v1::ReservationState::Released,
        ReservationState::Expired => v1::ReservationState::Expired,
    }
}

fn timestamp(ms: i64) -> Timestamp {
    let nanos = i32::try_from(ms.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    Timestamp { seconds: ms.div_euclid(1000), nanos }
}

fn duration(ms: u64) -> prost_types::Duration {
    let nanos = i32::try_from(ms % 1000 * 1_000_000).unwrap_or_default();
    prost_types::Duration { seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX), nanos }
}
