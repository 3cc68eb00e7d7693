//! The settings by which `tollgate serve` and `tollgate verify` log in to a Redis.

use std::path::PathBuf;

use clap::Args;

use crate::ledger::RedisAccess;

/// Credentials and certificates for Redis.
#[derive(Clone, Default, Args)]
pub struct RedisLogin {
    /// The user of Redis's access list [default: that of --redis-url]
    #[arg(long, env = "TOLLGATE_REDIS_USER", value_name = "NAME")]
    pub redis_user: Option<String>,

    /// A file with the password for Redis. Tollgate reads it again for each connection [default:
    /// that of --redis-url]
    #[arg(long, env = "TOLLGATE_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,

    /// A PEM file with the authorities that may sign the certificate of a rediss:// server
    /// [default: those that browsers trust]
    #[arg(long, env = "TOLLGATE_REDIS_CA", value_name = "FILE")]
    pub redis_ca: Option<PathBuf>,

    /// A PEM file with the client certificate for a rediss:// server that asks for one [default:
    /// none]
    #[arg(long, env = "TOLLGATE_REDIS_CERT", value_name = "FILE")]
    pub redis_cert: Option<PathBuf>,

    /// A PEM file with the private key of that certificate [default: none]
    #[arg(long, env = "TOLLGATE_REDIS_KEY", value_name = "FILE")]
    pub redis_key: Option<PathBuf>,
}

impl RedisLogin {
    /// These settings as the ledger takes them.
    #[must_use]
    pub fn access(&self) -> RedisAccess {
        let Self { redis_user, redis_password_file, redis_ca, redis_cert, redis_key } = self.clone();
        RedisAccess {
            user: redis_user,
            password_file: redis_password_file,
            sentinel_password_file: None,
            ca: redis_ca,
            cert: redis_cert,
            key: redis_key,
        }
    }

    /// These settings, and where one is missing that of `other`. An empty one counts as missing.
    pub(super) fn or(self, other: impl Fn(&str) -> Option<String>) -> Self {
        let path = |given: Option<PathBuf>, name: &str| {
            given.filter(|path| !path.as_os_str().is_empty()).or_else(|| other(name).map(PathBuf::from))
        };
        Self {
            redis_user: self.redis_user.filter(|user| !user.is_empty()).or_else(|| other("redis-user")),
            redis_password_file: path(self.redis_password_file, "redis-password-file"),
            redis_ca: path(self.redis_ca, "redis-ca"),
            redis_cert: path(self.redis_cert, "redis-cert"),
            redis_key: path(self.redis_key, "redis-key"),
        }
    }
}
