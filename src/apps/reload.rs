//! Reloads the apps' plans when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Apps;
use super::files::{CatalogFailure, Parsed, Texts};
use crate::telemetry::labels::Component;
use crate::telemetry::metrics;

/// The time for which changed files must stay the same before they are read.
const SETTLE: Duration = Duration::from_millis(200);

/// Follows the catalog files.
#[derive(Debug, Default)]
pub struct CatalogReloader {
    only_default: bool,
    /// Wakes it before its time.
    pub now: Notify,
}

impl CatalogReloader {
    /// A reloader. With `only_default`, all calls may be those of the app `default`, which must then keep its plans.
    #[must_use]
    pub fn new(only_default: bool) -> Self {
        Self { only_default, ..Self::default() }
    }

    /// Watches the files for ever and takes every valid change. It looks every `period`, and when it is woken. It
    /// compares contents, not times: a link that now leads to another folder, as Kubernetes makes it, is noticed, and a
    /// file that was only touched is not.
    pub async fn run(&self, apps: Arc<Apps>, path: Option<PathBuf>, mut in_force: [u8; 32], period: Duration) {
        let mut seen = in_force;
        // The problem of the files that was logged last; empty while they are in force.
        let mut told = String::new();
        loop {
            let woken = tokio::time::timeout(period, self.now.notified()).await.is_ok();
            let (path, only_default) = (path.clone(), self.only_default);
            // A file on a network must not hold up calls.
            let read =
                tokio::task::spawn_blocking(move || read_again(path.as_deref(), seen, woken, only_default)).await;
            match read {
                Ok(Ok((digest, None))) => {
                    if digest == in_force {
                        told.clear();
                    }
                    metrics().component(Component::Catalog, digest == in_force);
                }
                Ok(Ok((digest, Some(Parsed { catalogs, warnings })))) => {
                    (seen, in_force) = (digest, digest);
                    warn(&warnings);
                    let plans = catalogs.plans();
                    for gone in apps.replace(catalogs) {
                        tracing::warn!(plan = gone, "a plan is gone: calls of its users fail with PLAN_UNKNOWN");
                    }
                    told.clear();
                    tracing::info!(plans, "took the catalog");
                }
                Ok(Err((digest, failure))) => {
                    seen = digest.unwrap_or(seen);
                    let problem = failure.to_string();
                    // A problem that is met again and again is logged once.
                    if woken || problem != told {
                        metrics().catalog_refused();
                        let source = std::error::Error::source(&failure);
                        tracing::error!(source, "refused the catalog, and kept the former one: {problem}");
                        told = problem;
                    }
                }
                Err(error) => tracing::error!(%error, "reading the catalog again failed"),
            }
        }
    }
}

/// Logs the warnings about a catalog.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("the catalog may contain a mistake: {warning}");
    }
}

type Digest = [u8; 32];

/// Reads the files if they differ from the digest `seen` last. When a signal `asked` for it, unchanged files are read
/// as well.
fn read_again(
    path: Option<&Path>,
    seen: Digest,
    asked: bool,
    only_default: bool,
) -> Result<(Digest, Option<Parsed>), (Option<Digest>, CatalogFailure)> {
    let texts = Texts::read(path).map_err(|failure| (None, failure))?;
    let digest = texts.digest();
    if digest == seen && !asked {
        return Ok((digest, None));
    }
    // Half-written files, or half of a change of several files, may be valid as well: they are taken once they stay the
    // same.
    if digest != seen {
        std::thread::sleep(SETTLE);
        let again = Texts::read(path).map_err(|failure| (None, failure))?;
        if again.digest() != digest {
            return Ok((seen, None));
        }
    }
    let parsed = texts.parse_for(only_default).map_err(|failure| (Some(digest), failure))?;
    Ok((digest, Some(parsed)))
}
