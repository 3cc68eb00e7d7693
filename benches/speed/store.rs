//! A Redis of the benchmark's own, or a cluster of three: what its scripts have cost, what its users take, and `return 1` on it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use redis::aio::MultiplexedConnection;
use tollgate::domain::id::Owner;

use super::common::redis_cluster::RedisCluster;
use super::common::redis_server::RedisServer;
use super::process;

/// One or more masters. They end when this is dropped.
pub struct Store {
    nodes: Vec<RedisServer>,
    administration: Vec<MultiplexedConnection>,
    /// The digest of `return 1`.
    return_one: String,
}

/// What scripts have cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Microseconds in scripts, as Redis counts them.
    pub micros: f64,
    /// How often a script was called.
    pub calls: f64,
    /// CPU seconds of the processes, whatever for.
    pub cpu_seconds: f64,
}

/// What `return 1` costs here and now.
#[derive(Debug, Clone, Copy)]
pub struct ReturnOne {
    pub micros: f64,
    pub per_second: f64,
}

impl std::ops::Sub for Spent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            micros: self.micros - before.micros,
            calls: self.calls - before.calls,
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
        }
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, more: Self) {
        self.micros += more.micros;
        self.calls += more.calls;
        self.cpu_seconds += more.cpu_seconds;
    }
}

impl Store {
    /// A single Redis that writes only into a directory of this name.
    pub async fn single(scratch: &Path, name: &str, arguments: &str) -> Result<Self> {
        Self::of(vec![RedisServer::start(scratch.join(name), arguments)]).await
    }

    /// A cluster of three masters.
    pub async fn cluster(scratch: &Path) -> Result<Self> {
        let start = |index| {
            RedisServer::start(scratch.join(format!("cluster-{index}")), "--cluster-enabled yes --appendonly no")
        };
        Self::of(RedisCluster::form((0..3).map(start).collect()).await.nodes).await
    }

    async fn of(nodes: Vec<RedisServer>) -> Result<Self> {
        let mut administration = Vec::new();
        let mut return_one = String::new();
        for node in &nodes {
            let mut connection = node.connection().await;
            return_one = redis::cmd("SCRIPT").arg("LOAD").arg("return 1").query_async(&mut connection).await?;
            administration.push(connection);
        }
        Ok(Self { nodes, administration, return_one })
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    pub fn is_cluster(&self) -> bool {
        self.nodes.len() > 1
    }

    /// The process of the only node.
    pub fn pid(&self) -> u32 {
        self.nodes[0].id()
    }

    /// A connection to the only node.
    pub fn connection(&self) -> MultiplexedConnection {
        self.administration[0].clone()
    }

    /// Deletes everything.
    pub async fn flush(&self) -> Result<()> {
        for connection in &self.administration {
            let _: () = redis::cmd("FLUSHALL").arg("SYNC").query_async(&mut connection.clone()).await?;
        }
        Ok(())
    }

    /// What scripts have cost on all nodes since they began.
    pub async fn spent(&self) -> Result<Spent> {
        let mut sum = Spent::default();
        for (node, connection) in self.nodes.iter().zip(&self.administration) {
            let told: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection.clone()).await?;
            for line in told.lines() {
                let Some((command, rest)) = line.split_once(':') else { continue };
                let command = command.trim_start_matches("cmdstat_").trim_end_matches("_ro");
                if ["eval", "evalsha", "fcall"].contains(&command) {
                    sum.calls += field(rest, "calls")?;
                    sum.micros += field(rest, "usec")?;
                }
            }
            sum.cpu_seconds += process::cpu_seconds(node.id())?;
        }
        Ok(sum)
    }

    /// How often the only node has executed each command since it began, those that scripts call included.
    pub async fn commands(&self) -> Result<BTreeMap<String, f64>> {
        let told: String = redis::cmd("INFO").arg("commandstats").query_async(&mut self.connection()).await?;
        let lines = told.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'));
        lines.map(|(command, rest)| Ok((command.to_owned(), field(rest, "calls")?))).collect()
    }

    /// How many keys of the only node are strings.
    pub async fn strings(&self) -> Result<usize> {
        let (mut cursor, mut count) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("COUNT").arg(1000).arg("TYPE").arg("string");
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut self.connection()).await?;
            count += keys.len();
            cursor = next;
            if cursor == 0 {
                return Ok(count);
            }
        }
    }

    /// What the script `return 1` costs on the first node, by `redis-benchmark` with 16 calls in flight on each of 50 connections.
    pub async fn return_one(&self, calls: usize) -> Result<ReturnOne> {
        let port = self.nodes[0].port().to_string();
        let calls = calls.to_string();
        let before = self.spent().await?;
        let arguments = ["-p", &port, "-P", "16", "-n", &calls, "--csv", "EVALSHA", &self.return_one, "0"];
        let told = match process::output("redis-benchmark", &arguments).await {
            Ok(told) => told,
            Err(error) => process::output("valkey-benchmark", &arguments).await.map_err(|_| error)?,
        };
        let spent = self.spent().await? - before;
        ensure!(spent.calls > 0.0, "redis-benchmark called no script");
        let row = told.lines().last().context("redis-benchmark says nothing")?;
        let per_second = row.split("\",\"").nth(1).context("redis-benchmark tells no rate")?;
        Ok(ReturnOne { micros: spent.micros / spent.calls, per_second: per_second.trim_matches('"').parse()? })
    }

    /// Gives users everything that another one has, whatever that is. Takes the place of as many calls.
    pub async fn copy_user(&self, from: &Owner, to: &[Owner]) -> Result<()> {
        ensure!(!self.is_cluster(), "the nodes of a cluster copy only within a slot");
        let mut connection = self.connection();
        let (own, tag) = (keys_of(from), format!("{{{}}}", from.tag()));
        let mut found: Vec<String> = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let (next, some): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&own)
                .arg("COUNT")
                .arg(10_000)
                .query_async(&mut connection)
                .await?;
            found.extend(some);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let per_trip = (10_000 / found.len().max(1)).max(1);
        for some in to.chunks(per_trip) {
            let mut pipeline = redis::pipe();
            for owner in some {
                let theirs = format!("{{{}}}", owner.tag());
                for key in &found {
                    pipeline.cmd("COPY").arg(key).arg(key.replace(&tag, &theirs)).ignore();
                }
            }
            let _: () = pipeline.query_async(&mut connection).await?;
        }
        Ok(())
    }

    /// The bytes that Redis has allocated.
    pub async fn used_bytes(&self) -> Result<f64> {
        let told: String = redis::cmd("INFO").arg("memory").query_async(&mut self.connection()).await?;
        let used = told.lines().find_map(|line| line.strip_prefix("used_memory:")).context("no used_memory")?;
        Ok(used.trim().parse()?)
    }
}

fn keys_of(owner: &Owner) -> String {
    format!("*{{{}}}*", owner.tag())
}

/// `name=number` among others.
fn field(text: &str, name: &str) -> Result<f64> {
    let value = text.split(',').find_map(|part| part.split_once('=').filter(|(key, _)| *key == name));
    Ok(value.with_context(|| format!("Redis does not tell {name}"))?.1.trim().parse()?)
}
