//! Tests of catalogs and their problems.

mod rules;

use serde_json::{Value as Json, json};

use super::yaml::{Node, Value};
use super::{Checked, EXAMPLE, check as check_catalog, parse, schema};
use crate::domain::plan::{Anchor, OnPlanChange, Period};

/// The problems of a catalog, one per line.
fn problems(text: &str) -> String {
    parse(text, jiff::tz::db()).expect_err("it is not valid").to_string()
}

fn check(text: &str, expected: &str) {
    assert_eq!(problems(text.trim_start_matches('\n')), expected.trim(), "{text}");
}

#[test]
fn the_example_is_valid() {
    let Checked { catalog, warnings } =
        check_catalog(EXAMPLE, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(warnings, []);
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
line 7, plans.free.limit_groups[0]: has no period, nor has its plan; write `period:` with minute, hourly, daily, weekly, monthly, yearly or lifetime, or a length such as 5h
line 7, plans.free.limit_groups[0].id: the id "a b" must be 1 to 64 of A-Z a-z 0-9 . _ -
line 8, plans.free.limit_groups[0].unit: is "token"; write count, tokens, seconds or cents
line 10, plans.free.limit_groups[0].match: is an empty list; write at least one item
line 11, plans.free.limit_groups[1]: has no period, nor has its plan; write `period:` with minute, hourly, daily, weekly, monthly, yearly or lifetime, or a length such as 5h
line 13, plans.free.limit_groups[1].quota: is 1.5; tokens must be a whole number up to 9007199254740991
line 14, plans.free.limit_groups[1].thresholds[1]: is not larger than the one before; write them in ascending order
line 14, plans.free.limit_groups[1].thresholds[2]: is "x"; write a share of the quota in plain digits such as 100 or 0.5, without sign, separator or exponent
line 15, plans.free.limit_groups[1].hard: is "maybe"; write true or false
line 17, plans.free.limit_groups[1].match[0].event: "a.*.b" is not an event pattern (a name, `prefix.*` or `*`): an event name consists of A-Z, a-z, 0-9 and . _ : / -
line 18, plans.free.limit_groups[1].match[1].event: names a refund; refunds are routed by the rules of the event that they refund: remove it
line 19, plans.free.limit_groups[1].match[2].measure.p: is "-1"; write a weight in plain digits such as 100 or 0.5, without sign, separator or exponent
line 19, plans.free.limit_groups[1].match[2].measure.q: is 0.0000000000001; write a weight of at most 1000000, with at most 12 decimals
line 20, plans.free.limit_groups[1].match[3].measure.defaut: is not known here; there are: name, weight, default, part_of (did you mean `default`?)
line 20, plans.free.limit_groups[1].match[3].metadata.model: is an empty list; write at least one item
line 21, plans.free.limit_groups[2]: repeats the id "tokens"; give each group of a plan its own
line 21, plans.free.limit_groups[2]: has no period, nor has its plan; write `period:` with minute, hourly, daily, weekly, monthly, yearly or lifetime, or a length such as 5h
line 23, plans.free.limit_groups[2].quota: is 8000000000.1; cents must be a multiple of 0.000001 up to 8000000000
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
        ("{}", "line 1: lacks `plans:`; write it"),
        ("plans: {}\n---\nplans: {}", "line 3: a second document begins; write one catalog per file"),
        (
            "plans: &a {}",
            "line 1: anchors are not supported; write the value where it is needed\nline 1, plans: is empty; write at least one plan",
        ),
        (
            "plans: !x {}",
            "line 1: tags are not supported; write the value without it\nline 1, plans: is empty; write at least one plan",
        ),
        (
            "plans:\n  <<: {}",
            "line 2: merge keys are not supported; write the values where they are needed\nline 2, plans: is empty; write at least one plan",
        ),
        ("plans: *a", "line 1: this is not valid YAML: while parsing node, found unknown anchor"),
        ("[a]: b", "line 1: a key must be plain text; write a name\nline 1: lacks `plans:`; write it"),
        (&deep, "line 1: the file is nested deeper than 32 levels; a catalog needs nine"),
    ];
    for (text, expected) in cases {
        assert_eq!(problems(text), expected, "{text}");
    }
    assert!(problems("plans:\n\t- {").starts_with("line 2: this is not valid YAML"), "{}", problems("plans:\n\t- {"));
    let empty = "line 1: the file is empty; write `plans:` with at least one plan";
    assert_eq!(problems(&" ".repeat(1 << 20)), empty);
    for bytes in [(1 << 20) + 1, 2 << 20] {
        let told = "line 1: the file is larger than 1048576 bytes; remove what is not needed";
        assert_eq!(problems(&" ".repeat(bytes)), told);
    }
}

