//! Counting: the real server and a real Redis under callgrind, calls one after the other, in batches.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tollgate::grpc::v1::plan_service_client::PlanServiceClient;
use tollgate::grpc::v1::subscription_service_client::SubscriptionServiceClient;
use tonic::transport::Channel;

use crate::calls::{self, Case, Client, Turn};
use crate::counted::Counted;
use crate::figures::{Commands, Figure, Figures, TakenWith, median};

/// The number of times each case is counted. The result is the median.
const BATCHES: usize = 5;

/// The number of calls that are counted together.
const CALLS: usize = 100;

/// The number of users who make the calls. Each user is new in its batch, so that all batches find the same state.
const USERS: usize = 10;

/// Calls of each user that are not counted: they open windows, and fill caches.
const WARM_UP: usize = 2;

/// The number of times a batch runs the script that does nothing.
const EMPTY_CALLS: usize = 500;

/// After so many scripts Redis lets Lua's collector make a step (`LUA_GC_CYCLE_PERIOD` of script_lua.c).
const SCRIPTS_PER_STEP: u64 = 50;

/// Functions beside the service's own, in the same Lua: one collects all garbage, the other does nothing.
const COLLECTOR: &str = "#!lua name=counts
redis.register_function('counts_collect', function() collectgarbage() end)
redis.register_function('counts_nothing', function() end)";

/// The time for which both processes are watched while nobody calls, once per batch. In the first of these periods they
/// are still busy with their start.
const IDLE: Duration = Duration::from_secs(2);

/// The longest time the processes may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// Counts every case whose name contains `only`.
pub fn all(server: &Path, redis: &str, taken_with: TakenWith, only: Option<&str>) -> Result<Figures> {
    let directory = tempfile::Builder::new().prefix("counts").tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut bench = Bench::start(directory.path(), server, redis).await?;
        let idle = bench.idle().await?;
        let empty = bench.empty_script(&idle).await?;
        let mut figures = Figures { taken_with, empty_script: empty.round() as u64, cases: Vec::new() };
        for case in calls::cases().into_iter().filter(|case| case.name.contains(only.unwrap_or_default())) {
            let since = Instant::now();
            let (server, redis, commands) =
                bench.case(&case, &idle).await.with_context(|| format!("while counting {:?}", case.name))?;
            eprintln!("{}: {:.1} s", case.name, since.elapsed().as_secs_f64());
            // What little Redis does meanwhile is its own business where no command is sent.
            let redis = if commands.is_empty() { 0.0 } else { redis };
            let (server, ratio) = (server.round() as u64, redis / empty);
            figures.cases.push((case.name.to_owned(), Figure { server, redis: redis.round() as u64, ratio, commands }));
        }
        Ok(figures)
    })
}

/// The work done while nobody calls: the server probes Redis, and Redis looks after itself.
struct Idle {
    /// The commands that arrive, and the number of each.
    commands: BTreeMap<String, u64>,
    /// Instructions for each of them.
    server: f64,
    redis: f64,
}

impl Idle {
    /// Splits the counted commands into those of each of `calls` calls and the number of commands that belong to no
    /// call.
    fn split(&self, counted: &BTreeMap<String, u64>, calls: usize) -> (Commands, u64) {
        let mut background = 0;
        let mut commands = Commands::new();
        for (name, &count) in counted {
            let mut count = count;
            if self.commands.contains_key(name) {
                background += count % calls as u64;
                count -= count % calls as u64;
            }
            if count > 0 {
                commands.insert(name.clone(), (count as f64 / calls as f64 * 100.0).round() / 100.0);
            }
        }
        (commands, background)
    }
}

struct Bench {
    server: Counted,
    redis: Counted,
    look: redis::Connection,
    client: Client,
    subscriptions: SubscriptionServiceClient<Channel>,
}

