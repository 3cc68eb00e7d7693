//! The windows of one user, as SPEC section 5 has them: a list of every window that was ever opened, and plain questions over it.

#[path = "boundaries.rs"]
mod boundaries;
#[path = "late.rs"]
mod late;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use crate::sketch::{Anchor, Group, Period, Unit};

use boundaries::{Frame, end_of_period};
pub use boundaries::{NEVER, frame};

/// At most so many windows of one group id are kept.
const MOST: usize = 8;

/// What a group asks of its windows: as a plan has it, for a user with this subscription.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub group: &'a Group,
    pub zone: &'a str,
    /// The cycle anchor of the user's subscription, whether or not the group asks for it.
    pub cycle_anchor: Option<i64>,
}

impl Wanted<'_> {
    /// The anchor kind, as the anchor to count from: none is the calendar. A lifetime window has no anchor kind; without a
    /// subscription, `subscription_start` means calendar windows.
    fn anchor(&self) -> Anchored {
        match (self.group.anchor, self.cycle_anchor) {
            _ if self.group.period == Period::Lifetime => Anchored::Calendar,
            (Anchor::SubscriptionStart, Some(anchor)) => Anchored::From(anchor),
            (Anchor::FirstUse, _) => Anchored::FirstUse,
            _ => Anchored::Calendar,
        }
    }

    fn is_first_use(&self) -> bool {
        self.anchor() == Anchored::FirstUse
    }

    /// The frame at a time, without regard to other windows.
    fn natural(&self, at: i64) -> Frame {
        frame(self.group.period, self.zone, self.anchor().from(), at)
    }
}

/// What windows are counted from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Anchored {
    Calendar,
    From(i64),
    FirstUse,
}

impl Anchored {
    fn from(self) -> Option<i64> {
        match self {
            Self::From(anchor) => Some(anchor),
            Self::Calendar | Self::FirstUse => None,
        }
    }

    fn is_same_kind(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// One window. Its identity is (group id, unit, period, anchor kind, start).
#[derive(Debug, Clone)]
pub struct Window {
    group: String,
    unit: Unit,
    period: Period,
    anchor: Anchored,
    pub start: i64,
    pub end: i64,
    pub used: u128,
    /// How often it was reset.
    pub resets: u64,
    /// The call opens it with its event.
    fresh: bool,
    /// It is kept while it is the current or the previous window: until the end of the one after it.
    kept_until: i64,
    /// The cycle anchor moved away from it while it was open.
    left: bool,
    /// Others took its place: it is kept no more, and does not come back.
    gone: bool,
    /// As there were more than eight.
    pushed_out: bool,
    /// SPEC is silent on whether it is gone. Either the anchor moved on by a catalog that counts this group by the calendar, or two other
    /// windows have opened since, although the end of the one after it is still to come: catalogs with other time zones, or anchors.
    perhaps: bool,
    /// The higher, the later it was last in effect.
    turn: u64,
    /// The same, of when it was opened, or its plan was entered.
    entered: u64,
    /// A wrong time opened it, and it waits for its start.
    set_aside: bool,
}

/// A group as far as its windows go on, whatever its anchor kind.
type Series = (String, Unit, Period);

/// Every window that a user ever had.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    /// In the order in which they were opened; a claim names its own by its place here.
    all: Vec<Window>,
    /// By group, unit and period: the window that came into effect last, and waits for its end. A catalog edit of the anchor does not change it, nor
    /// does another replica's catalog. None where another plan was entered or the anchor was moved, and nothing was counted since.
    in_effect: BTreeMap<Series, usize>,
    /// A plan was entered whose windows open with their first event, which has not come. Another replica may go on in a window of its own:
    /// SPEC does not say whether that stands for the first one as well.
    waiting: BTreeSet<Series>,
    turns: u64,
    /// The latest time at which this user was ever asked about. Where the clock went back since, some windows were perhaps closed by that
    /// time, and perhaps not: SPEC is silent.
    furthest: i64,
    /// What happened, for the coverage.
    pub notes: RefCell<Vec<&'static str>>,
    /// The answer depends on what SPEC does not say.
    pub silent: Cell<bool>,
}

/// A window that GetUsage shows: one that is kept, or one in which nothing happened.
pub enum Shown {
    Kept(usize),
    Empty(i64, i64),
    /// It opens with the first event.
    Unopened,
}

impl Window {
    pub fn is_of(&self, group: &Group) -> bool {
        self.group == group.id && self.unit == group.unit && self.period == group.period
    }

