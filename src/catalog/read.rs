//! From the tree to plans. Every function reports what is wrong and goes on, so that all problems are told at once; it returns
//! `None` where it could not understand its part.

use std::collections::HashSet;
use std::fmt::Write as _;

use jiff::tz::TimeZoneDatabase;

use crate::domain::amount::{Quantity, Unit, Weight};
use crate::domain::pattern::{EventPattern, ValuePattern};
use crate::domain::plan::{
    Anchor, Catalog, Condition, LimitGroup, Measure, OnPlanChange, Period, Plan, Quota, Rule, Term,
};

use super::Problem;
use super::yaml::{Entry, Node, Value};

const MAX_PLANS: usize = 1000;
const MAX_GROUPS: usize = 1000;
const MAX_RULES: usize = 100;
const MAX_TERMS: usize = 16;
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
const ANCHORS: [(&str, Anchor); 2] =
    [("calendar", Anchor::Calendar), ("subscription_start", Anchor::SubscriptionStart)];
const CHANGES: [(&str, OnPlanChange); 3] =
    [("carry", OnPlanChange::Carry), ("reset", OnPlanChange::Reset), ("block", OnPlanChange::Block)];
const UNITS: [(&str, Unit); 4] =
    [("count", Unit::Count), ("tokens", Unit::Tokens), ("seconds", Unit::Seconds), ("cents", Unit::Cents)];

/// Reads the whole catalog.
pub(super) fn catalog(root: &Node, zones: &TimeZoneDatabase) -> Result<Catalog, Vec<Problem>> {
    let mut reader = Reader { problems: Vec::new(), zones };
    let read = reader.catalog(root);
    match read {
        Some(catalog) if reader.problems.is_empty() => Ok(catalog),
        _ => Err(reader.problems),
    }
}

struct Reader<'a> {
    problems: Vec<Problem>,
    zones: &'a TimeZoneDatabase,
}

