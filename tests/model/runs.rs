//! Long reservations: a run makes one, then extends it, commits it bit by bit, ends it and refunds it, with other calls in between.

use std::collections::BTreeMap;

use super::{DAY, Generator, IDS, PLANS, QUANTITIES, nest, once_in, pick};
use crate::operations::{Actual, Call, OnExpiry, Operation, Refund, When};
use crate::price;
use crate::sketch::{Event, LARGEST, MICRO, Measure};
use crate::user::{Claim, State};

/// A reservation that is followed for some calls.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    user: usize,
    of: u32,
    left: u32,
    /// It is held as long as can be.
    to_the_end: bool,
}

/// As a caller can send it: a number above 8x10^9 is whole.
pub fn as_sent(quantity: u128) -> u128 {
    let quantity = quantity.min(LARGEST * MICRO);
    if quantity > 8_000_000_000 * MICRO { quantity / MICRO * MICRO } else { quantity }
}

impl Generator {
    /// The next call of a run, or the first one of another.
    pub fn run(&mut self, number: u32) -> Option<(usize, Option<usize>, Call)> {
        let Some(run) = self.run else {
            return if once_in(&mut self.long, 8) { self.begins(number) } else { None };
        };
        self.run = Some(Run { left: run.left.saturating_sub(1), ..run }).filter(|run| run.left > 0);
        let Some(reservation) = self.model.users[run.user].reservations.get(&run.of) else {
            self.run = None;
            return None;
        };
        let state = reservation.state_at(self.model.users[run.user].now);
        if run.to_the_end && state == State::Held {
            return Some((run.user, None, self.holds_on(run)));
        }
        if !once_in(&mut self.long, 3) {
            return Some((run.user, None, self.next(run, state)));
        }
        None
    }

    /// Begins where a Reserve is allowed, mostly one of which more can be too much.
    fn begins(&mut self, number: u32) -> Option<(usize, Option<usize>, Call)> {
        for _ in 0..6 {
            let user = usize::from(once_in(&mut self.long, 3));
            let replica = self.long.usize(..self.model.settings.catalogs.len());
            let to_the_end = once_in(&mut self.long, 60);
            let call = self.first(user, to_the_end);
            let mut trial = self.model.clone();
            trial.apply(&Operation { number, replica, user, call: call.clone() });
            let Some(made) = trial.users[user].reservations.get(&number) else { continue };
            let by_quantity = |claim: &&Claim| {
                let chosen = price::choose(&claim.measures, &made.event, claim.unit);
                chosen.is_ok_and(|measure| *measure != Measure::Events)
            };
            let is_tight = |claim: &Claim| claim.hard && claim.quota.is_some();
            let tight = made.claims.iter().filter(by_quantity).any(is_tight);
            let measured = made.claims.iter().any(|claim| by_quantity(&claim));
            if to_the_end || tight || measured && once_in(&mut self.long, 4) || once_in(&mut self.long, 20) {
                let left = if to_the_end { 70 } else { self.long.u32(5..25) };
                self.run = Some(Run { user, of: number, left, to_the_end });
                return Some((user, Some(replica), call));
            }
        }
        None
    }

    fn first(&mut self, user: usize, to_the_end: bool) -> Call {
        let event = if once_in(&mut self.long, 8) { self.event(user) } else { self.usual() };
        let ttl_ms = match self.long.u32(..4) {
            _ if to_the_end => Some(3_600_000),
            0 => None,
            _ => Some(pick(&mut self.long, &[1000, 5000, 60_000, 600_000, 3_600_000])),
        };
        Call::Reserve { event, ttl_ms, request_id: self.long_id(), on_expiry: self.on_expiry() }
    }

    pub fn on_expiry(&mut self) -> OnExpiry {
        pick(&mut self.long, &[OnExpiry::Unsaid, OnExpiry::Unsaid, OnExpiry::Release, OnExpiry::Count, OnExpiry::Count])
    }

    pub fn long_id(&mut self) -> String {
        if once_in(&mut self.long, 3) { String::new() } else { pick(&mut self.long, &IDS).to_owned() }
    }

