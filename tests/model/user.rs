//! One user of the reference model: a clock, a subscription, windows, reservations, request ids.

use std::collections::{BTreeMap, BTreeSet};

use tollgate::grpc::v1;

use crate::operations::Quota;
use crate::sketch::{Event, Measure, Term, Unit};
use crate::windows::Windows;

/// A stored time that is further ahead of Redis's than this was wrong.
pub const FARTHEST_AHEAD: i64 = 5 * 60_000;

#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    /// The user's time, as the last call found it.
    pub now: i64,
    /// The latest time in the user's ledger: of the last call that certainly wrote something.
    pub stored: Option<i64>,
    /// The time of the last call, whether or not that wrote its time: SPEC does not say it of calls that change nothing.
    pub seen: Option<i64>,
    /// The latest time of any call.
    pub furthest: i64,
    pub subscription: Option<Subscription>,
    /// The default plan, once something was counted or held by it without a subscription.
    pub default_used: Option<String>,
    pub windows: Windows,
    /// By the operation that made it.
    pub reservations: BTreeMap<u32, Reservation>,
    /// Also those of before the user was deleted.
    pub reserved: BTreeSet<u32>,
    pub ids: BTreeMap<String, Id>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    pub plan: String,
    pub start: i64,
    pub end: Option<i64>,
    pub anchor: i64,
    /// Somebody has seen that it ended.
    pub fallen: bool,
    /// The operation that made it what it is.
    pub version: u32,
    pub overrides: BTreeMap<String, Quota>,
}

#[derive(Debug, Clone)]
pub struct Reservation {
    pub event: Event,
    /// What of the event is kept for who looks it up.
    pub kept: Event,
    pub claims: Vec<Claim>,
    pub deadline: i64,
    pub forgotten: i64,
    /// So long it is certainly remembered; SPEC is silent about how much longer, if a wrong clock ended it.
    pub remembered: i64,
    pub state: State,
    pub late: bool,
    /// A wrong clock ended it.
    pub by_clock: bool,
    /// Another wrong clock was found since: SPEC is silent on when the hold has ended then.
    pub again: bool,
}

/// SELF-CONTAINED: what one group was charged, with everything that settling it needs.
#[derive(Debug, Clone)]
pub struct Claim {
    pub group: String,
    pub label: String,
    pub unit: Unit,
    pub quota: Option<u128>,
    pub hard: bool,
    pub bounds: (i64, i64),
    /// None: its window of that time was gone.
    pub window: Option<usize>,
    pub charge: u128,
    pub measures: Vec<Measure>,
    pub committed: Option<u128>,
    pub counted: Option<Counted>,
    /// How often its window had been reset when it was committed.
    pub resets: u64,
}

/// What a reservation has counted in a group that is measured by quantities, since it was committed and perhaps refunded in part.
#[derive(Debug, Clone)]
pub struct Counted {
    pub terms: Vec<Term>,
    /// With what was refunded taken off its quantities.
    pub event: Event,
    pub charge: u128,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    Held,
    Committed,
    Released,
    Expired,
}

/// What a request id stands for.
#[derive(Debug, Clone)]
pub enum Id {
    Reserve { body: String, of: u32 },
    Track { body: String, number: u32, claims: Vec<(Claim, u128)>, forgotten: i64 },
    Reset { body: String, forgotten: i64 },
}

impl Subscription {
    pub fn ended(&self, now: i64) -> bool {
        self.end.is_some_and(|end| now >= end)
    }
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Committed => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }

    pub fn shown(self) -> v1::ReservationState {
        match self {
            Self::Held => v1::ReservationState::Held,
            Self::Committed => v1::ReservationState::Committed,
            Self::Released => v1::ReservationState::Released,
            Self::Expired => v1::ReservationState::Expired,
        }
    }
}

impl Reservation {
    /// `now == deadline` is expired.
    pub fn state_at(&self, now: i64) -> State {
        if self.state == State::Held && now >= self.deadline { State::Expired } else { self.state }
    }
}

impl User {
    pub fn new(name: String, now: i64) -> Self {
        Self {
            name,
            now,
            stored: None,
            seen: None,
            furthest: i64::MIN,
            subscription: None,
            default_used: None,
            windows: Windows::default(),
            reservations: BTreeMap::new(),
            reserved: BTreeSet::new(),
            ids: BTreeMap::new(),
        }
    }

