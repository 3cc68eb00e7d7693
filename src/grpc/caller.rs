//! Finds the caller of a request, and the caller's meter.

use std::ops::Deref;
use std::sync::Arc;

use tonic::{Request, Status};

use crate::access::Caller;
use crate::apps::Apps;
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, ReservationId, UserId};
use crate::meter::Meter;

use super::gate::Admitted;
use super::status::status;

/// The caller of a request, and the meter of the caller's app. Work takes it along, and so counts as a call in flight
/// until it is done, even if its caller has gone away.
pub(super) struct Called {
    admitted: Admitted,
    meter: Arc<Meter>,
}

impl Called {
    /// Returns the caller that the gate has let in. Where there is no gate, this fails.
    pub(super) fn new<T>(apps: &Apps, request: &Request<T>) -> Result<Self, Status> {
        let admitted = request.extensions().get::<Admitted>().ok_or_else(|| status(Fault::Unauthenticated))?;
        let meter = apps.meter(&admitted.caller().app).map_err(status)?;
        Ok(Self { admitted: admitted.clone(), meter })
    }

    /// Returns the caller.
    pub(super) fn caller(&self) -> &Caller {
        self.admitted.caller()
    }

    /// Returns the owner of the user's keys.
    pub(super) fn owner(&self, user: &UserId) -> Owner {
        Owner::new(&self.caller().app, user)
    }

    /// Another app's reservation is answered like one that nobody made.
    pub(super) fn check_owns(&self, id: &ReservationId) -> Result<(), Status> {
        let owns = id.owner.is_of(&self.caller().app);
        owns.then_some(()).ok_or_else(|| status(Fault::ReservationNotFound))
    }

    /// Public callers see the user that their token names.
    pub(super) fn check_sees(&self, user: &UserId) -> Result<(), Status> {
        self.caller().may_see(user).then_some(()).ok_or_else(|| status(Fault::NotYourUser))
    }
}

impl Deref for Called {
    type Target = Meter;

    fn deref(&self) -> &Meter {
        &self.meter
    }
}
