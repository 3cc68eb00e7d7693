//! Following the master that Redis Sentinel names.
//!
//! Tollgate asks all Sentinels, every second and whenever a call has met a fault. The answer about the latest failover
//! counts, and only once the node itself says that it is a master: until then the last one stays, as Sentinels may be
//! gone while Redis serves. Tollgate remembers the latest failover. A Sentinel that missed it may be the only one that
//! answers, and a former master that missed it may be back.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, InfoDict, RedisError, Role};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::Identity;
use super::node::{Master, Source};
use super::target::{Watched, at};
use super::{ConnectError, check};

/// The interval at which the Sentinels are asked while nothing is wrong.
const PERIOD: Duration = Duration::from_secs(1);

/// The interval at which they are asked while no master confirms that it is one.
const SEARCH: Duration = Duration::from_millis(100);

/// The time that a Sentinel or a new master may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The time that the others may take once one Sentinel has answered.
const OTHERS: Duration = Duration::from_millis(100);

/// The time for which a start waits for a master.
const START: Duration = Duration::from_secs(10);

/// The time after which the Sentinels count as set up anew, if most of them answer and none knows of the latest
/// failover. Their failovers are then counted from the beginning.
const MEMORY: Duration = Duration::from_secs(10);

/// The reason why there is no master.
#[derive(Debug, thiserror::Error)]
enum NoMaster {
    #[error("no Sentinel answers")]
    Silence(#[source] RedisError),
    #[error("no Sentinel answers in time")]
    Late,
    #[error("the Sentinels watch no master of this name")]
    Unknown,
    #[error("the Sentinels name {host}:{port}, which does not answer")]
    Gone {
        host: String,
        port: u16,
        #[source]
        source: RedisError,
    },
    #[error("the Sentinels name {host}:{port}, which says that it is not a master")]
    Demoted { host: String, port: u16 },
}

/// The answer of a Sentinel.
#[derive(Clone)]
struct Word {
    /// Counts failovers: a Sentinel that was cut off has missed some.
    epoch: u64,
    host: String,
    port: u16,
}

/// Looks for the master.
struct Follower {
    name: String,
    alike: ConnectionInfo,
    sentinels: Vec<Sentinel>,
    /// The word of the latest failover, and since when only words of earlier ones are heard.
    latest: Option<(Word, Option<Instant>)>,
    /// The connection to the last node that confirmed to be the master.
    master: Option<(String, u16, MultiplexedConnection)>,
    /// The identities towards the servers and towards the Sentinels.
    identities: (Identity, Identity),
    allow_eviction: bool,
}

struct Sentinel {
    info: ConnectionInfo,
    connection: Option<MultiplexedConnection>,
}

/// Finds the master, and follows it from then on.
pub(super) async fn follow(watched: Watched, allow_eviction: bool) -> Result<Source, ConnectError> {
    let Watched { name, master, sentinels, identities } = watched;
    let sentinels = sentinels.into_iter().map(|info| Sentinel { info, connection: None }).collect();
    let mut follower =
        Follower { name, alike: master, sentinels, latest: None, master: None, identities, allow_eviction };
    let deadline = Instant::now() + START;
    let info = loop {
        match follower.look().await {
            Ok(info) => break info,
            Err(problem) if matches!(problem, NoMaster::Unknown) || Instant::now() >= deadline => {
                let name = follower.name;
                return Err(ConnectError::NoMaster { name, source: problem.into() });
            }
            Err(_) => tokio::time::sleep(SEARCH).await,
        }
    };
    let (sender, master) = watch::channel(Master { number: 0, info });
    let doubt = Arc::new(Notify::new());
    let identity = follower.identities.0.clone();
    tokio::spawn(follower.run(sender, Arc::clone(&doubt)));
    Ok(Source { master, doubt: Some(doubt), identity })
}

impl Follower {
    /// Follows the master until nobody listens any more.
    async fn run(mut self, sender: watch::Sender<Master>, doubt: Arc<Notify>) {
        let mut last_problem = String::new();
        loop {
            let problem = self.look().await.map(|info| self.publish(&sender, info)).err();
            let told = problem.as_ref().map(Told).as_ref().map(Told::to_string).unwrap_or_default();
            if told != last_problem {
                match problem {
                    Some(_) => tracing::warn!(master = %self.name, problem = %told, "there is no usable master"),
                    None => tracing::info!(master = %self.name, "found the master"),
                }
                last_problem = told;
            }
            tokio::select! {
                () = sender.closed() => return,
                () = doubt.notified() => tokio::time::sleep(SEARCH).await,
                () = tokio::time::sleep(if last_problem.is_empty() { PERIOD } else { SEARCH }) => {}
            }
        }
    }

    fn publish(&self, sender: &watch::Sender<Master>, info: ConnectionInfo) {
        sender.send_if_modified(|master| {
            let other = master.info.addr() != info.addr();
            if other {
                tracing::info!(name = %self.name, address = %info.addr(), "another node is the master");
                *master = Master { number: master.number + 1, info };
            }
            other
        });
    }

