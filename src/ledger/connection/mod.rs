//! Connections to Redis: a few shared and pipelined ones for the scripts, a pool for checks and administration.
//!
//! Sharing is what makes one round trip cheap: many calls travel in one packet. A pool that lends a connection per call
//! costs more than twice the CPU (docs/development/adr/0003-connections.md).

pub(super) mod access;
mod batch;
pub(super) mod check;
mod clock;
mod cluster;
mod functions;
mod node;
mod permissions;
mod sentinel;
mod target;

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, InfoDict, RedisError, ServerErrorKind, Value};

use crate::domain::fault::Fault;
use crate::domain::id::Owner;

use super::message::Message;
use super::script::{Script, scripts};
use crate::telemetry::labels::RedisError as Kind;
use crate::telemetry::{metrics, trace};
use access::Identity;
pub use access::RedisAccess;
use clock::Clocks;
use cluster::Cluster;
use functions::Functions;
use node::{Node, Source};
use target::Target;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The Redis to use, and the settings of the connections to it.
#[derive(Clone)]
pub struct RedisOptions {
    /// The URL of a single node, or several URLs for the nodes of a cluster.
    pub urls: Vec<String>,
    /// The Sentinels, if they watch the Redis: the host of the one URL above is then the name of the master.
    pub sentinels: Vec<String>,
    /// The number of connections that the scripts share.
    pub connections: usize,
    /// The largest number of calls of one script that are sent together; 1 for none.
    pub batch: usize,
    /// The time to wait for an answer before the outcome counts as unknown.
    pub timeout: Duration,
    /// Serve even if Redis may evict keys.
    pub allow_eviction: bool,
    /// The number of replicas that must have a write before it is acknowledged; 0 for none. Not on a cluster.
    pub wait_replicas: usize,
    /// The time to wait for them before the outcome counts as unknown.
    pub wait_timeout: Duration,
    /// Users, passwords and certificates that are not in URLs.
    pub access: RedisAccess,
}

impl Default for RedisOptions {
    /// The options without any URL, and with the defaults of the settings.
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            sentinels: Vec::new(),
            connections: 2,
            batch: 32,
            timeout: Duration::from_secs(2),
            allow_eviction: false,
            wait_replicas: 0,
            wait_timeout: Duration::from_millis(100),
            access: RedisAccess::default(),
        }
    }
}

/// Without the URLs, which may hold passwords.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { urls, sentinels, connections, batch, timeout, allow_eviction, wait_replicas, wait_timeout, access } =
            self;
        f.debug_struct("RedisOptions")
            .field("urls", &urls.len())
            .field("sentinels", &sentinels.len())
            .field("connections", connections)
            .field("batch", batch)
            .field("timeout", timeout)
            .field("allow_eviction", allow_eviction)
            .field("wait_replicas", wait_replicas)
            .field("wait_timeout", wait_timeout)
            .field("access", access)
            .finish()
    }
}

