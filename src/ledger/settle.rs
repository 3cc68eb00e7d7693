//! `commit`, `commit_changed`, `extend` and `release`: how a reservation goes on, and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::answer::{About, Answer, NoAnswer, unfitting};
use super::basis::{Basis, InForce};
use super::crossed::Counted;
use super::event::{used, used_metadata};
use super::frames::Frames;
use super::message::Message;
use super::once::Once;
use super::{Ledger, NoCalendar, Script, formats, time};
use crate::domain::answer::{Committed, Extended, Released};
use crate::domain::event::Actual;
use crate::domain::fault::Fault;
use crate::domain::id::ReservationId;
use crate::domain::subscription::Subscription;

/// The arguments of Commit.
#[derive(Debug)]
pub struct CommitCall<'a> {
    /// The reservation.
    pub reservation: &'a ReservationId,
    /// The actual usage; as reserved, if there is none.
    pub actual: Option<&'a Actual>,
    /// Given for the usage so far of a reservation that goes on.
    pub partial: Option<Partial>,
    /// The time for which to remember the settlement.
    pub replay_ms: i64,
}

/// The arguments of a Commit of another event than was reserved.
#[derive(Debug)]
pub struct CommitChangedCall<'a> {
    /// The reservation.
    pub reservation: &'a ReservationId,
    /// The actual usage, with metadata.
    pub actual: &'a Actual,
    /// The owner's subscription, as last seen. A group that matches only now is charged in the window of its anchor.
    pub subscription: Option<&'a Subscription>,
    /// The time that the call is compiled for.
    pub at_ms: i64,
    /// The time for which to remember the settlement.
    pub replay_ms: i64,
}

/// How a reservation goes on after a partial commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// The time for which to hold from now on; none if the deadline does not move.
    pub ttl_ms: Option<i64>,
}

/// The arguments of Extend.
#[derive(Debug)]
pub struct ExtendCall<'a> {
    /// The reservation.
    pub reservation: &'a ReservationId,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The time for which to hold from now on.
    pub ttl_ms: i64,
    /// The quantities to hold in addition.
    pub add: Option<&'a Actual>,
}

/// A reservation is to be given back.
#[derive(Debug)]
pub struct ReleaseCall<'a> {
    /// The reservation.
    pub reservation: &'a ReservationId,
    /// The time for which to remember the settlement.
    pub replay_ms: i64,
}

/// The beginning of the calls about a reservation.
pub(super) fn settle_call(reservation: &ReservationId, replay_ms: i64) -> formats::SettleCall {
    let ReservationId { field, suffix, plan, owner: _ } = reservation;
    formats::SettleCall { field: *field, suffix: *suffix, plan: *plan, replay_ms: time(replay_ms) }
}

fn committed(answer: Answer) -> Result<Committed, Fault> {
    let Answer { state, standings, overage, late, replayed, exhausted, crossed, .. } = answer;
    let state = state.ok_or_else(|| unfitting("no state of a reservation"))?;
    Ok(Committed { state, standings, overage, late, replayed, exhausted, deadline_ms: None, crossed })
}

