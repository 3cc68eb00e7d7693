//! Serving: the services on a listener, with health and reflection, until told to stop. Tests start the same thing.

use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::server::NamedService;
use tonic::transport::Server;

use crate::access::Access;
use crate::apps::Apps;
use crate::config::Limits;
use crate::domain::descriptor::EntryMeanings;
use crate::grpc::deadline::DeadlineLayer;
use crate::grpc::gate::{GateLayer, GateOptions};
use crate::grpc::protocol::ProtocolLayer;
use crate::grpc::rls::rate_limit_service_server::RateLimitServiceServer;
use crate::grpc::v1::metering_service_server::MeteringServiceServer;
use crate::grpc::v1::plan_service_server::PlanServiceServer;
use crate::grpc::v1::subscription_service_server::SubscriptionServiceServer;
use crate::grpc::{Incoming, Metering, Plans, RateLimits, Subscriptions, rls, server_address, v1};
use crate::health::Health;
use crate::telemetry::admin;
use crate::telemetry::layer::Observe;
use crate::tls::Certificates;

/// How many calls of a connection may be reset before they were taken up: one more ends the connection. Floods of resets cost a server more
/// than those who send them (CVE-2023-44487).
const MAX_RESETS: usize = 50;

/// How many calls of a connection may be reset because its client has broken the protocol, over its whole life.
const MAX_MISTAKES: usize = 1000;

/// How large a question about health or reflection may be, in bytes: whoever asks has shown no key, and is not counted.
const SMALL: usize = 4096;

/// A service that takes compressed requests of at most so many bytes, before and after they are decompressed.
macro_rules! takes {
    ($service:expr, $most:expr) => {
        $service.accept_compressed(Gzip).accept_compressed(Deflate).max_decoding_message_size($most)
    };
}

/// A service that takes compressed requests, and compresses what it answers to those ([`ProtocolLayer`]).
macro_rules! talks {
    ($service:expr, $most:expr) => {
        takes!($service, $most).send_compressed(Gzip).send_compressed(Deflate)
    };
}

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors built into the binary are broken.
    #[error("the reflection service failed")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What is served, and to whom.
pub struct Serving {
    /// The meters of all apps.
    pub apps: Arc<Apps>,
    /// Who is let in.
    pub access: Arc<Access>,
    /// What callers may ask for at most.
    pub limits: Limits,
    /// Reserve is answered without Redis as well, which it cannot be by a replica that is taken out of service.
    pub fail_open: bool,
    /// What TLS is spoken with, if it is.
    pub tls: Option<Certificates>,
    /// Where Envoy's rate limit service is served, if anywhere, and what the entries of descriptors mean there.
    pub envoy: Option<(TcpListener, EntryMeanings)>,
    /// Where metrics and health are shown over HTTP, if anywhere.
    pub admin: Option<TcpListener>,
}

