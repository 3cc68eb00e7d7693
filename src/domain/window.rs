//! Windows: one period of one group, `[start, end)`. Times are milliseconds of the Unix epoch.
//!
//! The windows of a group partition time: each instant is in exactly one. Calendar arithmetic is jiff's.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp, ToSpan as _, ZonedDateTime};

use super::plan::Period;

/// `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first millisecond.
    pub start_ms: i64,
    /// The first millisecond after it.
    pub end_ms: i64,
}

/// The window at a time, and its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// The one before; none if it would begin before the anchor.
    pub previous: Option<Window>,
    /// The window that contains the time.
    pub current: Window,
    /// The end of the one after.
    pub next_end_ms: i64,
}

/// The length of windows that open with their first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstUse {
    /// A window that opens at any time in `[from_ms, until_ms)` lasts this long.
    pub lasts_ms: i64,
    /// The first of these times.
    pub from_ms: i64,
    /// The end of these times.
    pub until_ms: i64,
}

/// Returns the length of a period that is the same at all times, in milliseconds.
fn fixed_ms(period: Period) -> Option<i64> {
    match period {
        Period::Minute => Some(60_000),
        Period::Hourly => Some(3_600_000),
        Period::Length(length) => Some(length.ms()),
        Period::Daily | Period::Weekly | Period::Monthly | Period::Yearly | Period::Lifetime => None,
    }
}

/// The windows between the boundaries of the calendar of `zone`, DST included; weeks start on Monday. Those of a given length are counted
/// from the Unix epoch.
///
/// `None` for [`Period::Lifetime`], and for times whose neighbours leave the calendar (years -9999 to 9999).
#[must_use]
pub fn calendar(period: Period, zone: &TimeZone, at_ms: i64) -> Option<Windows> {
    let bounds = |at_ms| match period {
        Period::Minute => clock_bounds(zone, at_ms, 60_000),
        Period::Hourly => clock_bounds(zone, at_ms, 3_600_000),
        Period::Daily | Period::Weekly | Period::Monthly | Period::Yearly => civil_bounds(period, zone, at_ms),
        Period::Length(length) => {
            let index = at_ms.div_euclid(length.ms());
            let bound = |index| fixed_start(0, length.ms(), index);
            Some(Window { start_ms: bound(index)?, end_ms: bound(index + 1)? })
        }
        Period::Lifetime => None,
    };
    let current = bounds(at_ms)?;
    let previous = bounds(current.start_ms.checked_sub(1)?)?;
    let next = bounds(current.end_ms)?;
    Some(Windows { previous: Some(previous), current, next_end_ms: next.end_ms })
}

/// The windows that follow each other from `anchor_ms`, each counted from there: so a month from the 31st ends on the last day
/// of a short month, and the one after on the 31st again. Daily and longer ones keep the anchor's time of day in `zone`.
///
/// `None` as for [`calendar`].
#[must_use]
pub fn anchored(period: Period, zone: &TimeZone, anchor_ms: i64, at_ms: i64) -> Option<Windows> {
    Timestamp::from_millisecond(anchor_ms).ok()?;
    let start = |index: i64| match fixed_ms(period) {
        Some(length_ms) => fixed_start(anchor_ms, length_ms, index),
        None if period == Period::Lifetime => None,
        None => civil_start(period, zone, anchor_ms, index),
    };
    let guess = match fixed_ms(period) {
        Some(length_ms) => (at_ms.checked_sub(anchor_ms)?).div_euclid(length_ms),
        None => civil_guess(period, zone, anchor_ms, at_ms)?,
    };
    // At most one too few, where the old date is shown again; and a few too many, where months are short or the time of day is
    // still to come.
    let mut index = guess + 1;
    while start(index)? > at_ms {
        index -= 1;
    }
    // A civil day that a zone has skipped is no window: it would have no instants.
    let after = |mut index: i64| {
        let from_ms = start(index)?;
        while start(index)? == from_ms {
            index += 1;
        }
        Some(index)
    };
    let next = after(index)?;
    let current = Window { start_ms: start(index)?, end_ms: start(next)? };
    let next_end_ms = start(after(next)?)?;
    let mut before = index;
    while start(before)? == current.start_ms {
        before -= 1;
    }
    let previous = Window { start_ms: start(before)?, end_ms: current.start_ms };
    let previous = Some(previous).filter(|previous| previous.start_ms >= anchor_ms);
    Some(Windows { previous, current, next_end_ms })
}

