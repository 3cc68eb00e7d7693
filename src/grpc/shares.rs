//! Divides what a replica has (places for calls, memory for messages) among its callers, so that none of them takes all of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::{Caller, Role};
use crate::domain::fault::Fault;
use crate::domain::id::AppId;

/// The parts of the whole that one kind of caller may take, each from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// The part of one app, with all its keys.
    pub app: f64,
    /// The part of all callers with public keys together. One app's public callers get at most the app's part of this
    /// part.
    pub public: f64,
}

/// The caller whose share something is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taker {
    /// The calls without a known valid key. Together they have as much as the public callers.
    Nobody,
    /// A caller of this app.
    App(AppId, Role),
}

impl Taker {
    /// An authenticated caller.
    pub(super) fn of(caller: &Caller) -> Self {
        Self::App(caller.app.clone(), caller.role)
    }
}

/// The reason why a share cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Everything is taken.
    Whole,
    /// The caller's share is taken.
    Share,
}

impl Full {
    /// Returns the fault for the caller.
    pub(super) fn fault(self) -> Fault {
        match self {
            Self::Whole => Fault::Overloaded,
            Self::Share => Fault::ShareTaken,
        }
    }
}

/// A whole, and the shares of it that are taken.
pub(super) struct Shares {
    whole: usize,
    app: usize,
    public: usize,
    public_of_app: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    whole: usize,
    nobody: usize,
    public: usize,
    /// The amounts taken by each app: with all keys, and with public ones.
    apps: HashMap<AppId, (usize, usize)>,
}

impl Shares {
    /// Divides `whole`. Every share has room for `least`.
    pub(super) fn new(whole: usize, least: usize, parts: Parts) -> Arc<Self> {
        // The parts are checked settings, and a share that is off by one of thousands is as good.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let part = |part: f64| ((whole as f64 * part) as usize).max(least).min(whole);
        Arc::new(Self {
            whole,
            app: part(parts.app),
            public: part(parts.public),
            public_of_app: part(parts.public * parts.app),
            taken: Mutex::default(),
        })
    }

    /// Returns the amount that is taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().whole
    }

    /// Takes `amount` from the share of `taker`.
    pub(super) fn take(self: &Arc<Self>, taker: Taker, amount: usize) -> Result<Share, Full> {
        let mut share = Share { shares: Arc::clone(self), taker, amount: 0 };
        share.grow(amount)?;
        Ok(share)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, taker: &Taker, amount: usize) -> Result<(), Full> {
        let mut guard = self.lock();
        let taken = &mut *guard;
        if taken.whole + amount > self.whole {
            return Err(Full::Whole);
        }
        match taker {
            Taker::Nobody => {
                if taken.nobody + amount > self.public {
                    return Err(Full::Share);
                }
                taken.nobody += amount;
            }
            Taker::App(app, role) => {
                let (all, public) = taken.apps.get(app).copied().unwrap_or_default();
                let is_public = *role == Role::Public;
                let fits = all + amount <= self.app
                    && (!is_public || (public + amount <= self.public_of_app && taken.public + amount <= self.public));
                if !fits {
                    return Err(Full::Share);
                }
                let of_public = if is_public { amount } else { 0 };
                taken.public += of_public;
                match taken.apps.get_mut(app) {
                    Some(of_app) => *of_app = (all + amount, public + of_public),
                    None => drop(taken.apps.insert(app.clone(), (amount, of_public))),
                }
            }
        }
        taken.whole += amount;
        Ok(())
    }

    fn give_back(&self, taker: &Taker, amount: usize) {
        let mut guard = self.lock();
        let taken = &mut *guard;
        taken.whole -= amount;
        match taker {
            Taker::Nobody => taken.nobody -= amount,
            Taker::App(app, role) => {
                let of_public = if *role == Role::Public { amount } else { 0 };
                taken.public -= of_public;
                if let Some(of_app) = taken.apps.get_mut(app) {
                    *of_app = (of_app.0 - amount, of_app.1 - of_public);
                    // Apps come and go: only those that have something are remembered.
                    if of_app.0 == 0 {
                        taken.apps.remove(app);
                    }
                }
            }
        }
    }
}

/// The share of one call. It is given back when this is dropped.
pub(super) struct Share {
    shares: Arc<Shares>,
    taker: Taker,
    amount: usize,
}

impl Share {
    /// A share of a whole that nobody else takes from, and that has no bound.
    pub(super) fn of_its_own() -> Self {
        let shares = Shares::new(usize::MAX / 2, 0, Parts { app: 1.0, public: 1.0 });
        Self { shares, taker: Taker::Nobody, amount: 0 }
    }

    /// Takes `more`.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), Full> {
        self.shares.add(&self.taker, more)?;
        self.amount += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.shares.give_back(&self.taker, self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str, role: Role) -> Taker {
        Taker::App(AppId::parse(name).unwrap(), role)
    }

    #[test]
    fn nobody_takes_more_than_a_share_and_all_of_it_comes_back() {
        let shares = Shares::new(100, 1, Parts { app: 0.5, public: 0.2 });
        let take = |taker: Taker, most: usize| {
            let taken: Vec<_> = (0..200).map_while(|_| shares.take(taker.clone(), 1).ok()).collect();
            assert_eq!(taken.len(), most, "{taker:?}");
            taken
        };
        let public = take(app("a", Role::Public), 10);
        // What the public callers of an app have, the app has less.
        let secret = take(app("a", Role::Secret), 40);
        let other_public = take(app("b", Role::Public), 10);
        assert_eq!(shares.take(app("c", Role::Public), 1).err(), Some(Full::Share), "all public callers together");
        let other = take(app("b", Role::Secret), 40);
        assert_eq!(shares.take(app("c", Role::Secret), 1).err(), Some(Full::Whole));
        drop((public, secret, other_public, other));
        let nobody = take(Taker::Nobody, 20);
        drop(nobody);
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().apps.is_empty());
    }

    #[test]
    fn every_share_has_room_for_one_and_a_share_that_cannot_grow_keeps_what_it_has() {
        let shares = Shares::new(3, 1, Parts { app: 0.0, public: 0.0 });
        let one = shares.take(app("a", Role::Public), 1).unwrap();
        assert_eq!(shares.take(app("a", Role::Secret), 1).err(), Some(Full::Share));
        drop(one);
        let mut one = shares.take(app("a", Role::Secret), 1).unwrap();
        assert_eq!(one.grow(1).err(), Some(Full::Share));
        assert_eq!(shares.taken(), 1);
    }
}
