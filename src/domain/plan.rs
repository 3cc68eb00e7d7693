//! Plans, limit groups, match rules and measures: the catalog as it is understood, whatever file it came from.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;

use super::amount::{Quantity, Unit, Units, Weight};
use super::event::QUANTITY;
use super::pattern::{EventPattern, ValuePattern};

/// All plans, in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    plans: Vec<Plan>,
    by_id: HashMap<String, usize>,
    default_plan: Option<usize>,
}

impl Catalog {
    /// A catalog of `plans`, whose ids differ.
    ///
    /// # Panics
    /// If `default_plan` is none of them: the reader of the catalog has checked it.
    #[must_use]
    pub fn new(plans: Vec<Plan>, default_plan: Option<&str>) -> Self {
        let by_id: HashMap<String, usize> =
            plans.iter().enumerate().map(|(index, plan)| (plan.id.clone(), index)).collect();
        assert_eq!(by_id.len(), plans.len(), "plan ids differ");
        let default_plan = default_plan.map(|id| by_id[id]);
        Self { plans, by_id, default_plan }
    }

    /// Every plan, in the order of the file.
    #[must_use]
    pub fn plans(&self) -> &[Plan] {
        &self.plans
    }

    /// The plan with this id.
    #[must_use]
    pub fn plan(&self, id: &str) -> Option<&Plan> {
        self.by_id.get(id).map(|&index| &self.plans[index])
    }

    /// The plan of users without a subscription.
    #[must_use]
    pub fn default_plan(&self) -> Option<&Plan> {
        self.default_plan.map(|index| &self.plans[index])
    }
}

/// A named list of limit groups.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its key in the catalog.
    pub id: String,
    /// The plan's name for people.
    pub name: String,
    /// The effect on the counters of a user who enters it.
    pub on_plan_change: OnPlanChange,
    /// The name of its time zone, as in the IANA database.
    pub timezone: String,
    /// The rules of that time zone, which calendar boundaries follow.
    pub zone: TimeZone,
    /// The limit groups, in the order of the file.
    pub groups: Vec<LimitGroup>,
}

/// Collects the names that the rules of `groups` measure.
#[must_use]
pub fn measured_names(groups: &[LimitGroup]) -> BTreeSet<String> {
    let measures = groups.iter().flat_map(|group| &group.rules).map(|rule| &rule.measure);
    let terms = measures.flat_map(|measure| match measure {
        Measure::Events => &[][..],
        Measure::Terms(terms) => terms,
    });
    terms.map(|term| term.name.clone()).collect()
}

/// The effect on a user's counters when the user enters a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPlanChange {
    /// Keep what groups with equal id, unit, period and anchor have counted.
    Carry,
    /// Start at 0.
    Reset,
    /// Start at the quota.
    Block,
}

/// One limit: how much of one unit, per period.
#[derive(Debug, Clone)]
pub struct LimitGroup {
    /// Unique in its plan.
    pub id: String,
    /// The group's name for people.
    pub label: String,
    /// The unit it counts in.
    pub unit: Unit,
    /// The quota per window.
    pub quota: Quota,
    /// The length of a window.
    pub period: Period,
    /// The start of windows.
    pub anchor: Anchor,
    /// True if it denies; false if it only reports `exceeded`.
    pub hard: bool,
    /// The points worth telling somebody about.
    pub thresholds: Thresholds,
    /// The first rule that applies decides what an event costs.
    pub rules: Vec<Rule>,
}

/// The amount that a group allows per window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quota {
    /// The window allows at most this, in smallest units.
    Limited(Units),
    /// Counts, and never denies.
    Unlimited,
}

/// The thresholds of a group: how much must be used for somebody to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Shares of the quota such as `0.8`, above 0 and ascending.
    pub shares: Vec<Quantity>,
    /// Amounts in smallest units, above 0 and ascending.
    pub amounts: Vec<Units>,
}

/// A threshold under one quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold {
    /// The amount that is used where it is reached, in smallest units.
    pub units: Units,
    /// The share of the quota, if the catalog says it as one.
    pub share: Option<Quantity>,
}

