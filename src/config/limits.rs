//! The limits on what callers may ask for. They protect against abuse, and each of them is generous
//! to honest callers.

use std::time::Duration;

use clap::{Args, FromArgMatches as _};

use super::value;

/// The bounds. Their defaults are those of the settings.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// The largest number of calls in flight. One more is UNAVAILABLE at once, with RetryInfo:
    /// there is no queue
    #[arg(long, env = "TOLLGATE_MAX_IN_FLIGHT", value_name = "NUMBER", default_value = "10000", value_parser = value::number(1, 1_000_000))]
    pub max_in_flight: usize,

    /// The part of --max-in-flight that one app may take, where keys or certificates name the app:
    /// 0 to 1. One more call is RESOURCE_EXHAUSTED, with RetryInfo
    #[arg(long, env = "TOLLGATE_APP_SHARE", value_name = "RATIO", default_value = "0.5", value_parser = value::ratio)]
    pub app_share: f64,

    /// The part of --max-in-flight that all callers with public keys may take together: 0 to 1.
    /// Those of one app get --app-share of it
    #[arg(long, env = "TOLLGATE_PUBLIC_SHARE", value_name = "RATIO", default_value = "0.1", value_parser = value::ratio)]
    pub public_share: f64,

    /// The calls a second that each app may make to this replica with secret keys, and as many with
    /// public ones; 0 for any number. It is also the size of a burst. More calls are
    /// RESOURCE_EXHAUSTED, with RetryInfo
    #[arg(long, env = "TOLLGATE_RATE_PER_APP", value_name = "NUMBER", default_value = "0", value_parser = value::number(0, 10_000_000))]
    pub rate_per_app: usize,

    /// The longest time a call may take, from its headers to its answer. Callers may ask for less
    /// by `grpc-timeout`
    #[arg(long, env = "TOLLGATE_CALL_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = value::duration(Duration::from_millis(100)))]
    pub call_timeout: Duration,

    /// The longest time the message of a call may take to arrive after its headers
    #[arg(long, env = "TOLLGATE_MESSAGE_TIMEOUT", value_name = "DURATION", default_value = "1s", value_parser = value::duration(Duration::from_millis(100)))]
    pub message_timeout: Duration,

    /// The largest request, in bytes, before and after decompression
    #[arg(long, env = "TOLLGATE_MAX_MESSAGE_BYTES", value_name = "NUMBER", default_value = "262144", value_parser = value::number(1024, 64 << 20))]
    pub max_message_bytes: usize,

    /// The largest headers of a call, in bytes
    #[arg(long, env = "TOLLGATE_MAX_HEADER_BYTES", value_name = "NUMBER", default_value = "16384", value_parser = value::number(1024, 1 << 20))]
    pub max_header_bytes: usize,

    /// The largest number of open connections. One more closes the oldest that has not shown a
    /// secret key. If all have shown one, the new one is closed. There are fewer if the process may
    /// open fewer files
    #[arg(long, env = "TOLLGATE_MAX_CONNECTIONS", value_name = "NUMBER", default_value = "10000", value_parser = value::number(1, 1_000_000))]
    pub max_connections: usize,

    /// The largest number of calls in flight on one connection
    #[arg(long, env = "TOLLGATE_MAX_STREAMS", value_name = "NUMBER", default_value = "1000", value_parser = value::number(1, 1_000_000))]
    pub max_streams: usize,

    /// Answer server reflection also without a key, where there are keys or certificates
    #[arg(long, env = "TOLLGATE_OPEN_REFLECTION", value_name = "BOOLEAN", default_value = "false", num_args = 0..=1, default_missing_value = "true", value_parser = value::boolean)]
    pub open_reflection: bool,

    /// The age at which a connection takes no new calls, so that callers spread over newer
    /// replicas. Calls in flight finish
    #[arg(long, env = "TOLLGATE_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "30m", value_parser = value::duration(Duration::from_secs(1)))]
    pub max_connection_age: Duration,

    /// The longest time a new connection may take for its TLS handshake and the start of HTTP/2
    #[arg(long, env = "TOLLGATE_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = value::duration(Duration::from_millis(100)))]
    pub handshake_timeout: Duration,

    /// The time without traffic after which Tollgate sends a ping on a connection. It closes the
    /// connection if no answer comes within the same time
    #[arg(long, env = "TOLLGATE_KEEPALIVE", value_name = "DURATION", default_value = "30s", value_parser = value::duration(Duration::from_millis(100)))]
    pub keepalive: Duration,

    /// The time that calls in flight get to finish once Tollgate has to stop
    #[arg(long, env = "TOLLGATE_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = value::duration(Duration::ZERO))]
    pub drain_timeout: Duration,

    /// The time for which Tollgate goes on serving, while health says NOT_SERVING, before it asks
    /// connections to end: for load balancers that notice late
    #[arg(long, env = "TOLLGATE_DRAIN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = value::duration(Duration::ZERO))]
    pub drain_delay: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("limits")).mut_args(|argument| argument.env(None));
        let matches = matches.get_matches_from(["limits"]);
        Self::from_arg_matches(&matches).expect("every default is a value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value() {
        let limits = Limits::default();
        assert_eq!((limits.max_in_flight, limits.drain_timeout), (10_000, Duration::from_secs(10)));
    }
}
