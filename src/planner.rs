//! Which plan a call is decided by: the subscription as last seen, the plan compiled for it, and the time to compile for.
//!
//! All of it is a guess that the script checks (ONE-CLOCK, SELF-CONTAINED): where it was wrong the script writes nothing and says
//! how things are, and the call is compiled again. So these caches need no invalidation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};

use crate::catalog::{CompiledPlan, NoCalendar, compile};
use crate::domain::fault::Fault;
use crate::domain::id::Owner;
use crate::domain::plan::{Anchor, Catalog, Plan};
use crate::domain::subscription::{QuotaOverride, Subscription};
use crate::ledger::{Stale, codec};

/// Tells the time, in milliseconds of the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// What the subscriptions that are kept in memory take at most: those of some 50,000 users, of fewer with many overrides.
pub const SUBSCRIPTIONS_BYTES: u64 = 16 << 20;

/// What the compiled plans that are kept in memory take at most, over all apps and catalogs. A plan of three groups takes about a
/// kilobyte for each anchor and each set of overrides, one of fifty groups about ten.
pub const COMPILED_BYTES: u64 = 32 << 20;

/// The caches' part of an entry, as their weights have it: its places in their tables, and what the allocator adds.
const ENTRY_BYTES: usize = 96;

/// Plans are large and few beside subscriptions: in many parts, one of them would not fit into its part.
const COMPILED_PARTS: usize = 4;

/// See the module.
pub struct Planner {
    catalog: Arc<Catalog>,
    clock: Clock,
    /// By how much Redis's clock is ahead of this machine's.
    ahead_ms: Arc<AtomicI64>,
    subscriptions: Arc<Cache<Owner, Arc<Subscription>, Bytes>>,
    compiled: Arc<Cache<CompileKey, CompiledPlan, Bytes>>,
    /// Tells this catalog's compiled plans from those of others.
    number: u64,
}

/// Weighs entries by the bytes that they take, as callers decide how large they are.
#[derive(Debug, Clone, Copy)]
struct Bytes;

impl Weighter<Owner, Arc<Subscription>> for Bytes {
    fn weight(&self, owner: &Owner, subscription: &Arc<Subscription>) -> u64 {
        let Subscription { revision, plan_id, fallen_to, overrides, .. } = &**subscription;
        let texts = [owner.tag(), revision, plan_id, fallen_to.as_deref().unwrap_or_default()];
        let fixed = ENTRY_BYTES + size_of::<Owner>() + size_of::<Subscription>();
        bytes(fixed + texts.map(str::len).iter().sum::<usize>() + overrides_bytes(overrides))
    }
}

impl Weighter<CompileKey, CompiledPlan> for Bytes {
    fn weight(&self, key: &CompileKey, plan: &CompiledPlan) -> u64 {
        let fixed = ENTRY_BYTES + size_of::<CompileKey>() + size_of::<CompiledPlan>();
        bytes(fixed + key.plan.len() + overrides_bytes(&key.overrides) + plan.message.len())
    }
}

/// What a map of overrides takes beside itself. A node has room for 11 entries, and is at least half full but for the first.
fn overrides_bytes(overrides: &BTreeMap<String, QuotaOverride>) -> usize {
    const NODE_BYTES: usize = 12 * size_of::<(String, QuotaOverride)>();
    let allocated = |id: &String| id.len() + 16;
    overrides.len().div_ceil(5) * NODE_BYTES + overrides.keys().map(allocated).sum::<usize>()
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// A number that no other planner has.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
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
        /// Every name that its rules measure.
        measured: &'a BTreeSet<String>,
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

    /// Whether a rule of the plan measures this name.
    #[must_use]
    pub fn measures(&self, name: &str) -> bool {
        matches!(&self.plan, Effective::Plan { measured, .. } if measured.contains(name))
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
    catalog: u64,
    plan: String,
    anchor_ms: Option<i64>,
    overrides: BTreeMap<String, QuotaOverride>,
}

/// Has the hash of the [`CompileKey`] that it equals, as its fields are the same.
#[derive(Hash)]
struct CompileQuestion<'a> {
    catalog: u64,
    plan: &'a str,
    anchor_ms: Option<i64>,
    overrides: &'a BTreeMap<String, QuotaOverride>,
}

impl Equivalent<CompileKey> for CompileQuestion<'_> {
    fn equivalent(&self, key: &CompileKey) -> bool {
        self.catalog == key.catalog
            && self.plan == key.plan
            && self.anchor_ms == key.anchor_ms
            && *self.overrides == key.overrides
    }
}

