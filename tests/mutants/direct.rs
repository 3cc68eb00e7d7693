//! What no answer shows, asked of the scripts directly: calls that were compiled for another time, keys that people look at, and what is
//! cleared away.

use std::collections::BTreeMap;
use std::pin::Pin;

use tollgate::catalog::{self, CompiledPlan, compile};
use tollgate::domain::amount::Quantity;
use tollgate::domain::event::{Event, EventName};
use tollgate::domain::fault::Fault;
use tollgate::domain::id::Owner;
use tollgate::domain::subscription::Subscription;
use tollgate::ledger::codec::{self, Reply};
use tollgate::ledger::{Ledger, UserKeys};

use crate::support::{Step, fresh_user, owner, redis, step_clock};
use crate::{together, windows_direct as windows};

/// 2033-05-18T03:33:20Z.
pub const START: i64 = 2_000_000_000_000;
pub const MINUTE: i64 = 60_000;
pub const DAY: i64 = 86_400_000;
/// Of a reservation here; it is remembered for a minute more.
const TTL: i64 = 5000;

pub struct User<'a> {
    ledger: &'a Ledger,
    pub name: String,
    pub owner: Owner,
    pub keys: UserKeys,
    pub plan: CompiledPlan,
}

impl<'a> User<'a> {
    /// Whose time is `START`, on a plan with a limit of 9 a minute.
    pub async fn new(ledger: &'a Ledger) -> Self {
        Self::on(ledger, "minute").await
    }

    /// The same with another period.
    async fn on(ledger: &'a Ledger, period: &str) -> Self {
        let plan = plan(&format!("period: {period}, id: g, unit: count, quota: 9, match: [{{ event: e }}]"));
        let name = fresh_user("direct");
        let owner = owner(&name);
        step_clock(&name, Step::To(START)).await;
        Self { ledger, name, keys: UserKeys::new(&owner), owner, plan }
    }

    async fn reserve(&self, nonce: &str) -> Result<Reply, Fault> {
        self.reserve_for(nonce, TTL).await
    }

    async fn reserve_for(&self, nonce: &str, ttl_ms: i64) -> Result<Reply, Fault> {
        self.reserve_once(nonce, ttl_ms, "").await
    }

    async fn reserve_once(&self, nonce: &str, ttl_ms: i64, request_id: &str) -> Result<Reply, Fault> {
        let mut keys = self.keys.all();
        keys.push(self.keys.hold(nonce));
        let call = call_of_reserve(&event(), nonce, ttl_ms, request_id);
        self.ledger.run(&self.ledger.scripts().reserve, &keys, &self.owner, &[&call, &self.plan.message]).await
    }

    pub async fn track(&self, request_id: &str) -> Result<Reply, Fault> {
        let call = call_of_track(&event(), request_id, &false);
        let keys = self.keys.all();
        self.ledger.run(&self.ledger.scripts().track, &keys, &self.owner, &[&call, &self.plan.message]).await
    }

    async fn settle(&self, nonce: &str, commit: bool) -> Result<Reply, Fault> {
        let keys = [self.keys.ledger(), self.keys.memory(), self.keys.agenda(), self.keys.hold(nonce)];
        let scripts = self.ledger.scripts();
        if commit {
            let call = codec::encode(&(nonce, false, false, BTreeMap::<String, u64>::new(), MINUTE));
            self.ledger.run(&scripts.commit, &keys, &self.owner, &[&call]).await
        } else {
            let call = codec::encode(&(nonce, MINUTE));
            self.ledger.run(&scripts.release, &keys, &self.owner, &[&call]).await
        }
    }

    /// What one of Redis's commands says of one of the user's keys.
    pub async fn look<T: redis::FromRedisValue>(&self, command: &str, key: String) -> T {
        redis::cmd(command).arg(key).query_async(&mut redis().await).await.expect("Redis answers")
    }

    async fn set_live(&self, live: u32) {
        let script = "local led = redis.call('GET', KEYS[1])
            redis.call('SET', KEYS[1], struct.pack('<c6I2', led, ARGV[1]) .. string.sub(led, 9), 'KEEPTTL')";
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(self.keys.ledger()).arg(live);
        let () = command.query_async(&mut redis().await).await.expect("Redis answers");
    }

