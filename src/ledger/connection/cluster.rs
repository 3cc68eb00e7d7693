//! A Redis Cluster: redis-rs knows which node has which slot; what to do with an answer that is none is decided here.
//!
//! The library would send a command again by itself after a timeout or a broken connection, when it may have run already. So its
//! retries are off, and a command is sent again only after an answer which says that it did not run (ONCE).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike as _, ConnectionManager};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ConnectionInfo, ErrorKind, InfoDict, RedisError, ServerErrorKind, Value};

use super::access::Identity;
use super::clock::Reading;
use super::node::lazy;
use super::target::{at, tcp};
use super::{AnyError, ConnectError, check, is_loading, permissions, timed_out};

/// The shortest time between two reconnections of a connection that does not answer.
const RENEWAL: Duration = Duration::from_secs(1);

/// The first pause before a command is sent again, after it met a slot that moves, a node that is gone, or a cluster
/// that is down. It doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The number of redirections in a row after which a command fails, because the nodes do not agree yet.
const REDIRECTIONS: usize = 3;

/// Connections to the nodes of a cluster.
pub(super) struct Cluster {
    nodes: Vec<ConnectionInfo>,
    identity: Identity,
    /// Credentials and TLS, which all nodes share.
    alike: ConnectionInfo,
    lanes: Vec<Lane>,
    /// Connections to nodes that were named by a redirection.
    direct: Mutex<HashMap<(String, u16), ConnectionManager>>,
    timeout: Duration,
}

/// A shared connection to each node, and when it was made.
struct Lane {
    current: RwLock<(ClusterConnection, Instant)>,
    renewing: AtomicBool,
}

/// The next step after an answer which says that the command did not run.
#[derive(Debug, PartialEq)]
enum Next {
    Redirect { host: String, port: u16, asking: bool },
    Pause,
}

impl Cluster {
    pub(super) async fn open(
        nodes: Vec<ConnectionInfo>,
        identity: Identity,
        connections: usize,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let alike = nodes.first().ok_or(ConnectError::NoUrl)?.clone();
        let client = client(&nodes, &identity, timeout).map_err(|error| ConnectError::Unreachable(error.into()))?;
        let mut lanes = Vec::new();
        for _ in 0..connections {
            let connection = client.get_async_connection().await.map_err(|error| {
                let alone = error.to_string().contains("cluster support disabled");
                if alone { ConnectError::NoCluster(error) } else { ConnectError::Unreachable(error.into()) }
            })?;
            let current = RwLock::new((connection, Instant::now()));
            lanes.push(Lane { current, renewing: AtomicBool::new(false) });
        }
        Ok(Self { nodes, identity, alike, lanes, direct: Mutex::default(), timeout })
    }

    /// Sends a command to the node of its keys' slot, over the lane that belongs to `hash`.
    pub(super) async fn ask(self: &Arc<Self>, hash: usize, command: &Cmd) -> Result<Value, RedisError> {
        let number = hash % self.lanes.len();
        let deadline = tokio::time::Instant::now() + self.timeout;
        let (mut redirection, mut redirections, mut pause) = (None, 0, FIRST_PAUSE);
        loop {
            let sent = self.send(number, redirection.as_ref(), command);
            let answer = tokio::time::timeout_at(deadline, sent).await.unwrap_or_else(|_| Err(timed_out()));
            let Err(error) = answer else { return answer };
            let Some(next) = did_not_run(&error, redirection.is_some()) else {
                self.renew_after(number, &error);
                return Err(error);
            };
            redirections += 1;
            if next == Next::Pause || redirections > REDIRECTIONS {
                if tokio::time::Instant::now() + pause >= deadline {
                    return Err(error);
                }
                tokio::time::sleep(pause).await;
                (redirections, pause) = (0, LONGEST_PAUSE.min(pause * 2));
            }
            redirection = Some(next).filter(|next| *next != Next::Pause);
        }
    }

    async fn send(&self, lane: usize, redirection: Option<&Next>, command: &Cmd) -> Result<Value, RedisError> {
        let Some(Next::Redirect { host, port, asking }) = redirection else {
            return command.query_async(&mut self.connection(lane)).await;
        };
        let mut connection = self.direct(host, *port)?;
        if !asking {
            return command.query_async(&mut connection).await;
        }
        // In one piece: ASKING is for the next command on the connection, which others share.
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(command.clone());
        let mut answers = connection.req_packed_commands(&both, 0, 2).await?;
        answers.pop().unwrap_or(Value::Nil).extract_error()
    }

