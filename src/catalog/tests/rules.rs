//! Tests of rules: what they match, what they measure, and which of them are never reached.

use super::{check, check_lines, parse, problems};
use crate::domain::pattern::ValuePattern;

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
        "line 10, plans.p.limit_groups[0].match[1]: is never reached: rule 0 applies to the same events; remove one of them, or write this one first",
    );
}

#[test]
fn an_absent_quantity_is_1_where_things_are_counted_so_that_no_later_rule_is_reached() {
    let rules = "match: [ { event: x }, { event: x, measure: { images: 1 } } ]";
    let told =
        "match[1]: is never reached: rule 0 applies to the same events; remove one of them, or write this one first";
    check_lines("count", &[(rules, told), ("match: [ { event: x, measure: { images: 1 } }, { event: x } ]", "")]);
    for unit in ["tokens", "seconds", "cents"] {
        check_lines(unit, &[(rules, "")]);
    }
    let same = "match[1]: is never reached: rule 0 applies to the same events; remove one of them";
    check_lines("tokens", &[("match: [ { event: x }, { event: x } ]", same)]);
}

#[test]
fn a_measure_says_what_it_means() {
    let rule = |measure: &str| format!("match: [ {{ event: x, measure: {measure} }} ]");
    let default = "write at most 6 decimals below 8000000000, or a whole number up to 9007199254740991";
    for (measure, expected) in [
        ("quantity", ""),
        ("{ name: p, weight: 0.1, default: 0 }", ""),
        ("{ a: 1000000, b: 0.000000000001, c: 0 }", ""),
        ("tokens", " is \"tokens\"; write `quantity`, `events`, or a map from quantity to weight"),
        ("{}", " is empty; write at least one quantity"),
        ("{ a: 1, a: 2 }", ".a: stands here twice; keep one"),
        ("{ a: 1000001 }", ".a: is 1000001; write a weight of at most 1000000, with at most 12 decimals"),
        ("{ name: p, default: }", ".default: must be a number, but is empty"),
        ("{ name: p, default: 0.0000015 }", &format!(".default: is 0.0000015; {default}")),
        (
            "{ name: 1 }",
            ".name: is the number 1; write a quantity's name, and for one called `name`: { name: name, weight: 1 }",
        ),
    ] {
        let expected = match expected {
            "" => String::new(),
            told if told.starts_with('.') => format!("match[0].measure{told}"),
            told => format!("match[0].measure:{told}"),
        };
        check_lines("cents", &[(&rule(measure), &expected)]);
    }
    let terms: Vec<_> = (0..17).map(|index| format!("q{index}: 1")).collect();
    let told = "match[0].measure: has more than 16 terms, as no event has more; keep at most so many";
    check_lines("cents", &[(&rule(&format!("{{ {} }}", terms.join(", "))), told)]);
}

#[test]
fn a_part_is_a_part_of_another_quantity_of_its_measure() {
    let rule = |measure: &str| format!("match: [ {{ event: x, measure: {measure} }} ]");
    for (measure, expected) in [
        ("[ { name: p }, { name: c, part_of: p, default: 0 } ]", ""),
        ("[ { name: d, part_of: c }, { name: c, part_of: p }, { name: p }, { name: e, part_of: p } ]", ""),
        (
            "[ { name: prompt_tokens }, { name: c, part_of: prompt_token } ]",
            "[1].part_of: is \"prompt_token\", which this measure does not count; did you mean \"prompt_tokens\"?",
        ),
        (
            "[ { name: pp }, { name: qq }, { name: c, part_of: other } ]",
            "[2].part_of: is \"other\", which this measure does not count; write pp or qq",
        ),
        (
            "{ name: c, part_of: p }",
            ".part_of: is \"p\", which this measure does not count; add it as another term of this measure",
        ),
        ("[ { name: c, part_of: c } ]", "[0].part_of: is \"c\" itself; write the quantity that contains it"),
        (
            "[ { name: x, part_of: b }, { name: a, part_of: b }, { name: b, part_of: c }, { name: c, part_of: a } ]",
            "[1].part_of: makes \"a\" a part of itself, through \"b\"; remove one `part_of`",
        ),
        ("[ { name: p }, { name: c, part_of: } ]", "[1].part_of: must be text, but is empty"),
        ("[ { name: p }, { name: c, part_of: \"\" } ]", "[1].part_of: has 0 bytes; write 1 to 256"),
        (
            "[ { name: p }, { name: c, part_off: p } ]",
            "[1].part_off: is not known here; there are: name, weight, default, part_of (did you mean `part_of`?)",
        ),
        ("[ { name: p, default: 2 }, { name: c, part_of: p, default: 2 } ]", ""),
        (
            "[ { name: p, default: 2.5 }, { name: c, part_of: p, default: 2 }, { name: d, part_of: p, default: 0.6 } ]",
            "[0].default: is 2.5, but the defaults of its parts add up to more; raise it, or lower those",
        ),
    ] {
        let expected = if expected.is_empty() { String::new() } else { format!("match[0].measure{expected}") };
        check_lines("tokens", &[(&rule(measure), &expected)]);
    }
    let told = problems(
        r"
plans:
  p:
    period: daily
    limit_groups:
      - id: a
        unit: tokens
        quota: 1
        match:
          - event: x
            measure:
              - { name: p }
              - name: c
                weight: 0.5
                part_of: q
",
    );
    assert!(told.starts_with("line 15, plans.p.limit_groups[0].match[0].measure[1].part_of: is \"q\""), "{told}");
}

