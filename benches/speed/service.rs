//! The service: the real binary and a Redis of its own under load from another process, and the server that only answers under
//! the same load.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;

use super::Effort;
use super::cases::USERS;
use super::common::served::{Served, tollgate};
use super::echo::Echo;
use super::lab::{Allowance, World, catalog_of, user_ids, user_name};
use super::load::{self, Calls, Job, Pace, Seen};
use super::results::Results;
use super::scripts::IN_FLIGHT;
use super::store::Store;

/// One measurement under load.
pub struct Case {
    /// `service/` what is called `/` how.
    pub name: &'static str,
    server: Server,
    calls: Calls,
    rate: Rate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// As it serves unless told otherwise.
    Default,
    /// No two calls share a script call.
    Unbatched,
    Echo,
}

#[derive(Debug, Clone, Copy)]
enum Rate {
    /// As fast as it answers.
    Saturated,
    /// At half the rate at which this other case saturates.
    HalfOf(&'static str),
}

const fn case(name: &'static str, server: Server, calls: Calls, rate: Rate) -> Case {
    Case { name, server, calls, rate }
}

impl Case {
    /// Whether calls are made as fast as they are answered.
    pub fn is_saturated(&self) -> bool {
        matches!(self.rate, Rate::Saturated)
    }
}

/// The reference case, with all that is measured of it.
pub const RESERVE: &str = "service/reserve/saturated";
pub const RESERVE_HALF: &str = "service/reserve/half";
pub const UNBATCHED: &str = "service/reserve-unbatched/saturated";
pub const UNBATCHED_HALF: &str = "service/reserve-unbatched/half";
pub const ECHO: &str = "service/echo/saturated";
pub const ECHO_HALF: &str = "service/echo/half-of-reserve";

/// Every case.
pub const CASES: [Case; 10] = [
    case(RESERVE, Server::Default, Calls::Reserve, Rate::Saturated),
    case(RESERVE_HALF, Server::Default, Calls::Reserve, Rate::HalfOf(RESERVE)),
    case(UNBATCHED, Server::Unbatched, Calls::Reserve, Rate::Saturated),
    case(UNBATCHED_HALF, Server::Unbatched, Calls::Reserve, Rate::HalfOf(UNBATCHED)),
    case(ECHO, Server::Echo, Calls::Reserve, Rate::Saturated),
    case(ECHO_HALF, Server::Echo, Calls::Reserve, Rate::HalfOf(RESERVE)),
    case("service/reserve-commit/saturated", Server::Default, Calls::Pairs, Rate::Saturated),
    case("service/reserve-denied/saturated", Server::Default, Calls::Denied, Rate::Saturated),
    case("service/track/saturated", Server::Default, Calls::Track, Rate::Saturated),
    case("service/can-use/saturated", Server::Default, Calls::CanUse, Rate::Saturated),
];

/// The flag by which calls share script calls.
const BATCH_FLAG: &str = "--redis-batch";

/// Everything that is under load, idle until it is.
pub struct Bench {
    world: World,
    server: Served,
    /// None if this Tollgate cannot be told to do without batches.
    unbatched: Option<Served>,
    echo: Echo,
    runs: usize,
}

/// A server on this Redis, with the catalog of three groups that have room for everything.
pub fn serve(scratch: &Path, store: &Store, more: &[&str]) -> Result<Served> {
    serve_catalog(&scratch.join("catalog.yaml"), &catalog_of(Allowance::Plenty(3)), store, more)
}

/// A server on this Redis, with this catalog, which is written to this file.
pub fn serve_catalog(catalog: &Path, text: &str, store: &Store, more: &[&str]) -> Result<Served> {
    std::fs::write(catalog, text).with_context(|| format!("cannot write {}", catalog.display()))?;
    let (url, catalog) = (store.urls().join(","), catalog.to_str().context("a path that is text")?.to_owned());
    let mut flags = vec!["--redis-url", &url, "--catalog", &catalog];
    flags.extend(more);
    Ok(Served::start(0, &flags))
}

impl Bench {
    pub async fn start(scratch: &Path) -> Result<Self> {
        let store = Store::single(scratch, "service", "--appendonly no").await?;
        let server = serve(scratch, &store, &[])?;
        let help = tollgate().args(["serve", "--help"]).output().context("cannot run tollgate")?;
        let can_batch = String::from_utf8_lossy(&help.stdout).contains(BATCH_FLAG);
        let unbatched = if can_batch { Some(serve(scratch, &store, &[BATCH_FLAG, "1"])?) } else { None };

        let address = format!("http://{}", server.address);
        let mut client = MeteringServiceClient::connect(address).await.context("cannot reach the server")?;
        let request = v1::ReserveRequest {
            user_id: user_name(0),
            event: Some(load::event(1.0)),
            request_id: "the answer that is echoed".to_owned(),
            ..v1::ReserveRequest::default()
        };
        let answer = client.reserve(request).await?.into_inner();
        ensure!(answer.limits.len() == 3, "the reference case has three groups");
        let echo = Echo::reserve(&answer).await?;
        Ok(Self { world: World::new(store, 32).await?, server, unbatched, echo, runs: 0 })
    }

