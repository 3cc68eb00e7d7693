//! Commits of another event than was reserved: a fallback reserves one, and commits it with other metadata, with other calls before,
//! in between and after.

use std::collections::BTreeMap;

use super::{DAY, Generator, KEYS, QUANTITIES, VALUES, once_in, pick};
use crate::operations::{Actual, Call, Operation, When};
use crate::price::{self, Usage};
use crate::sketch::{Event, MICRO};
use crate::user::{Reservation, State};

/// A reservation that is followed for some calls.
#[derive(Debug, Clone, Copy)]
pub struct Fallback {
    user: usize,
    of: u32,
    left: u32,
}

/// What other metadata is to do.
#[derive(Clone, Copy, PartialEq)]
enum Aim {
    OtherGroups,
    /// Some no longer match.
    FewerGroups,
    /// Some no longer match, and others match only then.
    Swap,
    NoGroup,
    Whatever,
}

/// The ids of the groups that the reservation matches with this metadata.
fn matched(reservation: &Reservation, metadata: &BTreeMap<String, String>) -> Vec<String> {
    let named = Actual { metadata: metadata.clone(), ..Actual::default() };
    let event = Usage { event: &reservation.event, added: &[], named: Some(&named) }.matched();
    let groups = reservation.plan.groups.iter();
    let matched = groups.filter(|group| !price::measures(group, &event, &event.name).is_empty());
    matched.map(|group| group.id.clone()).collect()
}

impl Generator {
    /// Asks with the random source of fallbacks in place of that of long reservations.
    fn by_other<T>(&mut self, ask: impl FnOnce(&mut Self) -> T) -> T {
        std::mem::swap(&mut self.long, &mut self.other);
        let found = ask(self);
        std::mem::swap(&mut self.long, &mut self.other);
        found
    }

    /// The next operation of a fallback, or the first one of another. What was planned before comes first.
    pub fn on_top(&mut self, number: u32) -> Option<Operation> {
        if !self.planned.is_empty() {
            return None;
        }
        let next = self.planned_on_top.pop_front();
        let next = next.or_else(|| {
            self.by_other(|this| {
                let next = this.fallback(number);
                this.planned_on_top = std::mem::take(&mut this.planned);
                next
            })
        });
        let (user, at, call) = next?;
        let replica = at.unwrap_or_else(|| self.other.usize(..self.model.settings.catalogs.len()));
        let operation = Operation { number, replica, user, call };
        self.asked.push(operation.clone());
        Some(operation)
    }

    fn fallback(&mut self, number: u32) -> Option<(usize, Option<usize>, Call)> {
        let Some(fallback) = self.fallback else {
            let begins = once_in(&mut self.long, if self.models.is_some() { 10 } else { 40 });
            return if begins { self.begins_fallback(number) } else { None };
        };
        let left = fallback.left.saturating_sub(1);
        self.fallback = Some(Fallback { left, ..fallback }).filter(|_| left > 0);
        let user = &self.model.users[fallback.user];
        let Some(reservation) = user.reservations.get(&fallback.of) else {
            self.fallback = None;
            return None;
        };
        let state = reservation.state_at(user.now);
        // Other calls come in between.
        if once_in(&mut self.long, 5) {
            return None;
        }
        Some((fallback.user, None, self.next_of_fallback(fallback, state)))
    }

    /// Begins where a Reserve is allowed, mostly one that other metadata sends to other groups.
    fn begins_fallback(&mut self, number: u32) -> Option<(usize, Option<usize>, Call)> {
        for _ in 0..8 {
            let user = usize::from(once_in(&mut self.long, 3));
            let replica = self.long.usize(..self.model.settings.catalogs.len());
            let event = Event { metadata: self.told(), ..self.usual() };
            let ttl_ms = Some(pick(&mut self.long, &[1000, 5000, 60_000, 3_600_000, 3_600_000]));
            let request_id = self.long_id();
            let call = Call::Reserve { event, ttl_ms, request_id, on_expiry: self.on_expiry() };
            let mut trial = self.model.clone();
            trial.apply(&Operation { number, replica, user, call: call.clone() });
            let Some(made) = trial.users[user].reservations.get(&number).cloned() else { continue };
            let before = matched(&made, &BTreeMap::new());
            let other = self.other_metadata(&made, Aim::OtherGroups);
            if matched(&made, &other) != before || once_in(&mut self.long, 12) {
                self.fallback = Some(Fallback { user, of: number, left: self.long.u32(3..12) });
                return Some((user, Some(replica), call));
            }
        }
        None
    }

