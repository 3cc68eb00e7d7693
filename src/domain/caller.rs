//! The caller of an RPC.

use super::id::{AppId, UserId};

/// The role of a caller: what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything of its app: for servers.
    Secret,
    /// GetUsage for the one user that a token names, and PlanService: for browsers and apps on phones.
    Public,
}

impl Role {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Public => "public",
        }
    }
}

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The app that owns these users, plans and reservations.
    pub app: AppId,
    /// The role: what may be called.
    pub role: Role,
    /// The user that a public caller's token names. A secret one speaks for every user of its app.
    pub user: Option<UserId>,
}

impl Caller {
    /// A caller that may call everything of `app`.
    #[must_use]
    pub fn secret(app: AppId) -> Self {
        Self { app, role: Role::Secret, user: None }
    }

    /// Returns whether the caller may see the usage of this user.
    #[must_use]
    pub fn may_see(&self, user: &UserId) -> bool {
        match self.role {
            Role::Secret => true,
            Role::Public => self.user.as_ref() == Some(user),
        }
    }
}
