//! Replays a trace of LLM requests against a running Tollgate, and checks that every user's usage is exactly what was committed.
//!
//! `cargo run --release --example replay -- TRACE.csv`, where the trace has the columns TIMESTAMP, ContextTokens and
//! GeneratedTokens, as the Azure LLM inference traces do. Users are drawn by a Zipf law and are fresh in each run, on the plan
//! `load` of the example catalog. Each request reserves an upper bound, then commits its tokens, or is released. Calls are made as
//! fast as `--in-flight` allows, not at the trace's pace.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use comfy_table::{Cell, CellAlignment, Table};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};
use tokio::task::JoinSet;
use tollgate::domain::counted::counted;
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tollgate::grpc::v1::subscription_service_client::SubscriptionServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

#[derive(Debug, Parser)]
#[command(about = "Replays a trace of LLM requests against a running Tollgate and checks the totals")]
struct Options {
    /// The trace: TIMESTAMP,ContextTokens,GeneratedTokens
    trace: PathBuf,
    /// The address of Tollgate
    #[arg(long, default_value = "http://127.0.0.1:50051")]
    addr: String,
    /// The number of users the requests are drawn for
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// The exponent of the Zipf law: the larger, the more of it is the first users'
    #[arg(long, default_value_t = 1.1)]
    zipf: f64,
    /// Draws the same users and releases again
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of requests in flight at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    in_flight: u32,
    /// The share of requests that are released instead of committed, 0 to 1
    #[arg(long, default_value_t = 0.05)]
    release: f64,
    /// The completion tokens that a request reserves
    #[arg(long, default_value_t = 2048)]
    max_tokens: u64,
    /// The plan that the users are put on
    #[arg(long, default_value = "load")]
    plan: String,
    /// Leave the users in place at the end, to look at them
    #[arg(long)]
    keep: bool,
}

/// A request of the trace, and what becomes of it.
#[derive(Debug, Clone)]
struct Work {
    user: usize,
    prompt: u64,
    completion: u64,
    release: bool,
}

/// The usage that a user must have in the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Total {
    prompt: u64,
    completion: u64,
    calls: u64,
}

impl Total {
    fn add(&mut self, other: &Self) {
        self.prompt += other.prompt;
        self.completion += other.completion;
        self.calls += other.calls;
    }
}

/// The results of one worker.
struct Seen {
    totals: BTreeMap<usize, Total>,
    latency: BTreeMap<&'static str, Histogram<u64>>,
    denied: u64,
    overages: u64,
    retries: u64,
}

type Metering = MeteringServiceClient<Channel>;

