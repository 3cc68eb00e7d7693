//! What happens to Redis: killed and restarted, paused, its scripts forgotten.

use std::time::Duration;

use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::support::load::{self, Load, Plan};
use crate::support::redis_server::RedisServer;
use crate::support::{Replica, nothing_contradicts_itself, scratch};

/// Within this, service resumes by itself.
const RESUMES: Duration = Duration::from_secs(5);

/// Two replicas on one Redis, with a timeout as short as an operator may choose.
async fn replicas(redis: &RedisServer) -> Vec<String> {
    let mut urls = Vec::new();
    for _ in 0..2 {
        let options = RedisOptions {
            urls: vec![redis.url()],
            connections: 2,
            timeout: Duration::from_secs(1),
            sentinels: Vec::new(),
            allow_eviction: false,
        };
        let catalog = load::catalog(Plan::new(Vec::new()).quota);
        let replica = Replica::start_with(&catalog, jiff::tz::db(), MeterOptions::default(), options).await;
        urls.push(format!("http://{}", replica.address));
    }
    urls
}

/// The append-only file has every write before its answer leaves, as far as the process is concerned: `kill -9` loses nothing.
#[tokio::test]
async fn redis_is_killed_and_restarted() {
    let mut redis = RedisServer::start(scratch("killed"), "--appendonly yes");
    redis.ready().await;
    let load = Load::start(Plan::new(replicas(&redis).await));
    load.flows(RESUMES).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        redis.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        redis.restart();
        redis.ready().await;
        load.flows(RESUMES).await;
    }
    let totals = load.audit().await;
    assert!(totals.unanswered > 0, "the fault was felt: {totals:?}");
    nothing_contradicts_itself(&[redis.url()]).await;
    println!("{totals:?}");
}
