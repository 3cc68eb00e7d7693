//! `reserve` and `can_use`: what an event may cost, held or only asked.

use std::time::Duration;

use super::answer::{Answer, NoAnswer, unfitting};
use super::basis::Basis;
use super::crossed::Counted;
use super::event::priced;
use super::message::Message;
use super::once::Once;
use super::{Ledger, formats, time};
use crate::domain::answer::{Decision, Hold};
use crate::domain::event::Event;
use crate::domain::id::{Owner, ReservationId};
use crate::domain::reservation::OnExpiry;

/// The arguments of Reserve.
#[derive(Debug)]
pub struct ReserveCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The event that may happen.
    pub event: &'a Event,
    /// The time for which to hold.
    pub ttl_ms: i64,
    /// What happens then to what is still held.
    pub on_expiry: OnExpiry,
    /// The time for which to remember the reservation after that.
    pub settlement_ms: i64,
    /// The time for which its settlement may need the plan.
    pub plan_kept: Duration,
}

/// The answer to Reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReserveAnswer {
    /// The decision: whether the caller may go ahead, and the standings of the groups.
    pub decision: Decision,
    /// The reservation, if it was allowed.
    pub hold: Option<Hold>,
}

/// The arguments of CanUse.
#[derive(Debug)]
pub struct CanUseCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The event that may happen.
    pub event: &'a Event,
}

impl Ledger {
    /// Holds what an event may cost.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn reserve(&self, owner: &Owner, call: &ReserveCall<'_>) -> Result<ReserveAnswer, NoAnswer> {
        let ReserveCall { basis, once, event, ttl_ms, on_expiry, settlement_ms, plan_kept } = call;
        let plan = basis.plan.known();
        if let Some(plan) = plan {
            self.ensure_archived(plan, *plan_kept).await?;
        }
        let message = basis.message(
            |room| Message::about_hold(owner, &once.field, room),
            |bytes| {
                once.write(bytes);
                priced(plan.map(|plan| &**plan), event.name.as_str(), event).write(bytes);
                let on_expiry = (*on_expiry == OnExpiry::Count).into();
                formats::ReserveCall { ttl_ms: time(*ttl_ms), settlement_ms: time(*settlement_ms), on_expiry }
                    .write(bytes);
            },
        );
        let answer = self.decide(&self.scripts.reserve, owner, message, &basis.plan, Counted::Nothing).await?;
        let hold = match answer.state {
            None if answer.reason.is_none() => return Err(unfitting(answer).into()),
            None => None,
            Some(state) => Some(Hold {
                // ONCE: a replay names the reservation of the first call.
                id: ReservationId { field: once.field, suffix: answer.suffix, plan: answer.plan, owner: owner.clone() },
                state,
                deadline_ms: answer.deadline_ms,
                replayed: answer.replayed,
            }),
        };
        Ok(ReserveAnswer { decision: decision(answer), hold })
    }

    /// Decides like [`Self::reserve`], but holds nothing.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn can_use(&self, owner: &Owner, call: &CanUseCall<'_>) -> Result<Decision, NoAnswer> {
        let CanUseCall { basis, event } = call;
        let message = basis.message(
            |room| Message::about(owner, room),
            |bytes| {
                priced(basis.plan.known().map(|plan| &**plan), event.name.as_str(), event).write(bytes);
                formats::CanUseCall { smallest: event.names_no_quantity().into() }.write(bytes);
            },
        );
        self.decide(&self.scripts.can_use, owner, message, &basis.plan, Counted::Nothing).await.map(decision)
    }
}

fn decision(answer: Answer) -> Decision {
    Decision { denied: answer.reason, standings: answer.standings, retry_after_ms: answer.retry_after_ms }
}