    fn is_same_kind(&self, other: &Self) -> bool {
        self.group == other.group
            && self.unit == other.unit
            && self.period == other.period
            && self.anchor.is_same_kind(other.anchor)
    }

    pub fn is_anchored(&self) -> bool {
        self.anchor.from().is_some()
    }

    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// It is open, although no event has opened it.
    pub fn is_filled(&mut self) {
        self.fresh = false;
    }

    /// One that starts in the future is set aside until then.
    fn is_open(&self, now: i64) -> bool {
        self.start <= now && now < self.end
    }
}

impl std::ops::Index<usize> for Windows {
    type Output = Window;

    fn index(&self, window: usize) -> &Window {
        &self.all[window]
    }
}

impl std::ops::IndexMut<usize> for Windows {
    fn index_mut(&mut self, window: usize) -> &mut Window {
        &mut self.all[window]
    }
}

impl Windows {
    pub fn iter(&self) -> impl Iterator<Item = &Window> {
        self.all.iter()
    }

    /// The user was asked about at this time.
    pub fn asked(&mut self, now: i64) {
        self.furthest = self.furthest.max(now);
        self.all.iter_mut().for_each(|window| window.fresh = false);
    }

    /// The time was wrong, and this is the right one.
    pub fn corrected(&mut self, now: i64) {
        for window in self.all.iter_mut().filter(|window| window.start > now && !window.gone && !window.set_aside) {
            window.set_aside = true;
            self.notes.borrow_mut().push("a window is set aside");
        }
    }

    pub fn note(&self, what: &'static str) {
        self.notes.borrow_mut().push(what);
    }

    /// Whether what is counted in this window is still known.
    pub fn is_kept(&self, window: usize, now: i64) -> bool {
        let this = &self.all[window];
        let kept = !this.gone && now < this.kept_until;
        if kept && this.kept_until <= self.furthest || this.perhaps && now < this.kept_until {
            self.silent.set(true);
        }
        // A window of the same identity that was opened again: is it this one?
        let again = |other: &&Window| {
            !other.gone && other.is_same_kind(this) && other.start == this.start && now < other.kept_until
        };
        if this.gone && self.all.iter().any(|other| again(&other)) {
            self.silent.set(true);
        }
        kept
    }

    /// The windows that are kept, with group and unit.
    pub fn kept(&self, now: i64) -> impl Iterator<Item = (&str, Unit, &Window)> {
        let kept = self.all.iter().filter(move |window| !window.gone && now < window.kept_until);
        kept.map(|window| (window.group.as_str(), window.unit, window))
    }

    /// Whether any window is kept.
    pub fn is_any_kept(&self, now: i64) -> bool {
        (0..self.all.len()).any(|window| self.is_kept(window, now))
    }

    /// The windows of this group, unit and period that are kept and have started.
    fn started<'a>(&'a self, group: &'a Group, now: i64) -> impl Iterator<Item = usize> + 'a {
        (0..self.all.len()).filter(move |window| {
            let this = &self.all[*window];
            this.is_of(group) && !this.gone && this.start <= now && self.is_kept(*window, now)
        })
    }

