//! Tools that the test programs share: one private Redis for all tests of a program, replicas of the real server, the
//! clock, servers, processes and networks of their own for tests that break them, and load whose every answer is
//! compared with the counters afterwards.

// Each program uses some of it.
#![allow(dead_code)]

pub mod load;
pub mod promtool;
pub mod proxy;
pub mod redis_cluster;
pub mod redis_server;
pub mod served;
pub mod timed_redis;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use redis::AsyncCommands as _;
use tokio::runtime::Runtime;
use tollgate::access::Access;
use tollgate::apps::{Apps, Catalogs};
use tollgate::catalog;
use tollgate::config::Limits;
use tollgate::domain::id::{AppId, Owner, UserId};
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tollgate::grpc::v1::plan_service_client::PlanServiceClient;
use tollgate::grpc::v1::subscription_service_client::SubscriptionServiceClient;
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{Ledger, RedisOptions, Scripts, UserKeys, formats, scripts};
use tollgate::meter::MeterOptions;
use tollgate::private_redis::{self, PrivateRedis};
use tollgate::server::{self, Serving};
use tonic::transport::Channel;

/// Outlives every test: each of them has a runtime of its own, which ends with it.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // It takes long without optimization, and would stop what other tests have running here.
    stepped_scripts();
    Runtime::new().expect("a runtime")
});

/// Ends with the process, as its pipe closes then.
static REDIS: LazyLock<PrivateRedis> = LazyLock::new(|| on_runtime(start_redis()));

fn on_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    RUNTIME.spawn(async move { send.send(work.await) });
    receive.recv().expect("the work ends")
}

async fn start_redis() -> PrivateRedis {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    remove_leftovers(parent);
    let data_dir = parent.join(format!("it-{}", std::process::id()));
    private_redis::start(private_redis::Options { data_dir, ..private_redis::Options::default() })
        .await
        .expect("a private Redis starts")
}

/// Data of earlier runs, whose process is gone.
fn remove_leftovers(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("it-")) else { continue };
        let alive = std::process::Command::new("kill").args(["-0", pid]).stderr(std::process::Stdio::null()).status();
        if !alive.is_ok_and(|status| status.success()) {
            let _: Result<(), _> = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The URL of the shared Redis, once a test has asked for it. To look does not start it, which would block.
static SHARED_URL: OnceLock<String> = OnceLock::new();

/// The URL of the shared Redis.
pub fn redis_url() -> String {
    SHARED_URL.get_or_init(|| REDIS.url()).clone()
}

/// The data directory of the shared Redis and of others that a test starts.
pub fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("it-{}", std::process::id())).join(name)
}

pub fn redis_options() -> RedisOptions {
    RedisOptions {
        urls: vec![redis_url()],
        connections: 2,
        batch: 32,
        timeout: Duration::from_secs(10),
        sentinels: Vec::new(),
        allow_eviction: false,
        ..RedisOptions::default()
    }
}

/// A connection to the shared Redis, to look and to tamper.
pub async fn redis() -> redis::aio::MultiplexedConnection {
    connection_to(&redis_url()).await
}

/// A connection to this Redis.
pub async fn connection_to(url: &str) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(url).expect("the URL is valid");
    // Patient: other programs may be busy, and no test is about how fast this is.
    let patience = Some(Duration::from_secs(60));
    let config = redis::AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
    client.get_multiplexed_async_connection_with_config(&config).await.expect("Redis answers")
}

/// A replica of the server, on the shared Redis unless told otherwise.
#[derive(Clone)]
pub struct Replica {
    pub address: SocketAddr,
    pub metering: MeteringServiceClient<Channel>,
    pub subscriptions: SubscriptionServiceClient<Channel>,
    pub plans: PlanServiceClient<Channel>,
}

impl Replica {
    /// Serves `catalog` with the defaults.
    pub async fn start(catalog: &str) -> Self {
        Self::start_with(catalog, jiff::tz::db(), MeterOptions::default(), redis_options()).await
    }

    pub async fn start_with(
        catalog: &str,
        zones: &jiff::tz::TimeZoneDatabase,
        options: MeterOptions,
        redis: RedisOptions,
    ) -> Self {
        let catalog = Arc::new(catalog::parse(catalog, zones).unwrap_or_else(|problems| panic!("{problems}")));
        // On the shared Redis, users' clocks can be stepped.
        let stepped = SHARED_URL.get().is_some_and(|url| redis.urls == [url.as_str()]);
        let address = on_runtime_async(async move {
            let ledger = Ledger::connect(&redis).await.expect("Redis can be used");
            let ledger = if stepped { with_stepped_clocks(ledger).await } else { ledger };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("an address");
            let fail_open = options.fail_open;
            let apps = Arc::new(Apps::new(Catalogs::Shared(catalog), ledger, options));
            let access = Arc::new(Access::open());
            let serving =
                Serving { apps, access, limits: Limits::default(), fail_open, tls: None, envoy: None, admin: None };
            tokio::spawn(server::run(serving, listener, std::future::pending()));
            address
        })
        .await;
        Self::connect(address).await
    }