    /// An event that most groups can measure, with some of everything.
    pub fn usual(&mut self) -> Event {
        let mut quantities = BTreeMap::new();
        for name in QUANTITIES {
            // Where it is left out there may be a default.
            if !once_in(&mut self.long, 6) {
                quantities.insert(name.to_owned(), self.long.u128(1..40) * MICRO / 2);
            }
        }
        if self.has_parts {
            nest(&mut self.long, &mut quantities);
        }
        let quantity = (!once_in(&mut self.long, 4)).then(|| self.long.u128(1..20) * MICRO);
        self.with_model(Event { name: "llm.tokens".to_owned(), quantity, quantities, ..Event::default() })
    }

    /// Hour after hour.
    fn holds_on(&mut self, run: Run) -> Call {
        let Run { user, of, .. } = run;
        let (now, this) = (self.model.users[user].now, &self.model.users[user].reservations[&of]);
        let (left, is_last) = (this.deadline - now, this.deadline >= this.last_deadline());
        if is_last {
            return Call::Step(When::LastDeadline(of, pick(&mut self.long, &[-1, 0, 0])));
        }
        if left > 600_000 {
            return Call::Step(When::Deadline(of, pick(&mut self.long, &[-1, -1000, -60_000])));
        }
        let ttl_ms = Some(3_600_000);
        if once_in(&mut self.long, 4) {
            let (actual, partial) = (Some(self.total_so_far(user, of)), true);
            return Call::Commit { of, actual, partial, ttl_ms };
        }
        Call::Extend { of, ttl_ms, add: None, request_id: self.long_id() }
    }

    fn next(&mut self, run: Run, state: State) -> Call {
        let Run { user, of, .. } = run;
        let counts = self.model.users[user].reservations.get(&of).is_some_and(|this| this.counts);
        if counts && state == State::Held && once_in(&mut self.long, 6) {
            return Call::Step(When::Deadline(of, pick(&mut self.long, &[0, 1, 500])));
        }
        let dice = match state {
            State::Held => self.long.u32(..50),
            State::Expired | State::Released => self.long.u32(50..90),
            State::Committed => self.long.u32(64..100),
        };
        match dice {
            0..11 => self.part(user, of),
            11..21 => self.extend(user, of),
            21..24 => Call::Step(When::After(pick(&mut self.long, &[1, 500, 5000, 30_000]))),
            24..28 if once_in(&mut self.long, 3) => self.extend_at_the_deadline(user, of),
            24..28 => Call::Step(When::Deadline(of, pick(&mut self.long, &[-1, 0, 0, 1, 500]))),
            28 => self.past_a_window(user, of),
            29..31 => Call::Reset { groups: Vec::new(), request_id: self.long_id() },
            31 => self.enters_a_plan(),
            32 => self.tracks(""),
            33 => self.tracks(".refund"),
            34 => Call::Reservation { of },
            35 => Call::Reservations { page_size: 0 },
            36..41 => self.ends(user, of),
            41 => Call::Release { of },
            42 => self.refunds(user, of),
            43..45 => self.asks_again(of),
            45 => Call::Step(When::After(pick(&mut self.long, &[3_600_000, DAY, 31 * DAY]))),
            46..48 => self.extend(user, of),
            48..50 => self.part(user, of),
            // Late.
            50..58 => self.part(user, of),
            58..64 => self.ends(user, of),
            64..68 => Call::Release { of },
            68..76 => self.refunds(user, of),
            76..79 => Call::Reset { groups: Vec::new(), request_id: self.long_id() },
            79..82 => Call::Reservation { of },
            82..84 => self.extend(user, of),
            84..86 => self.asks_again(of),
            86 => Call::Step(When::Forgotten(of, pick(&mut self.long, &[-1, 0]))),
            87 => self.tracks(".refund"),
            88 => Call::Step(When::After(pick(&mut self.long, &[1, 1000, 60_000]))),
            89 => Call::Usage { pattern: String::new(), at: None },
            // After the final commit.
            90..92 => self.part(user, of),
            92..95 => self.ends(user, of),
            _ => self.refunds(user, of),
        }
    }