    /// Whether the ledger says when its key expires.
    async fn knows_its_end(&self) -> bool {
        let script =
            "return { struct.unpack('<I7', redis.call('GET', KEYS[1]), 30), redis.call('PEXPIRETIME', KEYS[1]) }";
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(self.keys.ledger());
        let (said, done): (i64, i64) = command.query_async(&mut redis().await).await.expect("Redis answers");
        said == done
    }

    pub async fn step(&self, ms: i64) {
        step_clock(&self.name, Step::To(START + ms)).await;
    }

    pub async fn delete(self) {
        let keys = self.keys.all();
        let script = &self.ledger.scripts().user_delete;
        let _: Result<Reply, Fault> = self.ledger.run(script, &keys, &self.owner, &[]).await;
    }
}

/// A plan `p` of one group, compiled for `START`.
pub fn plan(group: &str) -> CompiledPlan {
    plan_at(group, None, START)
}

pub fn plan_at(group: &str, cycle_anchor_ms: Option<i64>, at_ms: i64) -> CompiledPlan {
    let catalog = format!("plans: {{ p: {{ limit_groups: [{{ {group} }}] }} }}");
    let catalog = catalog::parse(&catalog, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
    compile(&catalog.plans()[0], cycle_anchor_ms, &BTreeMap::new(), at_ms).expect("the time has a calendar")
}

/// What happens in these checks: `e`, once.
fn event() -> Event {
    Event::new(EventName::parse("e").expect("a name"), None, BTreeMap::new(), BTreeMap::new())
}

/// The call of `reserve`, of a user without a subscription.
pub fn call_of_reserve(event: &Event, nonce: &str, ttl_ms: i64, request_id: &str) -> Vec<u8> {
    let (metadata, name, quantity, quantities, numeric) = codec::event(event);
    let call = ("", false, request_id, "digest", nonce, ttl_ms, MINUTE, metadata, name, quantity, quantities, numeric);
    codec::encode(&call)
}

/// The call of `track`, and with the name of the refunded event in the place of `enforce` that of `refund`.
pub fn call_of_track(event: &Event, request_id: &str, enforce: &impl serde::Serialize) -> Vec<u8> {
    let (metadata, name, quantity, quantities, numeric) = codec::event(event);
    let once = (request_id, "digest", "event");
    let call = ("", false, once.0, once.1, once.2, enforce, MINUTE, metadata, name, quantity, quantities, numeric);
    codec::encode(&call)
}

fn is_stale(reply: Result<Reply, Fault>) -> bool {
    reply.is_ok_and(|reply| reply.current().is_err())
}

/// How much is held after a reserve that was allowed.
fn held(reply: Result<Reply, Fault>) -> Option<u64> {
    let (decision, hold) = reply.ok()?.decision().ok()?;
    hold.is_some().then(|| decision.standings[0].held)
}

/// The first thing that is not as it should be.
pub async fn wrong(ledger: &Ledger) -> Option<&'static str> {
    type Check<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
    let checks: Vec<(_, Check<'_>)> = vec![
        ("a moved anchor says where its windows start", Box::pin(windows::moved_back(ledger))),
        ("a plan that is entered again goes on in its window", Box::pin(windows::entered_again(ledger))),
        ("a window ends with its last millisecond", Box::pin(window_end(ledger))),
        ("a subscription is replaced only by who has read it", Box::pin(replaced(ledger))),
        ("a live hold is visible, until it is settled or expires", Box::pin(visible(ledger))),
        ("10,000 holds are the most, and a settled one makes room", Box::pin(most_holds(ledger))),
        ("what is forgotten is cleared away, and not before", Box::pin(cleared(ledger))),
        ("a track is remembered for the replay window, to the millisecond", Box::pin(remembered(ledger))),
        ("a long reservation is remembered beyond shorter ones", Box::pin(outlives(ledger))),
        ("what was held comes back although the agenda has expired", Box::pin(returns(ledger))),
        ("everything expires by itself, and not before it is needed", Box::pin(expires(ledger))),
        ("the ledger expires after the last window that it keeps", Box::pin(outlived(ledger))),
        (
            "a ledger that nothing needs lives 7 days, and one with a lifetime group for ever",
            Box::pin(outlasts(ledger)),
        ),
        ("a plan that has left a reservation is known, and of nothing else", Box::pin(left(ledger))),
        ("what is settled is not given back at its deadline", Box::pin(settled(ledger))),
        ("a refund of a reservation asks what its groups measure", Box::pin(refunded(ledger))),
        ("the memory of a request id goes with its reservation", Box::pin(forgotten(ledger))),
        ("the time is Redis's own, to the millisecond", Box::pin(own_time(ledger))),
        ("a price that no counter holds is out of range, whatever its last term", Box::pin(overpriced(ledger))),
        ("a blocked event leaves no window open", Box::pin(unopened(ledger))),
        ("a window of another anchor is kept as long as that says", Box::pin(windows::realigned(ledger))),
        ("a prefix is not enough for a name that ends with it", Box::pin(prefix(ledger))),
        ("calls that travel together are answered as each would be alone", Box::pin(together::right(ledger))),
    ];
    for (what, right) in checks {
        if !right.await {
            return Some(what);
        }
    }
    None
}

