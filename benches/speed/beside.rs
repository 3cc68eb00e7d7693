//! `./dev bench beside PROGRAM`: Tollgate beside Limitador, by the same `ShouldRateLimit` under the same load, with three limits that
//! match.
//!
//! Each server has a Redis of its own, if it needs one. They take turns within a round, so that whatever else the machine does hits all of
//! them alike. After that two servers of each kind share a Redis, and callers race for the last hits of a limit: that shows which answers
//! are exact.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::task::JoinSet;
use tollgate::grpc::rls::RateLimitResponse;
use tollgate::grpc::rls::rate_limit_response::Code;
use tollgate::grpc::rls::rate_limit_service_client::RateLimitServiceClient;
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tonic::transport::Channel;

use super::common::served::Served;
use super::echo::Echo;
use super::limitador::{self, Limitador, Storage};
use super::load::{self, Calls, Job, Pace, RATE_LIMIT_EVENT, rate_limit_request};
use super::process::Scratch;
use super::report;
use super::results::Results;
use super::scripts::IN_FLIGHT;
use super::service::serve_catalog;
use super::store::Store;
use super::targets::ratio;

/// What the comparison can be told.
#[derive(Debug, Args)]
pub struct Options {
    /// The program of Limitador's server
    program: PathBuf,
    /// How often each server is measured; the figures are medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many users call
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// Requests per second of the load at a fixed rate
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// One short round, to see that everything works: its figures mean little
    #[arg(long)]
    quick: bool,
    /// Write benches/speed/beside-results.md, and the section of docs/operating/benchmarks.md
    #[arg(long, conflicts_with = "quick")]
    write: bool,
}

/// A quota that no run can use up.
const PLENTY: u64 = 1_000_000_000_000;

/// The quota that callers race for, and how often each race asks.
const SCARCE: u64 = 1_000;
const ASKED: u64 = 4_000;

/// A server of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tollgate,
    /// No two requests share a command.
    TollgateUnbatched,
    Limitador(Storage),
}

/// All of them, by the names that the tables have.
const KINDS: [(Kind, &str); 5] = [
    (Kind::Tollgate, "Tollgate"),
    (Kind::TollgateUnbatched, "Tollgate, `--redis-batch 1`"),
    (Kind::Limitador(Storage::Redis), "Limitador, `redis`"),
    (Kind::Limitador(Storage::RedisCached), "Limitador, `redis_cached`"),
    (Kind::Limitador(Storage::Memory), "Limitador, `memory`"),
];

/// The server that only answers, as Tollgate has answered.
const ECHO: &str = "echo";

impl Kind {
    fn needs_redis(self) -> bool {
        self != Self::Limitador(Storage::Memory)
    }

    /// Whether servers of this kind can count together, and there is something to be seen by it.
    fn races(self) -> bool {
        self.needs_redis() && self != Self::TollgateUnbatched
    }
}

/// A process that answers. It ends when this is dropped.
enum Process {
    Tollgate(Box<Served>),
    Limitador(Limitador),
    Echo(Echo),
}

impl Process {
    fn pid(&self) -> Result<u32> {
        match self {
            Self::Tollgate(served) => Ok(served.id()),
            Self::Limitador(limitador) => limitador.pid(),
            Self::Echo(echo) => echo.pid(),
        }
    }

    fn address(&self) -> Result<SocketAddr> {
        match self {
            Self::Tollgate(served) => served.envoy.context("it answers Envoy"),
            Self::Limitador(limitador) => Ok(limitador.address),
            Self::Echo(echo) => Ok(echo.address),
        }
    }
}

/// A server with its Redis.
struct Contender {
    name: &'static str,
    process: Process,
    store: Option<Store>,
}

/// What servers are started with.
struct Start<'a> {
    program: &'a Path,
    scratch: &'a Path,
    users: usize,
}

