//! The settings with which an operator observes Tollgate.

use std::net::SocketAddr;

use clap::Args;

use super::value;
use crate::telemetry::logs::LogFormat;

/// An address, or `none`. Its name keeps the flag from being one that can be left without a value.
pub type OptionalAddress = Option<SocketAddr>;

/// Metrics, traces, and the format of log lines.
#[derive(Debug, Clone, Args)]
pub struct Observability {
    /// The address of /metrics, /livez and /readyz over HTTP, such as 127.0.0.1:9464; or none. It
    /// has no access control: keep it inside a trusted network
    #[arg(long, env = "TOLLGATE_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "none", value_parser = value::optional_address)]
    pub admin_listen: OptionalAddress,

    /// The OpenTelemetry collector for traces, over OTLP, such as http://127.0.0.1:4317. It speaks
    /// gRPC, or HTTP if OTEL_EXPORTER_OTLP_PROTOCOL is http/protobuf [default: none]
    #[arg(long, env = "TOLLGATE_OTLP_ENDPOINT", value_name = "URL", value_parser = value::collector, hide_env_values = true)]
    pub otlp_endpoint: Option<String>,

    /// The part of the traces that begin here which is sent: 0 to 1. Callers with a secret key
    /// decide for themselves
    #[arg(long, env = "TOLLGATE_TRACE_RATIO", value_name = "RATIO", default_value = "1", value_parser = value::ratio)]
    pub trace_ratio: f64,

    /// The format of log lines: text, or json for one object per line
    #[arg(long, env = "TOLLGATE_LOG_FORMAT", value_name = "FORMAT", default_value = "text", value_parser = value::log_format)]
    pub log_format: LogFormat,
}