async fn window_end(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let end = user.plan.until_ms - START;
    user.step(end - 1).await;
    let last = held(user.reserve("a").await) == Some(1);
    user.step(end).await;
    let right = last && is_stale(user.reserve("b").await);
    user.delete().await;
    right
}

pub fn subscription(revision: &str) -> Vec<u8> {
    codec::encode_subscription(&Subscription {
        revision: revision.to_owned(),
        plan_id: "p".to_owned(),
        start_ms: START,
        end_ms: None,
        cycle_anchor_ms: START,
        fallen_to: None,
        overrides: BTreeMap::new(),
    })
}

async fn replaced(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let put = async |before: &str, revision: &str| {
        let call = codec::encode(&(before, "", Vec::<&str>::new()));
        let keys = user.keys.all();
        ledger.run(&ledger.scripts().subscription_put, &keys, &user.owner, &[&call, &subscription(revision)]).await
    };
    let written = |reply: Result<Reply, Fault>| reply.is_ok_and(|reply| reply.current().is_ok());
    let right = written(put("", "1").await)
        && is_stale(put("", "2").await)
        && is_stale(put("2", "3").await)
        && written(put("1", "4").await);
    user.delete().await;
    right
}

async fn visible(ledger: &Ledger) -> bool {
    let group = |id| format!("period: minute, id: {id}, unit: count, quota: 9, match: [{{ event: e }}]");
    let plan = plan(&format!("{} }}, {{ {}", group("g"), group("h")));
    let user = User { plan, ..User::new(ledger).await };
    let mut right = true;
    for (nonce, commit) in [("a", true), ("b", false)] {
        right &= held(user.reserve(nonce).await) == Some(1);
        let shown: Option<String> = user.look("GET", user.keys.hold(nonce)).await;
        let left: i64 = user.look("PTTL", user.keys.hold(nonce)).await;
        right &= shown.as_deref() == Some("g=1 h=1") && (1..=TTL).contains(&left);
        right &= user.settle(nonce, commit).await.is_ok();
        right &= user.look::<u32>("EXISTS", user.keys.hold(nonce)).await == 0;
    }
    user.delete().await;
    right
}

async fn most_holds(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let too_many = |reply: Result<Reply, Fault>| matches!(reply, Err(Fault::TooManyHolds));
    let mut right = held(user.reserve("a").await).is_some() && held(user.reserve("b").await).is_some();
    user.set_live(9999).await;
    right &= held(user.reserve("c").await).is_some() && too_many(user.reserve("d").await);
    for (nonce, commit) in [("a", true), ("b", false)] {
        right &= user.settle(nonce, commit).await.is_ok() && held(user.reserve(&format!("{nonce}2")).await).is_some();
        right &= too_many(user.reserve("d").await);
    }
    // What lapses makes room as well.
    user.step(TTL).await;
    right &= held(user.reserve("e").await) == Some(1);
    user.delete().await;
    right
}

async fn cleared(ledger: &Ledger) -> bool {
    let user = User::on(ledger, "yearly").await;
    let mut right = held(user.reserve("a").await) == Some(1) && held(user.reserve("b").await) == Some(2);
    right &= user.settle("a", true).await.is_ok();
    let count = async || {
        let fields: u32 = user.look("HLEN", user.keys.memory()).await;
        let entries: u32 = user.look("ZCARD", user.keys.agenda()).await;
        (fields, entries)
    };
    // Both are remembered for a minute after the deadline.
    let forgotten = TTL + MINUTE;
    user.step(forgotten - 1).await;
    right &= held(user.reserve("c").await) == Some(1) && count().await == (3, 3);
    user.step(forgotten).await;
    right &= held(user.reserve("d").await) == Some(2) && count().await == (2, 2);
    user.delete().await;
    right
}