    fn connection(&self, lane: usize) -> ClusterConnection {
        self.lanes[lane].current.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn direct(&self, host: &str, port: u16) -> Result<ConnectionManager, RedisError> {
        let mut direct = self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.to_owned(), port);
        if let Some(connection) = direct.get(&key) {
            return Ok(connection.clone());
        }
        let connection = lazy(at(&self.alike, host, port), &self.identity, self.timeout)?;
        direct.insert(key, connection.clone());
        Ok(connection)
    }

    /// Discovers the nodes again after an error that calls for it. A node that has stopped answering keeps its
    /// connections, and the library learns of its successor only from an answer of the node. So after a timeout the
    /// cluster is asked again for the owners of the slots, beside the calls. The same happens after a password or a
    /// certificate was not accepted, as the files may hold others by now.
    fn renew_after(self: &Arc<Self>, number: usize, error: &RedisError) {
        let lane = &self.lanes[number];
        let recent = || lane.current.read().unwrap_or_else(PoisonError::into_inner).1.elapsed() < RENEWAL;
        let renews = error.is_timeout() || self.identity.may_have_changed(error);
        if !renews || recent() || lane.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::warn!(%error, "asking the cluster for its nodes again");
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let opening =
                async { client(&cluster.nodes, &cluster.identity, cluster.timeout)?.get_async_connection().await };
            let opened = tokio::time::timeout(Duration::from_secs(10), opening).await;
            let lane = &cluster.lanes[number];
            match opened {
                Ok(Ok(connection)) => {
                    *lane.current.write().unwrap_or_else(PoisonError::into_inner) = (connection, Instant::now());
                    cluster.direct.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Ok(Err(error)) => tracing::warn!(%error, "the cluster did not list its nodes"),
                Err(_) => tracing::warn!("the cluster did not list its nodes in time"),
            }
            lane.renewing.store(false, Ordering::Release);
        });
    }

    /// Checks every master, its INFO and its access list, and sends it the commands of `prepare`.
    pub(super) async fn check(
        &self,
        allow_eviction: bool,
        prepare: Vec<(&'static str, Cmd)>,
    ) -> Result<(), ConnectError> {
        let unreachable = |error: RedisError| ConnectError::Unreachable(error.into());
        let mut connection = self.connection(0);
        let told: Result<HashMap<String, InfoDict>, _> = redis::cmd("INFO").query_async(&mut connection).await;
        match told {
            Ok(told) => {
                for (node, info) in &told {
                    let node = format!("the master {node}");
                    check::judge(info, &node, allow_eviction)?;
                    check::tell(info, &node, 0);
                }
            }
            Err(error) if permissions::is_forbidden(&error) => check::tell_nothing("the cluster"),
            Err(error) => return Err(unreachable(error)),
        }
        let mut lacking = permissions::Lacking::default();
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("INFO");
        let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let told = connection.route_command(slots, anyone).await.and_then(Value::extract_error);
        if let Ok(told) = &told
            && let Ok(told) = redis::from_redis_value::<String>(told.clone())
            && let Some(uncovered) = check::uncovered(&told)
        {
            tracing::warn!("{uncovered}");
        }
        lacking.note("cluster|info", told.map(|_| Value::Okay)).map_err(ConnectError::Unreachable)?;
        for (permission, command) in permissions::commands(false).chain(prepare) {
            let answer = match permission {
                // Its key is nobody's, and every master has an access list of its own.
                "eval" => {
                    let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                    connection.route_command(command, masters).await.and_then(Value::extract_error)
                }
                _ => command.query_async(&mut connection).await,
            };
            match answer {
                Err(error) if is_loading(&error) => {
                    tracing::warn!(
                        "a master is still loading its data: until it has, calls of its users are UNAVAILABLE"
                    );
                    break;
                }
                answer => lacking.note(permission, answer).map_err(ConnectError::Unreachable)?,
            }
        }
        lacking.verdict("a master of the cluster")?;
        self.check_expiry(connection).await;
        Ok(())
    }

    /// Warns about masters that free expired keys before they go on, where all of them may be asked.
    async fn check_expiry(&self, mut connection: ClusterConnection) {
        let mut ask = async |command: Cmd| {
            let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            connection.route_command(command, masters).await.and_then(Value::extract_error)
        };
        let may_read = ask(check::may_read_expiry()).await.and_then(|told| Ok(redis::from_redis_value(told)?));
        if may_read.is_ok_and(|may: HashMap<String, bool>| may.values().all(|may| *may))
            && let Ok(told) = ask(check::read_expiry()).await
            && let Ok(settings) = redis::from_redis_value::<HashMap<String, HashMap<String, String>>>(told)
        {
            for (node, settings) in settings {
                check::tell_expiry(&settings, &format!("the master {node}"));
            }
        }
    }

    /// Sends a command that is for all masters.
    pub(super) async fn administer(&self, command: &Cmd) -> Result<Value, RedisError> {
        command.query_async(&mut self.connection(0)).await
    }

    /// Returns the readings of the masters' clocks, each with the address of its master. The list is empty if one
    /// master does not answer within `limit`.
    pub(super) async fn clocks(&self, limit: Duration) -> Vec<(String, Reading)> {
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let (asked, mut connection) = (Instant::now(), self.connection(0));
        let told = tokio::time::timeout(limit, connection.route_command(redis::cmd("TIME"), masters)).await;
        let Ok(Ok(Value::Map(told))) = told else { return Vec::new() };
        let of = |(node, time): (Value, Value)| {
            Some((redis::from_redis_value::<String>(node).ok()?, Reading::of(&time, asked)?))
        };
        told.into_iter().filter_map(of).collect()
    }

    /// Returns whether a node, chosen at random, answers within `limit` and says that the cluster serves. If it does
    /// not answer, the nodes are discovered again, as after a call.
    pub(super) async fn is_up(self: &Arc<Self>, limit: Duration) -> Result<bool, AnyError> {
        let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let mut question = redis::cmd("CLUSTER");
        question.arg("INFO");
        let mut connection = self.connection(0);
        let asked = tokio::time::timeout(limit, connection.route_command(question, anyone)).await;
        let answer = asked.unwrap_or_else(|_| Err(timed_out()));
        if let Err(error) = &answer {
            self.renew_after(0, error);
        }
        Ok(redis::from_redis_value::<String>(answer?.extract_error()?)?.contains("cluster_state:ok"))
    }
}