#[test]
fn a_star_stands_in_values_and_nowhere_else() {
    for text in ["*-free", "gpt-*-mini", "gpt-**", "**"] {
        let rule = |value: &str| format!("match: [ {{ event: x, metadata: {{ model: {value} }} }} ]");
        check_lines("count", &[(&rule(&format!("\"{text}\"")), "")]);
        check_lines("count", &[(&rule(&format!("[gpt-4o*, \"{text}\"]")), "")]);
    }
    // Stars side by side say no more than one.
    check_lines(
        "count",
        &[(
            "match: [ { event: x, metadata: { a: [b**c, d**] } }, { event: x, metadata: { a: [d*, b*c] } } ]",
            "match[1]: is never reached: rule 0 applies to the same events; remove one of them",
        )],
    );
    check_lines("count", &[("match: [ { event: x, metadata: { model: \"*\", tier: [gold*, a] } } ]", "")]);
    let name = |what: &str| format!("\"mod*\" is {what}, which takes no star: write each one that is meant");
    let of_a_name = format!("match[0].measure: {}", name("a quantity's name"));
    check_lines(
        "tokens",
        &[
            (
                "match: [ { event: x, metadata: { \"mod*\": a } } ]",
                &format!("match[0].metadata.mod*: {}", name("a metadata key")),
            ),
            ("match: [ { event: x, measure: { \"mod*\": 1 } } ]", &of_a_name),
            ("match: [ { event: x, measure: [ { name: \"mod*\" } ] } ]", &of_a_name),
        ],
    );
    // Event patterns, ids and the default plan have alphabets without a star.
    for event in ["*.tokens", "llm*", "llm.*.tokens", "llm.tok*", "llm.**", "**", "llm.*."] {
        let text = format!("match: [ {{ event: \"{event}\" }} ]");
        let told = format!(
            "match[0].event: \"{event}\" is not an event pattern (a name, `prefix.*` or `*`): an event name consists of A-Z, a-z, 0-9 and . _ : / -"
        );
        check_lines("count", &[(&text, &told)]);
    }
    let group = "{ id: \"a*\", unit: count, quota: 1, period: daily, match: [{ event: x }] }";
    check(
        &format!("default_plan: f*\nplans:\n  fr*: {{ limit_groups: [{group}] }}"),
        "line 1, default_plan: names no plan \"f*\"; there are: fr*\nline 3, plans.fr*: the id \"fr*\" must be 1 to 64 of A-Z a-z 0-9 . _ -\nline 3, plans.fr*.limit_groups[0].id: the id \"a*\" must be 1 to 64 of A-Z a-z 0-9 . _ -",
    );
}

#[test]
fn conditions_take_values_as_they_are_written() {
    let catalog = "plans: { p: { period: daily, limit_groups: [ { id: a, unit: count, quota: 1, match: [
        { event: x, metadata: { a: 4, b: [true, 1.50], c: \"\", d: gpt-*, e: gpt-*-mini } } ] } ] } }";
    let catalog = parse(catalog, jiff::tz::db()).unwrap();
    let exact = |text: &str| ValuePattern::Exact(text.to_owned());
    let values: Vec<_> = catalog.plans()[0].groups[0].rules[0].conditions.iter().map(|it| it.values.clone()).collect();
    let gpt = ValuePattern::Prefix("gpt-".to_owned());
    let mini = ValuePattern::Pieces(vec!["gpt-".to_owned(), "-mini".to_owned()]);
    assert_eq!(values, [vec![exact("4")], vec![exact("true"), exact("1.50")], vec![exact("")], vec![gpt], vec![mini]]);
    check_lines(
        "count",
        &[
            (
                "match: [ { event: x, metadata: { a: [1, ~] } } ]",
                "match[0].metadata.a[1]: must be a value, perhaps with stars in it, or a list of these, but is empty",
            ),
            (
                "match: [ { event: x, metadata: { \"\": 1 } } ]",
                "match[0].metadata.: a metadata key must have 1 to 64 bytes",
            ),
            (
                "match: [ { event: x, metadata: { a: 1, b: [2, 3*] }, measure: events }, { event: x, metadata: { b: [3*, 2], a: 1 } } ]",
                "match[1]: is never reached: rule 0 applies to the same events; remove one of them, or write this one first",
            ),
            // Other conditions, or a measure that may be missing: both are reached.
            ("match: [ { event: x, metadata: { a: 1 }, measure: events }, { event: x } ]", ""),
            ("match: [ { event: x, measure: { p: 1 } }, { event: x } ]", ""),
            ("match: [ { event: x, measure: events }, { event: y, measure: events } ]", ""),
            (
                "match: [ { event: x }, { event: y }, { event: x } ]",
                "match[2]: is never reached: rule 0 applies to the same events; remove one of them",
            ),
            (
                "match: [ { event: x, measure: { name: p, default: 0 } }, { event: x } ]",
                "match[1]: is never reached: rule 0 applies to the same events; remove one of them, or write this one first",
            ),
        ],
    );
}
