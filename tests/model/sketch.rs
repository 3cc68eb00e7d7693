//! Catalogs and events as plain data: what a generator makes, what the reference model understands, and what is written out as YAML
//! and protobuf for the real service.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tollgate::grpc::v1;

/// Numbers are millionths, weights millionths of millionths.
pub const MICRO: u128 = 1_000_000;
pub const PICO: u128 = MICRO * MICRO;

/// 2^53 - 1.
pub const LARGEST: u128 = (1 << 53) - 1;

#[derive(Debug, Clone)]
pub struct Catalog {
    pub default_plan: Option<String>,
    pub plans: Vec<Plan>,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub id: String,
    pub zone: &'static str,
    pub change: &'static str,
    pub groups: Vec<Group>,
}

#[derive(Debug, Clone)]
pub struct Group {
    pub id: String,
    pub label: String,
    pub unit: Unit,
    /// In smallest units; none is unlimited.
    pub quota: Option<u128>,
    pub hard: bool,
    pub period: Period,
    pub anchor: Anchor,
    pub thresholds: Vec<Threshold>,
    pub rules: Vec<Rule>,
}

/// In millionths: of the quota, or of the unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Threshold {
    Share(u128),
    Amount(u128),
}

impl Threshold {
    pub fn share(&self) -> Option<u128> {
        match self {
            Self::Share(micros) => Some(*micros),
            Self::Amount(_) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    Count,
    Tokens,
    Seconds,
    Cents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    Minute,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    Lifetime,
    /// Of so many minutes.
    Length(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Calendar,
    SubscriptionStart,
    FirstUse,
}

#[derive(Debug, Clone)]
pub struct Rule {
    pub pattern: String,
    /// Metadata key, and values of which one must fit.
    pub conditions: Vec<(String, Vec<String>)>,
    pub measure: Measure,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Measure {
    Events,
    Terms(Vec<Term>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    pub name: String,
    /// In millionths of millionths.
    pub weight: u128,
    /// In millionths.
    pub default: Option<u128>,
    /// The term of the same measure that contains this one.
    pub part_of: Option<String>,
}

/// An event as a caller may write it; numbers in millionths.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    pub name: String,
    pub quantity: Option<u128>,
    pub quantities: BTreeMap<String, u128>,
    pub metadata: BTreeMap<String, String>,
}

impl Unit {
    /// How many smallest units make one.
    pub fn scale(self) -> u128 {
        match self {
            Self::Count | Self::Tokens => 1,
            Self::Seconds => 1000,
            Self::Cents => MICRO,
        }
    }

    /// The largest counter.
    pub fn most(self) -> u128 {
        if self == Self::Cents { 8_000_000_000 * MICRO } else { LARGEST }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Tokens => "tokens",
            Self::Seconds => "seconds",
            Self::Cents => "cents",
        }
    }

    /// As the API shows it.
    pub fn shown(self, units: u128) -> f64 {
        units as f64 / self.scale() as f64
    }
}

impl Period {
    fn word(self) -> String {
        match self {
            Self::Length(minutes) if minutes % 1440 == 0 => format!("{}d", minutes / 1440),
            Self::Length(minutes) => format!("{minutes}m"),
            named => format!("{named:?}").to_lowercase(),
        }
    }
}

impl Catalog {
    pub fn plan(&self, id: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.id == id)
    }

    pub fn default_plan(&self) -> Option<&Plan> {
        self.default_plan.as_deref().and_then(|id| self.plan(id))
    }

    pub fn yaml(&self) -> String {
        let mut out = String::new();
        if let Some(id) = &self.default_plan {
            writeln!(out, "default_plan: {id}").unwrap();
        }
        out.push_str("plans:\n");
        for plan in &self.plans {
            let Plan { id, zone, change, groups } = plan;
            writeln!(out, "  {id}:\n    timezone: {zone}\n    on_plan_change: {change}\n    limit_groups:").unwrap();
            for group in groups {
                out.push_str(&group.yaml());
            }
        }
        out
    }
}

impl Group {
    fn yaml(&self) -> String {
        let Self { id, label, unit, quota, hard, period, anchor, thresholds, rules } = self;
        let quota = quota.map_or("unlimited".to_owned(), |units| decimal(units, unit.scale()));
        let anchor = match anchor {
            Anchor::Calendar => "calendar",
            Anchor::SubscriptionStart => "subscription_start",
            Anchor::FirstUse => "first_use",
        };
        let (unit, period) = (unit.word(), period.word());
        let thresholds = thresholds.iter().map(|threshold| match threshold {
            Threshold::Share(micros) => decimal(*micros, MICRO),
            Threshold::Amount(micros) => format!("{{ amount: {} }}", decimal(*micros, MICRO)),
        });
        let thresholds = thresholds.collect::<Vec<_>>().join(", ");
        let thresholds = if thresholds.is_empty() { thresholds } else { format!("thresholds: [{thresholds}], ") };
        let mut out = format!(
            "      - {{ id: {id}, label: {label}, unit: {unit}, quota: {quota}, hard: {hard}, period: {period}, \
             anchor: {anchor}, {thresholds}match: ["
        );
        for Rule { pattern, conditions, measure } in rules {
            write!(out, "{{ event: '{pattern}'").unwrap();
            if !conditions.is_empty() {
                let shown = conditions.iter().map(|(key, values)| format!("{key}: ['{}']", values.join("', '")));
                write!(out, ", metadata: {{ {} }}", shown.collect::<Vec<_>>().join(", ")).unwrap();
            }
            write!(out, ", measure: {} }}, ", measure.yaml()).unwrap();
        }
        out + "] }\n"
    }
}

impl Measure {
    fn yaml(&self) -> String {
        let terms = match self {
            Self::Events => return "events".to_owned(),
            Self::Terms(terms) => terms,
        };
        // The long form where a term has a default or is a part, else a map.
        if terms.iter().all(|term| term.default.is_none() && term.part_of.is_none()) {
            let shown = terms.iter().map(|term| format!("{}: {}", term.name, decimal(term.weight, PICO)));
            return format!("{{ {} }}", shown.collect::<Vec<_>>().join(", "));
        }
        let shown = terms.iter().map(|term| {
            let default = term.default.map(|default| format!(", default: {}", decimal(default, MICRO)));
            let part_of = term.part_of.as_ref().map(|whole| format!(", part_of: {whole}"));
            let others = default.unwrap_or_default() + &part_of.unwrap_or_default();
            format!("{{ name: {}, weight: {}{others} }}", term.name, decimal(term.weight, PICO))
        });
        format!("[{}]", shown.collect::<Vec<_>>().join(", "))
    }
}

/// `units / scale` in decimal digits; the scale is a power of ten.
pub fn decimal(units: u128, scale: u128) -> String {
    let places = scale.ilog10() as usize;
    let (whole, rest) = (units / scale, units % scale);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:0places$}").trim_end_matches('0').to_owned() }
}

/// The double that a caller sends for this many millionths.
pub fn double(micros: u128) -> f64 {
    if micros.is_multiple_of(MICRO) { (micros / MICRO) as f64 } else { micros as f64 / MICRO as f64 }
}

impl Event {
    pub fn message(&self) -> v1::Event {
        v1::Event {
            name: self.name.clone(),
            quantity: self.quantity.map(double),
            quantities: self.quantities.iter().map(|(name, micros)| (name.clone(), double(*micros))).collect(),
            metadata: self.metadata.clone(),
        }
    }

    /// Two requests with the same are the same: an event without any number is one with quantity 1.
    pub fn normal(&self) -> Self {
        let unsaid = self.quantities.is_empty() && !self.metadata.contains_key("quantity");
        Self { quantity: self.quantity.or(unsaid.then_some(MICRO)), ..self.clone() }
    }

    /// For `X.refund`: `X`.
    pub fn refunded(&self) -> Option<&str> {
        self.name.strip_suffix(".refund")
    }
}
