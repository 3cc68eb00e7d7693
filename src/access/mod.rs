//! Authentication and authorization: the callers and what they may call. See docs/development/adr/0009-access.md.

mod guard;
mod key;
mod token;

use std::sync::Arc;

use crate::domain::fault::Fault;
use crate::domain::id::AppId;
use crate::tls::{IdentityApps, PeerIdentity};

pub use crate::domain::caller::{Caller, Role};
pub use guard::{Credentials, Guard, STALE, Verdict};
pub use key::{ApiKey, InvalidKey, named};
pub use token::{InvalidToken, LONGEST_SECONDS, mint};

/// Decides which callers are let in.
#[derive(Default)]
pub struct Access {
    /// Lets in callers with an API key. `None` where there are no keys.
    pub keys: Option<Arc<Guard>>,
    /// Lets in callers with a certificate that names one of these. Empty where certificates do not name apps.
    identities: IdentityApps,
    /// The caller for everybody, where there are neither keys nor such certificates.
    anybody: Option<Arc<Caller>>,
}

impl Access {
    /// Lets in everybody, to call everything of the app `default`.
    #[must_use]
    pub fn open() -> Self {
        Self { anybody: Some(Arc::new(Caller::secret(AppId::default()))), ..Self::default() }
    }

    /// Returns whether everybody may call everything.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.anybody.is_some()
    }

    /// Callers with one of these keys, or with a certificate that names one of these identities.
    #[must_use]
    pub fn new(keys: Option<Arc<Guard>>, identities: IdentityApps) -> Self {
        if keys.is_none() && identities.is_empty() {
            return Self::open();
        }
        Self { keys, identities, anybody: None }
    }

    /// Returns the caller. An API key takes precedence over a certificate.
    #[must_use]
    pub fn caller(&self, shown: Credentials<'_>, certificate: Option<&PeerIdentity>) -> Verdict {
        if let Some(anybody) = &self.anybody {
            return Verdict::Known(Arc::clone(anybody));
        }
        let by_certificate = || self.identities.app_for(certificate?);
        match (&self.keys, shown.key) {
            (Some(guard), Some(_)) => guard.caller(shown),
            (keys, _) => match by_certificate() {
                Some(app) => Verdict::Known(Arc::new(Caller::secret(app))),
                None if keys.is_some() => Verdict::Refused(Fault::Unauthenticated),
                None => Verdict::Refused(Fault::CertificateUnknown),
            },
        }
    }
}
