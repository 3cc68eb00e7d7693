//! Reservations that go on: how long they last, what is known of their Extends, and what their deadlines hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use tollgate::domain::amount::Quantity;
use tollgate::domain::fault::Fault;
use tollgate::domain::id::ReservationId;
use tollgate::domain::reservation::OnExpiry;
use tollgate::domain::subscription::QuotaOverride;
use tollgate::ledger::{Frames, InForce, Ledger, NoAnswer, ReleaseCall, read_answer};

use super::raw;
use super::stored::Stored;
use super::user::{DAY, MINUTE, START, User, event, made, set_clock, used};

const HOUR: i64 = 60 * MINUTE;

/// A group of tokens without an end.
fn tokens() -> String {
    "{ period: lifetime, id: g, unit: tokens, quota: 1000, match: [{ event: e }] }".to_owned()
}

/// 24 hours after its Reserve a reservation ends, at a whole tenth of a second.
pub async fn a_day_at_most(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens()).await;
    set_clock(&user.name, START + 30).await;
    let Some((id, 5)) = made(user.reserve_for("", HOUR, &event("e", &[("quantity", "5")])).await) else { return false };
    let mut right = true;
    for hour in 1..=24 {
        set_clock(&user.name, START + hour * (HOUR - MINUTE)).await;
        let last = if hour % 2 == 0 {
            user.extend("", &id, HOUR, None).await.map(|done| done.deadline_ms).ok()
        } else {
            let part = user.commit_part(&id, &used(&[("quantity", "1")]), Some(HOUR)).await;
            part.ok().and_then(|done| done.deadline_ms)
        };
        let asked = START + hour * (HOUR - MINUTE) + HOUR;
        right &= last == Some(asked.min(START + DAY + 100));
    }
    // It is never earlier than it was.
    right &= user.extend("", &id, 1000, None).await.is_ok_and(|done| done.deadline_ms == START + DAY + 100);
    user.delete().await;
    right
}

/// The ids of Extends move with their reservation from memory to memory, in each of the two ways.
pub async fn ids_move(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens()).await;
    let e = event("e", &[("quantity", "5")]);
    let Some((id, 5)) = made(user.reserve_for("", HOUR, &e).await) else { return false };
    let more = used(&[("quantity", "2")]);
    let mut right = user.extend("first", &id, HOUR, Some(&more)).await.is_ok_and(|done| !done.replayed);
    let mut extended = vec!["first".to_owned()];
    // The old memory has something else under these ids, which is forgotten.
    for name in ["p", "m"] {
        right &= user.track_for(name, MINUTE, &event("e", &[("quantity", "0")]), false).await.is_ok();
    }
    for step in 1..=8_i64 {
        set_clock(&user.name, START + step * 17 * MINUTE).await;
        // In every second step, another call makes the memories change places.
        if step % 2 == 0 {
            right &= user.reserve_for("", 1000, &event("e", &[("quantity", "0")])).await.is_ok();
        }
        let names = if step == 1 { vec!["p".to_owned(), "m".to_owned()] } else { vec![format!("step {step}")] };
        for name in names {
            right &= user.extend(&name, &id, HOUR, None).await.is_ok_and(|done| !done.replayed);
            extended.push(name);
        }
        // All of them are known, and to no other call.
        for name in &extended {
            let add = if name == "first" { Some(&more) } else { None };
            let again = user.extend(name, &id, HOUR, add).await;
            let costs = if name == "first" { 2 } else { 0 };
            right &= again.is_ok_and(|done| done.replayed && done.standings[0].requested == costs);
            right &= matches!(user.reserve_for(name, 1000, &e).await, Err(NoAnswer::Fault(Fault::RequestIdReused)));
        }
    }
    // Also a release takes them along, and the memory before it expires.
    set_clock(&user.name, START + 10 * 17 * MINUTE).await;
    right &= ledger.release(&ReleaseCall { reservation: &id, replay_ms: 10 * HOUR }).await.is_ok();
    set_clock(&user.name, START + 4 * HOUR).await;
    right &= user.extend("first", &id, HOUR, Some(&more)).await.is_ok_and(|done| done.replayed);
    // It is forgotten with its reservation.
    set_clock(&user.name, START + 13 * HOUR).await;
    right &= made(user.reserve_for("first", 1000, &e).await).is_some();
    user.delete().await;
    right
}