/// The entries of a map, by known key.
struct Fields<'a> {
    path: String,
    line: usize,
    entries: Vec<&'a Entry>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Reader<'_> {
    fn report(&mut self, line: usize, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { line, path: path.to_owned(), message: message.into() });
    }

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
            let known: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
            self.report(*line, "default_plan", format!("names no plan {id:?}; there are: {}", known.join(", ")));
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
            self.report(node.line, "plans", format!("has more than {MAX_PLANS} plans"));
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
        let period = self.word(&fields, "period", &PERIODS);
        let anchor = self.word(&fields, "anchor", &ANCHORS).unwrap_or(Anchor::Calendar);
        let on_plan_change = self.word(&fields, "on_plan_change", &CHANGES).unwrap_or(OnPlanChange::Carry);
        let timezone = self.optional_text(&fields, "timezone").unwrap_or_else(|| "UTC".to_owned());
        let zone = self.zones.get(&timezone);
        if zone.is_err() {
            let line = fields.get("timezone").map_or(node.line, |node| node.line);
            let message = format!("is {timezone:?}, which is no time zone; write an IANA name such as Europe/Vienna");
            self.report(line, &fields.path_of("timezone"), message);
        }
        let groups = self.required(&fields, "limit_groups").and_then(|node| {
            let path = fields.path_of("limit_groups");
            // A group without a period of its own is only wrong if the plan has none at all.
            let defaults = Defaults { period, plan_has_period: fields.get("period").is_some(), anchor };
            self.groups(node, &path, &defaults)
        });
        Some(Plan { id: id.to_owned(), name, on_plan_change, timezone, zone: zone.ok()?, groups: groups? })
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
                self.report(item.line, &path, format!("repeats the id {id:?}; ids are unique in a plan"));
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
        let period = self.word(&fields, "period", &PERIODS).or(defaults.period);
        if period.is_none() && !defaults.plan_has_period && fields.get("period").is_none() {
            let words = words(&PERIODS);
            self.report(fields.line, path, format!("has no period, nor has its plan; write `period:` with {words}"));
        }
        let anchor = self.word(&fields, "anchor", &ANCHORS).unwrap_or(defaults.anchor);
        let hard = self.word(&fields, "hard", &[("true", true), ("false", false)]).unwrap_or(true);
        let thresholds = match fields.get("thresholds") {
            Some(node) => self.thresholds(node, &fields.path_of("thresholds")),
            None => Some(Vec::new()),
        };
        let rules = self.required(&fields, "match").and_then(|node| self.rules(node, &fields.path_of("match")));
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

    fn quota(&mut self, node: &Node, path: &str, unit: Option<Unit>) -> Option<Quota> {
        let text = self.scalar(node, path, "an amount or `unlimited`")?;
        if text == "unlimited" {
            return Some(Quota::Unlimited);
        }
        let amount = match Quantity::from_decimal(text) {
            Ok(amount) => amount,
            Err(problem) => {
                self.report(node.line, path, format!("is {text:?}, which {problem}, or write `unlimited`"));
                return None;
            }
        };
        // Decimals beyond the sixth would be rounded away: a quota is what is written.
        let exact = text.split_once('.').is_none_or(|(_, decimals)| decimals.trim_end_matches('0').len() <= 6);
        let unit = unit?;
        match amount.in_units(unit).filter(|_| exact) {
            Some(units) => Some(Quota::Limited(units)),
            None => {
                let (finest, most) = (1.0 / unit.scale() as f64, unit.to_f64(unit.max_units()));
                let message = format!("is {text}; {} must be a multiple of {finest} up to {most}", unit.as_str());
                self.report(node.line, path, message);
                None
            }
        }
    }

    fn thresholds(&mut self, node: &Node, path: &str) -> Option<Vec<Quantity>> {
        let items = self.list(node, path, 100)?;
        let mut thresholds: Vec<Quantity> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Some(text) = self.scalar(item, &path, "a share of the quota such as 0.8") else { continue };
            let share = Quantity::from_decimal(text).ok().filter(|share| *share > Quantity::default());
            let Some(share) = share.filter(|share| share.whole_part() < 10) else {
                self.report(item.line, &path, format!("is {text:?}; write a share above 0 and below 10, such as 0.8"));
                continue;
            };
            if thresholds.last().is_some_and(|last| *last >= share) {
                self.report(item.line, &path, "is not larger than the one before; write them in ascending order");
            }
            thresholds.push(share);
        }
        (thresholds.len() == items.len()).then_some(thresholds)
    }

    fn rules(&mut self, node: &Node, path: &str) -> Option<Vec<Rule>> {
        let items = self.list(node, path, MAX_RULES)?;
        let mut rules: Vec<Option<Rule>> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let rule = self.rule(item, &path);
            if let Some(rule) = &rule
                && let Some(earlier) =
                    rules.iter().position(|earlier| earlier.as_ref().is_some_and(|earlier| hides(earlier, rule)))
            {
                let message =
                    format!("is never reached: rule {earlier} before it applies to the same events; remove one");
                self.report(item.line, &path, message);
            }
            rules.push(rule);
        }
        rules.into_iter().collect()
    }

    fn rule(&mut self, node: &Node, path: &str) -> Option<Rule> {
        let fields = self.fields(node, path, &["event", "metadata", "measure"])?;
        let event = self.required(&fields, "event").and_then(|node| self.event(node, &fields.path_of("event")));
        let conditions = match fields.get("metadata") {
            Some(node) => self.conditions(node, &fields.path_of("metadata")),
            None => Some(Vec::new()),
        };
        let measure = match fields.get("measure") {
            Some(node) => self.measure(node, &fields.path_of("measure")),
            None => Some(Measure::Terms(vec![quantity()])),
        };
        Some(Rule { event: event?, conditions: conditions?, measure: measure? })
    }

    fn event(&mut self, node: &Node, path: &str) -> Option<EventPattern> {
        let text = self.text(node, path)?;
        if text.ends_with(".refund") {
            let message = "names a refund; refunds are routed by the rules of the event that they refund: remove it";
            self.report(node.line, path, message);
            return None;
        }
        EventPattern::parse(&text).map_err(|message| self.report(node.line, path, message)).ok()
    }

    fn conditions(&mut self, node: &Node, path: &str) -> Option<Vec<Condition>> {
        let entries = self.map(node, path)?;
        let conditions = entries.iter().map(|entry| {
            let path = join(path, &entry.key);
            if entry.key.is_empty() || entry.key.len() > MAX_ID_BYTES {
                self.report(entry.line, &path, format!("a metadata key has 1 to {MAX_ID_BYTES} bytes"));
            }
            let values = match &entry.value.value {
                Value::List(_) => self.list(&entry.value, &path, MAX_RULES)?.iter().collect(),
                _ => vec![&entry.value],
            };
            let values = values.into_iter().map(|value| {
                let text = self.scalar(value, &path, "a value, `prefix*`, or a list of these")?;
                if text.len() > MAX_TEXT_BYTES {
                    self.report(
                        value.line,
                        &path,
                        format!("is longer than {MAX_TEXT_BYTES} bytes, as no metadata value is"),
                    );
                }
                Some(ValuePattern::parse(text))
            });
            let values = values.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?;
            Some(Condition { key: entry.key.clone(), values })
        });
        conditions.collect::<Vec<_>>().into_iter().collect()
    }

    fn measure(&mut self, node: &Node, path: &str) -> Option<Measure> {
        let terms: Vec<Option<Term>> = match &node.value {
            Value::Scalar { text, .. } if text == "quantity" => vec![Some(quantity())],
            Value::Scalar { text, .. } if text == "events" => return Some(Measure::Events),
            Value::Scalar { .. } => {
                let message =
                    format!("is {}; write `quantity`, `events`, or a map from quantity to weight", node.describe());
                self.report(node.line, path, message);
                return None;
            }
            Value::List(items) => {
                let terms = items.iter().enumerate().map(|(index, item)| self.term(item, &format!("{path}[{index}]")));
                terms.collect()
            }
            Value::Map(entries) if entries.iter().any(|entry| entry.key == "name") => vec![self.term(node, path)],
            Value::Map(_) => {
                let entries = self.map(node, path)?;
                let terms = entries.iter().map(|entry| {
                    let weight = self.weight(&entry.value, &join(path, &entry.key))?;
                    Some(Term { name: entry.key.clone(), weight, default: None })
                });
                terms.collect()
            }
        };
        if terms.is_empty() {
            self.report(node.line, path, "is empty; name at least one quantity");
        }
        if terms.len() > MAX_TERMS {
            self.report(node.line, path, format!("has more than {MAX_TERMS} terms, as no event has more quantities"));
        }
        let terms = terms.into_iter().collect::<Option<Vec<_>>>()?;
        let mut seen = HashSet::new();
        for term in &terms {
            if term.name.is_empty() || term.name.len() > MAX_ID_BYTES {
                self.report(node.line, path, format!("a quantity's name has 1 to {MAX_ID_BYTES} bytes"));
            }
            if !seen.insert(&term.name) {
                self.report(node.line, path, format!("names {:?} twice", term.name));
            }
        }
        Some(Measure::Terms(terms))
    }

    fn term(&mut self, node: &Node, path: &str) -> Option<Term> {
        let fields = self.fields(node, path, &["name", "weight", "default"])?;
        let name = self.required(&fields, "name").and_then(|node| self.text(node, &fields.path_of("name")));
        let weight = match fields.get("weight") {
            Some(node) => self.weight(node, &fields.path_of("weight")),
            None => Some(Weight::ONE),
        };
        let default = match fields.get("default") {
            Some(node) => {
                let path = fields.path_of("default");
                let text = self.scalar(node, &path, "a number")?;
                let read = Quantity::from_decimal(text);
                Some(
                    read.map_err(|problem| self.report(node.line, &path, format!("is {text:?}, which {problem}")))
                        .ok()?,
                )
            }
            None => None,
        };
        Some(Term { name: name?, weight: weight?, default })
    }

    fn weight(&mut self, node: &Node, path: &str) -> Option<Weight> {
        let text = self.scalar(node, path, "a weight such as 1 or 0.00025")?;
        let read = Weight::from_decimal(text);
        read.map_err(|problem| self.report(node.line, path, format!("is {text:?}; a weight {problem}"))).ok()
    }

    /// The entries of a map with these keys only.
    fn fields<'a>(&mut self, node: &'a Node, path: &str, known: &[&str]) -> Option<Fields<'a>> {
        let entries = self.map(node, path)?;
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                let mut message = format!("is not known here; there are: {}", known.join(", "));
                if let Some(near) = known.iter().find(|known| is_near(known, &entry.key)) {
                    let _: std::fmt::Result = write!(message, " (did you mean `{near}`?)");
                }
                self.report(entry.line, &join(path, &entry.key), message);
            }
        }
        Some(Fields { path: path.to_owned(), line: node.line, entries: entries.iter().collect() })
    }

    fn required<'a>(&mut self, fields: &Fields<'a>, key: &str) -> Option<&'a Node> {
        let found = fields.get(key);
        if found.is_none() {
            self.report(fields.line, &fields.path, format!("lacks `{key}:`"));
        }
        found
    }

    /// A map without duplicate keys.
    fn map<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a [Entry]> {
        let Value::Map(entries) = &node.value else {
            self.report(node.line, path, format!("must be a map, but is {}", node.describe()));
            return None;
        };
        let mut seen = HashSet::new();
        for entry in entries {
            if !seen.insert(entry.key.as_str()) {
                self.report(entry.line, &join(path, &entry.key), "stands here twice; keep one");
            }
        }
        Some(entries)
    }

    fn list<'a>(&mut self, node: &'a Node, path: &str, most: usize) -> Option<&'a [Node]> {
        let Value::List(items) = &node.value else {
            self.report(node.line, path, format!("must be a list, but is {}", node.describe()));
            return None;
        };
        if items.is_empty() {
            self.report(node.line, path, "is an empty list; write at least one item, or leave it out");
        }
        if items.len() > most {
            self.report(node.line, path, format!("has more than {most} items"));
            return None;
        }
        Some(items)
    }

    fn scalar<'a>(&mut self, node: &'a Node, path: &str, wanted: &str) -> Option<&'a str> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => Some(text),
            _ => {
                self.report(node.line, path, format!("must be {wanted}, but is {}", node.describe()));
                None
            }
        }
    }

    /// Text of 1 to 256 bytes.
    fn text(&mut self, node: &Node, path: &str) -> Option<String> {
        let text = self.scalar(node, path, "text")?;
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            self.report(node.line, path, format!("must have 1 to {MAX_TEXT_BYTES} bytes"));
            return None;
        }
        Some(text.to_owned())
    }

    fn optional_text(&mut self, fields: &Fields<'_>, key: &str) -> Option<String> {
        fields.get(key).and_then(|node| self.text(node, &fields.path_of(key)))
    }

    /// One of these words, where the key is there.
    fn word<T: Copy>(&mut self, fields: &Fields<'_>, key: &str, known: &[(&str, T)]) -> Option<T> {
        let node = fields.get(key)?;
        let path = fields.path_of(key);
        let text = self.scalar(node, &path, &words(known))?;
        let found = known.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            self.report(node.line, &path, format!("is {text:?}; write {}", words(known)));
        }
        found
    }

    fn check_id(&mut self, id: &str, line: usize, path: &str) {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(known) {
            self.report(line, path, format!("the id {id:?} must be 1 to {MAX_ID_BYTES} of A-Z a-z 0-9 . _ -"));
        }
    }
}