/// Serves on `listener` until `shutdown` is done; calls in flight are then finished.
///
/// # Errors
/// See [`ServeError`].
pub async fn run(
    serving: Serving,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let Serving { apps, access, limits, fail_open, tls, envoy, admin: admin_listener } = serving;
    let ledger = apps.ledger().clone();
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health_service = takes!(health_service, SMALL);
    let services = [
        MeteringServiceServer::<Metering>::NAME,
        SubscriptionServiceServer::<Subscriptions>::NAME,
        PlanServiceServer::<Plans>::NAME,
    ];
    let health = Health::start(reporter, &services, &ledger, fail_open).await;
    // All of it ends with serving.
    let mut beside = JoinSet::new();
    beside.spawn(Arc::clone(&health).watch(ledger));
    if let Some(listener) = admin_listener {
        beside.spawn(admin::serve(listener, Arc::clone(&health)));
    }

    // Connections are asked to end once the first half is gone.
    let (stop, stopping) = watch::channel(());
    let incoming =
        |listener| Incoming::new(listener, tls.as_ref().map(Certificates::subscribe), &limits, stopping.clone());
    let (incoming, envoy) =
        (incoming(listener), envoy.map(|(listener, meanings)| (incoming(listener), Arc::new(meanings))));
    if let Some(certificates) = tls {
        beside.spawn(certificates.follow());
    }
    let gate = GateLayer::new(GateOptions {
        access: Arc::clone(&access),
        max_in_flight: limits.max_in_flight,
        rate_per_app: u32::try_from(limits.rate_per_app).ok().and_then(NonZeroU32::new),
    });
    if let Some(guard) = access.keys.clone() {
        beside.spawn(async move { guard.keep_up().await });
    }
    let most = limits.max_message_bytes;
    // Both listeners share the gate, and so its bounds.
    let bounded_server = Server::builder()
        .max_concurrent_streams(bounded(limits.max_streams))
        .http2_max_header_list_size(bounded(limits.max_header_bytes))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_MISTAKES))
        .http2_keepalive_interval(Some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive))
        .max_connection_age(limits.max_connection_age)
        // The outermost: what others refuse is seen as well.
        .layer(Observe(server_address))
        .layer(ProtocolLayer)
        // Outside the gate, where a caller may wait as well.
        .layer(DeadlineLayer(limits.call_timeout))
        .layer(gate.clone());
    let until_stop = || {
        let mut stopping = stopping.clone();
        async move {
            let _: Result<(), _> = stopping.changed().await;
        }
    };
    let proxies = async {
        let Some((incoming, meanings)) = envoy else { return Ok(()) };
        let rate_limits = RateLimits { apps: Arc::clone(&apps), meanings };
        bounded_server
            .clone()
            .add_service(health_service.clone())
            .add_service(takes!(envoy_reflection().build_v1()?, SMALL))
            .add_service(takes!(envoy_reflection().build_v1alpha()?, SMALL))
            .add_service(talks!(RateLimitServiceServer::new(rate_limits), most))
            .serve_with_incoming_shutdown(incoming, until_stop())
            .await?;
        Ok(())
    };
    let callers = async {
        bounded_server
            .clone()
            .add_service(health_service.clone())
            .add_service(takes!(reflection().build_v1()?, SMALL))
            .add_service(takes!(reflection().build_v1alpha()?, SMALL))
            .add_service(talks!(MeteringServiceServer::new(Metering(Arc::clone(&apps))), most))
            .add_service(talks!(SubscriptionServiceServer::new(Subscriptions(Arc::clone(&apps))), most))
            .add_service(talks!(PlanServiceServer::new(Plans(Arc::clone(&apps))), most))
            .serve_with_incoming_shutdown(incoming, until_stop())
            .await?;
        Ok::<_, ServeError>(())
    };
    let server = async { tokio::try_join!(callers, proxies).map(drop) };
    let mut server = std::pin::pin!(server);
    let outcome = tokio::select! {
        outcome = &mut server => outcome,
        () = shutdown => {
            health.stop().await;
            let (delay, most) = (limits.drain_delay, limits.drain_timeout);
            match tokio::time::timeout(delay, &mut server).await {
                // It has failed.
                Ok(outcome) => outcome,
                Err(_) => {
                    health.end_watches().await;
                    drop(stop);
                    let drained = async {
                        let outcome = server.await;
                        // Work whose caller has gone away.
                        gate.idle().await;
                        outcome
                    };
                    tokio::time::timeout(most, drained).await.unwrap_or_else(|_| {
                        let calls = gate.under_way();
                        tracing::warn!(calls, "connections were still open {most:?} after they were asked to end: they are cut off, with the calls under way");
                        Ok(())
                    })
                }
            }
        }
    };
    outcome
}

fn bounded(number: usize) -> Option<u32> {
    Some(u32::try_from(number).unwrap_or(u32::MAX))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that grpcurl shows the details of an error instead of their bytes.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

fn envoy_reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(rls::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
