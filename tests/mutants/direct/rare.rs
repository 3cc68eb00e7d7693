//! Rules that the model's cases reach too seldom to show a mistake.

use tollgate::ledger::Ledger;

use super::user::{MINUTE, START, TTL, User, event, group, made, used};

const SECOND: i64 = 1000;

fn tokens(id: &str, name: &str, quota: u32) -> String {
    format!(
        "{{ period: lifetime, id: {id}, unit: tokens, quota: {quota}, match: [{{ event: e, measure: {{ {name}: 1 }} }}] }}"
    )
}

/// A window that ends before the first deadline is what to wait for.
pub async fn waits_for_the_window(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    user.step(user.frames().until_ms - START - 10 * SECOND).await;
    let mut right = made(user.reserve_for("", MINUTE, &event("e", &[("quantity", "9")])).await).is_some();
    let denied = user.reserve("").await;
    right &= denied.is_ok_and(|answer| answer.decision.retry_after_ms == Some(10_000));
    user.delete().await;
    right
}

/// A final commit that names nothing counts what was named last, also where that was less than before.
pub async fn named_last(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &format!("{}, {}", tokens("g", "a", 100), tokens("h", "b", 100))).await;
    let Some((id, 10)) = made(user.reserve_for("", TTL, &event("e", &[("a", "10"), ("b", "10")])).await) else {
        return false;
    };
    let mut right = true;
    for (a, b) in [("5", "5"), ("6", "3")] {
        right &= user.commit_part(&id, &used(&[("a", a), ("b", b)]), None).await.is_ok();
    }
    let done = user.commit(&id, None).await;
    right &= done.is_ok_and(|done| done.standings.iter().map(|standing| standing.used).eq([6, 3]));
    user.delete().await;
    right
}

/// A final commit tells what it could not give back, as it was counted before a reset.
pub async fn short_after_a_reset(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &tokens("g", "a", 100)).await;
    let Some((id, 5)) = made(user.reserve_for("", TTL, &event("e", &[("a", "5")])).await) else { return false };
    let mut right = user.commit_part(&id, &used(&[("a", "5")]), None).await.is_ok();
    right &= user.reset().await.is_ok();
    let done = user.commit(&id, Some(&used(&[("a", "2")]))).await;
    right &= done.is_ok_and(|done| (done.standings[0].used, done.standings[0].unapplied) == (0, 3));
    user.delete().await;
    right
}

/// A stream goes on while its reservation holds something. A group that counts events does not stop it: its charge does not grow.
pub async fn goes_on(ledger: &Ledger) -> bool {
    let events = "{ period: lifetime, id: h, unit: count, quota: 1, match: [{ event: e, measure: events }] }";
    let user = User::on(ledger, &format!("{}, {events}", tokens("g", "a", 10))).await;
    let Some((id, 10)) = made(user.reserve_for("", TTL, &event("e", &[("a", "10")])).await) else { return false };
    let mut right = true;
    for (quantity, exhausted) in [("4", false), ("9", false), ("10", true)] {
        let part = user.commit_part(&id, &used(&[("a", quantity)]), None).await;
        right &= part.is_ok_and(|done| done.exhausted == exhausted);
    }
    user.delete().await;
    right
}

/// What has happened earlier opens its window then, counts in no window that was over, and counts once.
pub async fn happened_earlier(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("minute").replace("id: g", "anchor: first_use, id: g")).await;
    let e = event("e", &[]);
    let mut right = true;
    for (now, at) in [(30, 10), (120, 90)] {
        user.step(now * SECOND).await;
        let start = START + at * SECOND;
        for replayed in [false, true] {
            let tracked = user.track_at(&format!("at {at}"), &e, start).await;
            right &= tracked.is_ok_and(|tracked| {
                let standing = &tracked.standings[0];
                tracked.replayed == replayed
                    && (standing.used, standing.window_ms) == (1, Some((start, start + MINUTE)))
            });
        }
    }
    user.delete().await;
    right
}