/// The reason why this Redis cannot keep a ledger.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no URL.
    #[error("no Redis URL is given")]
    NoUrl,
    /// A URL that is not understood. It is not repeated: it may hold a password.
    #[error("redis URL number {number} is not understood: write it as redis://host:port, rediss://... or unix:///path")]
    BadUrl {
        /// Counted from 1.
        number: usize,
        /// The error of the parser.
        #[source]
        source: RedisError,
    },
    /// The URL of a Sentinel that is not understood.
    #[error("--redis-sentinel number {number} is not understood: write it as redis://host:26379 or rediss://...")]
    BadSentinelUrl {
        /// Counted from 1.
        number: usize,
        /// The error of the parser.
        #[source]
        source: RedisError,
    },
    /// Settings that are understood, but not together.
    #[error("{0}")]
    Misfit(&'static str),
    /// A file that is needed and does not serve.
    #[error("cannot use the file of --{setting}, {}: {source}", path.display())]
    Unusable {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem with the file, without its content. Part of the text, as it is short.
        source: AnyError,
    },
    /// The access list lacks what calls need.
    #[error(
        "the access list of {node} forbids what Tollgate needs: {lacking}; grant it with ACL SETUSER {grants}, or see \
         docs/operating/redis.md for the whole list"
    )]
    Forbidden {
        /// The node that forbids it.
        node: String,
        /// Commands, and whether keys.
        lacking: String,
        /// Rules for the user.
        grants: String,
    },
    /// Redis does not answer.
    #[error("cannot reach Redis: check that it runs, and the address and password of --redis-url")]
    Unreachable(#[source] AnyError),
    /// Several nodes that know nothing of each other.
    #[error(
        "several --redis-url name the nodes of a cluster, but this Redis is not one: give one URL, or the name of the master and \
         --redis-sentinel"
    )]
    NoCluster(#[source] RedisError),
    /// The Sentinels name no master that can be used.
    #[error(
        "there is no master {name:?}: check the host of --redis-url, which is the name that the Sentinels know, and the \
         addresses and passwords of --redis-sentinel and --redis-url"
    )]
    NoMaster {
        /// The name that the Sentinels should know.
        name: String,
        /// The error that was met.
        #[source]
        source: AnyError,
    },
    /// Too old.
    #[error("{node} is {server} {version}, but Tollgate needs Redis 7.0 or Valkey 7.2, or newer")]
    TooOld {
        /// The node.
        node: String,
        /// Redis or Valkey.
        server: &'static str,
        /// The version of the node, as it reports it.
        version: String,
    },
    /// Its scripts cannot compute with amounts and times.
    #[error("{node} is a build of 32 bits, whose scripts cannot hold amounts and times: use one of 64 bits")]
    ThirtyTwoBits {
        /// The node.
        node: String,
    },
    /// Keys could vanish.
    #[error(
        "maxmemory-policy of {node} is {policy}, under which Redis drops counters when memory is short: set it to noeviction, \
         or pass --allow-eviction to serve all the same"
    )]
    Evicting {
        /// The node.
        node: String,
        /// The eviction policy.
        policy: String,
    },
}

#[derive(Clone)]
pub(super) struct Connections {
    to: To,
    functions: Arc<Functions>,
    timeout: Duration,
    clocks: Arc<Clocks>,
}

/// A user's calls all take the same of several connections, so that they keep their order.
#[derive(Clone)]
enum To {
    Node(Arc<Node>),
    Cluster(Arc<Cluster>),
}

