//! Where windows begin and end, found by counting: every kind of window has numbered boundaries, and the window at a time is found by
//! walking.

use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use crate::sketch::Period;

/// The end of what does not end.
pub const NEVER: i64 = (1 << 53) - 1;

/// The window at a time, and what else of its neighbours is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    pub start: i64,
    pub end: i64,
    /// The end of the next one: so long this one is kept.
    pub kept: i64,
    /// `[start, end)` of the one before; none before an anchor.
    pub previous: Option<(i64, i64)>,
}

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// Boundary number `index`: of the calendar from the first week of 1970 on, or counted from the anchor. The zones of the test change their
/// clocks at full hours of UTC, so that minutes and hours are those of UTC.
pub fn boundary(period: Period, zone: &TimeZone, anchor: Option<i64>, index: i64) -> i64 {
    let span = match period {
        Period::Minute => return anchor.unwrap_or(0) + index * MINUTE,
        Period::Hourly => return anchor.unwrap_or(0) + index * HOUR,
        Period::Daily => index.days(),
        Period::Weekly => index.weeks(),
        Period::Monthly => index.months(),
        Period::Yearly => index.years(),
        Period::Length(minutes) => return anchor.unwrap_or(0) + index * minutes * MINUTE,
        Period::Lifetime => unreachable!("it has no boundaries"),
    };
    let origin = match anchor {
        Some(anchor) if index == 0 => return anchor,
        Some(anchor) => Timestamp::from_millisecond(anchor).unwrap().to_zoned_datetime(zone.clone()).datetime(),
        // A Monday.
        None if period == Period::Weekly => date(1970, 1, 5).at(0, 0, 0, 0),
        None => date(1970, 1, 1).at(0, 0, 0, 0),
    };
    zone.to_ambiguous_zoned_datetime(origin + span).compatible().unwrap().timestamp().as_millisecond()
}

pub fn frame(period: Period, zone: &str, anchor: Option<i64>, at: i64) -> Frame {
    if period == Period::Lifetime {
        return Frame { start: 0, end: NEVER, kept: NEVER, previous: None };
    }
    let zone = TimeZone::get(zone).unwrap();
    const DAY: i64 = 24 * HOUR;
    let (shortest, longest) = match period {
        Period::Minute => (MINUTE, MINUTE),
        Period::Hourly => (HOUR, HOUR),
        Period::Daily => (DAY, DAY),
        Period::Weekly => (7 * DAY, 7 * DAY),
        Period::Monthly => (28 * DAY, 31 * DAY),
        Period::Yearly => (365 * DAY, 366 * DAY),
        Period::Length(minutes) => (minutes * MINUTE, minutes * MINUTE),
        Period::Lifetime => unreachable!("it has no boundaries"),
    };
    let at_index = |index| boundary(period, &zone, anchor, index);
    // Early enough, whatever the lengths were; from there the walk is short.
    let since = at - anchor.unwrap_or(0);
    let mut index = since.div_euclid(if since < 0 { shortest } else { longest }) - 2;
    while at_index(index + 1) <= at {
        index += 1;
    }
    let (start, end) = (at_index(index), at_index(index + 1));
    let before = at_index(index - 1);
    Frame {
        start,
        end,
        kept: at_index(index + 2),
        previous: anchor.is_none_or(|anchor| before >= anchor).then_some((before, start)),
    }
}

/// The end of a period that starts with an event at this time: at the same time of day, and in a short month on its last day.
pub fn end_of_period(period: Period, zone: &str, start: i64) -> i64 {
    boundary(period, &TimeZone::get(zone).unwrap(), Some(start), 1)
}