#[derive(Clone)]
struct Clients {
    metering: Metering,
    subscriptions: SubscriptionServiceClient<Channel>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match replay(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn replay(options: Options) -> Result<()> {
    ensure!((0.0..=1.0).contains(&options.release), "--release is a share from 0 to 1");
    let work = Arc::new(read_trace(&options)?);
    let channel = Channel::from_shared(options.addr.clone())
        .context("--addr is a URL such as http://127.0.0.1:50051")?
        .connect()
        .await
        .with_context(|| {
            format!("cannot reach Tollgate at {}; start it with `cargo run --release -- serve`", options.addr)
        })?;
    let clients = Clients {
        metering: MeteringServiceClient::new(channel.clone()),
        subscriptions: SubscriptionServiceClient::new(channel),
    };
    let run = format!("replay-{:08x}", rand::rng().random::<u32>());
    let mut drawn: Vec<usize> = work.iter().map(|work| work.user).collect();
    drawn.sort_unstable();
    drawn.dedup();
    let (requests, users) = (counted(work.len(), "request"), counted(drawn.len(), "user"));
    println!("{requests} for {users} of {run}, {} in flight", options.in_flight);

    for_each(&drawn, &clients, {
        let (run, plan) = (run.clone(), options.plan.clone());
        move |mut clients, user| {
            let request = v1::UpsertSubscriptionRequest {
                user_id: user_id(&run, user),
                plan_id: plan.clone(),
                ..v1::UpsertSubscriptionRequest::default()
            };
            async move { clients.subscriptions.upsert_subscription(request).await.map(drop) }
        }
    })
    .await
    .context("cannot put the users on the plan")?;

    let started = Instant::now();
    let seen = run_all(&options, &run, &work, &clients).await?;
    let elapsed = started.elapsed();
    report(&seen, work.len(), elapsed);
    let wrong = verify(&run, &drawn, &seen.totals, &clients).await?;
    if !options.keep {
        for_each(&drawn, &clients, {
            let run = run.clone();
            move |mut clients, user| {
                let request = v1::DeleteUserRequest { user_id: user_id(&run, user) };
                async move { clients.subscriptions.delete_user(request).await.map(drop) }
            }
        })
        .await
        .context("cannot delete the users")?;
    }
    if !wrong.is_empty() {
        bail!("{} of {} differ:\n{}", wrong.len(), counted(drawn.len(), "user"), wrong.join("\n"));
    }
    println!("OK: what every user has used is exactly what was committed, and nothing is held");
    Ok(())
}

fn user_id(run: &str, user: usize) -> String {
    format!("{run}-{user}")
}

fn read_trace(options: &Options) -> Result<Vec<Work>> {
    #[derive(serde::Deserialize)]
    struct Line {
        #[serde(rename = "ContextTokens")]
        prompt: u64,
        #[serde(rename = "GeneratedTokens")]
        completion: u64,
    }
    let mut random = StdRng::seed_from_u64(options.seed);
    let zipf = Zipf::new(f64::from(options.users), options.zipf).context("--zipf is a number of at least 0")?;
    let mut reader = csv::Reader::from_path(&options.trace)
        .with_context(|| format!("cannot read the trace {}", options.trace.display()))?;
    let mut work = Vec::new();
    for line in reader.deserialize() {
        let Line { prompt, completion } = line.context("the trace has other columns, or a line that is broken")?;
        let user = zipf.sample(&mut random) as usize;
        let release = random.random_bool(options.release);
        work.push(Work { user, prompt, completion, release });
    }
    ensure!(!work.is_empty(), "the trace is empty");
    Ok(work)
}

/// Calls once per user, some at a time.
async fn for_each<F, C>(users: &[usize], clients: &Clients, call: F) -> Result<()>
where
    F: Fn(Clients, usize) -> C,
    C: Future<Output = Result<(), Status>> + Send + 'static,
{
    for some in users.chunks(64) {
        let mut calls = JoinSet::new();
        for user in some {
            calls.spawn(call(clients.clone(), *user));
        }
        while let Some(outcome) = calls.join_next().await {
            outcome??;
        }
    }
    Ok(())
}

async fn run_all(options: &Options, run: &str, work: &Arc<Vec<Work>>, clients: &Clients) -> Result<Seen> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}")?;
    let bar = ProgressBar::new(work.len() as u64).with_style(style);
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..options.in_flight {
        let (work, next, bar) = (Arc::clone(work), Arc::clone(&next), bar.clone());
        let mut worker = Worker {
            run: run.to_owned(),
            max_tokens: options.max_tokens,
            clients: clients.clone(),
            seen: Seen::new()?,
        };
        workers.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = work.get(index) else { break };
                worker.request(index, request).await?;
                bar.inc(1);
            }
            anyhow::Ok(worker.seen)
        });
    }
    let mut all = Seen::new()?;
    while let Some(seen) = workers.join_next().await {
        all.merge(seen??)?;
    }
    bar.finish_and_clear();
    Ok(all)
}

impl Seen {
    fn new() -> Result<Self> {
        let mut latency = BTreeMap::new();
        for name in ["Reserve", "Commit", "Release"] {
            latency.insert(name, Histogram::new_with_max(60_000_000, 3)?);
        }
        Ok(Self { totals: BTreeMap::new(), latency, denied: 0, overages: 0, retries: 0 })
    }

    fn merge(&mut self, other: Self) -> Result<()> {
        let Self { totals, latency, denied, overages, retries } = other;
        for (user, total) in totals {
            self.totals.entry(user).or_default().add(&total);
        }
        for (name, histogram) in latency {
            self.latency.get_mut(name).context("the same calls everywhere")?.add(histogram)?;
        }
        self.denied += denied;
        self.overages += overages;
        self.retries += retries;
        Ok(())
    }
}

struct Worker {
    run: String,
    max_tokens: u64,
    clients: Clients,
    seen: Seen,
}

impl Worker {
    async fn request(&mut self, index: usize, work: &Work) -> Result<()> {
        let quantities = BTreeMap::from([
            ("prompt_tokens".to_owned(), work.prompt as f64),
            ("completion_tokens".to_owned(), self.max_tokens as f64),
        ]);
        let event = v1::Event { name: "llm.tokens".to_owned(), quantities, ..v1::Event::default() };
        let request = v1::ReserveRequest {
            user_id: user_id(&self.run, work.user),
            event: Some(event),
            request_id: format!("request-{index}"),
            ..v1::ReserveRequest::default()
        };
        let call = |mut metering: Metering| {
            let request = request.clone();
            async move { metering.reserve(request).await }
        };
        let reserved = self.timed("Reserve", call).await?;
        if !reserved.allowed {
            self.seen.denied += 1;
            return Ok(());
        }
        ensure!(
            !reserved.degraded,
            "Tollgate fails open and has lost its Redis: what it counts now cannot be compared"
        );
        let reservation_id = reserved.reservation_id;
        if work.release {
            let request = v1::ReleaseRequest { reservation_id, reason: "the replay releases some".to_owned() };
            let call = |mut metering: Metering| {
                let request = request.clone();
                async move { metering.release(request).await }
            };
            self.timed("Release", call).await?;
            return Ok(());
        }
        let quantities = BTreeMap::from([("completion_tokens".to_owned(), work.completion as f64)]);
        let request = v1::CommitRequest {
            reservation_id,
            actual: Some(v1::Actual { quantities, ..v1::Actual::default() }),
            ..v1::CommitRequest::default()
        };
        let call = |mut metering: Metering| {
            let request = request.clone();
            async move { metering.commit(request).await }
        };
        let committed = self.timed("Commit", call).await?;
        self.seen.overages += u64::from(committed.overage);
        let total = Total { prompt: work.prompt, completion: work.completion, calls: 1 };
        self.seen.totals.entry(work.user).or_default().add(&total);
        Ok(())
    }