    fn next_of_fallback(&mut self, fallback: Fallback, state: State) -> Call {
        let Fallback { user, of, left } = fallback;
        let dice = match state {
            State::Held if left <= 3 => 36,
            State::Held => self.long.u32(..60),
            State::Expired | State::Released => self.long.u32(60..92),
            State::Committed => self.long.u32(92..126),
        };
        match dice {
            0..5 => self.part(user, of),
            5..8 => self.extend(user, of),
            8 | 9 => self.refunds_a_part(user, of),
            10..13 => Call::Step(When::Deadline(of, pick(&mut self.long, &[-1, 0, 0, 1, 500]))),
            13 | 14 => Call::Release { of },
            15..18 => {
                let at = When::WindowEnd(self.long.usize(..4), pick(&mut self.long, &[-1, 0, 1]));
                self.then_commits(user, of, Call::Step(at))
            }
            18..21 => {
                let upsert = self.enters_a_plan();
                self.then_commits(user, of, upsert)
            }
            21..23 => {
                let upsert = self.moves_the_anchor();
                self.then_commits(user, of, upsert)
            }
            23..25 => self.tracks_other(""),
            25..28 => self.resets_what_was_counted(user, of),
            28 => self.extends_much_later(user, of),
            29 => Call::Step(When::After(pick(&mut self.long, &[1, 500, 60_000, 3_600_000, DAY, 31 * DAY]))),
            30..33 => self.refused(user, of),
            33..35 => self.resets(),
            35..55 => self.commits_other(user, of, Aim::Swap),
            55..57 => self.asks_again(of),
            57..60 => Call::Reservation { of },
            // Late.
            60..64 => self.part(user, of),
            64..66 => Call::Release { of },
            66 => self.commits_reserved(user, of),
            67..76 => self.refunds(user, of),
            76 => self.resets(),
            77 => self.refused(user, of),
            78..90 => self.commits_other(user, of, Aim::Swap),
            90 | 91 => Call::Reservation { of },
            // After the commit.
            92..99 => self.commits_again(user, of),
            99..102 => self.commits_other(user, of, Aim::OtherGroups),
            102 => self.commits_reserved(user, of),
            103 => self.part(user, of),
            104..115 => self.refunds(user, of),
            115..117 => Call::Reservation { of },
            117..121 => self.asks_again(of),
            121 => Call::Release { of },
            122 => self.extend(user, of),
            123 => self.tracks_other(".refund"),
            _ => Call::Usage { pattern: String::new(), at: None },
        }
    }

    /// Mostly with a commit of another event right after it.
    fn then_commits(&mut self, user: usize, of: u32, call: Call) -> Call {
        if !once_in(&mut self.long, 3) {
            let commit = self.commits_other(user, of, Aim::Swap);
            self.plan(user, commit);
        }
        call
    }

    /// What was counted so far is reset, before a group no longer matches.
    fn resets_what_was_counted(&mut self, user: usize, of: u32) -> Call {
        let counts = if self.long.bool() { self.part(user, of) } else { Call::Step(When::Deadline(of, 0)) };
        let (reset, commit) = (self.resets(), self.commits_other(user, of, Aim::FewerGroups));
        self.plan(user, reset);
        self.plan(user, commit);
        counts
    }

    /// Metadata of keys and values that catalogs ask for.
    fn told(&mut self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::new();
        for key in KEYS {
            if self.long.bool() || (key == "model" && self.models.is_some()) {
                metadata.insert(key.to_owned(), pick(&mut self.long, &VALUES).to_owned());
            }
        }
        metadata
    }

    /// The first of some that does what it is to do, else one that sends the event to other groups, else any.
    fn other_metadata(&mut self, reservation: &Reservation, aim: Aim) -> BTreeMap<String, String> {
        let before = matched(reservation, &BTreeMap::new());
        let (mut second, mut metadata) = (None, self.told());
        for _ in 0..24 {
            let now = matched(reservation, &metadata);
            let (comes, goes) = (now.iter().any(|id| !before.contains(id)), before.iter().any(|id| !now.contains(id)));
            let does = match aim {
                Aim::OtherGroups => !now.is_empty() && (comes || goes),
                Aim::FewerGroups => !now.is_empty() && goes,
                Aim::Swap => comes && goes,
                Aim::NoGroup => now.is_empty(),
                Aim::Whatever => !metadata.is_empty(),
            };
            if does {
                return metadata;
            }
            let next = self.told();
            let tried = std::mem::replace(&mut metadata, next);
            if !now.is_empty() && (comes || goes) {
                second = second.or(Some(tried));
            }
        }
        second.unwrap_or(metadata)
    }

    /// What a commit of another event says.
    fn other_actual(&mut self, user: usize, of: u32, aim: Aim) -> Actual {
        let aim = match self.long.u32(..12) {
            0 => Aim::NoGroup,
            1 => Aim::Whatever,
            2..5 => Aim::OtherGroups,
            _ => aim,
        };
        let found = self.model.users[user].reservations.get(&of).cloned();
        let metadata = match found {
            Some(found) => self.other_metadata(&found, aim),
            None => self.told(),
        };
        let actual = match self.long.u32(..12) {
            0..5 => Actual::default(),
            5 => Actual { quantities: [("total_tokens".to_owned(), MICRO)].into(), ..Actual::default() },
            6 => Actual { quantity: Some(self.long.u128(1..40) * MICRO / 2), ..Actual::default() },
            _ => self.total_so_far(user, of),
        };
        self.with_odd_ones(Actual { metadata, ..actual })
    }