#[test]
fn a_file_is_nested_as_deep_as_is_allowed() {
    let too_deep = "line 1: the file is nested deeper than 32 levels; a catalog needs nine";
    let nested = |open: &str, close: &str, depth| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    // The outermost node is at depth 0, keys and values one deeper than their map.
    for (open, close) in [("[", "]"), ("{ a: ", " }"), ("{ ? ", " : 1 }")] {
        assert!(!problems(&nested(open, close, 32)).contains("nested"), "{open}");
        for depth in [33, 40] {
            assert_eq!(problems(&nested(open, close, depth)), too_deep, "{open}");
        }
    }
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
        "line 4, plans.p.limit_groups[0].match[0].measure: names \"q\" twice; keep one",
    );
}

/// Checks catalogs of one group, each with its own line, against the expected problem of that line. The text is empty
/// if the line is valid.
fn check_lines(unit: &str, cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        let mut text = String::from("plans:\n  p:\n    period: daily\n    limit_groups:\n      - id: a\n");
        text += &format!("        unit: {unit}\n");
        for (key, value) in [("quota", "1"), ("match", "[ { event: x } ]")] {
            if !line.starts_with(key) {
                text += &format!("        {key}: {value}\n");
            }
        }
        text += &format!("        {line}");
        let told = match parse(&text, jiff::tz::db()) {
            Ok(_) => String::new(),
            Err(invalid) => invalid.to_string().replace("plans.p.limit_groups[0]", "GROUP"),
        };
        let start = format!("line {}, GROUP.", text.lines().count());
        assert_eq!(told.strip_prefix(&start).unwrap_or(&told), *expected, "{text}");
    }
}

#[test]
fn a_quota_is_what_is_written() {
    let digits =
        "write `unlimited` or an amount in plain digits such as 100 or 0.5, without sign, separator or exponent";
    for notation in ["1_000", "0x10", "1e3", ".5", "5.", "+1", "-3", "-0", "unlimitd", ".inf"] {
        let told = format!("quota: is \"{notation}\"; {digits}");
        check_lines("tokens", &[(&format!("quota: {notation}"), &told)]);
    }
    let of_tokens = "tokens must be a whole number up to 9007199254740991";
    check_lines(
        "tokens",
        &[
            ("quota: 0", ""),
            ("quota: 007", ""),
            ("quota: 1.000", ""),
            ("quota: \"100\"", ""),
            ("quota: unlimited", ""),
            ("quota: 9007199254740991", ""),
            ("quota: 9007199254740992", &format!("quota: is 9007199254740992; {of_tokens}")),
            ("quota: 0.5", &format!("quota: is 0.5; {of_tokens}")),
            ("quota: 18446744073709551615.9999999", &format!("quota: is 18446744073709551615.9999999; {of_tokens}")),
            ("quota:", "quota: must be `unlimited` or an amount, but is empty"),
            ("quota: [1]", "quota: must be `unlimited` or an amount, but is a list"),
        ],
    );
    let of_seconds = "seconds must be a multiple of 0.001 up to 8000000000, or a whole number up to 9007199254740";
    check_lines(
        "seconds",
        &[
            ("quota: 0.001", ""),
            ("quota: 7999999999.999", ""),
            ("quota: 9007199254740", ""),
            ("quota: 0.0001", &format!("quota: is 0.0001; {of_seconds}")),
            ("quota: 8000000000.5", &format!("quota: is 8000000000.5; {of_seconds}")),
            ("quota: 9007199254741", &format!("quota: is 9007199254741; {of_seconds}")),
        ],
    );
    check_lines(
        "cents",
        &[
            ("quota: 8000000000", ""),
            ("quota: 0.0000001", "quota: is 0.0000001; cents must be a multiple of 0.000001 up to 8000000000"),
            ("quota: 1.0000001", "quota: is 1.0000001; cents must be a multiple of 0.000001 up to 8000000000"),
        ],
    );
}

