//! The part of a call that is of one owner and one time: the windows that a plan has then, and the owner's own quotas.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;
use sha2::{Digest as _, Sha256};

use super::formats;
use super::packed::{push_integer, push_text};
use super::plan::{period_code, quota_code, schedule};
use crate::domain::amount::Unit;
use crate::domain::id::beginning;
use crate::domain::plan::{Anchor, Period, Plan};
use crate::domain::subscription::QuotaOverride;
use crate::domain::window::{self, FirstUse, Windows};

/// The groups of a plan, as far as their windows depend on them.
#[derive(Debug)]
pub struct Scheduled<'a> {
    /// The rules of the plan's time zone.
    pub zone: &'a TimeZone,
    /// The id, the unit and the schedule of each group.
    pub groups: Vec<(&'a str, Unit, (Period, Anchor))>,
}

impl<'a> Scheduled<'a> {
    /// Returns those of a plan.
    #[must_use]
    pub fn of(plan: &'a Plan) -> Self {
        let groups = plan.groups.iter().map(|group| (group.id.as_str(), group.unit, schedule(group)));
        Self { zone: &plan.zone, groups: groups.collect() }
    }

    /// Every schedule, in the order in which groups first have them.
    pub(super) fn schedules(&self) -> Vec<(Period, Anchor)> {
        let mut schedules = Vec::new();
        for (.., schedule) in &self.groups {
            if !schedules.contains(schedule) {
                schedules.push(*schedule);
            }
        }
        schedules
    }
}

/// The windows of a plan as the scripts read them. They are current for times in `[from_ms, until_ms)`: in these, none begins or ends.
#[derive(Debug, Clone)]
pub struct Frames {
    /// The digest of the groups, and of from where their windows are counted: owners whose counters are arranged for it need not look for
    /// them.
    pub arrangement: [u8; 8],
    /// The number of the owner's own quotas, which stand at the end.
    pub overrides: i64,
    /// The encoded windows, in the format of `lua/formats.toml`.
    pub bytes: Arc<[u8]>,
    /// The latest start of a window.
    pub from_ms: i64,
    /// The earliest end of a window.
    pub until_ms: i64,
}

/// A time that has no calendar: before year -9999 or after year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time {0} ms has no calendar; years go from -9999 to 9999")]
pub struct NoCalendar(pub i64);

/// The largest stored time. It stands for the end of a window that never ends, and in the place of an anchor for the
/// calendar.
pub const NEVER_MS: i64 = (1 << 48) - 1;

/// The anchor of windows that open with their first event.
pub const FIRST_USE_MS: i64 = NEVER_MS - 1;

impl Frames {
    /// The windows of `plan` at the time `at_ms`.
    ///
    /// `cycle_anchor_ms` is the subscription's; users without one have no start, and calendar windows instead.
    ///
    /// # Errors
    /// [`NoCalendar`].
    pub fn of(
        plan: &Plan,
        cycle_anchor_ms: Option<i64>,
        overrides: &BTreeMap<String, QuotaOverride>,
        at_ms: i64,
    ) -> Result<Self, NoCalendar> {
        Self::of_groups(&Scheduled::of(plan), cycle_anchor_ms, overrides, at_ms)
    }

    /// The windows of these groups, as [`Self::of`].
    ///
    /// # Errors
    /// [`NoCalendar`].
    pub fn of_groups(
        plan: &Scheduled<'_>,
        cycle_anchor_ms: Option<i64>,
        overrides: &BTreeMap<String, QuotaOverride>,
        at_ms: i64,
    ) -> Result<Self, NoCalendar> {
        let own: Vec<_> = own_quotas(plan, overrides).collect();
        let overrides = i64::try_from(own.len()).expect("a catalog has fewer");
        let mut bytes = Vec::new();
        let (mut from_ms, mut until_ms) = (i64::MIN, i64::MAX);
        for (period, anchor) in plan.schedules() {
            let frame = frame(plan.zone, period, anchor, cycle_anchor_ms, at_ms).ok_or(NoCalendar(at_ms))?;
            from_ms = from_ms.max(frame.start);
            until_ms = until_ms.min(frame.ends);
            stored(frame).write(&mut bytes);
        }
        for (group, quota) in own {
            formats::Override { group, quota }.write(&mut bytes);
        }
        let arrangement = arrangement(plan, cycle_anchor_ms);
        Ok(Self { arrangement, overrides, bytes: bytes.into(), from_ms, until_ms })
    }
}

