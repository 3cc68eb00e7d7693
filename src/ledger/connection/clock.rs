//! Redis's clock, which decides deadlines, windows and expiry (ONE-CLOCK), held against this machine's. Nothing is decided by that: it is
//! for operators, as a wrong clock ends holds and windows early, or never.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use redis::Value;

use crate::telemetry::metrics;

/// Clocks that are further apart are reported, and so is a clock that moves further by itself: in microseconds. Networks that are
/// healthy keep clocks within milliseconds.
const TOLERANCE_US: i64 = 2_000_000;

/// An answer that took longer says too little of the moment at which Redis read its clock.
const LONGEST: Duration = Duration::from_secs(1);

/// A reading of Redis's clock, and of this machine's clocks at that moment. In microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Redis's clock, since the Unix epoch.
    redis_us: i64,
    /// This machine's clock at the same moment, since the Unix epoch. It can be set, and jump.
    machine_us: i64,
    /// The same moment by the clock that only counts, from any beginning.
    steady_us: i64,
}

/// Every Redis's clock, as it was read last.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    last: Mutex<HashMap<String, Reading>>,
}

/// The result of comparing a clock with its last reading.
#[derive(Debug, PartialEq)]
struct Finding {
    /// The time by which it is ahead of this machine's.
    ahead_us: i64,
    /// The length of its jump, if it has jumped.
    jumped_us: Option<i64>,
    /// True if it differs by too much, and did not before.
    went_wrong: bool,
}

impl Reading {
    /// Reads the answer to TIME, which was asked for at `asked` and has just come. `None` if it took too long, or is
    /// not a time.
    pub(super) fn of(answer: &Value, asked: Instant) -> Option<Self> {
        let took = asked.elapsed();
        let (seconds, micros) = redis::from_redis_value_ref::<(i64, i64)>(answer).ok()?;
        if took > LONGEST {
            return None;
        }
        // Redis read its clock somewhere between question and answer.
        let (half, now) = (micros_of(took / 2)?, SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?);
        Some(Self {
            redis_us: seconds.checked_mul(1_000_000)?.checked_add(micros)?,
            machine_us: micros_of(now)? - half,
            steady_us: micros_of(beginning().elapsed())? - half,
        })
    }

    fn ahead_us(self) -> i64 {
        self.redis_us - self.machine_us
    }
}

impl Clocks {
    /// Tells operators what the readings of one moment say, each with the name of its node.
    pub(super) fn tell(&self, readings: impl IntoIterator<Item = (String, Reading)>) {
        let mut furthest: Option<i64> = None;
        for (node, reading) in readings {
            let Finding { ahead_us, jumped_us, went_wrong } = self.note(&node, reading);
            if let Some(jumped_us) = jumped_us {
                metrics().redis_clock_jumps.inc();
                let seconds = seconds(jumped_us);
                tracing::error!(
                    node,
                    seconds,
                    "redis's clock has jumped: see docs/operating/runbook.md, \"Redis's clock jumped\""
                );
            }
            if went_wrong {
                let seconds = seconds(ahead_us);
                tracing::error!(node, seconds, "redis's clock and this machine's differ: set both by NTP");
            }
            furthest = furthest.into_iter().chain([ahead_us]).max_by_key(|ahead| ahead.unsigned_abs());
        }
        if let Some(ahead_us) = furthest {
            metrics().redis_clock_offset.set(seconds(ahead_us));
        }
    }

    fn note(&self, node: &str, reading: Reading) -> Finding {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.insert(node.to_owned(), reading);
        // By the steady clock, so that a jump of this machine's own is none of Redis's.
        let jumped_us =
            before.map(|before| (reading.redis_us - before.redis_us) - (reading.steady_us - before.steady_us));
        let is_wrong = |reading: Reading| reading.ahead_us().abs() > TOLERANCE_US;
        Finding {
            ahead_us: reading.ahead_us(),
            jumped_us: jumped_us.filter(|jumped| jumped.abs() > TOLERANCE_US),
            went_wrong: is_wrong(reading) && !before.is_some_and(is_wrong),
        }
    }
}

fn beginning() -> Instant {
    static BEGINNING: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *BEGINNING
}

fn micros_of(duration: Duration) -> Option<i64> {
    i64::try_from(duration.as_micros()).ok()
}

#[allow(clippy::cast_precision_loss)]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    /// Makes a reading after this many seconds, with both clocks ahead by these.
    fn after(steady: i64, redis: i64, machine: i64) -> Reading {
        let at = |ahead: i64| (1_700_000_000 + steady + ahead) * SECOND;
        Reading { redis_us: at(redis), machine_us: at(machine), steady_us: steady * SECOND }
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_once_and_a_jump_each_time() {
        let clocks = Clocks::default();
        let finding = |ahead: i64, jumped: Option<i64>, went_wrong| Finding {
            ahead_us: ahead * SECOND,
            jumped_us: jumped.map(|seconds| seconds * SECOND),
            went_wrong,
        };
        let days = 70 * 24 * 3600;
        for (reading, expected) in [
            (after(1, 0, 0), finding(0, None, false)),
            // As far as is tolerated.
            (after(2, 2, 0), finding(2, None, false)),
            (after(3, 0, 0), finding(0, None, false)),
            (after(4, days, 0), finding(days, Some(days), true)),
            (after(5, days, 0), finding(days, None, false)),
            (after(6, 0, 0), finding(0, Some(-days), false)),
            (after(7, -3, 0), finding(-3, Some(-3), true)),
            (after(8, 0, 0), finding(0, Some(3), false)),
            // This machine's own clock jumps, and Redis's does not.
            (after(9, 0, 100), finding(-100, None, true)),
            (after(10, 0, 0), finding(0, None, false)),
            // A minute without an answer is no jump.
            (after(70, 0, 0), finding(0, None, false)),
        ] {
            assert_eq!(clocks.note("a", reading), expected, "{reading:?}");
        }
        // Another node has a clock of its own.
        assert_eq!(clocks.note("b", after(71, 5, 0)), finding(5, None, true));
    }

    #[test]
    fn a_reading_is_the_middle_between_question_and_answer() {
        let answer = |seconds: &str, micros: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            Value::Array(vec![text(seconds), text(micros)])
        };
        let asked = Instant::now();
        let reading = Reading::of(&answer("1700000000", "250000"), asked).expect("a reading");
        assert_eq!(reading.redis_us, 1_700_000_000_250_000);
        assert!(
            Reading::of(&answer("1700000000", "250000"), asked - Duration::from_secs(2)).is_none(),
            "it took too long"
        );
        assert!(Reading::of(&answer("soon", "0"), Instant::now()).is_none());
        assert!(Reading::of(&answer(&i64::MAX.to_string(), "0"), Instant::now()).is_none());
        assert!(Reading::of(&Value::Okay, Instant::now()).is_none());
    }
}
