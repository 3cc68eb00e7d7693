//! Configuration: flags, `TOLLGATE_` variables and a TOML file, in this order of precedence; every error at once.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use tracing_subscriber::filter::{ParseError, Targets};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `tollgate` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the gRPC API. With nothing configured: with a Redis of its own and the example catalog.
    Serve(Box<Settings>),
    /// Check a catalog, and name every problem with its path and line.
    CheckCatalog {
        /// The YAML file.
        file: PathBuf,
    },
    /// Print the JSON schema of the catalog, for editors.
    Schema,
    /// Read everything in a live Redis, change nothing, and report what contradicts itself.
    ///
    /// Tollgate may go on serving: users are found by SCAN, and each is read by short scripts that only read. One line per
    /// contradiction on standard output: the key, and what is wrong with the numbers found and expected (times are milliseconds
    /// of the Unix epoch). Keys name users: keep the output as you keep user ids. A line marked `note` is odd, but possible. The
    /// last line sums up. Where a DeleteUser was cut short, its `hold` keys stay for up to an hour: a note, or a contradiction if the
    /// user has come back since.
    ///
    /// Exits with 0 if nothing contradicts itself, 1 if something does, and 2 if the Redis could not be read to the end.
    ///
    /// A replica will do, and so will a user that may only read: ACL SETUSER NAME on >PASSWORD %R~* +@read +@connection -@dangerous
    /// +time +eval_ro +evalsha_ro, and +cluster|slots on a cluster.
    Verify(VerifySettings),
    /// Ask a running Tollgate whether it serves, and exit with 0 if it does: for containers without a shell.
    Health {
        /// Where it listens.
        #[arg(default_value = "http://127.0.0.1:50051", value_name = "URL")]
        url: String,
    },
}

/// What can be configured. Each has a flag, a variable and an entry in the file; what is absent has a default.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// A TOML file with any of the settings below, named as the flags are: listen = "127.0.0.1:50051".
    #[arg(long, env = "TOLLGATE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// The address to listen on [default: 127.0.0.1:50051]
    #[arg(long, env = "TOLLGATE_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// How many threads serve calls. One suffices for one Redis, and spends a quarter less on a call than several do
    /// [default: 1]
    #[arg(long, env = "TOLLGATE_WORKERS", value_name = "NUMBER")]
    pub workers: Option<u16>,

    /// The catalog of plans [default: the example that is built in]
    #[arg(long, env = "TOLLGATE_CATALOG", value_name = "FILE")]
    pub catalog: Option<PathBuf>,

    /// The Redis that keeps the counters, as redis://, rediss:// or unix://; several (repeated, or separated by commas) for the
    /// nodes of a cluster [default: a private redis-server under the data directory]
    #[arg(long, env = "TOLLGATE_REDIS_URL", value_name = "URL", value_delimiter = ',', hide_env_values = true)]
    pub redis_url: Option<Vec<String>>,

    /// The Sentinels that watch the Redis, as redis:// or rediss:// (repeated, or separated by commas), each with its own
    /// credentials; the host of the one --redis-url is then the name of the master, as in redis://:password@mymaster
    /// [default: none]
    #[arg(long, env = "TOLLGATE_REDIS_SENTINEL", value_name = "URL", value_delimiter = ',', hide_env_values = true)]
    pub redis_sentinel: Option<Vec<String>>,

    /// Where the private Redis keeps its append-only file [default: ./tollgate-data]
    #[arg(long, env = "TOLLGATE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// The program of the private Redis [default: redis-server or valkey-server on the PATH]
    #[arg(long, env = "TOLLGATE_REDIS_SERVER", value_name = "FILE")]
    pub redis_server: Option<PathBuf>,

    /// How many connections all calls share [default: 2]
    #[arg(long, env = "TOLLGATE_REDIS_CONNECTIONS", value_name = "NUMBER")]
    pub redis_connections: Option<u16>,

    /// How many calls of different users are decided by one command at most, when Redis is busy; 1 for none. A cluster decides
    /// each by itself [default: 32]
    #[arg(long, env = "TOLLGATE_REDIS_BATCH", value_name = "NUMBER")]
    pub redis_batch: Option<u16>,

    /// How long to wait for Redis before a call is UNAVAILABLE [default: 2s]
    #[arg(long, env = "TOLLGATE_REDIS_TIMEOUT", value_name = "DURATION")]
    pub redis_timeout: Option<String>,

    /// Serve even if Redis may evict keys, and counters with them [default: refuse]
    #[arg(long, env = "TOLLGATE_ALLOW_EVICTION", num_args = 0..=1, default_missing_value = "true")]
    pub allow_eviction: Option<bool>,

    /// Let Reserve allow, marked `degraded`, what cannot be decided because Redis does not answer [default: UNAVAILABLE]
    #[arg(long, env = "TOLLGATE_FAIL_OPEN", num_args = 0..=1, default_missing_value = "true")]
    pub fail_open: Option<bool>,

    /// How long a reservation is remembered after its deadline [default: 15m]
    #[arg(long, env = "TOLLGATE_SETTLEMENT_WINDOW", value_name = "DURATION")]
    pub settlement_window: Option<String>,

    /// How long a settlement, or a tracked event with a request id, is remembered [default: 15m]
    #[arg(long, env = "TOLLGATE_REPLAY_WINDOW", value_name = "DURATION")]
    pub replay_window: Option<String>,

    /// What to log: a level, or targets and their levels, such as tollgate=debug,redis=warn [default: info]
    #[arg(long, env = "TOLLGATE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// What `tollgate verify` can be told. It takes its entry of the file that `tollgate serve` reads.
