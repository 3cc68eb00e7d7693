//! From a request to its caller and the caller's meter.

use std::sync::Arc;

use tonic::{Request, Status};

use crate::access::Caller;
use crate::apps::Apps;
use crate::domain::fault::Fault;
use crate::domain::id::{Owner, ReservationId, UserId};
use crate::meter::Meter;

use super::status::status;

/// Who calls, and the meter of their app.
pub(super) struct Called {
    pub(super) caller: Arc<Caller>,
    pub(super) meter: Arc<Meter>,
}

impl Called {
    /// Whom the access layer has let in. Where it was left out nobody is.
    pub(super) fn new<T>(apps: &Apps, request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Arc<Caller>>().ok_or_else(|| status(Fault::Unauthenticated))?;
        let meter = apps.meter(&caller.app).map_err(status)?;
        Ok(Self { caller: Arc::clone(caller), meter })
    }

    /// For a call on this user of the caller's app.
    pub(super) fn on(self, user: &UserId) -> (Arc<Meter>, Owner) {
        let owner = Owner::new(&self.caller.app, user);
        (self.meter, owner)
    }

    /// For settling this reservation. Another app's is answered like one that nobody made.
    pub(super) fn settling(self, id: &ReservationId) -> Result<Arc<Meter>, Fault> {
        if self.caller.owns(id) { Ok(self.meter) } else { Err(Fault::ReservationNotFound) }
    }
}