    /// Makes a call, and makes it again where the outcome is unknown: the same id finds it.
    async fn timed<T, C>(&mut self, name: &'static str, call: impl Fn(Metering) -> C) -> Result<T>
    where
        C: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut attempts = 0;
        loop {
            match call(self.clients.metering.clone()).await {
                Ok(answer) => {
                    let micros = u64::try_from(started.elapsed().as_micros())?.clamp(1, 60_000_000);
                    self.seen.latency.get_mut(name).context("a known call")?.record(micros)?;
                    return Ok(answer.into_inner());
                }
                Err(status) if status.code() == Code::Unavailable && attempts < 10 => {
                    attempts += 1;
                    self.seen.retries += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(status) => return Err(status).context(name),
            }
        }
    }
}

fn report(seen: &Seen, requests: usize, elapsed: Duration) {
    let calls: u64 = seen.latency.values().map(Histogram::len).sum();
    let per_second = calls as f64 / elapsed.as_secs_f64();
    let (requests, calls) = (counted(requests, "request"), counted(calls, "call"));
    println!("{requests}, {calls} in {:.2} s: {per_second:.0} calls/s", elapsed.as_secs_f64());
    println!("denied {}, committed above the reservation {}, retried {}", seen.denied, seen.overages, seen.retries);
    let mut table = Table::new();
    table.set_header(["call", "count", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"]);
    for (name, histogram) in &seen.latency {
        let ms = |quantile| format!("{:.2}", histogram.value_at_quantile(quantile) as f64 / 1000.0);
        let values = [histogram.len().to_string(), ms(0.5), ms(0.9), ms(0.99), ms(0.999), ms(1.0)];
        table.add_row(std::iter::once(Cell::new(name)).chain(values.map(right)));
    }
    println!("{table}");
    let mut heaviest: Vec<_> = seen.totals.iter().collect();
    heaviest.sort_by_key(|(user, total)| (std::cmp::Reverse(total.prompt + total.completion), **user));
    let mut table = Table::new();
    table.set_header(["user", "calls", "prompt tokens", "completion tokens", "tokens"]);
    for (user, total) in heaviest.into_iter().take(10) {
        let sum = total.prompt + total.completion;
        let values = [total.calls, total.prompt, total.completion, sum].map(|value| right(value.to_string()));
        table.add_row(std::iter::once(Cell::new(user)).chain(values));
    }
    println!("{table}");
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Reads every user's usage back. Returns a line per difference.
async fn verify(run: &str, users: &[usize], totals: &BTreeMap<usize, Total>, clients: &Clients) -> Result<Vec<String>> {
    let mut metering = clients.metering.clone();
    let (mut wrong, mut all) = (Vec::new(), Total::default());
    let mut used = 0.0;
    for user in users {
        let total = totals.get(user).copied().unwrap_or_default();
        all.add(&total);
        let request = v1::GetUsageRequest { user_id: user_id(run, *user), event: String::new(), at: None };
        let usage = metering.get_usage(request).await.context("GetUsage")?.into_inner();
        // The example catalog prices a prompt token at 0.00025 cents, a completion token at 0.001: 250 and 1000 millionths.
        let spend = (total.prompt * 250 + total.completion * 1000) as f64 / 1e6;
        let expected = [
            ("tokens_total", (total.prompt + total.completion) as f64),
            ("calls", total.calls as f64),
            ("spend", spend),
        ];
        for (group, expected) in expected {
            let Some(limit) = usage.limits.iter().find(|limit| limit.limit_group_id == group) else {
                bail!("the plan has no group {group}: use the plan `load` of the example catalog");
            };
            if limit.used != expected || limit.held != 0.0 {
                wrong.push(format!(
                    "user {user}, {group}: used {}, held {}, committed {expected}",
                    limit.used, limit.held
                ));
            }
            if group == "tokens_total" {
                used += limit.used;
            }
        }
    }
    let Total { prompt, completion, calls } = all;
    let (tokens, calls) = (counted(prompt + completion, "token"), counted(calls, "call"));
    println!("committed: {prompt} prompt + {completion} completion = {tokens} in {calls}");
    println!("counted:   {}", counted(used as u64, "token"));
    Ok(wrong)
}
