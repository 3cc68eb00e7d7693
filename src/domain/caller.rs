//! The caller of an RPC.

use super::id::{AppId, UserId};

/// What a caller may do.
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

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose users, plans and reservations these are.
    pub app: AppId,
    /// What may be called.
    pub role: Role,
    /// The user that a public caller's token names. A secret one speaks for every user of its app.
    pub user: Option<UserId>,
}

impl Caller {
    /// Whoever may call everything of `app`.
    #[must_use]
    pub fn secret(app: AppId) -> Self {
        Self { app, role: Role::Secret, user: None }
    }

    /// Whether the caller may see how this user stands.
    #[must_use]
    pub fn may_see(&self, user: &UserId) -> bool {
        match self.role {
            Role::Secret => true,
            Role::Public => self.user.as_ref() == Some(user),
        }
    }
}