#[test]
fn a_group_says_what_it_means() {
    let share = "write a share above 0 and at most 10, with at most 6 decimals";
    let amount = "write an amount above 0 and at most 9007199254740991 tokens, with at most 6 decimals";
    let amount_before = "thresholds[1]: is not larger than the amount before; write amounts in ascending order";
    let amount_twice = "thresholds[2]: is not larger than the amount before; write amounts in ascending order";
    check_lines(
        "tokens",
        &[
            ("hard: false", ""),
            ("hard: \"true\"", "hard: is the text \"true\"; write true or false, without quotes"),
            ("hard: yes", "hard: is \"yes\"; write true or false"),
            ("thresholds: [0.5, 10]", ""),
            ("thresholds: [10.000001]", &format!("thresholds[0]: is 10.000001; {share}")),
            ("thresholds: [9000000000]", &format!("thresholds[0]: is 9000000000; {share}")),
            ("thresholds: [0]", &format!("thresholds[0]: is 0; {share}")),
            ("thresholds: [0.5000001]", &format!("thresholds[0]: is 0.5000001; {share}")),
            (
                "thresholds: [0.5, 0.50]",
                "thresholds[1]: is not larger than the one before; write them in ascending order",
            ),
            (
                "thresholds: [0.5, { amount: 3 }, 0.4]",
                "thresholds[2]: is not larger than the one before; write them in ascending order",
            ),
            ("thresholds: [{ amount: 9007199254740991 }, 0.5, { amount: 9007199254740991 }]", amount_twice),
            ("thresholds: [{ amount: 3 }, { amount: 2 }]", amount_before),
            // Both are 1 token.
            ("thresholds: [{ amount: 0.2 }, { amount: 0.7 }]", amount_before),
            ("thresholds: [{ amount: 0.000001 }, { amount: 1.000001 }, 0.1]", ""),
            ("thresholds: [{ amount: 0 }]", &format!("thresholds[0].amount: is 0; {amount}")),
            ("thresholds: [{ amount: 0.0000001 }]", &format!("thresholds[0].amount: is 0.0000001; {amount}")),
            ("thresholds: [{ amount: 1.0000001 }]", &format!("thresholds[0].amount: is 1.0000001; {amount}")),
            (
                "thresholds: [{ amount: 9007199254740992 }]",
                &format!("thresholds[0].amount: is 9007199254740992; {amount}"),
            ),
            (
                "thresholds: [{ amount: -5 }]",
                "thresholds[0].amount: is \"-5\"; write an amount in plain digits such as 100 or 0.5, without sign, separator or exponent",
            ),
            ("thresholds: [{ amount: }]", "thresholds[0].amount: must be an amount, but is empty"),
            ("thresholds: [{ amount: [1] }]", "thresholds[0].amount: must be an amount, but is a list"),
            ("thresholds: [{}]", "thresholds[0]: lacks `amount:`; write it"),
            ("thresholds: [{ amount: 1, share: 0.5 }]", "thresholds[0].share: is not known here; there are: amount"),
            ("thresholds: [[0.5]]", "thresholds[0]: must be a share of the quota, but is a list"),
            (
                "quta: 1",
                "quta: is not known here; there are: id, label, unit, quota, period, anchor, hard, thresholds, match (did you mean `quota`?)",
            ),
            (
                "x: 1",
                "x: is not known here; there are: id, label, unit, quota, period, anchor, hard, thresholds, match",
            ),
        ],
    );
}

