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
    let whole = if scaled % one == 0 { i64::try_from(scaled / one).unwrap_or(-1) } else { -1 };
    let mut limbs = Vec::new();
    let mut rest = scaled;
    while rest > 0 {
        limbs.push((rest % 1_000_000) as u32);
        rest /= 1_000_000;
    }
    (&term.name, whole, limbs, OrFalse(term.default))
}
