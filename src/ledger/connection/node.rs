//! Connections to one node at a time: the one behind an address, or the master of the hour.
//!
//! Calls share a few pipelined connections, the lanes; a pool lends others for checks, health and deletions.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::{ConnectionLike as _, ConnectionManager, ConnectionManagerConfig};
use redis::{Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::message::Message;
use super::super::script::Script;
use super::access::Identity;
use super::batch::{Answer, Batch, QueuedCall, Turn, Waiting};
use super::clock::Reading;
use super::functions::Functions;
use super::{AnyError, RedisOptions, timed_out};

/// The shortest time between two reconnections of a connection that does not answer.
const RENEWAL: Duration = Duration::from_secs(1);

/// The number of no master.
const NOBODYS: u64 = u64::MAX;

/// The node that is the master now.
#[derive(Debug, Clone)]
pub(super) struct Master {
    /// Changes with it.
    pub(super) number: u64,
    pub(super) info: ConnectionInfo,
}

/// The source of the current master.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) master: watch::Receiver<Master>,
    /// Wakes who looks for it; nobody, if it is always the same.
    pub(super) doubt: Option<Arc<Notify>>,
    /// Tollgate's identity towards it.
    pub(super) identity: Identity,
}

impl Source {
    /// The same node for ever.
    pub(super) fn fixed(info: ConnectionInfo, identity: Identity) -> Self {
        Self { master: watch::channel(Master { number: 0, info }).1, doubt: None, identity }
    }

    /// Returns the outcome of a command to this master, unless another master takes its place meanwhile. The former
    /// master may come back, and answers as a master until it hears that it is not one: then it forgets its latest
    /// writes.
    async fn while_master<T, E: From<RedisError>>(
        &self,
        number: u64,
        outcome: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if self.doubt.is_none() {
            return outcome.await;
        }
        let mut master = self.master.clone();
        let replaced = async {
            if master.wait_for(|master| master.number != number).await.is_err() {
                // Nobody looks any more.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = replaced => Err(E::from(deposed())),
            outcome = outcome => outcome,
        }
    }
}

/// Connections to it.
pub(super) struct Node {
    source: Source,
    lanes: Vec<Lane>,
    pool: RwLock<(u64, deadpool_redis::Pool)>,
    timeout: Duration,
    /// The command that follows each write, if replicas must have it, and the number of these replicas.
    wait: Option<(u64, Cmd)>,
    /// The largest number of calls that are sent together.
    batch: usize,
    functions: Arc<Functions>,
}

/// A shared connection, and the calls that wait for it.
struct Lane {
    current: RwLock<Current>,
    waiting: Waiting,
}

/// A shared connection, whose it is, and when it was made.
struct Current {
    number: u64,
    connection: ConnectionManager,
    since: Instant,
}

impl Node {
    /// Connects with the first call.
    pub(super) fn new(source: Source, options: &RedisOptions, functions: Arc<Functions>) -> Result<Self, AnyError> {
        let RedisOptions { connections, batch, timeout, wait_replicas, wait_timeout, .. } = *options;
        let wait = (wait_replicas > 0).then(|| {
            let mut wait = redis::cmd("WAIT");
            // None would be for ever.
            wait.arg(wait_replicas).arg(wait_timeout.as_millis().max(1) as u64);
            (wait_replicas as u64, wait)
        });
        let master = source.master.borrow().clone();
        let lane = || {
            let current = RwLock::new(Current::new(&master, &source.identity, timeout)?);
            Ok::<_, RedisError>(Lane { current, waiting: Waiting::default() })
        };
        let lanes = (0..connections.max(1)).map(|_| lane()).collect::<Result<_, _>>()?;
        let pool = RwLock::new((master.number, pool(&master.info, &source.identity, timeout)?));
        Ok(Self { source, lanes, pool, timeout, wait, batch, functions })
    }

    /// Sends a command over the lane that belongs to `hash`.
    pub(super) async fn ask(&self, hash: usize, command: &Cmd, writes: bool) -> Result<Value, RedisError> {
        self.ask_within(hash, command, writes, self.timeout).await
    }

    async fn ask_within(&self, hash: usize, command: &Cmd, writes: bool, limit: Duration) -> Result<Value, RedisError> {
        let lane = &self.lanes[hash % self.lanes.len()];
        let (number, mut connection) = self.connection(lane)?;
        let answer = self.source.while_master(number, self.exchange(&mut connection, command, writes));
        let answer = tokio::time::timeout(limit, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(timed_out()));
        if let Err(error) = &answer {
            self.renew_after(lane, error);
        }
        answer
    }

