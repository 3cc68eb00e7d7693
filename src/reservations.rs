//! The use cases of reservations that are looked up: GetReservation and ListReservations.

use std::collections::HashSet;

use crate::domain::fault::Fault;
use crate::domain::id::{Field, Owner, ReservationId};
use crate::domain::reservation::Reservation;
use crate::ledger::{Found, ListCall, Position, Scan};
use crate::meter::Meter;

/// The number of times that one page asks Redis. What a user has settled lately may be much more than what is live, and is passed over.
const MOST_CALLS: usize = 16;

/// The least and the most that one call reads, in fields and values of a memory.
const COUNTS: (usize, usize) = (20, 1000);

/// The size of a page, in bytes, from which on it takes no more holds.
const PAGE_BYTES: usize = 1 << 20;

/// The arguments of ListReservations.
#[derive(Debug)]
pub struct Listing {
    /// The most reservations to return.
    pub page_size: usize,
    /// Where the page before has ended.
    pub from: Position,
}

/// A page of a user's live holds.
#[derive(Debug)]
pub struct Page {
    /// The holds; none of them comes twice.
    pub reservations: Vec<Reservation>,
    /// Where the next page begins; none after the last one.
    pub next: Option<Position>,
}

impl Meter {
    /// Returns a reservation as it is remembered.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn reservation(&self, id: &ReservationId) -> Result<Reservation, Fault> {
        self.ledger.reservation(id).await
    }

    /// Lists live holds of a user: as many as fit on a page.
    ///
    /// # Errors
    /// See the RPC.
    pub async fn reservations(&self, owner: &Owner, listing: Listing) -> Result<Page, Fault> {
        let Listing { page_size, from: mut position } = listing;
        let mut filling = Filling { page_size, ..Filling::default() };
        for call in 0..MOST_CALLS {
            if filling.is_full() || position.is_end() {
                break;
            }
            let room = page_size - filling.holds.len();
            // The more, the longer nothing was found.
            let count = ((2 * room) << call.min(10)).clamp(COUNTS.0, COUNTS.1);
            let fields: Vec<Field> = position.left.drain(..room.min(position.left.len())).collect();
            let call = ListCall { fields: &fields, scan: position.scan, count: i64::try_from(count).unwrap_or(1000) };
            let (found, scan) = self.ledger.live_holds(owner, &call).await?;
            // Where nothing is held any more, there is nothing to look for.
            if fields.is_empty() || scan == Scan::Nothing {
                position.scan = scan;
            }
            filling.take(found);
        }
        position.left.splice(0..0, filling.left);
        let mut reservations = Vec::with_capacity(filling.holds.len());
        for found in &filling.holds {
            reservations.push(self.ledger.described(owner, found).await?);
        }
        let next = Some(position).filter(|position| !position.is_end());
        Ok(Page { reservations, next })
    }
}

/// A page that is being filled.
#[derive(Default)]
struct Filling {
    page_size: usize,
    bytes: usize,
    seen: HashSet<Field>,
    holds: Vec<Found>,
    /// Those that have no room.
    left: Vec<Field>,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.holds.len() >= self.page_size || self.bytes >= PAGE_BYTES
    }

    fn take(&mut self, found: Vec<Found>) {
        for hold in found {
            if !self.seen.insert(hold.field) {
                continue;
            }
            if self.is_full() {
                self.left.push(hold.field);
            } else {
                self.bytes += hold.weight();
                self.holds.push(hold);
            }
        }
    }
}
