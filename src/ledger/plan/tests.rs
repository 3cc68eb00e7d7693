//! How plans are written for the scripts, and read again.

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
    assert_eq!((compiled.id.as_str(), &compiled.names[..]), ("p", &["cached", "in", "quantity"].map(String::from)[..]));
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

#[test]
fn a_plan_that_is_read_has_the_windows_that_it_was_written_with() {
    let periods = ["minute", "hourly", "daily", "weekly", "monthly", "yearly", "lifetime", "90m", "366d"];
    let anchors = ["calendar", "subscription_start", "first_use"];
    let is_period = |anchor: &&str, period: &str| !(*anchor == "calendar" && period.ends_with(['m', 'd']));
    for zone in ["UTC", "Asia/Kolkata"] {
        let groups = periods.iter().flat_map(|period| {
            let of_anchor = |anchor: &str| {
                let id = format!("id: {period}-{anchor}, unit: count, quota: 1, period: {period}, anchor: {anchor}");
                format!("{{ {id}, match: [{{ event: x }}] }}")
            };
            anchors
                .iter()
                .filter(|anchor| is_period(anchor, period))
                .map(|anchor| of_anchor(anchor))
                .collect::<Vec<_>>()
        });
        let groups = groups.collect::<Vec<_>>().join(", ");
        let plan = plan(&format!("plans: {{ p: {{ timezone: {zone}, limit_groups: [{groups}] }} }}"));
        let compiled = CompiledPlan::of(&plan);
        let (read, written) = (compiled.scheduled().unwrap(), Scheduled::of(&plan));
        assert_eq!((read.zone, &read.groups), (written.zone, &written.groups), "{zone}");
        // What a catalog does not use is not written.
        assert_eq!(message(&plan).as_array().unwrap().len(), if zone == "UTC" { 5 } else { 6 });
    }
}

#[test]
fn a_plan_of_an_unknown_time_zone_has_no_windows() {
    let plan = plan(
        "plans: { p: { timezone: Asia/Kolkata, limit_groups: [ { id: a, unit: count, period: daily, quota: 1, match: [{ event: x }] } ] } }",
    );
    let plan = Plan { timezone: "Mars/Olympus".to_owned(), ..plan };
    assert!(CompiledPlan::of(&plan).scheduled().is_none());
}
