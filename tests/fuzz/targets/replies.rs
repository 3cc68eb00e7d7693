//! What is read from Redis: the answer of a script, and a plan of the archive. Either is understood whole, or refused.
//!
//! The first byte chooses what is expected: an answer about a plan that is known, or about one that is not, or a plan, or reservations.

use std::sync::LazyLock;

use tollgate::catalog;
use tollgate::domain::amount::MAX_UNITS;
use tollgate::domain::answer::{Crossed, ReservationState, Standing};
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{AppId, Owner, UserId};
use tollgate::domain::plan::{Catalog, Quota};
use tollgate::domain::subscription::Subscription;
use tollgate::ledger::{
    CompiledPlan, Frames, NoAnswer, NoPlan, Stored, digest_of, encode_subscription, formats, read_answer,
    read_reservations,
};

use super::check_fault;

static EXAMPLE: LazyLock<Catalog> =
    LazyLock::new(|| catalog::parse(catalog::EXAMPLE, &jiff::tz::TimeZoneDatabase::bundled()).unwrap());

static PLAN: LazyLock<CompiledPlan> = LazyLock::new(|| CompiledPlan::of(&EXAMPLE.plans()[0]));

const AT_MS: i64 = 1_795_516_231_123;

pub(super) fn run(input: &[u8]) {
    let Some((kind, packed)) = input.split_first() else { return };
    let answer = match kind % 4 {
        0 => read_answer(packed, Some(&PLAN)),
        1 => read_answer(packed, None),
        2 => return check_plan(packed),
        _ => return check_reservations(packed),
    };
    match answer {
        Ok(answer) => {
            assert!(kind % 4 == 0 || answer.standings.is_empty(), "groups of a plan that nobody knows");
            answer.standings.iter().for_each(check_standing);
            answer.crossed.iter().for_each(check_crossed);
            assert!(
                !answer.replayed || answer.crossed.is_empty() || packed.get(7).is_some_and(|columns| columns & 8 != 0)
            );
        }
        Err(NoAnswer::Stale(stored)) => check_stored(&stored),
        Err(NoAnswer::Fault(fault)) => check_refused(&fault),
    }
}

/// What a script calls a fault names groups and quantities of the catalog, which are short there.
fn check_refused(fault: &Fault) {
    match fault {
        Fault::Internal(_) | Fault::RequestIdReused | Fault::TooManyHolds | Fault::FormatUnknown => check_fault(fault),
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

fn check_crossed(crossed: &Crossed) {
    let Crossed { threshold, used, unit, .. } = crossed;
    assert!(threshold.units > 0 && threshold.units <= *used && *used <= MAX_UNITS, "{crossed:?}");
    assert!(unit.to_f64(threshold.units).is_finite());
}

fn check_stored(stored: &Stored) {
    let Some(subscription) = &stored.subscription else { return };
    assert_ne!(subscription.end_ms, Some(0), "the epoch stands for no end");
    assert!(subscription.fallen_to.as_ref().is_none_or(|plan| *plan == stored.plan), "it has fallen to the last plan");
    assert_eq!(written_and_read(stored, subscription), *stored, "what is written is what is read");
    let _: bool = subscription.has_ended(AT_MS);
    for plan in EXAMPLE.plans() {
        drop(Frames::of(plan, Some(subscription.cycle_anchor_ms), &subscription.overrides, AT_MS));
    }
}

fn written_and_read(stored: &Stored, subscription: &Subscription) -> Stored {
    let mut packed = Vec::new();
    let stale = formats::Stale {
        kind: 2,
        now: stored.now_ms,
        redis_now: stored.redis_ms,
        subscribed: if subscription.fallen_to.is_some() { 2 } else { 1 },
        revision: subscription.revision,
        plan: stored.plan.clone().into_bytes(),
        blob: encode_subscription(subscription),
    };
    stale.write(&mut packed);
    match read_answer(&packed, None) {
        Err(NoAnswer::Stale(again)) => *again,
        other => panic!("{other:?}"),
    }
}

fn check_reservations(packed: &[u8]) {
    let owner = Owner::new(&AppId::default(), &UserId::parse("u").unwrap());
    let Ok(reservations) = read_reservations(packed, &owner, &PLAN) else { return };
    for reservation in reservations {
        for charge in &reservation.charges {
            assert!([charge.reserved, charge.committed, charge.refunded].iter().all(|units| *units <= MAX_UNITS));
            assert!(charge.committed == 0 || reservation.state == ReservationState::Committed, "{charge:?}");
        }
        assert!(reservation.event.quantities.keys().all(|name| PLAN.names.contains(name)));
    }
}

fn check_plan(message: &[u8]) {
    match CompiledPlan::read(message.into()) {
        Ok(plan) => {
            assert_eq!(plan.digest, digest_of(message));
            assert!(plan.asked.is_sorted() && plan.weight() >= message.len());
            let quota = |quota: Quota| matches!(quota, Quota::Limited(units) if units > MAX_UNITS);
            assert!(!plan.groups.iter().any(|group| quota(group.quota)));
        }
        Err(NoPlan::Form(error)) => assert!(error.to_string().len() < 4096),
        Err(NoPlan::Number(..)) => {}
    }
}