#[derive(Debug, Default, Args)]
pub struct VerifySettings {
    /// The TOML file of `tollgate serve`, whose redis-url is used if there is no other
    #[arg(long, env = "TOLLGATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The Redis to verify, as redis://, rediss:// or unix://; several (repeated, or separated by commas) for the nodes of a
    /// cluster, of which every master is read
    #[arg(long, env = "TOLLGATE_REDIS_URL", value_name = "URL", value_delimiter = ',', hide_env_values = true)]
    pub redis_url: Option<Vec<String>>,
}

/// The settings as they are used.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Config {
    pub listen: SocketAddr,
    pub workers: usize,
    pub catalog: Option<PathBuf>,
    pub redis_urls: Vec<String>,
    pub redis_sentinels: Vec<String>,
    pub data_dir: PathBuf,
    pub redis_server: Option<PathBuf>,
    pub redis_connections: usize,
    pub redis_batch: usize,
    pub redis_timeout: Duration,
    pub allow_eviction: bool,
    pub fail_open: bool,
    pub settlement_window: Duration,
    pub replay_window: Duration,
    pub log: String,
}

/// Everything that is wrong with the settings.
#[derive(Debug)]
pub struct InvalidConfig {
    /// One sentence per problem.
    pub problems: Vec<String>,
}