async fn remembered(ledger: &Ledger) -> bool {
    let user = User::on(ledger, "yearly").await;
    let replayed =
        |reply: Result<Reply, Fault>| reply.ok().and_then(|reply| reply.tracked().ok()).map(|tracked| tracked.replayed);
    let mut right = replayed(user.track("x").await) == Some(false);
    user.step(MINUTE - 1).await;
    right &= replayed(user.track("x").await) == Some(true);
    user.step(MINUTE).await;
    right &= replayed(user.track("x").await) == Some(false);
    user.delete().await;
    right
}

/// The memory of a long reservation outlives the clearing of shorter ones, and is made longer in time.
async fn outlives(ledger: &Ledger) -> bool {
    let user = User::on(ledger, "yearly").await;
    const LONG: i64 = 50 * MINUTE;
    let mut right = held(user.reserve("a").await) == Some(1) && held(user.reserve_for("b", LONG).await) == Some(2);
    let expires = async || user.look::<i64>("PEXPIRETIME", user.keys.memory()).await;
    right &= expires().await >= START + LONG + MINUTE;
    user.step(TTL + MINUTE).await;
    // The first of these clears away what is forgotten.
    for (nonce, live) in [("c", 2), ("d", 3)] {
        right &= held(user.reserve(nonce).await) == Some(live) && expires().await >= START + LONG + MINUTE;
    }
    user.delete().await;
    right
}

/// NO-LEAK: who comes back late finds the ledger, but neither memory nor agenda.
async fn returns(ledger: &Ledger) -> bool {
    let user = User::on(ledger, "yearly").await;
    let mut right = held(user.reserve("a").await) == Some(1) && held(user.reserve("b").await) == Some(2);
    for key in [user.keys.memory(), user.keys.agenda()] {
        right &= user.look::<u32>("DEL", key).await == 1;
    }
    user.step(TTL + 60 * MINUTE).await;
    right &= held(user.reserve("c").await) == Some(1);
    user.delete().await;
    right
}

/// Everything expires by itself, later than what needs it.
async fn expires(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let mut right = held(user.reserve("a").await) == Some(1);
    let needed = START + TTL + MINUTE;
    // The ledger lives 7 days longer.
    let expires = async || {
        let mut expiries = Vec::new();
        for key in [user.keys.ledger(), user.keys.memory(), user.keys.agenda()] {
            expiries.push(user.look::<i64>("PEXPIRETIME", key).await);
        }
        expiries[0] -= 7 * DAY;
        expiries
    };
    let in_time = |expiry: &i64, needed: i64| (needed..needed + 60 * MINUTE).contains(expiry);
    right &= expires().await.iter().all(|expiry| in_time(expiry, needed));
    // Another call, after which nothing expires at another time.
    right &= held(user.reserve("b").await) == Some(2);
    right &= in_time(&expires().await[0], needed) && user.knows_its_end().await;
    // A settling that comes late is remembered longer.
    user.step(TTL + MINUTE - 1).await;
    right &= user.settle("a", true).await.is_ok();
    let needed = START + TTL + 2 * MINUTE - 1;
    right &= expires().await.iter().all(|expiry| in_time(expiry, needed));
    right &= user.knows_its_end().await;
    user.delete().await;
    let lifetime = User::on(ledger, "lifetime").await;
    right &= held(lifetime.reserve("a").await) == Some(1);
    right &= lifetime.look::<i64>("PEXPIRETIME", lifetime.keys.ledger()).await == -1;
    lifetime.delete().await;
    right
}

/// What is kept of a window is needed until the end of the next one, also after another one has taken its place.
async fn outlived(ledger: &Ledger) -> bool {
    let mut user = User::on(ledger, "yearly").await;
    let yearly = user.plan.until_ms;
    let expires = async |key: String| user.look::<i64>("PEXPIRETIME", key).await;
    let mut right = user.track("").await.is_ok();
    // As a clock that jumps ahead expires keys early, twice as long as the windows last.
    right &= expires(user.keys.ledger()).await > START + 2 * (yearly + 364 * DAY - START);
    user.plan = plan("period: minute, id: g, unit: count, quota: 9, match: [{ event: e }]");
    let expires = async |key: String| user.look::<i64>("PEXPIRETIME", key).await;
    right &= user.track("").await.is_ok() && expires(user.keys.ledger()).await > yearly + 364 * DAY;
    user.delete().await;
    right
}

