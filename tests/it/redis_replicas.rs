//! Writes that replicas must have: `redis-wait-replicas`, which asks for each, and `min-replicas-to-write`, which asks of the moment.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tollgate::ledger::{Ledger, RedisOptions};
use tollgate::meter::MeterOptions;
use tonic::Code;

use crate::redis_access::{calls, lists, refusal, set_user};
use crate::support::redis_cluster::{RedisCluster, track};
use crate::support::redis_server::RedisServer;
use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, redis_options, scratch};

const CATALOG: &str = "
default_plan: p
plans: { p: { period: yearly, limit_groups: [{ id: g, unit: count, quota: 1000000, match: [{ event: seen }] }] } }
";

/// A master, and a replica that follows it.
async fn pair(name: &str) -> (RedisServer, RedisServer) {
    let master = RedisServer::start(scratch(&format!("{name}-0")), "--repl-diskless-sync-delay 0");
    master.ready().await;
    let following = format!("--replicaof 127.0.0.1 {}", master.port());
    let replica = RedisServer::start(scratch(&format!("{name}-1")), &following);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !master.ask::<String>("INFO replication").await.unwrap().contains("state=online") {
        assert!(Instant::now() < deadline, "the replica does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (master, replica)
}

async fn serving(redis: RedisOptions) -> Replica {
    Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), redis).await
}

/// Asks until the replica has it.
async fn acknowledged(replica: &mut Replica, user: &str, id: &str) -> tollgate::grpc::v1::TrackResponse {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match replica.metering.track(track(user, id)).await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => assert!(Instant::now() < deadline, "service does not resume: {status:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_too_few_replicas_have_is_not_acknowledged_and_its_id_finds_it() {
    let (master, follower) = pair("wait").await;
    let file = scratch("wait.yaml");
    std::fs::write(&file, CATALOG).unwrap();
    let url = master.url();
    for batch in ["32", "1"] {
        let flags = [
            "--redis-url",
            &url,
            "--redis-wait-replicas=1",
            "--redis-wait-timeout=1s",
            "--redis-timeout=5s",
            "--redis-batch",
            batch,
            "--catalog",
            file.to_str().unwrap(),
        ];
        let served = Served::start(0, &flags);
        let mut replica = Replica::connect(served.address).await;
        let user = fresh_user("wait");
        acknowledged(&mut replica, &user, "1").await;
        follower.signal("-STOP");
        let status = replica.metering.track(track(&user, "2")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        // The retry waits as well: the write that it finds may be forgotten still.
        let status = replica.metering.track(track(&user, "2")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        // Nobody waits to read.
        let usage = tollgate::grpc::v1::GetUsageRequest { user_id: user.clone(), ..Default::default() };
        assert_eq!(replica.metering.get_usage(usage).await.unwrap().into_inner().limits[0].used, 2.0);
        let again = tollgate::grpc::v1::UpsertSubscriptionRequest {
            user_id: user.clone(),
            plan_id: "p".to_owned(),
            ..Default::default()
        };
        let status = replica.subscriptions.upsert_subscription(again.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        follower.signal("-CONT");
        let answer = acknowledged(&mut replica, &user, "2").await;
        assert_eq!((answer.replayed, answer.limits[0].used), (true, 2.0));
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(status) = replica.subscriptions.upsert_subscription(again.clone()).await {
            assert!(Instant::now() < deadline, "service does not resume: {status:?}");
        }
    }
}

/// Replication is held up for longer than the calls take to arrive, so that most of them wait together.
#[tokio::test]
async fn calls_that_go_together_wait_together() {
    let (master, follower) = pair("wait-batch").await;
    let mut redis = RedisOptions { urls: vec![master.url()], connections: 1, wait_replicas: 1, ..redis_options() };
    redis.wait_timeout = Duration::from_secs(8);
    let replica = serving(redis).await;
    let before = calls(&master, "wait").await;
    follower.signal("-STOP");
    let mut asked = JoinSet::new();
    for user in 0..60 {
        let mut metering = replica.metering.clone();
        asked.spawn(async move { metering.track(track(&format!("u{user}"), "")).await });
    }
    // One command is under way, and the others have gone to the service.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !master.ask::<String>("INFO clients").await.unwrap().contains("blocked_clients:1") {
        assert!(Instant::now() < deadline, "nobody waits");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    follower.signal("-CONT");
    for answer in asked.join_all().await {
        answer.unwrap();
    }
    let waits = calls(&master, "wait").await - before;
    assert!((2..=20).contains(&waits), "60 calls have waited {waits} times");
}

#[tokio::test]
async fn what_cannot_wait_is_refused_at_the_start() {
    let [list, ..] = lists();
    let redis = RedisServer::start(scratch("wait-refused"), "");
    redis.ready().await;
    set_user(&redis, "tollgate", &list).await;
    let url = format!("redis://tollgate:secret@127.0.0.1:{}", redis.port());
    let options = |urls: Vec<String>| RedisOptions { urls, wait_replicas: 1, ..redis_options() };
    let told = refusal(options(vec![url.clone()])).await.expect("WAIT is not allowed");
    assert!(told.contains("WAIT") && told.contains("+wait"), "{told}");
    set_user(&redis, "tollgate", &[list, vec!["+wait".to_owned()]].concat()).await;
    assert_eq!(refusal(options(vec![url])).await, None, "it starts, and waits for its replicas to come");
    let cluster = RedisCluster::start("wait-cluster", false, "").await;
    for urls in [cluster.urls(), cluster.urls()[..1].to_vec()] {
        let told = refusal(options(urls)).await.expect("a cluster is refused");
        assert!(told.contains("min-replicas-to-write"), "{told}");
    }
    for (flags, expected) in [
        (&["--redis-wait-replicas=1"][..], "a private Redis has no replicas"),
        (&["--redis-wait-replicas=1", "--redis-url=redis://a", "--redis-wait-timeout=2s"], "must be shorter than"),
        (&["--redis-wait-replicas=1", "--redis-url=redis://a,redis://b"], "not for a cluster"),
    ] {
        let output = tollgate().arg("config").args(flags).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(expected), "{told}");
    }
}

/// `min-replicas-to-write`: nothing is written, and service resumes by itself.
#[tokio::test]
async fn writes_that_redis_refuses_for_want_of_replicas_are_unavailable_and_write_nothing() {
    let redis = RedisServer::start(scratch("noreplicas"), "");
    redis.ready().await;
    let mut replica = serving(RedisOptions { urls: vec![redis.url()], ..redis_options() }).await;
    replica.metering.track(track("u", "1")).await.unwrap();
    let _: () = redis.ask("CONFIG SET min-replicas-to-write 1").await.unwrap();
    let status = replica.metering.track(track("u", "2")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // A start succeeds, as a replica may come back.
    Ledger::connect(&RedisOptions { urls: vec![redis.url()], ..redis_options() }).await.unwrap();
    let _: () = redis.ask("CONFIG SET min-replicas-to-write 0").await.unwrap();
    let answer = replica.metering.track(track("u", "2")).await.unwrap().into_inner();
    assert_eq!((answer.replayed, answer.limits[0].used), (false, 2.0), "the refused one has written nothing");
}
