//! Chooses the plan that decides a call: the subscription as last seen, the plan compiled for it, and the time to
//! compile for.
//!
//! All of it is a guess that the script checks (ONE-CLOCK, SELF-CONTAINED): where it was wrong the script writes nothing and says
//! how things are, and the call is compiled again. So these caches need no invalidation.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};

use crate::domain::fault::Fault;
use crate::domain::id::Owner;
use crate::domain::plan::{Anchor, Catalog, Plan};
use crate::domain::subscription::{QuotaOverride, Subscription};
use crate::ledger::{Basis, CompiledPlan, Frames, InForce, Ledger, NoCalendar, Stored};

/// Tells the time, in milliseconds of the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The memory for cached subscriptions, in bytes. It holds those of some 50,000 users, or of fewer with many overrides.
pub const SUBSCRIPTIONS_BYTES: u64 = 16 << 20;

/// The memory for the windows of cached plans, in bytes, over all apps and catalogs. A plan takes less than half a
/// kilobyte for each anchor, and more for each set of overrides.
pub const FRAMES_BYTES: u64 = 32 << 20;

/// All caches together take at most 64 MiB.
const _: () = assert!(SUBSCRIPTIONS_BYTES + FRAMES_BYTES + crate::ledger::ARCHIVED_BYTES <= 64 << 20);

/// The caches' part of an entry, as their weights have it: its places in their tables, and what the allocator adds.
const ENTRY_BYTES: usize = 96;

/// The number of parts of the cache of windows. Windows with overrides may be large: in many parts, one of them would
/// not fit into its part.
const FRAMES_PARTS: usize = 4;

/// See the module.
pub struct Planner {
    catalog: Arc<Catalog>,
    /// The plans of the catalog as the scripts read them, by their ids.
    plans: HashMap<String, Arc<CompiledPlan>>,
    clock: Clock,
    /// The time by which Redis's clock is ahead of this machine's, in milliseconds.
    ahead_ms: Arc<AtomicI64>,
    subscriptions: Arc<Cache<Owner, Arc<Subscription>, Bytes>>,
    compiled: Arc<Cache<CompileKey, Compiled, Bytes>>,
    /// Tells this catalog's compiled plans from those of others.
    number: u64,
}

/// A plan for one anchor and one set of overrides, at one time.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The plan, as the scripts read it.
    pub plan: Arc<CompiledPlan>,
    /// Its windows.
    pub frames: Frames,
}

/// Weighs entries by the bytes that they take, as callers decide how large they are.
#[derive(Debug, Clone, Copy)]
struct Bytes;

impl Weighter<Owner, Arc<Subscription>> for Bytes {
    fn weight(&self, owner: &Owner, subscription: &Arc<Subscription>) -> u64 {
        let Subscription { plan_id, fallen_to, overrides, .. } = &**subscription;
        let texts = [owner.tag(), plan_id, fallen_to.as_deref().unwrap_or_default()];
        let fixed = ENTRY_BYTES + size_of::<Owner>() + size_of::<Subscription>();
        bytes(fixed + texts.map(str::len).iter().sum::<usize>() + overrides_bytes(overrides))
    }
}

impl Weighter<CompileKey, Compiled> for Bytes {
    fn weight(&self, key: &CompileKey, compiled: &Compiled) -> u64 {
        let fixed = ENTRY_BYTES + size_of::<CompileKey>() + size_of::<Compiled>();
        bytes(fixed + key.plan.len() + overrides_bytes(&key.overrides) + compiled.frames.bytes.len())
    }
}

/// Returns the memory of a map of overrides, in bytes, without the map itself. A node has room for 11 entries, and is
/// at least half full but for the first.
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

/// The plan that a call is compiled for.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The subscription, as last seen.
    pub subscription: Option<Arc<Subscription>>,
    /// The basis of the call, for the ledger.
    pub basis: Basis,
}

/// The key of a compiled plan. Callers look it up with a [`CompileQuestion`], which owns nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CompileKey {
    catalog: u64,
    plan: String,
    anchor_ms: Option<i64>,
    overrides: BTreeMap<String, QuotaOverride>,
}

/// A borrowed [`CompileKey`]. It has the hash of the key that it equals, as its fields are the same.
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

fn by_id(plans: Vec<Arc<CompiledPlan>>) -> HashMap<String, Arc<CompiledPlan>> {
    plans.into_iter().map(|plan| (plan.id.clone(), plan)).collect()
}