async fn outlasts(ledger: &Ledger) -> bool {
    let expires = async |user: &User<'_>| user.look::<i64>("PEXPIRETIME", user.keys.ledger()).await;
    let mut user = User::new(ledger).await;
    let mut right = user.track("").await.is_ok();
    user.step(60 * MINUTE).await;
    let call = codec::encode(&("", "", vec!["realign"]));
    let minute = "period: minute, id: g, unit: count, quota: 9, match: [{ event: e }]";
    user.plan = plan_at(minute, None, START + 60 * MINUTE);
    let stored = subscription("1");
    let args: [&[u8]; 3] = [&call, &stored, &user.plan.message];
    let answer = ledger.run(&ledger.scripts().subscription_put, &user.keys.all(), &user.owner, &args).await;
    right &= answer.is_ok_and(|reply| reply.current().is_ok());
    right &= expires(&user).await >= START + 60 * MINUTE + 7 * DAY;
    user.delete().await;
    // Once it has a lifetime group, it expires no more, also when that is not the group's first window.
    let mut user = User::new(ledger).await;
    right &= user.track("").await.is_ok() && expires(&user).await > START;
    user.plan = plan("period: lifetime, id: g, unit: count, quota: 9, match: [{ event: e }]");
    right &= user.track("").await.is_ok() && expires(&user).await == -1;
    user.step(3 * MINUTE).await;
    user.plan = plan_at(minute, None, START + 3 * MINUTE);
    right &= user.track("").await.is_ok() && expires(&user).await == -1;
    user.delete().await;
    right
}

/// Which plan the ledger was last used with, 2 minutes later, when no window is kept: of a live reservation, of a settled one, and of an
/// event with a request id.
async fn left(ledger: &Ledger) -> bool {
    let mut right = true;
    for (what, expected) in [("live", "p"), ("settled", "p"), ("tracked", "")] {
        let user = User::new(ledger).await;
        if what == "tracked" {
            let (event, rest) = (event(), ("", false, "t", "digest", "event", false, 10 * MINUTE));
            let (metadata, name, quantity, quantities, numeric) = codec::event(&event);
            let (revision, ended, id, digest, event_id, enforce, replay) = rest;
            let call = codec::encode(&(
                revision, ended, id, digest, event_id, enforce, replay, metadata, name, quantity, quantities, numeric,
            ));
            let args: [&[u8]; 2] = [&call, &user.plan.message];
            right &= ledger.run(&ledger.scripts().track, &user.keys.all(), &user.owner, &args).await.is_ok();
        } else {
            right &= held(user.reserve_for("a", 5 * MINUTE).await) == Some(1);
        }
        if what == "settled" {
            right &= user.settle("a", false).await.is_ok();
        }
        user.step(2 * MINUTE).await;
        let answer = ledger.run(&ledger.scripts().subscription_get, &user.keys.all(), &user.owner, &[]).await;
        let plan = answer.ok().and_then(|reply| reply.subscription().ok()).map(|(_, _, plan)| plan);
        right &= plan.as_deref() == Some(expected);
        user.delete().await;
    }
    right
}

async fn settled(ledger: &Ledger) -> bool {
    let mut right = true;
    for commit in [true, false] {
        let user = User::on(ledger, "yearly").await;
        right &= user.reserve("a").await.is_ok() && user.reserve_for("b", 3 * TTL).await.is_ok();
        right &= user.settle("a", commit).await.is_ok();
        user.step(TTL + 1).await;
        right &= held(user.reserve("c").await) == Some(2);
        user.delete().await;
    }
    right
}

/// What a refund of `nonce` asks of each group, and what of that did not come back; none if it measures nothing.
async fn refund(user: &User<'_>, nonce: &str, event: &Event) -> Option<Vec<(u64, u64)>> {
    let (_, _, quantity, quantities, numeric) = codec::event(event);
    let call = codec::encode(&(nonce, "", "", "refund", "e", MINUTE, quantity, quantities, numeric));
    let keys = [user.keys.ledger(), user.keys.memory(), user.keys.agenda()];
    let reply = user.ledger.run(&user.ledger.scripts().refund_reservation, &keys, &user.owner, &[&call]).await;
    let tracked = reply.ok()?.tracked().ok()?;
    Some(tracked.standings.iter().map(|standing| (standing.requested, standing.unapplied)).collect())
}

