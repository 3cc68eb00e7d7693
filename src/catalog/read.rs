//! Reads the tree of a catalog into plans. Every function reports its problems and goes on, so that all problems are
//! reported at once; it returns `None` where it could not understand its part. `walk` has what all of them need;
//! `rules` reads what a group matches.

mod rules;
mod walk;

use std::collections::HashSet;

use jiff::tz::TimeZoneDatabase;

use crate::domain::amount::{Quantity, Unit, Units};
use crate::domain::plan::{
    Anchor, Catalog, InvalidLength, Length, LimitGroup, OnPlanChange, Period, Plan, Quota, Thresholds, measured_names,
};

use self::walk::{Fields, join};
use super::problem_text::{decimals, one_of, quoted, shown};
use super::warnings::{FreePass, free_passes};
use super::yaml::{Node, Value};
use super::{Problem, Problems};

const MAX_PLANS: usize = 1000;
const MAX_GROUPS: usize = 1000;
/// The largest number of names. An event carries at most as many values for the scripts.
const MAX_NAMES: usize = 10_000;
const MAX_THRESHOLDS: usize = 100;
/// An unknown default is answered with the plans that there are: with this many of them.
const MAX_LISTED: usize = 20;
const MAX_ID_BYTES: usize = 64;
const MAX_TEXT_BYTES: usize = 256;

const PERIODS: [(&str, Period); 7] = [
    ("minute", Period::Minute),
    ("hourly", Period::Hourly),
    ("daily", Period::Daily),
    ("weekly", Period::Weekly),
    ("monthly", Period::Monthly),
    ("yearly", Period::Yearly),
    ("lifetime", Period::Lifetime),
];
const ANCHORS: [(&str, Anchor); 3] = [
    ("calendar", Anchor::Calendar),
    ("subscription_start", Anchor::SubscriptionStart),
    ("first_use", Anchor::FirstUse),
];
const CHANGES: [(&str, OnPlanChange); 3] =
    [("carry", OnPlanChange::Carry), ("reset", OnPlanChange::Reset), ("block", OnPlanChange::Block)];
const UNITS: [(&str, Unit); 4] =
    [("count", Unit::Count), ("tokens", Unit::Tokens), ("seconds", Unit::Seconds), ("cents", Unit::Cents)];

/// Reads the whole catalog.
pub(super) fn catalog(
    root: &Node,
    zones: &TimeZoneDatabase,
    problems: &mut Problems,
    warnings: &mut Problems,
) -> Option<Catalog> {
    Reader { problems, warnings, zones }.catalog(root)
}

struct Reader<'a> {
    problems: &'a mut Problems,
    warnings: &'a mut Problems,
    zones: &'a TimeZoneDatabase,
}

