//! Bounds the number of connections, and chooses the connection that is ended when a new one needs its slot.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::access::Role;

use super::unsent::Unsent;

/// The best credentials that a connection has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Level {
    /// The connection has made no call with a valid key.
    Nobody,
    /// A call with a public key, which anybody may have.
    Public,
    /// A call with a secret key, or with a certificate that names an app.
    Secret,
}

impl From<Role> for Level {
    fn from(role: Role) -> Self {
        match role {
            Role::Public => Self::Public,
            Role::Secret => Self::Secret,
        }
    }
}

/// The slots for connections. Several listeners can share them.
pub struct ConnectionSlots {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    next: u64,
    /// The connections that may be ended for a new one: those with the worst credentials first, then the oldest.
    endable: BTreeMap<(Level, u64), Arc<Standing>>,
    /// Connections that were told to end and have not ended yet.
    ending: usize,
    waiting: Vec<Waker>,
}

impl ConnectionSlots {
    /// Slots for `most` connections.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    /// Returns the number of connections there may be.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes a slot. If all are taken, it first ends the oldest connection that has not authenticated; `None` if every
    /// connection has.
    pub(super) fn poll_take(self: &Arc<Self>, context: &mut Context<'_>) -> Poll<Option<ConnectionSlot>> {
        let mut state = self.lock();
        if state.taken < self.most {
            state.taken += 1;
            let number = state.next;
            state.next += 1;
            let standing = Arc::new(Standing::new(number, Arc::downgrade(self)));
            state.endable.insert((Level::Nobody, number), Arc::clone(&standing));
            return Poll::Ready(Some(ConnectionSlot { slots: Arc::clone(self), standing }));
        }
        // One at a time: each of those that wait for a slot ends no more than one connection.
        if state.ending == 0 {
            let Some((_, oldest)) = state.endable.pop_first() else { return Poll::Ready(None) };
            state.ending += 1;
            oldest.end();
        }
        state.waiting.push(context.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of a connection. It is free again when this is dropped.
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    standing: Arc<Standing>,
}

impl ConnectionSlot {
    /// Returns the standing of the connection.
    pub(super) fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.standing.unsent.close();
        let mut state = self.slots.lock();
        state.taken -= 1;
        state.endable.remove(&(self.standing.level(), self.standing.number));
        if self.standing.ended.load(Ordering::Relaxed) {
            state.ending -= 1;
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }
}

/// The standing of a connection: its credentials so far, and its calls that need no key.
pub struct Standing {
    number: u64,
    slots: Weak<ConnectionSlots>,
    level: AtomicU8,
    end: Notify,
    ended: AtomicBool,
    /// The calls in flight that have shown no valid key.
    pub(super) keyless: AtomicUsize,
    /// The streams in flight that have no end of their own: health watches and reflection.
    pub(super) endless: AtomicUsize,
    /// The answers that have not been written to the socket yet.
    pub(super) unsent: Unsent,
}

impl Standing {
    pub(super) fn new(number: u64, slots: Weak<ConnectionSlots>) -> Self {
        Self {
            number,
            slots,
            level: AtomicU8::new(Level::Nobody as u8),
            end: Notify::new(),
            ended: AtomicBool::new(false),
            keyless: AtomicUsize::new(0),
            endless: AtomicUsize::new(0),
            unsent: Unsent::default(),
        }
    }

    /// The best credentials so far.
    pub(super) fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Nobody,
            1 => Level::Public,
            _ => Level::Secret,
        }
    }

    /// A call with these credentials was let in.
    pub(super) fn rise(&self, level: Level) {
        if self.level() >= level {
            return;
        }
        let Some(slots) = self.slots.upgrade() else { return };
        let mut state = slots.lock();
        let before = self.level();
        if before >= level {
            return;
        }
        self.level.store(level as u8, Ordering::Relaxed);
        // It is not there if it was told to end.
        if let Some(standing) = state.endable.remove(&(before, self.number))
            && level < Level::Secret
        {
            state.endable.insert((level, self.number), standing);
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.end.notify_one();
    }

    /// Done once the connection has to make room for another.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("number", &self.number).field("level", &self.level()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_without_a_key_makes_room_then_the_oldest_with_a_public_one() {
        let slots = ConnectionSlots::new(3);
        let mut context = Context::from_waker(Waker::noop());
        let mut take = || slots.poll_take(&mut context);
        let taken = |slot: Poll<Option<ConnectionSlot>>| match slot {
            Poll::Ready(slot) => slot.expect("there is room"),
            Poll::Pending => panic!("there is room"),
        };
        let [first, second, third] = std::array::from_fn(|_| taken(take()));
        first.standing.rise(Level::Public);
        second.standing.rise(Level::Secret);
        assert!(take().is_pending() && take().is_pending(), "one is ended, however many wait");
        let told = |slot: &ConnectionSlot| slot.standing.ended.load(Ordering::Relaxed);
        assert_eq!([told(&first), told(&second), told(&third)], [false, false, true]);
        drop(third);
        let fourth = taken(take());
        fourth.standing.rise(Level::Secret);
        assert!(take().is_pending() && told(&first));
        drop(first);
        let fifth = taken(take());
        fifth.standing.rise(Level::Public);
        fifth.standing.rise(Level::Secret);
        assert!(matches!(take(), Poll::Ready(None)), "all have authenticated");
        drop((second, fourth, fifth));
        let state = slots.lock();
        assert_eq!((state.taken, state.ending, state.endable.len()), (0, 0, 0));
    }
}
