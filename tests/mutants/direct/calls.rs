//! What single calls do: to the memory of requests, to prices, and to what is said of a plan that is not there.

use tollgate::domain::answer::Reason;
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{ReservationId, field_of, random};
use tollgate::domain::subscription::Subscription;
use tollgate::ledger::{Apply, Ledger, PutCall};

use super::user::{DAY, MINUTE, START, TTL, User, event, group, held, made, redis, request, subscription, used};
use crate::support::{fresh_user, owner};

pub async fn replaced(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let Ok(nothing) = ledger.subscription(&user.owner).await else { return false };
    let put = async |before: Option<u8>, revision: u8| {
        let mut before_it = nothing.clone();
        before_it.subscription = before.map(subscription);
        if before.is_some() {
            before_it.plan = "p".to_owned();
        }
        let call = PutCall { before: &before_it, wanted: &subscription(revision), steps: &[] };
        ledger.put_subscription(&user.owner, &call).await.is_ok()
    };
    let mut right = put(None, 1).await && !put(None, 2).await && !put(Some(2), 3).await && put(Some(1), 4).await;
    // And only by who has read the plan that the user was on.
    let mut other = nothing.clone();
    (other.subscription, other.plan) = (Some(subscription(4)), "q".to_owned());
    let call = PutCall { before: &other, wanted: &subscription(5), steps: &[] };
    right &= ledger.put_subscription(&user.owner, &call).await.is_err();
    let stored = ledger.subscription(&user.owner).await;
    right &= stored.is_ok_and(|stored| stored.subscription == Some(subscription(4)) && stored.plan == "p");
    // Of one that has ended, the state says so.
    let Ok(before) = ledger.subscription(&user.owner).await else { return false };
    let fallen_to = Some("q".to_owned());
    let fallen = Subscription { end_ms: Some(START - 1), fallen_to, ..subscription(6) };
    let call = PutCall { before: &before, wanted: &fallen, steps: &[] };
    right &= ledger.put_subscription(&user.owner, &call).await.is_ok();
    right &= ledger.subscription(&user.owner).await.is_ok_and(|stored| stored.subscription == Some(fallen));
    user.delete().await;
    right
}

/// Which plan the state was last used with, 2 minutes later, when no window is kept: of a live reservation, of a settled one, of one in
/// the old memory, and of an event with a request id.
pub async fn left(ledger: &Ledger) -> bool {
    let mut right = true;
    let e = event("e", &[]);
    for (what, expected) in [("live", "p"), ("settled", "p"), ("old", "p"), ("tracked", ""), ("extended", "")] {
        let mut user = User::new(ledger).await;
        let mut later = 2 * MINUTE;
        if what == "tracked" {
            right &= user.track_for("t", 10 * MINUTE, &e, false).await.is_ok();
        } else {
            let ttl_ms = match what {
                "old" => 30 * MINUTE,
                // It is forgotten just then.
                "extended" => MINUTE,
                _ => 5 * MINUTE,
            };
            let Some((id, 1)) = made(user.reserve_for("", ttl_ms, &e).await) else { return false };
            right &= what != "extended" || user.extend("x", &id, MINUTE, None).await.is_ok();
            right &= what == "live" || user.release(&id).await.is_ok();
        }
        if what == "old" {
            user.step(15 * MINUTE).await;
            user.compile(&group("minute"), None, 15 * MINUTE);
            right &= user.track("t").await.is_ok();
            later += 16 * MINUTE;
        }
        user.step(later).await;
        right &= ledger.subscription(&user.owner).await.is_ok_and(|stored| stored.plan == expected);
        user.delete().await;
    }
    right
}

/// ONCE: the request id of a forgotten reservation is free, and the reservation's own id names no other.
pub async fn forgotten(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly")).await;
    let Some((first, 1)) = made(user.reserve("x").await) else { return false };
    user.step(TTL + MINUTE).await;
    let Some((second, 1)) = made(user.reserve("x").await) else { return false };
    let again = user.reserve("x").await.ok().and_then(|answer| answer.hold);
    let mut right = again.is_some_and(|hold| hold.replayed && hold.id == second);
    right &= matches!(user.release(&first).await, Err(Fault::ReservationNotFound));
    right &= user.release(&second).await.is_ok();
    user.delete().await;
    right
}