impl Reader<'_> {
    fn catalog(&mut self, root: &Node) -> Option<Catalog> {
        let fields = self.fields(root, "", &["default_plan", "plans"])?;
        let plans = self.required(&fields, "plans").and_then(|node| self.plans(node));
        let default_plan = match fields.get("default_plan") {
            Some(node) => self.text(node, "default_plan").map(|id| (id, node.line)),
            None => None,
        };
        // A plan that could not be understood is still there, for the default to name.
        if let (Some((id, line)), Some(node)) = (&default_plan, fields.get("plans"))
            && let Value::Map(entries) = &node.value
            && !entries.iter().any(|entry| entry.key == *id)
        {
            let mut known: Vec<_> = entries.iter().take(MAX_LISTED).map(|entry| shown(&entry.key)).collect();
            if entries.len() > MAX_LISTED {
                known.push("...".to_owned());
            }
            let message = format!("names no plan {}; there are: {}", quoted(id), known.join(", "));
            self.report(*line, "default_plan", message);
            return None;
        }
        let plans = plans?;
        // Only a whole catalog may be built: the default could be among what is missing.
        self.problems.is_empty().then(|| Catalog::new(plans, default_plan.as_ref().map(|(id, _)| id.as_str())))
    }

    fn plans(&mut self, node: &Node) -> Option<Vec<Plan>> {
        let entries = self.map(node, "plans")?;
        if entries.is_empty() {
            self.report(node.line, "plans", "is empty; write at least one plan");
        }
        if entries.len() > MAX_PLANS {
            self.report(node.line, "plans", format!("has more than {MAX_PLANS} plans; keep at most so many"));
            return None;
        }
        let plans = entries.iter().map(|entry| {
            let path = join("plans", &entry.key);
            self.check_id(&entry.key, entry.line, &path);
            self.plan(&entry.key, &entry.value, &path)
        });
        plans.collect::<Vec<_>>().into_iter().collect()
    }

    fn plan(&mut self, id: &str, node: &Node, path: &str) -> Option<Plan> {
        let known = ["name", "period", "anchor", "timezone", "on_plan_change", "limit_groups"];
        let fields = self.fields(node, path, &known)?;
        let name = self.optional_text(&fields, "name").unwrap_or_else(|| id.to_owned());
        let period = self.period(&fields);
        let anchor = self.word(&fields, "anchor", &ANCHORS).unwrap_or(Anchor::Calendar);
        let on_plan_change = self.word(&fields, "on_plan_change", &CHANGES).unwrap_or(OnPlanChange::Carry);
        let timezone = self.optional_text(&fields, "timezone").unwrap_or_else(|| "UTC".to_owned());
        let zone = self.zones.get(&timezone);
        if zone.is_err() {
            let line = fields.get("timezone").map_or(node.line, |node| node.line);
            let message =
                format!("is {}, which is no time zone; write an IANA name such as Europe/Vienna", quoted(&timezone));
            self.report(line, &fields.path_of("timezone"), message);
        }
        let groups = self.required(&fields, "limit_groups").and_then(|node| {
            let path = fields.path_of("limit_groups");
            // A group without a period of its own is only wrong if the plan has none at all.
            let defaults = Defaults { period, plan_has_period: fields.get("period").is_some(), anchor };
            self.groups(node, &path, &defaults)
        });
        let groups = groups?;
        if measured_names(&groups).len() > MAX_NAMES {
            let message = format!("measures more than {MAX_NAMES} names in all; keep at most so many");
            self.report(node.line, path, message);
        }
        self.warn_of_free_passes(&groups, &fields);
        Some(Plan { id: id.to_owned(), name, on_plan_change, timezone, zone: zone.ok()?, groups })
    }

    /// Warns of prices that only some metadata has: an unknown model would be free.
    fn warn_of_free_passes(&mut self, groups: &[LimitGroup], plan: &Fields<'_>) {
        for FreePass { group, rule, event, metadata } in free_passes(groups) {
            let path = format!("{}[{group}].match[{rule}]", plan.path_of("limit_groups"));
            let line = plan.get("limit_groups").and_then(|node| line_of(node, group, rule)).unwrap_or(plan.line);
            let with = match metadata.is_empty() {
                true => "one without metadata".to_owned(),
                false => {
                    let pairs = metadata.iter().map(|(key, value)| format!("{} {}", shown(key), quoted(value)));
                    format!("one with {}", pairs.collect::<Vec<_>>().join(", "))
                }
            };
            let message = format!(
                "prices {} for some metadata only: {with} costs no cents and passes; add a last rule without `metadata:` that is \
                 priced as the dearest, or has weight 0 if it is meant to be free",
                quoted(&event)
            );
            self.warnings.push(Problem { line, path, message });
        }
    }

    fn groups(&mut self, node: &Node, path: &str, defaults: &Defaults) -> Option<Vec<LimitGroup>> {
        let items = self.list(node, path, MAX_GROUPS)?;
        let mut seen = HashSet::new();
        let mut groups = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let Some(id) = id_of(item)
                && !seen.insert(id)
            {
                self.report(
                    item.line,
                    &path,
                    format!("repeats the id {}; give each group of a plan its own", quoted(id)),
                );
            }
            groups.push(self.group(item, &path, defaults));
        }
        groups.into_iter().collect()
    }

    fn group(&mut self, node: &Node, path: &str, defaults: &Defaults) -> Option<LimitGroup> {
        let known = ["id", "label", "unit", "quota", "period", "anchor", "hard", "thresholds", "match"];
        let fields = self.fields(node, path, &known)?;
        let id = self.required(&fields, "id").and_then(|node| {
            let path = fields.path_of("id");
            let id = self.text(node, &path)?;
            self.check_id(&id, node.line, &path);
            Some(id)
        });
        let label = self.optional_text(&fields, "label").or_else(|| id.clone());
        let unit = match self.required(&fields, "unit") {
            Some(_) => self.word(&fields, "unit", &UNITS),
            None => None,
        };
        let quota = self.required(&fields, "quota").and_then(|node| self.quota(node, &fields.path_of("quota"), unit));
        let period = self.period(&fields).or(defaults.period);
        if period.is_none() && !defaults.plan_has_period && fields.get("period").is_none() {
            let words = one_of(&PERIODS.map(|(word, _)| word));
            let message =
                format!("has no period, nor has its plan; write `period:` with {words}, or a length such as 5h");
            self.report(fields.line, path, message);
        }
        let anchor = self.word(&fields, "anchor", &ANCHORS).unwrap_or(defaults.anchor);
        self.check_anchor(&fields, path, period, anchor);
        let hard = self.flag(&fields, "hard").unwrap_or(true);
        let thresholds = match fields.get("thresholds") {
            Some(node) => self.thresholds(node, &fields.path_of("thresholds"), unit),
            None => Some(Thresholds::default()),
        };
        let rules = self.required(&fields, "match").and_then(|node| self.rules(node, &fields.path_of("match"), unit));
        Some(LimitGroup {
            id: id?,
            label: label?,
            unit: unit?,
            quota: quota?,
            period: period?,
            anchor,
            hard,
            thresholds: thresholds?,
            rules: rules?,
        })
    }

    /// A period by its word, or of a given length.
    fn period(&mut self, fields: &Fields<'_>) -> Option<Period> {
        let node = fields.get("period")?;
        let Value::Scalar { text, .. } = &node.value else { return self.word(fields, "period", &PERIODS) };
        // Whatever begins with a digit is meant as a length.
        if !text.starts_with(|first: char| first.is_ascii_digit()) {
            return self.word(fields, "period", &PERIODS);
        }
        match text.parse::<Length>() {
            Ok(length) => Some(Period::Length(length)),
            Err(problem) => {
                let hint = match problem {
                    InvalidLength::Form => "write a length as a whole number and m, h or d, such as 90m, 5h or 7d",
                    InvalidLength::OutOfBounds => "write a length of 1m to 366d",
                };
                let message = format!("is {}; {hint}", quoted(text));
                self.report(node.line, &fields.path_of("period"), message);
                None
            }
        }
    }

    /// A length of time has no boundaries in the calendar.
    fn check_anchor(&mut self, group: &Fields<'_>, path: &str, period: Option<Period>, anchor: Anchor) {
        let (Some(Period::Length(length)), Anchor::Calendar) = (period, anchor) else { return };
        let line = ["anchor", "period"].iter().find_map(|field| group.get(field)).map_or(group.line, |node| node.line);
        let message = format!(
            "has windows of {length}, which have no boundaries in the calendar; write `anchor: first_use` (a window starts with its \
             first event) or `anchor: subscription_start` (one window after another)"
        );
        self.report(line, path, message);
    }

    fn quota(&mut self, node: &Node, path: &str, unit: Option<Unit>) -> Option<Quota> {
        if matches!(&node.value, Value::Scalar { text, .. } if text == "unlimited") {
            return Some(Quota::Unlimited);
        }
        let text = self.decimal(node, path, "`unlimited` or an amount")?;
        let unit = unit?;
        match exact(text).and_then(|amount| amount.in_units(unit)) {
            Some(units) => Some(Quota::Limited(units)),
            None => {
                let message = format!("is {}; {}", shown(text), range(unit));
                self.report(node.line, path, message);
                None
            }
        }
    }

    fn thresholds(&mut self, node: &Node, path: &str, unit: Option<Unit>) -> Option<Thresholds> {
        let items = self.list(node, path, MAX_THRESHOLDS)?;
        let (mut thresholds, mut understood) = (Thresholds::default(), 0);
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let Value::Map(_) = &item.value {
                let Some(units) = self.threshold_amount(item, &path, unit) else { continue };
                if thresholds.amounts.last().is_some_and(|last| *last >= units) {
                    let message = "is not larger than the amount before; write amounts in ascending order";
                    self.report(item.line, &path, message);
                }
                thresholds.amounts.push(units);
            } else {
                let Some(share) = self.threshold_share(item, &path) else { continue };
                if thresholds.shares.last().is_some_and(|last| *last >= share) {
                    self.report(item.line, &path, "is not larger than the one before; write them in ascending order");
                }
                thresholds.shares.push(share);
            }
            understood += 1;
        }
        (understood == items.len()).then_some(thresholds)
    }

    /// A share of the quota.
    fn threshold_share(&mut self, node: &Node, path: &str) -> Option<Quantity> {
        let text = self.decimal(node, path, "a share of the quota")?;
        let sensible = |share: &Quantity| match (share.whole_part(), share.micro_part()) {
            (0, micro) => micro > 0,
            (whole, micro) => whole < 10 || (whole, micro) == (10, 0),
        };
        let share = exact(text).filter(sensible);
        if share.is_none() {
            let message = format!("is {}; write a share above 0 and at most 10, with at most 6 decimals", shown(text));
            self.report(node.line, path, message);
        }
        share
    }

    /// An amount in the group's unit, rounded up to its smallest step.
    fn threshold_amount(&mut self, node: &Node, path: &str, unit: Option<Unit>) -> Option<Units> {
        let fields = self.fields(node, path, &["amount"])?;
        let node = self.required(&fields, "amount")?;
        let path = fields.path_of("amount");
        let text = self.decimal(node, &path, "an amount")?;
        let unit = unit?;
        let amount = exact(text).filter(|amount| !amount.is_zero()).and_then(|amount| amount.in_units_rounded_up(unit));
        if amount.is_none() {
            let largest = unit.max_units() / unit.scale();
            let message = format!(
                "is {}; write an amount above 0 and at most {largest} {}, with at most 6 decimals",
                shown(text),
                unit.as_str()
            );
            self.report(node.line, &path, message);
        }
        amount
    }
}

