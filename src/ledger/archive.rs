//! Plans by their digests: those of the catalogs in force, and in Redis those by which reservations were made that are still to be settled,
//! by replicas that may have other catalogs by then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use redis::Value;

use super::plan::{CompiledPlan, digest_of};
use super::{Ledger, keys, nobody};
use crate::domain::fault::Fault;
use crate::domain::id::{PlanDigest, base64url};
use crate::domain::plan::Catalog;

/// The memory for plans of other catalogs, in bytes.
pub const ARCHIVED_BYTES: u64 = 8 << 20;

/// Plans are large and few: in many parts, one of them would not fit into its part.
const PARTS: usize = 1;

/// The time for which an archived plan counts as being in the archive.
const FRESH: Duration = Duration::from_secs(3600);

/// The age at which a plan in use is archived again, in the background, so that no call has to wait for it.
const AGING: Duration = Duration::from_secs(3000);

/// The pause after a failed attempt to archive a plan.
const PAUSE: Duration = Duration::from_secs(10);

/// The times at which this replica last archived a plan, and last tried to: in milliseconds of [`now`], 0 for never.
#[derive(Debug, Default)]
pub(super) struct Archived {
    done: AtomicU64,
    tried: AtomicU64,
}

/// Milliseconds of a clock that only runs forward, never 0.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

fn is_within(time: &AtomicU64, period: Duration, now: u64) -> bool {
    let time = time.load(Ordering::Relaxed);
    time != 0 && u128::from(now.saturating_sub(time)) < period.as_millis()
}

