//! One user of the reference model: a clock, a subscription, windows, reservations, request ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tollgate::grpc::v1;

use crate::operations::{Actual, Quota};
use crate::sketch::{Event, LARGEST, Measure, Plan, Term, Unit};
use crate::windows::{Window, Windows};

/// A stored time that is further ahead of Redis's than this was wrong.
pub const FARTHEST_AHEAD: i64 = 5 * 60_000;

/// So long after its Reserve a reservation can be held.
const LONGEST: i64 = 24 * 3_600_000;

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
    /// How much each window had used when the ledger was last written; after that, what a plan that was entered has made of it.
    pub written: BTreeMap<usize, u128>,
    /// Thresholds that were told, for the coverage.
    pub told: BTreeSet<(usize, u128)>,
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
    /// The plan as it was then, with the user's own quotas.
    pub plan: Arc<Plan>,
    /// These quotas.
    pub own_quotas: BTreeMap<String, Quota>,
    /// What of the event is kept for who looks it up.
    pub kept: Event,
    /// The quantities that the plan measures.
    pub measured: BTreeSet<String>,
    pub claims: Vec<Claim>,
    /// The plan as the catalog had it.
    pub plan_of_catalog: Arc<Plan>,
    /// What Extend has added to the event, each time.
    pub added: Vec<Actual>,
    /// How much of that was added when the last partial commit counted something.
    pub added_before: usize,
    /// What partial commits have named, each quantity as last named.
    pub named: Actual,
    /// Its deadline counts what is still held, rather than to give it back.
    pub counts: bool,
    /// Its deadline has moved.
    pub is_extended: bool,
    /// When it was made.
    pub made: i64,
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
    /// What was reserved, with what Extend has added.
    pub charge: u128,
    /// By the event as it was committed, if that has happened. Empty: it no longer matches.
    pub measures: Vec<Measure>,
    /// Nothing was reserved here: only the event that was committed matches.
    pub only_committed: bool,
    pub committed: Option<u128>,
    /// The total of the partial commits.
    pub partial: u128,
    /// What commits have counted, less what was given back of it.
    pub tally: Tally,
    /// What the deadline has counted beyond that.
    pub lapsed: Tally,
    pub counted: Option<Counted>,
}

/// What was counted in a window, from first to last: how often the window had been reset by then, and how much.
#[derive(Debug, Clone, Default)]
pub struct Tally(Vec<(u64, u128)>);

/// What a reservation has counted in a group that is measured by quantities, since it was committed and perhaps refunded in part.
#[derive(Debug, Clone)]
pub struct Counted {
    pub terms: Vec<Term>,
    /// With what was refunded taken off its quantities.
    pub event: Event,
    pub charge: u128,
    /// A partial commit before has counted more than these quantities cost.
    pub is_more: bool,
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
    Reserve {
        body: String,
        of: u32,
    },
    /// With what its `add` has cost in each group.
    Extend {
        body: String,
        of: u32,
        costs: Vec<u128>,
    },
    Track {
        body: String,
        number: u32,
        claims: Vec<(Claim, u128)>,
        forgotten: i64,
    },
    Reset {
        body: String,
        forgotten: i64,
    },
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

/// A deadline is a whole tenth of a second, and never before what was asked for.
pub fn rounded_up(at: i64) -> i64 {
    (at + 99).div_euclid(100) * 100
}

impl Reservation {
    /// `now == deadline` is expired.
    pub fn state_at(&self, now: i64) -> State {
        if self.state == State::Held && now >= self.deadline { State::Expired } else { self.state }
    }

    /// The latest deadline that it can have.
    pub fn last_deadline(&self) -> i64 {
        rounded_up(self.made + LONGEST)
    }

    /// Its memory lasts at least so long.
    pub fn is_remembered_until(&mut self, at: i64) {
        self.forgotten = self.forgotten.max(at);
        self.remembered = self.remembered.max(at);
    }

    /// The deadline moves to this time, never to an earlier one; with it goes its memory. Returns whether it has moved.
    pub fn hold_until(&mut self, until: i64, settlement_ms: i64) -> bool {
        let before = self.deadline;
        self.deadline = rounded_up(until).min(self.last_deadline()).max(before);
        self.is_remembered_until(self.deadline + settlement_ms);
        self.is_extended |= self.deadline != before;
        self.deadline != before
    }

    /// Its deadline counts what is still held, if it counts. A window that is gone is looked at by nobody.
    fn count_lapse(&mut self, windows: &mut Windows) {
        for claim in self.claims.iter_mut().filter(|_| self.counts) {
            let window = claim.window.expect("a Reserve has one");
            // No counter passes its maximum, also if `block` has filled it beside the hold.
            windows[window].used = (windows[window].used + claim.hold()).min(LARGEST);
            claim.lapsed.add(windows[window].resets, claim.hold());
        }
        if self.counts {
            windows.note("a deadline counts");
        }
    }

