//! Connections to Redis: a few shared and pipelined ones for the scripts, a pool for checks and administration.
//!
//! Sharing is what makes one round trip cheap: many calls travel in one packet. A pool that lends a connection per call
//! costs more than twice the CPU (docs/adr/0003-connections.md).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::{Cmd, ErrorKind, IntoConnectionInfo as _, RedisError, RedisFuture, ServerErrorKind, Value};

use crate::domain::fault::Fault;
use crate::domain::id::Owner;

use super::script::{Script, scripts};

/// Which Redis, and how to talk to it.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// One URL for a single node; several for the nodes of a cluster.
    pub urls: Vec<String>,
    /// How many connections the scripts share.
    pub connections: usize,
    /// How long to wait for an answer before the outcome counts as unknown.
    pub timeout: Duration,
    /// Serve even if Redis may evict keys.
    pub allow_eviction: bool,
}

/// Why this Redis cannot keep a ledger.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No URL at all.
    #[error("no Redis URL is given")]
    NoUrl,
    /// A URL that is not understood. It is not repeated: it may hold a password.
    #[error("redis URL number {number} is not understood: write it as redis://host:port, rediss://... or unix:///path")]
    BadUrl {
        /// Counted from 1.
        number: usize,
        /// What the parser says.
        #[source]
        source: RedisError,
    },
    /// Redis does not answer.
    #[error("cannot reach Redis: check that it runs, and the address and password of --redis-url")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Too old.
    #[error("this is {server} {version}, but Tollgate needs Redis 7.0 or Valkey 7.2, or newer")]
    TooOld {
        /// Redis or Valkey.
        server: &'static str,
        /// What it says of itself.
        version: String,
    },
    /// Only its own keys would be seen.
    #[error("this Redis is a node of a cluster: pass the URLs of several of its nodes, as --redis-url A --redis-url B")]
    ClusterNode,
    /// Keys could vanish.
    #[error(
        "maxmemory-policy is {0}, under which Redis drops counters when memory is short: set it to noeviction, or pass \
         --allow-eviction to serve all the same"
    )]
    Evicting(String),
}

#[derive(Clone)]
pub(super) struct Connections {
    /// A user's calls all take the same one, so that they keep their order.
    shared: Arc<[Lane]>,
    pool: Pool,
    timeout: Duration,
}

/// A shared connection, and when it was made.
struct Lane {
    options: RedisOptions,
    current: RwLock<(Connection, Instant)>,
}

/// A connection that does not answer is made anew at most this often.
const RENEWAL: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Lane {
    async fn open(options: &RedisOptions) -> Result<Self, ConnectError> {
        let connection = Connection::open(options).await?;
        Ok(Self { options: options.clone(), current: RwLock::new((connection, Instant::now())) })
    }

    fn connection(&self) -> Connection {
        self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// After a failover behind one address the old connection stays open, to a node that is only a replica now or that never
    /// answers again. The next call connects anew; calls under way keep the connection that they have.
    fn renew_after(&self, error: &RedisError) {
        let demoted = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        if !(demoted || error.is_timeout()) || self.options.urls.len() > 1 {
            return;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.1.elapsed() >= RENEWAL
            && let Ok(connection) = Connection::lazy(&self.options)
        {
            tracing::warn!(%error, "connecting to redis anew");
            *current = (connection, Instant::now());
        }
    }
}

#[derive(Clone)]
enum Pool {
    Single(deadpool_redis::Pool),
    Cluster(deadpool_redis::cluster::Pool),
}

impl Connections {
    pub(super) async fn open(options: &RedisOptions) -> Result<Self, ConnectError> {
        let pool = Pool::open(options)?;
        tokio::time::timeout(Duration::from_secs(10), check(&pool, options.allow_eviction))
            .await
            .map_err(|elapsed| ConnectError::Unreachable(elapsed.into()))??;
        // So that the first calls, which arrive together, do not each send a whole script.
        for script in scripts().all() {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(&*script.body);
            pool.query::<Value>(&load).await.map_err(ConnectError::Unreachable)?;
        }
        let mut shared = Vec::new();
        for _ in 0..options.connections.max(1) {
            shared.push(Lane::open(options).await?);
        }
        Ok(Self { shared: shared.into(), pool, timeout: options.timeout })
    }

    /// Runs a script by its digest; a Redis that does not have it yet gets it, and has not run anything before.
    pub(super) async fn evaluate(
        &self,
        script: &Script,
        keys: &[String],
        owner: &Owner,
        args: &[&[u8]],
    ) -> Result<Vec<u8>, Fault> {
        let command = |name: &str, subject: &str| {
            let mut command = redis::cmd(name);
            command.arg(subject).arg(keys.len()).arg(keys);
            for arg in args {
                command.arg(*arg);
            }
            command
        };
        match self.ask(owner, command("EVALSHA", &script.sha1)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(owner, command("EVAL", &script.body)).await
            }
            answer => answer,
        }
        .map_err(|error| {
            if is_script_error(&error) {
                tracing::error!(script = script.name, %error, "a script failed");
                Fault::Internal(Box::new(error))
            } else {
                tracing::warn!(script = script.name, %error, "redis gave no answer");
                Fault::Unavailable(Box::new(error))
            }
        })
    }

    async fn ask(&self, owner: &Owner, command: Cmd) -> Result<Vec<u8>, RedisError> {
        let mut hasher = DefaultHasher::new();
        owner.tag().hash(&mut hasher);
        let lane = &self.shared[hasher.finish() as usize % self.shared.len()];
        let mut connection = lane.connection();
        let answer = match tokio::time::timeout(self.timeout, command.query_async(&mut connection)).await {
            Ok(answer) => answer,
            Err(_) => Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))),
        };
        if let Err(error) = &answer {
            lane.renew_after(error);
        }
        answer
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.pool, Pool::Cluster(_))
    }

    pub(super) async fn unlink(&self, keys: &[String]) -> Result<(), Fault> {
        let work = async {
            let mut command = redis::cmd("UNLINK");
            command.arg(keys);
            self.pool.query::<u64>(&command).await
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Fault::Unavailable(error)),
            Err(elapsed) => Err(Fault::Unavailable(elapsed.into())),
        }
    }

    pub(super) async fn ping(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.pool.query::<String>(&redis::cmd("PING")).await.map(drop)
    }
}