impl Planner {
    /// A planner for `catalog`, with a clock that may be wrong.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, ledger: &Ledger, clock: Clock) -> Self {
        let plans = ledger.compile(&catalog);
        Self::of(catalog, plans, clock)
    }

    fn of(catalog: Arc<Catalog>, plans: Vec<Arc<CompiledPlan>>, clock: Clock) -> Self {
        let options = OptionsBuilder::new()
            .shards(FRAMES_PARTS)
            .estimated_items_capacity((FRAMES_BYTES >> 10) as usize)
            .weight_capacity(FRAMES_BYTES)
            .build()
            .expect("everything that is needed is said");
        let compiled = Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default());
        let subscriptions = Cache::with_weighter((SUBSCRIPTIONS_BYTES >> 8) as usize, SUBSCRIPTIONS_BYTES, Bytes);
        Self {
            catalog,
            plans: by_id(plans),
            clock,
            ahead_ms: Arc::default(),
            subscriptions: Arc::new(subscriptions),
            compiled: Arc::new(compiled),
            number: next_number(),
        }
    }

    /// A planner for another catalog. It shares the cached subscriptions and the offset of Redis's clock, which depend
    /// on no catalog, and the room for windows: it is bounded once, for all apps and catalogs.
    #[must_use]
    pub fn with_catalog(&self, catalog: Arc<Catalog>, ledger: &Ledger) -> Self {
        let plans = ledger.compile(&catalog);
        self.with_plans(catalog, plans)
    }

    fn with_plans(&self, catalog: Arc<Catalog>, plans: Vec<Arc<CompiledPlan>>) -> Self {
        Self {
            catalog,
            plans: by_id(plans),
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

    /// Its plans, as the scripts read them.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<CompiledPlan>> {
        self.plans.values()
    }

    /// Returns Redis's time, as far as it is known.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        (self.clock)().saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Returns the subscription of this user, as last seen.
    #[must_use]
    pub fn subscription(&self, owner: &Owner) -> Option<Arc<Subscription>> {
        self.subscriptions.get(owner)
    }

    /// Returns the plan to compile a call of this user for.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a time without a calendar.
    pub fn plan_for(&self, owner: &Owner, at_ms: i64) -> Result<Planned, Fault> {
        let subscription = self.subscriptions.get(owner);
        let ended = subscription.as_ref().is_some_and(|subscription| subscription.has_ended(at_ms));
        let revision = subscription.as_ref().map(|subscription| subscription.revision);
        let plan = self.in_force(subscription.as_deref(), ended, at_ms)?;
        Ok(Planned { subscription, basis: Basis { revision, ended, plan } })
    }

    /// Returns the windows of the plan at a time that a caller gave, if some of its groups open them with their first
    /// event: what lasts a month or a day depends on when it begins. There are none for a time without a calendar: the
    /// scripts refuse it, as it lies ahead.
    #[must_use]
    pub fn first_use_frames(&self, planned: &Planned, at_ms: i64) -> Option<Frames> {
        let plan = planned.basis.plan.known().and_then(|plan| self.catalog.plan(&plan.id))?;
        if plan.groups.iter().all(|group| group.anchor != Anchor::FirstUse) {
            return None;
        }
        let anchor_ms = planned.subscription.as_ref().map(|subscription| subscription.cycle_anchor_ms);
        Frames::of(plan, anchor_ms, &BTreeMap::new(), at_ms).ok()
    }

    fn in_force(&self, subscription: Option<&Subscription>, ended: bool, at_ms: i64) -> Result<InForce, Fault> {
        let none = BTreeMap::new();
        let anchor_ms = subscription.map(|subscription| subscription.cycle_anchor_ms);
        let (plan, overrides) = match subscription.filter(|_| !ended) {
            Some(subscription) => match self.catalog.plan(&subscription.plan_id) {
                Some(plan) => (Some(plan), &subscription.overrides),
                None => return Ok(InForce::Unknown(subscription.plan_id.clone())),
            },
            // The quotas of one's own end with the subscription.
            None => (self.catalog.default_plan(), &none),
        };
        let Some(plan) = plan else { return Ok(InForce::None) };
        let Compiled { plan, frames } = self.compiled(plan, anchor_ms, overrides, at_ms)?;
        Ok(InForce::Plan { plan, frames })
    }

    /// `plan` as the scripts read it, for this time.
    ///
    /// # Errors
    /// [`Fault::Internal`] for a time without a calendar.
    ///
    /// # Panics
    /// If the catalog has no such plan.
    pub fn compiled(
        &self,
        plan: &Plan,
        anchor_ms: Option<i64>,
        overrides: &BTreeMap<String, QuotaOverride>,
        at_ms: i64,
    ) -> Result<Compiled, Fault> {
        let anchored = plan.groups.iter().any(|group| group.anchor == Anchor::SubscriptionStart);
        let catalog = self.number;
        let question =
            CompileQuestion { catalog, plan: &plan.id, anchor_ms: anchor_ms.filter(|_| anchored), overrides };
        if let Some(compiled) = self.compiled.get(&question)
            && (compiled.frames.from_ms..compiled.frames.until_ms).contains(&at_ms)
        {
            return Ok(compiled);
        }
        let frames = Frames::of(plan, anchor_ms, overrides, at_ms);
        let frames = frames.map_err(|error: NoCalendar| Fault::Internal(Box::new(error)))?;
        let compiled = Compiled { plan: Arc::clone(&self.plans[&plan.id]), frames };
        let CompileQuestion { catalog, plan, anchor_ms, overrides } = question;
        let key = CompileKey { catalog, plan: plan.to_owned(), anchor_ms, overrides: overrides.clone() };
        self.compiled.insert(key, compiled.clone());
        Ok(compiled)
    }

    /// Takes in what a script said of the time and of the user's subscription.
    pub fn learn(&self, owner: &Owner, stored: Stored) {
        self.ahead_ms.store(stored.redis_ms.saturating_sub((self.clock)()), Ordering::Relaxed);
        self.remember(owner, stored.subscription);
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

    /// A planner for a plan `p` of 1000 groups, whose windows begin with the subscription.
    fn planner() -> Planner {
        let group = |index: usize| {
            format!(
                "{{ id: g{index}, unit: count, quota: 1, period: daily, anchor: subscription_start, match: [ {{ event: e }} ] }}"
            )
        };
        let groups: Vec<_> = (0..1000).map(group).collect();
        let text = format!("plans: {{ p: {{ limit_groups: [ {} ] }} }}", groups.join(", "));
        let catalog = catalog::parse(&text, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}"));
        let plans = catalog.plans().iter().map(|plan| Arc::new(CompiledPlan::of(plan))).collect();
        Planner::of(Arc::new(catalog), plans, Arc::new(|| 1_795_516_200_000))
    }

    fn again(planner: &Planner) -> Planner {
        planner.with_plans(Arc::clone(planner.catalog()), planner.plans().cloned().collect())
    }

    /// Compiles the windows of the plan for this many anchors, with this many overrides each. The last one is the most
    /// recent. All of them are held.
    fn frames(planner: &Planner, anchors: i64, overrides: usize) -> Vec<Arc<[u8]>> {
        let plan = planner.catalog().plan("p").unwrap();
        let at_ms = planner.now_ms();
        let overrides = (0..overrides).map(|index| (format!("g{index}"), QuotaOverride::Unlimited)).collect();
        let compile = |anchor| planner.compiled(plan, Some(anchor), &overrides, at_ms).unwrap().frames.bytes;
        (0..anchors).map(compile).collect()
    }

    /// Returns the number of held bytes that the cache holds too.
    fn cached<T: ?Sized>(held: &[Arc<T>], bytes: impl Fn(&T) -> usize) -> usize {
        held.iter().filter(|value| Arc::strong_count(value) > 1).map(|value| bytes(value)).sum()
    }

    #[test]
    fn the_windows_of_any_number_of_users_and_apps_stay_within_their_bytes() {
        let planner = planner();
        let other = again(&planner);
        // With 1000 overrides each takes some 9 kB, and its key ten times as much.
        let mut held = frames(&planner, 400, 1000);
        held.extend(frames(&other, 400, 1000));
        let each = held[0].len()
            + overrides_bytes(&(0..1000).map(|index| (format!("g{index}"), QuotaOverride::Unlimited)).collect());
        assert!(
            (held.len() * each) as u64 > FRAMES_BYTES + FRAMES_BYTES / 2,
            "more was compiled than there is room for"
        );
        let kept = cached(&held, |_| each);
        assert!(kept as u64 <= FRAMES_BYTES, "{kept} bytes are kept");
        assert!(kept as u64 > FRAMES_BYTES / 2, "{kept} bytes are kept: the room is used");
        // The weights are no smaller than what is there.
        assert!(planner.compiled.weight() >= kept as u64);
        let again = frames(&planner, 1, 1000);
        assert!(Arc::ptr_eq(&again[0], &frames(&planner, 1, 1000)[0]), "what was asked last is found");
    }

    #[test]
    fn small_windows_weigh_what_they_take() {
        let planner = planner();
        let held = frames(&planner, 1000, 0);
        let each = held[0].len() + size_of::<CompileKey>() + size_of::<Compiled>();
        assert!(planner.compiled.weight() >= (1000 * each) as u64);
        assert!(planner.compiled.weight() < (3000 * each) as u64);
    }

    #[test]
    fn a_catalog_never_finds_the_windows_of_another() {
        let planner = planner();
        let other = again(&planner);
        let [one, two] = [&planner, &other].map(|planner| frames(planner, 1, 0).remove(0));
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
                revision: [0; 8],
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
