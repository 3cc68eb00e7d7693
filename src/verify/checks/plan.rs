//! Plans of the archive: that their keys name them, and that records mean their groups.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::id::{PlanDigest, base64url};
use crate::ledger::inspection::ArchivedPlan;
use crate::ledger::{UserKeys, digest_of, keys};

use super::super::stored::{Plan, nth};
use super::{Findings, Judged};

/// A key of the archive.
pub fn archived_plan(digest: &PlanDigest, archived: &ArchivedPlan, findings: &mut Findings) -> Option<Plan> {
    let key = keys::plan(digest);
    match archived.kind.as_str() {
        "none" => return None,
        "string" => {}
        kind => {
            findings.contradiction(&key, format!("is a {kind}, and not a string"));
            return None;
        }
    }
    if archived.expires_at_ms < 0 {
        findings.contradiction(&key, "never expires".to_owned());
    }
    let found = digest_of(&archived.message);
    if found != *digest {
        findings.contradiction(&key, format!("has a plan whose digest is {}", base64url(&found)));
        return None;
    }
    match Plan::decode(&archived.message) {
        Ok(plan) => Some(plan),
        Err(error) => {
            findings.contradiction(&key, error.to_string());
            None
        }
    }
}

/// SELF-CONTAINED: what records are charged for is a group of their plan, in a window of this group. `plans` are those of the archive.
pub fn record_plans(keys: &UserKeys, judged: &mut Judged, plans: &BTreeMap<PlanDigest, Option<Plan>>) {
    for (digest, count) in &judged.open {
        if !matches!(plans.get(digest), Some(Some(_))) {
            let text = format!(
                "plan {} is not in the archive: {count} of its reservations cannot be committed with other quantities",
                base64url(digest)
            );
            judged.findings.note(keys.state(), text);
        }
    }
    let windows: BTreeMap<i64, (&str, i64, i64)> = judged
        .state
        .iter()
        .flat_map(|state| state.windows())
        .map(|(group, window, _)| (window.number(), (group, window.stored.unit, window.stored.period)))
        .collect();
    let mut told = BTreeSet::new();
    for (digest, place, window) in &judged.charged {
        let Some(Some(plan)) = plans.get(digest) else { continue };
        let name = base64url(digest);
        let Some((id, unit, period)) = nth(&plan.groups, *place) else {
            let count = plan.groups.len();
            told.insert(format!("a record has group {place} of plan {name}, which has {count}"));
            continue;
        };
        if let Some(found) = windows.get(window)
            && *found != (id.as_str(), *unit, *period)
        {
            let group = found.0;
            told.insert(format!(
                "a record has window {window} for group {id:?} of plan {name}, but that is one of group {group:?}, or of another unit or period"
            ));
        }
    }
    for text in told {
        judged.findings.contradiction(keys.state(), text);
    }
}