    /// Measures a case once. One of a server that there is not has no figures.
    pub async fn measure(&mut self, case: &Case, effort: &Effort, results: &mut Results) -> Result<()> {
        if case.server == Server::Unbatched && self.unbatched.is_none() {
            return Ok(());
        }
        let pace = match case.rate {
            Rate::Saturated => Pace::Closed { in_flight: IN_FLIGHT },
            Rate::HalfOf(other) => {
                let saturated = match results.last(other, "calls_per_second") {
                    Some(saturated) => saturated,
                    // It was not asked for, but what is half of it?
                    None => {
                        let other = CASES.iter().find(|case| case.name == other).context("it is a case")?;
                        let closed = Pace::Closed { in_flight: IN_FLIGHT };
                        self.load(other, closed, effort).await?.calls_per_second()
                    }
                };
                Pace::Open { per_second: saturated / 2.0 }
            }
        };
        let seen = self.load(case, pace, effort).await?;
        let (server, redis) = (seen.cpu_per_100k("server")?, seen.cpu_per_100k("redis")?);
        let figures = [
            ("calls_per_second", seen.calls_per_second()),
            ("p50_ms", seen.p50_micros as f64 / 1e3),
            ("p99_ms", seen.p99_micros as f64 / 1e3),
            ("p999_ms", seen.p999_micros as f64 / 1e3),
            ("max_ms", seen.max_micros as f64 / 1e3),
            ("server_cpu_per_100k", server),
            ("redis_cpu_per_100k", redis),
            ("generator_cpu_per_100k", seen.own_cpu_per_100k()),
            ("failed", seen.failed as f64),
        ];
        for (metric, figure) in figures {
            results.add(case.name, metric, figure);
        }
        Ok(())
    }

    async fn load(&mut self, case: &Case, pace: Pace, effort: &Effort) -> Result<Seen> {
        let (address, pid) = match (case.server, &self.unbatched) {
            (Server::Echo, _) => (self.echo.address, self.echo.pid()?),
            (Server::Unbatched, Some(unbatched)) => (unbatched.address, unbatched.id()),
            (Server::Unbatched | Server::Default, _) => (self.server.address, self.server.id()),
        };
        self.world.store.flush().await?;
        let meter = self.world.meter(Allowance::Plenty(3))?;
        self.world.populate(&meter, &user_ids(USERS)).await?;
        self.runs += 1;
        let job = Job {
            address,
            calls: case.calls,
            pace,
            users: USERS,
            run: format!("run-{:05}", self.runs),
            warm_up: effort.warm_up,
            measured: effort.load,
            watched: BTreeMap::from([("server".to_owned(), pid), ("redis".to_owned(), self.world.store.pid())]),
        };
        let limit = effort.warm_up + effort.load + Duration::from_secs(30);
        tokio::time::timeout(limit, load::run(&job)).await.context("the load does not end")?
    }
}
