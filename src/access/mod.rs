//! Who calls, and what they may: docs/adr/0009-access.md.

mod caller;
mod guard;
mod key;
mod token;

use std::sync::Arc;

use crate::domain::id::AppId;

pub use caller::{Caller, Role};
pub use guard::{Credentials, Guard, REFRESH, Verdict};
pub use key::{ApiKey, InvalidKey, named};
pub use token::{InvalidToken, LONGEST_SECONDS, mint};

/// Who is let in.
pub enum Access {
    /// Everybody, as this caller.
    Open(Arc<Caller>),
    /// Whoever has a key.
    Keys(Arc<Guard>),
}

impl Access {
    /// Everybody may call everything of the app `default`.
    #[must_use]
    pub fn open() -> Self {
        Self::Open(Arc::new(Caller::secret(AppId::default())))
    }
}