/// A reservation is named by its field, its suffix and its plan, and is no tracked event.
pub async fn named(ledger: &Ledger) -> bool {
    fn unknown<T>(answer: Result<T, Fault>) -> bool {
        matches!(answer, Err(Fault::ReservationNotFound))
    }
    let user = User::on(ledger, &group("yearly")).await;
    let Some((id, 1)) = made(user.reserve("").await) else { return false };
    let other_suffix = ReservationId { suffix: random(), ..id.clone() };
    let other_plan = ReservationId { plan: *b"no plan!", ..id.clone() };
    let mut right = true;
    for other in [&other_suffix, &other_plan] {
        right &= unknown(user.release(other).await) && unknown(user.commit(other, None).await);
        right &= unknown(user.refund_reservation("", other, &event("e", &[])).await);
    }
    // What is remembered of a tracked event has the form of a reservation.
    right &= user.track("t").await.is_ok();
    let field = field_of(request("t").as_ref());
    let memory = user.memory(1).await;
    let Some(Ok(record)) = memory.get(&field[..]).map(|record| super::forms::record(record)) else { return false };
    let tracked = ReservationId { field, suffix: record.suffix, ..id.clone() };
    right &= record.plan == id.plan && unknown(user.release(&tracked).await);
    right &= unknown(user.commit(&tracked, None).await);
    right &= user.release(&id).await.is_ok();
    // Without a request id, nothing is remembered of a tracked event.
    let fields = user.memory(1).await.len();
    right &= user.track("").await.is_ok() && user.memory(1).await.len() == fields;
    user.delete().await;
    right
}

/// ONE-CLOCK: of a user whose time is no other.
pub async fn own_time(ledger: &Ledger) -> bool {
    let owner = owner(&fresh_user("direct"));
    let mut right = true;
    for _ in 0..3 {
        let clock = async || {
            let (seconds, micros): (i64, i64) =
                redis::cmd("TIME").query_async(&mut redis().await).await.expect("Redis answers");
            seconds * 1000 + micros / 1000
        };
        let before = clock().await;
        let now = ledger.subscription(&owner).await.map(|stored| stored.now_ms);
        let after = clock().await;
        right &= now.is_ok_and(|now| (before..=after).contains(&now));
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    right
}

/// ONE-CLOCK: a stored time may be ahead by 5 minutes, and no millisecond more.
pub async fn ahead(ledger: &Ledger) -> bool {
    let mut right = true;
    for (ahead, now) in [(5 * MINUTE, 5 * MINUTE), (5 * MINUTE + 1, 0), (-1, 0)] {
        let user = User::on(ledger, &group("yearly")).await;
        user.step(ahead).await;
        right &= user.track("").await.is_ok();
        user.step(0).await;
        let stored = ledger.subscription(&user.owner).await;
        right &= stored.is_ok_and(|stored| (stored.now_ms, stored.redis_ms) == (START + now, START));
        user.delete().await;
    }
    right
}

/// EXACT: 2 x 10^15 at 500.5 each are 10^15 more than 10^18.
pub async fn overpriced(ledger: &Ledger) -> bool {
    let rule = "{ event: e, measure: { a: 500.5, b: 0.000000000001 } }";
    let groups = format!("{{ period: yearly, id: g, unit: count, quota: unlimited, match: [{rule}] }}");
    let user = User::on(ledger, &groups).await;
    let answer = user.can_use(&event("e", &[("a", "2000000000000000"), ("b", "1")])).await;
    user.delete().await;
    matches!(answer, Err(tollgate::ledger::NoAnswer::Fault(Fault::OutOfRange { .. })))
}

/// EXACT: what is missing of a full group is told as far as a counter goes.
pub async fn far_too_much(ledger: &Ledger) -> bool {
    const MOST: &str = "9007199254740991";
    let user = User::on(ledger, &group("yearly")).await;
    let most = event("e", &[("quantity", MOST)]);
    let mut right = user.track_for("", MINUTE, &most, false).await.is_ok();
    let decision = user.can_use(&most).await;
    right &= decision.is_ok_and(|decision| {
        decision.denied == Some(Reason::LimitReached) && decision.standings[0].shortfall == (1 << 53) - 1
    });
    user.delete().await;
    right
}

pub async fn prefix(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &group("yearly").replace("event: e", "event: \"e.*\"")).await;
    let mut right = true;
    for (name, matches) in [("e", false), ("e.", false), ("e.f", true)] {
        let decision = user.can_use(&event(name, &[])).await;
        right &= decision.is_ok_and(|decision| decision.denied.is_none() == matches);
    }
    user.delete().await;
    right
}

