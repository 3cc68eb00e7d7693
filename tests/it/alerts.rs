//! The alerts, held against their runbook and their own tests, which `./dev promtool` runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value as Json;
use tollgate::telemetry::labels::Code;

use crate::manifests::parse;

const RUNBOOK: &str = include_str!("../../docs/operating/runbook.md");

fn only(path: &str) -> Json {
    let documents = parse(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    let [document] = <[Json; 1]>::try_from(documents).expect("one document");
    document
}

fn array<'a>(node: &'a Json, key: &str) -> &'a [Json] {
    node[key].as_array().unwrap_or_else(|| panic!("no list {key} in {node}"))
}

fn text<'a>(node: &'a Json, key: &str) -> &'a str {
    node[key].as_str().unwrap_or_else(|| panic!("no text {key} in {node}"))
}

/// Every alert.
fn alerts() -> Vec<Json> {
    let rules = only("deploy/prometheus/alerts.yaml");
    let rules: Vec<_> = array(&rules, "groups").iter().flat_map(|group| array(group, "rules").to_vec()).collect();
    assert!(rules.len() > 20, "{}", rules.len());
    rules
}

fn name(alert: &Json) -> String {
    text(alert, "alert").to_owned()
}

#[test]
fn every_alert_says_what_it_means_and_where_to_look() {
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = name(&alert);
        let annotation = |key: &str| text(&alert["annotations"], key);
        assert!(name.starts_with("Tollgate"), "{name}");
        assert!(annotation("summary").len() > 10, "{name}");
        assert!(annotation("description").ends_with('.'), "{name}: the description is of whole sentences");
        let (base, section) =
            annotation("runbook_url").split_once("docs/operating/runbook.md#").expect("a section of the runbook");
        assert!(base.starts_with("https://"), "{name}: {base}");
        assert_eq!(section, name.to_lowercase());
        assert!(RUNBOOK.contains(&format!("\n## {name}\n")), "the runbook has no section {name}");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
    let sections =
        RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).filter(|name| name.starts_with("Tollgate"));
    assert_eq!(sections.map(str::to_owned).collect::<BTreeSet<_>>(), names);
}

#[test]
fn every_alert_has_a_history_in_which_it_fires_and_one_in_which_it_stays_quiet() {
    let tests = only("deploy/prometheus/alerts.test.yaml");
    let (mut fires, mut stays_quiet) = (BTreeSet::new(), BTreeSet::new());
    for test in array(&tests, "tests") {
        let title = text(test, "name");
        assert!(!array(test, "input_series").is_empty(), "{title}");
        // How many alerts are expected, at each time that is looked at.
        let mut expected: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for look in array(test, "alert_rule_test") {
            let firing = array(look, "exp_alerts").len();
            expected.entry(text(look, "alertname")).or_default().push(firing);
        }
        for (name, firing) in expected {
            assert!(title.starts_with(&format!("{name} ")), "{title} is about {name}");
            let quiet = firing.iter().all(|number| *number == 0);
            assert_eq!(title.contains(" stays quiet "), quiet, "{title}");
            let heard = if quiet { &mut stays_quiet } else { &mut fires };
            heard.insert(name.to_owned());
        }
    }
    let names: BTreeSet<_> = alerts().iter().map(name).collect();
    assert_eq!(fires, names);
    assert_eq!(stays_quiet, names);
}

#[test]
fn an_alert_watches_every_status_that_tells_of_a_fault() {
    let watched: BTreeSet<String> = alerts()
        .iter()
        .map(|alert| text(alert, "expr"))
        .flat_map(|expression| expression.split("code").skip(1).collect::<Vec<_>>())
        .filter_map(|rest| rest.strip_prefix("=\"").or_else(|| rest.strip_prefix("=~\"")))
        .flat_map(|rest| rest.split('"').next().unwrap_or_default().split('|'))
        .map(str::to_owned)
        .collect();
    for code in Code::ALL {
        // A caller that goes away has its own reasons.
        let no_fault = matches!(code, Code::Ok | Code::Cancelled);
        assert!(no_fault || watched.contains(code.as_str()), "no alert watches {}", code.as_str());
    }
}
