//! `user_delete`: everything of a user goes.

use serde::Deserialize;
use serde_bytes::ByteBuf;

use super::answer::{About, NoAnswer, unfitting};
use super::message::Message;
use super::{Ledger, keys};
use crate::domain::fault::Fault;
use crate::domain::id::{Field, Owner};

/// The number of keys that one command deletes.
const AT_ONCE: usize = 1000;

/// The answer of `user_delete`: the live holds.
#[derive(Deserialize)]
struct Deleted {
    deleted: Vec<ByteBuf>,
}

impl Ledger {
    /// Deletes everything of a user.
    ///
    /// # Errors
    /// [`Fault::Unavailable`], or [`Fault::Internal`] for an answer that is not understood.
    pub async fn delete_user(&self, owner: &Owner) -> Result<(), Fault> {
        let packed = self.run(&self.scripts.user_delete, owner, Message::about(owner, 0)).await?;
        let Ok(Deleted { deleted }) = rmp_serde::from_slice(&packed) else {
            return match self.answer(&packed, About::default()).await {
                Err(NoAnswer::Fault(fault)) => Err(fault),
                other => Err(unfitting(other)),
            };
        };
        let fields = deleted.iter().map(|field| Field::try_from(&field[..]).map_err(|_| unfitting(field)));
        let fields: Vec<_> = fields.collect::<Result<_, _>>()?;
        // The keys that show them would expire alone.
        for some in fields.chunks(AT_ONCE) {
            let mut unlink = redis::cmd("UNLINK");
            for field in some {
                let mut key = Vec::new();
                keys::push_hold(&mut key, owner, field);
                unlink.arg(key);
            }
            self.connections.command(owner, &unlink, false).await?;
        }
        Ok(())
    }
}