impl std::error::Error for InvalidConfig {}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not valid:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Longer than any test of patience, shorter than what an expiry in Redis can hold.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Settings {
    /// Reads the file, if one is named, and checks everything.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn resolve(self) -> Result<Config, InvalidConfig> {
        let mut problems = Vec::new();
        let file = match self.config.as_deref().map(read_file).transpose() {
            Ok(file) => file.unwrap_or_default(),
            Err(problem) => {
                problems.push(problem);
                Self::default()
            }
        };
        let mut duration = |name: &str, text: Option<String>, default: Duration, least: Duration| {
            let Some(text) = text else { return default };
            let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|signed| Duration::try_from(signed).ok());
            parsed.filter(|parsed| (least..=LONGEST).contains(parsed)).unwrap_or_else(|| {
                problems.push(format!(
                    "{name} is {text:?}: write a duration from {least:?} to 366 days, such as 15m or 2s"
                ));
                default
            })
        };
        let minutes = Duration::from_secs(15 * 60);
        let settlement_window =
            duration("settlement-window", self.settlement_window.or(file.settlement_window), minutes, Duration::ZERO);
        let replay_window =
            duration("replay-window", self.replay_window.or(file.replay_window), minutes, Duration::ZERO);
        let redis_timeout = duration(
            "redis-timeout",
            self.redis_timeout.or(file.redis_timeout),
            Duration::from_secs(2),
            Duration::from_millis(10),
        );
        let listen = self.listen.or(file.listen).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
        let listen = listen.parse().unwrap_or_else(|_| {
            problems.push(format!("listen is {listen:?}: write an IP address and a port, such as 127.0.0.1:50051"));
            SocketAddr::from(([127, 0, 0, 1], 50051))
        });
        let mut number = |name: &str, given: Option<u16>, default: u16, most: u16| {
            let number = given.unwrap_or(default);
            if !(1..=most).contains(&number) {
                problems.push(format!("{name} is {number}: choose 1 to {most}"));
            }
            usize::from(number)
        };
        let workers = number("workers", self.workers.or(file.workers), 1, 1024);
        let redis_connections = number("redis-connections", self.redis_connections.or(file.redis_connections), 2, 64);
        let redis_batch = number("redis-batch", self.redis_batch.or(file.redis_batch), 32, 1000);
        let redis_urls = self.redis_url.or(file.redis_url).unwrap_or_default();
        if has_duplicates(&redis_urls) {
            problems.push("redis-url names a node twice".to_owned());
        }
        let redis_sentinels = self.redis_sentinel.or(file.redis_sentinel).unwrap_or_default();
        if redis_sentinels.iter().collect::<HashSet<_>>().len() < redis_sentinels.len() {
            problems.push("redis-sentinel names a Sentinel twice".to_owned());
        }
        if !redis_sentinels.is_empty() && redis_urls.len() != 1 {
            problems.push(format!(
                "redis-sentinel needs one redis-url, whose host is the name of the master, such as redis://mymaster: there are {}",
                redis_urls.len()
            ));
        }
        let log = self.log.or(file.log).unwrap_or_else(|| "info".to_owned());
        if let Err(error) = log_filter(&log) {
            problems.push(format!("log is {log:?}: {error}"));
        }
        if !problems.is_empty() {
            return Err(InvalidConfig { problems });
        }
        Ok(Config {
            listen,
            workers,
            catalog: self.catalog.or(file.catalog),
            redis_urls,
            redis_sentinels,
            data_dir: self.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from("tollgate-data")),
            redis_server: self.redis_server.or(file.redis_server),
            redis_connections,
            redis_batch,
            redis_timeout,
            allow_eviction: self.allow_eviction.or(file.allow_eviction).unwrap_or(false),
            fail_open: self.fail_open.or(file.fail_open).unwrap_or(false),
            settlement_window,
            replay_window,
            log,
        })
    }
}

impl VerifySettings {
    /// The URLs of the Redis to verify.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn resolve(self) -> Result<Vec<String>, InvalidConfig> {
        let invalid = |problem: String| InvalidConfig { problems: vec![problem] };
        let file = self.config.as_deref().map(read_file).transpose().map_err(invalid)?.unwrap_or_default();
        // Its host is a name for Sentinels then, and no place to send a password to.
        if self.redis_url.is_none() && file.redis_sentinel.is_some() {
            return Err(invalid(
                "the redis-url of the file names a master to Sentinels: pass the address of one node as --redis-url redis://host:port"
                    .to_owned(),
            ));
        }
        let urls = self.redis_url.or(file.redis_url).unwrap_or_default();
        if urls.is_empty() {
            return Err(invalid(
                "no Redis is named: pass --redis-url redis://host:port or set TOLLGATE_REDIS_URL; the private Redis of a running \
                 `tollgate serve` is unix:///path/to/tollgate-data/redis.sock"
                    .to_owned(),
            ));
        }
        if has_duplicates(&urls) {
            return Err(invalid("redis-url names a node twice".to_owned()));
        }
        Ok(urls)
    }
}

fn has_duplicates(urls: &[String]) -> bool {
    urls.iter().collect::<HashSet<_>>().len() < urls.len()
}

/// What to log: a level, or targets and their levels. No spans and fields: reading those takes seconds and panics, for text as odd
/// as one likes.
///
/// # Errors
/// For text that is neither.
pub fn log_filter(text: &str) -> Result<Targets, String> {
    if text.contains('[') {
        return Err("spans and fields cannot be named; write targets and their levels".to_owned());
    }
    // A space beside a comma is no part of a target.
    let directives: Vec<_> = text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    directives.join(",").parse().map_err(|error: ParseError| error.to_string())
}

