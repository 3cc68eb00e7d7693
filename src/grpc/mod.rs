//! The wire: the only code that knows tonic.
//!
//! Requests are parsed once into domain types (`request`), answers are written out (`response`), and faults become statuses by
//! one table (`status`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

use crate::domain::fault::Fault;
use crate::telemetry::call;

mod answer;
mod caller;
mod connection;
mod connection_slots;
pub mod deadline;
mod envoy;
pub mod fault_details;
pub mod gate;
mod incoming;
mod message;
mod metering;
mod plans;
pub mod protocol;
pub mod request;
mod response;
mod serve;
mod shares;
mod status;
mod stream;
mod subscriptions;
mod unsent;

pub use connection::{Connection, ConnectionInfo, server_address};
pub use connection_slots::ConnectionSlots;
pub use envoy::RateLimits;
pub use incoming::Incoming;
pub use metering::Metering;
pub use plans::Plans;
pub use serve::serve;
pub use shares::Parts;
pub use subscriptions::Subscriptions;

/// The generated code of `proto/tollgate/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("tollgate.v1");

    /// The descriptors of the package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tollgate.v1.bin"));
}

/// The generated code of `proto/envoy`: the part of Envoy's rate limit service that is served.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod rls {
    include!(concat!(env!("OUT_DIR"), "/envoy.rs"));

    pub use envoy::config::core::v3::HeaderValue;
    pub use envoy::extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor};
    pub use envoy::service::ratelimit::v3::*;

    /// The descriptors of the packages, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));
}

/// Runs a use case to completion, even if the caller goes away meanwhile. Nobody needs the answer then, but a mutation
/// that needs a second round trip must still get it.
fn run_to_completion<T: Send + 'static, F>(work: F) -> RunToCompletion<T, F>
where
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    RunToCompletion(Some(Box::pin(work)))
}

/// A future that its caller polls. If the caller drops it, a task of its own finishes it: a task for every call would
/// cost more.
struct RunToCompletion<T, F: Future<Output = Result<T, Fault>> + Send + 'static>(Option<Pin<Box<F>>>)
where
    T: Send + 'static;

impl<T: Send + 'static, F: Future<Output = Result<T, Fault>> + Send + 'static> Future for RunToCompletion<T, F> {
    type Output = Result<T, tonic::Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Not there while it runs: work that has panicked must not be gone on with.
        let mut work = self.0.take().expect("is not polled after it was done");
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Pending) => {
                self.0 = Some(work);
                Poll::Pending
            }
            Ok(Poll::Ready(outcome)) => Poll::Ready(outcome.map_err(status::status)),
            Err(_) => Poll::Ready(Err(status::status(Fault::Unavailable("the call panicked".into())))),
        }
    }
}

impl<T: Send + 'static, F: Future<Output = Result<T, Fault>> + Send + 'static> Drop for RunToCompletion<T, F> {
    fn drop(&mut self) {
        // Without a runtime the process is about to end.
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            call::spawn(&runtime, async move { drop(work.await) });
        }
    }
}
