//! Catalogs and what is said of them.

use serde_json::{Value as Json, json};

use super::yaml::{Node, Value};
use super::{EXAMPLE, parse, schema};

/// The problems of a catalog, one per line.
fn problems(text: &str) -> String {
    parse(text, jiff::tz::db()).expect_err("it is not valid").to_string()
}

fn check(text: &str, expected: &str) {
    assert_eq!(problems(text.trim_start_matches('\n')), expected.trim(), "{text}");
}

#[test]
fn the_example_is_valid() {
    let catalog = parse(EXAMPLE, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(catalog.default_plan().unwrap().id, "free");
    assert_eq!(catalog.plans().len(), 4);
}

#[test]
fn every_problem_is_told_at_once() {
    check(
        r"
default_plan: fre
plans:
  free:
    perod: monthly
    timezone: Mars/Olympus
    limit_groups:
      - id: a b
        unit: token
        quota: 1.5
        match: []
      - id: tokens
        unit: tokens
        quota: 1.5
        thresholds: [0.8, 0.5, x]
        hard: maybe
        match:
          - event: a.*.b
          - event: llm.tokens.refund
          - { event: x, measure: { p: -1, q: 0.0000000000001 } }
          - { event: x, measure: { name: p, weight: 1, defaut: 0 }, metadata: { model: [] } }
      - id: tokens
        unit: cents
        quota: 8000000000.1
        label:
        match: { event: x }
",
        r#"
line 1, default_plan: names no plan "fre"; there are: free
line 4, plans.free.perod: is not known here; there are: name, period, anchor, timezone, on_plan_change, limit_groups (did you mean `period`?)
line 5, plans.free.timezone: is "Mars/Olympus", which is no time zone; write an IANA name such as Europe/Vienna
line 7, plans.free.limit_groups[0]: has no period, nor has its plan; write `period:` with minute, hourly, daily, weekly, monthly, yearly or lifetime
line 7, plans.free.limit_groups[0].id: the id "a b" must be 1 to 64 of A-Z a-z 0-9 . _ -
line 8, plans.free.limit_groups[0].unit: is "token"; write count, tokens, seconds or cents
line 10, plans.free.limit_groups[0].match: is an empty list; write at least one item, or leave it out
line 11, plans.free.limit_groups[1]: has no period, nor has its plan; write `period:` with minute, hourly, daily, weekly, monthly, yearly or lifetime
line 13, plans.free.limit_groups[1].quota: is 1.5; tokens must be a multiple of 1 up to 9007199254740991
line 14, plans.free.limit_groups[1].thresholds[1]: is not larger than the one before; write them in ascending order
line 14, plans.free.limit_groups[1].thresholds[2]: is "x"; write a share above 0 and below 10, such as 0.8
line 15, plans.free.limit_groups[1].hard: is "maybe"; write true or false
line 17, plans.free.limit_groups[1].match[0].event: "a.*.b" is not an event pattern (a name, `prefix.*` or `*`): an event name consists of A-Z, a-z, 0-9 and . _ : / -
line 18, plans.free.limit_groups[1].match[1].event: names a refund; refunds are routed by the rules of the event that they refund: remove it
line 19, plans.free.limit_groups[1].match[2].measure.p: is "-1"; a weight must be a decimal number of at least 0, such as 1 or 0.00025
line 19, plans.free.limit_groups[1].match[2].measure.q: is "0.0000000000001"; a weight has more than 12 decimals
line 20, plans.free.limit_groups[1].match[3].measure.defaut: is not known here; there are: name, weight, default (did you mean `default`?)
line 20, plans.free.limit_groups[1].match[3].metadata.model: is an empty list; write at least one item, or leave it out
line 21, plans.free.limit_groups[2]: repeats the id "tokens"; ids are unique in a plan
line 21, plans.free.limit_groups[2]: has no period, nor has its plan; write `period:` with minute, hourly, daily, weekly, monthly, yearly or lifetime
line 23, plans.free.limit_groups[2].quota: is "8000000000.1", which is too large; the largest is 9007199254740991, and 8000000000 for a number with decimals, or write `unlimited`
line 24, plans.free.limit_groups[2].label: must be text, but is empty
line 25, plans.free.limit_groups[2].match: must be a list, but is a map
"#,
    );
}

#[test]
fn the_file_as_a_whole_can_be_wrong() {
    let deep = "[".repeat(200);
    let cases = [
        ("", "line 1: the file is empty; write `plans:` with at least one plan"),
        ("plans: {}", "line 1, plans: is empty; write at least one plan"),
        ("x", "line 1: must be a map, but is \"x\""),
        ("{}", "line 1: lacks `plans:`"),
        ("plans: {}\n---\nplans: {}", "line 3: a second document begins; write one catalog per file"),
        ("plans: &a {}", "line 1: anchors are not supported; write the value where it is needed"),
        ("plans: !x {}", "line 1: tags are not supported; write the value without it"),
        ("plans:\n  <<: {}", "line 2: merge keys are not supported; write the values where they are needed"),
        ("[a]: b", "line 1: a key must be plain text"),
        (&deep, "line 1: the file is nested deeper than 32 levels"),
    ];
    for (text, expected) in cases {
        assert_eq!(problems(text), expected, "{text}");
    }
    assert!(problems("plans:\n\t- {").starts_with("line 2: this is not valid YAML"), "{}", problems("plans:\n\t- {"));
    assert!(problems(&" ".repeat(2 << 20)).contains("larger"));
}

#[test]
fn duplicates_are_problems() {
    let group = "{ id: a, unit: count, quota: 1, period: daily, match: [{ event: x }] }";
    check(
        &format!("plans:\n  p: {{ limit_groups: [{group}] }}\n  p: {{ limit_groups: [{group}] }}"),
        "line 3, plans.p: stands here twice; keep one",
    );
    check(
        "plans:\n  p:\n    period: daily\n    limit_groups: [{ id: a, unit: count, quota: 1, match: [{ event: x, measure: [{ name: q }, { name: q }] }] }]",
        "line 4, plans.p.limit_groups[0].match[0].measure: names \"q\" twice",
    );
}

#[test]
fn a_rule_that_cannot_be_reached_is_a_problem() {
    check(
        r"
plans:
  p:
    period: daily
    limit_groups:
      - id: a
        unit: count
        quota: 1
        match:
          - { event: x, measure: events }
          - { event: x, measure: quantity }
",
        "line 10, plans.p.limit_groups[0].match[1]: is never reached: rule 0 before it applies to the same events; remove one",
    );
}

#[test]
fn text_that_is_no_catalog_never_panics() {
    // Prefixes of the example, and the example with a byte changed: what comes out is an answer.
    for end in (0..EXAMPLE.len()).step_by(11) {
        let _: Result<_, _> = parse(&EXAMPLE[..end], jiff::tz::db());
    }
    for at in (0..EXAMPLE.len()).step_by(97) {
        for odd in ["\"", "[", "{", "&", "*", "!", "%", "-", ":", "\n", "\t", "\u{0}"] {
            let text = format!("{}{odd}{}", &EXAMPLE[..at], &EXAMPLE[at + 1..]);
            let _: Result<_, _> = parse(&text, jiff::tz::db());
        }
    }
}

#[test]
fn the_committed_schema_is_the_one_of_the_types() {
    let committed: Json = serde_json::from_str(include_str!("../../catalogs/catalog.schema.json")).unwrap();
    assert_eq!(committed, schema(), "write it anew: cargo run -- schema > catalogs/catalog.schema.json");
}

#[test]
fn the_schema_accepts_the_example_and_refuses_nonsense() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let example = json_of(&super::yaml::parse(EXAMPLE).unwrap());
    let errors: Vec<_> =
        validator.iter_errors(&example).map(|error| format!("{error} {}", error.instance_path())).collect();
    assert_eq!(errors, Vec::<String>::new());
    let group = json!({ "id": "a", "unit": "count", "quota": 1, "match": [{ "event": "x" }] });
    for (key, value) in
        [("unit", json!("apples")), ("quota", json!("some")), ("match", json!([])), ("colour", json!(1))]
    {
        let mut bad = group.clone();
        bad[key] = value;
        assert!(!validator.is_valid(&json!({ "plans": { "p": { "limit_groups": [bad] } } })), "{key}");
    }
    assert!(validator.is_valid(&json!({ "plans": { "p": { "limit_groups": [group] } } })));
}

/// The tree as an editor's JSON schema sees it.
fn json_of(node: &Node) -> Json {
    match &node.value {
        Value::Scalar { text, quoted: false } => match text.as_str() {
            "true" => json!(true),
            "false" => json!(false),
            number => number.parse::<f64>().map_or_else(|_| json!(text), |number| json!(number)),
        },
        Value::Scalar { text, .. } => json!(text),
        Value::List(items) => items.iter().map(json_of).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), json_of(&entry.value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}
