//! The load generator: a process of its own, so that what it costs can be told from what the server costs.
//!
//! In a closed loop so many callers wait for their answers and call again: that finds what the server can do. In an open one, calls
//! begin at fixed times, whether earlier ones have been answered or not, and latency counts from the time at which a call should
//! have begun: so a server that stalls cannot hide it by holding up those who would notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tollgate::grpc::rls::rate_limit_service_client::RateLimitServiceClient;
use tollgate::grpc::rls::{RateLimitDescriptor, RateLimitRequest, rate_limit_descriptor, rate_limit_response};
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use super::lab::{COMPLETION, EVENT, PROMPT, user_name};
use super::process;

/// HTTP/2 connections that the callers share.
const CONNECTIONS: usize = 4;

/// No latency is told above.
const LONGEST_MICROS: u64 = 60_000_000;

/// What the generator is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub address: SocketAddr,
    pub calls: Calls,
    pub pace: Pace,
    pub users: usize,
    /// Begins every request id, so that no run repeats another's.
    pub run: String,
    pub warm_up: Duration,
    pub measured: Duration,
    /// Processes whose CPU time is read when the measurement begins, and when it ends.
    pub watched: BTreeMap<String, u32>,
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Calls {
    Reserve,
    /// Reserve, then Commit.
    Pairs,
    /// Reserve of more than the quota.
    Denied,
    Track,
    CanUse,
    /// `ShouldRateLimit` of Envoy's rate limit service, by users who are far from their limits.
    ShouldRateLimit,
}

/// When is called.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Pace {
    Closed { in_flight: usize },
    Open { per_second: f64 },
}

/// What the generator saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    pub calls: u64,
    /// Calls that were answered at any time, before and after the measurement as well.
    pub answered: u64,
    pub failed: u64,
    pub seconds: f64,
    pub p50_micros: u64,
    pub p99_micros: u64,
    pub p999_micros: u64,
    pub max_micros: u64,
    /// CPU seconds of each watched process.
    pub cpu_seconds: BTreeMap<String, f64>,
    /// CPU seconds of the generator.
    pub own_cpu_seconds: f64,
}

impl Seen {
    pub fn calls_per_second(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    /// CPU seconds of a watched process for 100,000 calls.
    pub fn cpu_per_100k(&self, process: &str) -> Result<f64> {
        let seconds = self.cpu_seconds.get(process).with_context(|| format!("{process} was not watched"))?;
        Ok(seconds * 1e5 / self.calls as f64)
    }

    pub fn own_cpu_per_100k(&self) -> f64 {
        self.own_cpu_seconds * 1e5 / self.calls as f64
    }
}

/// Has a generator do it, in a process that ends with this.
pub async fn run(job: &Job) -> Result<Seen> {
    let mut child = process::role("load")?.spawn().context("cannot start the load generator")?;
    let mut input = child.stdin.take().context("it is piped")?;
    input.write_all(format!("{}\n", serde_json::to_string(job)?).as_bytes()).await?;
    let mut told = String::new();
    child.stdout.take().context("it is piped")?.read_to_string(&mut told).await?;
    ensure!(child.wait().await?.success(), "the load generator failed");
    let seen: Seen = serde_json::from_str(&told).context("the load generator told nothing")?;
    ensure!(seen.calls > 0, "no call was answered");
    ensure!(seen.failed * 1000 <= seen.calls, "{} of {} calls failed", seen.failed, seen.calls + seen.failed);
    Ok(seen)
}

/// What its process does.
pub fn process() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line)?;
    process::end_with_parent();
    // Where calls come one by one, a thread that wakes another for each of them costs more than the call.
    let workers = if matches!(job.pace, Pace::Open { .. }) { 1 } else { process::cores() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    println!("{}", serde_json::to_string(&runtime.block_on(generate(job))?)?);
    Ok(())
}