#[test]
fn a_threshold_is_a_share_or_an_amount_in_the_unit_of_the_group() {
    let of = |unit: &str, thresholds: &str| {
        let group = format!(
            "{{ id: a, unit: {unit}, period: daily, quota: 10, thresholds: [{thresholds}], match: [ {{ event: x }} ] }}"
        );
        let catalog = parse(&format!("plans: {{ p: {{ limit_groups: [ {group} ] }} }}"), jiff::tz::db());
        let thresholds =
            catalog.unwrap_or_else(|problems| panic!("{problems}")).plans()[0].groups[0].thresholds.clone();
        (thresholds.shares.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), thresholds.amounts)
    };
    assert_eq!(of("tokens", "0.8, { amount: 500 }, 1.0"), ("0.8 1".to_owned(), vec![500]));
    assert_eq!(of("tokens", "{ amount: 0.5 }, 0.1, { amount: 1.000001 }"), ("0.1".to_owned(), vec![1, 2]));
    assert_eq!(of("seconds", "{ amount: 0.0005 }, { amount: 9007199254740 }").1, [1, 9_007_199_254_740_000]);
    assert_eq!(of("cents", "{ amount: 0.000001 }, { amount: 8000000000 }").1, [1, 8_000_000_000_000_000]);
    check_lines(
        "seconds",
        &[(
            "thresholds: [{ amount: 9007199254741 }]",
            "thresholds[0].amount: is 9007199254741; write an amount above 0 and at most 9007199254740 seconds, with at most 6 decimals",
        )],
    );
    check_lines(
        "cents",
        &[(
            "thresholds: [{ amount: 8000000000.5 }]",
            "thresholds[0].amount: is 8000000000.5; write an amount above 0 and at most 8000000000 cents, with at most 6 decimals",
        )],
    );
}

#[test]
fn what_is_as_long_as_it_may_be_is_right_and_longer_is_not() {
    let text = |bytes: usize| "x".repeat(bytes);
    let list =
        |count: usize| (1..=count).map(|index| format!("{}", index as f64 / 100.0)).collect::<Vec<_>>().join(", ");
    let map = |count: usize| (0..count).map(|index| format!("k{index}: 1")).collect::<Vec<_>>().join(", ");
    let rule = |fields: &str| format!("match: [ {{ event: x, {fields} }} ]");
    for (line, told) in [
        (format!("label: {}", text(256)), ""),
        (format!("label: {}", text(257)), "label: has 257 bytes; write 1 to 256"),
        (format!("label: {}", text(300)), "label: has 300 bytes; write 1 to 256"),
        ("label: ''".to_owned(), "label: has 0 bytes; write 1 to 256"),
        (format!("thresholds: [{}]", list(100)), ""),
        (format!("thresholds: [{}]", list(101)), "thresholds: has more than 100 items; keep at most so many"),
        (format!("thresholds: [{}]", list(200)), "thresholds: has more than 100 items; keep at most so many"),
        (rule(&format!("metadata: {{ {} }}", map(32))), ""),
        (
            rule(&format!("metadata: {{ {} }}", map(33))),
            "match[0].metadata: has more than 32 keys, as no event has more; keep at most so many",
        ),
        (
            rule(&format!("metadata: {{ {} }}", map(50))),
            "match[0].metadata: has more than 32 keys, as no event has more; keep at most so many",
        ),
        (rule(&format!("metadata: {{ {}: 1 }}", text(64))), ""),
        (
            rule(&format!("metadata: {{ {}: 1 }}", text(65))),
            &format!("match[0].metadata.{}...: a metadata key must have 1 to 64 bytes", text(64)),
        ),
        (rule(&format!("metadata: {{ a: {} }}", text(256))), ""),
        (
            rule(&format!("metadata: {{ a: {} }}", text(257))),
            "match[0].metadata.a: has 257 bytes; a metadata value has at most 256",
        ),
        (
            rule(&format!("metadata: {{ a: [{}] }}", text(300))),
            "match[0].metadata.a[0]: has 300 bytes; a metadata value has at most 256",
        ),
        (rule(&format!("measure: {{ {} }}", map(16))), ""),
        (rule(&format!("measure: {{ {}: 1 }}", text(64))), ""),
        (
            rule(&format!("measure: {{ {}: 1 }}", text(65))),
            "match[0].measure: a quantity's name must have 1 to 64 bytes",
        ),
        (rule("measure: { '': 1 }"), "match[0].measure: a quantity's name must have 1 to 64 bytes"),
    ] {
        check_lines("count", &[(&line, told)]);
    }
}

