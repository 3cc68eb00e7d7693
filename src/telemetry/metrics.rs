//! The metrics: docs/operating/metrics.md says what each means.
//!
//! They belong to the process, as a scrape does. What a call touches is found once, when it is first counted, and is an atomic number
//! from then on.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::rpc::Rpc;

use super::exposition::Format;
use super::labels::{Code, Component, DeniedValue, EnvoyFault, Load, Outcome, RedisError, Uncounted};
use super::process::Process;

/// The number of pairs of a plan and a limit group that have time series of their own. A reasonable catalog has fewer,
/// but catalogs come and go.
const MOST_GROUPS: usize = 2000;

/// The plan and the limit group of denials beyond that.
const OTHER: &str = "other";

/// The buckets of durations: from a quarter of a millisecond, which a call takes at best, to more than the timeout of
/// Redis.
const SECONDS: [f64; 13] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The statuses with an alert that many calls can end in. Each has its time series from the start.
const ALERTED: [Code; 5] =
    [Code::Unavailable, Code::Internal, Code::DeadlineExceeded, Code::Unauthenticated, Code::InvalidArgument];

/// Up to the largest number that `--redis-batch` takes.
const CALLS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1000.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    rpc: Rpc,
    code: Code,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BatchLabels {
    code: Code,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    rpc: Rpc,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    plan: String,
    limit_group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UncountedLabels {
    rpc: Rpc,
    reason: Uncounted,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScriptLabels {
    script: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: RedisError,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComponentLabels {
    component: Component,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoadLabels {
    result: Load,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EnvoyFaultLabels {
    reason: EnvoyFault,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeniedValueLabels {
    value: DeniedValue,
}

/// A rare event's counter, by a closed set of labels.
type Rare<L> = Family<L, Counter>;

/// Histograms of seconds, by labels.
type Seconds<L> = Family<L, Histogram, fn() -> Histogram>;

/// See the module.
pub struct Metrics {
    registry: Registry,
    rpcs: Family<RpcLabels, Counter>,
    rpc_handles: Vec<OnceLock<Counter>>,
    durations: Seconds<DurationLabels>,
    duration_handles: Vec<OnceLock<Histogram>>,
    /// Calls that have begun, and have no answer yet.
    pub in_flight: Gauge,
    denials: Family<GroupLabels, Counter>,
    /// The number of series of denials by plan and group.
    denial_groups: AtomicUsize,
    uncounted: Rare<UncountedLabels>,
    batch_tracks: Rare<BatchLabels>,
    /// Holds whose deadline has passed, as scripts write that they have come back.
    pub holds_lapsed: Counter,
    /// Ledgers whose time was too far ahead of Redis's.
    pub clocks_corrected: Counter,
    /// Commits at or after the deadline, or after a release.
    pub commits_late: Counter,
    /// Commits of more than was held.
    pub commits_over: Counter,
    /// The number of refunds of which a part could not be given back.
    pub refunds_unapplied: Counter,
    /// Reserves that were allowed without a decision.
    pub degraded: Counter,
    /// Calls that were compiled again, as the script knew better.
    pub stale: Counter,
    /// Calls that were given up, as others changed the user's state with every attempt.
    pub contended: Counter,
    envoy_faults: Vec<Counter>,
    envoy_values_denied: Vec<Counter>,
    scripts: Seconds<ScriptLabels>,
    redis_errors: Vec<Counter>,
    /// The number of calls that one command to Redis decided.
    pub batch_calls: Histogram,
    /// The time by which Redis's clock is ahead of this machine's, in seconds. Of a cluster, it is that of the clock
    /// with the largest difference.
    pub redis_clock_offset: Gauge<f64, AtomicU64>,
    /// The number of jumps of Redis's clock.
    pub redis_clock_jumps: Counter,
    components: Vec<Gauge>,
    /// 1 if calls should be sent to this replica.
    pub ready: Gauge,
    catalog_loads: Vec<Counter>,
    catalog_loaded: Gauge<f64, AtomicU64>,
    catalog_plans: Gauge,
    catalog_groups: Gauge,
    /// Batches of spans that no collector has taken.
    pub trace_failures: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Returns the metrics of this process.
#[must_use]
pub fn metrics() -> &'static Metrics {
    &METRICS
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// Registers metrics under the product's name.
struct Registering(Registry);

impl Registering {
    fn add<M: prometheus_client::registry::Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(format!("tollgate_{name}"), help, metric.clone());
        metric
    }

    fn add_seconds<M: prometheus_client::registry::Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register_with_unit(format!("tollgate_{name}"), help, Unit::Seconds, metric.clone());
        metric
    }
}

impl Metrics {
    fn new() -> Self {
        let mut all = Registering(Registry::default());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.0.register("tollgate_build", "The version that runs", version);
        let rpcs = all.add("rpcs", "Calls that have ended, by what was called and how it ended", Family::default());
        let durations: Seconds<DurationLabels> = Family::new_with_constructor(seconds);
        let durations = all.add_seconds("rpc_duration", "From a call's first byte to its answer", durations);
        let denials = all.add(
            "denials",
            "Limit groups that were full when Reserve, or Track with enforce, was denied",
            Family::default(),
        );
        let uncounted: Rare<UncountedLabels> = all.add(
            "events_uncounted",
            "Events that no limit group counts: a misspelt name, or a user without a plan",
            Family::default(),
        );
        for rpc in [Rpc::Reserve, Rpc::Track, Rpc::CanUse] {
            for reason in Uncounted::ALL.iter().copied() {
                drop(uncounted.get_or_create(&UncountedLabels { rpc, reason }));
            }
        }
        let envoy_faults: Rare<EnvoyFaultLabels> = all.add(
            "envoy_faults",
            "Requests of Envoy that got a fault instead of a decision, by the reason",
            Family::default(),
        );
        let envoy_values_denied: Rare<DeniedValueLabels> = all.add(
            "envoy_values_denied",
            "Descriptors of Envoy that were denied as a value in them is not valid",
            Family::default(),
        );
        let redis_errors: Rare<KindLabels> =
            all.add("redis_errors", "Commands that Redis did not answer as asked, by the reason", Family::default());
        let components: Family<ComponentLabels, Gauge> =
            all.add("component_up", "1 if the component works, 0 if not", Family::default());
        let catalog_loads: Rare<LoadLabels> =
            all.add("catalog_loads", "Catalogs that were read, by what became of them", Family::default());
        let batch_tracks: Rare<BatchLabels> = all.add(
            "batch_tracks",
            "Requests within calls of BatchTrack, by how each of them ended",
            Family::default(),
        );
        let scripts: Seconds<ScriptLabels> = Family::new_with_constructor(seconds);
        let metrics = Self {
            rpc_handles: (0..Rpc::table().len() * Code::ALL.len() * Outcome::ALL.len())
                .map(|_| OnceLock::new())
                .collect(),
            duration_handles: (0..Rpc::table().len() * Outcome::ALL.len()).map(|_| OnceLock::new()).collect(),
            in_flight: all.add("rpcs_in_flight", "Calls that have no answer yet", Gauge::default()),
            holds_lapsed: all.add(
                "holds_lapsed",
                "Holds that nobody settled in time, counted when a script writes that they have come back",
                Counter::default(),
            ),
            clocks_corrected: all.add(
                "clocks_corrected",
                "Ledgers whose time was more than 5 minutes ahead of Redis, so that their live holds lapsed",
                Counter::default(),
            ),
            commits_late: all.add("commits_late", "Commits at or after the deadline", Counter::default()),
            commits_over: all.add("commits_over", "Commits of more than was held", Counter::default()),
            refunds_unapplied: all.add(
                "refunds_unapplied",
                "Refunds of which something could not be given back",
                Counter::default(),
            ),
            degraded: all.add("degraded", "Reserves allowed without a decision, failing open", Counter::default()),
            stale: all.add(
                "stale_compilations",
                "Calls compiled again, as the script knew of another subscription or window",
                Counter::default(),
            ),
            contended: all.add(
                "contended",
                "Calls given up, as the user's state changed with every attempt",
                Counter::default(),
            ),
            envoy_faults: handles(EnvoyFault::ALL, |reason| {
                envoy_faults.get_or_create_owned(&EnvoyFaultLabels { reason })
            }),
            envoy_values_denied: handles(DeniedValue::ALL, |value| {
                envoy_values_denied.get_or_create_owned(&DeniedValueLabels { value })
            }),
            scripts: all.add_seconds("redis_duration", "From asking for a script to its answer", scripts),
            redis_errors: handles(RedisError::ALL, |kind| redis_errors.get_or_create_owned(&KindLabels { kind })),
            batch_calls: all.add("redis_batch_calls", "Calls that one command decided", Histogram::new(CALLS)),
            redis_clock_offset: all.add_seconds(
                "redis_clock_offset",
                "How far Redis's clock is ahead of this machine's; below 0 if it is behind",
                Gauge::default(),
            ),
            redis_clock_jumps: all.add(
                "redis_clock_jumps",
                "Times that Redis's clock has moved by more than 2 seconds by itself",
                Counter::default(),
            ),
            components: handles(Component::ALL, |component| {
                components.get_or_create_owned(&ComponentLabels { component })
            }),
            ready: all.add("ready", "1 if calls should be sent here, 0 if not", Gauge::default()),
            catalog_loads: handles(Load::ALL, |result| catalog_loads.get_or_create_owned(&LoadLabels { result })),
            catalog_loaded: all.add_seconds(
                "catalog_loaded_timestamp",
                "When the catalog in use was read, since the Unix epoch",
                Gauge::default(),
            ),
            catalog_plans: all.add("catalog_plans", "Plans of the catalog in use", Gauge::default()),
            catalog_groups: all.add("catalog_limit_groups", "Limit groups of all its plans", Gauge::default()),
            trace_failures: all.add(
                "trace_export_failures",
                "Batches of spans that the collector did not take",
                Counter::default(),
            ),
            rpcs,
            durations,
            denials,
            denial_groups: AtomicUsize::new(0),
            batch_tracks,
            uncounted,
            registry: {
                // Named as every Prometheus client names them.
                all.0.register_collector(Box::new(Process::new()));
                all.0
            },
        };
        drop(metrics.batch_tracks.get_or_create(&BatchLabels { code: Code::Ok, outcome: Outcome::Allowed }));
        // Alerts look at how these grow, which nobody sees of a series that begins at one.
        for rpc in Rpc::table().iter().filter(|facts| facts.is_work).map(|facts| facts.rpc) {
            for code in ALERTED {
                metrics.rpc(rpc, code, Outcome::Fault);
            }
        }
        metrics
    }

    /// Everything, in a format.
    ///
    /// # Errors
    /// None in practice: text can be written to memory.
    pub fn scrape(&self, format: Format) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        match format {
            Format::Text => prometheus_text::encode(&mut text, &self.registry)?,
            Format::OpenMetrics => text::encode(&mut text, &self.registry)?,
        }
        Ok(text)
    }

    fn rpc(&self, rpc: Rpc, code: Code, outcome: Outcome) -> &Counter {
        let index = (rpc as usize * Code::ALL.len() + code as usize) * Outcome::ALL.len() + outcome as usize;
        self.rpc_handles[index].get_or_init(|| self.rpcs.get_or_create_owned(&RpcLabels { rpc, code, outcome }))
    }

    /// One request of a batch has ended.
    pub fn batch_tracked(&self, code: Code, outcome: Outcome) {
        self.batch_tracks.get_or_create(&BatchLabels { code, outcome }).inc();
    }

    /// A call has ended.
    pub fn rpc_ended(&self, rpc: Rpc, code: Code, outcome: Outcome, took: Duration) {
        self.rpc(rpc, code, outcome).inc();
        let index = rpc as usize * Outcome::ALL.len() + outcome as usize;
        let labels = DurationLabels { rpc, outcome };
        let histogram = self.duration_handles[index].get_or_init(|| self.durations.get_or_create_owned(&labels));
        histogram.observe(took.as_secs_f64());
    }

    /// A call was denied because this group of its plan was full.
    pub fn denied(&self, plan: &str, group: &str) {
        let labels = GroupLabels { plan: plan.to_owned(), limit_group: group.to_owned() };
        if let Some(counter) = self.denials.get(&labels) {
            counter.inc();
            return;
        }
        // Calls at the same moment may count a new group twice: it is a bound on memory, and no promise.
        let labels = if self.denial_groups.fetch_add(1, Ordering::Relaxed) < MOST_GROUPS {
            labels
        } else {
            GroupLabels { plan: OTHER.to_owned(), limit_group: OTHER.to_owned() }
        };
        self.denials.get_or_create(&labels).inc();
    }

    /// An event was counted nowhere.
    pub fn uncounted(&self, rpc: Rpc, reason: Uncounted) {
        self.uncounted.get_or_create(&UncountedLabels { rpc, reason }).inc();
    }

    /// Registers the histogram of a script's duration. The caller keeps it, and observes the durations.
    #[must_use]
    pub fn script_duration(&self, script: &'static str) -> Histogram {
        self.scripts.get_or_create_owned(&ScriptLabels { script })
    }

    /// Counts a Redis command that failed.
    pub fn redis_error(&self, kind: RedisError) {
        self.redis_errors[kind as usize].inc();
    }

    /// Envoy got a fault instead of a decision.
    pub fn envoy_fault(&self, reason: EnvoyFault) {
        self.envoy_faults[reason as usize].inc();
    }

    /// A descriptor was denied, as a value in it is not valid.
    pub fn envoy_value_denied(&self, value: DeniedValue) {
        self.envoy_values_denied[value as usize].inc();
    }

    /// Sets whether a component works.
    pub fn component(&self, component: Component, up: bool) {
        self.components[component as usize].set(i64::from(up));
    }

    /// A catalog is in use from now on.
    pub fn catalog_loaded(&self, plans: usize, groups: usize) {
        self.catalog_loads[Load::Loaded as usize].inc();
        self.component(Component::Catalog, true);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.catalog_loaded.set(since.map_or(0.0, |since| since.as_secs_f64()));
        self.catalog_plans.set(i64::try_from(plans).unwrap_or(i64::MAX));
        self.catalog_groups.set(i64::try_from(groups).unwrap_or(i64::MAX));
    }

    /// A catalog was not valid, and is not in use: the one before is.
    pub fn catalog_refused(&self) {
        self.catalog_loads[Load::Refused as usize].inc();
        self.component(Component::Catalog, false);
    }

    /// Returns whether a component works, by the last report.
    #[must_use]
    pub fn is_up(&self, component: Component) -> bool {
        self.components[component as usize].get() == 1
    }

    /// Observes the number of calls that a batch decided.
    pub fn batch(&self, calls: usize) {
        self.batch_calls.observe(u32::try_from(calls).map_or(f64::MAX, f64::from));
    }
}

fn handles<L: Copy, M>(values: &[L], of: impl Fn(L) -> M) -> Vec<M> {
    values.iter().copied().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_have_a_bounded_number_of_series() {
        let metrics = Metrics::new();
        for number in 0..MOST_GROUPS + 500 {
            metrics.denied("free", &number.to_string());
        }
        metrics.denied("free", "7");
        let text = metrics.scrape(Format::Text).unwrap();
        let series = text.lines().filter(|line| line.starts_with("tollgate_denials_total{")).count();
        assert_eq!(series, MOST_GROUPS + 1);
        assert!(text.contains("tollgate_denials_total{plan=\"other\",limit_group=\"other\"} 500\n"), "{text}");
        assert!(text.contains("tollgate_denials_total{plan=\"free\",limit_group=\"7\"} 2\n"));
    }

    #[test]
    fn every_way_a_call_can_end_has_a_series_of_its_own() {
        let metrics = Metrics::new();
        for facts in Rpc::table() {
            for outcome in Outcome::ALL {
                metrics.rpc_ended(facts.rpc, Code::Ok, *outcome, Duration::from_millis(3));
            }
        }
        let text = metrics.scrape(Format::OpenMetrics).unwrap();
        let ones = text.lines().filter(|line| line.starts_with("tollgate_rpcs_total{") && line.ends_with(" 1")).count();
        assert_eq!(ones, Rpc::table().len() * Outcome::ALL.len());
        assert!(text.ends_with("# EOF\n"));
    }
}
