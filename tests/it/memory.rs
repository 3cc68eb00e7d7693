//! What is remembered, and when it goes: keys expire after what needs them, and no earlier.

use std::time::Duration;

use tollgate::ledger::formats;
use tollgate::ledger::packed::Reader;
use tollgate::meter::MeterOptions;

use crate::scenario::Scenario;
use crate::support::{Replica, Step, keys, live_holds, redis, redis_options, state, step_clock};

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }
      - { id: calls, unit: count, quota: 1000, period: yearly, match: [{ event: t, measure: events }] }
";

#[tokio::test]
async fn everything_but_subscriptions_and_lifetime_ledgers_expires_after_what_needs_it() {
    let catalog = r"
default_plan: free
plans:
  free:
    period: minute
    limit_groups: [{ id: g, unit: count, quota: 100, match: [{ event: x }] }]
  life:
    period: lifetime
    limit_groups: [{ id: g, unit: count, quota: 100, match: [{ event: x }] }]
";
    let mut scenario = Scenario::new(vec![("", Replica::start(catalog).await)]);
    scenario
        .run(
            "
            reserve u x id=r1 ttl=10s as=A => allowed
            commit A
            track u x id=t1
            reserve u x ttl=1h => allowed
            track v x
            subscribe w life
            track w x
            ",
        )
        .await;
    let ttl = |key: String| async move {
        let ms: i64 = redis::cmd("PTTL").arg(key).query_async(&mut redis().await).await.unwrap();
        if ms < 0 { ms } else { ms / 60_000 }
    };
    let (u, v, w) = (scenario.user("u"), scenario.user("v"), scenario.user("w"));
    // The last thing of u is the memory of the hold: an hour and a quarter. A second memory comes later.
    let [young, old] = keys(&u).memories();
    assert!((75..=90).contains(&ttl(young).await));
    assert_eq!(ttl(old).await, -2);
    // A clock that jumps ahead must not take the counters of users whom nobody calls: a week more, and as long again.
    const WEEK: i64 = 7 * 24 * 60;
    let more = |minutes: i64| minutes - WEEK;
    assert!((150..=180).contains(&more(ttl(keys(&u).state().to_owned()).await)));
    // A window of a minute is asked for during the next one.
    assert!((1..=6).contains(&more(ttl(keys(&v).state().to_owned()).await)));
    let [young, old] = keys(&v).memories();
    assert_eq!((ttl(young).await, ttl(old).await), (-2, -2), "nothing to remember");
    assert_eq!(ttl(keys(&w).state().to_owned()).await, -1, "a subscription stays");
    let lifetime = catalog.replace("default_plan: free", "default_plan: life");
    let mut scenario = Scenario::new(vec![("", Replica::start(&lifetime).await)]);
    scenario.run("track v x").await;
    let v = scenario.user("v");
    assert_eq!(ttl(keys(&v).state().to_owned()).await, -1, "so does what has no end");
}

#[tokio::test]
async fn nothing_grows_without_bound() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    let mut table = "clock u 2031-01-15T12:00:00Z\n".to_owned();
    for index in 0..60 {
        table += &format!("reserve u t 1 id=r{index} as=A => allowed\ncommit A\ntrack u t 1 id=t{index}\n");
    }
    scenario.run(&table).await;
    let user = scenario.user("u");
    let sizes = || async {
        let mut connection = redis().await;
        let mut sizes = Vec::new();
        for memory in keys(&user).memories() {
            let fields: u64 = redis::cmd("HLEN").arg(memory).query_async(&mut connection).await.unwrap();
            sizes.push(fields);
        }
        sizes
    };
    // Each reservation and each event, and what the last write has replaced.
    assert_eq!(sizes().await, [121, 0]);
    // A memory expires as a whole, and the next one does as well.
    scenario.run("clock u +2h").await;
    expire_memories(&user).await;
    scenario.run("track u t 1\ntrack u t 1\nreserve u t 1 as=B => allowed").await;
    assert_eq!(sizes().await, [2, 0]);
    scenario.run("clock u +2h").await;
    expire_memories(&user).await;
    scenario.run("track u t 1 id=x\nusage u => tokens.used=123 tokens.held=0").await;
    assert_eq!(sizes().await, [2, 0]);
    // Under calls without end there are two memories, of which one is always soon forgotten as a whole.
    for index in 0..100 {
        scenario.run("clock u +3m").await;
        expire_memories(&user).await;
        scenario.run(&format!("reserve u t 1 id=s{index} as=A => allowed\ncommit A")).await;
        let sizes = sizes().await;
        assert!(sizes.iter().all(|fields| *fields <= 14), "{sizes:?}");
    }
    for key in keys(&user).all() {
        assert!(ttl(&key).await > 0, "{key} expires");
    }
}

