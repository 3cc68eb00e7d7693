//! What no answer shows, asked of the scripts directly: calls that were compiled for another time, keys that people look at, and what is
//! cleared away.

use std::collections::BTreeMap;

use tollgate::catalog::{self, CompiledPlan, compile};
use tollgate::domain::event::{Event, EventName};
use tollgate::domain::fault::Fault;
use tollgate::domain::id::Owner;
use tollgate::domain::subscription::Subscription;
use tollgate::ledger::codec::{self, Reply};
use tollgate::ledger::{Ledger, UserKeys};

use crate::support::{Step, fresh_user, owner, redis, step_clock};

/// 2033-05-18T03:33:20Z.
const START: i64 = 2_000_000_000_000;
const MINUTE: i64 = 60_000;
/// Of a reservation here; it is remembered for a minute more.
const TTL: i64 = 5000;

struct User<'a> {
    ledger: &'a Ledger,
    name: String,
    owner: Owner,
    keys: UserKeys,
    plan: CompiledPlan,
}

impl<'a> User<'a> {
    /// Whose time is `START`, on a plan with a limit of 9 a minute.
    async fn new(ledger: &'a Ledger) -> Self {
        Self::on(ledger, "minute").await
    }

    /// The same with another period.
    async fn on(ledger: &'a Ledger, period: &str) -> Self {
        let group = "{ id: g, unit: count, quota: 9, match: [{ event: e }] }";
        let catalog = format!("plans: {{ p: {{ period: {period}, limit_groups: [{group}] }} }}");
        let catalog = catalog::parse(&catalog, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
        let plan = compile(&catalog.plans()[0], None, &BTreeMap::new(), START).expect("the time has a calendar");
        let name = fresh_user("direct");
        let owner = owner(&name);
        step_clock(&name, Step::To(START)).await;
        Self { ledger, name, keys: UserKeys::new(&owner), owner, plan }
    }

    async fn reserve(&self, nonce: &str) -> Result<Reply, Fault> {
        self.reserve_for(nonce, TTL).await
    }

    async fn reserve_for(&self, nonce: &str, ttl_ms: i64) -> Result<Reply, Fault> {
        let event = Event::new(EventName::parse("e").expect("a name"), None, BTreeMap::new(), BTreeMap::new());
        let mut keys = self.keys.all();
        keys.push(self.keys.hold(nonce));
        let call = codec::encode(&("", false, codec::event(&event), "", "", nonce, ttl_ms, MINUTE));
        self.ledger.run(&self.ledger.scripts().reserve, &keys, &self.owner, &[&call, &self.plan.message]).await
    }

    async fn track(&self, request_id: &str) -> Result<Reply, Fault> {
        let event = Event::new(EventName::parse("e").expect("a name"), None, BTreeMap::new(), BTreeMap::new());
        let once = (request_id, "digest", "event");
        let call = codec::encode(&("", false, codec::event(&event), once.0, once.1, once.2, false, MINUTE));
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
    async fn look<T: redis::FromRedisValue>(&self, command: &str, key: String) -> T {
        redis::cmd(command).arg(key).query_async(&mut redis().await).await.expect("Redis answers")
    }

    async fn set_live(&self, live: u32) {
        let script = "local led = cmsgpack.unpack(redis.call('GET', KEYS[1])) led[2] = tonumber(ARGV[1])
            redis.call('SET', KEYS[1], cmsgpack.pack(led), 'KEEPTTL')";
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(self.keys.ledger()).arg(live);
        let () = command.query_async(&mut redis().await).await.expect("Redis answers");
    }

    async fn step(&self, ms: i64) {
        step_clock(&self.name, Step::To(START + ms)).await;
    }

    async fn delete(self) {
        let keys = self.keys.all();
        let script = &self.ledger.scripts().user_delete;
        let _: Result<Reply, Fault> = self.ledger.run(script, &keys, &self.owner, &[]).await;
    }
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
    let checks = [
        ("a window ends with its last millisecond", window_end(ledger).await),
        ("a subscription is replaced only by who has read it", replaced(ledger).await),
        ("a live hold is visible, until it is settled or expires", visible(ledger).await),
        ("10,000 holds are the most, and a settled one makes room", most_holds(ledger).await),
        ("what is forgotten is cleared away, and not before", cleared(ledger).await),
        ("a track is remembered for the replay window, to the millisecond", remembered(ledger).await),
        ("a long reservation is remembered beyond shorter ones", outlives(ledger).await),
        ("what was held comes back although the agenda has expired", returns(ledger).await),
        ("everything expires by itself, and not before it is needed", expires(ledger).await),
    ];
    checks.into_iter().find(|(_, right)| !right).map(|(what, _)| what)
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

async fn replaced(ledger: &Ledger) -> bool {
    let user = User::new(ledger).await;
    let subscription = |revision: &str| {
        codec::encode_subscription(&Subscription {
            revision: revision.to_owned(),
            plan_id: "p".to_owned(),
            start_ms: START,
            end_ms: None,
            cycle_anchor_ms: START,
            fallen_to: None,
            overrides: BTreeMap::new(),
        })
    };
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
    let user = User::new(ledger).await;
    let mut right = true;
    for (nonce, commit) in [("a", true), ("b", false)] {
        right &= held(user.reserve(nonce).await) == Some(1);
        let shown: Option<String> = user.look("GET", user.keys.hold(nonce)).await;
        let left: i64 = user.look("PTTL", user.keys.hold(nonce)).await;
        right &= shown.as_deref() == Some("g=1") && (1..=TTL).contains(&left);
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
    let expires = async |key: String| user.look::<i64>("PEXPIRETIME", key).await;
    for key in [user.keys.ledger(), user.keys.memory(), user.keys.agenda()] {
        right &= (needed..needed + 60 * MINUTE).contains(&expires(key).await);
    }
    // A settling that comes late is remembered longer.
    user.step(TTL + MINUTE - 1).await;
    right &= user.settle("a", true).await.is_ok();
    let needed = START + TTL + 2 * MINUTE - 1;
    for key in [user.keys.ledger(), user.keys.memory(), user.keys.agenda()] {
        right &= (needed..needed + 60 * MINUTE).contains(&expires(key).await);
    }
    user.delete().await;
    let lifetime = User::on(ledger, "lifetime").await;
    right &= held(lifetime.reserve("a").await) == Some(1);
    right &= lifetime.look::<i64>("PEXPIRETIME", lifetime.keys.ledger()).await == -1;
    lifetime.delete().await;
    right
}
