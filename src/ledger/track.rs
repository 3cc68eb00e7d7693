//! `track`, `track_at`, `refund` and `refund_reservation`: count events that have happened, and take them back.

use super::answer::{About, Answer, NoAnswer};
use super::basis::Basis;
use super::crossed::Counted;
use super::event::{priced, refunded};
use super::frames::Frames;
use super::message::Message;
use super::once::Once;
use super::settle::settle_call;
use super::{Ledger, formats, time};
use crate::domain::answer::Tracked;
use crate::domain::event::{Event, EventName};
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, ReservationId, event_id};

/// The arguments of Track.
#[derive(Debug)]
pub struct TrackCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The event that has happened.
    pub event: &'a Event,
    /// Count it only if it fits.
    pub enforce: bool,
    /// The time for which to remember it.
    pub replay_ms: i64,
}

/// The arguments of a Track with a time.
#[derive(Debug)]
pub struct TrackAtCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The event that has happened.
    pub event: &'a Event,
    /// The time at which it happened.
    pub at_ms: i64,
    /// The windows of that time, if some groups open them with their first event.
    pub frames_then: Option<&'a Frames>,
    /// The time for which to remember it.
    pub replay_ms: i64,
}

/// The arguments of a refund, which gives back the cost of an event.
#[derive(Debug)]
pub struct RefundCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The refund.
    pub event: &'a Event,
    /// The event that it refunds.
    pub refunded: &'a EventName,
    /// The time for which to remember it.
    pub replay_ms: i64,
}

/// The arguments of a refund that gives back a part of what a reservation has committed.
#[derive(Debug)]
pub struct RefundReservationCall<'a> {
    /// The reservation.
    pub reservation: &'a ReservationId,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The refund.
    pub event: &'a Event,
    /// The event that it refunds.
    pub refunded: &'a EventName,
    /// The time for which to remember it.
    pub replay_ms: i64,
}

impl Ledger {
    /// Counts an event that has happened.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn track(&self, owner: &Owner, call: &TrackCall<'_>) -> Result<Tracked, NoAnswer> {
        let TrackCall { basis, once, event, enforce, replay_ms } = call;
        let message = basis.message(
            |room| Message::about(owner, room),
            |bytes| {
                once.write(bytes);
                priced(basis.plan.known().map(|plan| &**plan), event.name.as_str(), event).write(bytes);
                formats::TrackCall { enforce: (*enforce).into(), replay_ms: time(*replay_ms) }.write(bytes);
            },
        );
        let answer = self.decide(&self.scripts.track, owner, message, &basis.plan, Counted::Requested).await?;
        Ok(tracked(once, answer))
    }

    /// Counts an event that has happened at a time, in the windows of that time.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn track_at(&self, owner: &Owner, call: &TrackAtCall<'_>) -> Result<Tracked, NoAnswer> {
        let TrackAtCall { basis, once, event, at_ms, frames_then, replay_ms } = call;
        let message = basis.message(
            |room| Message::about(owner, room),
            |bytes| {
                once.write(bytes);
                priced(basis.plan.known().map(|plan| &**plan), event.name.as_str(), event).write(bytes);
                let frames_then = frames_then.map_or_else(Vec::new, |frames| frames.bytes.to_vec());
                formats::TrackAtCall { replay_ms: time(*replay_ms), at: time(*at_ms), frames_then }.write(bytes);
            },
        );
        let answer = self.decide(&self.scripts.track_at, owner, message, &basis.plan, Counted::Requested).await?;
        Ok(tracked(once, answer))
    }

    /// Gives back what an event would have cost.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn refund(&self, owner: &Owner, call: &RefundCall<'_>) -> Result<Tracked, NoAnswer> {
        let RefundCall { basis, once, event, refunded, replay_ms } = call;
        let message = basis.message(
            |room| Message::about(owner, room),
            |bytes| {
                once.write(bytes);
                priced(basis.plan.known().map(|plan| &**plan), refunded.as_str(), event).write(bytes);
                formats::TrackCall { enforce: 0, replay_ms: time(*replay_ms) }.write(bytes);
            },
        );
        let answer = self.decide(&self.scripts.refund, owner, message, &basis.plan, Counted::Nothing).await?;
        Ok(tracked(once, answer))
    }

    /// Gives back some of what a reservation has committed.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn refund_reservation(&self, call: &RefundReservationCall<'_>) -> Result<Tracked, Fault> {
        let RefundReservationCall { reservation, once, event, refunded: name, replay_ms } = call;
        let plan = self.plan_by(&reservation.plan).await;
        let plan_message = plan.as_ref().map_or(&[][..], |plan| &plan.message);
        let mut message = Message::about(&reservation.owner, plan_message.len() + 256);
        message.argument(|bytes| {
            settle_call(reservation, *replay_ms).write(bytes);
            once.write(bytes);
            refunded(plan.as_deref(), name.as_str(), event).write(bytes);
        });
        message.argument(|bytes| bytes.extend_from_slice(plan_message));
        let about = About { plan: plan.as_ref(), ..About::default() };
        let answer = self.settle(&self.scripts.refund_reservation, reservation, message, about).await?;
        Ok(tracked(once, answer))
    }
}

/// Converts the answer. An event that is counted nowhere has no id.
fn tracked(once: &Once, answer: Answer) -> Tracked {
    let Answer { reason, suffix, standings, replayed, crossed, .. } = answer;
    let event_id = if reason.is_none() { event_id(&once.field, &suffix) } else { String::new() };
    Tracked { uncounted: reason, event_id, standings, replayed, crossed }
}