/// Redis's clock cannot be stepped: this deletes the memories that it would have expired by the user's.
async fn expire_memories(user: &str) {
    let now = step_clock(user, Step::By(Duration::ZERO)).await;
    let (head, rest) = state(user).await.expect("the user has a state");
    let memory = formats::Memory::read(&mut Reader(&rest)).expect("and a memory");
    let [one, two] = keys(user).memories();
    let (young, old) = if head.young == 1 { (one, two) } else { (two, one) };
    for (key, expires) in [(young, memory.young_expires), (old, memory.old_expires)] {
        if expires <= now {
            let _: u64 = redis::cmd("DEL").arg(key).query_async(&mut redis().await).await.unwrap();
        }
    }
}

/// The seconds until a key expires; -1: never, -2: it does not exist.
async fn ttl(key: &str) -> i64 {
    redis::cmd("TTL").arg(key).query_async(&mut redis().await).await.unwrap()
}

#[tokio::test]
async fn memory_that_was_cleared_and_begins_anew_expires_as_well() {
    let options = MeterOptions {
        settlement_window: Duration::from_secs(5),
        replay_window: Duration::from_secs(5),
        ..MeterOptions::default()
    };
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), options, redis_options()).await;
    let mut scenario = Scenario::new(vec![("", replica)]);
    scenario
        .run(
            "
            reserve u t 1 ttl=10s as=A => allowed
            commit A
            clock u +10m
            track u t 1
            reserve u t 1 ttl=10s => allowed
            ",
        )
        .await;
    let user = scenario.user("u");
    let [young, old] = keys(&user).memories();
    assert!(ttl(&young).await > 0, "it expires");
    assert_eq!(ttl(&old).await, -2, "there is no other");
}

#[tokio::test]
async fn memory_that_is_forgotten_at_once_leaves_nothing_without_an_expiry() {
    let options =
        MeterOptions { settlement_window: Duration::ZERO, replay_window: Duration::ZERO, ..MeterOptions::default() };
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), options, redis_options()).await;
    let mut scenario = Scenario::new(vec![("", replica)]);
    scenario.run("track u t 1 id=a\nreserve u t 1 => allowed").await;
    let user = scenario.user("u");
    let [young, old] = keys(&user).memories();
    assert!(ttl(&young).await > 0, "it expires");
    assert_eq!(ttl(&old).await, -2, "there is no other");
}

#[tokio::test]
async fn no_leak_clearing_memory_never_shortens_the_life_of_a_hold() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    scenario
        .run(
            "
            track u t 1 id=a
            clock u +14m
            track u t 1 id=b
            reserve u t 5 ttl=1h as=A => allowed # remembered for an hour and a quarter
            clock u +61s
            track u t 1 id=c # in a memory of its own
            ",
        )
        .await;
    let user = scenario.user("u");
    let [old, _] = keys(&user).memories();
    for key in [&old, keys(&user).state()] {
        let ttl = ttl(key).await;
        // The user's clock is a quarter of an hour ahead.
        assert!(ttl >= (14 + 75) * 60, "{key} lives for {ttl} s");
    }
    scenario.run("clock u +40m\ncommit A 4 => !late tokens.used=7 tokens.held=0").await;
}

/// Memories expire two minutes after the last entry is forgotten, the state much later. Redis's clock cannot be stepped: the test deletes
/// what Redis would have expired by then.
#[tokio::test]
async fn no_leak_who_comes_back_after_the_memories_have_expired_finds_nothing_held() {
    for call in ["usage u =>", "can u t 5 => allowed", "reserve u t 5 => allowed", "track u t 0 =>"] {
        let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
        scenario.run("reserve u t 5 => allowed\nreserve u t 6 ttl=10s => allowed\nclock u +26m").await;
        let user = scenario.user("u");
        let expired = keys(&user).memories();
        let _: u64 = redis::cmd("DEL").arg(&expired[..]).query_async(&mut redis().await).await.unwrap();
        let held = if call.starts_with("reserve") { 5 } else { 0 };
        scenario.run(&format!("{call} tokens.held={held}\nusage u => tokens.held={held}")).await;
        scenario.run("reserve u t 1 as=A => allowed\nrelease A").await;
        assert_eq!(live_holds(&user).await, u64::from(held > 0), "{call}");
    }
}