/// What moves into a page, within one, and out of one is what the reservation holds.
pub async fn moved_in_pages(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens()).await;
    let one = event("e", &[("quantity", "1")]);
    let mut right = true;
    // Beyond 2 KiB of deadlines new ones go to pages.
    for number in 0..110_i64 {
        right &= user.reserve_for("", 10 * MINUTE + number * 100, &one).await.is_ok();
    }
    let Some((id, _)) = made(user.reserve_for("", 20 * MINUTE, &event("e", &[("quantity", "7")])).await) else {
        return false;
    };
    // Another one in the same page.
    right &= user.reserve_for("", 20 * MINUTE + 300, &event("e", &[("quantity", "3")])).await.is_ok();
    let held = async |at_ms: i64| {
        let stored = Stored::read(&user.state().await).ok()?;
        let entry = stored.deadlines.into_iter().find(|entry| entry.at == START + at_ms)?;
        entry.parts.first().map(|(_, amount)| *amount)
    };
    let page = |ms: i64| (START + ms + 6399) / 6400 * 6400 - START;
    right &= held(page(20 * MINUTE)).await == Some(10);
    // At the same deadline.
    right &= user.commit_part(&id, &used(&[("quantity", "1")]), None).await.is_ok();
    right &= held(page(20 * MINUTE)).await == Some(9);
    // Within its page, with more.
    let more = used(&[("quantity", "2")]);
    right &= user.extend("", &id, 20 * MINUTE + 100, Some(&more)).await.is_ok();
    right &= held(page(20 * MINUTE)).await == Some(11);
    // To another page, with less.
    right &= user.commit_part(&id, &used(&[("quantity", "4")]), Some(30 * MINUTE)).await.is_ok();
    right &= held(page(20 * MINUTE)).await == Some(3) && held(page(30 * MINUTE)).await == Some(5);
    // The buckets say when it comes back, and how much: nothing where it was.
    set_clock(&user.name, START + 20 * MINUTE + 200).await;
    right &= user.standing().await == Some((4, 8));
    set_clock(&user.name, START + 30 * MINUTE - 1).await;
    right &= user.standing().await == Some((4, 5));
    set_clock(&user.name, START + 30 * MINUTE).await;
    right &= user.standing().await == Some((4, 0));
    user.delete().await;
    right
}

/// What an Extend is denied for, and when to ask again.
pub async fn denied(ledger: &Ledger) -> bool {
    let mut user =
        User::on(ledger, "{ period: lifetime, id: g, unit: tokens, quota: 10, match: [{ event: e }] }").await;
    let e = |quantity: &str| event("e", &[("quantity", quantity)]);
    let (Some((id, 4)), Some((_, 7))) =
        (made(user.reserve_for("", HOUR, &e("4")).await), made(user.reserve_for("", MINUTE, &e("3")).await))
    else {
        return false;
    };
    let more = |quantity: &str| used(&[("quantity", quantity)]);
    let asked = async |quantity: &str| {
        let answer = user.extend("", &id, MINUTE, Some(&more(quantity))).await.ok()?;
        answer.denied.map(|_| (answer.standings[0].shortfall, answer.retry_after_ms))
    };
    // Once the other one is given back, or never.
    let mut right = asked("4").await == Some((1, Some(60_000))) && asked("11").await == Some((8, None));
    right &= user.track_for("", MINUTE, &e("1"), false).await.is_ok();
    right &= asked("9").await == Some((7, Some(60_000))) && asked("10").await == Some((8, None));
    // Without the plan there is no price.
    let without = raw::extend(&id, &more("1"), None);
    let answers = raw::run(&ledger.scripts().extend, &[without]).await;
    right &= matches!(read_answer(&answers[0], None), Err(NoAnswer::Fault(Fault::PlanNotArchived)));
    // By the owner's own quota, as it was.
    let InForce::Plan { plan, .. } = &user.basis.plan else { return false };
    let own =
        BTreeMap::from([("g".to_owned(), QuotaOverride::Amount(Quantity::from_decimal("20").expect("a number")))]);
    let text =
        "plans: { p: { limit_groups: [{ period: lifetime, id: g, unit: tokens, quota: 10, match: [{ event: e }] }] } }";
    let catalog = tollgate::catalog::parse(text, jiff::tz::db()).expect("a catalog");
    let frames = Frames::of(&catalog.plans()[0], None, &own, START).expect("the time has a calendar");
    user.basis.plan = InForce::Plan { plan: Arc::clone(plan), frames };
    let Some((own, 8)) = made(user.reserve_for("", HOUR, &e("1")).await) else { return false };
    right &= user.extend("", &own, HOUR, Some(&more("11"))).await.is_ok_and(|done| done.denied.is_none());
    right &= user.extend("", &own, HOUR, Some(&more("1"))).await.is_ok_and(|done| done.denied.is_some());
    right &= user.release(&id).await.is_ok();
    right &= user.commit_part(&own, &more("12"), None).await.is_ok_and(|done| !done.exhausted);
    user.delete().await;
    right
}