impl Archived {
    /// Returns whether the caller should archive the plan again. It says so to one caller only, for a while.
    fn is_due(&self, now: u64) -> bool {
        if is_within(&self.done, AGING, now) {
            return false;
        }
        let tried = self.tried.load(Ordering::Relaxed);
        let recently = tried != 0 && u128::from(now.saturating_sub(tried)) < PAUSE.as_millis();
        !recently && self.tried.compare_exchange(tried, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[derive(Debug, Clone, Copy)]
struct Bytes;

impl Weighter<PlanDigest, Arc<CompiledPlan>> for Bytes {
    fn weight(&self, _: &PlanDigest, plan: &Arc<CompiledPlan>) -> u64 {
        u64::try_from(plan.weight()).unwrap_or(u64::MAX)
    }
}

/// The plans that this replica knows by their digests.
pub(super) struct Archive {
    /// The plans of catalogs in force.
    in_force: RwLock<HashMap<PlanDigest, Weak<CompiledPlan>>>,
    /// Others, as they were found in Redis.
    others: Cache<PlanDigest, Arc<CompiledPlan>, Bytes>,
}

impl Default for Archive {
    fn default() -> Self {
        let options = OptionsBuilder::new()
            .shards(PARTS)
            .estimated_items_capacity((ARCHIVED_BYTES >> 12) as usize)
            .weight_capacity(ARCHIVED_BYTES)
            .build()
            .expect("everything that is needed is said");
        let others = Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self { in_force: RwLock::default(), others }
    }
}

impl Archive {
    /// The plan, or the same one if a catalog in force has it already.
    fn shared(&self, plan: CompiledPlan) -> Arc<CompiledPlan> {
        let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = in_force.get(&plan.digest).and_then(Weak::upgrade) {
            return known;
        }
        in_force.retain(|_, plan| plan.strong_count() > 0);
        let plan = Arc::new(plan);
        in_force.insert(plan.digest, Arc::downgrade(&plan));
        plan
    }

    fn known(&self, digest: &PlanDigest) -> Option<Arc<CompiledPlan>> {
        let in_force = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        let known = in_force.get(digest).and_then(Weak::upgrade);
        drop(in_force);
        known.or_else(|| self.others.get(digest))
    }
}

impl Ledger {
    /// Compiles the plans of a catalog, in their order. Catalogs that have a plan in common share it.
    #[must_use]
    pub fn compile(&self, catalog: &Catalog) -> Vec<Arc<CompiledPlan>> {
        catalog.plans().iter().map(|plan| self.archive.shared(CompiledPlan::of(plan))).collect()
    }

    /// Puts these plans into the archive, in the background, unless they are there.
    pub fn archive_soon(&self, plans: impl IntoIterator<Item = Arc<CompiledPlan>>, kept: Duration) {
        let now = now();
        let due: Vec<_> = plans.into_iter().filter(|plan| plan.archived.is_due(now)).collect();
        // Without a runtime nobody is served.
        let Some(runtime) = tokio::runtime::Handle::try_current().ok().filter(|_| !due.is_empty()) else { return };
        let ledger = self.clone();
        runtime.spawn(async move {
            for plan in due {
                if let Err(fault) = ledger.archive(&plan, kept).await {
                    let error = &fault as &dyn std::error::Error;
                    tracing::debug!(
                        plan = plan.id,
                        error,
                        "a plan could not be archived: Tollgate tries again when the plan is used"
                    );
                }
            }
        });
    }

    /// Makes sure that the plan of a reservation is there for its settlement.
    pub(super) async fn ensure_archived(&self, plan: &Arc<CompiledPlan>, kept: Duration) -> Result<(), Fault> {
        let now = now();
        if !is_within(&plan.archived.done, FRESH, now) {
            // On the heap, as nearly all calls have no need of it.
            return Box::pin(self.archive(plan, kept)).await;
        }
        if !is_within(&plan.archived.done, AGING, now) {
            self.archive_soon([Arc::clone(plan)], kept);
        }
        Ok(())
    }

    async fn archive(&self, plan: &CompiledPlan, kept: Duration) -> Result<(), Fault> {
        let mut set = redis::cmd("SET");
        let kept_ms = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX).max(1);
        set.arg(keys::plan(&plan.digest)).arg(&*plan.message).arg("PX").arg(kept_ms);
        self.connections.command(&nobody(), &set, true).await?;
        plan.archived.done.store(now(), Ordering::Relaxed);
        Ok(())
    }

    /// The plan of this digest; `None` if it is neither in a catalog nor in the archive, or the archive does not answer.
    pub(super) async fn plan_by(&self, digest: &PlanDigest) -> Option<Arc<CompiledPlan>> {
        match self.archive.known(digest) {
            Some(known) => Some(known),
            None => Box::pin(self.fetch(digest)).await,
        }
    }

    async fn fetch(&self, digest: &PlanDigest) -> Option<Arc<CompiledPlan>> {
        let mut get = redis::cmd("GET");
        get.arg(keys::plan(digest));
        let found = match self.connections.command(&nobody(), &get, false).await {
            Ok(Value::BulkString(found)) if digest_of(&found) == *digest => CompiledPlan::read(found.into()),
            Ok(Value::Nil) => return None,
            Ok(_) => {
                tracing::error!(digest = base64url(digest), "the archive has a value that is not a plan");
                return None;
            }
            Err(fault) => {
                let error = &fault as &dyn std::error::Error;
                tracing::debug!(digest = base64url(digest), error, "the archive of plans does not answer");
                return None;
            }
        };
        match found {
            Ok(plan) => {
                let plan = Arc::new(plan);
                self.archive.others.insert(*digest, Arc::clone(&plan));
                Some(plan)
            }
            Err(error) => {
                tracing::error!(digest = base64url(digest), %error, "the archive has a plan that Tollgate does not understand");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;

    /// Makes a plan with this many rules, each of which takes some 20 kB.
    fn plan(number: usize, rules: usize) -> CompiledPlan {
        let values = (0..100).map(|index| format!("{index:0>200}")).collect::<Vec<_>>().join(", ");
        let rules: Vec<_> =
            (0..rules).map(|index| format!("{{ event: e{index}, metadata: {{ model: [{values}] }} }}")).collect();
        let rules = rules.join(", ");
        let group = format!("{{ id: g, unit: count, quota: {number}, period: daily, match: [ {rules} ] }}");
        let text = format!("plans: {{ p: {{ limit_groups: [ {group} ] }} }}");
        let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
        CompiledPlan::of(&catalog.plans()[0])
    }

    #[test]
    fn catalogs_share_a_plan_for_as_long_as_one_of_them_is_in_force() {
        let archive = Archive::default();
        let one = archive.shared(plan(1, 1));
        assert!(Arc::ptr_eq(&one, &archive.shared(plan(1, 1))));
        assert!(archive.known(&one.digest).is_some_and(|known| Arc::ptr_eq(&known, &one)));
        let other = archive.shared(plan(2, 1));
        assert_ne!(one.digest, other.digest);
        let digest = one.digest;
        drop(one);
        assert!(archive.known(&digest).is_none() && archive.known(&other.digest).is_some());
        drop(archive.shared(plan(3, 1)));
        assert_eq!(archive.in_force.read().unwrap().len(), 2, "what is gone leaves no trace when the next one comes");
    }

    #[test]
    fn plans_of_other_catalogs_stay_within_their_bytes() {
        let archive = Archive::default();
        let plans: Vec<_> = (0..80).map(|number| Arc::new(plan(number, 10))).collect();
        let bytes: usize = plans.iter().map(|plan| plan.message.len()).sum();
        assert!(bytes as u64 > ARCHIVED_BYTES + ARCHIVED_BYTES / 2, "{bytes} bytes are more than there is room for");
        for plan in &plans {
            archive.others.insert(plan.digest, Arc::clone(plan));
        }
        let kept: usize = plans.iter().filter(|plan| Arc::strong_count(plan) > 1).map(|plan| plan.message.len()).sum();
        assert!(kept as u64 <= ARCHIVED_BYTES && kept as u64 > ARCHIVED_BYTES / 2, "{kept} bytes are kept");
        assert!(archive.others.weight() >= kept as u64);
    }

    #[test]
    fn a_plan_is_archived_again_before_it_counts_as_gone_and_by_one_call_only() {
        let archived = Archived::default();
        let at = |period: Duration| u64::try_from(period.as_millis()).unwrap();
        let start = 1;
        assert!(!is_within(&archived.done, FRESH, start), "never");
        assert!(archived.is_due(start) && !archived.is_due(start), "once at a time");
        assert!(!archived.is_due(start + at(PAUSE) - 1));
        assert!(archived.is_due(start + at(PAUSE)), "after it has failed");
        archived.done.store(start, Ordering::Relaxed);
        assert!(!archived.is_due(start + at(AGING) - 1));
        assert!(is_within(&archived.done, FRESH, start + at(AGING)) && archived.is_due(start + at(AGING)));
        assert!(is_within(&archived.done, FRESH, start + at(FRESH) - 1));
        assert!(!is_within(&archived.done, FRESH, start + at(FRESH)));
    }
}
