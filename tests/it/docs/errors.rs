//! `docs/reference/errors.md`: it explains every reason of `ErrorInfo`, each with the status that the source gives it.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, page, repository};

const PATH: &str = "docs/reference/errors.md";

/// Where faults are named. A reason elsewhere is one of these.
const SOURCES: [&str; 5] =
    ["src/grpc", "src/meter.rs", "src/planner.rs", "src/subscriptions.rs", "src/ledger/answer.rs"];

/// The texts of the source without its tests.
fn sources() -> Vec<String> {
    let paths = SOURCES
        .iter()
        .flat_map(|source| if source.ends_with(".rs") { vec![repository().join(source)] } else { files(source, "rs") });
    paths
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
        })
        .collect()
}

fn is_reason(text: &str) -> bool {
    text.len() > 4
        && text.contains(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// `INVALID_ARGUMENT` for `InvalidArgument`.
fn status_name(code: &str) -> String {
    let mut name = String::new();
    for character in code.chars() {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

/// Every reason, and the statuses that stand beside it. One without a status is a violated bound: INVALID_ARGUMENT.
fn reasons() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for text in sources() {
        let pieces: Vec<&str> = text.split('"').collect();
        for (index, literal) in pieces.iter().enumerate().skip(1).step_by(2) {
            let before = pieces[index - 1];
            // Not what scripts say (`b"..."`), and no variable of the build (`env!(...)`).
            if !is_reason(literal) || before.ends_with('b') || before.ends_with("env!(") {
                continue;
            }
            let statuses = found.entry((*literal).to_owned()).or_default();
            let beside = before.trim_end().strip_suffix(',').and_then(|before| before.rsplit("Code::").next());
            match beside.filter(|code| code.chars().all(|character| character.is_ascii_alphanumeric())) {
                Some(code) => statuses.insert(status_name(code)),
                None => statuses.insert("INVALID_ARGUMENT".to_owned()),
            };
        }
    }
    found
}

/// The reasons that the page explains, each with its statuses: rows such as ``| `X` | INVALID_ARGUMENT | ...``.
fn explained() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for line in page(PATH).lines().filter_map(|line| line.strip_prefix("| `")) {
        let (reason, rest) = line.split_once("` | ").unwrap_or_else(|| panic!("{line}"));
        let mut cells = rest.trim_end_matches('|').split(" | ");
        let statuses = cells.next().unwrap_or_default().split(", ").map(|status| status.trim().to_owned()).collect();
        let rest: Vec<&str> = cells.collect();
        assert_eq!(rest.len(), 2, "{reason}: the cause, and what to do");
        assert!(rest.iter().all(|cell| cell.trim().len() > 10), "{reason}: the cause, and what to do");
        let before = found.insert(reason.to_owned(), statuses);
        assert!(before.is_none(), "{reason} is explained twice");
    }
    found
}

#[test]
fn every_reason_is_explained_with_its_status() {
    let reasons = reasons();
    assert!(reasons.len() > 35, "{reasons:?}");
    let explained = explained();
    let missing: Vec<_> = reasons.keys().filter(|reason| !explained.contains_key(*reason)).collect();
    assert!(missing.is_empty(), "{PATH} does not explain {missing:?}");
    let gone: Vec<_> = explained.keys().filter(|reason| !reasons.contains_key(*reason)).collect();
    assert!(gone.is_empty(), "{PATH} explains what the source does not know: {gone:?}");
    for (reason, statuses) in reasons {
        assert_eq!(explained[&reason], statuses, "the status of {reason}");
    }
}
