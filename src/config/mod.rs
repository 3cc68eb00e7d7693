//! Configuration: flags, `TOLLGATE_` variables, a TOML file and defaults, in this order of precedence; every error at once.
//!
//! [`Config`] is the one struct. A setting is one field of it, which says everything: its name, its help, its default (as the text
//! that a user would write), and how that text is read. Flag, variable, entry of the file, `--help` and `tollgate config` come of
//! that. What several settings say together is held against itself in `Config::contradictions`.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::domain::descriptor::{EntryMeaning, EntryMeanings};
use crate::tls::{self, IdentityApp, IdentityApps};

mod command;
mod environment;
mod file;
mod layers;
mod limits;
mod observability;
mod redact;
mod redis_login;
#[cfg(test)]
mod tests;
mod value;
mod verify;

pub use command::{Cli, Command, HealthSettings, KeysCommand};
pub use environment::{KEY, unknown_variables};
pub use layers::{Given, InvalidConfig, Origin, Settings};
pub use limits::Limits;
pub use observability::{Observability, OptionalAddress};
pub use redact::redacted;
pub use redis_login::RedisLogin;
pub use value::log_filter;
pub use verify::VerifySettings;

/// The settings as they are used.
///
/// A setting without a default ends its help in `[default: ...]`, what happens then; `tollgate config` shows that. Values of a setting
/// with `hide_env_values` are shown only as far as [`redacted`] knows that they are no secret.
#[derive(Clone, Args)]
pub struct Config {
    /// The address of the gRPC API, reflection and grpc.health.v1
    #[arg(long, env = "TOLLGATE_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:50051", value_parser = value::address)]
    pub listen: SocketAddr,

    /// The address of Envoy's rate limit service, such as 127.0.0.1:8081; or none
    #[arg(long, env = "TOLLGATE_ENVOY_LISTEN", value_name = "ADDRESS", default_value = "none", value_parser = value::optional_address)]
    pub envoy_listen: observability::OptionalAddress,

    /// The meanings of the entries of Envoy's descriptors, by their keys (repeated, or separated by
    /// commas): KEY=user_id, KEY=event, KEY=event:NAME, KEY=metadata:KEY, KEY=metadata:KEY:VALUE,
    /// KEY=enforce or KEY=ignore. A key may end in *; the longest that fits counts [default:
    /// user_id and event mean themselves, and other keys are metadata]
    #[arg(long, env = "TOLLGATE_ENVOY_ENTRIES", value_name = "KEY=MEANING", value_delimiter = ',')]
    pub envoy_entries: Vec<EntryMeaning>,

    /// The number of threads that serve calls. One is enough for one Redis, and spends a quarter
    /// less on a call than several do
    #[arg(long, env = "TOLLGATE_WORKERS", value_name = "NUMBER", default_value = "1", value_parser = value::number(1, 1024))]
    pub workers: usize,

    /// Accept only callers with an API key, which `tollgate keys create` makes. Without keys every
    /// caller belongs to the app `default`
    #[arg(long, env = "TOLLGATE_API_KEYS", value_name = "BOOLEAN", default_value = "false", num_args = 0..=1, default_missing_value = "true", value_parser = value::boolean)]
    pub api_keys: bool,

    /// Listen on addresses other than loopback although every caller is accepted
    #[arg(long, env = "TOLLGATE_ALLOW_ANONYMOUS", value_name = "BOOLEAN", default_value = "false", num_args = 0..=1, default_missing_value = "true", value_parser = value::boolean)]
    pub allow_anonymous: bool,

    /// The catalog of plans, or a folder with one for each app: NAME.yaml is the catalog of the app
    /// NAME. Tollgate reads it again on SIGHUP and when it has changed. It refuses one that is not
    /// valid, and the former one stays in force [default: the example that is built in]
    #[arg(long, env = "TOLLGATE_CATALOG", value_name = "FILE")]
    pub catalog: Option<PathBuf>,

    /// The interval at which Tollgate looks whether the catalog has changed
    #[arg(long, env = "TOLLGATE_CATALOG_POLL", value_name = "DURATION", default_value = "5s", value_parser = value::duration(Duration::from_millis(100)))]
    pub catalog_poll: Duration,

    /// The Redis with the counters, as redis://, rediss:// or unix://. Several (repeated, or
    /// separated by commas) are nodes of a cluster [default: a private redis-server under the data
    /// directory]
    #[arg(long, env = "TOLLGATE_REDIS_URL", value_name = "URL", value_delimiter = ',', hide_env_values = true)]
    pub redis_url: Vec<String>,

    /// The Sentinels that watch the Redis, as redis:// or rediss:// (repeated, or separated by
    /// commas), each with its own credentials. The host of the one --redis-url is then the name of
    /// the master, as in redis://:password@mymaster [default: none]
    #[arg(long, env = "TOLLGATE_REDIS_SENTINEL", value_name = "URL", value_delimiter = ',', hide_env_values = true)]
    pub redis_sentinel: Vec<String>,