    /// Sends a command. If it writes and replicas must have the write, WAIT follows in the same piece. WAIT covers
    /// everything until then, also what a retry finds, and keeps the connection until it is answered: later commands
    /// wait, and go together.
    async fn exchange(
        &self,
        connection: &mut ConnectionManager,
        command: &Cmd,
        writes: bool,
    ) -> Result<Value, RedisError> {
        let Some((replicas, wait)) = self.wait.as_ref().filter(|_| writes) else {
            return command.query_async(connection).await;
        };
        let mut both = redis::pipe();
        both.add_command(command.clone()).add_command(wait.clone());
        let mut answers = connection.req_packed_commands(&both, 0, 2).await?.into_iter();
        let answer = answers.next().unwrap_or(Value::Nil).extract_error()?;
        // ONCE: it has taken effect here, and may be forgotten by a failover. So nothing is claimed, and the same id finds it.
        match answers.next().unwrap_or(Value::Nil).extract_error() {
            Ok(Value::Int(number)) if u64::try_from(number).is_ok_and(|number| number >= *replicas) => Ok(answer),
            told => {
                let told = match told {
                    Ok(Value::Int(number)) => format!("{number} of {replicas} in time"),
                    Ok(_) => "the answer is none".to_owned(),
                    Err(error) => error.to_string(),
                };
                Err((ErrorKind::Client, "too few replicas have acknowledged a write", told).into())
            }
        }
    }

    /// Returns the host and the port of the node. A Unix socket has no port.
    pub(super) fn address(&self) -> (String, Option<u16>) {
        match self.source.master.borrow().info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), Some(*port)),
            ConnectionAddr::Unix(path) => (path.display().to_string(), None),
            // The library may come to know others.
            other => (other.to_string(), None),
        }
    }

    /// Returns whether calls of one script are sent together.
    pub(super) fn batches(&self) -> bool {
        self.batch > 1
    }

    /// Calls a script over the lane that belongs to `hash`, together with other calls that arrive while a command is in
    /// flight there.
    pub(super) async fn call(self: &Arc<Self>, hash: usize, script: &'static Script, message: Message) -> Answer {
        let number = hash % self.lanes.len();
        let (call, answer) = QueuedCall::new(script, hash, message, Instant::now() + self.timeout);
        if let Some(connection) = self.lanes[number].waiting.push(call, self.source.master.borrow().number) {
            let node = Arc::clone(self);
            // A task of its own: the caller may go away, and its neighbours' calls must not go with it.
            tokio::spawn(async move { node.send_waiting(&node.lanes[number], connection).await });
        }
        answer.await.unwrap_or_else(|_| Err(Arc::new(timed_out())))
    }

    async fn send_waiting(&self, lane: &Lane, connection: u64) {
        let mut turn = Turn::new(&lane.waiting, connection);
        while let Some(mut batch) = turn.next(self.batch) {
            let script = batch.script();
            let mut answer = Err(timed_out());
            for (name, subject) in self.functions.ways(script) {
                if !batch.keep_waiting() {
                    break;
                }
                answer = self.send(lane, &mut batch, name, subject).await;
                if !self.functions.lacked(name, &answer) {
                    break;
                }
            }
            if let Err(error) = &answer {
                self.renew_after(lane, error);
            }
            batch.answer(answer);
        }
    }

    /// Sends a batch. Each of its calls is given up when its own time is over, and so are those that wait behind it.
    async fn send(&self, lane: &Lane, batch: &mut Batch, name: &str, subject: &str) -> Result<Value, RedisError> {
        let command = batch.command(name, subject);
        let (number, mut connection) = self.connection(lane)?;
        let exchange = self.exchange(&mut connection, &command, batch.script().writes);
        let mut answer = std::pin::pin!(self.source.while_master(number, exchange));
        while let Some(deadline) = batch.deadline() {
            let deadline = lane.waiting.deadline().map_or(deadline, |other| deadline.min(other));
            match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(answer) => return answer,
                Err(_) => {
                    batch.expire(deadline);
                    lane.waiting.expire(deadline);
                }
            }
        }
        Err(timed_out())
    }

    /// Checks over every lane that the node answers within `limit` and takes writes. Returns its time if it answered
    /// quickly. A lane that leads to a demoted or a silent node is thereby reconnected, even if no call, or none that
    /// writes, uses it.
    pub(super) async fn probe(self: &Arc<Self>, limit: Duration) -> Result<Option<Reading>, RedisError> {
        // Writes nothing, but is declared as a script that does: Redis refuses it wherever it refuses to write, except for want
        // of memory, when commits and releases go on.
        const WRITABLE: &str = "#!lua flags=allow-oom\nreturn redis.call('TIME')";
        let mut probes = JoinSet::new();
        for lane in 0..self.lanes.len() {
            let node = Arc::clone(self);
            let mut command = redis::cmd("EVAL");
            command.arg(WRITABLE).arg(0);
            let asked = std::time::Instant::now();
            probes.spawn(async move {
                node.ask_within(lane, &command, false, limit).await.map(|time| Reading::of(&time, asked))
            });
        }
        let readings: Result<Vec<_>, _> = probes.join_all().await.into_iter().collect();
        Ok(readings?.into_iter().flatten().next())
    }

    /// The number of the master, and a connection to it.
    fn connection(&self, lane: &Lane) -> Result<(u64, ConnectionManager), RedisError> {
        let number = self.source.master.borrow().number;
        {
            let current = lane.current.read().unwrap_or_else(PoisonError::into_inner);
            if current.number == number {
                return Ok((number, current.connection.clone()));
            }
        }
        let mut current = lane.current.write().unwrap_or_else(PoisonError::into_inner);
        let master = self.source.master.borrow().clone();
        if current.number != master.number {
            *current = Current::new(&master, &self.source.identity, self.timeout)?;
        }
        Ok((current.number, current.connection.clone()))
    }

    /// Reconnects a lane after an error that calls for it. After a failover behind one address the old connection stays
    /// open, to a node that is only a replica now or that never answers again. The next call connects anew; calls in
    /// flight keep their connection. The same happens where Redis has not accepted a password or a certificate, as the
    /// files may hold others by now; the library would not look again.
    fn renew_after(&self, lane: &Lane, error: &RedisError) {
        let demoted = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
        if demoted || error.is_io_error() {
            self.doubt();
        }
        if !(demoted || error.is_timeout() || self.source.identity.may_have_changed(error)) {
            return;
        }
        let mut current = lane.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.since.elapsed() < RENEWAL {
            return;
        }
        let master = self.source.master.borrow().clone();
        if let Ok(fresh) = Current::new(&master, &self.source.identity, self.timeout) {
            tracing::warn!(%error, "reconnecting to redis");
            *current = fresh;
            lane.waiting.replaced();
        }
    }

    /// Asks for a check whether the master is still the same.
    fn doubt(&self) {
        if let Some(doubt) = &self.source.doubt {
            doubt.notify_one();
        }
    }

    /// Sends a command over a connection that is lent for it.
    pub(super) async fn administer<T: redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, AnyError> {
        let (number, pool) = self.pool()?;
        let work = async {
            let mut connection = match pool.get().await {
                Ok(connection) => connection,
                Err(error) => {
                    // The next one is made of the certificates that the files hold then.
                    self.pool.write().unwrap_or_else(PoisonError::into_inner).0 = NOBODYS;
                    return Err(error.into());
                }
            };
            match command.query_async(&mut connection).await {
                Ok(answer) => Ok(answer),
                Err(error) => {
                    // The pool looks only whether a connection answers: one to a node that was demoted must not go back to it.
                    drop(deadpool_redis::Connection::take(connection));
                    self.doubt();
                    Err(error.into())
                }
            }
        };
        self.source.while_master(number, work).await
    }

    /// The number of the master, and connections to it.
    fn pool(&self) -> Result<(u64, deadpool_redis::Pool), AnyError> {
        let master = self.source.master.borrow().clone();
        {
            let current = self.pool.read().unwrap_or_else(PoisonError::into_inner);
            if current.0 == master.number {
                return Ok(current.clone());
            }
        }
        let fresh = pool(&master.info, &self.source.identity, self.timeout)?;
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = (master.number, fresh.clone());
        Ok((master.number, fresh))
    }
}

