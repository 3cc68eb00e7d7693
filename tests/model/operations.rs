//! What can be asked, as plain data: a sequence of operations can be run, shortened and run again.

use std::collections::BTreeMap;

use crate::sketch::Event;

/// One operation. Its number names it in others, also after some before it were taken away.
#[derive(Debug, Clone)]
pub struct Operation {
    pub number: u32,
    /// Which replica is asked; each has a catalog and a clock of its own.
    pub replica: usize,
    pub user: usize,
    pub call: Call,
}

#[derive(Debug, Clone)]
pub enum Call {
    Reserve {
        event: Event,
        ttl_ms: Option<i64>,
        request_id: String,
        on_expiry: OnExpiry,
    },
    Commit {
        of: u32,
        actual: Option<Actual>,
        partial: bool,
        ttl_ms: Option<i64>,
    },
    Extend {
        of: u32,
        ttl_ms: Option<i64>,
        add: Option<Actual>,
        request_id: String,
    },
    Release {
        of: u32,
    },
    Track {
        event: Event,
        request_id: String,
        enforce: bool,
        refund: Option<Refund>,
        /// When it happened.
        at: Option<When>,
    },
    /// Of these groups, or of all.
    Reset {
        groups: Vec<String>,
        request_id: String,
    },
    CanUse {
        event: Event,
    },
    /// GetReservation.
    Reservation {
        of: u32,
    },
    /// ListReservations: all pages.
    Reservations {
        page_size: i32,
    },
    Usage {
        pattern: String,
        at: Option<When>,
    },
    Upsert {
        plan: String,
        overrides: Option<BTreeMap<String, Quota>>,
        /// `None` of these is `clear_end_time`.
        end: Option<Option<When>>,
        anchor: Option<When>,
        /// The version that this operation has made of the subscription; one that is none's where it has made none.
        etag: Option<u32>,
        wrong_end: Option<WrongEnd>,
    },
    Subscription,
    Cancel {
        end: Option<When>,
    },
    Delete,
    /// Not a call: Redis's clock goes on.
    Step(When),
    /// Not a call: Redis's clock is set so many milliseconds forwards or backwards.
    Jump(i64),
}

impl Call {
    /// A Reserve without an id, which gives back at its deadline.
    pub fn reserve(event: Event, ttl_ms: Option<i64>) -> Self {
        Self::Reserve { event, ttl_ms, request_id: String::new(), on_expiry: OnExpiry::Unsaid }
    }

    /// The final commit.
    pub fn commit(of: u32, actual: Option<Actual>) -> Self {
        Self::Commit { of, actual, partial: false, ttl_ms: None }
    }
}

/// What a Reserve says of its deadline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OnExpiry {
    /// Nothing, which means the same as to give back.
    Unsaid,
    Release,
    Count,
}

/// What no upsert takes for an end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WrongEnd {
    /// The Unix epoch.
    Epoch,
    /// An end, and that there is none.
    Both,
}

/// Of which reservation a refund is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refund {
    pub of: u32,
    /// Named in metadata `reservationId`, rather than by the field.
    pub in_metadata: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Actual {
    pub quantity: Option<u128>,
    pub quantities: BTreeMap<String, u128>,
    /// Only of a final commit.
    pub metadata: BTreeMap<String, String>,
}

impl Actual {
    /// Whether it names this quantity, by a number or in the metadata.
    pub fn names(&self, name: &str) -> bool {
        self.names_by_number(name) || self.metadata.contains_key(name)
    }

    fn names_by_number(&self, name: &str) -> bool {
        self.quantities.contains_key(name) || (name == "quantity" && self.quantity.is_some())
    }

    /// What it says of this quantity; 0 if it says nothing.
    pub fn of(&self, name: &str) -> u128 {
        let own = if name == "quantity" { self.quantity } else { None };
        self.quantities.get(name).copied().or(own).unwrap_or_default()
    }

    /// What is named now, and what was named before of other quantities.
    pub fn then(&self, now: &Self) -> Self {
        let mut named = self.clone();
        for name in now.quantities.keys().map(String::as_str).chain(now.quantity.map(|_| "quantity")) {
            named.quantities.insert(name.to_owned(), now.of(name));
        }
        // A measured name in the metadata counts as a named quantity.
        for name in now.metadata.keys().filter(|name| !now.names_by_number(name)) {
            named.quantities.remove(name);
            if name == "quantity" {
                named.quantity = None;
            }
        }
        named.metadata.clone_from(&now.metadata);
        named
    }

    /// It has no number.
    pub fn is_numberless(&self) -> bool {
        self.quantity.is_none() && self.quantities.is_empty()
    }

    /// Names nothing.
    pub fn is_empty(&self) -> bool {
        self.is_numberless() && self.metadata.is_empty()
    }

    /// Names nothing, or only zeros.
    pub fn is_nothing(&self) -> bool {
        self.quantity.iter().chain(self.quantities.values()).all(|amount| *amount == 0)
    }
}

/// A quota of the user's own, in millionths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quota {
    Amount(u128),
    Unlimited,
}

/// A time, relative to what the model knows; milliseconds.
#[derive(Debug, Clone)]
pub enum When {
    /// From the user's time.
    After(i64),
    /// From the deadline of the reservation made by this operation.
    Deadline(u32, i64),
    /// From the latest deadline that the reservation made by this operation can have.
    LastDeadline(u32, i64),
    /// From when the reservation or the event of this operation is forgotten.
    Forgotten(u32, i64),
    /// From the end of the current window of the group with this number in the plan.
    WindowEnd(usize, i64),
    /// From the start of the open window with this number, of those that follow a cycle anchor.
    WindowStart(usize, i64),
    /// From the start of the window with this number, of all that were ever opened.
    AnyWindowStart(usize, i64),
    /// From the end of the subscription.
    SubscriptionEnd(i64),
}