/// An event `e` with these quantities; `quantity` is its own, and what starts with `@` is in its metadata.
fn measured(parts: &[(&str, &str)]) -> Event {
    let mut event = event();
    for (name, amount) in parts {
        let number = Quantity::from_decimal(amount).expect("a number");
        match name.strip_prefix('@') {
            Some(name) => drop(event.metadata.insert(name.to_owned(), (*amount).to_owned())),
            None if *name == "quantity" => event.quantity = Some(number),
            None => drop(event.quantities.insert((*name).to_owned(), number)),
        }
    }
    event
}

async fn refunded(ledger: &Ledger) -> bool {
    let group = |id: &str, rules: &str| format!("period: minute, id: {id}, unit: tokens, quota: 900, match: [{rules}]");
    let of = |measure: &str| format!("{{ event: e, measure: {measure} }}");
    let two = |one: String, other: String| plan(&format!("{one} }}, {{ {other}"));
    let mut right = true;
    let other_rules = two(
        group("g", &format!("{}, {}", of("{ n: 1 }"), of("quantity"))),
        group("h", &format!("{}, {}", of("{ m: 1 }"), of("events"))),
    );
    let with_default = "[{ name: n, weight: 1 }, { name: d, weight: 2, default: 3 }]";
    let with_default = two(group("g", &of(with_default)), group("h", &of("{ m: 1 }")));
    let one_rule = two(group("g", &of("{ n: 1 }")), group("h", &of("{ m: 1 }")));
    for (plan, asked) in [
        // A default comes back with the last of what was committed.
        (
            with_default,
            vec![
                (measured(&[("@n", "4")]), Some(vec![(4, 0), (0, 0)])),
                (measured(&[("n", "1")]), Some(vec![(7, 0), (0, 0)])),
            ],
        ),
        (
            other_rules,
            // In its metadata; by another rule, more than is left; and where only events are counted.
            vec![
                (measured(&[("@n", "1")]), Some(vec![(1, 0), (0, 0)])),
                (measured(&[("quantity", "7.5")]), Some(vec![(7, 3), (0, 0)])),
            ],
        ),
        (one_rule, vec![(measured(&[("n", "1")]), Some(vec![(1, 0), (0, 0)])), (measured(&[("x", "1")]), None)]),
    ] {
        let mut user = User::new(ledger).await;
        user.plan = plan;
        let event = measured(&[("n", "5"), ("m", "3")]);
        let mut keys = user.keys.all();
        let call = call_of_track(&event, "", &false);
        right &= ledger.run(&ledger.scripts().track, &keys, &user.owner, &[&call, &user.plan.message]).await.is_ok();
        keys.push(user.keys.hold("a"));
        let call = call_of_reserve(&event, "a", TTL, "");
        right &= held(ledger.run(&ledger.scripts().reserve, &keys, &user.owner, &[&call, &user.plan.message]).await)
            .is_some();
        // What measures nothing names the first group.
        let keys = [user.keys.ledger(), user.keys.memory(), user.keys.agenda(), user.keys.hold("a")];
        let call = codec::encode(&("a", true, false, BTreeMap::from([("x", 1)]), MINUTE));
        let refused =
            ledger.run(&ledger.scripts().commit, &keys, &user.owner, &[&call]).await.and_then(Reply::committed);
        right &= refused.is_err_and(|fault| fault.to_string().contains("\"g\""));
        right &= user.settle("a", true).await.is_ok();
        for (asked, expected) in asked {
            right &= refund(&user, "a", &asked).await == expected;
        }
        user.delete().await;
    }
    right
}

