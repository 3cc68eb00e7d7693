//! `tollgate serve`.

#![allow(clippy::print_stderr)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::access::{Access, Guard};
use crate::apps::files::{CatalogFailure, Parsed, Texts};
use crate::apps::reload::{self, CatalogReloader};
use crate::apps::{Apps, Catalogs};
use crate::config::{Config, Settings, log_filter, unknown_variables};
use crate::domain::descriptor::EntryMeanings;
use crate::domain::fault::Fault;
use crate::ledger::{ConnectError, Ledger, RedisAccess, RedisOptions};
use crate::meter::MeterOptions;
use crate::open_files;
use crate::private_redis::{self, PrivateRedis};
use crate::server::{self, ServeError, Serving};
use crate::telemetry;
use crate::tls::{Certificates, IdentityApps, InvalidTls};

use super::{choose_cryptography, failed};

/// The reason why `tollgate serve` did not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Catalog(#[from] CatalogFailure),
    #[error("cannot listen on {address}: choose another with --{setting}, or stop what listens there")]
    Listen {
        address: SocketAddr,
        setting: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot send traces to the collector of --otlp-endpoint")]
    Traces(#[from] telemetry::trace::StartError),
    #[error(transparent)]
    PrivateRedis(#[from] private_redis::StartError),
    #[error(transparent)]
    Redis(#[from] ConnectError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the API keys cannot be read")]
    Keys(#[from] Fault),
    #[error("--tls-client-app gives {0} to two apps")]
    IdentityTwice(String),
    #[error("--envoy-entries {0}")]
    EntryMeanings(String),
    #[error(transparent)]
    Tls(#[from] InvalidTls),
    #[error("cannot wait for signals")]
    Signals(#[from] std::io::Error),
}

/// `tollgate serve`.
#[must_use]
pub fn serve(settings: Settings) -> ExitCode {
    let config = match settings.resolve() {
        Ok((config, _)) => config,
        Err(invalid) => {
            eprintln!("error: {invalid}");
            return ExitCode::from(2);
        }
    };
    let filter = log_filter(&config.log).expect("the settings were checked");
    let logs = telemetry::logs::start(filter, config.observability.log_format);
    for name in unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!("the variable {name} is not a setting, and is ignored; `tollgate serve --help` lists them");
    }
    let config = within_open_files(config);
    choose_cryptography();
    // One thread needs neither to wake others nor to steal their work, which is a quarter of what a call costs.
    let mut runtime = match config.workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.worker_threads(config.workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let outcome = runtime.block_on(run(config));
    // What is told below stands after the log.
    drop(logs);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

/// Fewer connections where the process may not open as many files.
fn within_open_files(mut config: Config) -> Config {
    let files = open_files::raise();
    let (wanted, most) = (config.limits.max_connections, open_files::connections(config.limits.max_connections, files));
    if most < wanted {
        tracing::warn!(
            "there may be {most} connections instead of {wanted}, as this process may open {files} files: raise the hard limit \
             (ulimit -Hn, LimitNOFILE), or lower --max-connections"
        );
    }
    config.limits.max_connections = most;
    config
}

async fn run(config: Config) -> Result<(), Failure> {
    let texts = Texts::read(config.catalog.as_deref())?;
    let Parsed { catalogs, warnings } = texts.parse_for(only_default(&config))?;
    reload::warn(&warnings);
    let tls = config.tls().map(Certificates::load).transpose()?;
    let listeners = Listeners::bind(&config).await?;
    let observability = &config.observability;
    let traces = observability
        .otlp_endpoint
        .as_deref()
        .map(|url| telemetry::trace::start(url, observability.trace_ratio))
        .transpose()?;
    // Before anything is started that has to be stopped again.
    let (stop, stop_now) = stops()?;
    let hangup = signal(SignalKind::hangup())?;

    let (redis, urls) = redis(&config).await?;
    let outcome = tokio::select! {
        outcome = serve_with(&config, (catalogs, texts.digest()), urls, listeners, tls, hangup, stop) => outcome,
        () = stop_now => Ok(()),
    };
    if let Some(traces) = traces {
        traces.stop().await;
    }
    if let Some(redis) = redis {
        redis.stop().await;
    }
    outcome
}

/// The listeners of this process.
struct Listeners {
    callers: TcpListener,
    envoy: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, Failure> {
        let bind = async |setting: &'static str, address: SocketAddr| {
            let bound = TcpListener::bind(address).await;
            bound.map_err(|source| Failure::Listen { address, setting, source })
        };
        Ok(Self {
            callers: bind("listen", config.listen).await?,
            envoy: match config.envoy_listen {
                Some(address) => Some(bind("envoy-listen", address).await?),
                None => None,
            },
            admin: match config.observability.admin_listen {
                Some(address) => Some(bind("admin-listen", address).await?),
                None => None,
            },
        })
    }
}

/// Waits for the first SIGTERM or SIGINT, and for the second one, which asks to stop without waiting.
fn stops() -> Result<(impl Future<Output = ()> + Send, impl Future<Output = ()> + Send), std::io::Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (first, asked) = tokio::sync::oneshot::channel();
    let stop = async move {
        // It is sent before the other half is gone.
        let _: Result<(), _> = asked.await;
    };
    let stop_now = async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        tracing::info!("stopping: calls in flight are finished first; a second signal ends it at once");
        let _: Result<(), ()> = first.send(());
        next().await;
        tracing::warn!("stopping at once: calls in flight are cut off");
    };
    Ok((stop, stop_now))
}

async fn serve_with(
    config: &Config,
    (catalogs, digest): (Catalogs, [u8; 32]),
    urls: Vec<String>,
    listeners: Listeners,
    tls: Option<Certificates>,
    mut hangup: Signal,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Failure> {
    let ledger = Ledger::connect(&redis_options(config, urls)).await?;
    let options = MeterOptions {
        settlement_window: config.settlement_window,
        replay_window: config.replay_window,
        fail_open: config.fail_open,
        ..MeterOptions::default()
    };
    let plans = catalogs.plans();
    let apps = Arc::new(Apps::new(catalogs, ledger, options));
    let keys = match config.api_keys {
        true => Some(Arc::new(Guard::open(apps.ledger().clone(), config.fail_open).await?)),
        false => None,
    };
    let identities = IdentityApps::new(&config.tls_client_app).map_err(Failure::IdentityTwice)?;
    let meanings = EntryMeanings::new(&config.envoy_entries).map_err(Failure::EntryMeanings)?;
    let Listeners { callers, envoy, admin } = listeners;
    let addresses = [("admin port", &admin), ("envoy port", &envoy)]
        .map(|(what, listener)| (what, listener.as_ref().and_then(|listener| listener.local_addr().ok())));
    let address = callers.local_addr().unwrap_or(config.listen);
    let serving = Serving {
        apps: Arc::clone(&apps),
        access: Arc::new(Access::new(keys, identities)),
        limits: config.limits.clone(),
        fail_open: config.fail_open,
        tls,
        envoy: envoy.map(|listener| (listener, meanings)),
        admin,
    };
    let reloader = Arc::new(CatalogReloader::new(only_default(config)));
    let (kept, path, period) = (Arc::clone(&reloader), config.catalog.clone(), config.catalog_poll);
    let reloading = tokio::spawn(async move { kept.run(apps, path, digest, period).await });
    let hung_up = tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reloader.now.notify_one();
        }
    });
    for (what, address) in addresses {
        if let Some(address) = address {
            tracing::info!(%address, "{what}");
        }
    }
    tracing::info!(%address, plans, "serving");
    let outcome = server::run(serving, callers, stop).await;
    reloading.abort();
    hung_up.abort();
    Ok(outcome?)
}

/// Returns whether neither keys nor certificates can name the app of a call.
fn only_default(config: &Config) -> bool {
    !config.api_keys && config.tls_client_app.is_empty()
}

pub(super) fn redis_options(config: &Config, urls: Vec<String>) -> RedisOptions {
    RedisOptions {
        urls,
        sentinels: config.redis_sentinel.clone(),
        connections: config.redis_connections,
        batch: config.redis_batch,
        timeout: config.redis_timeout,
        allow_eviction: config.allow_eviction,
        wait_replicas: config.redis_wait_replicas,
        wait_timeout: config.redis_wait_timeout,
        access: RedisAccess {
            sentinel_password_file: config.redis_sentinel_password_file.clone(),
            ..config.login.access()
        },
    }
}

/// The Redis to use: the one that is configured, or a private one that has to be stopped in the end.
pub(super) async fn redis(config: &Config) -> Result<(Option<PrivateRedis>, Vec<String>), Failure> {
    if !config.redis_url.is_empty() {
        return Ok((None, config.redis_url.clone()));
    }
    let options = private_redis::Options {
        data_dir: config.data_dir.clone(),
        redis_server: config.redis_server.clone(),
        ..private_redis::Options::default()
    };
    let redis = private_redis::start(options).await?;
    tracing::info!(data = %config.data_dir.display(), "started a private Redis");
    let urls = vec![redis.url()];
    Ok((Some(redis), urls))
}