    /// What it was charged in the group of this id.
    pub fn claim(&self, group: &str) -> Option<&Claim> {
        self.claims.iter().find(|claim| claim.group == group)
    }

    /// The claims of the event that was reserved.
    pub fn reserved_claims(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter().filter(|claim| !claim.only_committed)
    }

    /// A partial commit has counted something.
    pub fn is_partly_committed(&self) -> bool {
        self.claims.iter().any(|claim| claim.partial > 0)
    }

    /// Some of what was counted was refunded.
    pub fn is_refunded(&self) -> bool {
        self.claims.iter().any(|claim| claim.refunded() > 0)
    }
}

impl Claim {
    /// Only one of the event that was reserved and the one that was committed matches.
    pub fn is_changed(&self) -> bool {
        self.only_committed || self.measures.is_empty()
    }

    /// What is still held while the reservation is live.
    pub fn hold(&self) -> u128 {
        self.charge.saturating_sub(self.partial)
    }

    /// The reservation's total: by its final commit, else by its partial ones and its deadline.
    pub fn total(&self) -> u128 {
        self.committed.unwrap_or(self.partial + self.lapsed.total())
    }

    /// How much of that was refunded, of what commits have counted.
    pub fn refunded(&self) -> u128 {
        let committed = self.committed.unwrap_or(self.partial);
        self.counted.as_ref().map_or(0, |counted| committed - counted.charge)
    }
}

impl Tally {
    pub fn total(&self) -> u128 {
        self.0.iter().map(|(_, amount)| amount).sum()
    }

    pub fn add(&mut self, resets: u64, amount: u128) {
        self.0.push((resets, amount));
    }

    pub fn append(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// Takes off what was counted last.
    pub fn take(&mut self, amount: u128) -> Self {
        let (mut rest, mut taken) = (amount, Vec::new());
        while rest > 0
            && let Some((resets, last)) = self.0.pop()
        {
            let part = last.min(rest);
            if last > part {
                self.0.push((resets, last - part));
            }
            taken.insert(0, (resets, part));
            rest -= part;
        }
        Self(taken)
    }

    /// How much of it was counted when the window had been reset so often.
    pub fn since(&self, resets: u64) -> u128 {
        self.0.iter().filter(|(then, _)| *then == resets).map(|(_, amount)| amount).sum()
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
            written: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// The windows that have used more than when the ledger was last written: their places, what they had used, and what they have.
    pub fn risen(&self) -> impl Iterator<Item = (usize, u128, u128)> {
        let change = |(index, window): (usize, &Window)| {
            (index, self.written.get(&index).copied().unwrap_or_default(), window.used)
        };
        self.windows.iter().enumerate().map(change).filter(|(_, before, after)| before < after)
    }

    pub fn has_risen(&self) -> bool {
        self.risen().next().is_some()
    }

    /// The ledger is written.
    pub fn note_written(&mut self) {
        self.written = self.windows.iter().map(|window| window.used).enumerate().collect();
    }

    /// What the window has used is not what consumption has made of it, but a reset or a plan that was entered. They cross nothing.
    pub fn begins_anew(&mut self, window: usize) {
        self.written.insert(window, self.windows[window].used);
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
            if held.state == State::Held {
                if held.counts {
                    self.windows.note("a wrong clock lets a hold count");
                }
                held.count_lapse(&mut self.windows);
            }
            held.state = State::Expired;
            held.deadline = clock;
            held.by_clock = true;
            held.remembered = held.forgotten.min(clock + settlement_ms);
        }
        true
    }

    /// What the deadlines that have come count: before anything else that happens then or later.
    pub fn count_lapses(&mut self) {
        let now = self.now;
        let due = |held: &&mut Reservation| held.counts && held.state == State::Held && held.deadline <= now;
        for held in self.reservations.values_mut().filter(due) {
            held.count_lapse(&mut self.windows);
            held.state = State::Expired;
        }
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
            .map(Claim::hold)
            .sum()
    }

    /// Used and held of a window.
    pub fn counted(&self, window: usize) -> u128 {
        self.windows[window].used + self.held(window)
    }

    /// The user's own quotas, while the subscription runs.
    pub fn own_quotas(&self) -> BTreeMap<String, Quota> {
        let running = self.subscription.as_ref().filter(|subscription| !subscription.ended(self.now));
        running.map_or_else(BTreeMap::new, |subscription| subscription.overrides.clone())
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
            Id::Reserve { of, .. } | Id::Extend { of, .. } => self.remembers_reservation(*of),
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