/// The quotas of the owner's own, by the places of their groups.
fn own_quotas(plan: &Scheduled<'_>, overrides: &BTreeMap<String, QuotaOverride>) -> impl Iterator<Item = (i64, i64)> {
    let groups = plan.groups.iter().zip(1..).filter(|_| !overrides.is_empty());
    groups.filter_map(|((id, unit, _), place)| Some((place, quota_code(overrides.get(*id)?.in_unit(*unit)))))
}

fn arrangement(plan: &Scheduled<'_>, cycle_anchor_ms: Option<i64>) -> [u8; 8] {
    let mut bytes = Vec::new();
    for (id, unit, (period, anchor)) in &plan.groups {
        let (period, anchor) = (*period, *anchor);
        push_text(&mut bytes, id, 1);
        push_integer(&mut bytes, unit.code().into(), 1);
        match period {
            Period::Length(_) => push_integer(&mut bytes, period_code(period), 3),
            _ => push_integer(&mut bytes, period_code(period), 1),
        }
        push_integer(&mut bytes, anchor_code(anchor, cycle_anchor_ms), 6);
    }
    beginning(&Sha256::digest(&bytes))
}

/// Returns what stands for the anchor of a group's windows, for an owner with this cycle anchor.
fn anchor_code(anchor: Anchor, cycle_anchor_ms: Option<i64>) -> i64 {
    match anchor {
        Anchor::Calendar => NEVER_MS,
        Anchor::SubscriptionStart => cycle_anchor_ms.unwrap_or(NEVER_MS),
        Anchor::FirstUse => FIRST_USE_MS,
    }
}

/// The windows of one schedule.
fn frame(
    zone: &TimeZone,
    period: Period,
    anchor: Anchor,
    cycle_anchor_ms: Option<i64>,
    at_ms: i64,
) -> Option<formats::Frame> {
    if period == Period::Lifetime {
        // One window, from the beginning, that is the same for all replicas.
        let (anchor, ends, kept) = (NEVER_MS, NEVER_MS, NEVER_MS);
        return Some(formats::Frame { anchor, ends, kept, ..formats::Frame::default() });
    }
    let code = anchor_code(anchor, cycle_anchor_ms);
    let windows = match (anchor, cycle_anchor_ms) {
        (Anchor::FirstUse, _) => {
            let FirstUse { lasts_ms, from_ms, until_ms } = window::first_use(period, zone, at_ms)?;
            let (start, ends, lasts) = (from_ms, until_ms, lasts_ms);
            return Some(formats::Frame { anchor: code, start, ends, lasts, ..formats::Frame::default() });
        }
        (Anchor::SubscriptionStart, Some(anchor_ms)) => window::anchored(period, zone, anchor_ms, at_ms)?,
        (Anchor::SubscriptionStart, None) | (Anchor::Calendar, _) => window::calendar(period, zone, at_ms)?,
    };
    let Windows { previous, current, next_end_ms } = windows;
    let (previous_start, previous_ends) = previous.map_or((0, 0), |window| (window.start_ms, window.end_ms));
    Some(formats::Frame {
        anchor: code,
        start: current.start_ms,
        ends: current.end_ms,
        kept: next_end_ms,
        previous_start,
        previous_ends,
        lasts: 0,
    })
}