impl Thresholds {
    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty() && self.amounts.is_empty()
    }

    /// Returns the thresholds that `used` crosses where it goes from `before` to `after`: from below them to them or above. They are in
    /// ascending order, an amount before a share at the same point.
    ///
    /// A share of an unlimited quota is no point. One of a quota of 0 is at 0, where no `used` is below it.
    #[must_use]
    pub fn crossed(&self, quota: Quota, before: Units, after: Units) -> Vec<Threshold> {
        let amounts = self.amounts.iter().map(|units| Threshold { units: *units, share: None });
        let shares = self.shares.iter().filter_map(|share| match quota {
            Quota::Limited(quota) => Some(Threshold { units: share_of(*share, quota), share: Some(*share) }),
            Quota::Unlimited => None,
        });
        let is_crossed = |threshold: &Threshold| before < threshold.units && threshold.units <= after;
        let mut crossed: Vec<_> = amounts.chain(shares).filter(is_crossed).collect();
        crossed.sort_unstable();
        crossed
    }
}

/// EXACT: a share of a quota, rounded up to the smallest unit.
fn share_of(share: Quantity, quota: Units) -> Units {
    let micros = u128::from(share.whole_part()) * 1_000_000 + u128::from(share.micro_part());
    Units::try_from((micros * u128::from(quota)).div_ceil(1_000_000)).unwrap_or(Units::MAX)
}

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Period {
    Minute,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    /// A single window without end.
    Lifetime,
    /// A time of this length, whatever the calendar says. It equals no named period.
    Length(Length),
}

/// The word for it in the catalog and the API.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minute => f.write_str("minute"),
            Self::Hourly => f.write_str("hourly"),
            Self::Daily => f.write_str("daily"),
            Self::Weekly => f.write_str("weekly"),
            Self::Monthly => f.write_str("monthly"),
            Self::Yearly => f.write_str("yearly"),
            Self::Lifetime => f.write_str("lifetime"),
            Self::Length(length) => length.fmt(f),
        }
    }
}

/// A length of time in whole minutes: 1 minute to 366 days. `60m` and `1h` are the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Length(u32);

/// The reason why text is no [`Length`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLength {
    /// The text is not a number and a unit.
    #[error("a length is a whole number and m, h or d, such as 90m, 5h or 7d")]
    Form,
    /// The length is too short or too long.
    #[error("a length is 1m to 366d")]
    OutOfBounds,
}

impl Length {
    /// The longest one, in minutes: 366 days.
    pub const MOST_MINUTES: u32 = 366 * 24 * 60;

    /// A length of so many minutes, if that is in bounds.
    #[must_use]
    pub const fn of_minutes(minutes: u32) -> Option<Self> {
        if minutes == 0 || minutes > Self::MOST_MINUTES { None } else { Some(Self(minutes)) }
    }

    /// How many minutes it is.
    #[must_use]
    pub fn minutes(self) -> u32 {
        self.0
    }

    /// How many milliseconds it is.
    #[must_use]
    pub fn ms(self) -> i64 {
        i64::from(self.0) * 60_000
    }
}

impl FromStr for Length {
    type Err = InvalidLength;

    fn from_str(text: &str) -> Result<Self, InvalidLength> {
        let unit = text.chars().next_back().ok_or(InvalidLength::Form)?;
        let minutes_of_one = match unit {
            'm' => 1,
            'h' => 60,
            'd' => 24 * 60,
            _ => return Err(InvalidLength::Form),
        };
        // The unit is one byte.
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidLength::Form);
        }
        let minutes = digits.parse::<u32>().ok().and_then(|count| count.checked_mul(minutes_of_one));
        minutes.and_then(Self::of_minutes).ok_or(InvalidLength::OutOfBounds)
    }
}

/// In the largest unit that gives a whole number.
impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            minutes if minutes % (24 * 60) == 0 => write!(f, "{}d", minutes / (24 * 60)),
            minutes if minutes % 60 == 0 => write!(f, "{}h", minutes / 60),
            minutes => write!(f, "{minutes}m"),
        }
    }
}

/// The start of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Anchor {
    /// Windows start at the boundaries of the calendar, in the plan's time zone.
    Calendar,
    /// Windows start at the subscription's cycle anchor, and one period after another from there.
    SubscriptionStart,
    /// A window starts with the first event that is held or counted in it, and lasts one period.
    FirstUse,
}

