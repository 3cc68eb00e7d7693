//! The use cases of subscriptions: one short function per RPC.
//!
//! A change is read, merged here, and written only if nobody wrote in between. The script that writes it also applies what the
//! entered plan does to counters, as the first one that sees the change.

use std::collections::BTreeMap;

use crate::domain::fault::Fault;
use crate::domain::id::{Owner, random};
use crate::domain::plan::Plan;
use crate::domain::subscription::{QuotaOverride, Subscription};
use crate::ledger::{Apply, NoAnswer, PutCall, Step, Stored};
use crate::meter::Meter;
use crate::planner::Compiled;
use crate::telemetry::{metrics, outcomes};

/// The number of times a change is tried against concurrent ones before it fails.
const ATTEMPTS: usize = 16;

/// The arguments of UpsertSubscription. `None` keeps the stored value.
#[derive(Debug, Default)]
pub struct Upsert {
    /// The plan to be on.
    pub plan_id: Option<String>,
    /// Replaces the stored map.
    pub overrides: Option<BTreeMap<String, QuotaOverride>>,
    /// The time at which it ends; `Some(None)` clears it.
    pub end_ms: Option<Option<i64>>,
    /// The time from which windows are counted.
    pub cycle_anchor_ms: Option<i64>,
    /// The version of the subscription that it is to change.
    pub etag: Option<String>,
}

/// The stored data of a user when a change begins.
impl Stored {
    /// The subscription, if it runs.
    fn running(&self) -> Option<&Subscription> {
        self.subscription.as_ref().filter(|subscription| !subscription.has_ended(self.now_ms))
    }

    /// Returns the plan that the user was on last. A user whose subscription has ended is on the default plan since.
    fn last_plan<'a>(&'a self, default_plan: Option<&'a Plan>) -> Option<&'a str> {
        match &self.subscription {
            Some(subscription) if subscription.has_ended(self.now_ms) => {
                Some(default_plan.map_or(&subscription.plan_id, |plan| &plan.id))
            }
            Some(subscription) => Some(&subscription.plan_id),
            None => Some(self.plan.as_str()).filter(|plan| !plan.is_empty()),
        }
    }

    /// The anchor of a subscription that has ended on another plan than the default one, if no script has seen that yet.
    fn unseen_end(&self, default_plan: &Plan) -> Option<i64> {
        let ended = self.subscription.as_ref().filter(|stored| stored.has_ended(self.now_ms))?;
        (ended.fallen_to.is_none() && ended.plan_id != default_plan.id).then_some(ended.cycle_anchor_ms)
    }
}

impl Meter {
    /// Puts a user on a plan, or changes the stored subscription.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn upsert_subscription(&self, owner: &Owner, upsert: &Upsert) -> Result<Subscription, Fault> {
        for _ in 0..ATTEMPTS {
            let before = self.ledger.subscription(owner).await?;
            if before.subscription.is_none() && upsert.etag.is_some() {
                return Err(Fault::EtagMismatch);
            }
            let plan = self.wanted_plan(&before, upsert)?;
            check_overrides(plan, upsert)?;
            let default_plan = self.planner.catalog().default_plan();
            let mut wanted = merge(&before, plan, upsert);
            if let Some(stored) = &before.subscription
                && same(stored, &wanted)
            {
                return Ok(stored.clone());
            }
            // Only now, as a retry finds everything in place under another etag. The script writes only over what was read here.
            if let (Some(etag), Some(stored)) = (&upsert.etag, &before.subscription)
                && *etag != stored.etag()
            {
                return Err(Fault::EtagMismatch);
            }
            // A subscription that has ended already leaves the user on the default plan.
            let none = BTreeMap::new();
            let (entered, overrides) = if wanted.has_ended(before.now_ms) {
                wanted.fallen_to = default_plan.map(|plan| plan.id.clone());
                (default_plan, &none)
            } else {
                (Some(plan), &wanted.overrides)
            };
            let mut steps = Vec::new();
            // The end comes first, also if nobody has seen it.
            if let Some(plan) = default_plan
                && let Some(anchor_ms) = before.unseen_end(plan)
            {
                let compiled = self.planner.compiled(plan, Some(anchor_ms), &none, before.now_ms)?;
                steps.push(step(Apply::Enter, compiled));
            }
            // Nothing of it for the first plan ever, or none at all.
            if let (Some(entered), Some(last)) = (entered, before.last_plan(default_plan)) {
                let enters = last != entered.id;
                // An open window waits for nothing else: neither for a catalog edit nor for other overrides.
                // Who was on the default plan without a subscription had no anchor that could move.
                let stored = before.subscription.as_ref();
                let moved = stored.is_some_and(|stored| stored.cycle_anchor_ms != wanted.cycle_anchor_ms);
                if enters || moved {
                    let anchor_ms = Some(wanted.cycle_anchor_ms);
                    let compiled = self.planner.compiled(entered, anchor_ms, overrides, before.now_ms)?;
                    steps.push(step(if enters { Apply::Enter } else { Apply::Realign }, compiled));
                }
            }
            let written = self.write(owner, &before, &wanted, &steps).await?;
            if written {
                return Ok(wanted);
            }
        }
        metrics().contended.inc();
        Err(Fault::Contended)
    }

    /// The subscription as it is stored.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn subscription(&self, owner: &Owner) -> Result<Subscription, Fault> {
        let before = self.ledger.subscription(owner).await?;
        before.subscription.ok_or(Fault::SubscriptionNotFound)
    }

    /// Ends a subscription, now or at a time.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn cancel_subscription(&self, owner: &Owner, end_ms: Option<i64>) -> Result<Subscription, Fault> {
        for _ in 0..ATTEMPTS {
            let before = self.ledger.subscription(owner).await?;
            let Some(running) = before.running() else {
                return before.subscription.ok_or(Fault::SubscriptionNotFound);
            };
            let end_ms = Some(end_ms.unwrap_or(before.now_ms));
            if running.end_ms == end_ms {
                return Ok(running.clone());
            }
            let wanted = Subscription { end_ms, revision: random(), ..running.clone() };
            if self.write(owner, &before, &wanted, &[]).await? {
                return Ok(wanted);
            }
        }
        metrics().contended.inc();
        Err(Fault::Contended)
    }

    /// Deletes everything of a user.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn delete_user(&self, owner: &Owner) -> Result<(), Fault> {
        let deleted = self.ledger.delete_user(owner).await;
        self.planner.remember(owner, None);
        deleted
    }

    /// Writes `wanted`, unless another change was written first.
    async fn write(
        &self,
        owner: &Owner,
        before: &Stored,
        wanted: &Subscription,
        steps: &[Step],
    ) -> Result<bool, Fault> {
        match self.ledger.put_subscription(owner, &PutCall { before, wanted, steps }).await {
            Ok(answer) => {
                outcomes::clocks_corrected(answer.corrected_clocks);
                self.planner.remember(owner, Some(wanted.clone()));
                Ok(true)
            }
            Err(NoAnswer::Stale(_)) => Ok(false),
            Err(NoAnswer::Fault(fault)) => Err(fault),
        }
    }

    fn wanted_plan(&self, before: &Stored, upsert: &Upsert) -> Result<&Plan, Fault> {
        let stored = before.subscription.as_ref().map(|stored| stored.plan_id.as_str());
        let invalid = |problem: String, reason| Fault::Invalid { field: "plan_id".to_owned(), problem, reason };
        let Some(id) = upsert.plan_id.as_deref().or(stored) else {
            return Err(invalid(
                "is empty, and the user has no subscription to take the plan from: name a plan".to_owned(),
                "INVALID_FIELD",
            ));
        };
        self.planner.catalog().plan(id).ok_or_else(|| {
            let known = some_of(self.planner.catalog().plans().iter().map(|plan| plan.id.as_str()));
            invalid(format!("{id:?} is not in the catalog, which has: {known}"), "PLAN_UNKNOWN")
        })
    }
}

