//! The same on a Redis Cluster: three masters on loopback, each user's keys in one slot; and slots on their way.

use std::time::Duration;

use redis::AsyncCommands as _;
use tollgate::grpc::v1;
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Ledger, RedisOptions, formats};
use tollgate::meter::MeterOptions;

use crate::scenario::Scenario;
use crate::support::redis_cluster::{RedisCluster, subscribe, track};
use crate::support::redis_server::RedisServer;
use crate::support::{Replica, fresh_user, keys, scratch};

#[tokio::test]
async fn every_call_works_on_a_cluster() {
    const CATALOG: &str = "
default_plan: p
plans:
  p:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 100, match: [{ event: t }] }
      - { id: calls, unit: count, quota: 100, match: [{ event: t, measure: events }] }
  q:
    period: monthly
    limit_groups: [{ id: tokens, unit: tokens, quota: 200, match: [{ event: t }] }]
";
    let cluster = RedisCluster::start("cluster", false, "").await;
    let redis = RedisOptions {
        urls: cluster.urls()[..2].to_vec(),
        connections: 2,
        batch: 32,
        timeout: Duration::from_secs(10),
        sentinels: Vec::new(),
        allow_eviction: false,
        ..RedisOptions::default()
    };
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), redis).await;
    let mut scenario = Scenario::new(vec![("", replica)]);
    // Enough users that each node has some.
    for user in 0..48 {
        let table = "
            reserve U t 60 id=r1 as=A => allowed tokens.held=60 calls.held=1
            reserve U t 60 => denied tokens.shortfall=20
            reserve U t 60 id=r1 => replayed same-as=A
            commit A 30 => tokens.used=30 tokens.held=0
            commit A 30 => replayed
            reserve U t 10 as=B => allowed
            release B => RELEASED tokens.held=0
            track U t 5 id=t1 => tokens.used=35
            track U t 5 id=t1 => replayed
            track U t.refund 10 of=A => tokens.used=25
            can U t 75 => allowed
            can U t 76 => denied
            subscribe U q
            usage U => tokens.used=25 tokens.quota=200 in-force=q
            cancel U
            usage U => in-force=p calls.used=2
            delete U
            usage U => tokens.used=0 no-subscription
            track U t 1
        ";
        scenario.run(&table.replace('U', &format!("u{user}"))).await;
    }
    for node in &cluster.nodes {
        assert!(
            node.ask::<String>("INFO keyspace").await.unwrap().contains("keys="),
            "each node has some of the users"
        );
    }
    let urls: Vec<_> = cluster.nodes.iter().take(2).map(RedisServer::url).collect();
    let (report, findings) = tollgate::verify::run(&urls).await.unwrap();
    assert_eq!((report.users, findings), (48, Vec::new()), "every master is read");
    let (report, findings) = tollgate::verify::run(&urls[..1]).await.unwrap();
    assert_eq!((report.users, findings), (48, Vec::new()), "one node knows the others");
}

const CATALOG: &str = "
default_plan: p
plans:
  p:
    period: lifetime
    limit_groups:
      - { id: limited, unit: tokens, quota: 10, match: [{ event: work }] }
      - { id: calls, unit: count, quota: unlimited, match: [{ event: '*', measure: events }] }
";

fn options(urls: &[String]) -> RedisOptions {
    let timeout = Duration::from_secs(1);
    RedisOptions {
        urls: urls.to_vec(),
        sentinels: Vec::new(),
        connections: 2,
        batch: 32,
        timeout,
        allow_eviction: false,
        ..RedisOptions::default()
    }
}

async fn replica(urls: &[String]) -> Replica {
    replica_with(urls, MeterOptions::default()).await
}

async fn replica_with(urls: &[String], meter: MeterOptions) -> Replica {
    Replica::start_with(CATALOG, jiff::tz::db(), meter, options(urls)).await
}

fn reserve(user: &str) -> v1::ReserveRequest {
    let event = v1::Event { name: "work".to_owned(), quantity: Some(1.0), ..Default::default() };
    let ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    v1::ReserveRequest {
        user_id: user.to_owned(),
        event: Some(event),
        ttl,
        request_id: String::new(),
        ..v1::ReserveRequest::default()
    }
}

async fn standing(replica: &mut Replica, user: &str, group: &str) -> (f64, f64) {
    let request = v1::GetUsageRequest { user_id: user.to_owned(), ..Default::default() };
    let usage = replica.metering.get_usage(request).await.expect("the usage is told").into_inner();
    let status = usage.limits.into_iter().find(|status| status.limit_group_id == group).expect("every group is shown");
    (status.used, status.held)
}

