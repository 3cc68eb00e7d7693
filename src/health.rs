//! Health: the answers of `grpc.health.v1` and of the admin port, and the watch over Redis behind them.
//!
//! Liveness is that the process can answer: a restart brings no Redis back. Readiness is about the whole, and follows Redis with
//! patience, as all replicas share one: docs/development/adr/0010-liveness-and-readiness.md.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::ledger::Ledger;
use crate::telemetry::labels::Component;
use crate::telemetry::metrics;

/// The interval at which Tollgate probes Redis: whether it answers, and takes writes.
const PERIOD: Duration = Duration::from_secs(1);

/// The time that Redis may take to answer a probe.
const LIMIT: Duration = Duration::from_secs(1);

/// The number of missing answers after which Redis counts as down. A short interruption is ignored: all replicas share
/// one Redis, and would all be taken out of service.
const MISSES: u32 = 3;

/// The name under which the health service reports that the process is alive.
const LIVENESS: &str = "liveness";

/// See the module.
pub struct Health {
    reporter: HealthReporter,
    /// The whole server, which is the empty name, and each service.
    names: Vec<&'static str>,
    redis: AtomicBool,
    stopping: AtomicBool,
    /// The statuses that were reported last, by name.
    told: Mutex<HashMap<&'static str, bool>>,
    /// Reserve is answered without Redis then, which it cannot be by a replica that is taken out of service.
    fail_open: bool,
}

impl Health {
    /// The health of a server that offers these services. Probes Redis once.
    pub async fn start(
        reporter: HealthReporter,
        services: &[&'static str],
        ledger: &Ledger,
        fail_open: bool,
    ) -> Arc<Self> {
        let names = std::iter::once("").chain(services.iter().copied()).collect();
        let redis = AtomicBool::new(ledger.probe(LIMIT).await.is_ok());
        let health =
            Self { reporter, names, redis, stopping: AtomicBool::new(false), told: Mutex::default(), fail_open };
        health.reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        health.tell().await;
        Arc::new(health)
    }

    /// Returns whether calls should be sent to this replica.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_stopping() && (self.fail_open || self.redis_is_up())
    }

    /// Reports all components, as JSON.
    #[must_use]
    pub fn report(&self) -> serde_json::Value {
        let word = |up: bool| if up { "up" } else { "down" };
        json!({
            "ready": self.is_ready(),
            "components": {
                "server": if self.is_stopping() { "stopping" } else { "up" },
                "redis": word(self.redis_is_up()),
                "catalog": if metrics().is_up(Component::Catalog) { "up" } else { "refused" },
            },
        })
    }

    fn redis_is_up(&self) -> bool {
        self.redis.load(Ordering::Relaxed)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Reports that no more calls should come. Those in flight are finished, and the process ends.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.tell().await;
    }

    /// Ends the calls that watch health: they have heard that it is over, and their connections do not end before they do.
    pub async fn end_watches(&self) {
        let mut reporter = self.reporter.clone();
        let components = [LIVENESS, Component::Redis.as_str(), Component::Catalog.as_str()];
        for name in self.names.iter().chain(&components) {
            reporter.clear_service_status(name).await;
        }
    }

    /// Reports changed statuses, and nothing else: a watcher gets each status once.
    async fn tell(&self) {
        let status = |up| if up { ServingStatus::Serving } else { ServingStatus::NotServing };
        // A refused catalog is not a reason to stop calls: the former one is in use.
        let (ready, redis, catalog) = (self.is_ready(), self.redis_is_up(), metrics().is_up(Component::Catalog));
        let mut told = self.told.lock().await;
        let (redis_name, catalog_name) = (Component::Redis.as_str(), Component::Catalog.as_str());
        let names = self.names.iter().map(|name| (*name, ready));
        for (name, up) in names.chain([(redis_name, redis), (catalog_name, catalog)]) {
            if told.insert(name, up) != Some(up) {
                self.reporter.set_service_status(name, status(up)).await;
            }
        }
        metrics().component(Component::Redis, redis);
        metrics().ready.set(i64::from(ready));
    }

    /// Watches Redis until it is dropped.
    pub async fn watch(self: Arc<Self>, ledger: Ledger) {
        let (mut misses, mut catalog) = (0, metrics().is_up(Component::Catalog));
        loop {
            tokio::time::sleep(PERIOD).await;
            if metrics().is_up(Component::Catalog) != catalog {
                catalog = !catalog;
                self.tell().await;
            }
            let answer = ledger.probe(LIMIT).await;
            misses = if answer.is_ok() { 0 } else { misses + 1 };
            match answer {
                Ok(()) if !self.redis_is_up() => tracing::info!("redis answers, and accepts writes"),
                Err(fault) if self.redis_is_up() && misses >= MISSES => {
                    let error = fault.source();
                    tracing::error!(error, "redis does not answer, or takes no writes");
                }
                _ => continue,
            }
            self.redis.store(misses == 0, Ordering::Relaxed);
            self.tell().await;
        }
    }
}