    /// The window that the group would open: it starts no earlier than the one before it ended.
    fn frame(&self, wanted: Wanted<'_>, now: i64) -> Frame {
        let mut frame = wanted.natural(now);
        let perhaps = |window: &&Window| {
            let ended = window.end <= now && now < window.kept_until;
            window.perhaps && window.is_of(wanted.group) && ended && frame.start < window.end
        };
        if self.all.iter().any(|window| perhaps(&window)) {
            self.silent.set(true);
        }
        let last = self.in_effect.get(&series(wanted.group)).copied();
        for before in self.started(wanted.group, now).filter(|window| self.all[*window].end <= now) {
            let this = &self.all[before];
            if this.anchor == wanted.anchor() || (last == Some(before) && !this.is_anchored()) {
                frame.start = frame.start.max(this.end);
            } else if frame.start < this.end {
                // Is it still the one before, after the anchor was moved, or when another came in between?
                self.silent.set(true);
            }
        }
        frame
    }

    /// Whether the user's cycle anchor was moved since the window came into effect, to where another window starts.
    fn is_moved_away(&self, window: usize, wanted: Wanted<'_>, now: i64) -> bool {
        let this = &self.all[window];
        this.anchor.from().is_some_and(|anchor| {
            let moved =
                Wanted { group: &Group { anchor: Anchor::SubscriptionStart, ..wanted.group.clone() }, ..wanted };
            // Where the anchor says that it starts, or no earlier than the end of the one before.
            let counted = moved.natural(now).start;
            wanted.cycle_anchor != Some(anchor) && ![counted, self.frame(moved, now).start].contains(&this.start)
        })
    }

    /// The open window that goes on for this group: its own one, whatever plans, catalogs and replicas came in between; else the one in
    /// effect, though it is of another anchor kind: a catalog edit of the anchor waits until that ends.
    fn find(&self, wanted: Wanted<'_>, now: i64) -> Option<usize> {
        let open = |window: &usize| self.all[*window].is_open(now) && !self.is_moved_away(*window, wanted, now);
        let is_own = |window: &usize| self.all[*window].anchor.is_same_kind(wanted.anchor());
        let perhaps = |window: &usize| self.all[*window].perhaps && self.all[*window].is_of(wanted.group);
        if (0..self.all.len()).filter(perhaps).filter(open).any(|window| is_own(&window)) {
            self.silent.set(true);
        }
        let own =
            self.started(wanted.group, now).filter(open).filter(is_own).max_by_key(|window| self.all[*window].turn);
        let in_effect = || self.in_effect.get(&series(wanted.group)).copied();
        // A wrong time has closed the one before. Is that in effect once more?
        if own.is_none() && in_effect().is_some_and(|window| self.all[window].start > now) {
            self.silent.set(true);
        }
        // Nor does SPEC say whether one of another kind that was set aside is in effect from its start on.
        let returns = |window: &Window| window.set_aside && window.is_of(wanted.group) && window.is_open(now);
        if own.is_none() && self.all.iter().any(|window| !window.gone && returns(window)) {
            self.silent.set(true);
        }
        let waits = |window: &usize| {
            let is_open = self.all[*window].is_open(now) && self.is_kept(*window, now);
            // A replica that moved the anchor and does not have this group has left the window as it was.
            if is_open && self.is_moved_away(*window, wanted, now) {
                self.silent.set(true);
            }
            is_open
        };
        let stands = || {
            let window = in_effect().filter(waits)?;
            if self.waiting.contains(&series(wanted.group)) {
                self.silent.set(true);
            }
            // Replicas disagree on the anchor kind, and the group's own window, which was opened or entered later, has ended first. Does the one that another
            // replica goes on in stand here as well?
            let pushed_out = (0..self.all.len()).filter(|other| {
                let other = &self.all[*other];
                other.is_of(wanted.group) && other.pushed_out && other.start <= now && now < other.kept_until
            });
            let is_later = |other: usize| other > window || self.all[other].entered > self.all[window].entered;
            let mut others = self.started(wanted.group, now).chain(pushed_out);
            if others.any(|other| is_own(&other) && is_later(other)) {
                self.silent.set(true);
            }
            Some(window)
        };
        own.or_else(stands)
    }