fn read_file(path: &Path) -> Result<Settings, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.parse().map_err(|problem| format!("{}, {problem}", path.display()))
}

/// Reads the text of a configuration file. The error says the line, and what is wrong with it.
impl FromStr for Settings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The parser's message quotes the line, which may hold a password: only its place and its reason are told.
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            let reason = error.message();
            // Of a value that does not fit, what would fit.
            let expected = reason.strip_prefix("invalid ").and_then(|_| reason.rsplit_once(", expected "));
            match expected {
                Some((_, expected)) if error.message().contains('"') => format!("line {line}: must be {expected}"),
                _ => format!("line {line}: {reason}"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_sentinels_is_no_address_to_verify() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tollgate.toml");
        std::fs::write(&file, "redis-url = [\"redis://:secret@mymaster\"]\nredis-sentinel = [\"redis://s\"]\n")
            .unwrap();
        let settings = |redis_url| VerifySettings { config: Some(file.clone()), redis_url };
        let told = settings(None).resolve().unwrap_err().to_string();
        assert!(told.contains("--redis-url") && !told.contains("secret"), "{told}");
        let named = vec!["redis://node".to_owned()];
        assert_eq!(settings(Some(named.clone())).resolve().unwrap(), named);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = Settings {
            config: Some("/nonexistent/tollgate.toml".into()),
            listen: Some("localhost".to_owned()),
            redis_timeout: Some("soon".to_owned()),
            replay_window: Some("-1m".to_owned()),
            workers: Some(0),
            redis_connections: Some(0),
            redis_batch: Some(0),
            redis_url: Some(vec!["redis://a".to_owned(), "redis://a".to_owned()]),
            redis_sentinel: Some(vec!["redis://s".to_owned()]),
            log: Some("tollgate=loud".to_owned()),
            ..Settings::default()
        };
        let problems = settings.resolve().unwrap_err().problems;
        let named = [
            "tollgate.toml",
            "listen",
            "redis-timeout",
            "replay-window",
            "workers",
            "redis-connections",
            "redis-batch",
            "redis-url names",
            "redis-sentinel needs",
            "log",
        ];
        assert_eq!(problems.len(), named.len(), "{problems:?}");
        for name in named {
            assert!(problems.iter().any(|problem| problem.contains(name)), "{name}: {problems:?}");
        }
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tollgate.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:1\"\nreplay-window = \"30m\"\nfail-open = true\n").unwrap();
        let settings = Settings { config: Some(path), listen: Some("127.0.0.1:2".to_owned()), ..Settings::default() };
        let config = settings.resolve().unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.replay_window, Duration::from_secs(1800));
        assert_eq!(config.settlement_window, Duration::from_secs(900));
        assert!(config.fail_open);
    }

    #[test]
    fn what_to_log_is_a_level_or_targets_with_levels() {
        let shown = |text| log_filter(text).unwrap().to_string();
        assert_eq!(shown("info"), "info");
        assert_eq!(shown(" tollgate=debug , redis=warn,"), shown("tollgate=debug,redis=warn"));
        let pattern = "[span{field=a.*b...................+(c|d)}]=trace";
        for odd in
            ["tollgate=loud", "a=b=c", pattern, " [ö{ö)ö}]=trace", "tollgate[serve]=info", "[{a=b}]=info,[{a=b}]=info"]
        {
            assert!(log_filter(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_bad_file_is_told_by_line_without_its_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tollgate.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:1\"\nredis-urls = [\"redis://:secret@h\"]\n").unwrap();
        let settings = Settings { config: Some(path), ..Settings::default() };
        let told = settings.resolve().unwrap_err().to_string();
        assert!(told.contains("line 2") && told.contains("redis-urls") && !told.contains("secret"), "{told}");
        for text in ["redis-url = \"redis://:secret@h\"", "redis-connections = \"redis://:secret, expected @h\""] {
            let told = text.parse::<Settings>().unwrap_err();
            assert!(told.starts_with("line 1: must be ") && !told.contains("secret"), "{told}");
        }
        let told = "redis-connections = 70000".parse::<Settings>().unwrap_err();
        assert_eq!(told, "line 1: invalid value: integer `70000`, expected u16");
    }
}
