//! From a plan to what the scripts read: one MessagePack message per plan, anchor and overrides, with the windows of the
//! time of compiling. `lua/lib/ledger.lua` and `lua/lib/match.lua` name the positions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::domain::amount::{MAX_UNITS, Quantity, Unit, Weight};
use crate::domain::pattern::{EventPattern, ValuePattern};
use crate::domain::plan::{Anchor, Condition, LimitGroup, Measure, OnPlanChange, Period, Plan, Quota, Rule, Term};
use crate::domain::subscription::QuotaOverride;
use crate::domain::window::{self, Windows};

/// A plan as the scripts read it. It is current for times in `[from_ms, until_ms)`: in these, no window begins or ends.
#[derive(Debug, Clone)]
pub struct CompiledPlan {
    /// The second argument of a script.
    pub message: Arc<[u8]>,
    /// The latest start of its windows.
    pub from_ms: i64,
    /// The earliest end of its windows.
    pub until_ms: i64,
}

/// A time that has no calendar: before year -9999 or after year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time {0} ms has no calendar; years go from -9999 to 9999")]
pub struct NoCalendar(pub i64);

/// The end of a window, or the time to keep it, that does not come.
pub const NEVER_MS: i64 = MAX_UNITS as i64;

/// The anchor of calendar windows; others are milliseconds of the epoch, never negative.
const CALENDAR: i64 = -1;

/// Compiles `plan` for the time `at_ms`.
///
/// `cycle_anchor_ms` is the subscription's; users without one have no start, and calendar windows instead.
///
/// # Errors
/// [`NoCalendar`].
pub fn compile(
    plan: &Plan,
    cycle_anchor_ms: Option<i64>,
    overrides: &BTreeMap<String, QuotaOverride>,
    at_ms: i64,
) -> Result<CompiledPlan, NoCalendar> {
    let (mut from_ms, mut until_ms) = (i64::MIN, i64::MAX);
    let mut groups = Vec::with_capacity(plan.groups.len());
    for group in &plan.groups {
        let frame = frame(plan, group, cycle_anchor_ms, at_ms).ok_or(NoCalendar(at_ms))?;
        from_ms = from_ms.max(frame.start_ms);
        until_ms = until_ms.min(frame.end_ms);
        groups.push(compiled_group(group, &frame, quota(group, overrides)));
    }
    let change = match plan.on_plan_change {
        OnPlanChange::Carry => "carry",
        OnPlanChange::Reset => "reset",
        OnPlanChange::Block => "block",
    };
    let message = rmp_serde::to_vec(&(&plan.id, change, groups)).expect("a plan of numbers and text can be encoded");
    Ok(CompiledPlan { message: message.into(), from_ms, until_ms })
}

/// The quota in force: the user's own, or the plan's. One that was for an earlier plan may be finer than this group's unit, and is
/// rounded down, or larger than its counter.
fn quota(group: &LimitGroup, overrides: &BTreeMap<String, QuotaOverride>) -> Quota {
    match overrides.get(&group.id) {
        None => group.quota,
        Some(QuotaOverride::Unlimited) => Quota::Unlimited,
        Some(QuotaOverride::Amount(amount)) => Quota::Limited(amount.in_units_rounded_down(group.unit)),
    }
}

/// The windows of a group, in the scripts' terms.
struct Frame {
    anchor: i64,
    start_ms: i64,
    end_ms: i64,
    kept_ms: i64,
    previous: (i64, i64),
}

fn frame(plan: &Plan, group: &LimitGroup, cycle_anchor_ms: Option<i64>, at_ms: i64) -> Option<Frame> {
    if group.period == Period::Lifetime {
        // Whatever the subscription: one window, from the beginning, that is the same for all replicas.
        return Some(Frame { anchor: CALENDAR, start_ms: 0, end_ms: NEVER_MS, kept_ms: NEVER_MS, previous: (0, 0) });
    }
    let (anchor, windows) = match (group.anchor, cycle_anchor_ms) {
        (Anchor::SubscriptionStart, Some(anchor_ms)) => {
            (anchor_ms, window::anchored(group.period, &plan.zone, anchor_ms, at_ms)?)
        }
        _ => (CALENDAR, window::calendar(group.period, &plan.zone, at_ms)?),
    };
    let Windows { previous, current, next_end_ms } = windows;
    let previous = previous.map_or((0, 0), |window| (window.start_ms, window.end_ms));
    Some(Frame { anchor, start_ms: current.start_ms, end_ms: current.end_ms, kept_ms: next_end_ms, previous })
}