impl Anchor {
    /// The word for it in the catalog and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calendar => "calendar",
            Self::SubscriptionStart => "subscription_start",
            Self::FirstUse => "first_use",
        }
    }
}

/// A rule: the events for which a group counts, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The event names it applies to.
    pub event: EventPattern,
    /// The conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// The measure it counts.
    pub measure: Measure,
}

/// A metadata key that must be present, with one of these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The metadata key.
    pub key: String,
    /// Any of them.
    pub values: Vec<ValuePattern>,
}

/// The measure of an event: the quantity to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measure {
    /// Always 1.
    Events,
    /// The sum of the terms. `quantity`, the default, is one term of that name with weight 1.
    Terms(Vec<Term>),
}

/// One quantity of an event, times a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The quantity's name; `quantity` is the event's own.
    pub name: String,
    /// The cost of one of it, in the group's unit.
    pub weight: Weight,
    /// The quantity that the catalog sets for events that do not carry it.
    pub default: Option<Quantity>,
    /// The quantity of the same measure that contains this one.
    pub part_of: Option<String>,
}

/// Finds the terms that have parts, each with its parts, as indices. A whole stands before its parts, which may have parts of their own.
#[must_use]
pub fn wholes(terms: &[Term]) -> Vec<(usize, Vec<usize>)> {
    let parts_of = |whole: usize| (0..terms.len()).filter(move |part| whole_of(terms, *part) == Some(whole)).collect();
    let mut wholes: Vec<(usize, Vec<usize>)> = (0..terms.len()).map(|whole| (whole, parts_of(whole))).collect();
    wholes.retain(|(_, parts)| !parts.is_empty());
    wholes.sort_by_key(|(whole, _)| containers(terms, *whole).count());
    wholes
}

/// Returns the index of the term that contains this one.
#[must_use]
pub fn whole_of(terms: &[Term], part: usize) -> Option<usize> {
    let name = terms[part].part_of.as_deref()?;
    terms.iter().position(|term| term.name == name)
}

/// Returns the term that contains this one, the one that contains that, and so on; of a circle, each term once.
pub fn containers(terms: &[Term], part: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(whole_of(terms, part), |whole| whole_of(terms, *whole)).take(terms.len())
}