    /// Everything goes.
    pub fn delete(&mut self) {
        *self = Self { reserved: std::mem::take(&mut self.reserved), ..Self::new(self.name.clone(), self.now) };
    }

    /// ONE-CLOCK: the user's time, where Redis's clock says `clock`. A stored time that is too far ahead of that was wrong: every live
    /// hold lapses. Returns whether it was.
    pub fn tick(&mut self, clock: i64, settlement_ms: i64) -> bool {
        let stored = self.stored.unwrap_or(clock);
        if stored - clock <= FARTHEST_AHEAD {
            self.now = clock.max(stored);
            return false;
        }
        self.now = clock;
        self.windows.corrected(clock);
        for lapsed in self.reservations.values_mut().filter(|lapsed| lapsed.by_clock) {
            lapsed.again = true;
        }
        // Also one that has lapsed by another wrong time: no deadline in the future belongs to a hold that has lapsed.
        let lapses = |held: &&mut Reservation| {
            held.state_at(clock) == State::Held || (held.state == State::Expired && held.deadline > clock)
        };
        for held in self.reservations.values_mut().filter(lapses) {
            held.state = State::Expired;
            held.deadline = clock;
            held.by_clock = true;
            held.remembered = held.forgotten.min(clock + settlement_ms);
        }
        true
    }

    fn live(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values().filter(|reservation| reservation.state_at(self.now) == State::Held)
    }

    /// The live reservations, by the operations that made them.
    pub fn live_ones(&self) -> Vec<u32> {
        let live = self.reservations.iter().filter(|(_, reservation)| reservation.state_at(self.now) == State::Held);
        live.map(|(of, _)| *of).collect()
    }

    /// What live reservations hold of a window.
    pub fn held(&self, window: usize) -> u128 {
        self.live()
            .flat_map(|reservation| &reservation.claims)
            .filter(|claim| claim.window == Some(window))
            .map(|claim| claim.charge)
            .sum()
    }

    /// Used and held of a window.
    pub fn counted(&self, window: usize) -> u128 {
        self.windows[window].used + self.held(window)
    }

    pub fn earliest_deadline(&self) -> Option<i64> {
        self.live().map(|reservation| reservation.deadline).min()
    }

    /// Whether a memory is still there. SPEC is silent about what was forgotten by a wrong time.
    fn remembers(&self, remembered: i64, forgotten: i64) -> bool {
        let perhaps = self.now >= remembered || forgotten <= self.furthest;
        if perhaps && self.now < forgotten {
            self.windows.silent.set(true);
        }
        self.now < forgotten
    }

    pub fn remembers_reservation(&self, of: u32) -> bool {
        self.reservations.get(&of).is_some_and(|this| self.remembers(this.remembered, this.forgotten))
    }

    /// What the request id stands for, unless that is forgotten.
    pub fn recall(&self, request_id: &str) -> Option<Id> {
        let id = self.ids.get(request_id)?;
        let remembered = match id {
            Id::Reserve { of, .. } => self.remembers_reservation(*of),
            Id::Track { forgotten, .. } | Id::Reset { forgotten, .. } => self.remembers(*forgotten, *forgotten),
        };
        remembered.then(|| id.clone())
    }

    /// When the reservation or the tracked event of this operation is forgotten.
    pub fn forgotten(&self, of: u32) -> Option<i64> {
        let tracked = self.ids.values().find_map(|id| match id {
            Id::Track { number, forgotten, .. } if *number == of => Some(*forgotten),
            _ => None,
        });
        self.reservations.get(&of).map(|reservation| reservation.forgotten).or(tracked)
    }

    /// Whether what is counted in this window is still known.
    pub fn is_kept(&self, window: Option<usize>) -> bool {
        window.is_some_and(|window| self.windows.is_kept(window, self.now))
    }

    /// Whether a window or a reservation of the user's is left.
    pub fn has_left_something(&self) -> bool {
        self.windows.is_any_kept(self.now) || self.reservations.keys().any(|of| self.remembers_reservation(*of))
    }

    pub fn bounds(&self, window: usize) -> (i64, i64) {
        (self.windows[window].start, self.windows[window].end)
    }
}
