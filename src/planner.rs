//! Which plan a call is decided by: the subscription as last seen, the plan compiled for it, and the time to compile for.
//!
//! All of it is a guess that the script checks (ONE-CLOCK, SELF-CONTAINED): where it was wrong the script writes nothing and says
//! how things are, and the call is compiled again. So these caches need no invalidation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use quick_cache::Equivalent;
use quick_cache::sync::Cache;

use crate::catalog::{CompiledPlan, NoCalendar, compile};
use crate::domain::fault::Fault;
use crate::domain::id::Owner;
use crate::domain::plan::{Anchor, Catalog, Plan};
use crate::domain::subscription::{QuotaOverride, Subscription};
use crate::ledger::{Stale, codec};

/// Tells the time, in milliseconds of the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// How many users' subscriptions, and how many compiled plans, are kept in memory.
const CACHED: usize = 100_000;

/// See the module.
pub struct Planner {
    catalog: Arc<Catalog>,
    clock: Clock,
    /// By how much Redis's clock is ahead of this machine's.
    ahead_ms: Arc<AtomicI64>,
    subscriptions: Arc<Cache<Owner, Arc<Subscription>>>,
    compiled: Cache<CompileKey, CompiledPlan>,
}

/// What a call was compiled for.
#[derive(Debug, Clone)]
pub struct Basis<'a> {
    /// As last seen.
    pub subscription: Option<Arc<Subscription>>,
    /// Whether it had ended.
    pub ended: bool,
    /// The plan in force.
    pub plan: Effective<'a>,
}

/// The plan in force.
#[derive(Debug, Clone)]
pub enum Effective<'a> {
    /// This one.
    Plan {
        /// Its id in the catalog.
        id: &'a str,
        /// As the scripts read it.
        message: Arc<[u8]>,
    },
    /// None: no subscription, and no default plan.
    None,
    /// One that the catalog does not have.
    Unknown(String),
}

impl Effective<'_> {
    /// Its id in the catalog; empty for none.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Plan { id, .. } => id,
            Self::None => "",
            Self::Unknown(id) => id,
        }
    }
}

impl Basis<'_> {
    /// The revision of the subscription; empty for none.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.subscription.as_ref().map_or("", |subscription| &subscription.revision)
    }

    /// The plan as an argument of the scripts.
    #[must_use]
    pub fn plan_argument(&self) -> &[u8] {
        match &self.plan {
            Effective::Plan { message, .. } => message,
            Effective::None => b"none",
            Effective::Unknown(_) => b"unknown",
        }
    }
}

/// What a plan is compiled for. Callers ask with a [`CompileQuestion`], which owns nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CompileKey {
    plan: String,
    anchor_ms: Option<i64>,
    overrides: BTreeMap<String, QuotaOverride>,
}

/// Has the hash of the [`CompileKey`] that it equals, as its fields are the same.
#[derive(Hash)]
struct CompileQuestion<'a> {
    plan: &'a str,
        /// Every name that its rules measure.
        measured: &'a BTreeSet<String>,
    anchor_ms: Option<i64>,
    overrides: &'a BTreeMap<String, QuotaOverride>,
}

impl Equivalent<CompileKey> for CompileQuestion<'_> {
    fn equivalent(&self, key: &CompileKey) -> bool {
        self.plan == key.plan && self.anchor_ms == key.anchor_ms && *self.overrides == key.overrides
    }
}

impl Planner {
    /// A planner for `catalog`, with a clock that may be wrong.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, clock: Clock) -> Self {
        Self {
            catalog,
            clock,
            ahead_ms: Arc::default(),
            subscriptions: Arc::new(Cache::new(CACHED)),
            compiled: Cache::new(CACHED),
        }
    }

    /// A planner for another catalog. It shares what has been seen of users and of Redis's clock, which depends on no catalog.
    #[must_use]
    pub fn with_catalog(&self, catalog: Arc<Catalog>) -> Self {
    /// Whether a rule of the plan measures this name.
    #[must_use]
    pub fn measures(&self, name: &str) -> bool {
        matches!(&self.plan, Effective::Plan { measured, .. } if measured.contains(name))
    }

        Self {
            catalog,
            clock: Arc::clone(&self.clock),
            ahead_ms: Arc::clone(&self.ahead_ms),
            subscriptions: Arc::clone(&self.subscriptions),
            compiled: Cache::new(CACHED),
        }
    }

    /// The catalog.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The time as Redis has it, as far as is known.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        (self.clock)().saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// What to compile a call of this user for.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a time without a calendar.
    pub fn basis(&self, owner: &Owner, at_ms: i64) -> Result<Basis<'_>, Fault> {
        let subscription = self.subscriptions.get(owner);
        let ended = subscription.as_ref().is_some_and(|subscription| subscription.has_ended(at_ms));
        let none = BTreeMap::new();
        let (plan, anchor_ms, overrides) = match &subscription {
            Some(subscription) if !ended => match self.catalog.plan(&subscription.plan_id) {
                Some(plan) => (Some(plan), Some(subscription.cycle_anchor_ms), &subscription.overrides),
                None => {
                    let plan = Effective::Unknown(subscription.plan_id.clone());
                    return Ok(Basis { subscription: Some(Arc::clone(subscription)), ended, plan });
                }
            },
            // The quotas of one's own end with the subscription.
            Some(subscription) => (self.catalog.default_plan(), Some(subscription.cycle_anchor_ms), &none),
            None => (self.catalog.default_plan(), None, &none),
        };
        let plan = match plan {
            Some(plan) => {
                let compiled = self.compiled(plan, anchor_ms, overrides, at_ms)?;
                Effective::Plan { id: &plan.id, message: compiled.message, measured: &plan.measured }
            }
            None => Effective::None,
        };
        Ok(Basis { subscription, ended, plan })
    }

    /// `plan` as the scripts read it, for this time.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a time without a calendar.
    pub fn compiled(
        &self,
        plan: &Plan,
        anchor_ms: Option<i64>,
        overrides: &BTreeMap<String, QuotaOverride>,
        at_ms: i64,
    ) -> Result<CompiledPlan, Fault> {
        let anchored = plan.groups.iter().any(|group| group.anchor == Anchor::SubscriptionStart);
        let question = CompileQuestion { plan: &plan.id, anchor_ms: anchor_ms.filter(|_| anchored), overrides };
        if let Some(compiled) = self.compiled.get(&question)
            && (compiled.from_ms..compiled.until_ms).contains(&at_ms)
        {
            return Ok(compiled);
        }
        let compiled =
            compile(plan, anchor_ms, overrides, at_ms).map_err(|error: NoCalendar| Fault::Internal(Box::new(error)))?;
        let CompileQuestion { plan, anchor_ms, overrides } = question;
        let key = CompileKey { plan: plan.to_owned(), anchor_ms, overrides: overrides.clone() };
        self.compiled.insert(key, compiled.clone());
        Ok(compiled)
    }

    /// Takes in what a script said of the time and of the user's subscription.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a subscription that is not understood.
    pub fn learn(&self, owner: &Owner, stale: &Stale) -> Result<(), Fault> {
        self.ahead_ms.store(stale.redis_ms.saturating_sub((self.clock)()), Ordering::Relaxed);
        self.remember(owner, codec::decode_subscription(&stale.subscription)?);
        Ok(())
    }

    /// Takes in the user's subscription, or that there is none.
    pub fn remember(&self, owner: &Owner, subscription: Option<Subscription>) {
        match subscription {
            Some(subscription) => self.subscriptions.insert(owner.clone(), Arc::new(subscription)),
            None => drop(self.subscriptions.remove(owner)),
        }
    }
}