fn compiled_group<'a>(group: &'a LimitGroup, frame: &Frame, quota: Quota) -> impl Serialize + use<'a> {
    let quota = match quota {
        Quota::Limited(units) => i64::try_from(units).expect("a quota is at most 2^53 - 1"),
        Quota::Unlimited => -1,
    };
    (
        &group.id,
        &group.label,
        group.unit.code(),
        quota,
        group.hard,
        period_code(group.period),
        frame.anchor,
        frame.start_ms,
        frame.end_ms,
        frame.kept_ms,
        frame.previous.0,
        frame.previous.1,
        group.rules.iter().map(|rule| compiled_rule(rule, group.unit)).collect::<Vec<_>>(),
    )
}

fn period_code(period: Period) -> u8 {
    match period {
        Period::Minute => 1,
        Period::Hourly => 2,
        Period::Daily => 3,
        Period::Weekly => 4,
        Period::Monthly => 5,
        Period::Yearly => 6,
        Period::Lifetime => 7,
    }
}

/// A measure: the number 1, or terms.
#[derive(Serialize)]
#[serde(untagged)]
enum CompiledMeasure<'a> {
    Events(u8),
    Terms(Vec<CompiledTerm<'a>>),
}

/// Name, whole weight or -1, limbs, default or false.
type CompiledTerm<'a> = (&'a str, i64, Vec<u32>, OrFalse<Quantity>);

/// `None` as `false`: a nil would leave a hole in a Lua array.
#[derive(Debug, Clone, Copy)]
pub struct OrFalse<T>(pub Option<T>);

impl<T: Serialize> Serialize for OrFalse<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }
}

fn compiled_rule(rule: &Rule, unit: Unit) -> impl Serialize + use<'_> {
    let (kind, pattern) = match &rule.event {
        EventPattern::Any => (0, String::new()),
        EventPattern::Exact(name) => (1, name.clone()),
        EventPattern::Prefix(prefix) => (2, format!("{prefix}.")),
    };
    let conditions: Vec<_> = rule.conditions.iter().map(compiled_condition).collect();
    let measure = match &rule.measure {
        Measure::Events => CompiledMeasure::Events(1),
        Measure::Terms(terms) => CompiledMeasure::Terms(terms.iter().map(|term| compiled_term(term, unit)).collect()),
    };
    (kind, pattern, conditions, measure)
}

/// Key, exact values as a set, prefixes.
fn compiled_condition(condition: &Condition) -> (&str, BTreeMap<&str, bool>, BTreeSet<&str>) {
    let mut exact = BTreeMap::new();
    let mut prefixes = BTreeSet::new();
    for value in &condition.values {
        match value {
            ValuePattern::Exact(text) => drop(exact.insert(text.as_str(), true)),
            ValuePattern::Prefix(prefix) => drop(prefixes.insert(prefix.as_str())),
        }
    }
    (&condition.key, exact, prefixes)
}