/// What all callers share.
struct Load {
    job: Job,
    channels: Vec<Channel>,
    next: AtomicUsize,
    /// Calls that began in it count.
    window: (Instant, Instant),
    calls: AtomicU64,
    failed: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

async fn generate(job: Job) -> Result<Seen> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(Channel::from_shared(format!("http://{}", job.address))?.connect().await?);
    }
    let began = Instant::now();
    let begin = began + job.warm_up;
    let window = (begin, begin + job.measured);
    let latency = Mutex::new(Histogram::new_with_max(LONGEST_MICROS, 3)?);
    let load = Load { job, channels, next: AtomicUsize::new(0), window, calls: 0.into(), failed: 0.into(), latency };
    let load = Arc::new(load);
    let callers = match load.job.pace {
        Pace::Closed { in_flight } => {
            let mut callers = JoinSet::new();
            for _ in 0..in_flight {
                callers.spawn(closed(Arc::clone(&load)));
            }
            callers
        }
        Pace::Open { per_second } => open(&load, began, per_second),
    };
    tokio::time::sleep_until(window.0.into()).await;
    let (before, own, started) = (cpu(&load.job)?, process::cpu_seconds(std::process::id())?, Instant::now());
    let calls = load.calls.load(Ordering::Relaxed);
    tokio::time::sleep_until(window.1.into()).await;
    let (after, own) = (cpu(&load.job)?, process::cpu_seconds(std::process::id())? - own);
    let (seconds, calls) = (started.elapsed().as_secs_f64(), load.calls.load(Ordering::Relaxed) - calls);
    for outcome in callers.join_all().await {
        outcome?;
    }
    let latency = load.latency.lock().unwrap_or_else(PoisonError::into_inner);
    let at = |quantile| latency.value_at_quantile(quantile);
    Ok(Seen {
        calls,
        answered: load.calls.load(Ordering::Relaxed),
        failed: load.failed.load(Ordering::Relaxed),
        seconds,
        p50_micros: at(0.5),
        p99_micros: at(0.99),
        p999_micros: at(0.999),
        max_micros: latency.max(),
        cpu_seconds: after.into_iter().map(|(name, spent)| (name.clone(), spent - before[&name])).collect(),
        own_cpu_seconds: own,
    })
}

fn cpu(job: &Job) -> Result<BTreeMap<String, f64>> {
    job.watched.iter().map(|(name, pid)| Ok((name.clone(), process::cpu_seconds(*pid)?))).collect()
}

/// One caller of the closed loop.
async fn closed(load: Arc<Load>) -> Result<()> {
    let mut latency = Histogram::<u64>::new_with_max(LONGEST_MICROS, 3)?;
    while Instant::now() < load.window.1 {
        let turn = load.next.fetch_add(1, Ordering::Relaxed);
        load.turn(turn, Instant::now(), &mut |micros| latency.record(micros).map_err(Into::into)).await?;
    }
    load.latency.lock().unwrap_or_else(PoisonError::into_inner).add(latency)?;
    Ok(())
}

/// Begins calls at fixed times, from a thread of its own: the runtime's clock is too coarse.
fn open(load: &Arc<Load>, began: Instant, per_second: f64) -> JoinSet<Result<()>> {
    let (load, runtime) = (Arc::clone(load), tokio::runtime::Handle::current());
    let mut callers = JoinSet::new();
    callers.spawn_blocking(move || {
        let mut calls = JoinSet::new();
        for turn in 0.. {
            let due = began + Duration::from_secs_f64(turn as f64 / per_second);
            if due >= load.window.1 {
                break;
            }
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            let load = Arc::clone(&load);
            let call = async move {
                let latency = &load.latency;
                let mut record =
                    |micros| latency.lock().unwrap_or_else(PoisonError::into_inner).record(micros).map_err(Into::into);
                load.turn(turn, due, &mut record).await
            };
            calls.spawn_on(call, &runtime);
            while let Some(outcome) = calls.try_join_next() {
                outcome??;
            }
        }
        runtime.block_on(calls.join_all()).into_iter().collect()
    });
    callers
}

