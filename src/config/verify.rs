//! The settings of `tollgate verify`.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use clap::Args;

use super::{InvalidConfig, RedisLogin, Settings, file, has_duplicates};

/// The settings of `tollgate verify`. It takes its entries of the file that `tollgate serve` reads.
#[derive(Default, Args)]
pub struct VerifySettings {
    /// The TOML file of `tollgate serve`. Its redis-url, user, password and certificates are used
    /// where no flag or variable names others
    #[arg(long, env = "TOLLGATE_CONFIG", value_name = "FILE")]
    pub config: Option<OsString>,

    /// The Redis to verify, as redis://, rediss:// or unix://. Several (repeated, or separated by
    /// commas) are nodes of a cluster, of which every master is read
    #[arg(long, env = "TOLLGATE_REDIS_URL", value_name = "URL", value_delimiter = ',', hide_env_values = true)]
    pub redis_url: Vec<String>,

    /// The credentials and certificates for it.
    #[command(flatten)]
    pub login: RedisLogin,
}

/// Says nothing of the values: some are secrets.
impl fmt::Debug for VerifySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifySettings").finish_non_exhaustive()
    }
}

impl VerifySettings {
    /// The Redis to verify: only what names it and opens it is set, and the URLs are at least one.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn resolve(self) -> Result<Self, InvalidConfig> {
        let invalid = |problem: &str| InvalidConfig { problems: vec![problem.to_owned()] };
        // An empty variable is as one that is not set.
        let path = self.config.filter(|path| !path.is_empty());
        let file = path.map(|path| file::read(Path::new(&path), &Settings::default().names())).unwrap_or_default();
        if !file.problems.is_empty() {
            return Err(InvalidConfig { problems: file.problems });
        }
        let entry = |name: &str| file.entries.iter().find(|entry| entry.name == name).map(|entry| entry.values.clone());
        let mut urls: Vec<_> = self.redis_url.into_iter().filter(|url| !url.is_empty()).collect();
        if urls.is_empty() {
            // Its host is a name for Sentinels then, and no place to send a password to.
            if entry("redis-sentinel").is_some() {
                return Err(invalid(
                    "the redis-url of the file names a master to Sentinels: pass the address of one node as --redis-url \
                     redis://host:port",
                ));
            }
            let named = entry("redis-url").unwrap_or_default();
            urls = named.iter().flat_map(|urls| urls.split(',')).map(str::to_owned).collect();
        }
        if urls.is_empty() {
            return Err(invalid(
                "no Redis is named: pass --redis-url redis://host:port or set TOLLGATE_REDIS_URL; the private Redis of a running \
                 `tollgate serve` is unix:///path/to/tollgate-data/redis.sock",
            ));
        }
        if has_duplicates(&urls) {
            return Err(invalid("redis-url names a node twice"));
        }
        let one =
            |name: &str| entry(name).and_then(|values| values.into_iter().next()).filter(|value| !value.is_empty());
        Ok(Self { config: None, redis_url: urls, login: self.login.or(one) })
    }
}
