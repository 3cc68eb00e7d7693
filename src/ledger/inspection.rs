//! Reads a live Redis for `tollgate verify`: finds the users, and reads the stored data of each. Nothing is written,
//! and a script looks at a few hundred entries; where a user's state changes too often for that, at a few thousand.
//!
//! Each answer is one moment of the user's state: a contradiction within it is not a race with concurrent calls.
//! Answers with the same stamp are of one state.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisError, ServerErrorKind, Value};
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::domain::id::{Field, Owner, PlanDigest};

use super::connection::access::Identity;
use super::connection::check::judge_version;
use super::script::{Script, scripts};
use super::{ConnectError, RedisAccess, UserKeys, keys};

/// The number of keys that one `SCAN` looks at.
const PAGE: usize = 250;

/// The time that an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Redis did not let itself be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read from Redis: check that it runs, and the permissions of its user (tollgate verify --help lists those it needs)"
)]
pub struct Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>);

impl From<RedisError> for Unreadable {
    fn from(error: RedisError) -> Self {
        Self(Box::new(error))
    }
}

/// A user's keys, as they were seen at one moment.
#[derive(Debug, Clone, Deserialize)]
pub struct UserSnapshot {
    /// Redis's own time.
    pub redis_ms: i64,
    /// The types of the state and of both memories, as `TYPE` names them.
    pub types: [String; 3],
    /// The time at which each of them expires; -1 for never, -2 where there is none.
    pub expiries_ms: [i64; 3],
    /// The first answer has all of it, the others its beginning with head and memory. Empty if there is none.
    pub state: ByteBuf,
    /// The same until something is written that decides.
    pub stamp: String,
    /// The undo of each memory; empty if there is none.
    pub undos: [ByteBuf; 2],
    /// Some fields of each memory. A field may come twice.
    pub pages: [Page; 2],
}

/// Some fields of one memory.
#[derive(Debug, Clone, Deserialize)]
pub struct Page {
    /// The cursor of the next page; empty after the last.
    pub next: String,
    /// Names and values, one after the other.
    pub fields: Vec<ByteBuf>,
}

impl Page {
    /// The fields, by name and value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.chunks_exact(2).map(|pair| (pair[0].as_slice(), pair[1].as_slice()))
    }
}

/// The cursors of the two memories, while they are read.
#[derive(Debug, Clone)]
pub struct Cursors([String; 2]);

impl Default for Cursors {
    fn default() -> Self {
        Self(["0", "0"].map(str::to_owned))
    }
}

/// A key that shows a live hold, and its record. What there is not is empty.
#[derive(Debug, Clone, Deserialize)]
pub struct HoldEntry {
    /// The type of the key, as `TYPE` names it.
    pub kind: String,
    /// The time at which it expires; -1 for never, -2 where there is none.
    pub expires_at_ms: i64,
    /// Its value.
    pub text: ByteBuf,
    /// The record in each memory.
    pub records: [ByteBuf; 2],
}

/// Keys that show live holds, all of them seen at one moment.
#[derive(Debug, Deserialize)]
pub struct Holds {
    /// Redis's own time.
    pub redis_ms: i64,
    /// The beginning of the state, with head and memory. Empty if there is none.
    pub head: ByteBuf,
    /// The undo of each memory; empty if there is none.
    pub undos: [ByteBuf; 2],
    /// The holds, in the order of the question.
    pub holds: Vec<HoldEntry>,
}

/// A plan of the archive.
#[derive(Debug, Clone, Deserialize)]
pub struct ArchivedPlan {
    /// The type of the key, as `TYPE` names it.
    pub kind: String,
    /// The time at which it expires; -1 for never, -2 where there is none.
    pub expires_at_ms: i64,
    /// The message; empty if there is none.
    pub message: ByteBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Inspected(UserSnapshot),
    Holds(Holds),
    Plan(ArchivedPlan),
}

