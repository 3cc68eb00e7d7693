//! A plan as the scripts read it: one MessagePack message of what the catalog says, known by its digest.
//!
//! It is an array of
//! - the plan's id, and what entering it does to counters: `carry`, `reset` or `block`;
//! - every name that a rule measures, sorted: a measure says a name by its place;
//! - every schedule, as a period's number and its anchor (false: the calendar; true: the subscription's; 2: the first event): a group
//!   says one by its place;
//! - every group, as id, unit, schedule, quota in smallest units (-1: unlimited), `hard`, label, and rules: kind (0 any event, 1 this one,
//!   2 those that begin so), pattern, conditions, measure, and then the parts of the measure, if it has any. Then come the thresholds of the
//!   group, if it has any: shares in millionths, and amounts in smallest units. Only answers need them;
//! - the name of its time zone, unless that is UTC.
//!
//! A condition is a key, the exact values as a set, prefixes, and then patterns, if there are any: lists of the pieces around their stars. A
//! measure is 1 (`events`), or four values for each term: name, weight or -1, the weight's limbs or false, default or false. Its parts are
//! lists of terms, by the place where they begin in the measure: a whole, and then its parts. A whole stands before its parts. The windows
//! of a time are not part of a plan: those are [`frames`](super::frames).
//!
//! What a catalog does not use is not written, so that plans keep their digests. A version that does not know of it cannot read the message,
//! and so never prices by it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::archive::Archived;
use super::formats::FIRST_LENGTH;
use super::frames::Scheduled;
use crate::domain::amount::{MAX_UNITS, Quantity, Unit, Weight};
use crate::domain::id::{PlanDigest, beginning};
use crate::domain::pattern::{EventPattern, ValuePattern};
use crate::domain::plan::{
    Anchor, Condition, Length, LimitGroup, Measure, OnPlanChange, Period, Plan, Quota, Rule, Term, Thresholds,
    measured_names, wholes,
};

/// A plan as the scripts read it.
#[derive(Debug)]
pub struct CompiledPlan {
    /// Tells it from all others.
    pub digest: PlanDigest,
    /// An argument of the scripts.
    pub message: Box<[u8]>,
    /// Its id in the catalog.
    pub id: String,
    /// Every name that a rule measures, sorted.
    pub names: Vec<String>,
    /// Every key of metadata that a condition asks for, sorted.
    pub asked: Vec<String>,
    /// The descriptions of the groups in answers, in the order of the groups.
    pub groups: Vec<GroupDescription>,
    /// The schedule of each group.
    schedules: Vec<(Period, Anchor)>,
    /// The rules of its time zone. None if this machine does not know the zone.
    zone: Option<TimeZone>,
    /// The time at which it was archived.
    pub(super) archived: Archived,
}

/// The description of a group in answers. It is the same for all callers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GroupDescription {
    pub id: String,
    pub label: String,
    pub unit: Unit,
    pub quota: Quota,
    pub hard: bool,
    pub thresholds: Thresholds,
}

/// How many millionths make one.
const MICRO: u64 = 1_000_000;