/// EXACT: the weight in smallest units per 1 of the quantity, times 10^12, as an integer: at most 10^24.
fn compiled_term(term: &Term, unit: Unit) -> CompiledTerm<'_> {
    let scaled = u128::from(term.weight.pico()) * u128::from(unit.scale());
    let one = u128::from(Weight::ONE.pico());
    let whole = if scaled % one == 0 { i64::try_from(scaled / one).expect("at most 10^12") } else { -1 };
    let limb_count = scaled.checked_ilog(1_000_000).map_or(0, |log| log + 1);
    let limbs = (0..limb_count).map(|place| (scaled / 1_000_000_u128.pow(place) % 1_000_000) as u32).collect();
    (&term.name, whole, limbs, OrFalse(term.default))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::catalog::parse;

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

    fn read(compiled: &CompiledPlan) -> Json {
        rmp_serde::from_slice(&compiled.message).unwrap()
    }

    /// The one group of `plan`, as the scripts read it.
    fn group(plan: &Plan, cycle_anchor_ms: Option<i64>, overrides: &BTreeMap<String, QuotaOverride>) -> Json {
        read(&compile(plan, cycle_anchor_ms, overrides, NOW_MS).unwrap())[2][0].clone()
    }

    #[test]
    fn a_plan_is_written_as_the_scripts_read_it() {
        let plan = plan(
            r"
plans:
  p:
    on_plan_change: reset
    limit_groups:
      - id: spend
        label: Spend
        unit: cents
        period: daily
        quota: 5
        match:
          - { event: llm.tokens, metadata: { model: [gpt-4o, o1, gpt-4o-*], provider: openai }, measure: { in: 0.00025 } }
          - { event: llm.*, measure: { name: cached, weight: 0.1, default: 1.5 } }
          - { event: '*', measure: events }
      - { id: all, unit: count, period: lifetime, quota: unlimited, hard: false, match: [ { event: x } ] }
",
        );
        let compiled = compile(&plan, None, &BTreeMap::new(), NOW_MS).unwrap();
        let (yesterday_ms, tomorrow_ms) = (TODAY_MS - DAY_MS, TODAY_MS + DAY_MS);
        assert_eq!((compiled.from_ms, compiled.until_ms), (TODAY_MS, tomorrow_ms));
        let message = read(&compiled);
        assert_eq!((&message[0], &message[1]), (&json!("p"), &json!("reset")));
        let groups: Vec<_> = message[2].as_array().unwrap().iter().map(|group| group.as_array().unwrap()).collect();
        let [spend, all] = groups[..] else { panic!("{message}") };
        assert_eq!(spend[..6], *json!(["spend", "Spend", 4, 5_000_000, true, 3]).as_array().unwrap());
        assert_eq!(spend[6..12], [-1, TODAY_MS, tomorrow_ms, tomorrow_ms + DAY_MS, yesterday_ms, TODAY_MS]);
        let conditions =
            json!([["model", { "gpt-4o": true, "o1": true }, ["gpt-4o-"]], ["provider", { "openai": true }, []]]);
        let spend_rules = json!([
            [1, "llm.tokens", conditions, [["in", 250, [0, 0, 250], false]]],
            [2, "llm.", [], [["cached", 100_000, [0, 0, 100_000], [1, 500_000]]]],
            [0, "", [], 1],
        ]);
        assert_eq!(spend[12], spend_rules);
        assert_eq!(all[..6], *json!(["all", "all", 1, -1, false, 7]).as_array().unwrap());
        assert_eq!(all[6..12], [-1, 0, NEVER_MS, NEVER_MS, 0, 0]);
        assert_eq!(all[12], json!([[1, "x", [], [["quantity", 1, [0, 0, 1], false]]]]));
        assert_eq!((spend.len(), all.len()), (13, 13));
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
        let compiled = compile(&plan, None, &BTreeMap::new(), NOW_MS + 1).unwrap();
        assert_eq!((compiled.from_ms, compiled.until_ms), (NOW_MS, NOW_MS + 60_000));
    }

    #[test]
    fn windows_follow_the_anchor_of_the_subscription_where_there_is_one() {
        let plan = plan_of("unit: count, period: daily, anchor: subscription_start, quota: 1, match: [ { event: x } ]");
        let times =
            |cycle_anchor_ms| group(&plan, cycle_anchor_ms, &BTreeMap::new()).as_array().unwrap()[6..12].to_vec();
        let anchor_ms = NOW_MS - DAY_MS - 1;
        let today_ms = anchor_ms + DAY_MS;
        assert_eq!(
            times(Some(anchor_ms)),
            [anchor_ms, today_ms, today_ms + DAY_MS, today_ms + 2 * DAY_MS, anchor_ms, today_ms]
        );
        // The first window of a subscription has none before it.
        assert_eq!(times(Some(today_ms)), [today_ms, today_ms, today_ms + DAY_MS, today_ms + 2 * DAY_MS, 0, 0]);
        let tomorrow_ms = TODAY_MS + DAY_MS;
        assert_eq!(times(None), [-1, TODAY_MS, tomorrow_ms, tomorrow_ms + DAY_MS, TODAY_MS - DAY_MS, TODAY_MS]);
    }

    #[test]
    fn a_period_and_a_plan_change_have_a_code() {
        let periods = ["minute", "hourly", "daily", "weekly", "monthly", "yearly", "lifetime"];
        for (period, code) in periods.into_iter().zip(1..) {
            let plan = plan_of(&format!("unit: count, period: {period}, quota: 1, match: [ {{ event: x }} ]"));
            assert_eq!(group(&plan, None, &BTreeMap::new())[5], code, "{period}");
            assert_eq!(plan.groups[0].period.as_str(), period);
        }
        for change in ["carry", "reset", "block"] {
            let group = "{ id: a, unit: count, period: daily, quota: 1, match: [ { event: x } ] }";
            let plan = plan(&format!("plans: {{ p: {{ on_plan_change: {change}, limit_groups: [ {group} ] }} }}"));
            assert_eq!(read(&compile(&plan, None, &BTreeMap::new(), NOW_MS).unwrap())[1], change);
        }
    }

    #[test]
    fn the_quota_of_a_user_goes_before_the_one_of_the_plan() {
        let amount = |text| QuotaOverride::Amount(Quantity::from_decimal(text).unwrap());
        let cases = [
            ("tokens", None, 5_i64),
            ("tokens", Some(QuotaOverride::Unlimited), -1),
            ("tokens", Some(amount("0")), 0),
            // Finer than the unit.
            ("tokens", Some(amount("7.9")), 7),
            ("seconds", Some(amount("7.9")), 7_900),
            ("seconds", Some(amount("7.9999")), 7_999),
            // Larger than a counter of the unit.
            ("cents", Some(amount("9007199254740991")), 8_000_000_000_000_000),
        ];
        for (unit, quota, expected) in cases {
            let plan = plan_of(&format!("unit: {unit}, period: daily, quota: 5, match: [ {{ event: x }} ]"));
            let overrides = quota.map(|quota| ("a".to_owned(), quota)).into_iter().collect();
            assert_eq!(group(&plan, None, &overrides)[3], expected, "{unit} {quota:?}");
        }
    }

    #[test]
    fn a_weight_is_an_integer_in_limbs_of_a_million() {
        let cases = [
            ("tokens", "0", json!([0, []])),
            ("tokens", "1", json!([1, [0, 0, 1]])),
            ("tokens", "1.5", json!([-1, [0, 500_000, 1]])),
            ("tokens", "0.000000000001", json!([-1, [1]])),
            ("tokens", "123456.654321000001", json!([-1, [1, 654_321, 123_456]])),
            ("seconds", "0.0005", json!([-1, [0, 500_000]])),
            ("seconds", "0.001", json!([1, [0, 0, 1]])),
            ("cents", "0.0000001", json!([-1, [0, 100_000]])),
            ("cents", "1000000", json!([1_000_000_000_000_i64, [0, 0, 0, 0, 1]])),
        ];
        for (unit, weight, expected) in cases {
            let rule = format!("{{ event: x, measure: {{ p: {weight} }} }}");
            let plan = plan_of(&format!("unit: {unit}, period: daily, quota: 5, match: [ {rule} ]"));
            let term = &group(&plan, None, &BTreeMap::new())[12][0][3][0];
            assert_eq!(json!([term[1], term[2]]), expected, "{unit} {weight}");
        }
    }

    #[test]
    fn a_time_without_a_calendar_has_no_plan() {
        let plan = plan_of("unit: count, period: daily, quota: 1, match: [ { event: x } ]");
        let found = compile(&plan, None, &BTreeMap::new(), i64::MAX).map(|compiled| compiled.from_ms);
        assert_eq!(found, Err(NoCalendar(i64::MAX)));
    }
}