    /// The credentials and certificates for that Redis.
    #[command(flatten)]
    pub login: RedisLogin,

    /// A file with the password for the Sentinels. Tollgate reads it again for each connection
    /// [default: those of --redis-sentinel]
    #[arg(long, env = "TOLLGATE_REDIS_SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub redis_sentinel_password_file: Option<PathBuf>,

    /// The number of Redis replicas that must have a write before Tollgate answers the call, so
    /// that a failover does not forget it; 0 for none. Not for a cluster
    #[arg(long, env = "TOLLGATE_REDIS_WAIT_REPLICAS", value_name = "NUMBER", default_value = "0", value_parser = value::number(0, 16))]
    pub redis_wait_replicas: usize,

    /// The time to wait for these replicas before the call is UNAVAILABLE
    #[arg(long, env = "TOLLGATE_REDIS_WAIT_TIMEOUT", value_name = "DURATION", default_value = "100ms", value_parser = value::duration(Duration::from_millis(1)))]
    pub redis_wait_timeout: Duration,

    /// The directory of the private Redis, with its append-only file
    #[arg(long, env = "TOLLGATE_DATA_DIR", value_name = "DIR", default_value = "tollgate-data")]
    pub data_dir: PathBuf,

    /// The program of the private Redis [default: redis-server or valkey-server on the PATH]
    #[arg(long, env = "TOLLGATE_REDIS_SERVER", value_name = "FILE")]
    pub redis_server: Option<PathBuf>,

    /// The number of connections to Redis that all calls share
    #[arg(long, env = "TOLLGATE_REDIS_CONNECTIONS", value_name = "NUMBER", default_value = "2", value_parser = value::number(1, 64))]
    pub redis_connections: usize,

    /// The largest number of calls of different users that one command decides when Redis is busy;
    /// 1 to decide each call by itself. A cluster decides each call by itself
    #[arg(long, env = "TOLLGATE_REDIS_BATCH", value_name = "NUMBER", default_value = "32", value_parser = value::number(1, 1000))]
    pub redis_batch: usize,

    /// The time to wait for Redis before a call is UNAVAILABLE
    #[arg(long, env = "TOLLGATE_REDIS_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = value::duration(Duration::from_millis(10)))]
    pub redis_timeout: Duration,

    /// Serve even if Redis may evict keys, and with them counters
    #[arg(long, env = "TOLLGATE_ALLOW_EVICTION", value_name = "BOOLEAN", default_value = "false", num_args = 0..=1, default_missing_value = "true", value_parser = value::boolean)]
    pub allow_eviction: bool,

    /// Let Reserve allow a call, marked `degraded`, if Redis does not answer
    #[arg(long, env = "TOLLGATE_FAIL_OPEN", value_name = "BOOLEAN", default_value = "false", num_args = 0..=1, default_missing_value = "true", value_parser = value::boolean)]
    pub fail_open: bool,

    /// The time for which Tollgate remembers a reservation after its deadline
    #[arg(long, env = "TOLLGATE_SETTLEMENT_WINDOW", value_name = "DURATION", default_value = "15m", value_parser = value::duration(Duration::ZERO))]
    pub settlement_window: Duration,

    /// The time for which Tollgate remembers a settlement, or a tracked event with a request id
    #[arg(long, env = "TOLLGATE_REPLAY_WINDOW", value_name = "DURATION", default_value = "15m", value_parser = value::duration(Duration::ZERO))]
    pub replay_window: Duration,

    /// A PEM file with the server's certificate and then its chain. It turns TLS on. Tollgate reads
    /// it again when it changes [default: no TLS]
    #[arg(long, env = "TOLLGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// A PEM file with the private key of --tls-cert [default: no TLS]
    #[arg(long, env = "TOLLGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// A PEM file with the authorities of client certificates. Tollgate refuses clients without a
    /// certificate [default: no client certificates]
    #[arg(long, env = "TOLLGATE_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// The app of a client certificate, by a name in it: dns:NAME or uri:spiffe://..., or cn:NAME
    /// if it has no alternative names (repeated, or separated by commas) [default: none]
    #[arg(long, env = "TOLLGATE_TLS_CLIENT_APP", value_name = "IDENTITY=APP", value_delimiter = ',')]
    pub tls_client_app: Vec<IdentityApp>,

    /// The limits on what callers may ask for.
    #[command(flatten)]
    pub limits: Limits,

    /// The settings with which an operator observes Tollgate.
    #[command(flatten)]
    pub observability: Observability,

    /// The log filter: a level, or targets and their levels, such as tollgate=debug,redis=warn
    #[arg(long, env = "TOLLGATE_LOG", value_name = "FILTER", default_value = "info", value_parser = value::log)]
    pub log: String,
}

/// A contradiction between settings that are each valid alone.
struct Contradiction {
    /// The settings that contradict each other. A contradiction is not reported if one of them is
    /// invalid alone.
    settings: &'static [&'static str],
    /// The problem, and how to correct it.
    problem: String,
}

