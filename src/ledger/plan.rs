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
            + size_of_val(self.schedules.as_slice())
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
mod tests;
