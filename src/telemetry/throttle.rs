//! Keeps callers from filling the log: repeated warnings and errors are counted, and the count is logged.
//!
//! It stands before all lines, so that no warning has to remember that a caller can cause it thousands of times a second.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::call;

/// The number of lines of one kind that are written before further ones are only counted. For lines that belong to a
/// call.
const OF_CALLS: u32 = 10;

/// The same number for other lines, such as those about each node of a cluster at the start, or about each rule of a
/// catalog.
const OF_OTHERS: u32 = 100;

/// The time after which one more line of the kind is written. The number of lines that were left out is logged as well.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// The number of kinds that are distinguished. There are fewer places in the code, and reasons.
const MOST_KINDS: usize = 1024;

/// The number of characters of a suppressed line that are repeated.
const MOST_SHOWN: usize = 200;

/// The target of the lines of [`Throttle::tell`], which are never suppressed.
const TOLD: &str = module_path!();

/// Counts the warnings and errors that repeat, and lets the first of them through.
#[derive(Debug, Clone, Default)]
pub(super) struct Throttle(Arc<Mutex<HashMap<Kind, Bucket>>>);

/// Lines that are alike: of one place in the code, and with one `reason` if they have any.
type Kind = (Identifier, String);

/// The allowance of one kind, and the lines of it that were suppressed.
#[derive(Debug)]
struct Bucket {
    level: Level,
    /// Lines that may be written at once.
    left: u32,
    /// The time at which `left` was last raised.
    raised: Instant,
    left_out: LeftOut,
}

/// Lines that were not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct LeftOut {
    count: u64,
    /// The message of the first of them.
    message: String,
}

impl Throttle {
    /// Returns whether a line may be written. If not, the line is counted, and `message` is called for the first such
    /// line.
    fn passes(&self, kind: Kind, level: Level, burst: u32, now: Instant, message: impl FnOnce() -> String) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind =
            if buckets.len() < MOST_KINDS || buckets.contains_key(&kind) { kind } else { (kind.0, String::new()) };
        let bucket = buckets.entry(kind).or_insert_with(|| Bucket {
            level,
            left: burst,
            raised: now,
            left_out: LeftOut::default(),
        });
        let periods = now.saturating_duration_since(bucket.raised).as_secs() / PERIOD.as_secs();
        if periods > 0 {
            bucket.left = bucket.left.saturating_add(u32::try_from(periods).unwrap_or(u32::MAX)).min(burst);
            bucket.raised = now;
        }
        if bucket.left > 0 {
            bucket.left -= 1;
            return true;
        }
        if bucket.left_out.count == 0 {
            bucket.left_out.message = message();
        }
        bucket.left_out.count += 1;
        false
    }

    /// Returns the lines suppressed since the last call, by level.
    fn take(&self) -> Vec<(Level, LeftOut)> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let some = buckets.values_mut().filter(|bucket| bucket.left_out.count > 0);
        some.map(|bucket| (bucket.level, std::mem::take(&mut bucket.left_out))).collect()
    }

    /// Writes how many lines were left out since the last time.
    pub(super) fn tell(&self) {
        for (level, LeftOut { count, message }) in self.take() {
            if level == Level::ERROR {
                tracing::error!(left_out = count, "more lines like this one were left out: {message}");
            } else {
                tracing::warn!(left_out = count, "more lines like this one were left out: {message}");
            }
        }
    }
}

/// Lets through what happens often only once in a while, where even a few lines would say nothing new.
#[derive(Debug)]
pub(crate) struct Seldom {
    period: Duration,
    last: Mutex<Option<Instant>>,
}

impl Seldom {
    /// Lets one through in each `period`.
    pub(crate) const fn new(period: Duration) -> Self {
        Self { period, last: Mutex::new(None) }
    }

    /// Returns whether it is let through now.
    pub(crate) fn passes(&self) -> bool {
        self.passes_at(Instant::now())
    }

    fn passes_at(&self, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let passes = last.is_none_or(|last| now.saturating_duration_since(last) >= self.period);
        if passes {
            *last = Some(now);
        }
        passes
    }
}

fn is_throttled(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::WARN && metadata.is_event() && metadata.target() != TOLD
}

impl<S: Subscriber> Layer<S> for Throttle {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !is_throttled(metadata) {
            return true;
        }
        let mut reason = Text { name: "reason", text: String::new() };
        event.record(&mut reason);
        let burst = if call::with(|_| ()).is_some() { OF_CALLS } else { OF_OTHERS };
        self.passes((metadata.callsite(), reason.text), *metadata.level(), burst, Instant::now(), || {
            let mut message = Text { name: "message", text: String::new() };
            event.record(&mut message);
            message.text
        })
    }
}