#[test]
fn an_id_has_1_to_64_bytes_of_its_alphabet() {
    let catalog = |id: &str| {
        let group = format!("{{ id: {id}, unit: count, quota: 1, period: daily, match: [ {{ event: x }} ] }}");
        parse(&format!("plans: {{ p: {{ limit_groups: [ {group} ] }} }}"), jiff::tz::db())
    };
    let longest = "x".repeat(64);
    for id in ["a", "AZaz09._-", &longest] {
        let catalog = catalog(id).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(catalog.plans()[0].groups[0].id, id);
    }
    for (id, shown) in [
        ("a/b", "a/b"),
        (&format!("{longest}x"), &*format!("{longest}...")),
        (&longest.repeat(2), &format!("{longest}...")),
    ] {
        let told = catalog(id).expect_err(id).to_string();
        let path = "plans.p.limit_groups[0].id";
        assert_eq!(told, format!("line 1, {path}: the id \"{shown}\" must be 1 to 64 of A-Z a-z 0-9 . _ -"));
    }
    check(
        "plans: { '': { limit_groups: [ { id: a, unit: count, quota: 1, period: daily, match: [ { event: x } ] } ] } }",
        "line 1, plans.: the id \"\" must be 1 to 64 of A-Z a-z 0-9 . _ -",
    );
}

#[test]
fn a_catalog_has_at_most_so_many_plans_and_a_report_lists_at_most_so_few() {
    let plans = |count: usize| {
        let group = "{ id: a, unit: count, quota: 1, period: daily, match: [ { event: x } ] }";
        let plans = (0..count).map(|index| format!("  p{index}: {{ limit_groups: [ {group} ] }}\n"));
        format!("plans:\n{}", plans.collect::<String>())
    };
    assert_eq!(parse(&plans(1000), jiff::tz::db()).unwrap().plans().len(), 1000);
    for count in [1001, 1100] {
        check(&plans(count), "line 2, plans: has more than 1000 plans; keep at most so many");
    }
    for (count, rest) in [(19, ""), (20, ""), (21, ", ..."), (22, ", ...")] {
        let listed: Vec<_> = (0..count.min(20)).map(|index| format!("p{index}")).collect();
        let told = problems(&format!("default_plan: other\n{}", plans(count)));
        let listed = listed.join(", ");
        assert_eq!(told, format!("line 1, default_plan: names no plan \"other\"; there are: {listed}{rest}"));
    }
}

#[test]
fn a_period_that_is_not_understood_is_told_once() {
    let catalog = |of_plan: &str, of_group: &str| {
        let group = format!("{{ id: a, unit: count, quota: 1, {of_group} match: [ {{ event: x }} ] }}");
        format!("plans: {{ p: {{ {of_plan} limit_groups: [ {group} ] }} }}")
    };
    let words = "write minute, hourly, daily, weekly, monthly, yearly or lifetime";
    check(&catalog("period: dayly,", ""), &format!("line 1, plans.p.period: is \"dayly\"; {words}"));
    check(&catalog("", "period: dayly,"), &format!("line 1, plans.p.limit_groups[0].period: is \"dayly\"; {words}"));
    let period =
        |of_plan, of_group| parse(&catalog(of_plan, of_group), jiff::tz::db()).unwrap().plans()[0].groups[0].period;
    assert_eq!(period("period: daily,", ""), Period::Daily);
    assert_eq!(period("period: daily,", "period: minute,"), Period::Minute);
    assert_eq!(period("", "period: minute,"), Period::Minute);
    let length = |text: &str| Period::Length(text.parse().unwrap());
    assert_eq!(period("period: 5h, anchor: first_use,", ""), length("300m"));
    assert_eq!(period("anchor: subscription_start,", "period: 7d,"), length("7d"));
    let path = "line 1, plans.p.limit_groups[0].period";
    let form = "write a length as a whole number and m, h or d, such as 90m, 5h or 7d";
    check(&catalog("", "period: 5w, anchor: first_use,"), &format!("{path}: is \"5w\"; {form}"));
    check(&catalog("", "period: 5, anchor: first_use,"), &format!("{path}: is \"5\"; {form}"));
    check(
        &catalog("", "period: 367d, anchor: first_use,"),
        &format!("{path}: is \"367d\"; write a length of 1m to 366d"),
    );
    for (of_plan, of_group) in [("period: 90m,", ""), ("", "period: 90m, anchor: calendar,")] {
        let expected = "line 1, plans.p.limit_groups[0]: has windows of 90m, which have no boundaries in the calendar; write \
                        `anchor: first_use` (a window starts with its first event) or `anchor: subscription_start` (one window after \
                        another)";
        check(&catalog(of_plan, of_group), expected);
    }
}

