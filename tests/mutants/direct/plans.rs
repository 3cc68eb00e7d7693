//! What plans and subscriptions do that few of the model's cases show.

use std::collections::BTreeMap;

use tollgate::catalog;
use tollgate::domain::amount::Quantity;
use tollgate::domain::fault::Fault;
use tollgate::domain::plan::Quota;
use tollgate::domain::subscription::{QuotaOverride, Subscription};
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Apply, Frames, InForce, Ledger, NoAnswer, Once, PutCall, formats, read_answer};

use super::forms::record;
use super::raw;
use super::stored::Stored;
use super::user::{MINUTE, START, User, event, group, held, made, subscription, used};

/// A plan `q`.
fn other_plan(ledger: &Ledger, change: &str, groups: &str) -> InForce {
    let text = format!("plans: {{ q: {{ on_plan_change: {change}, limit_groups: [{groups}] }} }}");
    let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    let frames = Frames::of(&catalog.plans()[0], None, &BTreeMap::new(), START).expect("the time has a calendar");
    InForce::Plan { plan: ledger.compile(&catalog).swap_remove(0), frames }
}

/// A user whose subscription of `p` ends a second after the start, and one event.
async fn ending(ledger: &Ledger) -> Option<User<'_>> {
    let mut user = User::on(ledger, &group("yearly")).await;
    user.track("").await.ok()?;
    let before = ledger.subscription(&user.owner).await.ok()?;
    let wanted = Subscription { end_ms: Some(START + 1000), ..subscription(1) };
    let call = PutCall { before: &before, wanted: &wanted, steps: &[] };
    ledger.put_subscription(&user.owner, &call).await.ok()?;
    user.basis.revision = Some(wanted.revision);
    user.step(1000).await;
    user.basis.ended = true;
    Some(user)
}

/// Whoever has fallen to the default plan does not enter another one that a catalog puts in its place.
pub async fn fallen(ledger: &Ledger) -> bool {
    let Some(mut user) = ending(ledger).await else { return false };
    let mut right = user.track("").await.is_ok();
    user.basis.plan = other_plan(ledger, "reset", &group("yearly"));
    right &= user.standing().await == Some((2, 0)) && user.track("").await.is_ok();
    right &= user.standing().await == Some((3, 0));
    user.delete().await;
    right
}

/// A denied call leaves what entering a plan has done.
pub async fn blocked(ledger: &Ledger) -> bool {
    let mut right = true;
    for reserves in [true, false] {
        let Some(mut user) = ending(ledger).await else { return false };
        let groups = group("yearly").replace("id: g", "id: k");
        user.basis.plan = other_plan(ledger, "block", &groups);
        let e = event("e", &[]);
        if reserves {
            right &= user.reserve("").await.is_ok_and(|answer| answer.decision.denied.is_some());
        } else {
            right &= user.track_for("", MINUTE, &e, true).await.is_ok_and(|tracked| tracked.uncounted.is_some());
        }
        right &= user.standing().await == Some((9, 0));
        let stored = ledger.subscription(&user.owner).await.ok().and_then(|stored| stored.subscription);
        right &= stored.is_some_and(|stored| stored.fallen_to.as_deref() == Some("q"));
        user.delete().await;
    }
    right
}

/// A plan that fills its groups opens their windows, also those that otherwise only an event opens.
pub async fn block_opens(ledger: &Ledger) -> bool {
    let Some(mut user) = ending(ledger).await else { return false };
    user.basis.plan = other_plan(ledger, "block", &group("yearly").replace("id: g", "anchor: first_use, id: k"));
    let denied = user.reserve("").await;
    let right = denied.is_ok_and(|answer| answer.decision.standings[0].window_ms.is_some());
    user.delete().await;
    right
}

/// Entering a plan arranges the counters for it.
pub async fn arranged(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &group("yearly")).await;
    let mut right = user.track("").await.is_ok();
    user.compile(&format!("{}, {}", group("daily").replace("id: g", "id: d"), group("yearly")), None, 0);
    right &= user.subscribe(1, &[Apply::Enter]).await;
    let Ok(stored) = Stored::read(&user.state().await) else { return false };
    let numbers: Vec<_> = stored.counters.iter().map(|counter| (counter.number, counter.used)).collect();
    right &= stored.head.basis == user.frames().arrangement && numbers == [(0, 0), (1, 1)];
    user.delete().await;
    right
}

