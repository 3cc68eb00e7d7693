//! The cases that measure scripts: one line each.

use super::Effort;
use super::lab::{Allowance, Place};

/// One of them.
#[derive(Debug, Clone)]
pub struct Case {
    /// `script/` section `/` name: filters and reports go by it.
    pub name: String,
    pub place: Place,
    pub allowance: Allowance,
    pub users: usize,
    /// How many reservations each user holds before.
    pub held: usize,
    pub work: Work,
    /// What is done in a round is split in so many parts, and Redis emptied before each: so that few users stay as they were.
    pub parts: usize,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Reserve with a request id.
    Reserve,
    ReserveWithoutId,
    /// Reserve by users who have a subscription stored.
    ReserveSubscribed,
    /// Commit with other quantities than were reserved.
    Commit,
    /// Commit of what was reserved.
    CommitAsReserved,
    Release,
    Track,
    TrackWithId,
    TrackEnforced,
    CanUse,
    GetUsage,
    Refund,
    /// A refund of some of what a reservation has committed.
    RefundReservation,
    /// Reserve that is denied.
    Denial,
    /// Reserve that was answered before.
    Replay,
    /// Reserve of an event that no group matches.
    Unmatched,
    /// Reserve, then Release.
    ReserveRelease,
    /// Reserve, then Commit.
    ReserveCommit,
    /// Reserve for one second: from then on as many lapse as are made.
    Lapsing,
    /// Reserve, of which eight at a time have the same id.
    RetryStorm,
}

impl Work {
    /// How many decisions one turn takes.
    pub fn decisions(self) -> usize {
        match self {
            Self::ReserveRelease | Self::ReserveCommit => 2,
            _ => 1,
        }
    }

    /// Whether each turn needs a reservation that was made before.
    pub fn needs_reservations(self) -> bool {
        matches!(self, Self::Commit | Self::CommitAsReserved | Self::Release | Self::RefundReservation | Self::Replay)
    }
}

/// How many users there are where it does not matter.
pub const USERS: usize = 10_000;

/// The numbers of limit groups, of users and of live holds that are compared.
pub const GROUPS: [usize; 4] = [1, 3, 10, 50];
pub const CROWDS: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
pub const HOLDS: [usize; 5] = [1, 10, 100, 1_000, 10_000];

impl Case {
    fn new(name: impl Into<String>, work: Work) -> Self {
        let allowance = Allowance::Plenty(3);
        Self { name: name.into(), place: Place::Memory, allowance, users: USERS, held: 0, work, parts: 1 }
    }
}

/// Every case.
pub fn all(effort: &Effort) -> Vec<Case> {
    let rpcs = [
        ("reserve", Work::Reserve),
        ("reserve-without-id", Work::ReserveWithoutId),
        ("reserve-subscribed", Work::ReserveSubscribed),
        ("reserve-replayed", Work::Replay),
        ("reserve-denied", Work::Denial),
        ("reserve-unmatched", Work::Unmatched),
        ("commit", Work::Commit),
        ("commit-as-reserved", Work::CommitAsReserved),
        ("release", Work::Release),
        ("track", Work::Track),
        ("track-with-id", Work::TrackWithId),
        ("track-enforced", Work::TrackEnforced),
        ("refund", Work::Refund),
        ("refund-of-reservation", Work::RefundReservation),
        ("can-use", Work::CanUse),
        ("get-usage", Work::GetUsage),
    ];
    let mut cases: Vec<Case> = rpcs.map(|(name, work)| Case::new(format!("script/rpc/{name}"), work)).into();
    for groups in GROUPS {
        let case = Case::new(format!("script/groups/{groups}"), Work::Reserve);
        cases.push(Case { allowance: Allowance::Plenty(groups), ..case });
    }
    for users in CROWDS {
        let case = Case::new(format!("script/users/{users}"), Work::Reserve);
        let place = if users == 1_000_000 { Place::Crowd } else { Place::Memory };
        // At most 20 reservations per user, so that users are compared and not what each of them holds.
        let parts = (effort.decisions / (20 * users)).max(1);
        cases.push(Case { place, users: users.min(effort.most_users), parts, ..case });
    }
    for held in HOLDS {
        // The largest number that a user may hold, with room for those in flight.
        let held_before = if held == 10_000 { 9_900 } else { held - 1 };
        let users = (20_000 / held).clamp(2, 2_000);
        let case = Case::new(format!("script/holds/{held}"), Work::ReserveRelease);
        cases.push(Case { held: held_before, users, ..case });
    }
    cases.extend([
        Case { users: 1, ..Case::new("script/patterns/hot-user", Work::ReserveCommit) },
        Case { users: 1, ..Case::new("script/patterns/hot-user-denied", Work::Denial) },
        Case { users: 2_000, ..Case::new("script/patterns/lapsing", Work::Lapsing) },
        Case::new("script/patterns/retry-storm", Work::RetryStorm),
        Case::new("script/patterns/reserve-commit", Work::ReserveCommit),
    ]);
    let places = [
        ("memory", Place::Memory),
        ("together", Place::Together),
        ("append-only", Place::AppendOnly),
        ("cluster", Place::Cluster),
    ];
    for (name, place) in places {
        for (rpc, work) in [("reserve", Work::Reserve), ("commit", Work::Commit), ("track", Work::Track)] {
            cases.push(Case { place, ..Case::new(format!("script/redis/{name}/{rpc}"), work) });
        }
    }
    for case in &mut cases {
        if case.work == Work::Denial {
            case.allowance = Allowance::Scarce;
        }
    }
    cases
}
