//! The one place that spells keys: `tollgate2:{app:user}:what`.
//!
//! `2` is the schema version of the values. All keys of a user carry one hash tag, so that a script touches one slot. What belongs to no
//! user has a name without braces.

use crate::domain::id::Owner;

const PREFIX: &str = "tollgate2:{";

/// The API keys of all apps, by their ids, and their revision.
pub const API_KEYS: &str = "tollgate2:api-keys";

/// What a key is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyKind {
    /// One of the four in [`UserKeys::all`].
    State(Owner),
    /// Shows the live hold with this nonce.
    Hold(Owner, String),
    /// [`API_KEYS`].
    ApiKeys,
    /// Nothing that Tollgate writes.
    Unknown,
}

/// What `SCAN` has to match to find the keys of all users, and what else was written under their schema version.
#[must_use]
pub fn pattern() -> String {
    format!("{}*", PREFIX.trim_end_matches('{'))
}

/// A key that belongs to nobody and is never written, to ask whether it might be.
#[must_use]
pub fn nobodys() -> String {
    pattern().replace('*', "nobody")
}

/// Reads a key.
#[must_use]
pub fn kind(key: &[u8]) -> KeyKind {
    if key == API_KEYS.as_bytes() {
        return KeyKind::ApiKeys;
    }
    let read = || {
        let (tag, what) = std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)?.split_once("}:")?;
        let owner = Owner::from_tag(tag)?;
        match what.strip_prefix("hold:") {
            Some(nonce) if !nonce.is_empty() => Some(KeyKind::Hold(owner, nonce.to_owned())),
            None if UserKeys::STATE.contains(&what) => Some(KeyKind::State(owner)),
            _ => None,
        }
    };
    read().unwrap_or(KeyKind::Unknown)
}

/// The keys of one user.
#[derive(Debug, Clone)]
pub struct UserKeys {
    prefix: String,
}

impl UserKeys {
    const STATE: [&str; 4] = ["subscription", "ledger", "memory", "agenda"];

    /// The keys of `owner`.
    #[must_use]
    pub fn new(owner: &Owner) -> Self {
        Self { prefix: [PREFIX, owner.tag(), "}:"].concat() }
    }

    /// The subscription. It stays until it is deleted.
    #[must_use]
    pub fn subscription(&self) -> String {
        self.named("subscription")
    }

    /// Counters, windows and the user's clock.
    #[must_use]
    pub fn ledger(&self) -> String {
        self.named("ledger")
    }

    /// What is remembered of reservations and requests.
    #[must_use]
    pub fn memory(&self) -> String {
        self.named("memory")
    }

    /// When each of these comes due.
    #[must_use]
    pub fn agenda(&self) -> String {
        self.named("agenda")
    }

    /// Shows one live hold to people; it expires with it.
    #[must_use]
    pub fn hold(&self, nonce: &str) -> String {
        [&self.prefix, "hold:", nonce].concat()
    }

    fn named(&self, what: &str) -> String {
        [&self.prefix, what].concat()
    }

    /// The keys that most scripts take, in their order.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        vec![self.subscription(), self.ledger(), self.memory(), self.agenda()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{AppId, UserId};

    #[test]
    fn a_key_is_recognised_by_its_name() {
        let owner = Owner::new(&AppId::default(), &UserId::parse("a{b}:c é").unwrap());
        let keys = UserKeys::new(&owner);
        for key in keys.all() {
            assert_eq!(kind(key.as_bytes()), KeyKind::State(owner.clone()), "{key}");
        }
        assert_eq!(kind(API_KEYS.as_bytes()), KeyKind::ApiKeys);
        assert_eq!(kind(keys.hold("n").as_bytes()), KeyKind::Hold(owner, "n".to_owned()));
    }

    #[test]
    fn other_keys_belong_to_nothing() {
        let odd = [
            "",
            "x",
            "{u}:ledger",
            "{:u}:ledger",
            "{a:}:ledger",
            "{a:u}:foo",
            "{a:u}:hold:",
            "{a:u}:",
            "{a:u b}:ledger",
        ];
        for rest in odd {
            assert_eq!(kind(format!("tollgate2:{rest}").as_bytes()), KeyKind::Unknown, "{rest}");
        }
        assert_eq!(kind(b"tollgate2:{a:u}:ledger\xff"), KeyKind::Unknown);
    }
}