    /// The group's window now; opens one if none goes on.
    pub fn current(&mut self, wanted: Wanted<'_>, now: i64) -> usize {
        let before = self.in_effect.get(&series(wanted.group)).copied();
        let found = self.find(wanted, now);
        let window = found.unwrap_or_else(|| self.open(wanted, now));
        self.comes_into_effect(window, wanted, now);
        // A call by another catalog, which finds its own window, does not change which one is in effect.
        if let Some(before) = before.filter(|before| found.is_some() && self.all[*before].is_open(now)) {
            self.in_effect.insert(series(wanted.group), before);
        }
        window
    }

    fn comes_into_effect(&mut self, window: usize, wanted: Wanted<'_>, now: i64) {
        let last_of_id = self.all.iter().filter(|other| other.group == wanted.group.id).map(|other| other.turn).max();
        let this = &self.all[window];
        if !this.anchor.is_same_kind(wanted.anchor()) {
            self.note("a catalog edit of the anchor waits for the window's end");
        }
        if this.turn > 0 && last_of_id != Some(this.turn) {
            self.note("a window goes on after others of its group id");
        }
        let moved = wanted.cycle_anchor.filter(|anchor| this.anchor.from().is_some_and(|stands| stands != *anchor));
        if let Some(anchor) = moved {
            self.note("a moved anchor keeps the window with the same start");
            let after = frame(wanted.group.period, wanted.zone, Some(anchor), self.all[window].end);
            (self.all[window].anchor, self.all[window].kept_until) = (Anchored::From(anchor), after.end);
        }
        if std::mem::take(&mut self.all[window].set_aside) {
            self.note("a window that was set aside goes on");
        }
        self.turns += 1;
        (self.all[window].left, self.all[window].turn) = (false, self.turns);
        self.in_effect.insert(series(wanted.group), window);
        let left = (0..self.all.len()).filter(|other| {
            let other = &self.all[*other];
            other.is_same_kind(&self.all[window]) && !other.left && other.is_open(now) && other.turn < self.turns
        });
        for left in left.collect::<Vec<_>>() {
            self.leave(left, wanted);
        }
    }

    fn open(&mut self, wanted: Wanted<'_>, now: i64) -> usize {
        if wanted.is_first_use() {
            return self.open_with_event(wanted, now, now);
        }
        let Frame { start, end, kept, .. } = self.frame(wanted, now);
        self.open_from(wanted, now, (start, end, kept))
    }

    /// The window opens with an event at `start`, and lasts one period. It is kept for one more; the one before it, while it is open.
    fn open_with_event(&mut self, wanted: Wanted<'_>, now: i64, start: i64) -> usize {
        let lasts = end_of_period(wanted.group.period, wanted.zone, start) - start;
        // One that a wrong time opened comes into force at its start.
        let set_aside = self.all.iter().filter(|other| {
            !other.gone && other.is_of(wanted.group) && other.anchor == Anchored::FirstUse && other.start > now
        });
        let end = set_aside.map(|other| other.start).chain([start + lasts]).min().expect("there is one");
        let opened = self.open_from(wanted, now, (start, end, end + lasts));
        let of_kind = |window: &usize| {
            let other = &self.all[*window];
            !other.gone && other.is_same_kind(&self.all[opened]) && other.end <= start && now < other.kept_until
        };
        if let Some(previous) = (0..opened).filter(of_kind).max_by_key(|window| self.all[*window].end) {
            self.all[previous].kept_until = self.all[previous].kept_until.max(end);
        }
        self.all[opened].fresh = true;
        self.note("a window opens with its first event");
        opened
    }

    fn open_from(&mut self, wanted: Wanted<'_>, now: i64, (start, end, kept): (i64, i64, i64)) -> usize {
        let Group { id, unit, period, .. } = wanted.group;
        if self.all.iter().any(|other| !other.gone && other.group == *id && !other.is_of(wanted.group)) {
            self.note("a window beside one of another unit or period");
        }
        self.all.push(Window {
            group: id.clone(),
            unit: *unit,
            period: *period,
            anchor: wanted.anchor(),
            start,
            end,
            used: 0,
            resets: 0,
            fresh: false,
            kept_until: kept,
            left: false,
            gone: false,
            pushed_out: false,
            perhaps: false,
            turn: 0,
            entered: self.turns,
            set_aside: false,
        });
        let opened = self.all.len() - 1;
        self.keep_the_previous(opened, now);
        self.keep_few(opened, now);
        opened
    }