/// Every key of the user is on its way or there, and nothing is lost: a call waits for the rest, or runs where the keys are.
#[tokio::test]
async fn a_call_meets_a_slot_on_its_way() {
    let cluster = RedisCluster::start("on-its-way", false, "").await;
    let mut replica = replica(&cluster.urls()).await;
    let user = fresh_user("u");
    subscribe(&mut replica, &user).await;
    let held = replica.metering.reserve(reserve(&user)).await.unwrap().into_inner();
    cluster.give_two_memories(&user).await;
    let slot = cluster.slot(&user).await;
    let from = cluster.master_of(slot, 0).await;
    let to = (from + 1) % 3;
    cluster.begin_migration(slot, from, to).await;

    // All keys are still there, so the script runs there, and deletes one.
    let release = v1::ReleaseRequest { reservation_id: held.reservation_id, ..Default::default() };
    assert!(!replica.metering.release(release).await.unwrap().into_inner().replayed);

    // Some are there and some are not: the call waits.
    cluster.migrate_keys(slot, from, to, 2).await;
    let mut waiting = replica.metering.clone();
    let request = track(&user, "waits");
    let waiting = tokio::spawn(async move { waiting.track(request).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    while cluster.migrate_keys(slot, from, to, 10).await > 0 {}
    assert!(!waiting.await.unwrap().unwrap().into_inner().replayed);

    // All keys have arrived, and the slot has not: the script runs there by ASKING, also where it has to be sent.
    let _: () = cluster.nodes[to].ask("SCRIPT FLUSH").await.unwrap();
    assert!(!replica.metering.track(track(&user, "asks")).await.unwrap().into_inner().replayed);
    assert_eq!(standing(&mut replica, &user, "calls").await, (2.0, 0.0));

    // A key that does not exist anywhere: the outcome is unknown to Redis as long as the slot is on its way.
    let status = replica.metering.reserve(reserve(&user)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    cluster.end_migration(slot, from, to).await;
    assert!(replica.metering.reserve(reserve(&user)).await.unwrap().into_inner().allowed);
}

/// NO-LEAK: on a master whose slot is leaving, a script that touches a key again that it has emptied is stopped half way.
#[tokio::test]
async fn a_script_that_empties_keys_of_a_leaving_slot_runs_to_its_end() {
    let cluster = RedisCluster::start("leaving", false, "").await;
    let forgetful =
        MeterOptions { settlement_window: Duration::ZERO, replay_window: Duration::ZERO, ..MeterOptions::default() };
    let mut replica = replica_with(&cluster.urls(), forgetful).await;
    let user = fresh_user("u");
    subscribe(&mut replica, &user).await;
    assert!(replica.metering.reserve(reserve(&user)).await.unwrap().into_inner().allowed);
    let slot = cluster.slot(&user).await;
    let from = cluster.master_of(slot, 0).await;
    let to = (from + 1) % 3;
    cluster.give_two_memories(&user).await;
    // The hold lapses, and the memory of it is forgotten and begun anew in one call.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    forget_young(&cluster.nodes[from], &user).await;
    cluster.begin_migration(slot, from, to).await;
    replica.metering.track(track(&user, "anew")).await.unwrap();
    while cluster.migrate_keys(slot, from, to, 10).await > 0 {}
    cluster.end_migration(slot, from, to).await;
    assert_eq!(standing(&mut replica, &user, "calls").await, (1.0, 0.0));
    assert!(replica.metering.reserve(reserve(&user)).await.unwrap().into_inner().allowed);
    assert_eq!(standing(&mut replica, &user, "limited").await, (0.0, 1.0));
}

/// Says in the user's state that the young memory has expired.
async fn forget_young(node: &RedisServer, user: &str) {
    let mut connection = node.connection().await;
    let key = keys(user).state().to_owned();
    let state: Vec<u8> = connection.get(&key).await.unwrap();
    let mut reader = Reader(&state);
    let head = formats::Head::read(&mut reader).unwrap();
    let memory = formats::Memory::read(&mut reader).unwrap();
    let mut changed = Vec::new();
    head.write(&mut changed);
    formats::Memory { young_expires: 1, ..memory }.write(&mut changed);
    changed.extend_from_slice(reader.0);
    let _: () = redis::cmd("SET").arg(key).arg(changed).arg("KEEPTTL").query_async(&mut connection).await.unwrap();
}

#[tokio::test]
async fn every_master_is_checked_and_one_url_may_stand_for_all() {
    let cluster = RedisCluster::start("checked", false, "").await;
    for node in &cluster.nodes {
        let _: () = node.ask("CONFIG SET maxmemory-policy allkeys-lru").await.unwrap();
        let told = Ledger::connect(&options(&cluster.urls()[..2])).await.err().unwrap().to_string();
        let port = node.port().to_string();
        assert!(told.contains("allkeys-lru") && told.contains(&port) && told.contains("--allow-eviction"), "{told}");
        let _: () = node.ask("CONFIG SET maxmemory-policy noeviction").await.unwrap();
    }
    let mut replica = replica(&cluster.urls()[..1]).await;
    for _ in 0..20 {
        replica.metering.track(track(&fresh_user("spread"), "")).await.unwrap();
    }
    let apart = [RedisServer::start(scratch("apart-0"), ""), RedisServer::start(scratch("apart-1"), "")];
    for node in &apart {
        node.ready().await;
    }
    let urls: Vec<_> = apart.iter().map(RedisServer::url).collect();
    let told = Ledger::connect(&options(&urls)).await.err().unwrap().to_string();
    assert!(told.contains("name the nodes of a cluster"), "{told}");
}