/// An error of the script itself, rather than of reaching Redis or of Redis's state.
fn is_script_error(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
}

fn tcp() -> TcpSettings {
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    // Keepalive is silent while something is unacknowledged: this is how long a peer may stay silent then.
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(10));
    settings
}

impl Connection {
    pub(super) async fn open(options: &RedisOptions) -> Result<Self, ConnectError> {
        let unreachable = |error: RedisError| ConnectError::Unreachable(Box::new(error));
        if options.urls.len() == 1 {
            // The check has reached it already; the first call connects.
            return Self::lazy(options).map_err(unreachable);
        }
        let client = ClusterClient::builder(options.urls.clone())
            .connection_timeout(options.timeout)
            .response_timeout(options.timeout)
            .tcp_settings(tcp())
            .build()
            .map_err(unreachable)?;
        Ok(Self::Cluster(client.get_async_connection().await.map_err(unreachable)?))
    }

    /// A connection to a single node, which is made by its first call, and again whenever it breaks.
    fn lazy(options: &RedisOptions) -> Result<Self, RedisError> {
        let client = redis::Client::open(options.urls[0].as_str().into_connection_info()?.set_tcp_settings(tcp()))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(options.timeout))
            .set_response_timeout(Some(options.timeout))
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(500));
        ConnectionManager::new_lazy_with_config(client, config).map(Self::Single)
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

impl Pool {
    fn open(options: &RedisOptions) -> Result<Self, ConnectError> {
        for (index, url) in options.urls.iter().enumerate() {
            url.as_str().into_connection_info().map_err(|source| ConnectError::BadUrl { number: index + 1, source })?;
        }
        let mut limits = deadpool_redis::PoolConfig::new(2);
        limits.timeouts.wait = Some(options.timeout);
        limits.timeouts.create = Some(options.timeout);
        limits.timeouts.recycle = Some(options.timeout);
        let runtime = Some(deadpool_redis::Runtime::Tokio1);
        let unreachable = |error: Box<dyn std::error::Error + Send + Sync>| ConnectError::Unreachable(error);
        match options.urls.as_slice() {
            [] => Err(ConnectError::NoUrl),
            [url] => {
                let mut config = deadpool_redis::Config::from_url(url.clone());
                config.pool = Some(limits);
                config.create_pool(runtime).map(Self::Single).map_err(|error| unreachable(error.into()))
            }
            urls => {
                let mut config = deadpool_redis::cluster::Config::from_urls(urls.to_vec());
                config.pool = Some(limits);
                config.create_pool(runtime).map(Self::Cluster).map_err(|error| unreachable(error.into()))
            }
        }
    }

    async fn query<T: redis::FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::Single(pool) => Ok(command.query_async(&mut pool.get().await?).await?),
            Self::Cluster(pool) => Ok(command.query_async(&mut pool.get().await?).await?),
        }
    }
}

/// Whether this Redis can keep a ledger: its version, and that it does not evict.
async fn check(pool: &Pool, allow_eviction: bool) -> Result<(), ConnectError> {
    let info: redis::InfoDict = match pool {
        Pool::Single(_) => pool.query(&redis::cmd("INFO")).await.map_err(ConnectError::Unreachable)?,
        Pool::Cluster(pool) => cluster_info(pool).await.map_err(ConnectError::Unreachable)?,
    };
    // Valkey says 7.2.4 as its Redis version, and its own in a field of its own.
    match info.get::<String>("valkey_version") {
        Some(version) => check_version(true, Some(&version))?,
        None => check_version(false, info.get::<String>("redis_version").as_ref())?,
    }
    let policy = info.get::<String>("maxmemory_policy").unwrap_or_default();
    if policy != "noeviction" && !policy.is_empty() {
        if !allow_eviction {
            return Err(ConnectError::Evicting(policy));
        }
        tracing::warn!(%policy, "redis may evict keys, and counters with them");
    }
    Ok(())
}

pub(super) fn check_version(valkey: bool, version: Option<&String>) -> Result<(), ConnectError> {
    let (server, least) = if valkey { ("Valkey", (7, 2)) } else { ("Redis", (7, 0)) };
    let version = version.cloned().unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < least {
        return Err(ConnectError::TooOld { server, version });
    }
    Ok(())
}

/// The first node's own words; the nodes of a cluster are alike.
async fn cluster_info(
    pool: &deadpool_redis::cluster::Pool,
) -> Result<redis::InfoDict, Box<dyn std::error::Error + Send + Sync>> {
    use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
    let connection = pool.get().await?;
    let mut connection: ClusterConnection = (*connection).clone();
    let routing = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
    let value = connection.route_command(redis::cmd("INFO"), routing).await?;
    Ok(redis::from_redis_value(value)?)
}
