//! The reference model's GetUsage, and subscriptions.

use std::collections::BTreeMap;

use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{Answer, fault, invalid, row, timestamp};
use crate::operations::Quota;
use crate::price;
use crate::reference::{Model, Outcome};
use crate::sketch::{Group, MICRO, Unit, double};
use crate::user::{Subscription, User};
use crate::windows::{NEVER, Shown, Wanted};

/// What an upsert asks for; `None` keeps what is stored.
#[derive(Clone, Copy)]
pub struct Upsert<'a> {
    pub plan: &'a str,
    pub overrides: Option<&'a BTreeMap<String, Quota>>,
    pub end: Option<Option<i64>>,
    pub anchor: Option<i64>,
    /// The version that it is to change.
    pub etag: Option<u32>,
}

impl Model {
    pub fn usage(&mut self, replica: usize, user: usize, pattern: &str, at: Option<i64>) -> Outcome {
        let subscription = self.subscription_message(user);
        let Some((plan, anchor)) = self.deciding(replica, user)? else {
            return Err(Answer::Usage(v1::GetUsageResponse { subscription, ..Default::default() }));
        };
        let mut limits = Vec::new();
        for group in &plan.groups {
            if !pattern.is_empty() && !group.rules.iter().any(|rule| price::overlap(&rule.pattern, pattern)) {
                continue;
            }
            let wanted = Wanted { group, zone: plan.zone, cycle_anchor: anchor };
            let user = &mut self.users[user];
            match user.windows.at(wanted, user.now, at) {
                Some(Shown::Kept(window)) => {
                    limits.push(row(group, user.bounds(window), (user.windows[window].used, user.held(window))));
                }
                Some(Shown::Empty(start, end)) => limits.push(row(group, (start, end), (0, 0))),
                Some(Shown::Unopened) => {
                    self.cover("usage before the first use");
                    limits.push(row(group, (0, NEVER), (0, 0)));
                }
                None => self.cover("usage of a group without that window"),
            }
        }
        self.cover(if at.is_some() { "usage at a time" } else { "usage" });
        Err(Answer::Usage(v1::GetUsageResponse { subscription, limits, plan_id: plan.id }))
    }

    fn subscription_message(&self, user: usize) -> Option<v1::Subscription> {
        let User { name, subscription, .. } = &self.users[user];
        let Subscription { plan, start, end, anchor, fallen: _, version, overrides } = subscription.as_ref()?;
        let quota = |quota: &Quota| match quota {
            Quota::Amount(micros) => v1::quota::Limit::Amount(double(*micros)),
            Quota::Unlimited => v1::quota::Limit::Unlimited(true),
        };
        let quotas: BTreeMap<_, _> =
            overrides.iter().map(|(id, own)| (id.clone(), v1::Quota { limit: Some(quota(own)) })).collect();
        Some(v1::Subscription {
            user_id: name.clone(),
            plan_id: plan.clone(),
            start_time: Some(timestamp(*start)),
            end_time: end.map(timestamp),
            cycle_anchor: Some(timestamp(*anchor)),
            overrides: (!quotas.is_empty()).then_some(v1::QuotaOverrides { quotas }),
            etag: format!("v{version}"),
        })
    }

    pub fn subscription(&mut self, user: usize) -> Outcome {
        match self.subscription_message(user) {
            Some(subscription) => Ok(Answer::Subscription(Some(subscription))),
            None => Err(fault(Code::NotFound, "SUBSCRIPTION_NOT_FOUND")),
        }
    }