/// The values of a plan that its groups inherit.
struct Defaults {
    period: Option<Period>,
    plan_has_period: bool,
    anchor: Anchor,
}

/// Describes the quotas that a unit allows. Above 8000000000 a quantity is a whole number.
fn range(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "count must be a whole number up to 9007199254740991",
        Unit::Tokens => "tokens must be a whole number up to 9007199254740991",
        Unit::Seconds => "seconds must be a multiple of 0.001 up to 8000000000, or a whole number up to 9007199254740",
        Unit::Cents => "cents must be a multiple of 0.000001 up to 8000000000",
    }
}

/// EXACT: a number of at most six decimals. More would be rounded away, and not be what was written.
fn exact(text: &str) -> Option<Quantity> {
    if decimals(text) > 6 { None } else { Quantity::from_decimal(text).ok() }
}

/// Returns the line of a rule of a group.
fn line_of(groups: &Node, group: usize, rule: usize) -> Option<usize> {
    let Value::List(groups) = &groups.value else { return None };
    let Value::Map(fields) = &groups.get(group)?.value else { return None };
    let Value::List(rules) = &fields.iter().find(|field| field.key == "match")?.value.value else { return None };
    rules.get(rule).map(|rule| rule.line)
}

fn id_of(node: &Node) -> Option<&str> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == "id").and_then(|entry| match &entry.value.value {
        Value::Scalar { text, .. } => Some(text.as_str()),
        Value::List(_) | Value::Map(_) | Value::Refused => None,
    })
}