/// Quotas of the owner's own, beside each other column of answers.
pub async fn own_quotas(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &group("yearly")).await;
    let text = format!(
        "plans: {{ p: {{ limit_groups: [{}, {}] }} }}",
        group("yearly"),
        group("yearly").replace("id: g", "id: h")
    );
    let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    let own = |quota| QuotaOverride::Amount(Quantity::from_decimal(quota).expect("a number"));
    let overrides = BTreeMap::from([("g".to_owned(), own("7")), ("h".to_owned(), own("5"))]);
    let frames = Frames::of(&catalog.plans()[0], None, &overrides, START).expect("the time has a calendar");
    user.basis.plan = InForce::Plan { plan: ledger.compile(&catalog).swap_remove(0), frames };
    let quotas = |standings: &[tollgate::domain::answer::Standing]| {
        standings.iter().map(|standing| standing.quota).eq([Quota::Limited(7), Quota::Limited(5)])
    };
    let count = |count: &str| event("e", &[("quantity", count)]);
    let Some((id, 2)) = made(user.reserve_for("r", 5000, &count("2")).await) else { return false };
    let replayed = user.reserve_for("r", 5000, &count("2")).await;
    let mut right = replayed.is_ok_and(|answer| quotas(&answer.decision.standings));
    let denied = user.can_use(&count("4")).await;
    right &= denied.is_ok_and(|decision| {
        quotas(&decision.standings)
            && decision.standings.iter().map(|standing| standing.shortfall).eq([0, 1])
            && decision.retry_after_ms == Some(5000)
    });
    right &= user.commit(&id, Some(&used(&[("quantity", "1")]))).await.is_ok_and(|done| quotas(&done.standings));
    for request_id in ["a", "a", ""] {
        let refund = user.refund_reservation(request_id, &id, &count("3")).await;
        let unapplied = if request_id.is_empty() { 3 } else { 2 };
        right &= refund.is_ok_and(|done| {
            quotas(&done.standings) && done.standings.iter().all(|standing| standing.unapplied == unapplied)
        });
    }
    right &= user
        .refund("", &count("1"))
        .await
        .is_ok_and(|done| quotas(&done.standings) && done.standings.iter().all(|standing| standing.unapplied == 1));
    right &= user.usage().await.is_some_and(|standings| quotas(&standings));
    user.delete().await;
    right
}

/// A reservation that was committed otherwise is told by its plan.
pub async fn otherwise(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some((id, 1)) = made(user.reserve("").await) else { return false };
    let mut right = user.commit(&id, None).await.is_ok() && user.track("t").await.is_ok();
    // What is as it was reserved needs no column.
    let columns = user.memory(1).await.into_iter().filter(|(field, _)| field.len() == 16);
    right &= columns.map(|(_, packed)| record(&packed).map(|record| record.columns)).eq([Ok(0), Ok(0)]);
    let answers = raw::run(&ledger.scripts().release, &[raw::release(&id)]).await;
    let told = answers.first().map(|answer| formats::CommittedOtherwise::read(&mut Reader(answer)));
    right &= matches!(told, Some(Ok(told)) if (told.kind, told.plan, told.claims) == (4, id.plan, 1));
    right &= held(user.reserve("").await) == Some(1);
    user.delete().await;
    right
}

/// ONCE: a request id is of one kind of call, whatever it says.
pub async fn reused(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let e = event("e", &[]);
    let once = |number| Once { field: [number; 16], digest: Some([number; 8]), suffix: [number; 6] };
    let scripts = ledger.scripts();
    let reserve = |number| raw::reserve(&user.owner, &user.basis, &once(number), &e, 5000);
    let track = |number| raw::track(&user.owner, &user.basis, &once(number), &e, false);
    let mut right = true;
    for (script, call, is_reused) in [
        (&scripts.reserve, reserve(1), false),
        (&scripts.track, track(1), true),
        (&scripts.track, track(2), false),
        (&scripts.reserve, reserve(2), true),
    ] {
        let answers = raw::run(script, &[call]).await;
        let answer = answers.first().map(|answer| read_answer(answer, Some(user.plan())));
        let fault = matches!(answer, Some(Err(NoAnswer::Fault(Fault::RequestIdReused))));
        right &= if is_reused { fault } else { matches!(answer, Some(Ok(_))) };
    }
    right &= user.standing().await == Some((1, 1));
    user.delete().await;
    right
}

/// What was refunded of one group is remembered, also beside another one of which nothing was.
pub async fn refunded_twice(ledger: &Ledger) -> bool {
    let group = |id, name| {
        format!(
            "{{ period: yearly, id: {id}, unit: tokens, quota: 90, match: [{{ event: e, measure: {{ {name}: 1 }} }}] }}"
        )
    };
    let user = User::on(ledger, &format!("{}, {}", group("g", "a"), group("h", "b"))).await;
    let all = event("e", &[("a", "5"), ("b", "5")]);
    let mut right = user.track_for("", MINUTE, &all, false).await.is_ok();
    let Some((id, 5)) = made(user.reserve_for("", 5000, &all).await) else { return false };
    right &= user.commit(&id, Some(&used(&[("a", "4"), ("b", "4")]))).await.is_ok();
    for (count, unapplied) in [("1", 0), ("4", 1)] {
        let refund = user.refund_reservation("", &id, &event("e", &[("a", count)])).await;
        right &= refund.is_ok_and(|done| done.standings[0].unapplied == unapplied);
    }
    right &= user.standing().await == Some((5, 0));
    user.delete().await;
    right
}
