//! From a plan to what the scripts read: one MessagePack message per plan, anchor and overrides, with the windows of the
//! time of compiling. `lua/lib/ledger.lua` and `lua/lib/match.lua` name the positions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use crate::domain::amount::{MAX_UNITS, Unit, Weight};
use crate::domain::packed::{Misfit, Reader, push_integer, push_text};
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
    let mut groups = Vec::new();
    for group in &plan.groups {
        let frame = frame(plan, group, cycle_anchor_ms, at_ms).ok_or(NoCalendar(at_ms))?;
        from_ms = from_ms.max(frame.start_ms);
        until_ms = until_ms.min(frame.end_ms);
        write_group(&mut groups, group, &frame, quota(group, overrides));
    }
    let change = match plan.on_plan_change {
        OnPlanChange::Carry => "carry",
        OnPlanChange::Reset => "reset",
        OnPlanChange::Block => "block",
    };
    let mut message = Vec::new();
    write_list(&mut message, 3);
    write(&mut message, &plan.id);
    write(&mut message, &change);
    write_list(&mut message, plan.groups.len());
    message.extend(groups);
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

/// Appends a value.
fn write(message: &mut Vec<u8>, value: &impl Serialize) {
    rmp_serde::encode::write(message, value).expect("numbers and text can be encoded");
}

/// Appends the head of a list of so many values.
fn write_list(message: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("a catalog has fewer");
    rmp::encode::write_array_len(message, length).expect("memory takes it");
}

/// Appends bytes as text: the scripts know no other type, and Lua's text is bytes.
fn write_bytes(message: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("a catalog has fewer");
    rmp::encode::write_str_len(message, length).expect("memory takes it");
    message.extend_from_slice(bytes);
}

fn write_group(message: &mut Vec<u8>, group: &LimitGroup, frame: &Frame, quota: Quota) {
    let quota = match quota {
        Quota::Limited(units) => i64::try_from(units).expect("a quota is at most 2^53 - 1"),
        Quota::Unlimited => -1,
    };
    write_list(message, 10);
    write(message, &group.id);
    write(message, &group.unit.code());
    write(message, &quota);
    write(message, &group.hard);
    write(message, &frame.start_ms);
    write(message, &frame.end_ms);
    write_bytes(message, &frame_bytes(group, frame));
    write_bytes(message, &around_bytes(frame));
    write_bytes(message, &terms_bytes(group, quota));
    write_list(message, 4 * group.rules.len());
    for rule in &group.rules {
        write_rule(message, rule, group.unit);
    }
}

/// As `FRAME_FORMAT` says. A window that begins before 1970 has no such bytes, and needs none: Redis's clock is never in it.
fn frame_bytes(group: &LimitGroup, frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(22);
    push_integer(&mut bytes, group.unit.code().into(), 1);
    push_integer(&mut bytes, period_code(group.period).into(), 1);
    push_integer(&mut bytes, frame.anchor, 7);
    push_integer(&mut bytes, frame.start_ms, 6);
    push_integer(&mut bytes, frame.end_ms, 7);
    bytes
}

/// As `AROUND_FORMAT` says.
fn around_bytes(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    push_integer(&mut bytes, frame.previous.0, 6);
    push_integer(&mut bytes, frame.previous.1, 7);
    push_integer(&mut bytes, frame.kept_ms, 7);
    bytes
}

/// What answers say of the group, and reservations remember: id, unit, quota or -1, `hard`, label. [`Terms`] reads it; the scripts
/// read the id and the unit.
fn terms_bytes(group: &LimitGroup, quota: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_text(&mut bytes, &group.id, 1);
    push_integer(&mut bytes, group.unit.code().into(), 1);
    push_integer(&mut bytes, quota, 7);
    push_integer(&mut bytes, group.hard.into(), 1);
    push_text(&mut bytes, &group.label, 2);
    bytes
}

/// What a script's answer, or a reservation, says of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Terms<'a> {
    pub id: &'a str,
    pub unit: i64,
    /// In smallest units; -1 is unlimited.
    pub quota: i64,
    pub hard: bool,
    pub label: &'a str,
}

impl<'a> Terms<'a> {
    /// Reads the bytes that compiling wrote.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Misfit> {
        Ok(Self {
            id: reader.text(1)?,
            unit: reader.integer(1)?,
            quota: reader.signed(7)?,
            hard: reader.integer(1)? != 0,
            label: reader.text(2)?,
        })
    }
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