/// After the deadline a total has only the room of the window. What was refunded is not given back once more.
pub async fn late_totals(ledger: &Ledger) -> bool {
    let user = User::on(ledger, "{ period: lifetime, id: g, unit: tokens, quota: 10, match: [{ event: e }] }").await;
    let e = |quantity: &str| event("e", &[("quantity", quantity)]);
    let total = |quantity: &str| used(&[("quantity", quantity)]);
    let Some((id, 4)) = made(user.reserve_for("", MINUTE, &e("4")).await) else { return false };
    set_clock(&user.name, START + MINUTE).await;
    let mut right = user.track_for("", MINUTE, &e("8"), false).await.is_ok();
    right &= user.commit_part(&id, &total("1"), None).await.is_ok_and(|done| done.late && !done.exhausted);
    right &= user.commit_part(&id, &total("2"), None).await.is_ok_and(|done| done.late && done.exhausted);
    right &= user.refund_reservation("", &id, &e("1")).await.is_ok();
    right &= user.standing().await == Some((9, 0));
    // 1 of 2 was refunded, so that 1 is left, and the total of 1 takes nothing more.
    right &= user.commit(&id, Some(&total("0"))).await.is_ok_and(|done| done.standings[0].used == 8);
    user.delete().await;
    right
}

/// A stream stops where not even the smallest growth of its cheapest quantity fits.
pub async fn growth(ledger: &Ledger) -> bool {
    let mut right = true;
    // The quantities that have a weight, the first or the last one the cheapest: by 0.000001 of them, 1 more or a million more. One has none.
    for weights in ["a: 1000000, b: 1, c: 0", "a: 0, b: 1, c: 1000000", "a: 1, b: 0, c: 1000000"] {
        let groups = format!(
            "{{ period: lifetime, id: g, unit: cents, quota: 2, match: [{{ event: e, measure: {{ {weights} }} }}] }}"
        );
        let user = User::on(ledger, &groups).await;
        let nothing = event("e", &[("a", "0"), ("b", "0"), ("c", "0")]);
        let Some((id, 0)) = made(user.reserve_for("", HOUR, &nothing).await) else { return false };
        let cheap = if weights.starts_with("a: 1,") { "a" } else { "b" };
        let exhausted = async |quantity: &str| {
            let part = user.commit_part(&id, &used(&[(cheap, quantity)]), None).await;
            part.ok().map(|done| done.exhausted)
        };
        right &= exhausted("1").await == Some(false) && exhausted("1.999999").await == Some(false);
        right &= exhausted("2").await == Some(true);
        user.delete().await;
    }
    right
}

/// What was counted before a reset is not refunded after it.
pub async fn refunded_after_a_reset(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens()).await;
    let e = |quantity: &str| event("e", &[("quantity", quantity)]);
    let Some((id, 5)) = made(user.reserve_for("", MINUTE, &e("5")).await) else { return false };
    let mut right = user.commit(&id, None).await.is_ok();
    right &= user.reset().await.is_ok();
    right &= user.track_for("", MINUTE, &e("7"), false).await.is_ok();
    let refund = user.refund_reservation("", &id, &e("5")).await;
    right &= refund.is_ok_and(|done| done.standings[0].used == 7 && done.standings[0].unapplied == 5);
    user.delete().await;
    right
}

/// A refund gives back nothing of what only the deadline has counted: a late release does, also after a refund in vain.
pub async fn refunded_after_a_deadline(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens()).await;
    let e = |quantity: &str| event("e", &[("quantity", quantity)]);
    let Some((id, 9)) = made(user.reserve_until("", MINUTE, OnExpiry::Count, &e("9")).await) else { return false };
    let mut right = user.commit_part(&id, &used(&[("quantity", "4")]), None).await.is_ok();
    right &= user.reset().await.is_ok();
    right &= user.commit_part(&id, &used(&[("quantity", "5")]), None).await.is_ok();
    set_clock(&user.name, START + MINUTE).await;
    let refund = user.refund_reservation("", &id, &e("3")).await;
    right &= refund.is_ok_and(|done| done.standings[0].used == 4 && done.standings[0].unapplied == 2);
    right &= user.release(&id).await.is_ok_and(|done| done.standings[0].used == 0 && done.standings[0].unapplied == 0);
    user.delete().await;
    right
}

