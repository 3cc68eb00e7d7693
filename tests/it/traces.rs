//! Traces, as a collector receives them from the binary.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tollgate::grpc::v1;
use tonic::{Request, Response, Status};

use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, redis_url, spawn};

/// What a collector receives: a span, and the attributes of the process that it is of.
struct Received {
    span: Span,
    process: BTreeMap<String, String>,
}

/// Takes all spans.
#[derive(Clone)]
struct Collector(UnboundedSender<Received>);

impl Collector {
    fn take(&self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let named = resource.resource.iter().flat_map(|resource| &resource.attributes);
            let process: BTreeMap<_, _> =
                named.map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let _: Result<(), _> = self.0.send(Received { span, process: process.clone() });
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: &Option<opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    span.attributes.iter().find(|attribute| attribute.key == key).map(|attribute| text(&attribute.value))
}

async fn collector() -> (SocketAddr, UnboundedReceiver<Received>) {
    grpc_collector(None).await
}

/// One that speaks OTLP over gRPC, with TLS if it has a certificate.
async fn grpc_collector(certificate: Option<&Certificate>) -> (SocketAddr, UnboundedReceiver<Received>) {
    let (send, receive) = unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let service = TraceServiceServer::new(Collector(send));
    let mut server = tonic::transport::Server::builder();
    if let Some(Certificate { cert, key }) = certificate {
        let identity = tonic::transport::Identity::from_pem(cert, key);
        server = server.tls_config(tonic::transport::ServerTlsConfig::new().identity(identity)).unwrap();
    }
    spawn(server.add_service(service).serve_with_incoming(incoming));
    (address, receive)
}

/// One that speaks OTLP over HTTP, with TLS if it has a certificate. It takes only what a collector takes.
async fn http_collector(certificate: Option<&Certificate>) -> (SocketAddr, UnboundedReceiver<Received>) {
    let (send, receive) = unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = certificate.map(|Certificate { cert, key }| {
        let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    let collector = Collector(send);
    spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, collector) = (acceptor.clone(), collector.clone());
            spawn(async move {
                match acceptor {
                    None => serve_http(stream, collector).await,
                    Some(acceptor) => {
                        // Who does not trust it goes away.
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve_http(stream, collector).await;
                        }
                    }
                }
            });
        }
    });
    (address, receive)
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, collector: Collector) {
    let answer = service_fn(move |request: http::Request<Incoming>| {
        let collector = collector.clone();
        async move {
            assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
            assert_eq!(request.headers()["content-type"], "application/x-protobuf");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            collector.take(ExportTraceServiceRequest::decode(body).unwrap());
            let answer = ExportTraceServiceResponse::default().encode_to_vec();
            let answer = http::Response::builder()
                .header("content-type", "application/x-protobuf")
                .body(Full::<Bytes>::from(answer));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    let _: Result<_, _> = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

/// A certificate for this machine, by an authority of its own, and its key.
struct Certificate {
    cert: String,
    key: String,
}

/// A certificate, and a file with its authority.
fn certificate(directory: &Path) -> (Certificate, String) {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let file = directory.join("ca.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    (Certificate { cert: cert.pem(), key: key.serialize_pem() }, file.to_str().unwrap().to_owned())
}

fn traced(user: &str, traceparent: Option<&str>) -> Request<v1::ReserveRequest> {
    let event = v1::Event { name: "llm.tokens".to_owned(), quantity: Some(1.0), ..v1::Event::default() };
    let reserve = v1::ReserveRequest { user_id: user.to_owned(), event: Some(event), ..v1::ReserveRequest::default() };
    let mut request = Request::new(reserve);
    request.metadata_mut().insert("x-request-id", "traced-1".parse().unwrap());
    if let Some(traceparent) = traceparent {
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_below_the_callers_and_above_its_scripts() {
    let (address, mut spans) = collector().await;
    let endpoint = format!("http://{address}");
    let mut served =
        Served::start(0, &["--redis-url", &redis_url(), "--otlp-endpoint", &endpoint, "--trace-ratio", "0"]);
    let mut replica = Replica::connect(served.address).await;
    let user = fresh_user("traced");
    // Neither does the ratio keep a trace that begins here, nor is one kept that the caller does not keep.
    replica.metering.reserve(traced(&user, None)).await.unwrap();
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    replica.metering.reserve(traced(&user, Some(&format!("00-{trace}-{parent}-00")))).await.unwrap();
    replica.metering.reserve(traced(&user, Some(&format!("00-{trace}-{parent}-01")))).await.unwrap();
    // What has not left yet leaves before the process ends.
    served.signal("-TERM");
    assert!(served.wait().success());
    let mut received = Vec::new();
    let mut processes = Vec::new();
    while let Ok(Received { span, process }) = spans.try_recv() {
        received.push(span);
        processes.push(process);
    }
    assert!(processes.iter().all(|process| process["service.name"] == "tollgate"));
    // A random one of its own, as nobody gave it another.
    let instance = processes[0]["service.instance.id"].clone();
    assert_eq!((instance.len(), instance.as_bytes()[14], instance.matches('-').count()), (36, b'4', 4), "{instance}");
    assert_eq!(processes[1]["service.instance.id"], instance);
    let [call, script] = match <[Span; 2]>::try_from(received).expect("two spans") {
        [first, second] if first.kind == SpanKind::Server as i32 => [first, second],
        [first, second] => [second, first],
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (trace.to_owned(), parent.to_owned()));
    assert_eq!(call.name, "tollgate.v1.MeteringService/Reserve");
    for (key, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "tollgate.v1.MeteringService"),
        ("rpc.method", "Reserve"),
        ("rpc.grpc.status_code", "0"),
        ("tollgate.outcome", "allowed"),
        ("tollgate.request_id", "traced-1"),
        ("server.address", "127.0.0.1"),
        ("server.port", &served.address.port().to_string()),
    ] {
        assert_eq!(attribute(&call, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!((script.trace_id.clone(), script.parent_span_id.clone()), (call.trace_id.clone(), call.span_id.clone()));
    assert_eq!((script.name.as_str(), script.kind), ("redis reserve", SpanKind::Client as i32));
    assert_eq!(attribute(&script, "tollgate.script").as_deref(), Some("reserve"));
    let socket = attribute(&script, "server.address").unwrap();
    assert!(redis_url().contains(&socket) && !socket.is_empty(), "{socket}");
    assert_eq!(attribute(&script, "server.port"), None, "a socket of Unix has no port");
    assert!(
        script.start_time_unix_nano >= call.start_time_unix_nano
            && script.end_time_unix_nano <= call.end_time_unix_nano
    );
    assert!(!format!("{call:?}{script:?}").contains(&user), "no span names a user");
}

/// Calls until the collector has received a span; or, where none is expected, until Tollgate says that the collector takes none.
async fn first_span(
    endpoint: &str,
    variables: &[(&str, &str)],
    spans: &mut UnboundedReceiver<Received>,
    expected: bool,
) -> Option<Received> {
    let flags = ["--redis-url", &redis_url(), "--otlp-endpoint", endpoint, "--admin-listen", "127.0.0.1:0"];
    let served = Served::start_with(0, &flags, &[variables, &[("OTEL_BSP_SCHEDULE_DELAY", "50")]].concat());
    let mut replica = Replica::connect(served.address).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        replica.metering.reserve(traced(&fresh_user("collected"), None)).await.unwrap();
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(200), spans.recv()).await {
            return received;
        }
        let failed = !served.get("/metrics").1.contains("tollgate_trace_export_failures_total 0\n");
        if failed && !expected {
            return None;
        }
        assert!(Instant::now() < deadline, "{}", served.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_travel_over_http_where_the_protocol_says_so() {
    let (address, mut spans) = http_collector(None).await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=replica-7,deployment.environment.name=test"),
    ];
    let received = first_span(&format!("http://{address}"), &variables, &mut spans, true).await;
    let Received { process, span } = received.expect("a span");
    assert!(["tollgate.v1.MeteringService/Reserve", "redis reserve"].contains(&span.name.as_str()), "{}", span.name);
    assert_eq!(process["service.instance.id"], "replica-7");
    assert_eq!(process["deployment.environment.name"], "test");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_trusted_by_the_authority_that_is_named_and_by_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, authority) = certificate(directory.path());
    let strangers = tempfile::tempdir().unwrap();
    let (_, stranger) = self::certificate(strangers.path());
    for protocol in ["grpc", "http/protobuf"] {
        for (authority, trusted) in [(Some(&authority), true), (Some(&stranger), false), (None, false)] {
            let (address, mut spans) = match protocol {
                "grpc" => grpc_collector(Some(&certificate)).await,
                _ => http_collector(Some(&certificate)).await,
            };
            let mut variables = vec![("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
            variables.extend(authority.map(|file| ("OTEL_EXPORTER_OTLP_CERTIFICATE", file.as_str())));
            let received = first_span(&format!("https://{address}"), &variables, &mut spans, trusted).await;
            assert_eq!(received.is_some(), trusted, "{protocol} {authority:?}");
        }
    }
}

#[test]
fn a_wrong_variable_of_the_collector_ends_the_start_and_is_named() {
    for (name, value, told) in [
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json",
            "OTEL_EXPORTER_OTLP_PROTOCOL is \"http/json\"; write grpc or http/protobuf",
        ),
        (
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "/no/such/ca.pem",
            "cannot use the file of OTEL_EXPORTER_OTLP_CERTIFICATE, /no/such/ca.pem",
        ),
    ] {
        let mut command = tollgate();
        command.args(["serve", "--listen", "127.0.0.1:0", "--redis-url", &redis_url()]);
        let output = command.args(["--otlp-endpoint", "https://127.0.0.1:1"]).env(name, value).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && log.contains(told), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_calls_nothing_and_the_log_a_line() {
    // It takes connections, and never says anything.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let refused = "http://127.0.0.1:1".to_owned();
    for endpoint in [endpoint, refused] {
        let flags = ["--redis-url", &redis_url(), "--otlp-endpoint", &endpoint, "--admin-listen", "127.0.0.1:0"];
        let mut served = Served::start(0, &flags);
        let mut replica = Replica::connect(served.address).await;
        let user = fresh_user("untraced");
        for _ in 0..600 {
            replica.metering.reserve(traced(&user, None)).await.unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while served.get("/metrics").1.contains("tollgate_trace_export_failures_total 0\n") {
            assert!(Instant::now() < deadline, "nothing is sent to {endpoint}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        served.signal("-TERM");
        assert!(served.wait().success());
        let log = served.whole_log();
        assert_eq!(log.matches("takes no spans").count(), 1, "{log}");
    }
}
