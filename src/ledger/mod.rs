//! The ledger: the only code that knows Redis. Keys, scripts, what travels to and from them, and connections.

mod api_keys;
pub mod codec;
mod connection;
pub mod formats;
pub mod inspection;
pub mod keys;
mod script;

use std::time::Duration;

use crate::domain::fault::Fault;
use crate::domain::id::{Nonce, Owner};

pub use api_keys::{KeyRecord, KeyRecords};
use codec::Reply;
pub use connection::{ConnectError, RedisAccess, RedisOptions};
pub use keys::UserKeys;
pub use script::{Script, Scripts, scripts};

/// What every call to a script can answer instead: it was compiled for another time or subscription.
#[derive(Debug, Clone)]
pub struct Stale {
    /// The user's time.
    pub now_ms: i64,
    /// Redis's own time.
    pub redis_ms: i64,
    /// The subscription as it is stored, encoded.
    pub subscription: Vec<u8>,
}

/// Runs the scripts.
#[derive(Clone)]
pub struct Ledger {
    connections: connection::Connections,
    scripts: &'static Scripts,
}

impl Ledger {
    /// Connects, and checks that this Redis can keep a ledger.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(options: &RedisOptions) -> Result<Self, ConnectError> {
        Ok(Self { connections: connection::Connections::open(options).await?, scripts: scripts() })
    }

    /// The same ledger with other scripts: see [`Scripts::changed`].
    #[must_use]
    pub fn with_scripts(self, scripts: &'static Scripts) -> Self {
        Self { scripts, ..self }
    }

    /// The scripts that it runs.
    #[must_use]
    pub fn scripts(&self) -> &'static Scripts {
        self.scripts
    }

    /// Runs a script over the keys of `owner`.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the outcome is unknown; [`Fault::Internal`] for an answer that is not understood.
    pub async fn run(
        &self,
        script: &'static Script,
        keys: &[String],
        owner: &Owner,
        args: &[&[u8]],
    ) -> Result<Reply, Fault> {
        let packed = self.connections.evaluate(script, keys, owner, args).await?;
        codec::decode(&packed)
    }

    /// Deletes the keys that show live holds. They would expire alone.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn unlink_holds(&self, owner: &Owner, nonces: &[String]) -> Result<(), Fault> {
        let keys = UserKeys::new(owner);
        let holds: Vec<String> = nonces.iter().map(|nonce| keys.hold(nonce)).collect();
        for some in holds.chunks(1000) {
            self.connections.unlink(owner, some).await?;
        }
        Ok(())
    }

    /// Whether calls can be decided: Redis answers within `limit`, over each of the connections that calls share, and takes writes.
    /// A Redis whose memory is full counts, as what is held can still be settled. Of a cluster: whether it serves.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn probe(&self, limit: Duration) -> Result<(), Fault> {
        self.connections.probe(limit).await.map_err(Fault::Unavailable)
    }
}

/// The keys of a reservation's owner, in the order in which the settling scripts take them.
#[must_use]
pub fn settling_keys(owner: &Owner, nonce: &Nonce) -> [String; 4] {
    let keys = UserKeys::new(owner);
    [keys.ledger(), keys.memory(), keys.agenda(), keys.hold(nonce.as_str())]
}
