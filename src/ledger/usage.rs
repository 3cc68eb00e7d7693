//! `usage`: a user's standing in every group.

use super::answer::NoAnswer;
use super::basis::Basis;
use super::crossed::Counted;
use super::message::Message;
use super::{Ledger, formats};
use crate::domain::answer::Standing;
use crate::domain::id::Owner;

/// The arguments of GetUsage.
#[derive(Debug)]
pub struct UsageCall<'a> {
    /// The basis it is compiled for.
    pub basis: &'a Basis,
    /// The time to report; none for now.
    pub at_ms: Option<i64>,
}

impl Ledger {
    /// A user's standing in every group of the plan.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn usage(&self, owner: &Owner, call: &UsageCall<'_>) -> Result<Vec<Standing>, NoAnswer> {
        let UsageCall { basis, at_ms } = call;
        let message = basis.message(
            |room| Message::about(owner, room),
            |bytes| formats::UsageCall { at: at_ms.unwrap_or(-1) }.write(bytes),
        );
        self.decide(&self.scripts.usage, owner, message, &basis.plan, Counted::Nothing)
            .await
            .map(|answer| answer.standings)
    }
}