    pub async fn connect(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}"))
            .expect("an address is a URL")
            .connect()
            .await
            .expect("the server listens");
        Self {
            address,
            metering: MeteringServiceClient::new(channel.clone()),
            subscriptions: SubscriptionServiceClient::new(channel.clone()),
            plans: PlanServiceClient::new(channel),
        }
    }
}

/// Like [`on_runtime`], without blocking the test's own runtime. The shared Redis is started first, where blocking does not hurt.
async fn on_runtime_async<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    spawn(work).await.expect("the work ends")
}

/// Runs beside the test.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    RUNTIME.spawn(work)
}

/// A user that no other test has.
pub fn fresh_user(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn owner(user: &str) -> Owner {
    Owner::new(&AppId::default(), &UserId::parse(user).expect("a user id"))
}

pub fn keys(user: &str) -> UserKeys {
    UserKeys::new(&owner(user))
}

const ASKED: &str = "local redis_now = clock_of_redis()";
const STEPPED: &str = "local redis_now = tonumber(call('GET', 'test-clock:' .. key) or '') or clock_of_redis()";

/// This Lua, with the test clock in the place where the scripts ask for the time.
pub fn with_stepped_clock(source: &str) -> String {
    source.replacen(ASKED, STEPPED, 1)
}

/// The scripts, which take a user's test clock for Redis's, where there is one.
pub fn stepped_scripts() -> &'static Scripts {
    static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
        let stepped = scripts().changed(|script| with_stepped_clock(&script.source)).as_functions();
        assert!(stepped.reserve.source.contains(STEPPED), "the scripts ask for the time in one place");
        stepped
    });
    &SCRIPTS
}

/// A ledger on the shared Redis whose users have clocks that can be stepped: see [`step_clock`].
pub async fn stepped_ledger() -> Ledger {
    with_stepped_clocks(Ledger::connect(&redis_options()).await.expect("Redis can be used")).await
}

async fn with_stepped_clocks(ledger: Ledger) -> Ledger {
    let mut connection = redis().await;
    for function in stepped_scripts().all().into_iter().filter_map(|script| script.function.as_ref()) {
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(&function.library);
        let _: String = load.query_async(&mut connection).await.expect("Redis takes functions");
    }
    ledger.with_scripts(stepped_scripts())
}

/// Steps what a [`stepped_ledger`], or a [`Replica`] on the shared Redis, takes for Redis's clock when this user calls: forward, or
/// back. It stands still from then on. Returns the time.
pub async fn step_clock(user: &str, to: Step) -> i64 {
    const SCRIPT: &str = r"
        local clock = redis.call('TIME')
        local state = redis.call('GET', KEYS[1])
        local now = tonumber(redis.call('GET', KEYS[2]) or '')
            or math.max(state and struct.unpack('<I6', state, ARGV[3]) or 0, clock[1] * 1000 + math.floor(clock[2] / 1000))
        now = ARGV[1] == 'by' and now + tonumber(ARGV[2]) or tonumber(ARGV[2])
        local text = string.format('%.0f', now)
        redis.call('SET', KEYS[2], text, 'EX', 3600)
        return text";
    let (how, ms) = match to {
        Step::By(duration) => ("by", millis(duration)),
        Step::To(ms) => ("to", ms),
    };
    let state = keys(user).state().to_owned();
    let now: String = redis::cmd("EVAL")
        .arg(SCRIPT)
        .arg(2)
        .arg(&state)
        .arg(format!("test-clock:{state}"))
        .arg(how)
        .arg(ms)
        .arg(offset_of_time())
        .query_async(&mut redis().await)
        .await
        .expect("the clock can be stepped");
    now.parse().expect("a time")
}

/// Returns the offset of the time in a state, counted from 1.
fn offset_of_time() -> usize {
    let bytes = |time| {
        let mut bytes = Vec::new();
        formats::Head { time, ..formats::Head::default() }.write(&mut bytes);
        bytes
    };
    let differs = bytes(0).iter().zip(&bytes((1 << 48) - 1)).position(|(one, two)| one != two);
    differs.expect("the time is in the head") + 1
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).expect("not too long")
}

