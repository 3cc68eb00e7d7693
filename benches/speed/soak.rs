//! A long run at a fixed rate: what grows?

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::load::{self, Calls, Job, Pace};
use super::memory::SERVED_USERS;
use super::process::{self, Scratch};
use super::service;
use super::store::Store;

/// What a soak can be told.
#[derive(Debug, Args)]
pub struct Options {
    /// For how long
    #[arg(default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seconds: u64,
    /// How many calls begin per second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Tell the memory every so many seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
}

/// Loads a server, and tells.
pub async fn run(options: &Options) -> Result<()> {
    let scratch = Scratch::new()?;
    let store = Store::single(scratch.path(), "soak", "--appendonly no").await?;
    let served = service::serve(scratch.path(), &store, &[])?;
    let (server, redis) = (served.id(), store.pid());
    let job = Job {
        address: served.address,
        calls: Calls::Pairs,
        // A turn makes two calls.
        pace: Pace::Open { per_second: f64::from(options.rate) / 2.0 },
        users: SERVED_USERS,
        run: "soak".to_owned(),
        warm_up: Duration::ZERO,
        measured: Duration::from_secs(options.seconds),
        watched: BTreeMap::from([("server".to_owned(), server), ("redis".to_owned(), redis)]),
    };
    println!("Reserve and Commit of {SERVED_USERS} users, {} calls/s for {} s", options.rate, options.seconds);
    let started = Instant::now();
    let tell = || -> Result<()> {
        let megabytes = |pid| Ok::<_, anyhow::Error>(process::resident_bytes(pid)? as f64 / 1e6);
        let at = started.elapsed().as_secs();
        println!("{at:>7} s   server {:>8.1} MB   redis {:>8.1} MB", megabytes(server)?, megabytes(redis)?);
        Ok(())
    };
    tell()?;
    let mut load = std::pin::pin!(load::run(&job));
    let mut ticks = tokio::time::interval(Duration::from_secs(options.every));
    ticks.tick().await;
    let seen = loop {
        tokio::select! {
            seen = &mut load => break seen?,
            _ = ticks.tick() => tell()?,
        }
    };
    tell()?;
    println!(
        "{} calls, {} failed; latency p50 {} us, p99 {} us, p99.9 {} us, max {} us",
        seen.calls, seen.failed, seen.p50_micros, seen.p99_micros, seen.p999_micros, seen.max_micros
    );
    println!(
        "CPU per 100,000 calls: server {:.2} s, redis {:.2} s",
        seen.cpu_per_100k("server")?,
        seen.cpu_per_100k("redis")?
    );
    Ok(())
}
