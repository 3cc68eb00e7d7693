//! The ledger: the only code that knows Redis. Keys, scripts, what travels to and from them, and connections.
//!
//! There is one module for each operation, with its arguments and its answer by name. `formats` defines the bytes of a
//! call.

mod answer;
mod api_keys;
mod archive;
mod basis;
mod connection;
mod crossed;
mod event;
pub mod formats;
mod frames;
pub mod inspection;
pub mod keys;
mod message;
mod once;
pub mod packed;
mod plan;
mod reservations;
mod reserve;
mod reset;
mod script;
mod settle;
mod subscription;
mod track;
mod usage;
mod user;

use std::sync::Arc;
use std::time::Duration;

use crate::domain::fault::Fault;
use crate::domain::id::{AppId, Owner, UserId};

use answer::About;
pub use answer::{Answer, NoAnswer, read_answer};
pub use api_keys::{KeyRecord, KeyRecords};
pub use archive::ARCHIVED_BYTES;
use archive::Archive;
pub use basis::{Basis, InForce};
pub use connection::{ConnectError, RedisAccess, RedisOptions};
use crossed::Counted;
pub use event::{priced, used, used_metadata};
pub use frames::{FIRST_USE_MS, Frames, NEVER_MS, NoCalendar, Scheduled};
pub use keys::UserKeys;
use message::Message;
pub use once::Once;
pub use plan::{CompiledPlan, GroupDescription, NoPlan, digest_of};
pub use reservations::{Found, ListCall, Position, Scan, read_reservations};
pub use reserve::{CanUseCall, ReserveAnswer, ReserveCall};
pub use reset::ResetCall;
pub use script::{Script, Scripts, scripts};
pub use settle::{CommitCall, CommitChangedCall, ExtendCall, Partial, ReleaseCall};
pub use subscription::{Apply, PutAnswer, PutCall, Step, Stored, encode_subscription};
pub use track::{RefundCall, RefundReservationCall, TrackAtCall, TrackCall};
pub use usage::UsageCall;

/// Runs the scripts.
#[derive(Clone)]
pub struct Ledger {
    connections: connection::Connections,
    scripts: &'static Scripts,
    archive: Arc<Archive>,
}

impl Ledger {
    /// Connects, and checks that this Redis can keep a ledger.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(options: &RedisOptions) -> Result<Self, ConnectError> {
        let connections = connection::Connections::open(options).await?;
        Ok(Self { connections, scripts: scripts(), archive: Arc::default() })
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

    /// Runs a script.
    async fn run(&self, script: &'static Script, owner: &Owner, message: Message) -> Result<Vec<u8>, Fault> {
        self.connections.evaluate(script, owner, message).await
    }

    /// Runs a script that a plan decides.
    async fn decide(
        &self,
        script: &'static Script,
        owner: &Owner,
        message: Message,
        plan: &InForce,
        counted: Counted,
    ) -> Result<Answer, NoAnswer> {
        let packed = self.run(script, owner, message).await?;
        self.answer(&packed, About { plan: plan.known(), plan_id: plan.id(), counted }).await
    }

    /// Checks that calls can be decided: Redis answers within `limit`, over each of the connections that calls share,
    /// and takes writes. A Redis whose memory is full passes, as holds can still be settled. Of a cluster, it checks
    /// that it serves.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn probe(&self, limit: Duration) -> Result<(), Fault> {
        self.connections.probe(limit).await.map_err(Fault::Unavailable)
    }
}

/// Only chooses a connection, for what belongs to no user.
fn nobody() -> Owner {
    Owner::new(&AppId::default(), &UserId::parse("nobody").expect("a user id"))
}

/// Start and end of a window; none for a lifetime, which starts at the beginning of time.
fn window_ms(span: &formats::Span) -> Option<(i64, i64)> {
    ((span.start, span.ends) != (0, NEVER_MS)).then_some((span.start, span.ends))
}

/// A duration as it can be stored.
fn time(ms: i64) -> i64 {
    ms.clamp(0, NEVER_MS)
}
