//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::access::Role;
use crate::domain::id::AppId;

use super::{Settings, VerifySettings};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `tollgate`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the gRPC API. With nothing configured: with a Redis of its own and the example
    /// catalog.
    Serve(Settings),
    /// Print every setting of `tollgate serve` with its source, without secrets.
    ///
    /// Takes the flags, variables and file of `tollgate serve`. Prints one line for each setting,
    /// as a configuration file would have it. Exits with 2, and names every problem, if the
    /// configuration is not valid.
    Config(Settings),
    /// Make, list and revoke API keys, and mint tokens for users.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Check a catalog, and name every problem with its path and line.
    CheckCatalog {
        /// The YAML file, or a folder with NAME.yaml for each app.
        file: PathBuf,
    },
    /// Print the JSON schema of the catalog, for editors.
    Schema,
    /// Read everything in a live Redis, change nothing, and report what contradicts itself.
    ///
    /// Tollgate may go on serving: users are found by SCAN, and short scripts that only read look
    /// at each. Standard output has one line per contradiction: the key, and what is wrong, with
    /// the numbers found and expected. Times are milliseconds of the Unix epoch. Keys name users:
    /// keep the output as you keep user ids. A line marked `note` is odd, but possible. The last
    /// line sums up. If a DeleteUser was cut short, its `hold` keys stay for up to an hour: a note,
    /// or a contradiction if the user has come back since.
    ///
    /// Exits with 0 if nothing contradicts itself, 1 if something does, and 2 if the Redis could
    /// not be read to the end.
    ///
    /// A replica will do, and so will a user that may only read: ACL SETUSER NAME on >PASSWORD %R~*
    /// +@read +@connection -@dangerous +time +eval_ro +evalsha_ro, and +cluster|slots on a cluster.
    Verify(VerifySettings),
    /// Ask a running Tollgate whether it serves, and exit with 0 if it does: for containers without a shell.
    Health(HealthSettings),
}

/// The server that `tollgate health` asks, and its TLS settings.
#[derive(Debug, Args)]
pub struct HealthSettings {
    /// The address of the server; with https:// if it speaks TLS.
    #[arg(default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub url: String,

    /// The authority of the server's certificate, as PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// The name in the server's certificate, if it is not the host of the URL.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub tls_server_name: Option<String>,

    /// A client certificate, as PEM, where the server asks for one.
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_client_key"])]
    pub tls_client_cert: Option<PathBuf>,

    /// The private key of the client certificate, as PEM.
    #[arg(long, value_name = "FILE", requires = "tls_client_cert")]
    pub tls_client_key: Option<PathBuf>,
}

/// The subcommands of `tollgate keys`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key, and print it once: Redis keeps only its hash. An app may have several keys, so
    /// that one can replace another.
    Create {
        /// The app whose users, plans and reservations the key opens.
        #[arg(long, value_name = "NAME", value_parser = AppId::parse)]
        app: AppId,
        /// `secret`: everything of the app, for servers. `public`: GetUsage for the user that a token names, and PlanService.
        #[arg(long, value_enum)]
        role: Role,
        /// The key's name for people.
        #[arg(long, value_name = "TEXT", default_value = "")]
        name: String,
        /// The settings that locate Redis.
        #[command(flatten)]
        settings: Settings,
    },
    /// List the keys of all apps by their prefixes.
    List {
        /// The settings that locate Redis.
        #[command(flatten)]
        settings: Settings,
    },
    /// Revoke a key. When this returns, no replica that reaches Redis accepts it any more.
    Revoke {
        /// Its prefix, as `tollgate keys list` shows it.
        #[arg(value_name = "KEY")]
        key: String,
        /// The settings that locate Redis.
        #[command(flatten)]
        settings: Settings,
    },
    /// Make a token with which a public key may see one user. This calls nobody. Any JWT library
    /// can do the same.
    Token {
        /// The user.
        #[arg(long, value_name = "USER_ID")]
        user: String,
        /// For how long, at most 1h.
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        ttl: String,
        /// The file with a secret key of the app; - for standard input [default: the variable TOLLGATE_KEY]
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
}