    /// Of a kind, the current and the previous window are kept, and those set aside.
    fn keep_the_previous(&mut self, opened: usize, now: i64) {
        let kind = self.all[opened].clone();
        let of_kind = |window: &Window| !window.gone && window.is_same_kind(&kind) && window.start <= now;
        let others = 0..opened;
        let previous =
            others.clone().filter(|window| of_kind(&self.all[*window])).max_by_key(|window| self.all[*window].turn);
        for other in others {
            if of_kind(&self.all[other]) && Some(other) != previous {
                (self.all[other].gone, self.all[other].perhaps) = (true, true);
            }
        }
    }

    /// Of one group id, the window that ends first goes first.
    fn keep_few(&mut self, opened: usize, now: i64) {
        loop {
            let kept = |window: &usize| {
                let this = &self.all[*window];
                this.group == self.all[opened].group && !this.gone && now < this.kept_until
            };
            let kept: Vec<_> = (0..opened).filter(kept).collect();
            if kept.len() < MOST {
                return;
            }
            let first = kept.iter().map(|window| self.all[*window].end).min().expect("there are some");
            let mut ends_first = kept.into_iter().filter(|window| self.all[*window].end == first);
            let goes = ends_first.next().expect("one of them ends first");
            if ends_first.next().is_some() {
                self.silent.set(true);
            }
            self.note("more than eight windows of a group id");
            (self.all[goes].gone, self.all[goes].pushed_out) = (true, true);
        }
    }

    /// The cycle anchor was moved away from an open window: of those left behind only the last one is kept.
    fn leave(&mut self, window: usize, wanted: Wanted<'_>) {
        let this = self.all[window].clone();
        for (index, other) in self.all.iter_mut().enumerate() {
            if index != window && other.is_same_kind(&this) && other.left && !other.gone {
                (other.gone, other.perhaps) = (true, wanted.anchor().from().is_none());
                self.notes.borrow_mut().push("only the last window left behind is kept");
            }
        }
        self.all[window].left = true;
    }

    /// A plan with this group is entered, or the cycle anchor is moved: the group goes on in its own kept window, if there is one.
    /// Returns that.
    pub fn realign(&mut self, wanted: Wanted<'_>, now: i64) -> Option<usize> {
        let open = |window: &usize| self.all[*window].is_open(now) && self.is_kept(*window, now);
        let before = self.in_effect.get(&series(wanted.group)).copied().filter(open);
        let own = before.filter(|window| {
            self.all[*window].anchor.is_same_kind(wanted.anchor()) && !self.is_moved_away(*window, wanted, now)
        });
        if own.is_none() && before.is_some() {
            self.in_effect.remove(&series(wanted.group));
        }
        // What takes effect is the kind that the group has here; a replica with another catalog waits until that window ends.
        let goes_on = own.or_else(|| self.find(wanted, now));
        // One that opens with its first event does not open now. Nothing stands meanwhile.
        if goes_on.is_none() && before.is_some() && wanted.is_first_use() {
            self.waiting.insert(series(wanted.group));
        }
        let opens = before.filter(|_| goes_on.is_none() && !wanted.is_first_use());
        let goes_on = goes_on.or_else(|| opens.map(|_| self.open(wanted, now)));
        if let Some(window) = goes_on {
            self.comes_into_effect(window, wanted, now);
            self.all[window].entered = self.turns;
        }
        if let Some(before) =
            before.filter(|window| goes_on != Some(*window) && self.is_moved_away(*window, wanted, now))
        {
            self.note("a moved anchor leaves a window behind");
            if !self.all[before].left {
                self.leave(before, wanted);
            }
        }
        goes_on
    }