#[test]
fn what_a_plan_leaves_out_has_a_default() {
    let read = |plan: &str, group: &str| {
        let group = format!("{{ id: a, unit: count, quota: 1, period: daily, {group} match: [ {{ event: x }} ] }}");
        let text = format!("plans: {{ p: {{ {plan} limit_groups: [ {group} ] }} }}");
        let plan = parse(&text, jiff::tz::db()).unwrap().plans()[0].clone();
        let group = plan.groups[0].clone();
        (
            (plan.name, plan.timezone, plan.on_plan_change),
            (
                group.label,
                group.anchor,
                group.hard,
                group.thresholds.shares.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ),
        )
    };
    let (plan, group) = read("", "");
    assert_eq!(plan, ("p".to_owned(), "UTC".to_owned(), OnPlanChange::Carry));
    assert_eq!(group, ("a".to_owned(), Anchor::Calendar, true, vec![]));
    let (plan, group) = read(
        "name: Plan, timezone: Europe/Vienna, on_plan_change: block, anchor: subscription_start,",
        "label: Group, hard: false, thresholds: [0.000001, 0.8, 1.0, 9.999999],",
    );
    assert_eq!(plan, ("Plan".to_owned(), "Europe/Vienna".to_owned(), OnPlanChange::Block));
    let thresholds = ["0.000001", "0.8", "1", "9.999999"].map(ToOwned::to_owned).to_vec();
    assert_eq!(group, ("Group".to_owned(), Anchor::SubscriptionStart, false, thresholds));
    let (_, group) = read("anchor: subscription_start,", "anchor: calendar, hard: true,");
    assert_eq!((group.1, group.2), (Anchor::Calendar, true));
}

#[test]
fn what_yaml_can_do_and_a_catalog_cannot_is_told_with_the_rest() {
    check(
        r"
plans:
  p: &all
    period: dayly
    limit_groups: !list
      - id: a
        unit: count
        quota: 1
        match: [ { event: x } ]
  q: *all
  r:
    <<: *all
    limit_groups: []
",
        r#"
line 2: anchors are not supported; write the value where it is needed
line 3, plans.p.period: is "dayly"; write minute, hourly, daily, weekly, monthly, yearly or lifetime
line 4: tags are not supported; write the value without it
line 9: aliases are not supported; write the value where it is needed
line 11: aliases are not supported; write the value where it is needed
line 11: merge keys are not supported; write the values where they are needed
line 12, plans.r.limit_groups: is an empty list; write at least one item
"#,
    );
}

#[test]
fn a_report_stays_in_proportion_to_the_file() {
    // A key of 300 kB above 900 problems, and text that would break the line.
    let text = format!("plans:\n  ? {}\n  : limit_groups:\n{}", "k".repeat(300_000), "    - {}\n".repeat(900));
    assert!(problems(&text).len() < 1_000_000, "{}", problems(&text).len());
    // A key that is shown at its longest, above a problem or two for every two bytes.
    let text = format!("plans: {{ \"{}\": {{ {} }} }}", "\\U0010ffff".repeat(64), "a,".repeat(20_000));
    let told = problems(&text);
    assert!(told.len() < 1_000_000 && told.lines().count() == 1001, "{}", told.len());
    assert!(told.ends_with("more problems; correct these first"));
    let told = problems("plans:\n  \"a\\nb\": { limit_groups: [] }");
    assert_eq!(told.lines().count(), 2, "{told}");
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
    let (committed, ours) = (include_str!("../../catalogs/catalog.schema.json"), format!("{:#}\n", schema()));
    assert_eq!(committed, ours, "write it anew: cargo run -- schema > catalogs/catalog.schema.json");
}

#[test]
fn the_schema_accepts_the_example_and_refuses_nonsense() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let example = json_of(&super::yaml::parse(EXAMPLE, &mut super::Problems::default()).unwrap());
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
    for key in ["label", "period", "anchor", "hard", "thresholds"] {
        let mut bad = group.clone();
        bad[key] = Json::Null;
        assert!(!validator.is_valid(&json!({ "plans": { "p": { "limit_groups": [bad] } } })), "{key}: null");
    }
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
        Value::Refused => Json::Null,
    }
}
