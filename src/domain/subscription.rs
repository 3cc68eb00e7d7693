//! A subscription: which plan a user is on, since when, until when, with which quotas of its own.

use std::collections::BTreeMap;

use super::amount::{Quantity, Unit};
use super::plan::Quota;

/// Tells a version of a subscription from all others.
pub type Revision = [u8; 8];

/// A user's subscription, as it is stored. Times are milliseconds of the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Changes with every write, so that a script can tell whether a call was compiled for this one.
    pub revision: Revision,
    /// The plan's id in the catalog.
    pub plan_id: String,
    /// Since when the user is on this plan.
    pub start_ms: i64,
    /// The time at which it ends; none if it has no end.
    pub end_ms: Option<i64>,
    /// The time from which the windows of groups with `anchor: subscription_start` are counted.
    pub cycle_anchor_ms: i64,
    /// The default plan that the user fell to when the subscription ended, once a script has seen it.
    pub fallen_to: Option<String>,
    /// The overrides, by limit group id.
    pub overrides: BTreeMap<String, QuotaOverride>,
}

impl Subscription {
    /// Names this version of it for callers, who treat the name as opaque: the revision in lower-case hex.
    #[must_use]
    pub fn etag(&self) -> String {
        self.revision.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns whether it has ended at this time.
    #[must_use]
    pub fn has_ended(&self, now_ms: i64) -> bool {
        self.end_ms.is_some_and(|end_ms| now_ms >= end_ms)
    }
}

/// A quota for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaOverride {
    /// An amount in the group's unit.
    Amount(Quantity),
    /// Counts, and never denies.
    Unlimited,
}

impl QuotaOverride {
    /// Returns the quota of a group of this unit. One that was for an earlier plan may be finer than the unit, and is rounded down, or larger
    /// than its counter.
    #[must_use]
    pub fn in_unit(self, unit: Unit) -> Quota {
        match self {
            Self::Unlimited => Quota::Unlimited,
            Self::Amount(amount) => Quota::Limited(amount.in_units_rounded_down(unit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_has_ended_from_its_end_on_and_its_revision_names_it() {
        let ending_at = |end_ms| Subscription {
            revision: [0, 1, 0x9a, 0xff, 0, 0, 0, 0x10],
            plan_id: "free".to_owned(),
            start_ms: 1_000,
            end_ms,
            cycle_anchor_ms: 1_000,
            fallen_to: None,
            overrides: BTreeMap::new(),
        };
        for (now_ms, expected) in [(1_999, false), (2_000, true), (2_001, true)] {
            assert_eq!(ending_at(Some(2_000)).has_ended(now_ms), expected, "{now_ms}");
        }
        assert!(!ending_at(None).has_ended(i64::MAX));
        assert_eq!(ending_at(None).etag(), "00019aff00000010");
    }
}
