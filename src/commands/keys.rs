//! `tollgate keys`: makes, lists and revokes API keys, and mints tokens.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

use crate::access::{ApiKey, InvalidKey, LONGEST_SECONDS, Role, STALE, mint, named};
use crate::config::{Config, KEY, KeysCommand, Settings};
use crate::domain::fault::Fault;
use crate::domain::id::UserId;
use crate::ledger::{ConnectError, KeyRecord, Ledger};
use crate::private_redis::PrivateRedis;

use super::serve::{Failure, redis, redis_options};
use super::{choose_cryptography, failed};

/// The reason why a key was not made, listed or revoked.
#[derive(Debug, thiserror::Error)]
enum KeysFailure {
    #[error(transparent)]
    Start(#[from] Failure),
    #[error("the system has no random numbers")]
    Random(#[from] getrandom::Error),
    #[error("the keys cannot be read or written")]
    Ledger(#[from] Fault),
    #[error("a key with the same id already exists: try again")]
    Taken,
    #[error("there is no key {0}: `tollgate keys list` shows them")]
    NoSuchKey(String),
    #[error("key {0} is back: Redis has failed over, and lost the revocation; revoke it once more")]
    Back(String),
    #[error("name the key by its prefix, as `tollgate keys list` shows it: tollgate_ROLE_ID")]
    BadName,
    #[error("cannot read the key from {path}")]
    Unreadable {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the secret key of TOLLGATE_KEY or --key-file")]
    BadKey(#[source] InvalidKey),
    #[error("no secret key is given: set TOLLGATE_KEY, or pass --key-file FILE (- for standard input)")]
    NoKey,
    #[error("a public key cannot sign tokens: use a secret key of the same app")]
    PublicKey,
    #[error("--user {0}")]
    BadUser(#[source] crate::domain::id::InvalidId),
    #[error("--ttl must be from 1s to 1h")]
    BadTtl,
}

/// `tollgate keys`.
#[must_use]
pub fn keys(command: KeysCommand) -> ExitCode {
    let outcome = match command {
        KeysCommand::Create { app, role, name, settings } => {
            with_ledger(settings, async move |ledger| create(&ledger, app.as_str(), role, name).await)
        }
        KeysCommand::List { settings } => with_ledger(settings, async |ledger| list(&ledger).await),
        KeysCommand::Revoke { key, settings } => with_ledger(settings, async move |ledger| revoke(&ledger, &key).await),
        KeysCommand::Token { user, ttl, key_file } => token(&user, &ttl, key_file.as_deref()).map_err(Some),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Some(failure)) => failed(&failure),
        Err(None) => ExitCode::from(2),
    }
}

/// Works on the Redis of these settings, and starts the private one if nobody else has. `None`: the settings are bad, and that was said.
fn with_ledger(
    settings: Settings,
    work: impl AsyncFnOnce(Ledger) -> Result<(), KeysFailure>,
) -> Result<(), Option<KeysFailure>> {
    let config = match settings.resolve() {
        Ok((config, _)) => config,
        Err(invalid) => {
            eprintln!("error: {invalid}");
            return Err(None);
        }
    };
    choose_cryptography();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Some(Failure::Signals(error).into()))?;
    let outcome = runtime.block_on(async {
        let (redis, ledger) = open(&config).await?;
        let outcome = work(ledger).await;
        if let Some(redis) = redis {
            redis.stop().await;
        }
        outcome
    });
    outcome.map_err(Some)
}

async fn open(config: &Config) -> Result<(Option<PrivateRedis>, Ledger), Failure> {
    let socket = config.data_dir.join("redis.sock");
    let running = match std::path::absolute(&socket) {
        Ok(socket) if config.redis_url.is_empty() && tokio::net::UnixStream::connect(&socket).await.is_ok() => {
            Some(format!("unix://{}", socket.display()))
        }
        _ => None,
    };
    let (redis, urls) = match running {
        Some(url) => (None, vec![url]),
        None => redis(config).await?,
    };
    let ledger: Result<_, ConnectError> = Ledger::connect(&redis_options(config, urls)).await;
    match (ledger, redis) {
        (Ok(ledger), redis) => Ok((redis, ledger)),
        (Err(error), redis) => {
            if let Some(redis) = redis {
                redis.stop().await;
            }
            Err(error.into())
        }
    }
}

async fn create(ledger: &Ledger, app: &str, role: Role, name: String) -> Result<(), KeysFailure> {
    let key = ApiKey::random(role)?;
    let now_ms = ledger.api_keys("").await?.now_ms;
    let record = KeyRecord { app: app.to_owned(), role, sha256: key.sha256(), created_ms: now_ms, name };
    if !ledger.add_api_key(key.id(), &record).await? {
        return Err(KeysFailure::Taken);
    }
    eprintln!("a {} key of the app {app}; it is shown this once, and kept nowhere:", role.as_str());
    println!("{}", key.reveal());
    Ok(())
}

async fn list(ledger: &Ledger) -> Result<(), KeysFailure> {
    let mut records = ledger.api_keys("").await?.records.unwrap_or_default();
    records.sort_by(|(_, one), (_, two)| (&one.app, one.created_ms).cmp(&(&two.app, two.created_ms)));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["KEY", "APP", "CREATED", "NAME"]);
    for (id, record) in records {
        let KeyRecord { app, role, sha256: _, created_ms, name } = record;
        let created = jiff::Timestamp::from_millisecond(created_ms).unwrap_or_default();
        let created = created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        table.add_row([format!("tollgate_{}_{id}", role.as_str()), app, created, name]);
    }
    println!("{}", table.trim_fmt());
    Ok(())
}

async fn revoke(ledger: &Ledger, key: &str) -> Result<(), KeysFailure> {
    let id = named(key).ok_or(KeysFailure::BadName)?;
    if !ledger.remove_api_key(&id).await? {
        return Err(KeysFailure::NoSuchKey(id));
    }
    // By then every replica has asked Redis again, or takes no keys any more.
    tokio::time::sleep(STALE + Duration::from_millis(500)).await;
    let records = ledger.api_keys("").await?.records.unwrap_or_default();
    if records.iter().any(|(known, _)| *known == id) {
        return Err(KeysFailure::Back(id));
    }
    println!("{id} is revoked: no replica takes it any more");
    Ok(())
}

fn token(user: &str, ttl: &str, key_file: Option<&Path>) -> Result<(), KeysFailure> {
    let user = UserId::parse(user).map_err(KeysFailure::BadUser)?;
    let seconds = ttl.parse::<jiff::SignedDuration>().map(|ttl| ttl.as_secs()).unwrap_or_default();
    if !(1..=LONGEST_SECONDS).contains(&seconds) {
        return Err(KeysFailure::BadTtl);
    }
    let text = match key_file {
        Some(path) => {
            read(path).map_err(|source| KeysFailure::Unreadable { path: path.display().to_string(), source })?
        }
        None => std::env::var(KEY).map_err(|_| KeysFailure::NoKey)?,
    };
    let key = ApiKey::parse(text.trim()).map_err(KeysFailure::BadKey)?;
    if !key.prefix().starts_with("tollgate_secret_") {
        return Err(KeysFailure::PublicKey);
    }
    println!("{}", mint(&key, &user, jiff::Timestamp::now().as_second() + seconds));
    Ok(())
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}
