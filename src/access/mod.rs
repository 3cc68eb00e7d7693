//! Who calls, and what they may: docs/adr/0009-access.md.

mod caller;

pub use caller::{Caller, Role};

use std::sync::Arc;

use crate::domain::id::AppId;

/// Who is let in.
pub enum Access {
    /// Everybody, as this caller.
    Open(Arc<Caller>),
}

impl Access {
    /// Everybody may call everything of the app `default`.
    #[must_use]
    pub fn open() -> Self {
        Self::Open(Arc::new(Caller::secret(AppId::default())))
    }
}