impl Start<'_> {
    /// Starts a server with three limits of this quota, which match every request.
    async fn server(&self, kind: Kind, file: &str, store: Option<&Store>, quota: u64) -> Result<Process> {
        let files = self.scratch.join(file);
        let url = store.and_then(|store| store.urls().into_iter().next());
        Ok(match kind {
            Kind::Tollgate | Kind::TollgateUnbatched => {
                let mut flags = vec!["--envoy-listen", "127.0.0.1:0"];
                if kind == Kind::TollgateUnbatched {
                    flags.extend(["--redis-batch", "1"]);
                }
                let store = store.context("Tollgate needs a Redis")?;
                let served = serve_catalog(&files.with_extension("yaml"), &catalog(quota), store, &flags)?;
                Process::Tollgate(Box::new(served))
            }
            Kind::Limitador(storage) => {
                // Room for three counters of each user, and of others.
                let counters = (self.users * 6).max(10_000);
                let limitador =
                    Limitador::start(self.program, &files, (storage, url.as_deref()), quota, counters).await?;
                Process::Limitador(limitador)
            }
        })
    }

    /// Starts a server under a plan that allows everything, and returns its first answer too.
    async fn contender(&self, kind: Kind, name: &'static str, index: usize) -> Result<(Contender, RateLimitResponse)> {
        let store = match kind.needs_redis() {
            true => Some(Store::single(self.scratch, &format!("beside-{index}"), "--appendonly no").await?),
            false => None,
        };
        let process = self.server(kind, &format!("server-{index}"), store.as_ref(), PLENTY).await?;
        let answer =
            check(&process, store.as_ref()).await.with_context(|| format!("{name} does not count as the others do"))?;
        Ok((Contender { name, process, store }, answer))
    }
}

/// Checks that a request is allowed and counts one hit under each of three limits.
async fn check(process: &Process, store: Option<&Store>) -> Result<RateLimitResponse> {
    let user = "checked";
    let answer = ask(&mut client(process.address()?).await?, user).await?;
    ensure!(answer.overall_code() == Code::Ok, "the first request is denied");
    match process {
        Process::Tollgate(served) => {
            let mut metering = MeteringServiceClient::connect(format!("http://{}", served.address)).await?;
            let request = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
            let limits = metering.get_usage(request).await?.into_inner().limits;
            let counted = limits.iter().filter(|limit| (limit.used - 1.0).abs() < f64::EPSILON).count();
            ensure!(counted == 3 && limits.len() == 3, "{counted} of {} limits count the request", limits.len());
        }
        Process::Limitador(limitador) => limitador.check_counted(store).await?,
        Process::Echo(_) => {}
    }
    Ok(answer)
}

async fn client(address: SocketAddr) -> Result<RateLimitServiceClient<Channel>> {
    RateLimitServiceClient::connect(format!("http://{address}")).await.context("cannot reach the server")
}

async fn ask(client: &mut RateLimitServiceClient<Channel>, user: &str) -> Result<RateLimitResponse> {
    Ok(client.should_rate_limit(rate_limit_request(user.to_owned())).await?.into_inner())
}

/// The catalog: so many calls in an hour, in a day and in a month, for each user.
fn catalog(quota: u64) -> String {
    let mut text = "default_plan: p\nplans:\n  p:\n    name: P\n    limit_groups:\n".to_owned();
    for (id, period) in [("hour", "hourly"), ("day", "daily"), ("month", "monthly")] {
        let _: std::fmt::Result = writeln!(
            text,
            "      - {{ id: {id}, label: Calls, unit: count, period: {period}, quota: {quota}, match: [{{ event: {RATE_LIMIT_EVENT} }}] }}"
        );
    }
    text
}

/// One of the two loads.
struct Load {
    /// Begins the names of its results.
    name: &'static str,
    pace: Pace,
}

