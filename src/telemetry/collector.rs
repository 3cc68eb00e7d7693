//! The way of the spans to the collector: OTLP over gRPC or over HTTP, with TLS if the endpoint asks for it. What a setting does not say is
//! said by the standard variables of OpenTelemetry.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnectorBuilder};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The time that the collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The path for spans in OTLP over HTTP, below the endpoint.
const PATH: &str = "/v1/traces";

/// Variables that mean the same: the first one that is set and not empty counts.
type Variables = [&'static str; 2];

const PROTOCOL: Variables = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const AUTHORITY: Variables = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
const CERTIFICATE: Variables =
    ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"];
const KEY: Variables = ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"];

/// The reason why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A protocol that is not spoken.
    #[error("{variable} is {value:?}; write grpc or http/protobuf")]
    Protocol {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// A file of TLS that does not serve.
    #[error("cannot use the file of {variable}, {}: {problem}", path.display())]
    Unusable {
        /// The variable that names the file.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem with the file, without its content.
        problem: String,
    },
    /// One of two files that belong together is missing.
    #[error("{} and {} go together: name both files, or neither", CERTIFICATE[1], KEY[1])]
    HalfIdentity,
    /// The certificate and the key of a client do not belong together.
    #[error("the key of {} is not that of {}", KEY[1], CERTIFICATE[1])]
    Identity(#[source] rustls::Error),
    /// The library refuses the configuration.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// Makes the exporter of spans for this endpoint, as the environment configures it.
pub(super) fn exporter(endpoint: &str) -> Result<SpanExporter, StartError> {
    exporter_of(endpoint, |variable| std::env::var(variable).ok())
}

fn exporter_of(endpoint: &str, environment: impl Fn(&str) -> Option<String>) -> Result<SpanExporter, StartError> {
    let tls = match endpoint.starts_with("https:") {
        true => Some(Tls::read(&environment)?),
        false => None,
    };
    match protocol(&environment)? {
        Protocol::HttpBinary => over_http(endpoint, tls.as_ref()),
        _ => over_grpc(endpoint, tls.as_ref()),
    }
}

fn over_grpc(endpoint: &str, tls: Option<&Tls>) -> Result<SpanExporter, StartError> {
    let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE);
    if let Some(tls) = tls {
        exporter = exporter.with_tls_config(tls.for_grpc()?);
    }
    Ok(exporter.build()?)
}

fn over_http(endpoint: &str, tls: Option<&Tls>) -> Result<SpanExporter, StartError> {
    let config = match tls {
        Some(tls) => tls.for_http()?,
        // Of no use to an endpoint without TLS, but the connector wants one.
        None => ClientConfig::builder().with_webpki_roots().with_no_client_auth(),
    };
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(HyperClient::new(connector, PATIENCE, None))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(traces_url(endpoint))
        .with_timeout(PATIENCE);
    Ok(exporter.build()?)
}

/// Returns the URL for spans. An endpoint is for all signals, unless it names the path of spans itself.
fn traces_url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }
}

fn protocol(environment: impl Fn(&str) -> Option<String>) -> Result<Protocol, StartError> {
    let Some((variable, value)) = first(PROTOCOL, environment) else { return Ok(Protocol::Grpc) };
    match value.as_str() {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::HttpBinary),
        _ => Err(StartError::Protocol { variable, value }),
    }
}

fn first(variables: Variables, environment: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    variables.into_iter().find_map(|variable| {
        let value = environment(variable).filter(|value| !value.trim().is_empty())?;
        Some((variable, value.trim().to_owned()))
    })
}

/// A file of TLS: its content, and how a message names it.
struct File {
    variable: &'static str,
    path: PathBuf,
    content: Vec<u8>,
}

