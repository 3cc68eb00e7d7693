//! What callers may ask for at most: bounds against abuse, each of which is generous to honest callers.

use std::time::Duration;

use clap::{Args, FromArgMatches as _};

use super::value;

/// The bounds. Their defaults are those of the settings.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// How many calls may be under way. One more is UNAVAILABLE at once, with RetryInfo: a queue would only grow
    #[arg(long, env = "TOLLGATE_MAX_IN_FLIGHT", value_name = "NUMBER", default_value = "10000", value_parser = value::number(1, 1_000_000))]
    pub max_in_flight: usize,

    /// How many calls a second each app may make of this replica, which is also how many at once; 0 for any number. More are
    /// RESOURCE_EXHAUSTED, with RetryInfo
    #[arg(long, env = "TOLLGATE_RATE_PER_APP", value_name = "NUMBER", default_value = "0", value_parser = value::number(0, 10_000_000))]
    pub rate_per_app: usize,

    /// How long a call may take, from its headers to its answer. Callers may ask for less by `grpc-timeout`
    #[arg(long, env = "TOLLGATE_CALL_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = value::duration(Duration::from_millis(100)))]
    pub call_timeout: Duration,

    /// How large a request may be, in bytes, before and after it is decompressed
    #[arg(long, env = "TOLLGATE_MAX_MESSAGE_BYTES", value_name = "NUMBER", default_value = "262144", value_parser = value::number(1024, 64 << 20))]
    pub max_message_bytes: usize,

    /// How large the headers of a call may be, in bytes
    #[arg(long, env = "TOLLGATE_MAX_HEADER_BYTES", value_name = "NUMBER", default_value = "16384", value_parser = value::number(1024, 1 << 20))]
    pub max_header_bytes: usize,

    /// How many connections there may be. One more is closed at once
    #[arg(long, env = "TOLLGATE_MAX_CONNECTIONS", value_name = "NUMBER", default_value = "10000", value_parser = value::number(1, 1_000_000))]
    pub max_connections: usize,

    /// How many calls may be under way on one connection
    #[arg(long, env = "TOLLGATE_MAX_STREAMS", value_name = "NUMBER", default_value = "1000", value_parser = value::number(1, 1_000_000))]
    pub max_streams: usize,

    /// How old a connection may become. It then takes no new calls, so that callers spread over replicas that came later; calls under
    /// way are finished
    #[arg(long, env = "TOLLGATE_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "30m", value_parser = value::duration(Duration::from_secs(1)))]
    pub max_connection_age: Duration,

    /// How long a new connection may take to say that it speaks HTTP/2, with its TLS handshake
    #[arg(long, env = "TOLLGATE_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = value::duration(Duration::from_millis(100)))]
    pub handshake_timeout: Duration,

    /// How long a connection may be quiet before it is asked whether somebody is there, and how long the answer may take
    #[arg(long, env = "TOLLGATE_KEEPALIVE", value_name = "DURATION", default_value = "30s", value_parser = value::duration(Duration::from_millis(100)))]
    pub keepalive: Duration,

    /// How long calls under way may take to finish once Tollgate has to stop
    #[arg(long, env = "TOLLGATE_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = value::duration(Duration::ZERO))]
    pub drain_timeout: Duration,

    /// How long to go on serving, while health says NOT_SERVING, before connections are asked to end: for load balancers that learn late
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