/// Runs the comparison.
pub async fn run(options: &Options) -> Result<()> {
    let version = limitador::version(&options.program).await?;
    let scratch = Scratch::new()?;
    let start = Start { program: &options.program, scratch: scratch.path(), users: options.users as usize };
    let (rounds, warm_up, measured) = match options.quick {
        true => (1, Duration::from_millis(300), Duration::from_millis(700)),
        false => (options.rounds, Duration::from_secs(1), Duration::from_secs(4)),
    };
    let loads = [
        Load { name: "saturated", pace: Pace::Closed { in_flight: IN_FLIGHT } },
        Load { name: "fixed", pace: Pace::Open { per_second: f64::from(options.rate) } },
    ];
    let mut contenders = Vec::new();
    let mut answers = Vec::new();
    for (index, (kind, name)) in KINDS.into_iter().enumerate() {
        let (contender, answer) = start.contender(kind, name, index).await?;
        contenders.push(contender);
        answers.push(answer);
    }
    let echo = Process::Echo(Echo::should_rate_limit(&answers[0]).await?);
    contenders.push(Contender { name: ECHO, process: echo, store: None });
    let mut results = Results::default();
    for round in 0..rounds {
        for load in &loads {
            eprintln!("round {} of {rounds}: {}", round + 1, load.name);
            for contender in &contenders {
                let job = Job {
                    address: contender.process.address()?,
                    calls: Calls::ShouldRateLimit,
                    pace: load.pace,
                    users: start.users,
                    run: format!("beside-{round:03}"),
                    warm_up,
                    measured,
                    watched: BTreeMap::new(),
                };
                measure(contender, load, job, &mut results).await.context(contender.name)?;
            }
        }
    }
    drop(contenders);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}: races", round + 1);
        for (index, (kind, name)) in KINDS.into_iter().enumerate().filter(|(_, (kind, _))| kind.races()) {
            let allowed = race(&start, kind, &format!("race-{round}-{index}")).await.context(name)?;
            results.add(&format!("race/{name}"), "allowed", allowed as f64);
        }
    }
    let text = tables(&results, options, rounds, &version);
    println!("{text}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let raw = root.join("target").join("beside.json");
    std::fs::write(&raw, results.json()?).with_context(|| format!("cannot write {}", raw.display()))?;
    if options.write { report::write_beside(&text) } else { Ok(()) }
}

/// Puts one server under one load.
async fn measure(contender: &Contender, load: &Load, job: Job, results: &mut Results) -> Result<()> {
    let mut watched = BTreeMap::from([("server".to_owned(), contender.process.pid()?)]);
    if let Some(store) = &contender.store {
        watched.insert("redis".to_owned(), store.pid());
    }
    let before = commands(contender).await?;
    let job = Job { watched, ..job };
    let limit = job.warm_up + job.measured + Duration::from_secs(30);
    let seen = tokio::time::timeout(limit, load::run(&job)).await.context("the load does not end")??;
    // Of 100,000 requests in seconds, which is of one in tens of microseconds.
    let server = seen.cpu_per_100k("server")? * 10.0;
    let redis = if contender.store.is_some() { seen.cpu_per_100k("redis")? * 10.0 } else { 0.0 };
    let case = format!("{}/{}", load.name, contender.name);
    let figures = [
        ("server_cpu_micros", server),
        ("redis_cpu_micros", redis),
        ("cpu_micros", server + redis),
        ("per_second", seen.calls_per_second()),
    ];
    for (metric, figure) in figures {
        results.add(&case, metric, figure);
    }
    for (command, count) in commands(contender).await? {
        let more = count - before.get(&command).copied().unwrap_or_default();
        results.add(&case, &format!("command_{command}"), more / seen.answered as f64);
    }
    Ok(())
}

async fn commands(contender: &Contender) -> Result<BTreeMap<String, f64>> {
    match &contender.store {
        Some(store) => store.commands().await,
        None => Ok(BTreeMap::new()),
    }
}

