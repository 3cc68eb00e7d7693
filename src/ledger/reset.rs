//! `reset`: takes back what was counted in the current windows of some groups.

use super::answer::{Answer, NoAnswer};
use super::basis::Basis;
use super::crossed::Counted;
use super::message::Message;
use super::once::Once;
use super::{Ledger, formats, time};
use crate::domain::answer::{Reason, Reset};
use crate::domain::fault::Fault;
use crate::domain::id::Owner;

/// The arguments of ResetUsage.
#[derive(Debug)]
pub struct ResetCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The identity by which a retry is recognised.
    pub once: &'a Once,
    /// The ids of the groups; all groups of the plan if there is none.
    pub groups: &'a [String],
    /// The time for which to remember it.
    pub replay_ms: i64,
}

impl Ledger {
    /// Takes back what was counted.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn reset(&self, owner: &Owner, call: &ResetCall<'_>) -> Result<Reset, NoAnswer> {
        let ResetCall { basis, once, groups, replay_ms } = call;
        let message = basis.message(
            |room| Message::about(owner, room),
            |bytes| {
                once.write(bytes);
                let groups = rmp_serde::to_vec(groups).expect("text can be encoded");
                formats::ResetCall { replay_ms: time(*replay_ms), groups }.write(bytes);
            },
        );
        let answer = self.decide(&self.scripts.reset, owner, message, &basis.plan, Counted::Nothing).await?;
        let Answer { reason, standings, replayed, .. } = answer;
        match reason {
            Some(Reason::NoSubscription) => Err(NoAnswer::Fault(Fault::NoSubscription)),
            _ => Ok(Reset { standings, replayed }),
        }
    }
}