/// The message is not a plan's.
#[derive(Debug, thiserror::Error)]
pub enum NoPlan {
    /// The message does not have the form of a plan.
    #[error("the message of a plan is not understood: {0}")]
    Form(#[from] rmp_serde::decode::Error),
    /// The message has a number that is not valid for its kind.
    #[error("the message of a plan has {0} for a {1}")]
    Number(i64, &'static str),
}

/// The message, without the parts that only scripts read.
#[derive(Deserialize)]
struct Message(
    String,
    IgnoredAny,
    Vec<String>,
    Vec<(i64, AnchorCode)>,
    Vec<MessageGroup>,
    #[serde(default)] Option<String>,
);

/// Id, unit, schedule, quota, hard, label, rules, and perhaps thresholds.
#[derive(Deserialize)]
struct MessageGroup(String, u8, usize, i64, bool, String, Vec<MessageRule>, #[serde(default)] MessageThresholds);

/// Shares in millionths, and amounts in smallest units.
#[derive(Deserialize, Default)]
struct MessageThresholds(Vec<i64>, Vec<i64>);

/// Kind, pattern, conditions, measure, and perhaps parts.
#[derive(Deserialize)]
struct MessageRule(IgnoredAny, IgnoredAny, Vec<MessageCondition>, IgnoredAny, #[serde(default)] IgnoredAny);

/// Key, exact values, prefixes, and perhaps patterns.
#[derive(Deserialize)]
struct MessageCondition(String, IgnoredAny, IgnoredAny, #[serde(default)] IgnoredAny);

impl MessageThresholds {
    fn read(self) -> Result<Thresholds, NoPlan> {
        let Self(shares, amounts) = self;
        let amount = |number: i64| match u64::try_from(number) {
            Ok(units) if units > 0 && units <= MAX_UNITS => Ok(units),
            _ => Err(NoPlan::Number(number, "threshold")),
        };
        let share = |number| amount(number).map(|micros| Quantity::of_parts(micros / MICRO, (micros % MICRO) as u32));
        Ok(Thresholds {
            shares: shares.into_iter().map(share).collect::<Result<_, _>>()?,
            amounts: amounts.into_iter().map(amount).collect::<Result<_, _>>()?,
        })
    }
}

impl CompiledPlan {
    /// Compiles a plan of a catalog.
    ///
    /// # Panics
    /// Never: what is written here can be read.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self::read(message(plan).into()).expect("a plan can be read as it was written")
    }

    /// Reads a plan that was written by any replica.
    ///
    /// # Errors
    /// [`NoPlan`].
    pub fn read(message: Box<[u8]>) -> Result<Self, NoPlan> {
        let Message(id, _, names, codes, groups, zone) = rmp_serde::from_slice(&message)?;
        let (mut asked, mut schedules) = (BTreeSet::new(), Vec::new());
        let describe = |MessageGroup(id, unit, schedule, quota, hard, label, rules, thresholds)| {
            for MessageRule(_, _, conditions, ..) in rules {
                asked.extend(conditions.into_iter().map(|MessageCondition(key, ..)| key));
            }
            let unit = Unit::from_code(unit).ok_or(NoPlan::Number(unit.into(), "unit"))?;
            let code = schedule.checked_sub(1).and_then(|index| codes.get(index));
            let (period, anchor) = code.ok_or(NoPlan::Number(number(schedule), "schedule"))?;
            schedules.push((period_of(*period).ok_or(NoPlan::Number(*period, "period"))?, anchor.anchor()?));
            let quota = match u64::try_from(quota) {
                Ok(units) if units <= MAX_UNITS => Quota::Limited(units),
                Err(_) if quota == -1 => Quota::Unlimited,
                _ => return Err(NoPlan::Number(quota, "quota")),
            };
            Ok(GroupDescription { id, label, unit, quota, hard, thresholds: thresholds.read()? })
        };
        let groups = groups.into_iter().map(describe).collect::<Result<_, _>>()?;
        let asked = asked.into_iter().collect();
        let digest = digest_of(&message);
        let zone = zone.map_or(Some(TimeZone::UTC), |name| TimeZone::get(&name).ok());
        Ok(Self { digest, message, id, names, asked, groups, schedules, zone, archived: Archived::default() })
    }

    /// The schedules of its groups. None if this machine does not know its time zone.
    #[must_use]
    pub fn scheduled(&self) -> Option<Scheduled<'_>> {
        let groups = self.groups.iter().zip(&self.schedules);
        let groups = groups.map(|(group, schedule)| (group.id.as_str(), group.unit, *schedule)).collect();
        Some(Scheduled { zone: self.zone.as_ref()?, groups })
    }

    /// Returns the memory that it takes, in bytes, approximately.
    #[must_use]
    pub fn weight(&self) -> usize {
        let texts = self.names.iter().chain(&self.asked).map(|text| text.len() + size_of::<String>());
        let descriptions = self.groups.iter().map(|group| {
            let Thresholds { shares, amounts } = &group.thresholds;
            let thresholds = size_of_val(shares.as_slice()) + size_of_val(amounts.as_slice());
            group.id.len() + group.label.len() + thresholds + size_of::<GroupDescription>()
        });
        size_of::<Self>()
            + self.message.len()
            + self.id.len()
            + texts.chain(descriptions).map(|bytes| bytes + 16).sum::<usize>()
    }
}

/// Returns the digest that identifies a plan by its message.
#[must_use]
pub fn digest_of(message: &[u8]) -> PlanDigest {
    beginning(&Sha256::digest(message))
}

/// Returns the schedule of a group's windows: the period, and where they start.
pub(super) fn schedule(group: &LimitGroup) -> (Period, Anchor) {
    // A lifetime is one window, from the beginning, whatever the subscription.
    (group.period, if group.period == Period::Lifetime { Anchor::Calendar } else { group.anchor })
}

/// Returns the number of a period in messages and in stored data.
pub(super) fn period_code(period: Period) -> i64 {
    match period {
        Period::Length(length) => FIRST_LENGTH + i64::from(length.minutes()),
        Period::Minute => 1,
        Period::Hourly => 2,
        Period::Daily => 3,
        Period::Weekly => 4,
        Period::Monthly => 5,
        Period::Yearly => 6,
        Period::Lifetime => 7,
    }
}

/// Returns the period with this number.
fn period_of(code: i64) -> Option<Period> {
    Some(match code {
        1 => Period::Minute,
        2 => Period::Hourly,
        3 => Period::Daily,
        4 => Period::Weekly,
        5 => Period::Monthly,
        6 => Period::Yearly,
        7 => Period::Lifetime,
        _ => Period::Length(Length::of_minutes(u32::try_from(code.checked_sub(FIRST_LENGTH)?).ok()?)?),
    })
}

/// A number for an error, which need not be exact.
fn number(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The time zone of a plan whose message names none.
const UTC: &str = "UTC";

fn message(plan: &Plan) -> Vec<u8> {
    let measured = measured_names(&plan.groups);
    let names: Vec<_> = measured.iter().map(String::as_str).collect();
    let schedules = Scheduled::of(plan).schedules();
    let change = match plan.on_plan_change {
        OnPlanChange::Carry => "carry",
        OnPlanChange::Reset => "reset",
        OnPlanChange::Block => "block",
    };
    let mut message = Vec::new();
    let is_utc = plan.timezone == UTC;
    write_list(&mut message, if is_utc { 5 } else { 6 });
    write(&mut message, &plan.id);
    write(&mut message, &change);
    write(&mut message, &names);
    let codes: Vec<_> =
        schedules.iter().map(|(period, anchor)| (period_code(*period), AnchorCode::of(*anchor))).collect();
    write(&mut message, &codes);
    write_list(&mut message, plan.groups.len());
    for group in &plan.groups {
        let schedule = place_of(&schedules, |other| *other == schedule(group));
        write_group(&mut message, group, schedule, &names);
    }
    if !is_utc {
        write(&mut message, &plan.timezone);
    }
    message
}

/// Returns the place of an item in the list, counted from 1.
fn place_of<T>(list: &[T], is_it: impl FnMut(&T) -> bool) -> usize {
    list.iter().position(is_it).expect("the list has what the plan has") + 1
}

/// A quota as the scripts read it.
pub(super) fn quota_code(quota: Quota) -> i64 {
    match quota {
        Quota::Limited(units) => i64::try_from(units).expect("a quota is at most 2^53 - 1"),
        Quota::Unlimited => -1,
    }
}

/// Appends a value.
fn write(message: &mut Vec<u8>, value: &impl Serialize) {
    rmp_serde::encode::write(message, value).expect("numbers and text can be encoded");
}

/// Appends the head of a list with `length` values.
fn write_list(message: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("a catalog has fewer");
    rmp::encode::write_array_len(message, length).expect("memory takes it");
}

fn write_group(message: &mut Vec<u8>, group: &LimitGroup, schedule: usize, names: &[&str]) {
    let Thresholds { shares, amounts } = &group.thresholds;
    write_list(message, if group.thresholds.is_empty() { 7 } else { 8 });
    write(message, &group.id);
    write(message, &group.unit.code());
    write(message, &schedule);
    write(message, &quota_code(group.quota));
    write(message, &group.hard);
    write(message, &group.label);
    write_list(message, group.rules.len());
    for rule in &group.rules {
        write_rule(message, rule, group.unit, names);
    }
    if !group.thresholds.is_empty() {
        let micros = |share: &Quantity| share.whole_part() * MICRO + u64::from(share.micro_part());
        write(message, &(shares.iter().map(micros).collect::<Vec<_>>(), amounts));
    }
}

fn write_rule(message: &mut Vec<u8>, rule: &Rule, unit: Unit, names: &[&str]) {
    let (kind, pattern) = match &rule.event {
        EventPattern::Any => (0, String::new()),
        EventPattern::Exact(name) => (1, name.clone()),
        EventPattern::Prefix(prefix) => (2, format!("{prefix}.")),
    };
    let terms = match &rule.measure {
        Measure::Events => &[][..],
        Measure::Terms(terms) => terms,
    };
    let wholes = wholes(terms);
    write_list(message, if wholes.is_empty() { 4 } else { 5 });
    write(message, &kind);
    write(message, &pattern);
    write_list(message, rule.conditions.len());
    for condition in &rule.conditions {
        write_condition(message, condition);
    }
    match &rule.measure {
        Measure::Events => write(message, &1),
        Measure::Terms(terms) => {
            write_list(message, 4 * terms.len());
            for (index, term) in terms.iter().enumerate() {
                let has_parts = wholes.iter().any(|(whole, _)| *whole == index);
                write_term(message, term, has_parts, unit, names);
            }
        }
    }
    if !wholes.is_empty() {
        let begin = |index: usize| 4 * index + 1;
        let list = |(whole, parts): (usize, Vec<usize>)| [whole].into_iter().chain(parts).map(begin).collect();
        write(message, &wholes.into_iter().map(list).collect::<Vec<Vec<usize>>>());
    }
}

/// Key, exact values as a set, prefixes, and patterns if there are any.
fn write_condition(message: &mut Vec<u8>, condition: &Condition) {
    let mut exact = BTreeMap::new();
    let mut prefixes = BTreeSet::new();
    let mut patterns = BTreeSet::new();
    for value in &condition.values {
        match value {
            ValuePattern::Exact(text) => drop(exact.insert(text.as_str(), true)),
            ValuePattern::Prefix(prefix) => drop(prefixes.insert(prefix.as_str())),
            ValuePattern::Pieces(pieces) => drop(patterns.insert(pieces)),
        }
    }
    write_list(message, if patterns.is_empty() { 3 } else { 4 });
    write(message, &condition.key);
    write(message, &exact);
    write(message, &prefixes);
    if !patterns.is_empty() {
        write(message, &patterns);
    }
}

/// Four values: the place of the name, whole weight or -1, limbs or false, default or false. A quantity with parts always has limbs: the quick
/// way to price by whole weights does not know of parts.
///
/// EXACT: the weight in smallest units per 1 of the quantity, times 10^12, as an integer: at most 10^24.
fn write_term(message: &mut Vec<u8>, term: &Term, has_parts: bool, unit: Unit, names: &[&str]) {
    let scaled = u128::from(term.weight.pico()) * u128::from(unit.scale());
    let one = u128::from(Weight::ONE.pico());
    let (whole, limbs) = if scaled % one == 0 && !has_parts {
        (i64::try_from(scaled / one).expect("at most 10^12"), None)
    } else {
        let limb_count = scaled.checked_ilog(1_000_000).map_or(0, |log| log + 1);
        let limbs = (0..limb_count).map(|place| (scaled / 1_000_000_u128.pow(place) % 1_000_000) as u32);
        (-1, Some(limbs.collect::<Vec<_>>()))
    };
    write(message, &place_of(names, |name| *name == term.name));
    write(message, &whole);
    write(message, &OrFalse(limbs));
    write(message, &OrFalse(term.default_in(unit)));
}

/// An anchor in a schedule. The first two are flags, as there was no third at first.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AnchorCode {
    IsSubscriptionStart(bool),
    Other(u8),
}

impl AnchorCode {
    fn of(anchor: Anchor) -> Self {
        match anchor {
            Anchor::Calendar => Self::IsSubscriptionStart(false),
            Anchor::SubscriptionStart => Self::IsSubscriptionStart(true),
            Anchor::FirstUse => Self::Other(2),
        }
    }

    fn anchor(&self) -> Result<Anchor, NoPlan> {
        match self {
            Self::IsSubscriptionStart(false) => Ok(Anchor::Calendar),
            Self::IsSubscriptionStart(true) => Ok(Anchor::SubscriptionStart),
            Self::Other(2) => Ok(Anchor::FirstUse),
            Self::Other(code) => Err(NoPlan::Number((*code).into(), "anchor")),
        }
    }
}

/// `None` as `false`: a nil would leave a hole in a Lua array.
struct OrFalse<T>(Option<T>);

impl<T: Serialize> Serialize for OrFalse<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::catalog::parse;

    fn plan(text: &str) -> Plan {
        parse(text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}")).plans()[0].clone()
    }

    /// A plan of one group with this text among its fields.
    fn plan_of(group: &str) -> Plan {
        plan(&format!("plans: {{ p: {{ limit_groups: [ {{ id: a, {group} }} ] }} }}"))
    }

    /// The whole message, as the scripts read it.
    fn message(plan: &Plan) -> Json {
        rmp_serde::from_slice(&CompiledPlan::of(plan).message).unwrap()
    }

    /// The one measure of the one group of a plan.
    fn measure(plan: &Plan) -> Json {
        message(plan)[4][0][6][0][3].clone()
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
        let conditions =
            json!([["model", { "gpt-4o": true, "o1": true }, ["gpt-4o-"]], ["provider", { "openai": true }, []]]);
        let spend_rules = json!([
            [1, "llm.tokens", conditions, [2, 250, false, false]],
            [2, "llm.", [], [1, 100_000, false, [1, 500_000]]],
            [0, "", [], 1],
        ]);
        let expected = json!([
            "p",
            "reset",
            ["cached", "in", "quantity"],
            [[3, false], [7, false]],
            [
                ["spend", 4, 1, 5_000_000, true, "Spend", spend_rules],
                ["all", 1, 2, -1, false, "all", [[1, "x", [], [3, 1, false, 1]]]],
            ],
        ]);
        assert_eq!(message(&plan), expected);
        let compiled = CompiledPlan::of(&plan);
        assert_eq!(
            (compiled.id.as_str(), &compiled.names[..]),
            ("p", &["cached", "in", "quantity"].map(String::from)[..])
        );
        assert_eq!(compiled.asked, ["model", "provider"]);
        let group = |id: &str, label: &str, unit, quota, hard| {
            let (id, label) = (id.to_owned(), label.to_owned());
            GroupDescription { id, label, unit, quota, hard, thresholds: Thresholds::default() }
        };
        let spend = group("spend", "Spend", Unit::Cents, Quota::Limited(5_000_000), true);
        assert_eq!(compiled.groups, [spend, group("all", "all", Unit::Count, Quota::Unlimited, false)]);
    }

    #[test]
    fn a_plan_is_known_by_all_that_it_says_and_by_nothing_else() {
        let text = "unit: count, period: daily, quota: 1, match: [ { event: x } ]";
        let digest = |text: &str| CompiledPlan::of(&plan_of(text)).digest;
        assert_eq!(digest(text), digest(text));
        assert_eq!(digest(text), digest_of(&CompiledPlan::of(&plan_of(text)).message));
        for (from, to) in [("quota: 1", "quota: 2"), ("daily", "weekly"), ("x", "y"), ("unit: count", "unit: tokens")] {
            assert_ne!(digest(text), digest(&text.replace(from, to)), "{to}");
        }
        let read = CompiledPlan::read(CompiledPlan::of(&plan_of(text)).message).unwrap();
        assert_eq!((read.digest, read.id.as_str()), (digest(text), "p"));
        assert!(read.weight() > read.message.len());
    }

    #[test]
    fn what_is_no_plan_is_not_read() {
        let packed = |value: Json| CompiledPlan::read(rmp_serde::to_vec(&value).unwrap().into());
        let plan = |unit: u8, quota: i64| {
            let group = json!(["a", unit, 1, quota, true, "A", [[1, "x", [["key", {}, []]], [1, 1, false, 1]]]]);
            json!(["p", "carry", ["quantity"], [[1, false]], [group]])
        };
        let read = packed(plan(1, 5)).unwrap();
        assert_eq!((read.groups[0].quota, &read.asked[..]), (Quota::Limited(5), &["key".to_owned()][..]));
        assert_eq!(packed(plan(4, -1)).unwrap().groups[0].quota, Quota::Unlimited);
        assert!(matches!(packed(plan(5, 5)), Err(NoPlan::Number(5, "unit"))));
        assert!(matches!(packed(plan(1, -2)), Err(NoPlan::Number(-2, "quota"))));
        assert!(matches!(packed(plan(1, 1 << 53)), Err(NoPlan::Number(_, "quota"))));
        for value in [json!(null), json!(["p"]), json!(["p", "carry", [1], [], []])] {
            assert!(matches!(packed(value.clone()), Err(NoPlan::Form(_))), "{value}");
        }
        assert!(CompiledPlan::read(Box::default()).is_err());
    }

    #[test]
    fn an_absent_quantity_is_1_where_things_are_counted_and_nothing_elsewhere() {
        let measure = |unit: &str, measure: &str| {
            let rule = format!("{{ event: x, measure: {measure} }}");
            super::tests::measure(&plan_of(&format!("unit: {unit}, period: daily, quota: 1, match: [ {rule} ]")))
        };
        assert_eq!(measure("count", "quantity"), json!([1, 1, false, 1]));
        // `other` is the first of the names, and the second of the terms.
        assert_eq!(measure("count", "{ quantity: 4, other: 1 }"), json!([2, 4, false, 1, 1, 1, false, false]));
        assert_eq!(measure("count", "{ name: quantity, default: 7 }"), json!([1, 1, false, 7]));
        for (unit, weight) in [("tokens", 1), ("seconds", 1_000), ("cents", 1_000_000)] {
            assert_eq!(measure(unit, "quantity"), json!([1, weight, false, false]), "{unit}");
            assert_eq!(measure(unit, "{ name: quantity, default: 2 }"), json!([1, weight, false, 2]), "{unit}");
        }
    }

    #[test]
    fn a_part_names_its_whole_and_a_measure_without_parts_says_nothing_of_them() {
        let rule = |measure: &str| {
            let rule = format!("{{ event: x, measure: [ {measure} ] }}");
            let plan = plan_of(&format!("unit: tokens, period: daily, quota: 1, match: [ {rule} ]"));
            let read = CompiledPlan::read(CompiledPlan::of(&plan).message).unwrap();
            assert_eq!(read.groups.len(), 1);
            message(&plan)[4][0][6][0].clone()
        };
        let plain = json!([1, "x", [], [2, 1, false, false, 1, 1, false, false]]);
        assert_eq!(rule("{ name: p }, { name: c }"), plain);
        // A whole has limbs, whatever its weight.
        assert_eq!(
            rule("{ name: p, weight: 2 }, { name: c, weight: 3, part_of: p, default: 0 }"),
            json!([1, "x", [], [2, -1, [0, 0, 2], false, 1, 3, false, 0], [[1, 5]]])
        );
        assert_eq!(
            rule("{ name: p, weight: 0 }, { name: c, part_of: p }"),
            json!([1, "x", [], [2, -1, [], false, 1, 1, false, false], [[1, 5]]])
        );
        // Parts of parts, after their wholes.
        assert_eq!(
            rule("{ name: d, part_of: c }, { name: c, weight: 0.5, part_of: p }, { name: e, part_of: p }, { name: p }"),
            json!([
                1,
                "x",
                [],
                [2, 1, false, false, 1, -1, [0, 500_000], false, 3, 1, false, false, 4, -1, [0, 0, 1], false],
                [[13, 5, 9], [5, 1]]
            ])
        );
    }

    #[test]
    fn a_value_with_stars_inside_has_its_pieces_and_others_are_written_as_ever() {
        let condition = |values: &str| {
            let rule = format!("{{ event: x, metadata: {{ k: [ {values} ] }} }}");
            let plan = plan_of(&format!("unit: count, period: daily, quota: 1, match: [ {rule} ]"));
            let read = CompiledPlan::read(CompiledPlan::of(&plan).message).unwrap();
            assert_eq!(read.asked, ["k"]);
            message(&plan)[4][0][6][0][2][0].clone()
        };
        assert_eq!(condition("a, b*, c**"), json!(["k", { "a": true }, ["b", "c"]]));
        assert_eq!(
            condition("a, b*, '*d', c*d, '*d*', c**d"),
            json!(["k", { "a": true }, ["b"], [["", "d"], ["", "d", ""], ["c", "d"]]])
        );
    }

    #[test]
    fn thresholds_stand_behind_the_rules_and_a_group_without_them_says_nothing_of_them() {
        let group = |thresholds: &str| {
            let plan = plan_of(&format!("unit: cents, period: daily, quota: 5,{thresholds} match: [ {{ event: x }} ]"));
            let read = CompiledPlan::read(CompiledPlan::of(&plan).message).unwrap();
            assert_eq!(read.groups[0].thresholds, plan.groups[0].thresholds);
            message(&plan)[4][0].as_array().unwrap().get(7).cloned()
        };
        assert_eq!(group(""), None);
        assert_eq!(group(" thresholds: [0.8, 1.5],"), Some(json!([[800_000, 1_500_000], []])));
        assert_eq!(group(" thresholds: [{ amount: 2.5 }],"), Some(json!([[], [2_500_000]])));
        let packed = |thresholds: Json| {
            let group = json!(["a", 1, 1, 5, true, "A", [[1, "x", [], [1, 1, false, 1]]], thresholds]);
            let plan = json!(["p", "carry", ["quantity"], [[1, false]], [group]]);
            CompiledPlan::read(rmp_serde::to_vec(&plan).unwrap().into())
        };
        assert!(packed(json!([[1], [1]])).is_ok());
        for odd in [json!([[0], []]), json!([[], [0]]), json!([[], [-1]]), json!([[], [1_i64 << 53]])] {
            assert!(matches!(packed(odd.clone()), Err(NoPlan::Number(_, "threshold"))), "{odd}");
        }
        assert!(matches!(packed(json!([[1]])), Err(NoPlan::Form(_))));
    }

    #[test]
    fn groups_share_the_schedules_of_their_plan() {
        let text = r"
plans:
  p:
    limit_groups:
      - { id: a, unit: count, period: daily, anchor: subscription_start, quota: 1, match: [ { event: x } ] }
      - { id: b, unit: count, period: lifetime, anchor: subscription_start, quota: 1, match: [ { event: x } ] }
      - { id: c, unit: count, period: daily, quota: 1, match: [ { event: x } ] }
      - { id: d, unit: tokens, period: daily, anchor: subscription_start, quota: 1, match: [ { event: x } ] }
      - { id: e, unit: count, period: lifetime, quota: 1, match: [ { event: x } ] }
";
        let message = message(&plan(text));
        assert_eq!(message[3], json!([[3, true], [7, false], [3, false]]));
        let places: Vec<_> = message[4].as_array().unwrap().iter().map(|group| group[2].as_u64().unwrap()).collect();
        assert_eq!(places, [1, 2, 3, 1, 2]);
    }

    #[test]
    fn a_period_and_a_plan_change_have_a_code() {
        let periods = ["minute", "hourly", "daily", "weekly", "monthly", "yearly", "lifetime"];
        for (period, code) in periods.into_iter().zip(1..) {
            let plan = plan_of(&format!("unit: count, period: {period}, quota: 1, match: [ {{ event: x }} ]"));
            assert_eq!(message(&plan)[3], json!([[code, false]]), "{period}");
            assert_eq!(plan.groups[0].period.to_string(), period);
        }
        for change in ["carry", "reset", "block"] {
            let group = "{ id: a, unit: count, period: daily, quota: 1, match: [ { event: x } ] }";
            let plan = plan(&format!("plans: {{ p: {{ on_plan_change: {change}, limit_groups: [ {group} ] }} }}"));
            assert_eq!(message(&plan)[1], json!(change));
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
            let term = measure(&plan_of(&format!("unit: {unit}, period: daily, quota: 5, match: [ {rule} ]")));
            assert_eq!(json!([term[1], term[2]]), expected, "{unit} {weight}");
        }
    }
}
