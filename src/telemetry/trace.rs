//! Spans over OTLP, if there is somewhere to send them: one for each call, below the caller's own, and below it one for each script
//! that the call asks Redis to run. None of them names a user.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter};
use tokio::runtime::Handle;

use super::call;
use super::collector;
pub use super::collector::StartError;
use super::labels::{Code, Outcome};
use super::layer::ServerAddress;
use super::metrics::metrics;

/// The time that the last spans may take to leave when the process ends.
const FLUSH: Duration = Duration::from_secs(3);

/// The shortest time between two log lines about a collector that refuses spans.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Absent while nothing is traced, so that a call pays for looking alone.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Exports spans until it is told to stop.
#[derive(Debug)]
pub struct Exporting(SdkTracerProvider);

/// Starts to trace, for the whole process. Within a runtime, on which the spans travel.
///
/// # Errors
/// If the endpoint cannot be used, or what the standard variables say of it. That nobody answers there is no reason.
pub fn start(endpoint: &str, ratio: f64) -> Result<Exporting, StartError> {
    let exporter = collector::exporter(endpoint)?;
    let complaining = Complaining { exporter, runtime: Handle::current(), complaint: AtomicU64::new(0) };
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(complaining)
        // Whether a call is traced is decided where its trace begins.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_resource(resource())
        .build();
    let _: Result<(), _> = TRACER.set(provider.tracer("tollgate"));
    Ok(Exporting(provider))
}

/// Describes this process: the standard variables of the environment, and otherwise Tollgate's own values.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("tollgate");
    }
    if told.get(&Key::from_static_str("service.instance.id")).is_none() {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", random_uuid()));
    }
    resource.build()
}

/// A random UUID (version 4 of RFC 9562), which the conventions of OpenTelemetry ask for where a process has no other name of its own.
fn random_uuid() -> String {
    let mut bytes = [0; 16];
    // It only tells replicas apart: without random numbers two may look like one.
    let _: Result<(), _> = getrandom::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl Exporting {
    /// Sends the remaining spans, for as long as that is worth the wait.
    pub async fn stop(self) {
        // It blocks, while the runtime has to bring the spans to the collector.
        let flushed = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the collector did not accept the last spans");
        }
    }
}

/// Tells how exporting goes, now and then: the collector is not what Tollgate is for.
#[derive(Debug)]
struct Complaining {
    exporter: opentelemetry_otlp::SpanExporter,
    /// Brings the spans to the collector.
    runtime: Handle,
    /// The time at which the log was last told, in milliseconds of [`BEGINNING`]; 0 for never.
    complaint: AtomicU64,
}

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

impl SpanExporter for Complaining {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = within(&self.runtime, self.exporter.export(batch)).await;
        if let Err(error) = &exported {
            metrics().trace_failures.inc();
            let now = u64::try_from(BEGINNING.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            let last = self.complaint.load(Ordering::Relaxed);
            if last == 0 || u128::from(now - last.min(now)) >= COMPLAINT.as_millis() {
                self.complaint.store(now, Ordering::Relaxed);
                tracing::warn!(%error, "the collector of --otlp-endpoint takes no spans: they are dropped; calls go on");
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Polls as a task of the runtime is polled: the thread that exports is none of its own, and connections need one.
fn within<F: Future>(runtime: &Handle, work: F) -> impl Future<Output = F::Output> {
    let mut work = Box::pin(work);
    std::future::poll_fn(move |context| {
        let _entered = runtime.enter();
        work.as_mut().poll(context)
    })
}

/// Reads the W3C trace context of a request.
struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The facts about a call when it arrives, for its span.
#[derive(Debug, Clone)]
pub(super) struct Beginning {
    name: String,
    attributes: Vec<KeyValue>,
    started: SystemTime,
    /// The caller's own span.
    parent: Context,
}

/// A call comes in: `/service/method`. `None` while nothing is traced.
pub(super) fn rpc<B>(request: &Request<B>, request_id: &HeaderValue, address: ServerAddress) -> Option<Beginning> {
    TRACER.get()?;
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let (service, method) = name.split_once('/').unwrap_or((&name, ""));
    let mut attributes = vec![
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", service.to_owned()),
        KeyValue::new("rpc.method", method.to_owned()),
        KeyValue::new("tollgate.request_id", request_id.to_str().unwrap_or_default().to_owned()),
    ];
    if let Some(address) = address(request.extensions()) {
        attributes.push(KeyValue::new("server.address", address.ip().to_canonical().to_string()));
        attributes.push(KeyValue::new("server.port", i64::from(address.port())));
    }
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Incoming(request.headers()));
    Some(Beginning { name, attributes, started: SystemTime::now(), parent })
}

/// The span of a call. Below the caller's own if the caller is `trusted`, and then traced if the caller says so; else the first of a new trace,
/// which is traced as often as the ratio says.
pub(super) fn begin(call: &Beginning, trusted: bool) -> Context {
    let nobodys = Context::new();
    let parent = if trusted { &call.parent } else { &nobodys };
    let Some(tracer) = TRACER.get() else { return nobodys };
    let span = tracer
        .span_builder(call.name.clone())
        .with_kind(SpanKind::Server)
        .with_start_time(call.started)
        .with_attributes(call.attributes.clone());
    parent.with_span(span.start_with_context(tracer, parent))
}

/// The call ends. One that is dropped instead ends its span with that.
pub(super) fn rpc_ended(call: &Context, code: Code, outcome: Outcome, retries: u32) {
    let span = call.span();
    span.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
    span.set_attribute(KeyValue::new("tollgate.outcome", outcome.as_str()));
    if retries > 0 {
        span.set_attribute(KeyValue::new("tollgate.stale_retries", i64::from(retries)));
    }
    // What a caller did wrong is no error of the server.
    if matches!(code, Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable | Code::DataLoss) {
        span.set_status(Status::error(code.as_str()));
    }
    span.end();
}

/// A script that a traced call asks Redis to run. It ends when it is dropped.
pub struct ScriptSpan(Span);

/// The call asks Redis to run a script. `address` says where that Redis is, if it is known, and its port, if it has one.
#[must_use]
pub fn script(name: &'static str, address: impl FnOnce() -> Option<(String, Option<u16>)>) -> Option<ScriptSpan> {
    let tracer = TRACER.get()?;
    call::with(|call| {
        let parent = call.span.get().filter(|span| span.span().span_context().is_sampled())?;
        let mut attributes = vec![KeyValue::new("db.system.name", "redis"), KeyValue::new("tollgate.script", name)];
        if let Some((host, port)) = address() {
            attributes.push(KeyValue::new("server.address", host));
            attributes.extend(port.map(|port| KeyValue::new("server.port", i64::from(port))));
        }
        if call.retries.get() > 0 {
            attributes.push(KeyValue::new("tollgate.stale_retries", i64::from(call.retries.get())));
        }
        let span = tracer.span_builder(format!("redis {name}")).with_kind(SpanKind::Client).with_attributes(attributes);
        Some(ScriptSpan(span.start_with_context(tracer, parent)))
    })?
}

impl ScriptSpan {
    /// Redis has not answered as asked.
    pub fn failed(&mut self, kind: super::labels::RedisError) {
        self.0.set_status(Status::error(kind.as_str()));
    }
}

/// The id of the call's trace, for its log lines.
pub(super) fn trace_id(call: &Context) -> String {
    call.span().span_context().trace_id().to_string()
}