/// ONCE: the request id of a forgotten reservation goes with it, unless it has become another one's.
async fn forgotten(ledger: &Ledger) -> bool {
    let user = User::on(ledger, "yearly").await;
    let mut right = true;
    for request_id in ["x", "y"] {
        right &= user.reserve_once(request_id, TTL, request_id).await.is_ok();
    }
    right &= user.look::<u32>("HLEN", user.keys.memory()).await == 4;
    user.step(TTL + MINUTE).await;
    right &= held(user.reserve_once("z", TTL, "y").await) == Some(1);
    right &= user.look::<u32>("HLEN", user.keys.memory()).await == 2;
    let again = user.reserve_once("w", TTL, "y").await.ok().and_then(|reply| reply.decision().ok());
    right &= again.is_some_and(|(_, hold)| hold.is_some_and(|hold| hold.nonce == "z" && hold.replayed));
    user.delete().await;
    right
}

/// ONE-CLOCK: of a user whose time is no other.
async fn own_time(ledger: &Ledger) -> bool {
    let name = fresh_user("direct");
    let owner = owner(&name);
    let keys = UserKeys::new(&owner);
    let mut right = true;
    for _ in 0..3 {
        let clock = async || {
            let (seconds, micros): (i64, i64) =
                redis::cmd("TIME").query_async(&mut redis().await).await.expect("Redis answers");
            seconds * 1000 + micros / 1000
        };
        let before = clock().await;
        let asked = [keys.subscription(), keys.ledger()];
        let answer = ledger.run(&ledger.scripts().subscription_get, &asked, &owner, &[]).await;
        let now = answer.ok().and_then(|reply| reply.subscription().ok()).map(|(now_ms, ..)| now_ms);
        let after = clock().await;
        right &= now.is_some_and(|now| (before..=after).contains(&now));
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    right
}

/// EXACT: 2 x 10^15 at 500.5 each are 10^15 more than 10^18.
async fn overpriced(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let measure = "measure: { a: 500.5, b: 0.000000000001 }";
    user.plan =
        plan(&format!("period: yearly, id: g, unit: count, quota: unlimited, match: [{{ event: e, {measure} }}]"));
    let quantity = |text| Quantity::from_decimal(text).expect("a number");
    let quantities = [("a", quantity("2000000000000000")), ("b", quantity("1"))];
    let quantities = quantities.map(|(name, quantity)| (name.to_owned(), quantity)).into();
    let event = Event::new(EventName::parse("e").expect("a name"), None, quantities, BTreeMap::new());
    let call = codec::can_use_call("", false, &event);
    let keys = user.keys.all();
    let answer = ledger.run(&ledger.scripts().can_use, &keys, &user.owner, &[&call, &user.plan.message]).await;
    user.delete().await;
    matches!(answer, Err(Fault::OutOfRange { .. }))
}

/// A hold of an ended window lapses while something does not fit: that is written, and nothing else.
async fn unopened(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let mut right = held(user.reserve("a").await) == Some(1);
    user.step(MINUTE).await;
    user.plan = plan_at("period: minute, id: g, unit: count, quota: 0, match: [{ event: e }]", None, START + MINUTE);
    let (keys, call) = (user.keys.all(), call_of_track(&event(), "", &true));
    let answer = ledger.run(&ledger.scripts().track, &keys, &user.owner, &[&call, &user.plan.message]).await;
    right &= answer.ok().and_then(|reply| reply.tracked().ok()).is_some_and(|tracked| tracked.uncounted.is_some());
    let packed: Vec<u8> = user.look("GET", user.keys.ledger()).await;
    let span = [&user.plan.from_ms.to_le_bytes()[..6], &user.plan.until_ms.to_le_bytes()[..7]].concat();
    right &= packed.starts_with(&(START + MINUTE).to_le_bytes()[..6]);
    right &= packed[6..8] == [0, 0] && !packed.windows(13).any(|bytes| bytes == span);
    user.delete().await;
    right
}

async fn prefix(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    user.plan = plan("period: yearly, id: g, unit: count, quota: 9, match: [{ event: \"e.*\" }]");
    let mut right = true;
    for (name, matches) in [("e", false), ("e.", false), ("e.f", true)] {
        let event = Event::new(EventName::parse(name).expect("a name"), None, BTreeMap::new(), BTreeMap::new());
        let call = codec::can_use_call("", false, &event);
        let args: [&[u8]; 2] = [&call, &user.plan.message];
        let answer = ledger.run(&ledger.scripts().can_use, &user.keys.all(), &user.owner, &args).await;
        let decision = answer.ok().and_then(|reply| reply.decision().ok());
        right &= decision.is_some_and(|(decision, _)| decision.denied.is_none() == matches);
    }
    user.delete().await;
    right
}
