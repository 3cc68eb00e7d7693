//! Parses the text of values. An error says what to write instead. The caller adds the value
//! itself.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::filter::{ParseError, Targets};

use super::OptionalAddress;
use crate::telemetry::logs::LogFormat;

/// Longer than any test of patience, shorter than what an expiry in Redis can hold.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// An IP address and a port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:50051".to_owned())
}

/// An IP address and a port, or `none`.
pub(super) fn optional_address(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "none" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "write an IP address and a port, such as 127.0.0.1:9464, or none".to_owned()),
    }
}

/// A URL with a scheme that can be spoken, and a host.
pub(super) fn collector(text: &str) -> Result<String, String> {
    let uri = text.parse::<http::Uri>().ok();
    let fits = |uri: &http::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    };
    uri.filter(fits)
        .map(|_| text.to_owned())
        .ok_or_else(|| "write it as http://host:4317 or https://host:4317".to_owned())
}

/// A part of a whole.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    parsed.ok_or_else(|| "choose 0 to 1, such as 0.01".to_owned())
}

/// Parses the format of log lines.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    text.parse().map_err(str::to_owned)
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "write true or false".to_owned())
}

/// A number in these bounds.
pub(super) fn number(
    least: usize,
    most: usize,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| {
        let parsed = text.parse().ok().filter(|number| (least..=most).contains(number));
        parsed.ok_or_else(|| format!("choose {least} to {most}"))
    }
}

/// A duration of at least this, and at most a year.
pub(super) fn duration(least: Duration) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|signed| Duration::try_from(signed).ok());
        parsed
            .filter(|parsed| (least..=LONGEST).contains(parsed))
            .ok_or_else(|| format!("write a duration from {least:?} to 366 days, such as 15m or 2s"))
    }
}

/// Text that [`log_filter`] reads.
pub(super) fn log(text: &str) -> Result<String, String> {
    log_filter(text).map(|_| text.to_owned())
}

/// Parses what to log: a level, or targets and their levels. Spans and fields are not accepted:
/// their parser takes seconds for some texts, and panics for others.
///
/// # Errors
/// For text that is neither.
pub fn log_filter(text: &str) -> Result<Targets, String> {
    if text.contains('[') {
        return Err("spans and fields cannot be named; write targets and their levels".to_owned());
    }
    // A space beside a comma is no part of a target.
    let directives: Vec<_> = text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    directives.join(",").parse().map_err(|error: ParseError| error.to_string())
}