/// How long a window lasts that opens at `at_ms`, and for how long that stays so. A day or longer ends at the same time of day in `zone`; a
/// month from the 31st ends on the last day of a short month.
///
/// `None` as for [`calendar`].
#[must_use]
pub fn first_use(period: Period, zone: &TimeZone, at_ms: i64) -> Option<FirstUse> {
    Timestamp::from_millisecond(at_ms).ok()?;
    if let Some(lasts_ms) = fixed_ms(period) {
        return Some(FirstUse { lasts_ms, from_ms: i64::MIN, until_ms: i64::MAX });
    }
    let lasts = |from_ms: i64| Some((civil_start(period, zone, from_ms, 1)? - from_ms).max(1));
    let lasts_ms = lasts(at_ms)?;
    // Where clocks change and months differ, windows that open later are longer or shorter. That happens at full minutes, mostly at full
    // quarters of an hour, and rarely.
    let stays = |step_ms: i64| {
        let from_ms = at_ms.div_euclid(step_ms) * step_ms;
        let until_ms = from_ms + step_ms;
        let same = lasts(from_ms) == Some(lasts_ms) && lasts(until_ms - 1) == Some(lasts_ms);
        same.then_some(FirstUse { lasts_ms, from_ms, until_ms })
    };
    [15 * 60_000, 60_000, 1].into_iter().find_map(stays)
}

fn zoned(zone: &TimeZone, at_ms: i64) -> Option<ZonedDateTime> {
    Some(Timestamp::from_millisecond(at_ms).ok()?.to_zoned_datetime(zone.clone()))
}

/// Returns the window between two multiples of `unit_ms` in local time. Within one offset from UTC these are evenly
/// spaced. Where the offset changes, the window ends with it, so that a repeated hour is two windows and none spans a
/// jump of the clock.
fn clock_bounds(zone: &TimeZone, at_ms: i64, unit_ms: i64) -> Option<Window> {
    let at = Timestamp::from_millisecond(at_ms).ok()?;
    let offset_ms = i64::from(zone.to_offset(at).seconds()) * 1000;
    let start_ms = (at_ms + offset_ms).div_euclid(unit_ms) * unit_ms - offset_ms;
    // Transitions at or before `at`, latest first: `preceding` excludes its argument.
    let after_at = Timestamp::from_millisecond(at_ms + 1).ok()?;
    let mut before = zone.preceding(after_at).map(|transition| transition.timestamp().as_millisecond());
    let moved_before_ms = before.find(|ms| offset_changes(zone, *ms)).unwrap_or(i64::MIN);
    let mut after = zone.following(at).map(|transition| transition.timestamp().as_millisecond());
    let moved_after_ms = after.find(|ms| offset_changes(zone, *ms)).unwrap_or(i64::MAX);
    Some(Window { start_ms: start_ms.max(moved_before_ms), end_ms: (start_ms + unit_ms).min(moved_after_ms) })
}

fn offset_changes(zone: &TimeZone, at_ms: i64) -> bool {
    let offset = |ms| Timestamp::from_millisecond(ms).ok().map(|at| zone.to_offset(at));
    offset(at_ms - 1) != offset(at_ms)
}