impl Bench {
    async fn start(directory: &Path, server: &Path, redis: &str) -> Result<Self> {
        let socket = directory.join("redis.sock");
        // Its own clockwork seldom, and nothing on disk.
        let redis = Counted::start(directory, "redis", Path::new(redis), |command| {
            command.args(["--port", "0", "--save", "", "--appendonly", "no", "--hz", "1", "--dynamic-hz", "no"]);
            command.arg("--unixsocket").arg(&socket).arg("--dir").arg(directory);
        })?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            ensure!(Instant::now() < deadline, "redis does not start under valgrind");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let url = format!("unix://{}", socket.display());
        let mut look = redis::Client::open(url.as_str())?.get_connection()?;
        let _: String = redis::cmd("FUNCTION").arg("LOAD").arg(COLLECTOR).query(&mut look)?;

        let catalog = directory.join("catalog.yaml");
        std::fs::write(&catalog, calls::catalog())?;
        let mut server = Counted::start(directory, "server", server, |command| {
            command.args(["serve", "--listen", "127.0.0.1:0", "--redis-timeout", "30s", "--redis-url", &url]);
            // Reading the catalog again costs as much as four calls, and would fall into some of the batches.
            command.arg("--catalog").arg(&catalog).args(["--catalog-poll", "1h"]);
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")) {
                command.env_remove(name);
            }
            // Work that wanders between threads would be counted by chance.
            command.env("TOKIO_WORKER_THREADS", "1").stderr(Stdio::piped());
        })?;
        let address = listening(&mut server)?;
        let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
        let client = Client {
            metering: MeteringServiceClient::new(channel.clone()),
            plans: PlanServiceClient::new(channel.clone()),
        };
        Ok(Self { server, redis, look, client, subscriptions: SubscriptionServiceClient::new(channel) })
    }

    /// Returns the number of times Redis has run each command.
    fn commands(&mut self) -> Result<BTreeMap<String, u64>> {
        let told: String = redis::cmd("INFO").arg("commandstats").query(&mut self.look)?;
        let lines = told.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
        let counts = lines.filter(|(name, _)| *name != "info").map(|(name, rest)| {
            let count = rest.split(',').next().unwrap_or_default().parse()?;
            Ok((name.to_owned(), count))
        });
        counts.collect()
    }

    /// Counts what happens between the two calls of this: server, Redis, commands.
    fn begin(&mut self) -> Result<BTreeMap<String, u64>> {
        let before = self.commands()?;
        self.server.instructions()?;
        self.redis.instructions()?;
        Ok(before)
    }

    /// See [`Bench::begin`].
    fn end(&mut self, before: &BTreeMap<String, u64>) -> Result<(f64, f64, BTreeMap<String, u64>)> {
        let redis = self.redis.instructions()? as f64;
        let server = self.server.instructions()? as f64;
        let since = |(name, count): (String, u64)| {
            let count = count - before.get(&name).copied().unwrap_or(0);
            (count > 0).then_some((name, count))
        };
        let commands = self.commands()?.into_iter().filter_map(since).collect();
        Ok((server, redis, commands))
    }

    async fn idle(&mut self) -> Result<Idle> {
        let (mut server, mut redis, mut seen) = (Vec::new(), Vec::new(), BTreeMap::new());
        for _ in 0..BATCHES {
            let before = self.begin()?;
            tokio::time::sleep(IDLE).await;
            let (server_count, redis_count, commands) = self.end(&before)?;
            let sent = commands.values().sum::<u64>().max(1) as f64;
            server.push(server_count / sent);
            redis.push(redis_count / sent);
            seen.extend(commands);
        }
        Ok(Idle { commands: seen, server: median(&mut server), redis: median(&mut redis) })
    }

    /// Lets Lua's collector begin at a batch's first call, whatever was called before. Otherwise the same call costs up
    /// to a tenth more or less, as the collector is at work in all of a batch, or in a part of it.
    fn start_collector(&mut self) -> Result<()> {
        let _: redis::Value = redis::cmd("EVAL").arg("collectgarbage()").arg(0).query(&mut self.look)?;
        let commands = self.commands()?;
        let scripts: u64 = ["eval", "evalsha", "fcall"].iter().filter_map(|name| commands.get(*name)).sum();
        // The collection is the last but one before the step.
        for _ in 0..(2 * SCRIPTS_PER_STEP - 2 - scripts % SCRIPTS_PER_STEP) % SCRIPTS_PER_STEP {
            let _: redis::Value = redis::cmd("EVAL").arg("return 1").arg(0).query(&mut self.look)?;
        }
        for function in ["counts_collect", "counts_nothing"] {
            let _: redis::Value = redis::cmd("FCALL").arg(function).arg(0).query(&mut self.look)?;
        }
        Ok(())
    }

    /// Instructions of Redis for an EVALSHA of a script that only returns.
    async fn empty_script(&mut self, idle: &Idle) -> Result<f64> {
        let digest: String = redis::cmd("SCRIPT").arg("LOAD").arg("return 1").query(&mut self.look)?;
        let mut counts = Vec::new();
        for _ in 0..BATCHES {
            let before = self.begin()?;
            for _ in 0..EMPTY_CALLS {
                let _: u8 = redis::cmd("EVALSHA").arg(&digest).arg(0).query(&mut self.look)?;
            }
            let (_, redis, commands) = self.end(&before)?;
            let (_, background) = idle.split(&commands, EMPTY_CALLS);
            counts.push((redis - background as f64 * idle.redis) / EMPTY_CALLS as f64);
        }
        Ok(median(&mut counts))
    }

    /// Instructions of the server and of Redis for a call, and the commands that it sends.
    async fn case(&mut self, case: &Case, idle: &Idle) -> Result<(f64, f64, Commands)> {
        let (mut server, mut redis, mut sent) = (Vec::new(), Vec::new(), Vec::<Commands>::new());
        let name = case.name.replace([' ', ','], "");
        if case.live_holds > 0 {
            self.subscribe(&name, case.plan).await?;
            for number in 0..case.live_holds {
                let turn = Turn { user: name.clone(), number, reservation_id: String::new() };
                self.client.send(calls::reserve(&turn)).await?;
            }
        }
        for batch in 0..BATCHES {
            let users: Vec<_> = match case.live_holds {
                0 => (0..USERS).map(|user| format!("{name}-{batch}-{user}")).collect(),
                _ => vec![name.clone()],
            };
            if case.live_holds == 0 {
                for user in &users {
                    self.subscribe(user, case.plan).await?;
                }
            }
            let first = batch * (WARM_UP * USERS + CALLS);
            let warm_up = self.prepare(case, &users, first..first + WARM_UP * USERS).await?;
            for turn in warm_up {
                self.client.send((case.call)(&turn)).await?;
            }
            let turns = self.prepare(case, &users, first + WARM_UP * USERS..first + WARM_UP * USERS + CALLS).await?;
            let made: Vec<_> = turns.iter().map(case.call).collect();
            self.start_collector()?;
            let before = self.begin()?;
            for call in made {
                let (outcome, _) = self.client.send(call).await?;
                ensure!(outcome == case.ends, "a call ended {outcome:?} instead of {:?}", case.ends);
            }
            let (server_count, redis_count, commands) = self.end(&before)?;
            let (commands, background) = idle.split(&commands, CALLS);
            server.push((server_count - background as f64 * idle.server) / CALLS as f64);
            redis.push((redis_count - background as f64 * idle.redis) / CALLS as f64);
            sent.push(commands);
        }
        // Where a window ends amid a batch, that one is out of line.
        let often = |commands: &&Commands| sent.iter().filter(|other| other == commands).count();
        let commands = sent.iter().max_by_key(often).cloned().unwrap_or_default();
        Ok((median(&mut server), median(&mut redis), commands))
    }

    async fn subscribe(&mut self, user: &str, plan: &str) -> Result<()> {
        let request =
            v1::UpsertSubscriptionRequest { user_id: user.to_owned(), plan_id: plan.to_owned(), ..Default::default() };
        self.subscriptions.upsert_subscription(request).await?;
        Ok(())
    }

    /// Turns of the users by rotation, and what each needs to find.
    async fn prepare(&mut self, case: &Case, users: &[String], numbers: std::ops::Range<usize>) -> Result<Vec<Turn>> {
        let mut turns = Vec::new();
        for number in numbers {
            let mut turn = Turn { user: users[number % users.len()].clone(), number, reservation_id: String::new() };
            if let Some(before) = case.before {
                turn.reservation_id = self.client.send(before(&turn)).await?.1;
            }
            turns.push(turn);
        }
        Ok(turns)
    }
}

/// Waits until the server's log tells where it listens.
fn listening(server: &mut Counted) -> Result<String> {
    let mut log = BufReader::new(server.errors()?);
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(log.read_line(&mut line)? > 0, "the server ended before it served");
        if let Some((_, rest)) = line.split_once("127.0.0.1:").filter(|_| line.contains("serving")) {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            // What else it logs must not fill the pipe.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
}