    pub fn enters_a_plan(&mut self) -> Call {
        let plan = pick(&mut self.long, &PLANS).to_owned();
        Call::Upsert { plan, overrides: None, end: None, anchor: None, etag: None, wrong_end: None }
    }

    fn tracks(&mut self, suffix: &str) -> Call {
        let mut event = self.usual();
        event.name.push_str(suffix);
        Call::Track { event, request_id: String::new(), enforce: false, refund: None, at: None }
    }

    /// A Reserve or an Extend of this reservation once more, word for word.
    pub fn asks_again(&mut self, of: u32) -> Call {
        let is_of = |call: &Call| match call {
            Call::Extend { of: this, request_id, .. } => *this == of && !request_id.is_empty(),
            _ => false,
        };
        let made = |number: u32, call: &Call| {
            number == of && matches!(call, Call::Reserve { request_id, .. } if !request_id.is_empty())
        };
        let asked = self.asked.iter().filter(|asked| is_of(&asked.call) || made(asked.number, &asked.call));
        let asked: Vec<_> = asked.map(|asked| asked.call.clone()).collect();
        if asked.is_empty() { Call::Reservation { of } } else { asked[self.long.usize(..asked.len())].clone() }
    }

    /// What the reservation has of a quantity, and what partial commits have named of it last.
    fn of_quantity(&self, user: usize, of: u32, name: &str) -> (u128, u128) {
        let Some(this) = self.model.users[user].reservations.get(&of) else { return (MICRO, 0) };
        let own = if name == "quantity" { this.event.quantity } else { None };
        let reserved = this.event.quantities.get(name).copied().or(own).unwrap_or_default();
        let added: u128 = this.added.iter().map(|add| add.of(name)).sum();
        (reserved.saturating_add(added).min(8_000_000_000 * MICRO), this.named.of(name))
    }

    /// Mostly more than the last total, sometimes as much, or less.
    pub fn total_so_far(&mut self, user: usize, of: u32) -> Actual {
        let kind = self.long.u32(..12);
        let share = self.long.u128(1..4);
        let mut actual = Actual::default();
        for name in QUANTITIES {
            if once_in(&mut self.long, 4) {
                continue;
            }
            let (reserved, named) = self.of_quantity(user, of, name);
            let kind = if once_in(&mut self.long, 6) { self.long.u32(..12) } else { kind };
            let total = match kind {
                0 | 1 => named,
                2 => named / 2 / MICRO * MICRO,
                3 | 4 => reserved,
                5 => reserved * 3 / 2 + MICRO,
                6 => self.long.u128(0..30) * MICRO,
                _ => named + reserved * share / 4,
            };
            // As decimals go.
            let total = total.min(8_000_000_000 * MICRO);
            if name == "quantity" && self.long.bool() {
                actual.quantity = Some(total);
            } else {
                actual.quantities.insert(name.to_owned(), total);
            }
        }
        if once_in(&mut self.long, 20) {
            return Actual { quantities: [("total_tokens".to_owned(), MICRO)].into(), ..Actual::default() };
        }
        actual
    }

    /// A partial commit.
    pub fn part(&mut self, user: usize, of: u32) -> Call {
        let ttl_ms = once_in(&mut self.long, 3).then(|| self.long_ttl());
        Call::Commit { of, actual: Some(self.total_so_far(user, of)), partial: true, ttl_ms }
    }

    /// The final commit.
    fn ends(&mut self, user: usize, of: u32) -> Call {
        let actual = self.long.bool().then(|| self.total_so_far(user, of));
        Call::commit(of, self.sprinkled(actual))
    }

    fn long_ttl(&mut self) -> i64 {
        let ttl_ms = self.long.i64(1000..=3_600_000);
        pick(&mut self.long, &[1000, 1001, 60_000, 3_600_000, ttl_ms])
    }