impl Connections {
    pub(super) async fn open(options: &RedisOptions) -> Result<Self, ConnectError> {
        // So that the first calls, which arrive together, do not each send a whole script.
        let load = |script: &&Script| {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(&*script.body);
            ("script|load", load)
        };
        let prepare: Vec<(&'static str, Cmd)> = scripts().all().iter().map(load).collect();
        let functions = Arc::new(Functions::default());
        let target = Target::of(options)?;
        let opened = async {
            let (source, alone) = match target {
                Target::Node(info, identity) => {
                    let source = Source::fixed(info.as_ref().clone(), identity.clone());
                    (source, Some((*info, identity)))
                }
                Target::Sentinels(watched) => (sentinel::follow(*watched, options.allow_eviction).await?, None),
                Target::Cluster(nodes, identity) => return open_cluster(nodes, identity, options, prepare).await,
            };
            let node = Node::new(source, options, Arc::clone(&functions)).map_err(ConnectError::Unreachable)?;
            let told: Result<InfoDict, AnyError> = node.administer(&redis::cmd("INFO")).await;
            match told {
                Ok(info) => {
                    check::judge(&info, "this Redis", options.allow_eviction)?;
                    // One address that stands for a whole cluster.
                    if check::is_of_a_cluster(&info)
                        && let Some((info_of_one, identity)) = alone
                    {
                        return open_cluster(vec![info_of_one], identity, options, prepare).await;
                    }
                    check::tell(&info, "this Redis", options.wait_replicas);
                }
                Err(error) if permissions::is_forbidden(&*error) => check::tell_nothing("this Redis"),
                Err(error) => return Err(ConnectError::Unreachable(error)),
            }
            let mut lacking = permissions::Lacking::default();
            for (permission, command) in permissions::commands(options.wait_replicas > 0).chain(prepare) {
                match node.administer::<Value>(&command).await {
                    Err(error) if is_loading(&*error) => {
                        tracing::warn!("redis is still loading its data: until it has, calls are UNAVAILABLE");
                        break;
                    }
                    answer => lacking.note(permission, answer).map_err(ConnectError::Unreachable)?,
                }
            }
            lacking.verdict("this Redis")?;
            let may_read: Result<bool, _> = node.administer(&check::may_read_expiry()).await;
            if may_read.is_ok_and(|may| may)
                && let Ok(settings) = node.administer(&check::read_expiry()).await
            {
                check::tell_expiry(&settings, "this Redis");
            }
            Ok(To::Node(Arc::new(node)))
        };
        // Longer than the search for a master takes, which tells more.
        let limit = Duration::from_secs(15);
        let opened = tokio::time::timeout(limit, opened).await;
        let to = opened.map_err(|elapsed| ConnectError::Unreachable(elapsed.into()))??;
        let connections = Self { to, functions, timeout: options.timeout, clocks: Arc::default() };
        connections.load_functions().await;
        Ok(connections)
    }

    /// Runs a script as a function, by its digest or by its text: the first of these that Redis has. Where it lacks one nothing has run.
    pub(super) async fn evaluate(
        &self,
        script: &'static Script,
        owner: &Owner,
        message: Message,
    ) -> Result<Vec<u8>, Fault> {
        let (started, mut span) = (Instant::now(), trace::script(script.name, || self.address()));
        let answer = match &self.to {
            To::Node(node) if node.batches() && script.batches => node.call(hash(owner), script, message).await,
            // On the heap, so that the other way, which is the usual one, does not carry its room.
            _ => Box::pin(self.evaluate_alone(script, owner, &message)).await.map_err(Arc::new),
        };
        script.duration.observe(started.elapsed().as_secs_f64());
        answer.map_err(|error| {
            let kind = kind(&error);
            metrics().redis_error(kind);
            if let Some(span) = &mut span {
                span.failed(kind);
            }
            if is_script_error(&error) {
                tracing::error!(script = script.name, %error, "a script failed");
                Fault::Internal(Box::new(error))
            } else {
                // The code that answers the call logs it, with its reason.
                tracing::debug!(script = script.name, %error, "redis gave no answer");
                Fault::Unavailable(Box::new(error))
            }
        })
    }

    async fn evaluate_alone(&self, script: &Script, owner: &Owner, message: &Message) -> Result<Vec<u8>, RedisError> {
        let mut answer = Err(timed_out());
        for (name, subject) in self.functions.ways(script) {
            answer = self.ask(owner, &batch::command(name, subject, &[message]), script.writes).await;
            if !self.functions.lacked(name, &answer) {
                break;
            }
        }
        match answer? {
            answer if script.batches => batch::parts(answer, 1)?.next().unwrap_or_else(|| Err(timed_out())),
            answer => Ok(redis::from_redis_value(answer)?),
        }
    }

    /// Gives Redis the functions. Where it takes none, scripts do the same.
    async fn load_functions(&self) {
        for load in functions::loads() {
            let loaded = match &self.to {
                To::Node(node) => node.administer::<Value>(&load).await,
                To::Cluster(cluster) => cluster.administer(&load).await.map_err(Into::into),
            };
            if let Err(error) = loaded {
                self.functions.refused(&*error);
                return;
            }
        }
        self.functions.loaded();
    }

    /// Returns the address of the Redis that is asked. For a cluster, only the library knows it.
    fn address(&self) -> Option<(String, Option<u16>)> {
        match &self.to {
            To::Node(node) => Some(node.address()),
            To::Cluster(_) => None,
        }
    }

    /// An error leaves the outcome unknown, unless it is an answer. Nothing is sent again that may have run.
    async fn ask(&self, owner: &Owner, command: &Cmd, writes: bool) -> Result<Value, RedisError> {
        match &self.to {
            To::Node(node) => node.ask(hash(owner), command, writes).await,
            To::Cluster(cluster) => cluster.ask(hash(owner), command).await,
        }
    }

    /// Runs a command that is not a script.
    pub(super) async fn command(&self, owner: &Owner, command: &Cmd, writes: bool) -> Result<Value, Fault> {
        let answer = self.ask(owner, command, writes).await.and_then(Value::extract_error);
        answer.map_err(|error| {
            metrics().redis_error(kind(&error));
            Fault::Unavailable(Box::new(error))
        })
    }

    /// Checks that Redis answers within `limit` and takes writes, over every connection that calls use. Of a cluster,
    /// it checks that it serves. It also reports Redis's clock to operators.
    pub(super) async fn probe(&self, limit: Duration) -> Result<(), AnyError> {
        match &self.to {
            To::Node(node) => {
                let reading = node.probe(limit.min(self.timeout)).await?;
                self.clocks.tell(reading.map(|reading| ("redis".to_owned(), reading)));
            }
            To::Cluster(cluster) => {
                // A master that hangs must not make the probe slow.
                let (is_up, readings) = tokio::join!(cluster.is_up(limit), cluster.clocks(limit / 4));
                self.clocks.tell(readings);
                if !is_up? {
                    return Err("the cluster's state is not ok".into());
                }
            }
        }
        if self.functions.are_lost() {
            // A late answer is not a reason to call Redis absent.
            let _: Result<(), _> = tokio::time::timeout(limit, self.load_functions()).await;
        }
        Ok(())
    }
}

async fn open_cluster(
    nodes: Vec<redis::ConnectionInfo>,
    identity: Identity,
    options: &RedisOptions,
    prepare: Vec<(&'static str, Cmd)>,
) -> Result<To, ConnectError> {
    if options.wait_replicas > 0 {
        return Err(ConnectError::Misfit(
            "--redis-wait-replicas is not for a cluster: set min-replicas-to-write there, and leave it out",
        ));
    }
    let cluster = Cluster::open(nodes, identity, options.connections.max(1), options.timeout).await?;
    cluster.check(options.allow_eviction, prepare).await?;
    Ok(To::Cluster(Arc::new(cluster)))
}

/// Hashes an owner, so that calls of one user always use the same lane.
fn hash(owner: &Owner) -> usize {
    let mut hasher = DefaultHasher::new();
    owner.tag().hash(&mut hasher);
    hasher.finish() as usize
}

/// Returns whether the error means that Redis was restarted and does not take commands yet, but will without help.
fn is_loading(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<RedisError>()
        .is_some_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading))
}

/// Returns the kind of an error, for metrics.
fn kind(error: &RedisError) -> Kind {
    match (error.kind(), error.code()) {
        _ if error.is_timeout() => Kind::Timeout,
        _ if error.is_io_error() => Kind::Io,
        (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => Kind::ReadOnly,
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => Kind::Loading,
        (ErrorKind::Server(ServerErrorKind::ClusterDown), _) => Kind::ClusterDown,
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOPERM" | "NOAUTH" | "WRONGPASS")) => Kind::Access,
        (_, Some("OOM")) => Kind::OutOfMemory,
        (_, Some("NOREPLICAS")) => Kind::NoReplicas,
        _ if is_script_error(error) => Kind::Script,
        _ => Kind::Other,
    }
}

/// An error of the script itself, rather than of reaching Redis or of Redis's state.
fn is_script_error(error: &RedisError) -> bool {
    // A key that is not there, of a slot that is on its way to another node: nothing was decided, and that passes.
    if error.detail().is_some_and(|detail| detail.contains("access a non local key")) {
        return false;
    }
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        || error.code() == Some("WRONGTYPE")
        || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
