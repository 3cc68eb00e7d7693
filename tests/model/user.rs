//! One user of the reference model: a clock, a subscription, windows, reservations, request ids.

use std::collections::{BTreeMap, BTreeSet};

use tollgate::grpc::v1;

use crate::operations::Quota;
use crate::sketch::{Event, Group, Measure, Period, Unit};
use crate::windows;

#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    /// ONE-CLOCK: it only ever moves forward.
    pub now: i64,
    pub subscription: Option<Subscription>,
    /// The default plan, once something was counted or held by it without a subscription.
    pub default_used: Option<String>,
    /// Every window there ever was; a claim names its own by its place here.
    pub windows: Vec<Window>,
    /// By group: the current window, and the one before it.
    kept: BTreeMap<String, (usize, Option<usize>)>,
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
    pub overrides: BTreeMap<String, Quota>,
}

#[derive(Debug, Clone)]
pub struct Window {
    unit: Unit,
    period: Period,
    anchor: Option<i64>,
    pub start: i64,
    pub end: i64,
    kept: i64,
    pub used: u128,
}

#[derive(Debug, Clone)]
pub struct Reservation {
    pub event: Event,
    pub claims: Vec<Claim>,
    pub deadline: i64,
    pub forgotten: i64,
    pub state: State,
    pub late: bool,
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
    pub window: usize,
    pub charge: u128,
    pub measures: Vec<Measure>,
    pub committed: Option<u128>,
    pub refunded: u128,
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
            subscription: None,
            default_used: None,
            windows: Vec::new(),
            kept: BTreeMap::new(),
            reservations: BTreeMap::new(),
            reserved: BTreeSet::new(),
            ids: BTreeMap::new(),
        }
    }

    /// Everything goes, but time does not go back.
    pub fn delete(&mut self) {
        *self = Self { reserved: std::mem::take(&mut self.reserved), ..Self::new(self.name.clone(), self.now) };
    }

    fn live(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values().filter(|reservation| reservation.state_at(self.now) == State::Held)
    }

    /// What live reservations hold of a window.
    pub fn held(&self, window: usize) -> u128 {
        self.live()
            .flat_map(|reservation| &reservation.claims)
            .filter(|claim| claim.window == window)
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

    /// What the request id stands for, unless that is forgotten.
    pub fn recall(&self, request_id: &str) -> Option<Id> {
        let id = self.ids.get(request_id)?;
        let forgotten = match id {
            Id::Reserve { of, .. } => self.reservations[of].forgotten,
            Id::Track { forgotten, .. } => *forgotten,
        };
        (self.now < forgotten).then(|| id.clone())
    }

    /// When the reservation or the tracked event of this operation is forgotten.
    pub fn forgotten(&self, of: u32) -> Option<i64> {
        let tracked = self.ids.values().find_map(|id| match id {
            Id::Track { number, forgotten, .. } if *number == of => Some(*forgotten),
            _ => None,
        });
        self.reservations.get(&of).map(|reservation| reservation.forgotten).or(tracked)
    }

    /// The current and the previous window are kept, each until the end of the window after it.
    pub fn is_kept(&self, window: usize) -> bool {
        self.now < self.windows[window].kept
            && self.kept.values().any(|(current, previous)| *current == window || *previous == Some(window))
    }

    /// The window that was opened last, also if it has ended.
    pub fn current(&self, group: &str) -> Option<usize> {
        self.kept.get(group).map(|(current, _)| *current)
    }

    pub fn has_window(&self, group: &str) -> bool {
        let kept = |window: usize| self.now < self.windows[window].kept;
        self.kept.get(group).is_some_and(|(current, previous)| kept(*current) || previous.is_some_and(kept))
    }

    fn is_open(&self, window: usize, group: &Group) -> bool {
        let window = &self.windows[window];
        window.unit == group.unit && window.period == group.period && self.now < window.end
    }

    /// The group's window now. One that is open stands until its end. Else the one before it, if that is open (it was replaced
    /// before its end) and of the same anchor; else a new one.
    pub fn window(&mut self, group: &Group, anchor: Option<i64>, zone: &str) -> usize {
        if let Some((current, previous)) = self.kept.get(&group.id).copied() {
            if self.is_open(current, group) {
                return current;
            }
            if let Some(previous) = self.way_back(group, anchor, previous) {
                self.kept.insert(group.id.clone(), (previous, Some(current)));
                return previous;
            }
        }
        self.open(group, anchor, zone)
    }

    fn way_back(&self, group: &Group, anchor: Option<i64>, previous: Option<usize>) -> Option<usize> {
        previous.filter(|previous| {
            self.is_open(*previous, group) && self.windows[*previous].anchor == anchor_of(group, anchor)
        })
    }

    fn open(&mut self, group: &Group, anchor: Option<i64>, zone: &str) -> usize {
        let mut frame = windows::frame(group.period, zone, anchor_of(group, anchor), self.now);
        let mut previous = None;
        if let Some((before, _)) = self.kept.get(&group.id).copied() {
            let old = &self.windows[before];
            let ended = self.now >= old.end;
            // Windows of one kind do not overlap.
            if ended && old.unit == group.unit && old.period == group.period {
                frame.start = frame.start.max(old.end);
            }
            let precedes = old.end > frame.previous.map_or(0, |previous| previous.0);
            previous = Some(before).filter(|_| !ended || precedes);
        }
        let anchor = anchor_of(group, anchor);
        let window = Window {
            unit: group.unit,
            period: group.period,
            anchor,
            start: frame.start,
            end: frame.end,
            kept: frame.kept,
            used: 0,
        };
        self.windows.push(window);
        let opened = self.windows.len() - 1;
        self.kept.insert(group.id.clone(), (opened, previous));
        opened
    }

    /// The same, for a subscription that may have moved the anchor: that starts a new window at 0.
    pub fn realigned(&mut self, group: &Group, anchor: Option<i64>, zone: &str) -> usize {
        let current = self.window(group, anchor, zone);
        let wanted = anchor_of(group, anchor);
        if self.windows[current].anchor == wanted {
            return current;
        }
        let (_, previous) = self.kept[&group.id];
        if let Some(previous) = self.way_back(group, anchor, previous) {
            self.kept.insert(group.id.clone(), (previous, Some(current)));
            return previous;
        }
        let frame = windows::frame(group.period, zone, anchor_of(group, anchor), self.now);
        let window = &mut self.windows[current];
        if (window.start, window.end) == (frame.start, frame.end) {
            (window.anchor, window.kept, window.used) = (wanted, frame.kept, 0);
            return current;
        }
        self.open(group, anchor, zone)
    }

    /// For GetUsage: the window at a time, if that is in the current or the previous one.
    pub fn window_at(&mut self, group: &Group, anchor: Option<i64>, zone: &str, at: Option<i64>) -> Option<Shown> {
        let current = self.window(group, anchor, zone);
        let (start, end) = self.bounds(current);
        let Some(at) = at.filter(|at| !(start..end).contains(at)) else { return Some(Shown::Kept(current)) };
        let kept = self.kept[&group.id].1.filter(|previous| {
            let previous = &self.windows[*previous];
            previous.unit == group.unit && previous.period == group.period && self.now < previous.kept
        });
        if let Some(previous) = kept {
            let (start, end) = self.bounds(previous);
            return (start..end).contains(&at).then_some(Shown::Kept(previous));
        }
        let (from, to) = windows::frame(group.period, zone, anchor_of(group, anchor), self.now).previous?;
        (at >= from && at < to && at < start).then_some(Shown::Empty(from, to))
    }

    pub fn bounds(&self, window: usize) -> (i64, i64) {
        (self.windows[window].start, self.windows[window].end)
    }
}

/// A window that GetUsage shows: one that is kept, or one in which nothing happened.
pub enum Shown {
    Kept(usize),
    Empty(i64, i64),
}

/// A lifetime window has no anchor, whatever the catalog says.
fn anchor_of(group: &Group, anchor: Option<i64>) -> Option<i64> {
    anchor.filter(|_| group.anchored && group.period != Period::Lifetime)
}