/// How many requests of one user are allowed by two servers with one Redis, when 64 callers race.
async fn race(start: &Start<'_>, kind: Kind, directory: &str) -> Result<u64> {
    let store = Store::single(start.scratch, directory, "--appendonly no").await?;
    let one = start.server(kind, "race-one", Some(&store), SCARCE).await?;
    let two = start.server(kind, "race-two", Some(&store), SCARCE).await?;
    let clients = [client(one.address()?).await?, client(two.address()?).await?];
    let (asked, allowed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for index in 0..IN_FLIGHT {
        let mut client = clients[index % clients.len()].clone();
        let (asked, allowed) = (Arc::clone(&asked), Arc::clone(&allowed));
        callers.spawn(async move {
            while asked.fetch_add(1, Ordering::Relaxed) < ASKED {
                if ask(&mut client, "racer").await?.overall_code() == Code::Ok {
                    allowed.fetch_add(1, Ordering::Relaxed);
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(outcome) = callers.join_next().await {
        outcome??;
    }
    Ok(allowed.load(Ordering::Relaxed))
}

/// The tables, and how they were made.
fn tables(results: &Results, options: &Options, rounds: u32, version: &str) -> String {
    let mut facts = report::facts();
    facts.push(("rounds", rounds.to_string()));
    facts.push(("users", options.users.to_string()));
    facts.push(("Limitador's program", version.to_owned()));
    let saturated = format!("{IN_FLIGHT} requests in flight on 4 connections, as fast as the server answers:");
    let fixed = format!("{} requests per second, each at its time:", options.rate);
    let race = format!(
        "Two servers on one Redis, {IN_FLIGHT} callers, {ASKED} requests of one user whose three limits are {SCARCE}. How many were allowed:"
    );
    let parts = [
        report::fact_table(&facts),
        saturated,
        load_table(results, "saturated"),
        fixed,
        load_table(results, "fixed"),
        "What Redis executed per request, at full speed:".to_owned(),
        command_table(results),
        race,
        race_table(results),
    ];
    parts.join("\n\n") + "\n"
}

fn names() -> impl Iterator<Item = &'static str> {
    KINDS.into_iter().map(|(_, name)| name).chain([ECHO])
}

fn load_table(results: &Results, load: &str) -> String {
    let mut table = report::new_table(&[
        "server",
        "server CPU us",
        "in the echo's",
        "Redis CPU us",
        "both us",
        "least to most",
        "requests/s",
    ]);
    let echo = results.median(&format!("{load}/{ECHO}"), "server_cpu_micros");
    for name in names() {
        let case = format!("{load}/{name}");
        let median = |metric| results.median(&case, metric);
        let range = results.range(&case, "cpu_micros");
        table.add_row([
            name.to_owned(),
            report::number(median("server_cpu_micros"), 1),
            ratio(median("server_cpu_micros"), echo).map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            report::number(median("redis_cpu_micros"), 1),
            report::number(median("cpu_micros"), 1),
            range.map_or_else(String::new, |(least, most)| format!("{least:.1} to {most:.1}")),
            report::number(median("per_second"), 0),
        ]);
    }
    report::markdown(&table)
}

fn command_table(results: &Results) -> String {
    let mut table = report::new_table(&["server", "all", "which"]);
    for (_, name) in KINDS.into_iter().filter(|(kind, _)| kind.needs_redis()) {
        let case = format!("saturated/{name}");
        let mut commands: Vec<(&str, f64)> = results
            .metrics(&case)
            .filter_map(|metric| Some((metric.strip_prefix("command_")?, results.median(&case, metric)?)))
            .collect();
        commands.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(other.0)));
        let all: f64 = commands.iter().map(|(_, count)| count).sum();
        let most = commands.iter().filter(|(_, count)| *count >= 0.005);
        let which: Vec<_> = most.map(|(command, count)| format!("{command} {count:.2}")).collect();
        table.add_row([name.to_owned(), format!("{all:.2}"), which.join(", ")]);
    }
    report::markdown(&table)
}

fn race_table(results: &Results) -> String {
    let mut table = report::new_table(&["server", "allowed, median", "least to most"]);
    for (_, name) in KINDS.into_iter().filter(|(kind, _)| kind.races()) {
        let case = format!("race/{name}");
        let range = results.range(&case, "allowed");
        table.add_row([
            name.to_owned(),
            report::number(results.median(&case, "allowed"), 0),
            range.map_or_else(String::new, |(least, most)| format!("{least:.0} to {most:.0}")),
        ]);
    }
    report::markdown(&table)
}