/// What a plan says for groups that do not.
struct Defaults {
    period: Option<Period>,
    plan_has_period: bool,
    anchor: Anchor,
}

fn quantity() -> Term {
    Term { name: "quantity".to_owned(), weight: Weight::ONE, default: None }
}

fn id_of(node: &Node) -> Option<&str> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == "id").and_then(|entry| match &entry.value.value {
        Value::Scalar { text, .. } => Some(text.as_str()),
        Value::List(_) | Value::Map(_) => None,
    })
}

/// Whether `earlier` applies whenever `later` does.
fn hides(earlier: &Rule, later: &Rule) -> bool {
    let always = match &earlier.measure {
        Measure::Events => true,
        Measure::Terms(terms) => terms.iter().all(|term| term.default.is_some()),
    };
    let same = earlier.event == later.event && earlier.conditions == later.conditions;
    same && (always || earlier.measure == later.measure)
}

fn words<T>(known: &[(&str, T)]) -> String {
    let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.join(""),
    }
}

/// Whether one is the other but for a letter or two.
fn is_near(known: &str, written: &str) -> bool {
    let (known, written): (Vec<char>, Vec<char>) = (known.chars().collect(), written.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=written.len()).collect();
    for (i, left) in known.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in written.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().is_some_and(|distance| *distance <= 2)
}
