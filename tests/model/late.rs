//! The windows of what is tracked with a time.

use super::*;

impl Windows {
    /// For Track with a time: the window of a time that has passed, the current or the previous one, opened if nothing was counted in it so
    /// far. None: it is gone.
    pub fn of_time(&mut self, wanted: Wanted<'_>, now: i64, at: i64) -> Option<usize> {
        let open = self.find(wanted, now);
        if let Some(open) = open.filter(|open| self.all[*open].start <= at) {
            self.note("a track with a time in the current window");
            return Some(if at == now { self.current(wanted, now) } else { open });
        }
        let contains = |window: &usize| (self.all[*window].start..self.all[*window].end).contains(&at);
        // Whether one that is perhaps gone, or of another kind, is the window of that time is not said.
        let unclear = |window: &Window| {
            window.is_of(wanted.group)
                && (window.perhaps || window.left || !window.anchor.is_same_kind(wanted.anchor()))
                && window.start <= at
                && at < window.end
                && now < window.kept_until
        };
        if self.all.iter().any(unclear) {
            self.silent.set(true);
        }
        let stored: Vec<_> = self.started(wanted.group, now).filter(contains).collect();
        if stored.len() > 1 {
            self.silent.set(true);
        }
        if let Some(window) = stored.first() {
            self.note("a track with a time in the previous window");
            return Some(*window);
        }
        if wanted.is_first_use() {
            return self.of_first_use(wanted, now, at, open);
        }
        if open.is_none() && self.frame(wanted, now).start <= at {
            return Some(self.current(wanted, now));
        }
        let natural = wanted.natural(now);
        let (from, to) = natural.previous.filter(|(from, to)| *from <= at && at < *to)?;
        // Another window has a part of that period: whether the rest of it is a window is not said.
        let overlaps = |window: &Window| {
            let known = !window.gone || window.perhaps;
            known && window.is_of(wanted.group) && window.start < to && window.end > from && now < window.kept_until
        };
        let count = self.all.iter().filter(|window| window.group == wanted.group.id && !window.gone).count();
        if self.all.iter().any(overlaps) || count >= MOST {
            self.silent.set(true);
        }
        self.note("a track with a time opens the previous window");
        Some(self.open_from(wanted, now, (from, to, natural.end)))
    }

    /// A time before the open window counts in that one; with none open it opens one, if that is not over.
    fn of_first_use(&mut self, wanted: Wanted<'_>, now: i64, at: i64, open: Option<usize>) -> Option<usize> {
        if let Some(open) = open {
            if self.all[open].anchor != Anchored::FirstUse {
                self.silent.set(true);
            }
            self.note("a track with a time before the window that is open");
            return Some(open);
        }
        // What happened before another window ended is not the beginning of one.
        if self.started(wanted.group, now).any(|other| self.all[other].end > at) {
            self.note("a track with a time before a window that has ended");
            return None;
        }
        if end_of_period(wanted.group.period, wanted.zone, at) <= now {
            return None;
        }
        self.note("a track with a time opens the window of its first event");
        let opened = self.open_with_event(wanted, now, at);
        self.comes_into_effect(opened, wanted, now);
        Some(opened)
    }
}