/// The subscription that the call asks for.
fn merge(before: &Stored, plan: &Plan, upsert: &Upsert) -> Subscription {
    let now_ms = before.now_ms;
    // A retry of a call whose end has passed finds its own subscription, although that has ended.
    let retried = before
        .subscription
        .as_ref()
        .filter(|stored| stored.end_ms.is_some() && upsert.end_ms == Some(stored.end_ms) && stored.plan_id == plan.id);
    let kept = before.running().or(retried);
    let same_plan = kept.filter(|kept| kept.plan_id == plan.id);
    Subscription {
        revision: random(),
        plan_id: plan.id.clone(),
        start_ms: same_plan.map_or(now_ms, |kept| kept.start_ms),
        end_ms: upsert.end_ms.unwrap_or_else(|| kept.and_then(|kept| kept.end_ms)),
        cycle_anchor_ms: upsert.cycle_anchor_ms.or(kept.map(|kept| kept.cycle_anchor_ms)).unwrap_or(now_ms),
        fallen_to: None,
        overrides: upsert.overrides.clone().or(kept.map(|kept| kept.overrides.clone())).unwrap_or_default(),
    }
}

/// Returns whether they are the same for every caller.
fn same(stored: &Subscription, wanted: &Subscription) -> bool {
    Subscription { revision: stored.revision, fallen_to: stored.fallen_to.clone(), ..wanted.clone() } == *stored
}

fn check_overrides(plan: &Plan, upsert: &Upsert) -> Result<(), Fault> {
    for (id, quota) in upsert.overrides.iter().flatten() {
        let field = format!("overrides.quotas[{id:?}]");
        let Some(group) = plan.groups.iter().find(|group| group.id == *id) else {
            let known = some_of(plan.groups.iter().map(|group| group.id.as_str()));
            let problem = format!("names no limit group of plan {:?}, which has: {known}", plan.id);
            return Err(Fault::Invalid { field, problem, reason: "GROUP_UNKNOWN" });
        };
        if let QuotaOverride::Amount(amount) = quota
            && amount.in_units(group.unit).is_none()
        {
            let unit = group.unit;
            let finest = 1.0 / unit.scale() as f64;
            let most = unit.to_f64(unit.max_units());
            let problem = format!("must be a multiple of {finest} {} up to {most}", unit.as_str());
            return Err(Fault::Invalid { field, problem, reason: "INVALID_FIELD" });
        }
    }
    Ok(())
}

/// The first few ids, for an answer: those of a large catalog would pass the clients' limits for headers.
fn some_of<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 20;
    let mut ids = ids.peekable();
    let mut some: Vec<_> = ids.by_ref().take(MOST).collect();
    if ids.peek().is_some() {
        some.push("...");
    }
    some.join(", ")
}

fn step(apply: Apply, compiled: Compiled) -> Step {
    Step { apply, plan: compiled.plan, frames: compiled.frames }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_a_few_of_many_ids() {
        let ids: Vec<_> = (0..1000).map(|number| format!("plan-{number}")).collect();
        let some = |count: usize| some_of(ids[..count].iter().map(String::as_str));
        assert_eq!((some(0), some(2)), (String::new(), "plan-0, plan-1".to_owned()));
        assert!(some(20).ends_with("plan-19") && some(21).ends_with("plan-19, ..."));
    }
}
