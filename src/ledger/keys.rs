//! The one place that spells keys: `tollgate3:{app:user}:u`, and what belongs to it.
//!
//! `3` is the version of the stored data. All keys of a user carry one hash tag, so that a script touches one slot.
//! Keys that belong to no user have names without braces.

use crate::domain::id::{Field, Owner, PlanDigest, base64url, from_base64url};

const PREFIX: &str = "tollgate3:{";

/// Follows the hash tag in the key of a user's state.
const OF_USER: &str = "}:u";

/// Follows that in the keys of holds.
const OF_HOLD: &str = ":h:";

/// Begins the keys of plans.
const OF_PLAN: &str = "tollgate3:plan:";

/// The API keys of all apps, by their ids, and their revision.
pub const API_KEYS: &str = "tollgate3:api-keys";

/// The kind of a key, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyKind {
    /// A user's state or one of the memories: a key of [`UserKeys::all`].
    State(Owner),
    /// Shows the live hold with this name.
    Hold(Owner, Field),
    /// A plan, by its digest.
    Plan(PlanDigest),
    /// [`API_KEYS`].
    ApiKeys,
    /// A key that Tollgate does not write.
    Unknown,
}

/// Returns the `SCAN` pattern that finds the keys of all users, and all other keys that were written under their
/// version.
#[must_use]
pub fn pattern() -> String {
    format!("{}*", PREFIX.trim_end_matches('{'))
}

/// A key that belongs to nobody and is never written, to ask whether it might be.
#[must_use]
pub fn nobodys() -> String {
    pattern().replace('*', "nobody")
}

/// The key of the archive that holds the plan of this digest.
#[must_use]
pub fn plan(digest: &PlanDigest) -> String {
    [OF_PLAN, &base64url(digest)].concat()
}

/// Reads a key.
#[must_use]
pub fn kind(key: &[u8]) -> KeyKind {
    if key == API_KEYS.as_bytes() {
        return KeyKind::ApiKeys;
    }
    let read = || {
        let key = std::str::from_utf8(key).ok()?;
        if let Some(digest) = key.strip_prefix(OF_PLAN) {
            return from_base64url(digest).map(KeyKind::Plan);
        }
        let (tag, what) = key.strip_prefix(PREFIX)?.split_once(OF_USER)?;
        let owner = Owner::from_tag(tag)?;
        if what.is_empty() || OF_MEMORIES.contains(&what) {
            return Some(KeyKind::State(owner));
        }
        from_base64url(what.strip_prefix(OF_HOLD)?).map(|field| KeyKind::Hold(owner, field))
    };
    read().unwrap_or(KeyKind::Unknown)
}

/// Follows a user's state in the keys of the memories.
pub(super) const OF_MEMORIES: [&str; 2] = [":1", ":2"];

/// Appends the key of the owner's state.
pub(super) fn push_state(key: &mut Vec<u8>, owner: &Owner) {
    for part in [PREFIX, owner.tag(), OF_USER] {
        key.extend_from_slice(part.as_bytes());
    }
}

/// Appends the key that shows a hold.
pub(super) fn push_hold(key: &mut Vec<u8>, owner: &Owner, field: &Field) {
    push_state(key, owner);
    push_hold_of_state(key, field);
}

/// Appends what follows a user's state in the key that shows a hold.
pub(super) fn push_hold_of_state(key: &mut Vec<u8>, field: &Field) {
    key.extend_from_slice(OF_HOLD.as_bytes());
    key.extend_from_slice(base64url(field).as_bytes());
}

/// The keys of one user.
#[derive(Debug, Clone)]
pub struct UserKeys {
    state: String,
}

impl UserKeys {
    /// The keys of `owner`.
    #[must_use]
    pub fn new(owner: &Owner) -> Self {
        Self { state: [PREFIX, owner.tag(), OF_USER].concat() }
    }

    /// The user's clock, counters, windows and subscription.
    #[must_use]
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Returns the keys of the memory of reservations and requests: two hashes, one of them young and the other old.
    #[must_use]
    pub fn memories(&self) -> [String; 2] {
        OF_MEMORIES.map(|memory| [&self.state, memory].concat())
    }

    /// Shows one live hold to people; it expires with it.
    #[must_use]
    pub fn hold(&self, field: &Field) -> String {
        [&self.state, OF_HOLD, &base64url(field)].concat()
    }

    /// The keys that every script of a user takes, in their order.
    #[must_use]
    pub fn all(&self) -> [String; 3] {
        let [one, two] = self.memories();
        [self.state.clone(), one, two]
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
        assert_eq!(kind(plan(b"a digest").as_bytes()), KeyKind::Plan(*b"a digest"));
        assert_eq!(kind(keys.hold(&[7; 16]).as_bytes()), KeyKind::Hold(owner, [7; 16]));
    }

    #[test]
    fn keys_are_spelt_as_the_documentation_says() {
        let owner = Owner::new(&AppId::default(), &UserId::parse("alice").unwrap());
        let keys = UserKeys::new(&owner);
        let all = keys.all();
        assert_eq!(
            all.each_ref().map(String::as_str),
            ["tollgate3:{default:alice}:u", "tollgate3:{default:alice}:u:1", "tollgate3:{default:alice}:u:2"]
        );
        assert_eq!((keys.state(), &keys.memories()[..]), (all[0].as_str(), &all[1..]));
        assert_eq!(keys.hold(&[0; 16]), "tollgate3:{default:alice}:u:h:AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(plan(&[0; 8]), "tollgate3:plan:AAAAAAAAAAA");
        assert_eq!(pattern(), "tollgate3:*");
    }

    #[test]
    fn other_keys_belong_to_nothing() {
        let odd = [
            "",
            "x",
            "{u}:u",
            "{:u}:u",
            "{a:}:u",
            "{a:u}:a",
            "{a:u}:u:3",
            "{a:u}:u:",
            "{a:u}:u:h:",
            "{a:u}:u:h:AAAA",
            "{a:u}:uh:AAAAAAAAAAAAAAAAAAAAAA",
            "{a:u}:",
            "{a:u b}:u",
            "plan:",
            "plan:AAAAAAAAAAAA",
            "plan",
        ];
        for rest in odd {
            assert_eq!(kind(format!("tollgate3:{rest}").as_bytes()), KeyKind::Unknown, "{rest}");
        }
        assert_eq!(kind(b"tollgate3:{a:u}:u\xff"), KeyKind::Unknown);
        assert_eq!(kind(b"tollgate2:{a:u}:u"), KeyKind::Unknown);
    }
}