    /// Sometimes a quantity in the metadata, or text instead of one, or keys that nobody asks for.
    fn with_odd_ones(&mut self, mut actual: Actual) -> Actual {
        if once_in(&mut self.long, 16) {
            actual.metadata.clear();
        }
        if once_in(&mut self.long, 5) {
            let texts = ["many", "-5", "1e3", "1,000", " 12", ""];
            let numbers = ["12", "0.5", "3.000001", "0", "7", "20"];
            let value =
                if once_in(&mut self.long, 3) { pick(&mut self.long, &texts) } else { pick(&mut self.long, &numbers) };
            actual.metadata.insert(pick(&mut self.long, &QUANTITIES).to_owned(), value.to_owned());
        }
        if actual.metadata.is_empty() || once_in(&mut self.long, 8) {
            actual.metadata.insert("trace".to_owned(), "7".to_owned());
        }
        actual
    }

    fn commits_other(&mut self, user: usize, of: u32, aim: Aim) -> Call {
        Call::commit(of, Some(self.other_actual(user, of, aim)))
    }

    fn commits_reserved(&mut self, user: usize, of: u32) -> Call {
        Call::commit(of, self.long.bool().then(|| self.total_so_far(user, of)))
    }

    /// The last commit of this reservation once more, mostly word for word.
    fn commits_again(&mut self, user: usize, of: u32) -> Call {
        let is_of =
            |asked: &&Operation| matches!(asked.call, Call::Commit { of: this, partial: false, .. } if this == of);
        let last = self.asked.iter().rev().find(is_of).map(|asked| asked.call.clone());
        let Some(Call::Commit { actual, .. }) = last else {
            return self.commits_other(user, of, Aim::Swap);
        };
        let Some(mut actual) = actual.filter(|_| !once_in(&mut self.long, 6)) else { return Call::commit(of, None) };
        match self.long.u32(..8) {
            0 => drop(actual.quantities.pop_last()),
            1 => drop(actual.metadata.pop_last()),
            2 => actual = self.with_odd_ones(actual),
            _ => {}
        }
        Call::commit(of, Some(actual))
    }

    /// Metadata where it does not belong.
    fn refused(&mut self, user: usize, of: u32) -> Call {
        let of = if once_in(&mut self.long, 8) { u32::MAX } else { of };
        let other = self.other_actual(user, of, Aim::OtherGroups);
        match self.long.u32(..5) {
            0 | 1 => Call::Commit { of, actual: Some(other), partial: true, ttl_ms: None },
            2 => Call::Commit { of, actual: Some(other), partial: false, ttl_ms: Some(60_000) },
            _ => Call::Extend { of, ttl_ms: None, add: Some(other), request_id: self.long_id() },
        }
    }

    /// After the deadline, of what a partial commit has counted.
    fn refunds_a_part(&mut self, user: usize, of: u32) -> Call {
        let refund = self.refunds(user, of);
        self.plan(user, Call::Step(When::Deadline(of, 0)));
        self.plan(user, refund);
        self.part(user, of)
    }

    /// When short windows are gone.
    fn extends_much_later(&mut self, user: usize, of: u32) -> Call {
        let extend = self.extend(user, of);
        self.plan(user, extend);
        Call::Step(When::After(pick(&mut self.long, &[180_000, 200_000, 1_200_000])))
    }

    fn tracks_other(&mut self, suffix: &str) -> Call {
        let mut event = Event { metadata: self.told(), ..self.usual() };
        event.name.push_str(suffix);
        // Sometimes long ago.
        let is_old = suffix.is_empty() && once_in(&mut self.long, 5);
        let at = is_old.then(|| When::After(pick(&mut self.long, &[-60_000, -DAY, -31 * DAY, -800 * DAY])));
        Call::Track { event, request_id: String::new(), enforce: false, refund: None, at }
    }

    fn moves_the_anchor(&mut self) -> Call {
        let anchor = Some(When::After(pick(&mut self.long, &[0, -1000, -3_600_000, -DAY, -20 * DAY])));
        Call::Upsert { plan: String::new(), overrides: None, end: None, anchor, etag: None, wrong_end: None }
    }

    fn resets(&mut self) -> Call {
        Call::Reset { groups: Vec::new(), request_id: self.long_id() }
    }

    /// What a final commit says, sometimes with metadata.
    pub fn sprinkled(&mut self, actual: Option<Actual>) -> Option<Actual> {
        self.by_other(|this| {
            if !once_in(&mut this.long, 6) {
                return actual;
            }
            let metadata = this.told();
            Some(this.with_odd_ones(Actual { metadata, ..actual.unwrap_or_default() }))
        })
    }
}
