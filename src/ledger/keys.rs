//! The one place that spells keys: `tollgate1:{app:user}:what`.
//!
//! `1` is the schema version of the values. All keys of a user carry one hash tag, so that a script touches one slot.

use crate::domain::id::Owner;

/// The keys of one user.
#[derive(Debug, Clone)]
pub struct UserKeys {
    prefix: String,
}

impl UserKeys {
    /// The keys of `owner`.
    #[must_use]
    pub fn new(owner: &Owner) -> Self {
        Self { prefix: format!("tollgate1:{{{}}}:", owner.tag()) }
    }

    /// The subscription. It stays until it is deleted.
    #[must_use]
    pub fn subscription(&self) -> String {
        format!("{}subscription", self.prefix)
    }

    /// Counters, windows and the user's clock.
    #[must_use]
    pub fn ledger(&self) -> String {
        format!("{}ledger", self.prefix)
    }

    /// What is remembered of reservations and requests.
    #[must_use]
    pub fn memory(&self) -> String {
        format!("{}memory", self.prefix)
    }

    /// When each of these comes due.
    #[must_use]
    pub fn agenda(&self) -> String {
        format!("{}agenda", self.prefix)
    }

    /// Shows one live hold to people; it expires with it.
    #[must_use]
    pub fn hold(&self, nonce: &str) -> String {
        format!("{}hold:{nonce}", self.prefix)
    }

    /// The keys that most scripts take, in their order.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        vec![self.subscription(), self.ledger(), self.memory(), self.agenda()]
    }
}
