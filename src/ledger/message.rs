//! Keys and arguments of one call, as they travel: one after the other.

use super::keys;
use crate::domain::id::{Field, Owner};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
    /// The ends of the parts.
    ends: Vec<usize>,
    /// The number of keys. They are the first parts.
    keys: usize,
}

impl Message {
    /// An empty message with room for `bytes` bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(6), keys: 0 }
    }

    /// About an owner: with the keys that every script takes.
    pub(super) fn about(owner: &Owner, bytes: usize) -> Self {
        let mut message = Self::with_capacity(bytes + 4 * (owner.tag().len() + 48));
        message.key(|key| keys::push_state(key, owner));
        let state = message.bytes.len();
        for memory in keys::OF_MEMORIES {
            message.key(|keys| {
                keys.extend_from_within(..state);
                keys.extend_from_slice(memory.as_bytes());
            });
        }
        message
    }

    /// About a reservation: with the key that shows its hold as well.
    pub(super) fn about_hold(owner: &Owner, field: &Field, bytes: usize) -> Self {
        let mut message = Self::about(owner, bytes);
        let state = message.ends[0];
        message.key(|keys| {
            keys.extend_from_within(..state);
            keys::push_hold_of_state(keys, field);
        });
        message
    }

    /// Adds a key. Keys come before arguments.
    pub(super) fn key(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.argument(write);
        self.keys += 1;
        debug_assert_eq!(self.keys, self.ends.len(), "keys come before arguments");
    }

    /// Adds an argument.
    pub(super) fn argument(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// Returns the number of keys.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    /// Returns the number of keys and arguments.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns the number of bytes in all of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Keys and arguments.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{AppId, UserId};
    use crate::ledger::UserKeys;

    #[test]
    fn parts_stay_apart_and_keys_come_first() {
        let owner = Owner::new(&AppId::default(), &UserId::parse("alice").unwrap());
        let keys = UserKeys::new(&owner);
        let mut message = Message::about_hold(&owner, &[7; 16], 10);
        message.argument(|bytes| bytes.extend_from_slice(b"one"));
        message.argument(|_| ());
        let parts: Vec<_> = message.parts().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        let [state, one, two] = keys.all();
        assert_eq!(parts, [state, one, two, keys.hold(&[7; 16]), "one".to_owned(), String::new()]);
        assert_eq!((message.keys(), message.len()), (4, 6));
        assert_eq!(message.bytes(), parts.iter().map(String::len).sum::<usize>());
    }
}