    pub fn extend(&mut self, user: usize, of: u32) -> Call {
        let ttl_ms = (!once_in(&mut self.long, 4)).then(|| self.long_ttl());
        let mut add = Actual::default();
        for name in QUANTITIES {
            if !once_in(&mut self.long, 3) {
                add.quantities.insert(name.to_owned(), self.long.u128(0..24) * MICRO / 2);
            }
        }
        let add = match self.long.u32(..28) {
            0..4 => None,
            4 => self.exact_room(user, of).or(Some(add)),
            5 => Some(Actual { quantity: Some(0), ..Actual::default() }),
            6 => Some(Actual { quantities: [("total_tokens".to_owned(), MICRO)].into(), ..Actual::default() }),
            7 => Some(Actual { quantity: Some(LARGEST * MICRO), ..add }),
            8 | 9 => self.exact_room(user, of).or(Some(add)),
            10..12 => {
                // Too much for most groups.
                add.quantities.values_mut().for_each(|more| *more *= 100);
                Some(add)
            }
            12 => {
                let name = pick(&mut self.long, &QUANTITIES).to_owned();
                Some(Actual { quantities: [(name, self.long.u128(1..100) * MICRO)].into(), ..Actual::default() })
            }
            13 => Some(Actual { quantity: Some(self.long.u128(1..50 * MICRO)), ..add }),
            14..17 if self.has_parts => {
                // More of a part, and not of its whole.
                add.quantities.retain(|name, _| name != "prompt_tokens");
                Some(add)
            }
            17 | 18 => {
                add.quantities.values_mut().for_each(|more| *more *= 10);
                Some(add)
            }
            _ => Some(add),
        };
        Call::Extend { of, ttl_ms, add, request_id: self.long_id() }
    }

    /// A window ends, mostly one of the reservation, and there is to be more.
    fn past_a_window(&mut self, user: usize, of: u32) -> Call {
        let more = self.extend(user, of);
        self.plan(user, more);
        Call::Step(When::WindowEnd(if once_in(&mut self.long, 3) { self.long.usize(..8) } else { 0 }, 0))
    }

    fn extend_at_the_deadline(&mut self, user: usize, of: u32) -> Call {
        let request_id = self.long_id();
        self.plan(user, Call::Extend { of, ttl_ms: None, add: None, request_id });
        Call::Step(When::Deadline(of, 0))
    }

    /// What just fits a group of the reservation, or just does not.
    fn exact_room(&mut self, user: usize, of: u32) -> Option<Actual> {
        let this = &self.model.users[user];
        let room = |claim: &Claim| {
            let room = claim.quota.filter(|_| claim.hard)?.checked_sub(this.counted(claim.window?))?;
            let name = claim.measures.iter().find_map(|measure| match measure {
                Measure::Terms(terms) => terms.first().map(|term| term.name.clone()),
                Measure::Events => None,
            })?;
            Some((name, room * MICRO / claim.unit.scale())).filter(|(_, room)| *room < 8_000_000_000 * MICRO)
        };
        let (name, room) = this.reservations.get(&of)?.claims.iter().find_map(room)?;
        let room = as_sent(room + pick(&mut self.long, &[0, 0, 1, MICRO]));
        (room > 0).then(|| Actual { quantities: [(name, room)].into(), ..Actual::default() })
    }

    /// A refund of all that commits have counted, or of some of it.
    pub fn refunds(&mut self, user: usize, of: u32) -> Call {
        let mut event = self.left(user, of).unwrap_or_else(|| self.usual());
        let share = if once_in(&mut self.long, 2) { self.long.u128(1..3) } else { 4 };
        let part = |quantity: u128| as_sent(quantity * share / 4);
        event.quantity = event.quantity.map(part);
        event.quantities.values_mut().for_each(|quantity| *quantity = part(*quantity));
        event.name.push_str(".refund");
        let refund = Some(Refund { of, in_metadata: once_in(&mut self.long, 3) });
        Call::Track { event, request_id: self.long_id(), enforce: false, refund, at: None }
    }
}
