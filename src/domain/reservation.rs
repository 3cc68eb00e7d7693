//! A reservation as it is remembered, for callers that look it up.

use super::amount::{Unit, Units};
use super::answer::ReservationState;
use super::event::Event;
use super::id::ReservationId;

/// What happens at the deadline to what a reservation still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExpiry {
    /// It is given back.
    #[default]
    Release,
    /// It counts as used.
    Count,
}

/// A reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Names it.
    pub id: ReservationId,
    /// The reserved event, as far as the ledger keeps it: its name, the metadata that conditions of the plan ask for,
    /// and the quantities that the plan measures.
    pub event: Event,
    /// Its state now.
    pub state: ReservationState,
    /// Its deadline, in milliseconds of the Unix epoch.
    pub deadline_ms: i64,
    /// Every group that it matches, in the order of its plan.
    pub charges: Vec<Charge>,
    /// True if it was committed at or after the deadline, or after a release.
    pub late: bool,
    /// What happens, or has happened, at the deadline.
    pub on_expiry: OnExpiry,
}

/// The charge of a reservation in one limit group, in smallest units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The group's id in the plan of the reservation.
    pub group_id: String,
    /// The unit that it counts in.
    pub unit: Unit,
    /// The amount that was reserved.
    pub reserved: Units,
    /// The amount that was committed so far, or that the deadline has counted.
    pub committed: Units,
    /// The part of that which refunds have taken off.
    pub refunded: Units,
    /// Start and end of its window; none for a lifetime group.
    pub window_ms: Option<(i64, i64)>,
}