impl Config {
    /// The files of TLS, if it is on.
    #[must_use]
    pub fn tls(&self) -> Option<tls::Files> {
        let (cert, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        Some(tls::Files { cert, key, client_ca: self.tls_client_ca.clone() })
    }

    /// Holds the settings against each other.
    fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = Vec::new();
        let mut wrong = |settings, problem: &str| found.push(Contradiction { settings, problem: problem.to_owned() });
        if has_duplicates(&self.redis_url) {
            wrong(&["redis-url"], "redis-url names a node twice");
        }
        if has_duplicates(&self.redis_sentinel) {
            wrong(&["redis-sentinel"], "redis-sentinel names a Sentinel twice");
        }
        if !self.redis_sentinel.is_empty() && self.redis_url.len() != 1 {
            let problem = format!(
                "redis-sentinel needs one redis-url, whose host is the name of the master, such as redis://mymaster: there are {}",
                self.redis_url.len()
            );
            wrong(&["redis-url", "redis-sentinel"], &problem);
        }
        let let_in = self.api_keys || self.tls_client_ca.is_some() || self.allow_anonymous;
        for (name, address) in [("listen", Some(self.listen)), ("envoy-listen", self.envoy_listen)] {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback() && !let_in) {
                let problem = format!(
                    "{name} is {address}, where other machines may call, and every caller would be let in: turn api-keys on, or ask for \
                     client certificates by tls-client-ca, or turn allow-anonymous on if the network keeps others out"
                );
                wrong(&["listen", "envoy-listen", "api-keys", "tls-client-ca", "allow-anonymous"], &problem);
            }
        }
        if !self.envoy_entries.is_empty() && self.envoy_listen.is_none() {
            wrong(&["envoy-entries", "envoy-listen"], "envoy-entries needs envoy-listen, the address where Envoy asks");
        }
        if let Err(problem) = EntryMeanings::new(&self.envoy_entries) {
            wrong(&["envoy-entries"], &format!("envoy-entries {problem}"));
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => {
                wrong(&["tls-cert", "tls-key"], "tls-cert needs tls-key, the private key of the certificate")
            }
            (None, Some(_)) => wrong(&["tls-cert", "tls-key"], "tls-key needs tls-cert, the certificate of the key"),
            _ => {}
        }
        if self.tls_client_ca.is_some() && self.tls_cert.is_none() {
            wrong(
                &["tls-cert", "tls-client-ca"],
                "tls-client-ca needs tls-cert and tls-key: client certificates need TLS",
            );
        }
        if !self.tls_client_app.is_empty() && self.tls_client_ca.is_none() {
            wrong(
                &["tls-client-app", "tls-client-ca"],
                "tls-client-app needs tls-client-ca, which names the trusted authorities of client certificates",
            );
        }
        if let Err(identity) = IdentityApps::new(&self.tls_client_app) {
            wrong(&["tls-client-app"], &format!("tls-client-app gives {identity} to two apps"));
        }
        if self.login.redis_cert.is_some() != self.login.redis_key.is_some() {
            wrong(&["redis-cert", "redis-key"], "redis-cert and redis-key go together: name both files, or neither");
        }
        if self.login.redis_user.is_some() && self.login.redis_password_file.is_none() {
            wrong(&["redis-user", "redis-password-file"], "redis-user needs redis-password-file");
        }
        if self.redis_sentinel_password_file.is_some() && self.redis_sentinel.is_empty() {
            wrong(
                &["redis-sentinel-password-file", "redis-sentinel"],
                "redis-sentinel-password-file needs redis-sentinel, which is not set",
            );
        }
        if self.redis_wait_replicas > 0 && self.redis_url.is_empty() {
            wrong(
                &["redis-wait-replicas", "redis-url"],
                "redis-wait-replicas needs a redis-url: a private Redis has no replicas",
            );
        }
        if self.redis_wait_replicas > 0 && self.redis_url.len() > 1 {
            wrong(
                &["redis-wait-replicas", "redis-url"],
                "redis-wait-replicas is not for a cluster: set min-replicas-to-write there, and leave it out",
            );
        }
        if self.redis_wait_replicas > 0 && self.redis_wait_timeout >= self.redis_timeout {
            wrong(
                &["redis-wait-replicas", "redis-wait-timeout", "redis-timeout"],
                "redis-wait-timeout must be shorter than redis-timeout",
            );
        }
        let files = [&self.login.redis_password_file, &self.login.redis_ca, &self.login.redis_cert];
        if self.redis_url.is_empty() && files.iter().any(|file| file.is_some()) {
            wrong(
                &["redis-url", "redis-password-file", "redis-ca", "redis-cert"],
                "redis-password-file, redis-ca and redis-cert need a redis-url, which is not set",
            );
        }
        found
    }
}

/// Says nothing of the values: some are secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

fn has_duplicates(urls: &[String]) -> bool {
    urls.iter().collect::<HashSet<_>>().len() < urls.len()
}