impl Term {
    /// Returns the quantity to count in a group of this unit where the event does not carry it; none: the rule does not
    /// apply then.
    ///
    /// An event happens once unless it says otherwise, so that its own quantity is 1 where things are counted. A token, a second or
    /// a cent is never assumed.
    #[must_use]
    pub fn default_in(&self, unit: Unit) -> Option<Quantity> {
        self.default.or_else(|| (unit == Unit::Count && self.name == QUANTITY).then_some(Quantity::ONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(id: &str) -> Plan {
        Plan {
            id: id.to_owned(),
            name: id.to_owned(),
            on_plan_change: OnPlanChange::Carry,
            timezone: "UTC".to_owned(),
            zone: TimeZone::UTC,
            groups: Vec::new(),
        }
    }

    #[test]
    fn a_length_is_read_in_any_unit_and_shown_in_the_largest() {
        for (text, minutes, shown) in [
            ("1m", 1, "1m"),
            ("90m", 90, "90m"),
            ("60m", 60, "1h"),
            ("05h", 300, "5h"),
            ("24h", 1440, "1d"),
            ("25h", 1500, "25h"),
            ("7d", 10_080, "7d"),
            ("366d", 527_040, "366d"),
            ("527040m", 527_040, "366d"),
        ] {
            let length: Length = text.parse().unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!((length.minutes(), length.to_string().as_str()), (minutes, shown), "{text}");
            assert_eq!(length.ms(), i64::from(minutes) * 60_000);
            assert_eq!(Period::Length(length).to_string(), shown);
        }
        for text in ["", "m", "5", "5 h", "+5h", "-5h", "5.5h", "5w", "5H", "h5", "5hh", "\u{665}h", "5\u{e9}"] {
            assert_eq!(text.parse::<Length>(), Err(InvalidLength::Form), "{text:?}");
        }
        for text in ["0m", "0d", "367d", "8785h", "527041m", "4294967296m", "99999999999999999999d"] {
            assert_eq!(text.parse::<Length>(), Err(InvalidLength::OutOfBounds), "{text:?}");
        }
    }

    #[test]
    fn a_threshold_is_crossed_from_below_it_to_it_or_above() {
        let share = |text: &str| Quantity::from_decimal(text).unwrap();
        let shares = ["0.333334", "0.5", "1", "1.5"].map(share).to_vec();
        let thresholds = Thresholds { shares, amounts: vec![5, 7] };
        let crossed = |quota, before, after| -> Vec<(Units, String)> {
            let crossed = thresholds.crossed(quota, before, after).into_iter();
            crossed
                .map(|Threshold { units, share }| (units, share.map_or_else(String::new, |it| it.to_string())))
                .collect()
        };
        let points = |points: &[(Units, &str)]| -> Vec<(Units, String)> {
            points.iter().map(|(units, share)| (*units, (*share).to_owned())).collect()
        };
        let ten = Quota::Limited(10);
        for (before, after, expected) in [
            (0, 3, &[][..]),
            // A third of 10 is rounded up.
            (0, 4, &[(4, "0.333334")]),
            (4, 4, &[]),
            (4, 5, &[(5, ""), (5, "0.5")]),
            (5, 9, &[(7, "")]),
            (9, 10, &[(10, "1")]),
            (10, 20, &[(15, "1.5")]),
            (15, 20, &[]),
            (9, 3, &[]),
            (3, 11, &[(4, "0.333334"), (5, ""), (5, "0.5"), (7, ""), (10, "1")]),
        ] {
            assert_eq!(crossed(ten, before, after), points(expected), "{before} to {after}");
        }
        assert_eq!(crossed(Quota::Unlimited, 0, 100), points(&[(5, ""), (7, "")]));
        assert_eq!(crossed(Quota::Limited(0), 0, 5), points(&[(5, "")]));
        // Without rounding on the way: 1.5 times the largest counter.
        assert_eq!(share_of(share("1.5"), (1 << 53) - 1), 13_510_798_882_111_487);
        assert_eq!(share_of(share("0.000001"), 1), 1);
        assert!(!thresholds.is_empty() && Thresholds::default().is_empty());
    }

    fn id(plan: Option<&Plan>) -> Option<&str> {
        plan.map(|plan| plan.id.as_str())
    }

    #[test]
    fn a_whole_stands_before_its_parts() {
        let term = |(name, part_of): &(&str, &str)| Term {
            name: (*name).to_owned(),
            weight: Weight::ONE,
            default: None,
            part_of: (!part_of.is_empty()).then(|| (*part_of).to_owned()),
        };
        let wholes = |terms: &[(&str, &str)]| super::wholes(&terms.iter().map(term).collect::<Vec<_>>());
        assert_eq!(wholes(&[("a", ""), ("b", "")]), []);
        assert_eq!(wholes(&[("a", ""), ("b", "a"), ("c", ""), ("d", "a")]), [(0, vec![1, 3])]);
        let nested = [("c", "b"), ("b", "a"), ("e", "d"), ("a", ""), ("d", "")];
        assert_eq!(wholes(&nested), [(3, vec![1]), (4, vec![2]), (1, vec![0])]);
        // No catalog has a circle. This must end all the same.
        assert_eq!(wholes(&[("a", "b"), ("b", "a")]).len(), 2);
    }

    #[test]
    fn a_catalog_finds_its_plans_and_keeps_their_order() {
        let plans = || vec![plan("pro"), plan("free"), plan("basic")];
        let catalog = Catalog::new(plans(), Some("free"));
        assert_eq!(catalog.plans().iter().map(|plan| plan.id.as_str()).collect::<Vec<_>>(), ["pro", "free", "basic"]);
        assert_eq!((id(catalog.plan("basic")), id(catalog.plan("none"))), (Some("basic"), None));
        assert_eq!(id(catalog.default_plan()), Some("free"));
        assert_eq!(id(Catalog::new(plans(), None).default_plan()), None);
    }
}
