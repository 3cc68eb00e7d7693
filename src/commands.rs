//! The commands of the binary.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod keys;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::access::{Access, Guard};
use crate::apps::files::{CatalogFailure, Texts};
use crate::apps::keep_up::Upkeep;
use crate::apps::{Apps, Catalogs};
use crate::catalog;
use crate::config::{Config, HealthSettings, Settings, VerifySettings, log_filter, unknown_variables};
use crate::domain::fault::Fault;
use crate::ledger::{ConnectError, Ledger, RedisAccess, RedisOptions};
use crate::meter::MeterOptions;
use crate::private_redis::{self, PrivateRedis};
use crate::server::{self, ServeError, Serving};
use crate::telemetry;
use crate::tls::{Certificates, IdentityApps, InvalidTls};
use crate::verify::{self, VerifyError};

pub use keys::keys;

/// Why `tollgate serve` did not start, or ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Catalog(#[from] CatalogFailure),
    #[error("cannot listen on {address}: choose another with --listen, or stop what listens there")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot listen on {address}: choose another with --admin-listen, or none, or stop what listens there")]
    AdminListen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot send traces: check --otlp-endpoint and the OTEL_ variables")]
    Traces(#[from] telemetry::trace::StartError),
    #[error(transparent)]
    PrivateRedis(#[from] private_redis::StartError),
    #[error(transparent)]
    Redis(#[from] ConnectError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the API keys cannot be read")]
    Keys(#[from] Fault),
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
    telemetry::logs::start(filter, config.seeing.log_format);
    for name in unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!("the variable {name} is not a setting, and is ignored; `tollgate serve --help` lists them");
    }
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
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

/// `tollgate config`.
#[must_use]
pub fn config(settings: Settings) -> ExitCode {
    for name in unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        eprintln!("warning: the variable {name} is not a setting, and is ignored; `tollgate serve --help` lists them");
    }
    match settings.resolve() {
        Ok((_, given)) => {
            for given in given {
                println!("{given}");
            }
            ExitCode::SUCCESS
        }
        Err(invalid) => {
            eprintln!("error: {invalid}");
            ExitCode::from(2)
        }
    }
}

/// The TLS library wants its cryptography chosen once per process; a second choice changes nothing.
fn choose_cryptography() {
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
}

async fn run(config: Config) -> Result<(), Failure> {
    let texts = Texts::read(config.catalog.as_deref())?;
    let catalogs = texts.parse_for(only_default(&config))?;
    let tls = config.tls().map(Certificates::load).transpose()?;
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| Failure::Listen { address, source })?;
    let admin = match config.seeing.admin_listen {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| Failure::AdminListen { address, source })?)
        }
        None => None,
    };
    let seeing = &config.seeing;
    let traces =
        seeing.otlp_endpoint.as_deref().map(|url| telemetry::trace::start(url, seeing.trace_ratio)).transpose()?;
    // Before anything is started that has to be stopped again.
    let (stop, stop_now) = stops()?;
    let hangup = signal(SignalKind::hangup())?;

    let (redis, urls) = redis(&config).await?;
    let outcome = tokio::select! {
        outcome = serve_with(&config, (catalogs, texts.digest()), urls, (listener, admin), tls, hangup, stop) => outcome,
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

/// Done at the first SIGTERM or SIGINT, and at the second one: who asks again wants no more waiting.
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
    (listener, admin): (TcpListener, Option<TcpListener>),
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
    let address = listener.local_addr().unwrap_or(config.listen);
    let plans = catalogs.plans();
    let apps = Arc::new(Apps::new(catalogs, ledger, options));
    let keys = match config.api_keys {
        true => Some(Arc::new(Guard::open(apps.ledger().clone(), config.fail_open).await?)),
        false => None,
    };
    // The settings were checked.
    let access = Access::new(keys, IdentityApps::new(&config.tls_client_app).unwrap_or_default());
    let admin_address = admin.as_ref().and_then(|admin| admin.local_addr().ok());
    let (limits, fail_open) = (config.limits.clone(), config.fail_open);
    let serving = Serving { apps: Arc::clone(&apps), access: Arc::new(access), limits, fail_open, tls, admin };
    let upkeep = Arc::new(Upkeep::new(only_default(config)));
    let (kept, path, period) = (Arc::clone(&upkeep), config.catalog.clone(), config.catalog_poll);
    let kept_up = tokio::spawn(async move { kept.run(apps, path, digest, period).await });
    let hung_up = tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            upkeep.now.notify_one();
        }
    });
    if let Some(address) = admin_address {
        tracing::info!(%address, "admin port");
    }
    tracing::info!(%address, plans, "serving");
    let outcome = server::run(serving, listener, stop).await;
    kept_up.abort();
    hung_up.abort();
    Ok(outcome?)
}