/// The position of a scan: the node, and its cursor there.
#[derive(Debug, Default)]
pub struct ScanPosition {
    node: usize,
    cursor: u64,
}

#[derive(Clone)]
enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Connection {
    fn single(info: ConnectionInfo, identity: &Identity) -> Result<Self, RedisError> {
        let mut config =
            ConnectionManagerConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        if let Some(password) = identity.password() {
            config = config.set_credentials_provider(password);
        }
        ConnectionManager::new_lazy_with_config(redis::Client::open(identity.with_certificates(info)?)?, config)
            .map(Self::Single)
    }

    async fn cluster(nodes: Vec<ConnectionInfo>, identity: &Identity) -> Result<Self, RedisError> {
        let builder = ClusterClient::builder(nodes).connection_timeout(PATIENCE).response_timeout(PATIENCE);
        identity.present_to_cluster(builder)?.build()?.get_async_connection().await.map(Self::Cluster)
    }

    async fn send(&self, command: Cmd) -> Result<Value, RedisError> {
        match self.clone() {
            Self::Single(mut connection) => command.query_async(&mut connection).await,
            Self::Cluster(mut connection) => command.query_async(&mut connection).await,
        }
    }
}

/// Reads one Redis, or all masters of a cluster.
#[derive(Clone)]
pub struct Inspector {
    connection: Connection,
    /// The masters of a cluster; none for a single node.
    masters: Vec<(String, u16)>,
}