impl Ledger {
    /// Counts the actual usage.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn commit(&self, call: &CommitCall<'_>) -> Result<Committed, Fault> {
        let CommitCall { reservation, actual, partial, replay_ms } = call;
        let plan = self.plan_by(&reservation.plan).await;
        let plan_message = plan.as_ref().map_or(&[][..], |plan| &plan.message);
        let mut message = Message::about_hold(&reservation.owner, &reservation.field, plan_message.len() + 256);
        message.argument(|bytes| {
            settle_call(reservation, *replay_ms).write(bytes);
            let quantities = actual.map_or_else(Vec::new, |actual| used(plan.as_deref(), actual));
            let ttl_ms = partial.and_then(|partial| partial.ttl_ms).map_or(0, time);
            let partial = partial.is_some().into();
            formats::CommitCall { actual: actual.is_some().into(), quantities, partial, ttl_ms }.write(bytes);
        });
        message.argument(|bytes| bytes.extend_from_slice(plan_message));
        // What a partial commit counts is less than it requests.
        let counted = if partial.is_some() { Counted::Nothing } else { Counted::Requested };
        let about = About { plan: plan.as_ref(), counted, ..About::default() };
        let answer = self.settle(&self.scripts.commit, reservation, message, about).await?;
        let deadline_ms = partial.map(|_| answer.deadline_ms);
        Ok(Committed { deadline_ms, ..committed(answer)? })
    }

    /// Counts the actual usage of an event that turned out to be another one than was reserved.
    ///
    /// # Errors
    /// [`NoAnswer::Stale`] if it was compiled for another subscription or time; otherwise see the RPC.
    pub async fn commit_changed(&self, call: &CommitChangedCall<'_>) -> Result<Committed, NoAnswer> {
        let CommitChangedCall { reservation, actual, subscription, at_ms, replay_ms } = call;
        let plan = self.plan_by(&reservation.plan).await;
        // Without the rules of its time zone, nobody knows the plan's windows.
        let Some((plan, groups)) = plan.as_ref().and_then(|plan| Some((plan, plan.scheduled()?))) else {
            // A reservation that is unknown is that first.
            self.reservation(reservation).await?;
            return Err(Fault::PlanNotArchived.into());
        };
        let subscription = *subscription;
        let ended = subscription.is_some_and(|subscription| subscription.has_ended(*at_ms));
        let anchor_ms = subscription.map(|subscription| subscription.cycle_anchor_ms);
        let none = BTreeMap::new();
        let overrides = subscription.filter(|_| !ended).map_or(&none, |subscription| &subscription.overrides);
        let frames = Frames::of_groups(&groups, anchor_ms, overrides, *at_ms)
            .map_err(|error: NoCalendar| Fault::Internal(Box::new(error)))?;
        let revision = subscription.map(|subscription| subscription.revision);
        let basis = Basis { revision, ended, plan: InForce::Plan { plan: Arc::clone(plan), frames } };
        let ReservationId { field, suffix, owner, .. } = reservation;
        let message = basis.message(
            |room| Message::about_hold(owner, field, room),
            |bytes| {
                let changed = formats::CommitChangedCall {
                    field: *field,
                    suffix: *suffix,
                    replay_ms: time(*replay_ms),
                    metadata: used_metadata(Some(plan), actual),
                    names_quantity: (!actual.names_no_quantity()).into(),
                    quantities: used(Some(plan), actual),
                };
                changed.write(bytes);
            },
        );
        let packed = self.run(&self.scripts.commit_changed, owner, message).await?;
        let answer = self.answer(&packed, About { plan: Some(plan), ..About::default() }).await?;
        Ok(committed(answer)?)
    }

    /// Moves the deadline, and holds more.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn extend(&self, call: &ExtendCall<'_>) -> Result<Extended, Fault> {
        let ExtendCall { reservation, once, ttl_ms, add } = call;
        let plan = self.plan_by(&reservation.plan).await;
        let plan_message = plan.as_ref().map_or(&[][..], |plan| &plan.message);
        let mut message = Message::about_hold(&reservation.owner, &reservation.field, plan_message.len() + 256);
        message.argument(|bytes| {
            settle_call(reservation, 0).write(bytes);
            once.write(bytes);
            let quantities = add.map_or_else(Vec::new, |add| used(plan.as_deref(), add));
            formats::ExtendCall { ttl_ms: time(*ttl_ms), adds: add.is_some().into(), quantities }.write(bytes);
        });
        message.argument(|bytes| bytes.extend_from_slice(plan_message));
        let about = About { plan: plan.as_ref(), ..About::default() };
        let answer = self.settle(&self.scripts.extend, reservation, message, about).await?;
        let Answer { reason: denied, deadline_ms, standings, retry_after_ms, replayed, .. } = answer;
        Ok(Extended { denied, deadline_ms, standings, retry_after_ms, replayed })
    }

    /// Gives a reservation back.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn release(&self, call: &ReleaseCall<'_>) -> Result<Released, Fault> {
        let ReleaseCall { reservation, replay_ms } = call;
        let plan = self.plan_by(&reservation.plan).await;
        let mut message = Message::about_hold(&reservation.owner, &reservation.field, 256);
        message.argument(|bytes| settle_call(reservation, *replay_ms).write(bytes));
        let about = About { plan: plan.as_ref(), ..About::default() };
        let answer = self.settle(&self.scripts.release, reservation, message, about).await?;
        let state = answer.state.ok_or_else(|| unfitting("no state of a reservation"))?;
        Ok(Released { state, standings: answer.standings, replayed: answer.replayed })
    }

    /// Runs a script that no subscription decides.
    pub(super) async fn settle(
        &self,
        script: &'static Script,
        reservation: &ReservationId,
        message: Message,
        about: About<'_>,
    ) -> Result<Answer, Fault> {
        let packed = self.run(script, &reservation.owner, message).await?;
        match self.answer(&packed, about).await {
            Ok(answer) => Ok(answer),
            Err(NoAnswer::Fault(fault)) => Err(fault),
            Err(stale @ NoAnswer::Stale(_)) => Err(unfitting(stale)),
        }
    }
}