/// What a refund asks of each group, and what of that did not come back; none if it measures nothing.
type Refunded = Option<Vec<(u64, u64)>>;

pub async fn refunded(ledger: &Ledger) -> bool {
    let group =
        |id: &str, rules: &str| format!("{{ period: minute, id: {id}, unit: tokens, quota: 900, match: [{rules}] }}");
    let of = |measure: &str| format!("{{ event: e, measure: {measure} }}");
    let two = |one: String, other: String| format!("{one}, {other}");
    let other_rules = two(
        group("g", &format!("{}, {}", of("{ n: 1 }"), of("quantity"))),
        group("h", &format!("{}, {}", of("{ m: 1 }"), of("events"))),
    );
    let with_default = "[{ name: n, weight: 1 }, { name: d, weight: 2, default: 3 }]";
    let with_default = two(group("g", &of(with_default)), group("h", &of("{ m: 1 }")));
    let one_rule = two(group("g", &of("{ n: 1 }")), group("h", &of("{ m: 1 }")));
    let cases: [(_, Vec<(_, Refunded)>); 3] = [
        // A default comes back with the last of what was committed.
        (with_default, vec![(("@n", "4"), Some(vec![(4, 0), (0, 0)])), (("n", "1"), Some(vec![(7, 0), (0, 0)]))]),
        (
            other_rules,
            // In its metadata; by another rule, more than is left; and where only events are counted.
            vec![(("@n", "1"), Some(vec![(1, 0), (0, 0)])), (("quantity", "7.5"), Some(vec![(7, 3), (0, 0)]))],
        ),
        (one_rule, vec![(("n", "1"), Some(vec![(1, 0), (0, 0)])), (("x", "1"), None)]),
    ];
    let mut right = true;
    for (groups, asked) in cases {
        let user = User::on(ledger, &groups).await;
        let happened = event("e", &[("n", "5"), ("m", "3")]);
        right &= user.track_for("", MINUTE, &happened, false).await.is_ok();
        let Some((id, _)) = made(user.reserve_for("", TTL, &happened).await) else { return false };
        // What measures nothing names the first group.
        let refused = user.commit(&id, Some(&used(&[("x", "1")]))).await;
        right &= refused.is_err_and(|fault| fault.to_string().contains("\"g\""));
        right &= user.commit(&id, None).await.is_ok();
        for (part, expected) in asked {
            let answer = user.refund_reservation("", &id, &event("e", &[part])).await;
            let standings = answer.ok().map(|tracked| tracked.standings);
            let found = standings
                .map(|standings| standings.iter().map(|standing| (standing.requested, standing.unapplied)).collect());
            right &= found == expected;
        }
        user.delete().await;
    }
    right
}

/// Whoever says nothing of what a group measures is told its names.
pub async fn unmeasured(ledger: &Ledger) -> bool {
    let rule = "{ event: e, measure: { b: 1, c: 2 } }, { event: f, measure: { a: 1 } }";
    let user =
        User::on(ledger, &format!("{{ period: yearly, id: g, unit: tokens, quota: 900, match: [{rule}] }}")).await;
    let Some((id, 5)) = made(user.reserve_for("", TTL, &event("e", &[("b", "1"), ("c", "2")])).await) else {
        return false;
    };
    let refused = user.commit(&id, Some(&used(&[("x", "1")]))).await;
    let mut right = refused.is_err_and(|fault| fault.to_string().contains("measures b, c:"));
    right &= user.commit(&id, Some(&used(&[("c", "1")]))).await.is_ok_and(|done| done.standings[0].used == 3);
    user.delete().await;
    right
}

/// A plan that is entered is left behind by no denied call.
pub async fn entered(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, &group("yearly")).await;
    let mut right = user.track("").await.is_ok() && user.subscribe(1, &[Apply::Enter]).await;
    right &= user.standing().await == Some((1, 0));
    user.step(DAY).await;
    right &= held(user.reserve("").await) == Some(1) && user.standing().await == Some((1, 1));
    user.delete().await;
    right
}