    /// For GetUsage: the window at a time, if that is in the current or the previous one.
    pub fn at(&mut self, wanted: Wanted<'_>, now: i64, at: Option<i64>) -> Option<Shown> {
        let before = self.clone();
        if wanted.is_first_use() && self.find(wanted, now).is_none() {
            return self.before_first_use(wanted, now, at);
        }
        let current = self.current(wanted, now);
        let this = &self.all[current];
        let Some(at) = at.filter(|at| !(this.start..this.end).contains(at)) else { return Some(Shown::Kept(current)) };
        let others: Vec<_> = before.started(wanted.group, now).filter(|other| *other != current).collect();
        let contains = |window: &usize| (self.all[*window].start..self.all[*window].end).contains(&at);
        let perhaps = |window: &usize| self.all[*window].perhaps && self.all[*window].is_of(wanted.group);
        if (0..self.all.len()).filter(perhaps).any(|window| contains(&window)) {
            self.silent.set(true);
        }
        // SPEC names one previous window, of the group as it is, and does not say whether it is one that the anchor left behind.
        let unclear = |other: &usize| !self.all[*other].is_same_kind(this) || self.all[*other].left;
        if others.len() > 1 || others.iter().any(unclear) {
            self.silent.set(true);
        }
        let empty = wanted.natural(now).previous.filter(|_| !wanted.is_first_use());
        let empty = empty.filter(|(from, to)| at >= *from && at < *to && at < this.start);
        if let Some(previous) = others.first() {
            // The one before was another than this catalog would count. Is the period between them shown, in which nothing happened?
            if !contains(previous) && empty.is_some() {
                self.silent.set(true);
            }
            return Some(Shown::Kept(*previous)).filter(|_| contains(previous));
        }
        if this.anchor != wanted.anchor() {
            self.silent.set(true);
        }
        empty.map(|(from, to)| Shown::Empty(from, to))
    }

    /// For GetUsage, while no window is open that opens with its first event: the one that would open now, or an earlier one.
    fn before_first_use(&self, wanted: Wanted<'_>, now: i64, at: Option<i64>) -> Option<Shown> {
        let Some(at) = at else { return Some(Shown::Unopened) };
        if at >= now {
            return Some(Shown::Unopened).filter(|_| at < end_of_period(wanted.group.period, wanted.zone, now));
        }
        let others: Vec<_> = self.started(wanted.group, now).collect();
        if others.len() > 1 || others.iter().any(|other| !self.all[*other].anchor.is_same_kind(wanted.anchor())) {
            self.silent.set(true);
        }
        let contains = |window: &usize| (self.all[*window].start..self.all[*window].end).contains(&at);
        others.into_iter().find(contains).map(Shown::Kept)
    }

    /// The open window that goes on for the group, or the bounds of the one that would open.
    pub fn open_one(&mut self, wanted: Wanted<'_>, now: i64) -> Result<usize, (i64, i64)> {
        if self.find(wanted, now).is_some() {
            return Ok(self.current(wanted, now));
        }
        if wanted.is_first_use() {
            return Err((0, NEVER));
        }
        let Frame { start, end, .. } = self.frame(wanted, now);
        Err((start, end))
    }

    /// Adds a window, as a test needs it.
    pub fn begin(&mut self, group: &str, unit: Unit, (start, end): (i64, i64)) {
        self.all.push(Window {
            group: group.to_owned(),
            unit,
            period: Period::Minute,
            anchor: Anchored::Calendar,
            start,
            end,
            used: 0,
            resets: 0,
            fresh: false,
            kept_until: end,
            left: false,
            gone: false,
            pushed_out: false,
            perhaps: false,
            turn: 0,
            entered: 0,
            set_aside: false,
        });
    }

    /// The window that is in effect, also if it has ended.
    pub fn last(&self, group: &Group) -> Option<usize> {
        self.in_effect.get(&series(group)).copied()
    }
}

fn series(group: &Group) -> Series {
    (group.id.clone(), group.unit, group.period)
}
