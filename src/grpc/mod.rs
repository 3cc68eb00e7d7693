//! The wire: the only code that knows tonic.
//!
//! Requests are parsed once into domain types (`request`), answers are written out (`response`), and faults become statuses by
//! one table (`status`).

mod metering;
mod plans;
pub mod request;
mod response;
mod status;
mod subscriptions;

pub use metering::Metering;
pub use plans::Plans;
pub use subscriptions::Subscriptions;

/// The generated code of `proto/tollgate/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("tollgate.v1");

    /// The descriptors of the package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tollgate.v1.bin"));
}

/// Runs a use case to its end, even if the caller goes away meanwhile: what Redis has been asked must be told to nobody else, but
/// a mutation that needs a second round trip must still get it.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, crate::domain::fault::Fault>> + Send + 'static,
) -> Result<T, tonic::Status> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome.map_err(status::status),
        Err(stopped) => Err(status::status(crate::domain::fault::Fault::Unavailable(stopped.into()))),
    }
}