impl File {
    fn read(variables: Variables, environment: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, StartError> {
        let Some((variable, path)) = first(variables, environment) else { return Ok(None) };
        let path = Path::new(&path).to_owned();
        match std::fs::read(&path) {
            Ok(content) => Ok(Some(Self { variable, path, content })),
            Err(error) => Err(StartError::Unusable { variable, path, problem: error.to_string() }),
        }
    }

    fn unusable(&self, problem: impl ToString) -> StartError {
        StartError::Unusable { variable: self.variable, path: self.path.clone(), problem: problem.to_string() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, StartError> {
        let found = CertificateDer::pem_slice_iter(&self.content).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| self.unusable(error))?;
        if found.is_empty() { Err(self.unusable("there is no certificate (PEM) in it")) } else { Ok(found) }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, StartError> {
        PrivateKeyDer::from_pem_slice(&self.content).map_err(|_| self.unusable("there is no private key (PEM) in it"))
    }
}

/// The authorities that the collector's certificate may come from, and the client certificate to show to it.
struct Tls {
    /// Without it, the authorities that browsers trust.
    authority: Option<File>,
    /// A certificate and its key.
    client: Option<(File, File)>,
}

impl Tls {
    fn read(environment: &impl Fn(&str) -> Option<String>) -> Result<Self, StartError> {
        let authority = File::read(AUTHORITY, environment)?;
        let client = match (File::read(CERTIFICATE, environment)?, File::read(KEY, environment)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(StartError::HalfIdentity),
        };
        Ok(Self { authority, client })
    }

    fn for_grpc(&self) -> Result<ClientTlsConfig, StartError> {
        // The library would find mistakes in the files only when it connects.
        self.for_http()?;
        let mut config = match &self.authority {
            Some(authority) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.content)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        if let Some((certificate, key)) = &self.client {
            config = config.identity(Identity::from_pem(&certificate.content, &key.content));
        }
        Ok(config)
    }

    fn for_http(&self) -> Result<ClientConfig, StartError> {
        let builder = ClientConfig::builder();
        let builder = match &self.authority {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                for certificate in authority.certificates()? {
                    roots.add(certificate).map_err(|error| authority.unusable(error))?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder.with_webpki_roots(),
        };
        match &self.client {
            Some((certificate, key)) => {
                builder.with_client_auth_cert(certificate.certificates()?, key.key()?).map_err(StartError::Identity)
            }
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the error for an environment.
    fn refused(endpoint: &str, variables: &[(&str, &str)]) -> String {
        let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
        let environment =
            |name: &str| variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        exporter_of(endpoint, environment).map_or_else(|error| error.to_string(), |_| "nothing".to_owned())
    }

    #[test]
    fn what_the_variables_say_is_checked_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let made = rcgen::generate_simple_self_signed(["collector.test".to_owned()]).unwrap();
        std::fs::write(path("ca.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("text"), "hello").unwrap();
        let (ca, key, text, none) = (path("ca.pem"), path("key.pem"), path("text"), path("none"));
        let https = "https://collector.test:4317";
        for protocol in ["grpc", "http/protobuf", ""] {
            let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
            for variables in [
                &[protocol][..],
                &[protocol, ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca)],
                &[protocol, ("OTEL_EXPORTER_OTLP_CERTIFICATE", &none), ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", &ca)],
                &[protocol, ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &ca), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key)],
            ] {
                assert_eq!(refused(https, variables), "nothing", "{variables:?}");
            }
            // Without TLS none of these files is needed.
            let unused = [protocol, ("OTEL_EXPORTER_OTLP_CERTIFICATE", &none)];
            assert_eq!(refused("http://collector.test:4317", &unused), "nothing");
            for (variables, told) in [
                (&[("OTEL_EXPORTER_OTLP_CERTIFICATE", none.as_str())][..], "CERTIFICATE, /"),
                (&[("OTEL_EXPORTER_OTLP_CERTIFICATE", &text)], "no certificate (PEM)"),
                (&[("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &ca)], "go together"),
                (&[("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key)], "go together"),
                (
                    &[("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &ca), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &text)],
                    "no private key (PEM)",
                ),
            ] {
                let variables = [&[protocol], variables].concat();
                let refusal = refused(https, &variables);
                assert!(refusal.contains(told), "{refusal}");
            }
        }
        let odd = refused(https, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        assert_eq!(odd, "OTEL_EXPORTER_OTLP_PROTOCOL is \"http/json\"; write grpc or http/protobuf");
    }

    #[test]
    fn spans_are_posted_below_the_endpoint() {
        for (endpoint, url) in [
            ("http://a:4318", "http://a:4318/v1/traces"),
            ("http://a:4318/", "http://a:4318/v1/traces"),
            ("https://a/otlp", "https://a/otlp/v1/traces"),
            ("https://a/otlp/v1/traces", "https://a/otlp/v1/traces"),
        ] {
            assert_eq!(traces_url(endpoint), url);
        }
    }
}