impl Load {
    /// Makes the calls of one turn. Its first call should have begun at this time.
    async fn turn(&self, turn: usize, due: Instant, record: &mut (dyn FnMut(u64) -> Result<()> + Send)) -> Result<()> {
        let channel = &self.channels[turn % self.channels.len()];
        let metering = || MeteringServiceClient::new(channel.clone());
        let user_id = user_name(fastrand::usize(..self.job.users));
        let factor = if self.job.calls == Calls::Denied { 1e9 } else { 1.0 };
        let event = Some(event(factor));
        let request_id = format!("{}-{turn:026}", self.job.run);
        match self.job.calls {
            Calls::Reserve | Calls::Denied | Calls::Pairs => {
                let mut client = metering();
                let request =
                    v1::ReserveRequest { user_id, event, ttl: None, request_id, ..v1::ReserveRequest::default() };
                let Some(reserved) = self.seen(due, client.reserve(request).await, record)? else { return Ok(()) };
                ensure!(reserved.allowed != (self.job.calls == Calls::Denied), "an answer of the wrong kind");
                if self.job.calls == Calls::Pairs {
                    let quantities = [(COMPLETION.0.to_owned(), 350.0)].into();
                    let actual = Some(v1::Actual { quantities, ..v1::Actual::default() });
                    let request = v1::CommitRequest {
                        reservation_id: reserved.reservation_id,
                        actual,
                        ..v1::CommitRequest::default()
                    };
                    let due = Instant::now();
                    self.seen(due, client.commit(request).await, record)?;
                }
            }
            Calls::Track => {
                let request = v1::TrackRequest { user_id, event, request_id, ..v1::TrackRequest::default() };
                self.seen(due, metering().track(request).await, record)?;
            }
            Calls::CanUse => {
                self.seen(due, metering().can_use(v1::CanUseRequest { user_id, event }).await, record)?;
            }
            Calls::ShouldRateLimit => {
                let mut client = RateLimitServiceClient::new(channel.clone());
                let answer = client.should_rate_limit(rate_limit_request(user_id)).await;
                let Some(answer) = self.seen(due, answer, record)? else { return Ok(()) };
                ensure!(answer.overall_code() == rate_limit_response::Code::Ok, "an answer of the wrong kind");
            }
        }
        Ok(())
    }

    /// Counts an answer. None if it is a fault that a caller may meet.
    fn seen<T>(
        &self,
        due: Instant,
        answer: Result<tonic::Response<T>, Status>,
        record: &mut (dyn FnMut(u64) -> Result<()> + Send),
    ) -> Result<Option<T>> {
        match answer {
            Ok(answer) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                if (self.window.0..self.window.1).contains(&due) {
                    let micros = u64::try_from(due.elapsed().as_micros())?;
                    record(micros.clamp(1, LONGEST_MICROS))?;
                }
                Ok(Some(answer.into_inner()))
            }
            Err(status) if status.code() == tonic::Code::Unavailable => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Err(status) => bail!("a call failed: {status}"),
        }
    }
}

/// The event that every call names.
pub fn event(factor: f64) -> v1::Event {
    let quantities = [PROMPT, COMPLETION].map(|(name, number)| (name.to_owned(), number * factor)).into();
    let metadata = [("model".to_owned(), "gpt-4o".to_owned())].into();
    v1::Event { name: EVENT.to_owned(), quantity: None, quantities, metadata }
}

/// What Envoy's rate limit service is asked: the domain, and the event in the user's only descriptor.
pub const RATE_LIMIT_DOMAIN: &str = "beside";
pub const RATE_LIMIT_EVENT: &str = "llm.call";

/// Asks for one hit of this user, as Envoy does.
pub fn rate_limit_request(user_id: String) -> RateLimitRequest {
    let entry = |key: &str, value: String| rate_limit_descriptor::Entry { key: key.to_owned(), value: value.into() };
    let entries = vec![entry("user_id", user_id), entry("event", RATE_LIMIT_EVENT.to_owned())];
    let descriptors = vec![RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }];
    RateLimitRequest { domain: RATE_LIMIT_DOMAIN.to_owned(), descriptors, hits_addend: 0 }
}