/// Converts a frame for storage. Times before 1970 are not stored, and need not be: Redis's clock is never there.
fn stored(frame: formats::Frame) -> formats::Frame {
    let formats::Frame { anchor, start, ends, kept, previous_start, previous_ends, lasts } = frame;
    let [anchor, start, ends, kept, previous_start, previous_ends] =
        [anchor, start, ends, kept, previous_start, previous_ends].map(|ms| ms.clamp(0, NEVER_MS));
    formats::Frame { anchor, start, ends, kept, previous_start, previous_ends, lasts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::parse;
    use crate::domain::amount::Quantity;
    use crate::ledger::packed::Reader;

    /// 2026-11-24T10:30:00Z, and the midnight before.
    const NOW_MS: i64 = 1_795_516_200_000;
    const DAY_MS: i64 = 86_400_000;
    const TODAY_MS: i64 = NOW_MS - 37_800_000;

    fn plan(text: &str) -> Plan {
        parse(text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}")).plans()[0].clone()
    }

    /// A plan of one group with this text among its fields.
    fn plan_of(group: &str) -> Plan {
        plan(&format!("plans: {{ p: {{ limit_groups: [ {{ id: a, {group} }} ] }} }}"))
    }

    /// Reads `count` frames and the overrides, as the scripts read them.
    fn read(frames: &Frames, count: usize) -> (Vec<formats::Frame>, Vec<formats::Override>) {
        let mut reader = Reader(&frames.bytes);
        let read = (0..count).map(|_| formats::Frame::read(&mut reader).unwrap()).collect();
        let overrides = (0..frames.overrides).map(|_| formats::Override::read(&mut reader).unwrap()).collect();
        assert!(reader.is_at_end());
        (read, overrides)
    }

    fn frames_of(plan: &Plan, cycle_anchor_ms: Option<i64>) -> Frames {
        Frames::of(plan, cycle_anchor_ms, &BTreeMap::new(), NOW_MS).unwrap()
    }

    /// Anchor, start and end, end of the one after, start and end of the one before.
    fn times(frame: &formats::Frame) -> [i64; 6] {
        let formats::Frame { anchor, start, ends, kept, previous_start, previous_ends, lasts: _ } = *frame;
        [anchor, start, ends, kept, previous_start, previous_ends]
    }

    #[test]
    fn each_schedule_of_a_plan_has_its_windows() {
        let plan = plan(
            r"
plans:
  p:
    limit_groups:
      - { id: a, unit: cents, period: daily, quota: 5, match: [ { event: x } ] }
      - { id: b, unit: count, period: lifetime, quota: 5, match: [ { event: x } ] }
      - { id: c, unit: tokens, period: daily, quota: 5, match: [ { event: x } ] }
",
        );
        let compiled = Frames::of(&plan, None, &BTreeMap::new(), NOW_MS).unwrap();
        let (yesterday_ms, tomorrow_ms) = (TODAY_MS - DAY_MS, TODAY_MS + DAY_MS);
        assert_eq!((compiled.from_ms, compiled.until_ms), (TODAY_MS, tomorrow_ms));
        let (frames, overrides) = read(&compiled, 2);
        let [daily, lifetime] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(times(daily), [NEVER_MS, TODAY_MS, tomorrow_ms, tomorrow_ms + DAY_MS, yesterday_ms, TODAY_MS]);
        assert_eq!(times(lifetime), [NEVER_MS, 0, NEVER_MS, NEVER_MS, 0, 0]);
        assert!(overrides.is_empty());
    }

    #[test]
    fn a_plan_is_current_while_all_its_windows_are() {
        let plan = plan(
            r"
plans:
  p:
    limit_groups:
      - { id: a, unit: count, period: minute, quota: 1, match: [ { event: x } ] }
      - { id: b, unit: count, period: daily, quota: 1, match: [ { event: x } ] }
",
        );
        let compiled = Frames::of(&plan, None, &BTreeMap::new(), NOW_MS + 1).unwrap();
        assert_eq!((compiled.from_ms, compiled.until_ms), (NOW_MS, NOW_MS + 60_000));
    }

    #[test]
    fn windows_follow_the_anchor_of_the_subscription_where_there_is_one() {
        let plan = plan_of("unit: count, period: daily, anchor: subscription_start, quota: 1, match: [ { event: x } ]");
        let times = |cycle_anchor_ms| times(&read(&frames_of(&plan, cycle_anchor_ms), 1).0[0]);
        let anchor_ms = NOW_MS - DAY_MS - 1;
        let today_ms = anchor_ms + DAY_MS;
        assert_eq!(
            times(Some(anchor_ms)),
            [anchor_ms, today_ms, today_ms + DAY_MS, today_ms + 2 * DAY_MS, anchor_ms, today_ms]
        );
        // The first window of a subscription has none before it.
        assert_eq!(times(Some(today_ms)), [today_ms, today_ms, today_ms + DAY_MS, today_ms + 2 * DAY_MS, 0, 0]);
        let tomorrow_ms = TODAY_MS + DAY_MS;
        assert_eq!(times(None), [NEVER_MS, TODAY_MS, tomorrow_ms, tomorrow_ms + DAY_MS, TODAY_MS - DAY_MS, TODAY_MS]);
    }

    #[test]
    fn an_arrangement_is_of_the_groups_and_of_where_their_windows_are_counted_from() {
        let text = "unit: count, period: daily, anchor: subscription_start, quota: 1, match: [ { event: x } ]";
        let arrangement = |text: &str, anchor_ms| frames_of(&plan_of(text), anchor_ms).arrangement;
        let first = arrangement(text, Some(1_000));
        assert_eq!(first, arrangement(&text.replace("quota: 1", "quota: 2, hard: false"), Some(1_000)));
        assert_eq!(first, arrangement(&text.replace("event: x", "event: y"), Some(1_000)));
        assert_ne!(first, arrangement(text, Some(2_000)));
        assert_ne!(first, arrangement(text, None));
        for (from, to) in [("count", "tokens"), ("daily", "weekly")] {
            assert_ne!(first, arrangement(&text.replace(from, to), Some(1_000)), "{to}");
        }
        let other = plan(&format!("plans: {{ p: {{ limit_groups: [ {{ id: b, {text} }} ] }} }}"));
        assert_ne!(first, frames_of(&other, Some(1_000)).arrangement);
        // Where windows are not counted from it, an anchor makes no difference.
        let calendar = text.replace("anchor: subscription_start, ", "");
        assert_eq!(arrangement(&calendar, Some(1_000)), arrangement(&calendar, None));
        assert_eq!(
            arrangement(&calendar, None),
            arrangement(text, None),
            "nor does the kind of anchor where there is none"
        );
        let lifetime = text.replace("daily", "lifetime");
        assert_eq!(arrangement(&lifetime, Some(1_000)), arrangement(&lifetime, None));
    }

    #[test]
    fn the_quota_of_a_user_goes_before_the_one_of_the_plan() {
        let amount = |text| QuotaOverride::Amount(Quantity::from_decimal(text).unwrap());
        let cases = [
            ("tokens", None, None),
            ("tokens", Some(QuotaOverride::Unlimited), Some(-1)),
            ("tokens", Some(amount("0")), Some(0)),
            // Finer than the unit.
            ("tokens", Some(amount("7.9")), Some(7)),
            ("seconds", Some(amount("7.9")), Some(7_900)),
            ("seconds", Some(amount("7.9999")), Some(7_999)),
            // Larger than a counter of the unit.
            ("cents", Some(amount("9007199254740991")), Some(8_000_000_000_000_000)),
        ];
        for (unit, quota, expected) in cases {
            let group =
                |id: &str| format!("{{ id: {id}, unit: {unit}, period: daily, quota: 5, match: [ {{ event: x }} ] }}");
            let plan = plan(&format!("plans: {{ p: {{ limit_groups: [ {}, {} ] }} }}", group("a"), group("b")));
            let mut overrides: BTreeMap<_, _> = quota.map(|quota| ("b".to_owned(), quota)).into_iter().collect();
            // Of a group that this plan does not have.
            overrides.insert("c".to_owned(), QuotaOverride::Unlimited);
            let (_, found) = read(&Frames::of(&plan, None, &overrides, NOW_MS).unwrap(), 1);
            let expected: Vec<_> = expected.map(|quota| formats::Override { group: 2, quota }).into_iter().collect();
            assert_eq!(found, expected, "{unit} {quota:?}");
        }
    }

    #[test]
    fn a_time_without_a_calendar_has_no_windows_and_one_before_1970_has_some() {
        let plan = plan_of("unit: count, period: daily, quota: 1, match: [ { event: x } ]");
        let found = Frames::of(&plan, None, &BTreeMap::new(), i64::MAX).map(|compiled| compiled.from_ms);
        assert_eq!(found, Err(NoCalendar(i64::MAX)));
        let early = Frames::of(&plan, None, &BTreeMap::new(), -DAY_MS).unwrap();
        assert_eq!((early.from_ms, early.until_ms), (-DAY_MS, 0));
        assert_eq!(times(&read(&early, 1).0[0])[1..], [0, 0, DAY_MS, 0, 0]);
    }
}
