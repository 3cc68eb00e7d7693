//! What happens to a Redis Cluster: scripts forgotten by one node, slots on their way to another, masters replaced on demand,
//! killed, or hanging.

use std::time::{Duration, Instant};

use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::alone;
use crate::campaign::seeds;
use crate::support::load::{self, Load, Plan, Totals};
use crate::support::redis_cluster::{RedisCluster, subscribe, track};
use crate::support::{Replica, fresh_user};

/// Within this, service resumes by itself once the cluster serves again.
const RESUMES: Duration = Duration::from_secs(5);

/// Replicas are promoted soon, and every write is in a file.
const ARGUMENTS: &str =
    "--cluster-node-timeout 1000 --appendonly yes --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0";

/// The same, and the other masters serve while one is away.
const NO_COVERAGE: &str = "--cluster-node-timeout 1000 --appendonly yes --cluster-replica-validity-factor 0 \
                           --repl-diskless-sync-delay 0 --cluster-require-full-coverage no";

fn options(urls: Vec<String>) -> RedisOptions {
    let timeout = Duration::from_secs(1);
    RedisOptions { urls, sentinels: Vec::new(), connections: 2, batch: 32, timeout, ..RedisOptions::default() }
}

async fn replica(cluster: &RedisCluster, options_of_meter: MeterOptions) -> Replica {
    let catalog = load::catalog(load::QUOTA);
    Replica::start_with(&catalog, jiff::tz::db(), options_of_meter, options(cluster.urls())).await
}

/// Load through two replicas, over more users than masters.
async fn load(cluster: &RedisCluster, seed: u64) -> Load {
    start_load(cluster, Plan { users: 6, ..Plan::new(Vec::new(), cluster.urls(), seed) }).await
}

async fn load_that_may_forget(cluster: &RedisCluster, seed: u64) -> Load {
    start_load(
        cluster,
        Plan { users: 6, may_forget: true, refunds: false, ..Plan::new(Vec::new(), cluster.urls(), seed) },
    )
    .await
}

async fn start_load(cluster: &RedisCluster, plan: Plan) -> Load {
    let mut urls = Vec::new();
    for _ in 0..2 {
        urls.push(format!("http://{}", replica(cluster, MeterOptions::default()).await.address));
    }
    let load = Load::start(Plan { urls, ..plan });
    load.flows(RESUMES).await;
    load
}

fn report(campaign: &str, resumed: &[Duration], totals: Totals) {
    println!("{campaign}: service resumed after {resumed:?}; {totals:?}");
}

#[tokio::test]
async fn scripts_are_forgotten_and_slots_migrated() {
    let _turn = alone().await;
    let cluster = RedisCluster::start("migrated", false, ARGUMENTS).await;
    for seed in seeds() {
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
            cluster.give_two_memories(user).await;
        }
        let mut resumed = Vec::new();
        for _ in 0..2 {
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
        for user in &users[..3] {
            cluster.take_given(user).await;
        }
        let totals = load.audit().await;
        let after = (cluster.errors("MOVED").await, cluster.errors("ASK").await, cluster.errors("TRYAGAIN").await);
        let met = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        assert!(met.0 > 0 && met.1 > 0 && met.2 > 0, "MOVED, ASK, TRYAGAIN: {met:?}");
        assert_eq!(totals.unanswered, 0, "a slot on its way only delays: {totals:?}");
        report(&format!("slots migrated, MOVED, ASK, TRYAGAIN {met:?}"), &resumed, totals);
    }
}

/// The replica takes over when it has everything, so nothing may be lost.
#[tokio::test]
async fn masters_are_replaced_on_demand() {
    let _turn = alone().await;
    let cluster = RedisCluster::start("replaced", true, ARGUMENTS).await;
    for seed in seeds() {
        let load = load(&cluster, seed).await;
        let slot = cluster.slot(&load.users()[0]).await;
        let mut resumed = Vec::new();
        for _ in 0..2 {
            let replica = (cluster.master_of(slot, 0).await + 3) % 6;
            cluster.replace(replica).await;
            resumed.push(load.flows(RESUMES).await);
            cluster.settled(&[]).await;
            // For twice the node timeout nobody votes again, and the master would hold its clients until then.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let totals = load.audit().await;
        report("masters replaced on demand", &resumed, totals);
    }
}

/// What stops a master under load.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Hang,
}

/// Stops the master of the first user until its replica has taken over, and lets it come back as a replica. Returns after which
/// time service has resumed.
async fn stop_master(cluster: &mut RedisCluster, load: &Load, fault: Fault, settled_first: bool) -> Duration {
    let slot = cluster.slot(&load.users()[0]).await;
    let mut elsewhere = replica(cluster, MeterOptions::default()).await;
    let master = cluster.master_of(slot, 0).await;
    let other = a_user_elsewhere(cluster, master).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    if settled_first {
        load.pause().await;
        cluster.caught_up(master).await;
    }
    match fault {
        Fault::Kill => cluster.nodes[master].kill(),
        Fault::Hang => cluster.nodes[master].signal("-STOP"),
    }
    load.resume();
    let started = Instant::now();
    while fault == Fault::Kill && started.elapsed() < Duration::from_millis(800) {
        let asked = Instant::now();
        elsewhere.metering.track(track(&other, "")).await.expect("the other masters serve");
        assert!(asked.elapsed() < Duration::from_millis(800), "it takes {:?}", asked.elapsed());
    }
    cluster.promoted((master + 3) % 6).await;
    let resumed = load.flows(RESUMES).await;
    match fault {
        Fault::Kill => cluster.nodes[master].restart(),
        Fault::Hang => {
            // A master that goes on answers what it finds in its sockets before it hears that it is none.
            load.pause().await;
            cluster.nodes[master].signal("-CONT");
        }
    }
    cluster.settled(&[]).await;
    load.resume();
    load.flows(RESUMES).await;
    resumed
}

/// A user of another master.
async fn a_user_elsewhere(cluster: &RedisCluster, master: usize) -> String {
    loop {
        let user = fresh_user("elsewhere");
        if cluster.master_of(cluster.slot(&user).await, 0).await != master {
            return user;
        }
    }
}

/// If the replica had everything when its master stopped, the counters are exact. Else the last moments may be forgotten, as
/// replication is asynchronous, and still nothing is counted twice.
#[tokio::test]
async fn masters_are_killed_and_hang() {
    let _turn = alone().await;
    let mut cluster = RedisCluster::start("stopped", true, NO_COVERAGE).await;
    for seed in seeds() {
        for (fault, settled_first) in [(Fault::Kill, true), (Fault::Hang, true), (Fault::Kill, false)] {
            let load = match settled_first {
                true => load(&cluster, seed).await,
                false => load_that_may_forget(&cluster, seed).await,
            };
            let resumed = stop_master(&mut cluster, &load, fault, settled_first).await;
            let totals = load.audit().await;
            assert!(totals.unanswered > 0, "the fault was felt: {totals:?}");
            report(&format!("master stopped, {fault:?}, in step: {settled_first}"), &[resumed], totals);
        }
    }
}
