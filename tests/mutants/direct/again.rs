//! Calls of two users in one: what the first one leaves in the tables of the script is not the second one's.

use tollgate::domain::reservation::OnExpiry;
use tollgate::ledger::{Ledger, NoAnswer, Once, read_answer};

use super::raw;
use super::user::{MINUTE, START, TTL, User, event, group, made, request, used};

const HOUR: i64 = 60 * MINUTE;

/// What of the first user stands in the old memory, the second user's has in the young one.
pub async fn from_the_old_memory(ledger: &Ledger) -> bool {
    let [one, other] = [User::on(ledger, &group("yearly")).await, User::on(ledger, &group("yearly")).await];
    let e = event("e", &[]);
    let (Some((first, _)), Some((second, _))) =
        (made(one.reserve_for("x", HOUR, &e).await), made(other.reserve_for("x", HOUR, &e).await))
    else {
        return false;
    };
    // The memories of the first one change places.
    one.step(16 * MINUTE).await;
    let mut right = first.field == second.field && one.track("y").await.is_ok();
    let before = other.state().await;
    let actual = used(&[("quantity", "1")]);
    let commits = [raw::commit(&first, &actual, Some(one.plan())), raw::commit(&second, &actual, Some(other.plan()))];
    right &= raw::run(&ledger.scripts().commit, &commits).await.len() == 2;
    right &= one.standing().await == Some((2, 0)) && other.standing().await == Some((1, 0));
    // Had the script failed before it wrote the second state, the reservation would be held as before.
    other.put_state(&before).await;
    right &= other.track("y").await.is_ok() && other.standing().await == Some((1, 1));
    right &= other.commit(&second, None).await.is_ok_and(|done| !done.replayed && done.standings[0].used == 2);
    for user in [one, other] {
        user.delete().await;
    }
    right
}

/// The first user has a write to undo; the second has no memory yet, and the same request id.
pub async fn of_an_undo(ledger: &Ledger) -> bool {
    let [one, other] = [User::on(ledger, &group("yearly")).await, User::on(ledger, &group("yearly")).await];
    let e = event("e", &[]);
    let Some((id, 1)) = made(one.reserve_for("x", HOUR, &e).await) else { return false };
    let before = one.state().await;
    let mut right = one.commit(&id, None).await.is_ok() && other.track("").await.is_ok();
    one.put_state(&before).await;
    let once = Once::reserve(request("x").as_ref(), &e, HOUR, OnExpiry::Release);
    let reserves = [&one, &other].map(|user| raw::reserve(&user.owner, &user.basis, &once, &e, HOUR));
    let answers = raw::run(&ledger.scripts().reserve, &reserves).await;
    let replayed = answers.iter().map(|answer| {
        let answer = read_answer(answer, Some(one.plan()));
        answer.ok().map(|answer| answer.replayed)
    });
    right &= replayed.eq([Some(true), Some(false)]);
    right &= one.standing().await == Some((0, 1)) && other.standing().await == Some((1, 1));
    for user in [one, other] {
        user.delete().await;
    }
    right
}

/// The first user's state never expires; the second one's does, until this call.
pub async fn of_an_expiry(ledger: &Ledger) -> bool {
    let (one, mut other) = (User::on(ledger, &group("lifetime")).await, User::new(ledger).await);
    let mut right = one.track("").await.is_ok() && other.track("").await.is_ok();
    let expires = async |user: &User<'_>| user.look::<i64>("PEXPIRETIME", user.keys.state()).await;
    right &= expires(&one).await == -1 && expires(&other).await > 0;
    other.compile(&group("lifetime"), None, 0);
    let (once, e) = (Once::track(None, &event("e", &[]), false, None, None), event("e", &[]));
    let tracks = [&one, &other].map(|user| raw::track(&user.owner, &user.basis, &once, &e, false));
    right &= raw::run(&ledger.scripts().track, &tracks).await.len() == 2;
    right &= expires(&one).await == -1 && expires(&other).await == -1;
    for user in [one, other] {
        user.delete().await;
    }
    right
}

/// Both users' windows have ended, at two times.
pub async fn of_the_time(ledger: &Ledger) -> bool {
    let [one, other] = [User::new(ledger).await, User::new(ledger).await];
    let mut right = one.track("").await.is_ok() && other.track("").await.is_ok();
    one.step(2 * MINUTE).await;
    other.step(3 * MINUTE).await;
    let (once, e) = (Once::track(None, &event("e", &[]), false, None, None), event("e", &[]));
    let tracks = [&one, &other].map(|user| raw::track(&user.owner, &user.basis, &once, &e, false));
    let answers = raw::run(&ledger.scripts().track, &tracks).await;
    let times = answers.iter().map(|answer| match read_answer(answer, Some(one.plan())) {
        Err(NoAnswer::Stale(stored)) => Some((stored.now_ms, stored.redis_ms)),
        _ => None,
    });
    right &= times.eq([2, 3].map(|minutes| START + minutes * MINUTE).map(|time| Some((time, time))));
    for user in [one, other] {
        user.delete().await;
    }
    right
}

/// The users' events have two names, which their visible holds show.
pub async fn of_an_event(ledger: &Ledger) -> bool {
    let groups = group("minute").replace("event: e", "event: '*'");
    let mut calls = Vec::new();
    let users = [("first", User::on(ledger, &groups).await), ("second", User::on(ledger, &groups).await)];
    for (name, user) in &users {
        let e = event(name, &[]);
        let once = Once::reserve(request("x").as_ref(), &e, TTL, OnExpiry::Release);
        calls.push((raw::reserve(&user.owner, &user.basis, &once, &e, TTL), once.field));
    }
    let (calls, fields): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
    let mut right = raw::run(&ledger.scripts().reserve, &calls).await.len() == 2;
    for ((name, user), field) in users.into_iter().zip(&fields) {
        right &= user.look::<Option<String>>("GET", &user.keys.hold(field)).await.as_deref() == Some(name);
        user.delete().await;
    }
    right
}