impl Current {
    fn new(master: &Master, identity: &Identity, timeout: Duration) -> Result<Self, RedisError> {
        let connection = lazy(master.info.clone(), identity, timeout)?;
        Ok(Self { number: master.number, connection, since: Instant::now() })
    }
}

/// Returns the error for commands to the last master, where they may have run.
fn deposed() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "another node has become the master").into()
}

/// A connection that is made by its first call, and again whenever it breaks. It sends nothing twice.
pub(super) fn lazy(
    info: ConnectionInfo,
    identity: &Identity,
    timeout: Duration,
) -> Result<ConnectionManager, RedisError> {
    let mut config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(timeout))
        // Each caller that waits for an answer has a timeout of its own.
        .set_response_timeout(None)
        .set_min_delay(Duration::from_millis(20))
        .set_max_delay(Duration::from_millis(500));
    if let Some(password) = identity.password() {
        config = config.set_credentials_provider(password);
    }
    ConnectionManager::new_lazy_with_config(redis::Client::open(identity.with_certificates(info)?)?, config)
}

fn pool(info: &ConnectionInfo, identity: &Identity, timeout: Duration) -> Result<deadpool_redis::Pool, AnyError> {
    let config =
        redis::AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
    let manager =
        deadpool_redis::Manager::new_with_config(identity.with_certificates(info.clone())?, identity.present(config))?;
    let pool = deadpool_redis::Pool::builder(manager)
        .max_size(2)
        .timeouts(deadpool_redis::Timeouts { wait: Some(timeout), create: Some(timeout), recycle: Some(timeout) })
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()?;
    Ok(pool)
}
