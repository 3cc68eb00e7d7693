//! Runs cases, compares, and shortens what fails.

use std::collections::BTreeMap;

use tollgate::ledger::Ledger;

use crate::generate::{Case, USERS};
use crate::operations::{Call, Operation};
use crate::real::Real;
use crate::reference::Model;
use crate::support::Step;

/// Operations of one case.
pub const LENGTH: u32 = 120;

/// A number of the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number")),
        Err(_) => default,
    }
}

/// Where the two differ.
pub struct Difference {
    pub after: usize,
    pub story: String,
}

/// Runs the case on both, and verifies what it leaves behind, which takes a while (the hold of a stepped clock is looked at twice).
/// Returns how often each case of the contract occurred.
pub async fn run(case: &Case, ledger: &Ledger) -> Result<BTreeMap<&'static str, u64>, Difference> {
    let (model, real) = compare(case, ledger).await?;
    let contradictions = real.contradictions().await;
    real.clean_up().await;
    if contradictions.is_empty() {
        return Ok(model.covered);
    }
    Err(Difference { after: case.operations.len(), story: contradictions.join("\n") })
}

/// The same, without the verification.
pub async fn run_unverified(case: &Case, ledger: &Ledger) -> Result<BTreeMap<&'static str, u64>, Difference> {
    let (model, real) = compare(case, ledger).await?;
    real.clean_up().await;
    Ok(model.covered)
}

/// Runs the case on both, and compares the answers.
pub async fn compare(case: &Case, ledger: &Ledger) -> Result<(Model, Real), Difference> {
    let mut model = Model::new(case.settings.clone(), USERS, case.start);
    let mut real = Real::new(&case.settings, std::slice::from_ref(ledger), USERS);
    for user in 0..USERS {
        real.set_clock(user, Step::To(case.start)).await;
    }
    let last = case.operations.last().map_or(0, |operation| operation.number);
    // In the end everybody's state is read back, by every replica.
    let read_back = (0..USERS * 3).map(|index| Operation {
        number: last + 1,
        replica: index % 3,
        user: index / 3,
        call: Call::Usage { pattern: String::new(), at: None },
    });
    for (index, operation) in case.operations.iter().cloned().chain(read_back).enumerate() {
        let found = real.ask(&operation, |when| model.resolve(operation.user, when)).await;
        let before = model.users[operation.user].now;
        let expected = model.apply(&operation);
        let now = model.users[operation.user].now;
        if now != before || matches!(operation.call, Call::Delete) {
            real.set_clock(operation.user, Step::To(now)).await;
        }
        if found != expected {
            real.clean_up().await;
            let differing = differing_lines(&format!("{expected:#?}"), &format!("{found:#?}"));
            let story = format!("{operation:?}\nat {now}\nexpected {expected:?}\nfound {found:?}\n{differing}");
            return Err(Difference { after: index + 1, story });
        }
    }
    Ok((model, real))
}

/// The shortest sequence that still fails, found by leaving out ever smaller parts.
pub async fn shorten(case: Case, difference: Difference, ledger: &Ledger) -> (Case, Difference) {
    let (mut case, mut difference) = (case, difference);
    case.operations.truncate(difference.after);
    let mut part = case.operations.len().div_ceil(2);
    while part > 0 {
        let mut from = 0;
        while from < case.operations.len() {
            let mut shorter = case.clone();
            shorter.operations.drain(from..(from + part).min(shorter.operations.len()));
            match run(&shorter, ledger).await {
                Err(still) => {
                    shorter.operations.truncate(still.after);
                    (case, difference) = (shorter, still);
                }
                Ok(_) => from += part,
            }
        }
        part /= 2;
    }
    (case, difference)
}

/// The first lines that differ, each with where it stands.
fn differing_lines(expected: &str, found: &str) -> String {
    let mut shown = String::new();
    let mut group = "";
    for (expected, found) in expected.lines().zip(found.lines()) {
        if expected.contains("limit_group_id") {
            group = expected.trim();
        }
        if expected != found && shown.len() < 1000 {
            shown += &format!("{group} expected {} found {}\n", expected.trim(), found.trim());
        }
    }
    shown
}
