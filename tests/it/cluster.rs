//! The same on a Redis Cluster: three masters on loopback, each user's keys in one slot.

use std::time::Duration;

use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::scenario::Scenario;
use crate::support::Replica;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::RedisServer;

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
        timeout: Duration::from_secs(10),
        sentinels: Vec::new(),
        allow_eviction: false,
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
