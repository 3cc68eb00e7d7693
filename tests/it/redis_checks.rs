//! What the log says at the start of a Redis that serves, and that somebody may not have meant so.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::redis_access::{lists, set_user};
use crate::scenario::Scenario;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::RedisServer;
use crate::support::served::tollgate;
use crate::support::{Replica, redis_options, scratch};

/// The log of a start, up to the line which says that it serves.
async fn log(url: String) -> String {
    let read = move || {
        let mut child = tollgate()
            .args(["serve", "--listen", "127.0.0.1:0", "--redis-url", &url])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be run");
        let mut told = String::new();
        for line in BufReader::new(child.stderr.take().expect("it is piped")).lines() {
            let line = line.expect("the log can be read");
            told.extend([line.as_str(), "\n"]);
            if line.contains("serving") {
                break;
            }
        }
        child.kill().expect("it runs");
        child.wait().expect("it was not waited for");
        told
    };
    tokio::task::spawn_blocking(read).await.expect("it does not panic")
}

fn has(told: &str, parts: &[&str]) {
    assert!(told.contains("serving"), "{told}");
    for part in parts {
        assert!(told.contains(part), "{part:?} is missing: {told}");
    }
}

#[tokio::test]
async fn what_redis_may_forget_is_said_at_the_start_with_what_to_set() {
    let redis = RedisServer::start(scratch("checks"), "");
    redis.ready().await;
    has(&log(redis.url()).await, &["WARN", "no append-only file", "appendonly yes", "no maxmemory"]);
    has(&log(redis.url()).await, &["WARN", "frees what has expired", "lazyfree-lazy-expire yes"]);
    let flags = "--appendonly yes --maxmemory 100mb --lazyfree-lazy-expire yes";
    let durable = RedisServer::start(scratch("checks-durable"), flags);
    durable.ready().await;
    let told = log(durable.url()).await;
    has(&told, &["appendfsync"]);
    assert!(!told.contains("WARN"), "{told}");
    // Its master never answers.
    let _: () = durable.ask("REPLICAOF 127.0.0.1 1").await.unwrap();
    has(&log(durable.url()).await, &["WARN", "it is a replica", "--redis-sentinel"]);
}

#[tokio::test]
async fn what_cannot_be_checked_or_is_not_served_is_said_at_the_start() {
    let [list, ..] = lists();
    let redis = RedisServer::start(scratch("checks-info"), "");
    redis.ready().await;
    let rest: Vec<_> = list.into_iter().filter(|rule| rule != "+info").collect();
    set_user(&redis, "tollgate", &rest).await;
    let url = format!("redis://tollgate:secret@127.0.0.1:{}", redis.port());
    let told = log(url).await;
    has(&told, &["WARN", "could not be checked", "+info"]);
    assert!(!told.contains("lazyfree"), "nothing is known of it: {told}");
    let cluster = RedisCluster::start("checks-cluster", false, "--cluster-require-full-coverage no").await;
    let told = log(cluster.urls()[0].clone()).await;
    has(&told, &["no append-only file"]);
    assert_eq!(told.matches("lazyfree-lazy-expire yes").count(), cluster.nodes.len(), "{told}");
    for node in &cluster.nodes {
        let _: () = node.ask("CLUSTER DELSLOTS 16383").await.unwrap();
    }
    has(&log(cluster.urls()[0].clone()).await, &["WARN", "only 16383 of 16384 slots"]);
}

#[tokio::test]
async fn a_deleted_user_with_much_to_forget_is_freed_beside_what_redis_serves() {
    let redis = RedisServer::start(scratch("lazily"), "");
    redis.ready().await;
    let catalog = "
default_plan: p
plans: { p: { limit_groups: [{ id: g, unit: count, quota: 9999, period: monthly, match: [{ event: x }] }] } }
";
    let options = RedisOptions { urls: vec![redis.url()], ..redis_options() };
    let replica = Replica::start_with(catalog, jiff::tz::db(), MeterOptions::default(), options).await;
    let mut scenario = Scenario::new(vec![("", replica)]);
    // Redis frees only what has more than 64 parts in a thread of its own.
    let table: Vec<_> = (0..200).map(|number| format!("track u x id=t{number}")).collect();
    scenario.run(&table.join("\n")).await;
    let freed = || async {
        let info: String = redis.ask("INFO memory").await.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("lazyfreed_objects:")).unwrap().to_owned();
        line.parse::<u64>().unwrap()
    };
    let before = freed().await;
    scenario.run("delete u").await;
    // It counts once the thread is done.
    for _ in 0..500 {
        if freed().await > before {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(freed().await > before, "the memory");
}