    /// Fields left out keep what is stored, while the subscription runs; after its end a new one begins, of which only the plan is kept.
    pub fn upsert(&mut self, number: u32, replica: usize, user: usize, asked: &Upsert<'_>) -> Outcome {
        let Upsert { plan: plan_id, overrides, end, anchor, etag } = *asked;
        let catalog = self.settings.catalogs[replica].clone();
        let now = self.users[user].now;
        let stored = self.users[user].subscription.clone();
        if stored.is_none() && etag.is_some() {
            self.cover("an etag where there is no subscription");
            return Err(fault(Code::Aborted, "ETAG_MISMATCH"));
        }
        let plan_id = match (&stored, plan_id) {
            (None, "") => return Err(invalid("INVALID_FIELD")),
            (Some(stored), "") => stored.plan.clone(),
            (_, named) => named.to_owned(),
        };
        let plan = catalog.plan(&plan_id).ok_or_else(|| invalid("PLAN_UNKNOWN"))?;
        for (id, own) in overrides.into_iter().flatten() {
            let group = plan.groups.iter().find(|group| group.id == *id).ok_or_else(|| invalid("GROUP_UNKNOWN"))?;
            if let Quota::Amount(micros) = own
                && in_units(*micros, group.unit).is_none_or(|(_, exact)| !exact)
            {
                self.cover("a quota that is finer than the unit");
                return Err(invalid("INVALID_FIELD"));
            }
        }
        // Whoever sends the same once more, after the end that it names, means the subscription that is there.
        let again = |stored: &Subscription| stored.end.is_some() && end == Some(stored.end) && stored.plan == plan_id;
        let kept = stored.as_ref().filter(|stored| !stored.ended(now) || again(stored));
        let wanted = Subscription {
            plan: plan_id.clone(),
            start: kept.filter(|kept| kept.plan == plan_id).map_or(now, |kept| kept.start),
            end: end.unwrap_or_else(|| kept.and_then(|kept| kept.end)),
            anchor: anchor.or(kept.map(|kept| kept.anchor)).unwrap_or(now),
            fallen: false,
            version: number,
            overrides: overrides.or(kept.map(|kept| &kept.overrides)).cloned().unwrap_or_default(),
        };
        if let Some(stored) = &stored
            && (Subscription { fallen: stored.fallen, version: stored.version, ..wanted.clone() }) == *stored
        {
            self.cover("an upsert that changes nothing");
            if etag.is_some_and(|etag| etag != stored.version) {
                self.cover("an upsert finds everything in place under another etag");
            }
            return self.subscription(user);
        }
        if let (Some(etag), Some(stored)) = (etag, &stored) {
            if etag != stored.version {
                self.cover("an etag that is not current");
                return Err(fault(Code::Aborted, "ETAG_MISMATCH"));
            }
            self.cover("an etag that is current");
        }
        if stored.as_ref().is_some_and(|stored| stored.end.is_some() && !stored.ended(now)) && end == Some(None) {
            self.cover("an end is cleared");
        }
        if stored.as_ref().is_some_and(|stored| stored.ended(now) && !stored.fallen) {
            self.cover("a renewal after an end that nobody has seen");
        }
        // What the user was on until now: an end that nobody has seen comes first.
        let default_plan = catalog.default_plan();
        if let (Some(default_plan), Some(stored)) = (default_plan, &stored) {
            self.fall(user, default_plan, Some(stored.anchor));
        }
        let last = match (&stored, default_plan) {
            (Some(stored), Some(default_plan)) if stored.ended(now) => Some(default_plan.id.clone()),
            (Some(stored), _) => Some(stored.plan.clone()),
            // A default plan that left nothing counts as no plan.
            (None, _) => self.users[user].default_used.clone().filter(|_| {
                let left = self.users[user].has_left_something();
                if !left {
                    *self.covered.entry("a default plan that left nothing").or_default() += 1;
                }
                left
            }),
        };
        let moved = stored.as_ref().is_some_and(|stored| stored.anchor != wanted.anchor);
        let ended = wanted.ended(now);
        let mut entered = if ended { default_plan.cloned() } else { Some(plan.clone()) };
        for group in entered.iter_mut().flat_map(|plan| &mut plan.groups).filter(|_| !ended) {
            group.quota = quota(group, &wanted.overrides);
        }
        let anchor = Some(wanted.anchor);
        self.users[user].subscription = Some(Subscription { fallen: ended && default_plan.is_some(), ..wanted });
        match (&entered, &last) {
            (Some(entered), Some(last)) if entered.id != *last => self.enter(user, entered, anchor, entered.change),
            (Some(entered), _) if moved => self.enter(user, entered, anchor, ""),
            (_, None) => self.cover("the first plan ever"),
            _ => {}
        }
        self.subscription(user)
    }

    pub fn cancel(&mut self, number: u32, user: usize, end: Option<i64>) -> Outcome {
        let now = self.users[user].now;
        if let Some(subscription) = self.users[user].subscription.as_mut().filter(|stored| !stored.ended(now)) {
            let end = Some(end.unwrap_or(now));
            if subscription.end != end {
                subscription.version = number;
            }
            subscription.end = end;
            subscription.fallen = false;
            self.cover("cancelled");
        }
        self.subscription(user)
    }
}

/// In smallest units, and whether that is exact; none if no counter can hold it.
fn in_units(micros: u128, unit: Unit) -> Option<(u128, bool)> {
    let scaled = micros * unit.scale();
    Some((scaled / MICRO, scaled.is_multiple_of(MICRO))).filter(|(units, _)| *units <= unit.most())
}

/// The quota in force. One of the user's own that was for an earlier plan, and is finer than this unit, is rounded down to it.
pub fn quota(group: &Group, overrides: &BTreeMap<String, Quota>) -> Option<u128> {
    match overrides.get(&group.id) {
        None => group.quota,
        Some(Quota::Unlimited) => None,
        Some(Quota::Amount(micros)) => {
            Some(in_units(*micros, group.unit).map_or(group.unit.most(), |(units, _)| units))
        }
    }
}
