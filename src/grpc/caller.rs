//! From a request to its caller and the caller's meter.

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

/// Who calls, and the meter of their app. Work takes it along, and so stays counted among the calls under way until it is done, even if
/// its caller has gone away.
pub(super) struct Called {
    admitted: Admitted,
    meter: Arc<Meter>,
}

impl Called {
    /// Whom the gate has let in. Where it was left out nobody is.
    pub(super) fn new<T>(apps: &Apps, request: &Request<T>) -> Result<Self, Status> {
        let admitted = request.extensions().get::<Admitted>().ok_or_else(|| status(Fault::Unauthenticated))?;
        let meter = apps.meter(&admitted.caller().app).map_err(status)?;
        Ok(Self { admitted: admitted.clone(), meter })
    }

    /// Who calls.
    pub(super) fn caller(&self) -> &Caller {
        self.admitted.caller()
    }

    /// Whose keys these are.
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