/// Reads a user's stored state: its head, and the bytes after it.
pub async fn state(user: &str) -> Option<(formats::Head, Vec<u8>)> {
    let state: Option<Vec<u8>> = redis().await.get(keys(user).state()).await.expect("Redis answers");
    let state = state?;
    let mut reader = Reader(&state);
    let head = formats::Head::read(&mut reader).expect("a state begins with its head");
    Some((head, reader.0.to_vec()))
}

/// Moves the time in a user's ledger ahead of Redis's clock, where a replica runs the scripts as they are. ONE-CLOCK: it stands from
/// then on, for up to the 5 minutes that a clock may be wrong by.
pub async fn put_ledger_ahead(user: &str, by: Duration) {
    let (mut head, rest) = state(user).await.expect("the user has a ledger");
    head.time += millis(by);
    let mut state = Vec::new();
    head.write(&mut state);
    state.extend(rest);
    let mut command = redis::cmd("SET");
    command.arg(keys(user).state()).arg(state).arg("KEEPTTL");
    let () = command.query_async(&mut redis().await).await.expect("the state can be written");
}

/// The size of a step of the clock: see [`step_clock`].
#[derive(Debug, Clone, Copy)]
pub enum Step {
    By(Duration),
    To(i64),
}

/// Every key of a user and its value, to compare before and after.
pub async fn dump(user: &str) -> BTreeMap<String, Vec<u8>> {
    let mut connection = redis().await;
    let pattern = format!("tollgate*{{{}}}*", owner(user).tag());
    let names: Vec<String> =
        redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.expect("keys can be listed");
    let mut dump = BTreeMap::new();
    for name in names {
        let value: Option<Vec<u8>> =
            redis::cmd("DUMP").arg(&name).query_async(&mut connection).await.expect("a key can be dumped");
        dump.extend(value.map(|value| (name, value)));
    }
    dump
}

/// Sets the number of live holds in the state of a user without holds and without a subscription.
pub async fn say_live_holds(user: &str, live: i64) {
    let (head, rest) = state(user).await.expect("the user has a ledger");
    assert_eq!((head.live, head.subscribed), (0, 0));
    let mut reader = Reader(&rest);
    let mut state = Vec::new();
    let groups = head.groups;
    formats::Head { live, ..head.clone() }.write(&mut state);
    if head.young > 0 {
        formats::Memory::read(&mut reader).expect("a memory").write(&mut state);
    }
    for _ in 0..head.schedules {
        formats::Schedule::read(&mut reader).expect("a schedule").write(&mut state);
    }
    for _ in 0..groups {
        let formats::IdleCounter { number, schedule, used } =
            formats::IdleCounter::read(&mut reader).expect("a counter");
        formats::Counter { number, schedule, used, held: 0 }.write(&mut state);
    }
    state.extend_from_slice(reader.0);
    let mut command = redis::cmd("SET");
    command.arg(keys(user).state()).arg(state).arg("KEEPTTL");
    let () = command.query_async(&mut redis().await).await.expect("the state can be written");
}

/// Returns the `KEYS` pattern that finds the keys of a user's live holds.
pub fn holds_pattern(user: &str) -> String {
    let (field, name) = ([0; 16], "A".repeat(22));
    let key = keys(user).hold(&field);
    format!("{}*", key.strip_suffix(&name).expect("the name of a hold comes last"))
}

/// Returns the number of live holds that the user's ledger counts.
pub async fn live_holds(user: &str) -> u64 {
    let (head, _) = state(user).await.expect("the user has a ledger");
    u64::try_from(head.live).expect("no fewer than none")
}

/// Holds what users whose names begin with this have on the shared Redis against itself. Other tests break what theirs have.
pub async fn nothing_contradicts_itself_of(name: &str) {
    let (_, findings) = tollgate::verify::run(&redis_options().urls).await.expect("Redis can be read");
    let is_of = format!("{{default:{name}-");
    let contradictions = findings
        .iter()
        .filter(|finding| finding.kind == tollgate::verify::Kind::Contradiction && finding.key.contains(&is_of));
    let told: Vec<_> = contradictions.map(ToString::to_string).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// Holds everything in a Redis, or in the cluster of these nodes, against itself.
pub async fn nothing_contradicts_itself(urls: &[String]) {
    let (report, findings) = tollgate::verify::run(urls).await.expect("Redis can be read");
    let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(report.contradictions, 0, "{report}\n{}", told.join("\n"));
}
