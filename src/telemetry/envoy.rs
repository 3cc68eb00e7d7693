//! Counts and logs failures between Envoy and Tollgate, where nobody else sees them.
//!
//! Envoy shows the status of a rate limit call to no one, and lets the request through unless `failure_mode_deny` is set: a fault is then
//! free traffic. So each fault is counted and logged here; a line a minute for each kind, as there may be one fault for each request.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::labels::{Code, DeniedValue, EnvoyFault};
use super::metrics::metrics;

/// The shortest time between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(60);

static FAULTS: Throttle = Throttle::new();
static DENIED: Throttle = Throttle::new();

/// Envoy got a fault instead of a decision. `text` names no value of the descriptor.
pub(super) fn fault(code: Code, reason: &str, text: &str) {
    let reason = EnvoyFault::of(reason);
    metrics().envoy_fault(reason);
    if let Some(suppressed) = FAULTS.pass(reason.as_str(), Instant::now()) {
        tracing::warn!(
            reason = reason.as_str(),
            code = code.as_str(),
            problem = text,
            suppressed,
            "Envoy got a fault instead of a decision: it lets the request through, uncounted, unless failure_mode_deny is set"
        );
    }
}

/// A descriptor was denied, as a value in it is not valid. The caller of the proxy may have chosen the value.
pub fn denied(value: DeniedValue) {
    metrics().envoy_value_denied(value);
    if let Some(suppressed) = DENIED.pass(value.as_str(), Instant::now()) {
        tracing::warn!(
            value = value.as_str(),
            suppressed,
            "Envoy was told OVER_LIMIT: a value in a descriptor is not valid"
        );
    }
}

/// Lets one line of each kind through in an [`INTERVAL`], and counts the others.
struct Throttle(Mutex<BTreeMap<&'static str, Written>>);

/// The time at which a line of a kind was last written, and the number of lines that were suppressed since.
struct Written {
    at: Instant,
    suppressed: u64,
}

impl Throttle {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Returns the number of lines suppressed since the last one, if a line may be written now.
    fn pass(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(kind) {
            Some(written) if now.saturating_duration_since(written.at) < INTERVAL => {
                written.suppressed += 1;
                None
            }
            Some(written) => Some(std::mem::replace(written, Written { at: now, suppressed: 0 }).suppressed),
            None => {
                kinds.insert(kind, Written { at: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_each_kind_passes_in_a_minute_and_says_how_many_did_not() {
        let throttle = Throttle::new();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.pass("a", at(0)), Some(0));
        for seconds in [0, 1, 59] {
            assert_eq!(throttle.pass("a", at(seconds)), None);
        }
        assert_eq!(throttle.pass("b", at(59)), Some(0), "each kind by itself");
        assert_eq!(throttle.pass("a", at(60)), Some(3));
        assert_eq!(throttle.pass("a", at(119)), None);
        assert_eq!(throttle.pass("a", at(120)), Some(1));
    }
}
