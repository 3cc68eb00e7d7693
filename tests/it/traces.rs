//! Traces, as a collector receives them from the binary.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tollgate::grpc::v1;
use tonic::{Request, Response, Status};

use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, redis_url, spawn};

/// Takes all spans.
struct Collector(UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let named = resource.resource.iter().flat_map(|resource| &resource.attributes);
            let mut named = named.filter(|attribute| attribute.key == "service.name");
            assert_eq!(text(&named.next().unwrap().value), "tollgate");
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let _: Result<(), _> = self.0.send(span);
            }
        }
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

async fn collector() -> (SocketAddr, UnboundedReceiver<Span>) {
    let (send, receive) = unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let service = TraceServiceServer::new(Collector(send));
    spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    (address, receive)
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
    while let Ok(span) = spans.try_recv() {
        received.push(span);
    }
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
    ] {
        assert_eq!(attribute(&call, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!((script.trace_id.clone(), script.parent_span_id.clone()), (call.trace_id.clone(), call.span_id.clone()));
    assert_eq!((script.name.as_str(), script.kind), ("redis reserve", SpanKind::Client as i32));
    assert_eq!(attribute(&script, "tollgate.script").as_deref(), Some("reserve"));
    assert!(
        script.start_time_unix_nano >= call.start_time_unix_nano
            && script.end_time_unix_nano <= call.end_time_unix_nano
    );
    assert!(!format!("{call:?}{script:?}").contains(&user), "no span names a user");
}

/// Everybody can send a `traceparent`, and each span costs the collector.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_caller_with_a_secret_key_decides_that_a_call_is_traced() {
    let key = |role: &str| {
        let mut create = tollgate();
        create.args(["keys", "create", "--app", "traced", "--role", role]).env("TOLLGATE_REDIS_URL", redis_url());
        String::from_utf8(create.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let (secret, public) = (key("secret"), key("public"));
    let (address, mut spans) = collector().await;
    let endpoint = format!("http://{address}");
    let flags = ["--redis-url", &redis_url(), "--api-keys", "--otlp-endpoint", &endpoint, "--trace-ratio", "0"];
    let mut served = Served::start(0, &flags);
    let mut replica = Replica::connect(served.address).await;
    let traces =
        ["11111111111111111111111111111111", "22222222222222222222222222222222", "33333333333333333333333333333333"];
    for (trace, key) in traces.iter().zip(["", &public, &secret]) {
        let mut request = Request::new(v1::ListPlansRequest {});
        request.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
        if !key.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        }
        assert_eq!(replica.plans.list_plans(request).await.is_ok(), !key.is_empty());
    }
    served.signal("-TERM");
    assert!(served.wait().success());
    let mut received = Vec::new();
    while let Ok(span) = spans.try_recv() {
        received.push(span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
    assert_eq!(received, [traces[2]]);
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
