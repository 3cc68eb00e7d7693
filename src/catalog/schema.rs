//! The format of a catalog file, as types. `tollgate schema` prints them as a JSON schema, with which editors complete
//! and check a catalog.
//!
//! `read` understands exactly this; a test holds the example against both.

#![allow(dead_code, reason = "these types are only described, never built")]

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema};
use serde_json::{Value as Json, json};

/// A catalog of plans.
#[derive(JsonSchema)]
#[schemars(title = "Tollgate catalog", deny_unknown_fields)]
struct CatalogFile {
    /// The plan of users without a subscription. Absent: they are denied.
    default_plan: Option<String>,
    /// The plans, by id: 1 to 64 of A-Z a-z 0-9 . _ -
    #[schemars(extend("propertyNames" = { "pattern": ID }, "minProperties" = 1))]
    plans: BTreeMap<String, PlanEntry>,
}

/// A named list of limit groups.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct PlanEntry {
    /// The plan's name for people. Absent: its id.
    name: Option<String>,
    /// The length of a window, where a group does not set it.
    period: Option<PeriodEntry>,
    /// The start of windows, where a group does not set it. Absent: calendar.
    anchor: Option<AnchorWord>,
    /// An IANA name, such as Europe/Vienna. Absent: UTC.
    timezone: Option<String>,
    /// The effect on the counters of a user who enters the plan. Absent: carry.
    on_plan_change: Option<ChangeWord>,
    /// The limits, in the order in which answers list them.
    #[schemars(length(min = 1))]
    limit_groups: Vec<GroupEntry>,
}

/// The length of a window: a word, or a length of time, which needs an anchor other than calendar.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum PeriodEntry {
    Word(PeriodWord),
    Length(LengthEntry),
}

/// 1m to 366d, such as 90m, 5h or 7d.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct LengthEntry(#[schemars(extend("pattern" = LENGTH))] String);

/// The length of a window. Weeks start on Monday. A lifetime window never ends.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum PeriodWord {
    Minute,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    Lifetime,
}

/// The start of windows: at the boundaries of the calendar, one after another from the subscription's cycle anchor, or
/// each with the first event that counts in it.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum AnchorWord {
    Calendar,
    SubscriptionStart,
    FirstUse,
}

/// carry keeps what equal groups have counted; reset starts at 0; block starts at the quota.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum ChangeWord {
    Carry,
    Reset,
    Block,
}

/// One limit: how much of one unit, per period.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct GroupEntry {
    /// Unique in its plan: 1 to 64 of A-Z a-z 0-9 . _ -
    #[schemars(extend("pattern" = ID))]
    id: String,
    /// The group's name for people. Absent: its id.
    label: Option<String>,
    /// The unit it counts. Resolution: count and tokens 1, seconds 0.001, cents 0.000001.
    unit: UnitWord,
    /// The amount that a window allows. 0 always denies.
    quota: QuotaEntry,
    /// The length of a window. Absent: the plan's period.
    period: Option<PeriodEntry>,
    /// The start of windows. Absent: the plan's anchor.
    anchor: Option<AnchorWord>,
    /// false: count and report `exceeded`, never deny. Absent: true.
    hard: Option<bool>,
    /// The points worth telling somebody about: shares of the quota, ascending, such as 0.8 and 1.0, and amounts, ascending.
    #[schemars(length(min = 1))]
    thresholds: Option<Vec<ThresholdEntry>>,
    /// The rules for which events count, and how much. The first rule that applies decides.
    #[schemars(rename = "match", length(min = 1))]
    rules: Vec<RuleEntry>,
}

/// The unit that a group counts.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum UnitWord {
    Count,
    Tokens,
    Seconds,
    Cents,
}

/// An amount in the group's unit, or `unlimited`.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum QuotaEntry {
    Amount(#[schemars(range(min = 0))] f64),
    Unlimited(UnlimitedWord),
}

/// A share of the quota, such as 0.8, or an amount.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ThresholdEntry {
    Share(#[schemars(range(min = 0, max = 10))] f64),
    Amount(ThresholdAmount),
}

/// An amount in the group's unit, whatever the quota is.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ThresholdAmount {
    /// Above 0, with at most 6 decimals.
    #[schemars(range(min = 0))]
    amount: f64,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum UnlimitedWord {
    Unlimited,
}

/// A rule: the events, the conditions, and the measure.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct RuleEntry {
    /// A name, `prefix.*` (one or more further segments) or `*`.
    event: String,
    /// Keys that must be present, each with one of these values; a star in a value stands for any text: `gpt-4o*`, `*-mini`.
    #[schemars(extend("propertyNames" = { "pattern": NO_STAR }))]
    metadata: Option<BTreeMap<String, ValueEntry>>,
    /// The measure to count. Absent: quantity.
    measure: Option<MeasureEntry>,
}

/// One value, or any of a list.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ValueEntry {
    One(ScalarEntry),
    AnyOf(#[schemars(length(min = 1))] Vec<ScalarEntry>),
}

/// Text; numbers and booleans are taken as they are written.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ScalarEntry {
    Text(String),
    Number(f64),
    Boolean(bool),
}

/// `quantity`, `events`, a map from quantity name to weight, or terms in the long form.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum MeasureEntry {
    Word(MeasureWord),
    Term(TermEntry),
    Terms(#[schemars(length(min = 1, max = 16))] Vec<TermEntry>),
    Weights(
        #[schemars(extend("propertyNames" = { "pattern": NO_STAR }, "minProperties" = 1, "maxProperties" = 16))]
        BTreeMap<String, WeightEntry>,
    ),
}

/// `quantity` counts the event's quantity; `events` counts 1.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum MeasureWord {
    Quantity,
    Events,
}

/// One quantity of an event, times a weight.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TermEntry {
    /// The quantity's name.
    #[schemars(extend("pattern" = NO_STAR))]
    name: String,
    /// At most 12 decimals, at most 1000000. Absent: 1.
    weight: Option<WeightEntry>,
    /// The quantity to count where the event does not carry it. Absent: the rule does not apply then.
    #[schemars(range(min = 0))]
    default: Option<f64>,
    /// Another quantity of this measure, which contains this one. That one then counts only what is in none of its parts.
    #[schemars(extend("pattern" = NO_STAR))]
    part_of: Option<String>,
}

/// The cost of one of a quantity, in the group's unit: at most 12 decimals, at most 1000000.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct WeightEntry(#[schemars(range(min = 0, max = 1_000_000))] f64);

/// The pattern of an id.
const ID: &str = "^[A-Za-z0-9_.-]{1,64}$";

/// The pattern of a length of time.
const LENGTH: &str = "^[0-9]+[mhd]$";

/// The pattern of a metadata key, or of the name of a quantity.
const NO_STAR: &str = "^[^*]+$";

/// The JSON schema of the catalog.
///
/// # Panics
/// Never: these types have a schema.
#[must_use]
pub fn schema() -> Json {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<CatalogFile>();
    RecursiveTransform(forbid_null).transform(&mut schema);
    schema.to_value()
}

/// A key may be left out, but where it is written it has a value: schemars lets an `Option` be null.
fn forbid_null(schema: &mut Schema) {
    if let Some(Json::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Json::Array(variants)) = schema.get_mut("anyOf") {
        variants.retain(|variant| *variant != json!({ "type": "null" }));
        if let [Json::Object(only)] = variants.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            schema.ensure_object().extend(only);
        }
    }
}