/// Four values: kind, pattern, and as messages of their own the conditions ('' for none) and the measure.
fn write_rule(message: &mut Vec<u8>, rule: &Rule, unit: Unit) {
    let (kind, pattern) = match &rule.event {
        EventPattern::Any => (0, String::new()),
        EventPattern::Exact(name) => (1, name.clone()),
        EventPattern::Prefix(prefix) => (2, format!("{prefix}.")),
    };
    write(message, &kind);
    write(message, &pattern);
    let conditions: Vec<_> = rule.conditions.iter().map(compiled_condition).collect();
    let mut part = Vec::new();
    if !conditions.is_empty() {
        write(&mut part, &conditions);
    }
    write_bytes(message, &part);
    part.clear();
    match &rule.measure {
        Measure::Events => write(&mut part, &1),
        Measure::Terms(terms) => {
            write_list(&mut part, 4 * terms.len());
            for term in terms {
                write_term(&mut part, term, unit);
            }
        }
    }
    write_bytes(message, &part);
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

/// Four values: name, whole weight or -1, limbs or false, default or false.
///
/// EXACT: the weight in smallest units per 1 of the quantity, times 10^12, as an integer: at most 10^24.
fn write_term(message: &mut Vec<u8>, term: &Term, unit: Unit) {
    let scaled = u128::from(term.weight.pico()) * u128::from(unit.scale());
    let one = u128::from(Weight::ONE.pico());
    let (whole, limbs) = if scaled % one == 0 {
        (i64::try_from(scaled / one).expect("at most 10^12"), None)
    } else {
        let limb_count = scaled.checked_ilog(1_000_000).map_or(0, |log| log + 1);
        let limbs = (0..limb_count).map(|place| (scaled / 1_000_000_u128.pow(place) % 1_000_000) as u32);
        (-1, Some(limbs.collect::<Vec<_>>()))
    };
    write(message, &term.name);
    write(message, &whole);
    write(message, &OrFalse(limbs));
    write(message, &OrFalse(term.default_in(unit)));
}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::catalog::parse;
    use crate::domain::amount::Quantity;

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

    /// A group of a compiled plan, as the scripts read it.
    #[derive(Debug, serde::Deserialize)]
    struct Group(String, u8, i64, bool, i64, i64, ByteBuf, ByteBuf, ByteBuf, Vec<Part>);

    /// Part of a rule.
    #[derive(Debug, serde::Deserialize)]
    #[serde(untagged)]
    enum Part {
        Kind(u8),
        Text(ByteBuf),
    }

    fn read(compiled: &CompiledPlan) -> (String, String, Vec<Group>) {
        rmp_serde::from_slice(&compiled.message).unwrap()
    }

    /// The one group of `plan`, as the scripts read it.
    fn group(plan: &Plan, cycle_anchor_ms: Option<i64>, overrides: &BTreeMap<String, QuotaOverride>) -> Group {
        read(&compile(plan, cycle_anchor_ms, overrides, NOW_MS).unwrap()).2.remove(0)
    }

    impl Group {
        /// Unit, period, anchor, start and end; start and end of the window before; until when the window is kept.
        fn windows(&self) -> [i64; 8] {
            let (mut frame, mut around) = (Reader(&self.6), Reader(&self.7));
            let mut windows = [0; 8];
            for (value, width) in windows.iter_mut().zip([1, 1, 0, 6, 7]) {
                *value = if width == 0 { frame.signed(7) } else { frame.integer(width) }.unwrap();
            }
            for (value, width) in windows[5..].iter_mut().zip([6, 7, 7]) {
                *value = around.integer(width).unwrap();
            }
            assert!(frame.is_at_end() && around.is_at_end());
            assert_eq!(windows[3..5], [self.4, self.5], "the span stands twice");
            windows
        }

        fn terms(&self) -> Terms<'_> {
            let mut reader = Reader(&self.8);
            let terms = Terms::read(&mut reader).unwrap();
            assert!(reader.is_at_end());
            terms
        }

        /// Kind, pattern, conditions and measure of each rule.
        fn rules(&self) -> Json {
            let message = |part: &Part| match part {
                Part::Kind(kind) => json!(kind),
                Part::Text(bytes) if bytes.is_empty() => json!(""),
                Part::Text(bytes) => rmp_serde::from_slice(bytes).unwrap(),
            };
            let rule = |parts: &[Part]| {
                let [Part::Kind(kind), Part::Text(pattern), conditions, measure] = parts else { panic!("{parts:?}") };
                json!([kind, std::str::from_utf8(pattern).unwrap(), message(conditions), message(measure)])
            };
            self.9.chunks(4).map(rule).collect()
        }
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
        let (id, change, groups) = read(&compiled);
        assert_eq!((id.as_str(), change.as_str()), ("p", "reset"));
        let [spend, all] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!((spend.0.as_str(), spend.1, spend.2, spend.3), ("spend", 4, 5_000_000, true));
        assert_eq!(spend.terms(), Terms { id: "spend", unit: 4, quota: 5_000_000, hard: true, label: "Spend" });
        let kept_ms = tomorrow_ms + DAY_MS;
        assert_eq!(spend.windows(), [4, 3, -1, TODAY_MS, tomorrow_ms, yesterday_ms, TODAY_MS, kept_ms]);
        let conditions =
            json!([["model", { "gpt-4o": true, "o1": true }, ["gpt-4o-"]], ["provider", { "openai": true }, []]]);
        let spend_rules = json!([
            [1, "llm.tokens", conditions, ["in", 250, false, false]],
            [2, "llm.", "", ["cached", 100_000, false, [1, 500_000]]],
            [0, "", "", 1],
        ]);
        assert_eq!(spend.rules(), spend_rules);
        assert_eq!((all.0.as_str(), all.1, all.2, all.3), ("all", 1, -1, false));
        assert_eq!(all.terms(), Terms { id: "all", unit: 1, quota: -1, hard: false, label: "all" });
        assert_eq!(all.windows(), [1, 7, -1, 0, NEVER_MS, 0, 0, NEVER_MS]);
        assert_eq!(all.rules(), json!([[1, "x", "", ["quantity", 1, false, 1]]]));
    }

    #[test]
    fn an_absent_quantity_is_1_where_things_are_counted_and_nothing_elsewhere() {
        let measure = |unit: &str, measure: &str| {
            let plan = plan_of(&format!(
                "unit: {unit}, period: daily, quota: 1, match: [ {{ event: x, measure: {measure} }} ]"
            ));
            group(&plan, None, &BTreeMap::new()).rules()[0][3].clone()
        };
        assert_eq!(measure("count", "quantity"), json!(["quantity", 1, false, 1]));
        assert_eq!(
            measure("count", "{ quantity: 4, other: 1 }"),
            json!(["quantity", 4, false, 1, "other", 1, false, false])
        );
        assert_eq!(measure("count", "{ name: quantity, default: 7 }"), json!(["quantity", 1, false, 7]));
        for (unit, weight) in [("tokens", 1), ("seconds", 1_000), ("cents", 1_000_000)] {
            assert_eq!(measure(unit, "quantity"), json!(["quantity", weight, false, false]), "{unit}");
            assert_eq!(
                measure(unit, "{ name: quantity, default: 2 }"),
                json!(["quantity", weight, false, 2]),
                "{unit}"
            );
        }
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
        let times = |cycle_anchor_ms| group(&plan, cycle_anchor_ms, &BTreeMap::new()).windows()[2..].to_vec();
        let anchor_ms = NOW_MS - DAY_MS - 1;
        let today_ms = anchor_ms + DAY_MS;
        assert_eq!(
            times(Some(anchor_ms)),
            [anchor_ms, today_ms, today_ms + DAY_MS, anchor_ms, today_ms, today_ms + 2 * DAY_MS]
        );
        // The first window of a subscription has none before it.
        assert_eq!(times(Some(today_ms)), [today_ms, today_ms, today_ms + DAY_MS, 0, 0, today_ms + 2 * DAY_MS]);
        let tomorrow_ms = TODAY_MS + DAY_MS;
        assert_eq!(times(None), [-1, TODAY_MS, tomorrow_ms, TODAY_MS - DAY_MS, TODAY_MS, tomorrow_ms + DAY_MS]);
    }

    #[test]
    fn a_period_and_a_plan_change_have_a_code() {
        let periods = ["minute", "hourly", "daily", "weekly", "monthly", "yearly", "lifetime"];
        for (period, code) in periods.into_iter().zip(1..) {
            let plan = plan_of(&format!("unit: count, period: {period}, quota: 1, match: [ {{ event: x }} ]"));
            assert_eq!(group(&plan, None, &BTreeMap::new()).windows()[1], code, "{period}");
            assert_eq!(plan.groups[0].period.as_str(), period);
        }
        for change in ["carry", "reset", "block"] {
            let group = "{ id: a, unit: count, period: daily, quota: 1, match: [ { event: x } ] }";
            let plan = plan(&format!("plans: {{ p: {{ on_plan_change: {change}, limit_groups: [ {group} ] }} }}"));
            assert_eq!(read(&compile(&plan, None, &BTreeMap::new(), NOW_MS).unwrap()).1, change);
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
            let group = group(&plan, None, &overrides);
            assert_eq!((group.2, group.terms().quota), (expected, expected), "{unit} {quota:?}");
        }
    }

    #[test]
    fn a_weight_is_an_integer_in_limbs_of_a_million() {
        let cases = [
            ("tokens", "0", json!([0, false])),
            ("tokens", "1", json!([1, false])),
            ("tokens", "1.5", json!([-1, [0, 500_000, 1]])),
            ("tokens", "0.000000000001", json!([-1, [1]])),
            ("tokens", "123456.654321000001", json!([-1, [1, 654_321, 123_456]])),
            ("seconds", "0.0005", json!([-1, [0, 500_000]])),
            ("seconds", "0.001", json!([1, false])),
            ("cents", "0.0000001", json!([-1, [0, 100_000]])),
            ("cents", "1000000", json!([1_000_000_000_000_i64, false])),
        ];
        for (unit, weight, expected) in cases {
            let rule = format!("{{ event: x, measure: {{ p: {weight} }} }}");
            let plan = plan_of(&format!("unit: {unit}, period: daily, quota: 5, match: [ {rule} ]"));
            let term = &group(&plan, None, &BTreeMap::new()).rules()[0][3];
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
