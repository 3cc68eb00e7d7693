//! Log lines, as text for people or as JSON for machines. Those of a call carry its request id, and its trace if it has one.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::throttle::{PERIOD, Throttle};
use super::{call, trace};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("choose text or json"),
        }
    }
}

/// The number of lines that may wait for standard error. If it accepts them too slowly, more lines are dropped and
/// counted: calls do not wait for the log.
const MOST_WAITING: usize = 8192;

/// The log. Dropping it writes what waits, and how many lines were left out.
pub struct Logs {
    throttle: Throttle,
    dropped: ErrorCounter,
    /// Dropping it writes what waits.
    _writer: WorkerGuard,
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.throttle.tell();
        let dropped = self.dropped.dropped_lines();
        if dropped > 0 {
            tracing::warn!(dropped, "standard error did not take the log fast enough: lines were dropped");
        }
    }
}

/// Writes what the filter lets through to standard error, from now on: by a thread of its own, and of warnings and errors that repeat
/// only some, and how many more there were.
pub fn start(filter: Targets, format: LogFormat) -> Logs {
    let writer = NonBlockingBuilder::default().buffered_lines_limit(MOST_WAITING).thread_name("log");
    let (writer, guard) = writer.finish(std::io::stderr());
    let dropped = writer.error_counter();
    let throttle = Throttle::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal()).fmt_fields(Named(DefaultFields::new()));
            registry.with(lines).with(throttle.clone()).with(filter).init();
        }
        LogFormat::Json => registry.with(lines.event_format(Json)).with(throttle.clone()).with(filter).init(),
    }
    let telling = throttle.clone();
    let tell = move || loop {
        std::thread::sleep(PERIOD);
        telling.tell();
    };
    // Without it only the end of the process tells what was left out.
    if let Err(error) = std::thread::Builder::new().name("log-counts".to_owned()).spawn(tell) {
        tracing::warn!(%error, "the number of lines left out is logged only at the end");
    }
    Logs { throttle, dropped, _writer: guard }
}

/// Ends a line of text with the call that it belongs to.
struct Named(DefaultFields);

impl<'writer> FormatFields<'writer> for Named {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        self.0.format_fields(writer.by_ref(), fields)?;
        let named = call::with(|call| {
            write!(writer, " request_id={}", call.request_id.to_str().unwrap_or_default())?;
            call.span.get().into_iter().try_for_each(|span| write!(writer, " trace_id={}", trace::trace_id(span)))
        });
        named.unwrap_or(Ok(()))
    }
}

/// A line as an object: `timestamp`, `level`, `target`, `message`, `request_id`, `trace_id`, and the event's own fields.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line(Map::new());
        event.record(&mut line);
        call::with(|call| {
            line.put("request_id", call.request_id.to_str().unwrap_or_default().into());
            if let Some(span) = call.span.get() {
                line.put("trace_id", trace::trace_id(span).into());
            }
        });
        line.put("timestamp", jiff::Timestamp::now().to_string().into());
        line.put("level", event.metadata().level().as_str().into());
        line.put("target", event.metadata().target().into());
        // Text with odd characters stays on its line.
        let text = serde_json::to_string(&Value::Object(line.0)).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

struct Line(Map<String, Value>);

impl Line {
    fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put(field.name(), chain(value).into());
    }
}

/// An error and what caused it, in one line: `the ledger did not answer: timed out`.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        // Some say again what they were caused by.
        if !told.ends_with(&reason) {
            let _: fmt::Result = write!(told, ": {reason}");
        }
        source = error.source();
    }
    told
}
