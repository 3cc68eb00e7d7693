//! What is read from Redis: the answer of a script, and a stored subscription. Either is understood whole, or refused.
//!
//! The first byte chooses what is expected, the rest is MessagePack.

use std::sync::LazyLock;

use tollgate::catalog;
use tollgate::domain::amount::MAX_UNITS;
use tollgate::domain::answer::Standing;
use tollgate::domain::fault::Fault;
use tollgate::domain::plan::{Catalog, Quota};
use tollgate::ledger::codec::{self, Reply};

use super::check_fault;

static EXAMPLE: LazyLock<Catalog> =
    LazyLock::new(|| catalog::parse(catalog::EXAMPLE, &jiff::tz::TimeZoneDatabase::bundled()).unwrap());

const AT_MS: i64 = 1_795_516_231_123;

pub(super) fn run(input: &[u8]) {
    let Some((kind, packed)) = input.split_first() else { return };
    if kind % 9 == 8 {
        return check_subscription(packed);
    }
    let reply = match codec::decode(packed) {
        Ok(reply) => reply,
        Err(fault) => return check_refused(&fault),
    };
    let standings = match kind % 9 {
        0 => told(reply.decision()).map(|(decision, _)| decision.standings),
        1 => told(reply.committed()).map(|committed| committed.standings),
        2 => told(reply.released()).map(|released| released.standings),
        3 => told(reply.tracked()).map(|tracked| tracked.standings),
        4 => told(reply.usage()),
        5 => told(reply.subscription()).map(|_| Vec::new()),
        6 => told(reply.deleted()).map(|_| Vec::new()),
        _ => {
            if let Err(stale) = Reply::current(reply) {
                check_subscription(&stale.subscription);
            }
            None
        }
    };
    standings.iter().flatten().for_each(check_standing);
}

fn told<T>(found: Result<T, Fault>) -> Option<T> {
    found.inspect_err(check_refused).ok()
}

/// What a script calls a fault names groups and quantities of the catalog, which are short there.
fn check_refused(fault: &Fault) {
    match fault {
        Fault::Internal(_) | Fault::RequestIdReused | Fault::TooManyHolds => check_fault(fault),
        _ => drop(fault.to_string()),
    }
}

fn check_standing(standing: &Standing) {
    let Standing { quota, used, held, requested, shortfall, unapplied, unit, .. } = standing;
    for units in [used, held, requested, shortfall, unapplied] {
        assert!(*units <= MAX_UNITS, "an amount that no counter can have: {standing:?}");
        assert!(unit.to_f64(*units).is_finite());
    }
    if let Quota::Limited(quota) = quota {
        assert!(*quota <= MAX_UNITS, "{standing:?}");
        assert!(standing.remaining().is_some_and(|remaining| remaining <= *quota));
        assert!(standing.would_exceed(*requested) || !standing.exceeded());
    }
}

fn check_subscription(packed: &[u8]) {
    let Some(Some(subscription)) = told(codec::decode_subscription(packed)) else { return };
    assert_ne!(subscription.end_ms, Some(0), "the epoch stands for no end");
    assert_ne!(subscription.fallen_to.as_deref(), Some(""), "the empty text stands for no plan");
    let again = codec::decode_subscription(&codec::encode_subscription(&subscription)).unwrap();
    assert_eq!(again.as_ref(), Some(&subscription), "what is written is what is read");
    let _: bool = subscription.has_ended(AT_MS);
    for plan in EXAMPLE.plans() {
        drop(catalog::compile(plan, Some(subscription.cycle_anchor_ms), &subscription.overrides, AT_MS));
    }
}
