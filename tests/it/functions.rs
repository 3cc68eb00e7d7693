//! The hot scripts as Redis functions: used where Redis has them, given again where it has lost them, and never needed.

use std::time::{Duration, Instant};

use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::support::redis_server::RedisServer;
use crate::support::{Replica, redis_options, scratch};

const CATALOG: &str = "
default_plan: p
plans: { p: { period: yearly, limit_groups: [{ id: g, unit: count, quota: 1000000, match: [{ event: e }] }] } }
";

/// Once at the start Tollgate asks whether it may run scripts by their digests.
const ASKED: u64 = 1;

async fn replica(redis: &RedisServer, url: String) -> Replica {
    redis.ready().await;
    let options = RedisOptions { urls: vec![url], ..redis_options() };
    Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), options).await
}

/// Counts once more, and returns what has been counted.
async fn track(replica: &mut Replica) -> f64 {
    let event = v1::Event { name: "e".to_owned(), ..Default::default() };
    let request = v1::TrackRequest { user_id: "u".to_owned(), event: Some(event), ..Default::default() };
    replica.metering.track(request).await.unwrap().into_inner().limits[0].used
}

async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let told: String = redis.ask("INFO commandstats").await.unwrap();
    let count = told.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    count.and_then(|count| count.split_once(',')?.0.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn functions_that_redis_has_lost_are_given_again_and_no_call_fails_or_counts_twice() {
    let redis = RedisServer::start(scratch("functions-lost"), "");
    let mut replica = replica(&redis, redis.url()).await;
    assert_eq!(track(&mut replica).await, 1.0);
    assert_eq!((calls(&redis, "fcall").await, calls(&redis, "evalsha").await), (1, ASKED));
    let _: () = redis.ask("FUNCTION FLUSH").await.unwrap();
    let _: () = redis.ask("SCRIPT FLUSH").await.unwrap();
    let flushed = Instant::now();
    // By its text, and then by its digest, until the functions are back.
    let mut counted = 1.0;
    while calls(&redis, "function|load").await < 16 {
        assert!(flushed.elapsed() < Duration::from_secs(10), "the functions do not come back");
        counted += 1.0;
        assert_eq!(track(&mut replica).await, counted);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = (calls(&redis, "fcall").await, calls(&redis, "evalsha").await);
    assert!(before.1 > ASKED, "scripts took over");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(track(&mut replica).await, counted + 1.0);
    assert_eq!((calls(&redis, "fcall").await, calls(&redis, "evalsha").await), (before.0 + 1, before.1));
}

#[tokio::test]
async fn where_redis_takes_no_functions_scripts_do_the_same() {
    let redis = RedisServer::start(scratch("functions-refused"), "");
    redis.ready().await;
    let _: () = redis.ask("ACL SETUSER plain on >secret ~* +@all -function -fcall -fcall_ro").await.unwrap();
    let mut replica = replica(&redis, format!("redis://plain:secret@127.0.0.1:{}", redis.port())).await;
    assert_eq!(track(&mut replica).await, 1.0);
    assert_eq!(track(&mut replica).await, 2.0);
    assert_eq!((calls(&redis, "fcall").await, calls(&redis, "evalsha").await), (0, ASKED + 2));
}

/// Plans of many users, so large that a function forgets what it remembers several times: each is decided by its own.
#[tokio::test]
async fn what_functions_remember_of_plans_is_bounded_and_never_anothers() {
    const GROUPS: usize = 60;
    const USERS: u32 = 100;
    let group =
        |id| format!("{{ id: g{id}, label: {}, unit: count, quota: 1, match: [{{ event: e }}] }}", "x".repeat(200));
    let groups: Vec<_> = (0..GROUPS).map(group).collect();
    let catalog = format!("plans: {{ p: {{ period: yearly, limit_groups: [{}] }} }}", groups.join(", "));
    let redis = RedisServer::start(scratch("functions-remember"), "");
    redis.ready().await;
    let options = RedisOptions { urls: vec![redis.url()], ..redis_options() };
    let mut replica = Replica::start_with(&catalog, jiff::tz::db(), MeterOptions::default(), options).await;
    for user in 0..USERS {
        let limit = Some(v1::quota::Limit::Amount(f64::from(user) + 2.0));
        let quotas = (0..GROUPS).map(|group| (format!("g{group}"), v1::Quota { limit })).collect();
        let request = v1::UpsertSubscriptionRequest {
            user_id: format!("u{user}"),
            plan_id: "p".to_owned(),
            overrides: Some(v1::QuotaOverrides { quotas }),
            ..Default::default()
        };
        replica.subscriptions.upsert_subscription(request).await.unwrap();
    }
    for held in [1.0, 2.0] {
        for user in 0..USERS {
            let event = v1::Event { name: "e".to_owned(), ..Default::default() };
            let user_id = format!("u{user}");
            let request = v1::ReserveRequest { user_id, event: Some(event), ..Default::default() };
            let answer = replica.metering.reserve(request).await.unwrap().into_inner();
            let rows: Vec<_> = answer.limits.iter().map(|limit| (limit.quota, limit.held)).collect();
            assert_eq!((answer.allowed, rows), (true, vec![(f64::from(user) + 2.0, held); GROUPS]), "u{user}");
        }
    }
    assert_eq!(calls(&redis, "fcall").await, u64::from(2 * USERS));
}