impl Planner {
    /// A planner for `catalog`, with a clock that may be wrong.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, clock: Clock) -> Self {
        let options = OptionsBuilder::new()
            .shards(COMPILED_PARTS)
            .estimated_items_capacity((COMPILED_BYTES >> 12) as usize)
            .weight_capacity(COMPILED_BYTES)
            .build()
            .expect("everything that is needed is said");
        let compiled = Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default());
        let subscriptions = Cache::with_weighter((SUBSCRIPTIONS_BYTES >> 8) as usize, SUBSCRIPTIONS_BYTES, Bytes);
        Self {
            catalog,
            clock,
            ahead_ms: Arc::default(),
            subscriptions: Arc::new(subscriptions),
            compiled: Arc::new(compiled),
            number: next_number(),
        }
    }

    /// A planner for another catalog. It shares what has been seen of users and of Redis's clock, which depends on no catalog, and the
    /// room for compiled plans: however many apps and catalogs there are, it is bounded once.
    #[must_use]
    pub fn with_catalog(&self, catalog: Arc<Catalog>) -> Self {
        Self {
            catalog,
            clock: Arc::clone(&self.clock),
            ahead_ms: Arc::clone(&self.ahead_ms),
            subscriptions: Arc::clone(&self.subscriptions),
            compiled: Arc::clone(&self.compiled),
            number: next_number(),
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
        let catalog = self.number;
        let question =
            CompileQuestion { catalog, plan: &plan.id, anchor_ms: anchor_ms.filter(|_| anchored), overrides };
        if let Some(compiled) = self.compiled.get(&question)
            && (compiled.from_ms..compiled.until_ms).contains(&at_ms)
        {
            return Ok(compiled);
        }
        let compiled =
            compile(plan, anchor_ms, overrides, at_ms).map_err(|error: NoCalendar| Fault::Internal(Box::new(error)))?;
        let CompileQuestion { catalog, plan, anchor_ms, overrides } = question;
        let key = CompileKey { catalog, plan: plan.to_owned(), anchor_ms, overrides: overrides.clone() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::domain::amount::Quantity;
    use crate::domain::id::{AppId, UserId};

    /// A planner for a plan `p` whose windows begin with the subscription, and whose message is some 200 kB.
    fn planner() -> Planner {
        let values = (0..100).map(|index| format!("{index:0>200}")).collect::<Vec<_>>().join(", ");
        let rules: Vec<_> =
            (0..10).map(|index| format!("{{ event: e{index}, metadata: {{ model: [{values}] }} }}")).collect();
        let group = format!(
            "{{ id: g, unit: count, quota: 1, period: daily, anchor: subscription_start, match: [{}] }}",
            rules.join(", ")
        );
        let text = format!("plans: {{ p: {{ limit_groups: [ {group} ] }} }}");
        let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
        Planner::new(Arc::new(catalog), Arc::new(|| 1_795_516_200_000))
    }

    /// The messages of the plan for so many anchors, most recent last, all of them held.
    fn compiled(planner: &Planner, anchors: i64) -> Vec<Arc<[u8]>> {
        let plan = planner.catalog().plan("p").unwrap();
        let at_ms = planner.now_ms();
        let compile = |anchor| planner.compiled(plan, Some(anchor), &BTreeMap::new(), at_ms).unwrap().message;
        (0..anchors).map(compile).collect()
    }

    /// How many bytes of what is held here the cache holds too.
    fn cached<T: ?Sized>(held: &[Arc<T>], bytes: impl Fn(&T) -> usize) -> usize {
        held.iter().filter(|value| Arc::strong_count(value) > 1).map(|value| bytes(value)).sum()
    }

    #[test]
    fn compiled_plans_of_any_number_of_users_and_apps_stay_within_their_bytes() {
        let planner = planner();
        let other = planner.with_catalog(Arc::clone(planner.catalog()));
        let mut held = compiled(&planner, 150);
        assert!(held[0].len() > 150_000, "{} bytes", held[0].len());
        held.extend(compiled(&other, 150));
        let in_all: usize = held.iter().map(|message| message.len()).sum();
        assert!(in_all as u64 > COMPILED_BYTES + COMPILED_BYTES / 2, "more was compiled than there is room for");
        let kept = cached(&held, |message| message.len());
        assert!(kept as u64 <= COMPILED_BYTES, "{kept} bytes are kept of {in_all}");
        assert!(kept as u64 > COMPILED_BYTES / 2, "{kept} bytes are kept of {in_all}: the room is used");
        // The weights are no smaller than what is there.
        assert!(planner.compiled.weight() >= kept as u64);
        let again = compiled(&planner, 1);
        assert!(Arc::ptr_eq(&again[0], &compiled(&planner, 1)[0]), "what was asked last is found");
    }

    #[test]
    fn a_catalog_never_finds_the_plans_of_another() {
        let planner = planner();
        let other = planner.with_catalog(Arc::clone(planner.catalog()));
        let [one, two] = [&planner, &other].map(|planner| compiled(planner, 1).remove(0));
        assert!(!Arc::ptr_eq(&one, &two));
    }

    #[test]
    fn subscriptions_stay_within_their_bytes_however_many_overrides_they_have() {
        let planner = planner();
        let amount = QuotaOverride::Amount(Quantity::ONE);
        let overrides: BTreeMap<_, _> = (0..1000).map(|index| (format!("{index:0>64}"), amount)).collect();
        let of_overrides = |subscription: &Subscription| subscription.overrides.keys().map(String::len).sum::<usize>();
        let remember = |index: usize| {
            let owner = Owner::new(&AppId::default(), &UserId::parse(&format!("user-{index}")).unwrap());
            let subscription = Subscription {
                revision: "r".to_owned(),
                plan_id: "gone".to_owned(),
                start_ms: 0,
                end_ms: None,
                cycle_anchor_ms: 0,
                fallen_to: None,
                overrides: overrides.clone(),
            };
            planner.remember(&owner, Some(subscription));
            planner.subscriptions.get(&owner).expect("it has just been remembered")
        };
        let held: Vec<_> = (0..500).map(remember).collect();
        let kept = cached(&held, of_overrides);
        // Each takes twice that and more: the amounts, and the nodes of the map.
        assert!(2 * kept as u64 <= SUBSCRIPTIONS_BYTES, "{kept} bytes of ids are kept");
        assert!(kept > 0 && planner.subscriptions.weight() <= SUBSCRIPTIONS_BYTES);
    }
}