    /// The master on which the Sentinels and the node itself agree.
    async fn look(&mut self) -> Result<ConnectionInfo, NoMaster> {
        let Word { host, port, .. } = self.ask_all().await?;
        let info = at(&self.alike, &host, port);
        let known = self.master.take().filter(|known| (known.0.as_str(), known.1) == (&host, port));
        let gone = |source| NoMaster::Gone { host: host.clone(), port, source };
        let mut connection = match known {
            Some((.., connection)) => connection,
            None => {
                let mut connection = connect(&info, &self.identities.0).await.map_err(gone)?;
                self.judge(&mut connection, &host, port).await;
                connection
            }
        };
        match redis::cmd("ROLE").query_async(&mut connection).await.map_err(gone)? {
            Role::Primary { .. } => {
                self.master = Some((host, port, connection));
                Ok(info)
            }
            _ => Err(NoMaster::Demoted { host, port }),
        }
    }

    /// The one at the start is judged by the caller, who can refuse it.
    async fn judge(&self, connection: &mut MultiplexedConnection, host: &str, port: u16) {
        if let Ok(info) = redis::cmd("INFO").query_async::<InfoDict>(connection).await
            && let Err(unfit) = check::judge(&info, &format!("the master {host}:{port}"), self.allow_eviction)
        {
            tracing::error!(%unfit, "the master is not fit to keep a ledger");
        }
    }

    /// Asks all Sentinels at the same time, and returns the answer about the latest failover, which may be an earlier
    /// answer.
    async fn ask_all(&mut self) -> Result<Word, NoMaster> {
        let mut asked = JoinSet::new();
        for (index, sentinel) in self.sentinels.iter_mut().enumerate() {
            let (info, connection, name) = (sentinel.info.clone(), sentinel.connection.take(), self.name.clone());
            let identity = self.identities.1.clone();
            asked.spawn(async move { (index, ask(info, &identity, connection, &name).await) });
        }
        let mut deadline = Instant::now() + PATIENCE;
        let (mut latest, mut problem, mut unaware, mut aware) = (None, NoMaster::Late, 0, 0);
        while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, asked.join_next()).await {
            let Ok((index, answer)) = answer else { continue };
            match answer {
                Ok((connection, word)) => {
                    self.sentinels[index].connection = Some(connection);
                    let Some(word) = word else {
                        unaware += 1;
                        continue;
                    };
                    aware += 1;
                    deadline = deadline.min(Instant::now() + OTHERS);
                    if latest.as_ref().is_none_or(|latest: &Word| latest.epoch < word.epoch) {
                        latest = Some(word);
                    }
                }
                Err(error) if matches!(problem, NoMaster::Late) => problem = NoMaster::Silence(error),
                Err(_) => {}
            }
        }
        // One that was just reset knows no names; it says nothing of the others.
        let are_most = |count: usize| count * 2 > self.sentinels.len();
        let word = latest.ok_or(if are_most(unaware) { NoMaster::Unknown } else { problem })?;
        if let Some((latest, contradicted)) = &mut self.latest
            && word.epoch < latest.epoch
        {
            let since = *contradicted.get_or_insert_with(Instant::now);
            if !are_most(aware) || since.elapsed() < MEMORY {
                return Ok(latest.clone());
            }
        }
        self.latest = Some((word.clone(), None));
        Ok(word)
    }
}

/// Asks one Sentinel; no word means that it does not know the name.
async fn ask(
    info: ConnectionInfo,
    identity: &Identity,
    connection: Option<MultiplexedConnection>,
    name: &str,
) -> Result<(MultiplexedConnection, Option<Word>), RedisError> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => connect(&info, identity).await?,
    };
    let question = |word: &str| {
        let mut question = redis::cmd("SENTINEL");
        question.arg(word).arg(name);
        question
    };
    // The address comes last: it may be later than the epoch, but a later epoch must not vouch for the address of before.
    let told: HashMap<String, String> = match question("MASTER").query_async(&mut connection).await {
        Err(error) if error.detail().is_some_and(|detail| detail.contains("No such master")) => {
            return Ok((connection, None));
        }
        told => told?,
    };
    let epoch = told.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let address: Option<(String, u16)> = question("GET-MASTER-ADDR-BY-NAME").query_async(&mut connection).await?;
    Ok((connection, address.map(|(host, port)| Word { epoch, host, port })))
}

async fn connect(info: &ConnectionInfo, identity: &Identity) -> Result<MultiplexedConnection, RedisError> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let client = redis::Client::open(identity.with_certificates(info.clone())?)?;
    client.get_multiplexed_async_connection_with_config(&identity.present(config)).await
}

/// A problem with its cause, for the log.
struct Told<'a>(&'a NoMaster);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::error::Error::source(self.0).map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}
