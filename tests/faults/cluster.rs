//! What happens to a Redis Cluster: scripts forgotten by one node, slots on their way to another, masters replaced on demand,
//! killed, or hanging.

use std::time::Duration;

use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::support::Replica;
use crate::support::load::{self, Load, Plan, Totals};
use crate::support::redis_cluster::RedisCluster;
use crate::{alone, rounds};

/// Within this, service resumes by itself once the cluster serves again.
const RESUMES: Duration = Duration::from_secs(5);

/// Replicas of masters are promoted soon, and every write is in a file.
const ARGUMENTS: &str =
    "--cluster-node-timeout 1000 --appendonly yes --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0";

fn options(urls: Vec<String>) -> RedisOptions {
    let timeout = Duration::from_secs(1);
    RedisOptions { urls, sentinels: Vec::new(), connections: 2, timeout, allow_eviction: false }
}

async fn replica(cluster: &RedisCluster, options_of_meter: MeterOptions) -> Replica {
    let catalog = load::catalog(Plan::new(Vec::new()).quota);
    Replica::start_with(&catalog, jiff::tz::db(), options_of_meter, options(cluster.urls())).await
}

/// Load through two replicas, over more users than masters.
async fn load(cluster: &RedisCluster, seed: u64) -> Load {
    let mut urls = Vec::new();
    for _ in 0..2 {
        urls.push(format!("http://{}", replica(cluster, MeterOptions::default()).await.address));
    }
    let load = Load::start(Plan { users: 6, seed, ..Plan::new(urls) });
    load.flows(RESUMES).await;
    load
}

fn report(campaign: &str, resumed: &[Duration], totals: Totals) {
    println!("{campaign}: service resumed after {resumed:?}; {totals:?}");
}

async fn subscribe(replica: &mut Replica, user: &str) {
    let request =
        v1::UpsertSubscriptionRequest { user_id: user.to_owned(), plan_id: "p".to_owned(), ..Default::default() };
    replica.subscriptions.upsert_subscription(request).await.expect("a user can subscribe");
}

#[tokio::test]
async fn scripts_are_forgotten_and_slots_migrated() {
    let _turn = alone().await;
    let cluster = RedisCluster::start("migrated", false, ARGUMENTS).await;
    for seed in rounds() {
        let load = load(&cluster, seed).await;
        for round in 0..6 {
            let _: () = cluster.nodes[round % 3].ask("SCRIPT FLUSH").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        load.flows(RESUMES).await;
        let totals = load.audit().await;
        assert_eq!(totals.unanswered, 0, "a script that is missing is sent at once: {totals:?}");
        report("scripts forgotten", &[], totals);

        let before = (cluster.errors("MOVED").await, cluster.errors("ASK").await, cluster.errors("TRYAGAIN").await);
        let load = self::load(&cluster, seed).await;
        let users = load.users();
        let mut subscriber = replica(&cluster, MeterOptions::default()).await;
        // With a subscription every key of a user exists at times, and scripts run at both ends of the way.
        for user in &users[..3] {
            subscribe(&mut subscriber, user).await;
        }
        let mut resumed = Vec::new();
        for _ in 0..3 {
            for user in &users[..4] {
                let slot = cluster.slot(user).await;
                let from = cluster.master_of(slot, 0).await;
                let to = (from + 1) % 3;
                let _: () = cluster.nodes[to].ask("SCRIPT FLUSH").await.unwrap();
                cluster.begin_migration(slot, from, to).await;
                while cluster.migrate_keys(slot, from, to, 1).await > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                cluster.end_migration(slot, from, to).await;
                resumed.push(load.flows(RESUMES).await);
            }
        }
        let totals = load.audit().await;
        let after = (cluster.errors("MOVED").await, cluster.errors("ASK").await, cluster.errors("TRYAGAIN").await);
        let met = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        assert!(met.0 > 0 && met.1 > 0 && met.2 > 0, "MOVED, ASK, TRYAGAIN: {met:?}");
        assert_eq!(totals.unanswered, 0, "a slot on its way only delays: {totals:?}");
        report(&format!("slots migrated, MOVED, ASK, TRYAGAIN {met:?}"), &resumed, totals);
    }
}