/// Whether neither keys nor certificates say which app calls.
fn only_default(config: &Config) -> bool {
    !config.api_keys && config.tls_client_app.is_empty()
}

fn redis_options(config: &Config, urls: Vec<String>) -> RedisOptions {
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
            user: config.redis_user.clone(),
            password_file: config.redis_password_file.clone(),
            sentinel_password_file: config.redis_sentinel_password_file.clone(),
            ca: config.redis_ca.clone(),
            cert: config.redis_cert.clone(),
            key: config.redis_key.clone(),
        },
    }
}

/// The Redis to use: the one that is configured, or a private one that has to be stopped in the end.
async fn redis(config: &Config) -> Result<(Option<PrivateRedis>, Vec<String>), Failure> {
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

/// `tollgate check-catalog FILE`.
#[must_use]
pub fn check_catalog(path: &Path) -> ExitCode {
    match Texts::read(Some(path)).and_then(|texts| texts.parse()) {
        Ok(catalogs) => {
            println!("{} is valid: {catalogs}", path.display());
            ExitCode::SUCCESS
        }
        Err(failure) => failed(&failure),
    }
}

/// `tollgate schema`.
#[must_use]
pub fn schema() -> ExitCode {
    println!("{:#}", catalog::schema());
    ExitCode::SUCCESS
}

/// `tollgate verify`.
#[must_use]
pub fn verify(settings: VerifySettings) -> ExitCode {
    let unverified = ExitCode::from(2);
    let VerifySettings { redis_url: urls, redis_user, redis_password_file, redis_ca, redis_cert, redis_key, .. } =
        match settings.resolve() {
            Ok(settings) => settings,
            Err(invalid) => {
                eprintln!("error: {invalid}");
                return unverified;
            }
        };
    let access = RedisAccess {
        user: redis_user,
        password_file: redis_password_file,
        ca: redis_ca,
        cert: redis_cert,
        key: redis_key,
        ..RedisAccess::default()
    };
    choose_cryptography();
    let verified = tokio::runtime::Builder::new_multi_thread().enable_all().build().map(|runtime| {
        // Whoever reads only the first lines has seen what they wanted.
        let tell = |line: &dyn std::fmt::Display| drop(writeln!(std::io::stdout(), "{line}"));
        let report = runtime.block_on(verify::run_telling(&urls, &access, |finding| tell(finding)))?;
        tell(&report);
        Ok::<_, VerifyError>(report)
    });
    match verified {
        Ok(Ok(report)) if report.contradictions == 0 => ExitCode::SUCCESS,
        Ok(Ok(_)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            failed(&error);
            unverified
        }
        Err(error) => {
            failed(&error);
            unverified
        }
    }
}

/// `tollgate health [URL]`.
#[must_use]
pub fn health(settings: &HealthSettings) -> ExitCode {
    let url = &settings.url;
    choose_cryptography();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(ask_health(settings)) {
        Ok(ServingStatus::Serving) => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("{url} answers {}", status.as_str_name());
            ExitCode::FAILURE
        }
        Err(error) => failed(&*error),
    }
}

async fn ask_health(settings: &HealthSettings) -> Result<ServingStatus, Box<dyn std::error::Error>> {
    let limit = Duration::from_secs(2);
    let mut endpoint = Endpoint::from_shared(settings.url.clone())?.timeout(limit).connect_timeout(limit);
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    if let Some(ca) = &settings.tls_ca {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some(name) = &settings.tls_server_name {
            tls = tls.domain_name(name);
        }
        if let (Some(cert), Some(key)) = (&settings.tls_client_cert, &settings.tls_client_key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls)?;
    }
    let secure = endpoint.uri().scheme_str() == Some("https");
    if secure != settings.tls_ca.is_some() {
        let wrong = if secure { "https:// needs --tls-ca FILE" } else { "--tls-ca needs an https:// URL" };
        return Err(wrong.into());
    }
    let mut client = HealthClient::new(endpoint.connect().await?);
    let answer = client.check(HealthCheckRequest { service: String::new() }).await?;
    Ok(answer.into_inner().status())
}

/// Prints an error with its causes.
fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprint!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}
