//! Runs cases, compares, and shortens what fails.

#[path = "invariant.rs"]
mod invariant;

use std::collections::BTreeMap;
use std::sync::Arc;

use invariant::Invariant;
use tollgate::ledger::{Ledger, RedisOptions};

use crate::generate::{Case, USERS};
use crate::operations::{Call, Operation};
use crate::real::Real;
use crate::reference::Model;
use crate::support::timed_redis::TimedRedis;
use crate::support::{Step, redis_options, stepped_ledger};

/// Operations of one case.
pub const LENGTH: u32 = 120;

/// A number of the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number")),
        Err(_) => default,
    }
}

/// Where cases run.
#[derive(Clone)]
pub struct Ground {
    ledger: Ledger,
    /// With a clock of its own, for one case at a time. None: the shared one.
    redis: Option<Arc<TimedRedis>>,
}

impl Ground {
    /// The shared Redis; the scripts read another clock there, and keys do not expire by it.
    pub async fn stepped() -> Self {
        Self { ledger: stepped_ledger().await, redis: None }
    }

    /// A Redis whose own clock is set, under the scripts as they are, so that keys expire. Where that cannot be, the shared one.
    pub async fn timed() -> Self {
        if !cfg!(target_os = "linux") {
            return Self::stepped().await;
        }
        let redis = Arc::new(TimedRedis::start().await);
        let options = RedisOptions { urls: vec![redis.url()], ..redis_options() };
        let ledger = Ledger::connect(&options).await.expect("Redis can be used");
        Self { ledger, redis: Some(redis) }
    }
}

/// Where the two differ.
pub struct Difference {
    pub after: usize,
    pub story: String,
}

/// Runs the case on both, and verifies what it leaves behind, which takes a while (the hold of a stepped clock is looked at twice).
/// Returns how often each case of the contract occurred.
pub async fn run_on(case: &Case, ground: &Ground) -> Result<BTreeMap<&'static str, u64>, Difference> {
    let (model, real) = compare_on(case, ground).await?;
    let mut contradictions = real.contradictions().await;
    if model.covered.contains_key("a wrong clock") {
        // While the clock was ahead, the reservation expired; its key did not, and nothing is left that tells why.
        contradictions.retain(|found| !found.contains("}:u:h:") || !found.ends_with(" that nothing is known of"));
    }
    real.clean_up().await;
    if contradictions.is_empty() {
        return Ok(model.covered);
    }
    Err(Difference { after: case.operations.len(), story: contradictions.join("\n") })
}

/// The same, without the verification.
pub async fn run_unverified(case: &Case, ground: &Ground) -> Result<BTreeMap<&'static str, u64>, Difference> {
    let (model, real) = compare_on(case, ground).await?;
    real.clean_up().await;
    Ok(model.covered)
}

async fn set_clocks(real: &Real, to: i64) {
    for user in 0..USERS {
        real.set_clock(user, Step::To(to)).await;
    }
}

/// Runs the case on both, with a ledger whose clocks can be stepped, and compares the answers.
// The mutants use it, with scripts of their own.
#[allow(dead_code)]
pub async fn compare(case: &Case, ledger: &Ledger) -> Result<(Model, Real), Difference> {
    compare_on(case, &Ground { ledger: ledger.clone(), redis: None }).await
}

async fn compare_on(case: &Case, ground: &Ground) -> Result<(Model, Real), Difference> {
    let mut model = Model::new(case.settings.clone(), USERS, case.start);
    let mut real = Real::new(&case.settings, std::slice::from_ref(&ground.ledger), USERS);
    if let Some(redis) = &ground.redis {
        real = real.on(Arc::clone(redis));
    }
    let mut invariant = Invariant::default();
    set_clocks(&real, case.start).await;
    let last = case.operations.last().map_or(0, |operation| operation.number);
    // In the end everybody's state is read back, by every replica.
    let read_back = (0..USERS * 3).map(|index| Operation {
        number: last + 1,
        replica: index % 3,
        user: index / 3,
        call: Call::Usage { pattern: String::new(), at: None },
    });
    for (index, operation) in case.operations.iter().cloned().chain(read_back).enumerate() {
        let before = model.clone();
        let expected = model.apply(&operation);
        if model.silent {
            model = before;
            model.cover("SPEC is silent");
            continue;
        }
        real.went_back |= model.clock < before.clock;
        if model.clock != before.clock {
            set_clocks(&real, model.clock).await;
        }
        let (times, user) = (before.clone(), operation.user);
        let found = real.ask(&operation, move |when| times.resolve(user, when)).await;
        let now = model.users[operation.user].now;
        if let Err(story) = invariant.holds(&operation, &found, &before, &model) {
            real.clean_up().await;
            return Err(Difference { after: index + 1, story: format!("{operation:?}\nat {now}\n{story}") });
        }
        if !found.is(&expected) {
            real.clean_up().await;
            let differing = differing_lines(&format!("{expected:#?}"), &format!("{found:#?}"));
            let story = format!("{operation:?}\nat {now}\nexpected {expected:?}\nfound {found:?}\n{differing}");
            return Err(Difference { after: index + 1, story });
        }
    }
    Ok((model, real))
}

/// The shortest sequence that still fails, found by leaving out ever smaller parts.
pub async fn shorten(case: Case, difference: Difference, ground: &Ground) -> (Case, Difference) {
    let (mut case, mut difference) = (case, difference);
    case.operations.truncate(difference.after);
    let mut part = case.operations.len().div_ceil(2);
    while part > 0 {
        let mut from = 0;
        while from < case.operations.len() {
            let mut shorter = case.clone();
            shorter.operations.drain(from..(from + part).min(shorter.operations.len()));
            match run_on(&shorter, ground).await {
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