impl Inspector {
    /// Connects, and asks for nothing but who answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(urls: &[String], access: &RedisAccess) -> Result<Self, ConnectError> {
        let mut nodes = Vec::new();
        for (index, url) in urls.iter().enumerate() {
            let info = url.as_str().into_connection_info();
            nodes.push(info.map_err(|source| ConnectError::BadUrl { number: index + 1, source })?);
        }
        let (Some(first), several) = (nodes.first().cloned(), nodes.len() > 1) else {
            return Err(ConnectError::NoUrl);
        };
        let identity = access.identity(&nodes)?;
        let unreachable = |error: RedisError| ConnectError::Unreachable(Box::new(error));
        let connect = async {
            let single = Connection::single(first, &identity).map_err(unreachable)?;
            let mut inspector = Self { connection: single, masters: Vec::new() };
            let hello = inspector.hello().await;
            // One of several nodes of a cluster may be down.
            if let Ok(hello) = &hello {
                let version = hello.get("version").cloned().unwrap_or_default();
                judge_version(hello.get("server").is_some_and(|name| name == "valkey"), version, "this Redis")?;
            }
            if several || hello.map_err(unreachable)?.get("mode").is_some_and(|mode| mode == "cluster") {
                inspector.connection = Connection::cluster(nodes, &identity).await.map_err(unreachable)?;
                inspector.masters = inspector.masters().await.map_err(unreachable)?;
            }
            Ok(inspector)
        };
        let connected = tokio::time::timeout(PATIENCE, connect).await;
        connected.map_err(|elapsed| ConnectError::Unreachable(elapsed.into()))?
    }

    /// Asks the server to describe itself.
    async fn hello(&self) -> Result<HashMap<String, String>, RedisError> {
        let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let fields: HashMap<String, Value> = redis::from_redis_value(self.route(redis::cmd("HELLO"), random).await?)?;
        let text = |value| redis::from_redis_value::<String>(value).ok();
        Ok(fields.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect())
    }

    async fn masters(&self) -> Result<Vec<(String, u16)>, RedisError> {
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let answers: HashMap<String, Value> = redis::from_redis_value(self.route(redis::cmd("PING"), masters).await?)?;
        let mut found = Vec::new();
        for address in answers.into_keys() {
            let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
            found.push(parts.ok_or((ErrorKind::Client, "the address of a master is not understood", address))?);
        }
        found.sort();
        Ok(found)
    }

    async fn route(&self, command: Cmd, routing: RoutingInfo) -> Result<Value, RedisError> {
        match self.connection.clone() {
            Connection::Single(mut connection) => command.query_async(&mut connection).await,
            Connection::Cluster(mut connection) => connection.route_command(command, routing).await,
        }
    }

    /// Returns some of Tollgate's keys, from `position` on; a key may come twice. `None` after the last.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub async fn scan(&self, position: ScanPosition) -> Result<(Vec<Vec<u8>>, Option<ScanPosition>), Unreadable> {
        let ScanPosition { node, cursor } = position;
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(keys::pattern()).arg("COUNT").arg(PAGE);
        let master = self.masters.get(node).cloned();
        let routing = match master {
            Some((host, port)) => SingleNodeRoutingInfo::ByAddress { host, port },
            None => SingleNodeRoutingInfo::Random,
        };
        let answer = self.route(scan, RoutingInfo::SingleNode(routing)).await?;
        let (cursor, keys): (u64, Vec<Vec<u8>>) = redis::from_redis_value(answer).map_err(RedisError::from)?;
        let next = match cursor {
            0 if node + 1 < self.masters.len() => Some(ScanPosition { node: node + 1, cursor: 0 }),
            0 => None,
            cursor => Some(ScanPosition { node, cursor }),
        };
        Ok((keys, next))
    }

    /// Reads the parts of a user that must be seen at one moment, and about `count` fields of each memory from
    /// `cursors` on. Also returns the cursors to go on with; `None` after the last field.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub async fn user(
        &self,
        owner: &Owner,
        cursors: &Cursors,
        count: usize,
    ) -> Result<(UserSnapshot, Option<Cursors>), Unreadable> {
        let [one, two] = &cursors.0;
        let count = count.to_string();
        let args = [one, two, &count].map(|argument| argument.as_bytes());
        match self.ask(&scripts().inspect, &UserKeys::new(owner).all(), &args).await? {
            Answer::Inspected(seen) => {
                let next = seen.pages.each_ref().map(|page| page.next.clone());
                let more = next.iter().any(|cursor| !cursor.is_empty());
                Ok((seen, more.then_some(Cursors(next))))
            }
            _ => Err(unfitting()),
        }
    }

    /// The keys that show these holds, in this order.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub async fn holds(&self, owner: &Owner, fields: &[Field]) -> Result<Holds, Unreadable> {
        let user_keys = UserKeys::new(owner);
        let mut keys = user_keys.all().to_vec();
        keys.extend(fields.iter().map(|field| user_keys.hold(field)));
        let args: Vec<_> = fields.iter().map(<[u8; 16]>::as_slice).collect();
        match self.ask(&scripts().inspect_holds, &keys, &args).await? {
            Answer::Holds(holds) if holds.holds.len() == fields.len() => Ok(holds),
            _ => Err(unfitting()),
        }
    }

    /// A plan of the archive.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub async fn plan(&self, digest: &PlanDigest) -> Result<ArchivedPlan, Unreadable> {
        match self.ask(&scripts().inspect_plan, &[keys::plan(digest)], &[]).await? {
            Answer::Plan(plan) => Ok(plan),
            _ => Err(unfitting()),
        }
    }

    /// Runs a script that may only read. A replica or a user with read access is enough for it.
    async fn ask(&self, script: &Script, keys: &[String], args: &[&[u8]]) -> Result<Answer, Unreadable> {
        let command = |name: &str, subject: &str| {
            let mut command = redis::cmd(name);
            command.arg(subject).arg(keys.len()).arg(keys).arg(args);
            command
        };
        let packed = match self.connection.send(command("EVALSHA_RO", &script.sha1)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.connection.send(command("EVAL_RO", &script.body)).await
            }
            answer => answer,
        }?;
        let packed: Vec<u8> = redis::from_redis_value(packed).map_err(RedisError::from)?;
        rmp_serde::from_slice(&packed).map_err(|error| Unreadable(Box::new(error)))
    }
}

fn unfitting() -> Unreadable {
    Unreadable("a script answered what does not fit the question".into())
}