/// Returns the moment at which the clocks of `zone` first show this time of day. Where the clocks skip it, the moment
/// is later by as much as they are set forward.
fn instant(zone: &TimeZone, at: DateTime) -> Option<i64> {
    Some(zone.to_ambiguous_zoned_datetime(at).compatible().ok()?.timestamp().as_millisecond())
}

/// Returns the first instant of a civil day: its first midnight. Where the clocks skip that, even in the middle of a
/// gap, it is the first instant after the gap.
fn day_start(zone: &TimeZone, date: Date) -> Option<i64> {
    let midnight = zone.to_ambiguous_zoned_datetime(date.to_datetime(Time::midnight()));
    let skipped = matches!(midnight.offset(), AmbiguousOffset::Gap { .. });
    let after_ms = midnight.compatible().ok()?.timestamp().as_millisecond();
    if !skipped {
        return Some(after_ms);
    }
    let after = Timestamp::from_millisecond(after_ms + 1).ok()?;
    let mut jumps = zone.preceding(after).map(|transition| transition.timestamp().as_millisecond());
    jumps.find(|ms| offset_changes(zone, *ms))
}

fn civil_bounds(period: Period, zone: &TimeZone, at_ms: i64) -> Option<Window> {
    let date = zoned(zone, at_ms)?.date();
    let first = match period {
        Period::Weekly => date.checked_sub(i64::from(date.weekday().since(Weekday::Monday)).days()).ok()?,
        Period::Monthly => date.first_of_month(),
        Period::Yearly => date.first_of_year(),
        _ => date,
    };
    let step = step(period, 1)?;
    let mut window =
        Window { start_ms: day_start(zone, first)?, end_ms: day_start(zone, first.checked_add(step).ok()?)? };
    // Clocks that are set back over midnight show the old date again after the new one has begun.
    while at_ms >= window.end_ms {
        let later = zoned(zone, window.end_ms)?.date();
        window = Window { start_ms: window.end_ms, end_ms: day_start(zone, later.checked_add(step).ok()?)? };
    }
    Some(window)
}

fn step(period: Period, count: i64) -> Option<Span> {
    let span = Span::new();
    match period {
        Period::Daily => span.try_days(count).ok(),
        Period::Weekly => span.try_weeks(count).ok(),
        Period::Monthly => span.try_months(count).ok(),
        Period::Yearly => span.try_years(count).ok(),
        Period::Minute | Period::Hourly | Period::Length(_) | Period::Lifetime => None,
    }
}

fn fixed_start(anchor_ms: i64, unit_ms: i64, index: i64) -> Option<i64> {
    let start_ms = anchor_ms.checked_add(index.checked_mul(unit_ms)?)?;
    Timestamp::from_millisecond(start_ms).is_ok().then_some(start_ms)
}

/// `anchor + index periods`, computed from the anchor itself.
fn civil_start(period: Period, zone: &TimeZone, anchor_ms: i64, index: i64) -> Option<i64> {
    if index == 0 {
        return Some(anchor_ms);
    }
    let anchor = zoned(zone, anchor_ms)?.datetime();
    instant(zone, anchor.checked_add(step(period, index)?).ok()?)
}

/// About how many periods lie between the two.
fn civil_guess(period: Period, zone: &TimeZone, anchor_ms: i64, at_ms: i64) -> Option<i64> {
    let (from, to) = (zoned(zone, anchor_ms)?.date(), zoned(zone, at_ms)?.date());
    let months = || {
        let years = i64::from(to.year()) - i64::from(from.year());
        years * 12 + i64::from(to.month()) - i64::from(from.month())
    };
    let days = || i64::from((to - from).get_days());
    match period {
        Period::Daily => Some(days()),
        Period::Weekly => Some(days().div_euclid(7)),
        Period::Monthly => Some(months()),
        Period::Yearly => Some(i64::from(to.year()) - i64::from(from.year())),
        Period::Minute | Period::Hourly | Period::Length(_) | Period::Lifetime => None,
    }
}

#[cfg(test)]
mod tests;
