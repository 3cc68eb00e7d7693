//! Records the outcomes of use cases as metrics and in the context of the call: one function for each kind of answer.

use super::call::{compiles_again, decides};
use super::labels::{Code, Outcome, Uncounted};
use super::metrics::metrics;
use crate::domain::answer::{Committed, Decision, Extended, Hold, Reason, Released, Reset, Tracked};
use crate::rpc::Rpc;

/// The script knew of another subscription, window or time than the call was compiled for.
pub fn stale() {
    metrics().stale.inc();
    compiles_again();
}

/// Reserve is allowed without a decision.
pub fn degraded() {
    metrics().degraded.inc();
    decides(Outcome::Degraded);
}

/// Reserve is decided, for a user on this plan.
pub fn reserved(plan: &str, decision: &Decision, hold: Option<&Hold>) {
    let replayed = hold.is_some_and(|hold| hold.replayed);
    decides(match decision.denied {
        None if replayed => Outcome::Replayed,
        None => Outcome::Allowed,
        Some(_) => Outcome::Denied,
    });
    match decision.denied {
        None => {}
        Some(Reason::LimitReached) => {
            for standing in decision.standings.iter().filter(|standing| standing.denies()) {
                metrics().denied(plan, &standing.group_id);
            }
        }
        Some(reason) => uncounted(Rpc::Reserve, reason),
    }
}

/// CanUse is answered.
pub fn asked(decision: &Decision) {
    decides(if decision.denied.is_none() { Outcome::Allowed } else { Outcome::Denied });
    if let Some(reason) = decision.denied {
        uncounted(Rpc::CanUse, reason);
    }
}

/// A script has found this many ledgers whose time was too far ahead of Redis's, and follows Redis again (ONE-CLOCK).
pub fn clocks_corrected(ledgers: i64) {
    let Some(ledgers) = u64::try_from(ledgers).ok().filter(|ledgers| *ledgers > 0) else { return };
    metrics().clocks_corrected.inc_by(ledgers);
    tracing::warn!(
        ledgers,
        "the time in the ledgers of users was more than 5 minutes ahead of redis: their live holds have lapsed; \
         check the clocks of redis and of its replicas"
    );
}

/// Commit is done.
pub fn committed(committed: &Committed) {
    if committed.replayed {
        return decides(Outcome::Replayed);
    }
    // A repeated commit says so as well, and is the same one.
    if committed.late {
        metrics().commits_late.inc();
    }
    if committed.overage {
        metrics().commits_over.inc();
    }
}

/// Extend is decided. Its denials have no plan: the reservation may be of an earlier one.
pub fn extended(extended: &Extended) {
    decides(match extended.denied {
        None if extended.replayed => Outcome::Replayed,
        None => Outcome::Allowed,
        Some(_) => Outcome::Denied,
    });
}

/// Release is done.
pub fn released(released: &Released) {
    if released.replayed {
        decides(Outcome::Replayed);
    }
}

/// Returns what a Track has decided.
#[must_use]
pub fn of_tracked(tracked: &Tracked) -> Outcome {
    match tracked.uncounted {
        None if tracked.replayed => Outcome::Replayed,
        None => Outcome::Allowed,
        Some(Reason::LimitReached) => Outcome::Denied,
        Some(_) => Outcome::Uncounted,
    }
}

/// One request of a BatchTrack is done, with the status of this number and this outcome.
pub fn tracked_in_batch(code: i32, outcome: Option<Outcome>) {
    let (code, outcome) = (Code::of(code), outcome.unwrap_or(Outcome::Fault));
    metrics().batch_tracked(code, outcome);
    let (code, outcome) = (code.as_str(), outcome.as_str());
    tracing::debug!(target: "tollgate::access", rpc = "Track", code, outcome, "answered in a batch");
}

/// A BatchTrack is done. Its requests have outcomes of their own.
pub fn batch_tracked() {
    decides(Outcome::Done);
}

/// Track is done, for a user on this plan.
pub fn tracked(plan: &str, tracked: &Tracked) {
    decides(of_tracked(tracked));
    match tracked.uncounted {
        None => {}
        Some(Reason::LimitReached) => {
            for standing in tracked.standings.iter().filter(|standing| standing.denies()) {
                metrics().denied(plan, &standing.group_id);
            }
        }
        Some(reason) => uncounted(Rpc::Track, reason),
    }
}

/// ResetUsage is done.
pub fn reset(reset: &Reset) {
    if reset.replayed {
        decides(Outcome::Replayed);
    }
}

/// Track of a refund is done.
pub fn refunded(refund: &Tracked) {
    if !refund.replayed && refund.standings.iter().any(|standing| standing.unapplied > 0) {
        metrics().refunds_unapplied.inc();
    }
    tracked("", refund);
}

fn uncounted(rpc: Rpc, reason: Reason) {
    match reason {
        Reason::UnmatchedEvent => metrics().uncounted(rpc, Uncounted::UnmatchedEvent),
        Reason::NoSubscription => metrics().uncounted(rpc, Uncounted::NoSubscription),
        Reason::LimitReached => {}
    }
}
