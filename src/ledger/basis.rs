//! The basis that a call is compiled for: a guess at the user's subscription and windows, which the script checks.

use std::sync::Arc;

use super::formats;
use super::frames::Frames;
use super::message::Message;
use super::plan::CompiledPlan;
use crate::domain::subscription::Revision;

/// See the module.
#[derive(Debug, Clone)]
pub struct Basis {
    /// The revision of the user's subscription, if there is one.
    pub revision: Option<Revision>,
    /// True if the subscription has ended.
    pub ended: bool,
    /// The plan that decides.
    pub plan: InForce,
}

/// The plan in force.
#[derive(Debug, Clone)]
pub enum InForce {
    /// This one.
    Plan {
        /// The plan, as the scripts read it.
        plan: Arc<CompiledPlan>,
        /// The windows of the time, and the owner's own quotas.
        frames: Frames,
    },
    /// No plan: no subscription, and no default plan.
    None,
    /// A plan that the catalog does not have.
    Unknown(String),
}

impl InForce {
    /// Its id in the catalog; empty for none.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Plan { plan, .. } => &plan.id,
            Self::None => "",
            Self::Unknown(id) => id,
        }
    }

    /// The plan, if the catalog has it.
    #[must_use]
    pub fn known(&self) -> Option<&Arc<CompiledPlan>> {
        match self {
            Self::Plan { plan, .. } => Some(plan),
            Self::None | Self::Unknown(_) => None,
        }
    }

    /// The second argument of the scripts that it decides.
    fn message(&self) -> &[u8] {
        self.known().map_or(&[], |plan| &plan.message)
    }
}

impl Basis {
    /// The message of a call that the plan decides: `keys` makes its keys, with room for so many bytes more. The first
    /// argument is the basis and what `write` adds, the second one is the plan.
    pub(super) fn message(&self, keys: impl FnOnce(usize) -> Message, write: impl FnOnce(&mut Vec<u8>)) -> Message {
        let plan = self.plan.message();
        let mut message = keys(plan.len() + 512);
        message.argument(|bytes| {
            self.write(bytes);
            write(bytes);
        });
        message.argument(|bytes| bytes.extend_from_slice(plan));
        message
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let revision = self.revision.unwrap_or_default();
        let without =
            |in_force| formats::Basis { revision, ended: self.ended.into(), in_force, ..formats::Basis::default() };
        let basis = match &self.plan {
            InForce::None => without(0),
            InForce::Plan { plan, frames: Frames { arrangement, overrides, bytes, .. } } => formats::Basis {
                plan: plan.digest,
                arrangement: *arrangement,
                overrides: *overrides,
                frames: bytes.to_vec(),
                ..without(1)
            },
            InForce::Unknown(_) => without(2),
        };
        basis.write(bytes);
    }
}
