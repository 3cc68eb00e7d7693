//! The commands of the binary.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod keys;
mod serve;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::apps::files::{Parsed, Texts};
use crate::catalog;
use crate::config::{HealthSettings, Settings, VerifySettings, unknown_variables};
use crate::verify::{self, VerifyError};

pub use keys::keys;
pub use serve::serve;

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

/// `tollgate check-catalog FILE`.
#[must_use]
pub fn check_catalog(path: &Path) -> ExitCode {
    match Texts::read(Some(path)).and_then(|texts| texts.parse()) {
        Ok(Parsed { catalogs, warnings }) => {
            for warning in warnings {
                eprintln!("warning: {}: {warning}", path.display());
            }
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
    let VerifySettings { redis_url: urls, login, .. } = match settings.resolve() {
        Ok(settings) => settings,
        Err(invalid) => {
            eprintln!("error: {invalid}");
            return unverified;
        }
    };
    let access = login.access();
    choose_cryptography();
    let verified = tokio::runtime::Builder::new_multi_thread().enable_all().build().map(|runtime| {
        // A reader that closes the pipe early has seen enough.
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
