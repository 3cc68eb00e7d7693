//! The answers of the ledger: decisions, settlements, standings. A denial is one of these; a fault is not.

use super::amount::{Unit, Units};
use super::id::ReservationId;
use super::plan::{Quota, Threshold};

/// What ResetUsage answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// The standings of the groups that were reset.
    pub standings: Vec<Standing>,
    /// True if it is the answer to an earlier call with the same request id.
    pub replayed: bool,
}

/// A user's standing in one limit group. Amounts are in smallest units, times in milliseconds of the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The group's id in the plan.
    pub group_id: String,
    /// The group's name for people.
    pub label: String,
    /// The unit it counts in.
    pub unit: Unit,
    /// The quota of the window.
    pub quota: Quota,
    /// True if the group denies events beyond its quota.
    pub hard: bool,
    /// `[start, end)`; none for a lifetime group.
    pub window_ms: Option<(i64, i64)>,
    /// Consumed.
    pub used: Units,
    /// Held by live reservations.
    pub held: Units,
    /// The amount that this call asked of the group.
    pub requested: Units,
    /// The amount that is missing, where the group denies.
    pub shortfall: Units,
    /// True if the ledger no longer keeps the reservation's window.
    pub window_closed: bool,
    /// The part of a refund that could not be given back.
    pub unapplied: Units,
}

impl Standing {
    /// Returns the rest of the quota; none if it is unlimited.
    #[must_use]
    pub fn remaining(&self) -> Option<Units> {
        match self.quota {
            Quota::Limited(quota) => Some(quota.saturating_sub(self.used).saturating_sub(self.held)),
            Quota::Unlimited => None,
        }
    }

    /// Returns whether this group denies the call that was denied. A quota of 0 denies every event, also one that costs
    /// nothing: its shortfall is 0 then.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.shortfall > 0 || (self.hard && self.quota == Quota::Limited(0))
    }

    /// Returns whether more is used and held than the quota.
    #[must_use]
    pub fn exceeded(&self) -> bool {
        self.would_exceed(0)
    }

    /// Returns whether usage and holds would exceed the quota with `more` added.
    #[must_use]
    pub fn would_exceed(&self, more: Units) -> bool {
        matches!(self.quota, Quota::Limited(quota) if self.used + self.held + more > quota)
    }
}

/// A threshold that consumption has crossed in one window. Amounts are in smallest units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossed {
    /// The group's id in the plan.
    pub group_id: String,
    /// The group's name for people.
    pub label: String,
    /// The unit it counts in.
    pub unit: Unit,
    /// The threshold.
    pub threshold: Threshold,
    /// Consumed, after it was crossed.
    pub used: Units,
    /// The quota of the window.
    pub quota: Quota,
    /// `[start, end)`; none for a lifetime group.
    pub window_ms: Option<(i64, i64)>,
}

/// The reason why a call was denied or counted nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    LimitReached,
    UnmatchedEvent,
    NoSubscription,
}

/// The state of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReservationState {
    Held,
    Committed,
    Released,
    Expired,
}

/// The answer to Reserve and CanUse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The reason for a denial; none if it was allowed.
    pub denied: Option<Reason>,
    /// Every matched group, in the catalog's order.
    pub standings: Vec<Standing>,
    /// The time until another attempt may succeed, from now; none if waiting does not help.
    pub retry_after_ms: Option<u64>,
}

/// The hold of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Names it.
    pub id: ReservationId,
    /// Its state now.
    pub state: ReservationState,
    /// Its deadline.
    pub deadline_ms: i64,
    /// True if an earlier call with the same request id made it.
    pub replayed: bool,
}

/// The answer to Commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The reservation's state now.
    pub state: ReservationState,
    /// The reservation's groups, in its windows.
    pub standings: Vec<Standing>,
    /// More was used than was held.
    pub overage: bool,
    /// True if it came at or after the deadline, or after a release.
    pub late: bool,
    /// True if it had been committed before.
    pub replayed: bool,
    /// True if a partial commit has found a hard group without room for more.
    pub exhausted: bool,
    /// The deadline, after a partial commit.
    pub deadline_ms: Option<i64>,
    /// The thresholds that the call has crossed, and the lapses that it wrote.
    pub crossed: Vec<Crossed>,
}

/// The answer to Extend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// The reason for a denial; none if it was extended.
    pub denied: Option<Reason>,
    /// The deadline as it is now.
    pub deadline_ms: i64,
    /// The reservation's groups, in its windows.
    pub standings: Vec<Standing>,
    /// The time until another attempt may succeed, from now; none if waiting does not help.
    pub retry_after_ms: Option<u64>,
    /// True if an earlier call with the same request id has extended it.
    pub replayed: bool,
}

/// The answer to Release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The reservation's state now.
    pub state: ReservationState,
    /// The reservation's groups, in its windows.
    pub standings: Vec<Standing>,
    /// True if it had been released before.
    pub replayed: bool,
}

/// The answer to Track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// The reason why it was counted nowhere; none if it was counted.
    pub uncounted: Option<Reason>,
    /// Names what was counted; empty if nothing was.
    pub event_id: String,
    /// Every matched group, in the catalog's order.
    pub standings: Vec<Standing>,
    /// True if it had been counted before.
    pub replayed: bool,
    /// The thresholds that the call has crossed, and the lapses that it wrote.
    pub crossed: Vec<Crossed>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(quota: Quota, used: Units, held: Units) -> Standing {
        Standing {
            group_id: "tokens_total".to_owned(),
            label: "Tokens".to_owned(),
            unit: Unit::Tokens,
            quota,
            hard: true,
            window_ms: None,
            used,
            held,
            requested: 0,
            shortfall: 0,
            window_closed: false,
            unapplied: 0,
        }
    }

    #[test]
    fn what_is_used_and_held_is_not_left_and_never_less_than_nothing() {
        let cases = [((0, 0), 100), ((60, 30), 10), ((60, 40), 0), ((60, 41), 0), ((101, 0), 0), ((101, 30), 0)];
        for ((used, held), expected) in cases {
            assert_eq!(standing(Quota::Limited(100), used, held).remaining(), Some(expected), "{used} {held}");
        }
        assert_eq!(standing(Quota::Unlimited, 60, 30).remaining(), None);
    }

    #[test]
    fn a_quota_is_exceeded_above_it_and_not_by_what_fills_it() {
        for ((used, held, more), expected) in
            [((60, 40, 0), false), ((60, 41, 0), true), ((60, 30, 10), false), ((60, 30, 11), true)]
        {
            let standing = standing(Quota::Limited(100), used, held);
            assert_eq!(standing.would_exceed(more), expected, "{used} {held} {more}");
            assert_eq!(standing.exceeded(), used + held > 100, "{used} {held}");
        }
        assert!(!standing(Quota::Unlimited, 60, 41).would_exceed(1_000_000));
    }

    #[test]
    fn a_quota_of_0_denies_also_what_costs_nothing() {
        let full = Standing { shortfall: 1, ..standing(Quota::Limited(100), 100, 0) };
        assert!(full.denies());
        assert!(!standing(Quota::Limited(100), 100, 0).denies(), "another group denies");
        assert!(standing(Quota::Limited(0), 0, 0).denies());
        assert!(!Standing { hard: false, ..standing(Quota::Limited(0), 0, 0) }.denies());
        assert!(!standing(Quota::Unlimited, 0, 0).denies());
    }
}