/// The beginning of one field's value.
struct Text {
    name: &'static str,
    text: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.name {
            self.text = format!("{value:?}").chars().take(MOST_SHOWN).collect();
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.name {
            self.text = value.chars().take(MOST_SHOWN).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Counts what reaches it.
    #[derive(Clone, Default)]
    struct Written(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Written {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn kind(reason: &str) -> Kind {
        fn metadata() -> &'static Metadata<'static> {
            struct Nowhere;
            impl tracing::Callsite for Nowhere {
                fn set_interest(&self, _: tracing::subscriber::Interest) {}
                fn metadata(&self) -> &Metadata<'_> {
                    unreachable!("nobody asks")
                }
            }
            static NOWHERE: Nowhere = Nowhere;
            static METADATA: Metadata<'static> = tracing::metadata! {
                name: "nothing", target: "tests", level: Level::WARN, fields: &[], callsite: &NOWHERE,
                kind: tracing::metadata::Kind::EVENT,
            };
            &METADATA
        }
        (metadata().callsite(), reason.to_owned())
    }

    #[test]
    fn a_kind_passes_a_few_times_and_then_once_a_period_and_every_line_is_written_or_counted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let passes = |reason: &str, after: Duration| {
            throttle.passes(kind(reason), Level::WARN, OF_CALLS, start + after, || format!("no answer: {reason}"))
        };
        let of =
            |count: u64, reason: &str| vec![(Level::WARN, LeftOut { count, message: format!("no answer: {reason}") })];
        let written = |count: u64, after| (0..count).filter(|_| passes("UNAVAILABLE", after)).count();
        assert_eq!(written(1800, Duration::ZERO), 10);
        assert!(passes("CONTENDED", Duration::ZERO), "another reason is another kind");
        assert_eq!(throttle.take(), of(1790, "UNAVAILABLE"));
        assert_eq!(throttle.take(), [], "it is told once");
        assert_eq!(written(5, PERIOD - Duration::from_millis(1)), 0);
        assert_eq!(written(5, PERIOD), 1);
        assert_eq!(throttle.take(), of(9, "UNAVAILABLE"));
        // After a long time it is as new.
        assert_eq!(written(11, PERIOD * 1000), 10);
    }

    #[test]
    fn what_is_said_seldom_is_said_once_a_period() {
        let (seldom, start) = (Seldom::new(Duration::from_secs(60)), Instant::now());
        let passes = |after: u64| seldom.passes_at(start + Duration::from_millis(after));
        assert!(passes(0) && !passes(0) && !passes(59_999));
        assert!(passes(60_000) && !passes(119_999) && passes(120_000));
        assert!(!seldom.passes());
    }

    #[test]
    fn kinds_are_bounded() {
        let throttle = Throttle::default();
        for index in 0..10_000 {
            throttle.passes(kind(&index.to_string()), Level::WARN, OF_CALLS, Instant::now(), String::new);
        }
        assert!(throttle.0.lock().unwrap().len() <= MOST_KINDS + 1);
    }

    #[test]
    fn warnings_and_errors_are_left_out_and_nothing_else_is() {
        let (throttle, written) = (Throttle::default(), Written::default());
        let subscriber = tracing_subscriber::registry().with(written.clone()).with(throttle.clone());
        tracing::subscriber::with_default(subscriber, || {
            let count = |log: &dyn Fn()| {
                let before = written.0.load(Ordering::Relaxed);
                (0..300).for_each(|_| log());
                written.0.load(Ordering::Relaxed) - before
            };
            assert_eq!(count(&|| tracing::info!("a call")), 300);
            assert_eq!(count(&|| tracing::warn!(reason = "UNAVAILABLE", "a call has no answer")), 100);
            assert_eq!(count(&|| tracing::warn!(reason = "CONTENDED", "a call has no answer")), 100);
            assert_eq!(count(&|| tracing::error!("a script failed")), 100);
            let mut told = throttle.take();
            told.sort_by_key(|(level, left_out)| (*level, left_out.message.clone()));
            let left_out = |message: &str| LeftOut { count: 200, message: message.to_owned() };
            let no_answer = (Level::WARN, left_out("a call has no answer"));
            assert_eq!(told, [(Level::ERROR, left_out("a script failed")), no_answer.clone(), no_answer]);
        });
    }
}
