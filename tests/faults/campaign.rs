//! What all campaigns share: replicas on a Redis that is to be broken, load, and what must be true after each fault.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::support::load::{self, Load, Plan, Totals};
use crate::support::redis_server::RedisServer;
use crate::support::{Replica, scratch};

/// Within this, service resumes by itself.
pub const RESUMES: Duration = Duration::from_secs(5);

/// The seeds of a campaign: one, or as many as the environment asks for.
pub fn seeds() -> Range<u64> {
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: write a number")),
        Err(_) => default,
    };
    let first = number("TOLLGATE_FAULTS_SEED", 1);
    first..first + number("TOLLGATE_FAULTS_ROUNDS", 1)
}

/// Runs a campaign with each of them.
pub async fn each_round(campaign: impl AsyncFn(u64)) {
    for seed in seeds() {
        println!("seed {seed}");
        campaign(seed).await;
    }
}

/// A Redis with an append-only file, each write of which is on the disk before it is acknowledged: nothing may be lost then.
pub async fn durable_redis(name: &str, more: &str) -> RedisServer {
    let directory = scratch(name);
    // Of an earlier round.
    let _: Result<(), _> = std::fs::remove_dir_all(&directory);
    let redis = RedisServer::start(directory, &format!("--appendonly yes --appendfsync always {more}"));
    redis.ready().await;
    redis
}

/// One replica with the catalog of the load.
pub async fn replica(redis_url: String) -> SocketAddr {
    replica_with(redis_url, MeterOptions::default()).await
}

pub async fn replica_with(redis_url: String, options: MeterOptions) -> SocketAddr {
    let catalog = load::catalog(load::QUOTA);
    // As short as an operator may choose it.
    let timeout = Duration::from_secs(1);
    let redis = RedisOptions {
        urls: vec![redis_url],
        sentinels: Vec::new(),
        connections: 2,
        batch: 32,
        timeout,
        allow_eviction: false,
        ..RedisOptions::default()
    };
    Replica::start_with(&catalog, jiff::tz::db(), options, redis).await.address
}

/// Two of them.
pub async fn replicas(redis_url: &str) -> Vec<SocketAddr> {
    vec![replica(redis_url.to_owned()).await, replica(redis_url.to_owned()).await]
}

/// As load asks them.
pub fn urls(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(|address| format!("http://{address}")).collect()
}

/// What a fault must have done to the load, or it was none.
#[derive(Debug, Clone, Copy)]
pub enum Felt {
    /// Some calls got no answer.
    Unanswered,
    /// Some calls took effect without an answer, and a later attempt found that.
    Replayed,
}

impl Felt {
    fn count(self, totals: &Totals) -> u64 {
        match self {
            Self::Unanswered => totals.unanswered,
            Self::Replayed => totals.replayed,
        }
    }
}

/// A campaign under way.
pub struct Campaign {
    name: String,
    seed: u64,
    load: Load,
    random: fastrand::Rng,
    resumed: Vec<Duration>,
}

impl Campaign {
    /// Starts load, and waits until it flows. The first fault comes at a random moment after that.
    pub async fn start(name: &str, plan: Plan) -> Self {
        let (seed, random) = (plan.seed, fastrand::Rng::with_seed(plan.seed));
        let load = Load::start(plan);
        load.flows(Duration::from_secs(30)).await;
        Self { name: name.to_owned(), seed, load, random, resumed: Vec::new() }
    }

    /// For the campaign's own choices.
    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    /// Lets so many milliseconds pass.
    pub async fn wait(&mut self, ms: Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(ms))).await;
    }

    /// Waits until the load has felt the fault, on a machine that may be busy. Whether it has is for the end to judge.
    pub async fn feels(&self, felt: &[Felt]) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && felt.iter().any(|effect| effect.count(&self.load.totals()) == 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The fault is over: service resumes by itself.
    pub async fn resumes(&mut self) {
        self.resumed.push(self.load.flows(RESUMES).await);
    }

    /// Ends the load before the audit, for who has something to do between them.
    pub async fn stop(&mut self) {
        self.load.stop().await;
    }

    /// Ends the load, and audits it.
    pub async fn end(self, felt: &[Felt]) {
        let totals = self.load.audit().await;
        println!("{}, seed {}: resumed in {:?}; {totals:?}", self.name, self.seed, self.resumed);
        for effect in felt {
            let count = effect.count(&totals);
            assert!(count > 0, "{}, seed {}: the fault was not felt ({effect:?}): {totals:?}", self.name, self.seed);
        }
    }
}