/// What Extend adds to a default is a number like any other.
pub async fn extended_beyond_a_default(ledger: &Ledger) -> bool {
    let measure = "[{ name: a, weight: 0.1, default: 2 }, { name: b, weight: 0.1, default: 0 }]";
    let groups = format!(
        "{{ period: lifetime, id: g, unit: tokens, quota: unlimited, match: [{{ event: e, measure: {measure} }}] }}"
    );
    let user = User::on(ledger, &groups).await;
    let more = async |id: &ReservationId, name: &str, number: &str| {
        let done = user.extend("", id, MINUTE, Some(&used(&[(name, number)]))).await;
        !matches!(done, Err(Fault::OutOfRange { .. }))
    };
    let Some((id, 1)) = made(user.reserve_for("", MINUTE, &event("e", &[])).await) else { return false };
    let mut right = !more(&id, "a", "9007199254740990").await && more(&id, "a", "9007199254740989").await;
    right &= more(&id, "b", "9007199254740991").await && !more(&id, "b", "1").await;
    // What is named has no default.
    let Some((id, _)) = made(user.reserve_for("", MINUTE, &event("e", &[("a", "1")])).await) else { return false };
    right &= !more(&id, "a", "9007199254740991").await && more(&id, "a", "9007199254740990").await;
    right &= !more(&id, "a", "1").await;
    user.delete().await;
    right
}

/// An Extend is measured by what was reserved, whatever rule applies to what a partial commit has named.
pub async fn extended_by_another_rule(ledger: &Ledger) -> bool {
    let rules = "[{ event: e, measure: { a: 1 } }, { event: e, measure: { b: 1 } }]";
    let user =
        User::on(ledger, &format!("{{ period: lifetime, id: g, unit: tokens, quota: 100, match: {rules} }}")).await;
    let Some((id, 5)) = made(user.reserve_for("", MINUTE, &event("e", &[("b", "5")])).await) else { return false };
    let mut right = user.commit_part(&id, &used(&[("a", "2")]), None).await.is_ok();
    let extended = user.extend("", &id, MINUTE, Some(&used(&[("b", "3")]))).await;
    right &= extended.is_ok_and(|done| done.standings[0].requested == 3 && done.standings[0].held == 6);
    right &= user.commit(&id, None).await.is_ok_and(|done| done.standings[0].used == 2);
    user.delete().await;
    right
}

/// What a deadline counts comes before a reset at the same time.
pub async fn reset_at_the_deadline(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens()).await;
    let e = event("e", &[("quantity", "5")]);
    let Some((id, 5)) = made(user.reserve_until("", MINUTE, OnExpiry::Count, &e).await) else { return false };
    set_clock(&user.name, START + MINUTE).await;
    let mut right = user.reset().await.is_ok();
    right &= user.track_for("", MINUTE, &event("e", &[("quantity", "7")]), false).await.is_ok();
    right &= user.release(&id).await.is_ok_and(|done| done.standings[0].used == 7 && done.standings[0].unapplied == 5);
    user.delete().await;
    right
}

/// A state in which a hold counts at its deadline is not for versions that would give it back, as long as something is held.
pub async fn told_apart(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &tokens()).await;
    let e = event("e", &[("quantity", "5")]);
    let mut right = made(user.reserve_for("", MINUTE, &e).await).is_some() && user.state().await[0] == 1;
    right &= made(user.reserve_until("", 2 * MINUTE, OnExpiry::Count, &e).await).is_some();
    right &= user.state().await[0] == 2;
    // Also where the windows are written anew.
    user.compile(
        &format!("{}, {{ period: daily, id: h, unit: tokens, quota: 9, match: [{{ event: f }}] }}", tokens()),
        None,
        0,
    );
    right &= user.reserve_for("", 1000, &event("f", &[("quantity", "1")])).await.is_ok();
    right &= user.state().await[0] == 2;
    set_clock(&user.name, START + 2 * MINUTE - 1).await;
    right &= user.standing().await == Some((0, 5));
    set_clock(&user.name, START + 2 * MINUTE).await;
    right &= user.standing().await == Some((5, 0));
    user.delete().await;
    right
}