/// The library's client, with what the files of the identity hold now.
fn client(nodes: &[ConnectionInfo], identity: &Identity, timeout: Duration) -> Result<ClusterClient, RedisError> {
    let builder = ClusterClient::builder(nodes.to_vec())
        .connection_timeout(timeout.min(Duration::from_secs(1)))
        .response_timeout(timeout)
        .tcp_settings(tcp())
        .retries(0);
    identity.present_to_cluster(builder)?.build()
}

/// Returns the next step after an answer which says that the command did not run. `None` if it is another answer or
/// none, after which nothing may be sent again.
fn did_not_run(error: &RedisError, directly: bool) -> Option<Next> {
    let redirect = |asking| {
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        let port = port.parse().ok()?;
        (!host.is_empty()).then(|| Next::Redirect { host: host.to_owned(), port, asking })
    };
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => Some(redirect(false).unwrap_or(Next::Pause)),
        ErrorKind::Server(ServerErrorKind::Ask) => Some(redirect(true).unwrap_or(Next::Pause)),
        ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown | ServerErrorKind::ReadOnly) => {
            Some(Next::Pause)
        }
        // Nothing was sent. Of the library's own connections this cannot be told: it answers calls under way with what it met
        // when it looked for nodes.
        _ if directly && error.is_connection_refusal() => Some(Next::Pause),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> RedisError {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn only_what_did_not_run_is_sent_again() {
        let redirect = |host: &str, asking| Some(Next::Redirect { host: host.to_owned(), port: 7001, asking });
        for directly in [false, true] {
            assert_eq!(did_not_run(&answered("MOVED 1 10.0.0.1:7001"), directly), redirect("10.0.0.1", false));
            assert_eq!(did_not_run(&answered("ASK 1 fe80::1:7001"), directly), redirect("fe80::1", true));
            assert_eq!(did_not_run(&answered("MOVED 1 :7001"), directly), Some(Next::Pause));
            for line in ["TRYAGAIN a", "CLUSTERDOWN a", "READONLY a"] {
                assert_eq!(did_not_run(&answered(line), directly), Some(Next::Pause), "{line}");
            }
            for line in ["ERR a", "NOSCRIPT a", "CROSSSLOT a", "LOADING a", "OOM a", "NOREPLICAS a", "MASTERDOWN a"] {
                assert_eq!(did_not_run(&answered(line), directly), None, "{line}");
            }
            for kind in
                [std::io::ErrorKind::TimedOut, std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::UnexpectedEof]
            {
                assert_eq!(did_not_run(&std::io::Error::from(kind).into(), directly), None, "{kind}");
            }
        }
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into();
        assert_eq!(did_not_run(&refused(), true), Some(Next::Pause));
        assert_eq!(did_not_run(&refused(), false), None, "the library says so of calls under way");
    }
}
