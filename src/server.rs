//! Serving: the services on a listener, with health and reflection, until told to stop. Tests start the same thing.

use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::ServiceBuilder;

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
use crate::grpc::{
    Incoming, Metering, Parts, Places, Plans, RateLimits, Subscriptions, rls, serve, server_address, v1,
};
use crate::health::Health;
use crate::telemetry::admin;
use crate::telemetry::layer::Observe;
use crate::tls::Certificates;

/// How large a question about health or reflection may be, in bytes: its caller may have shown no key.
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
    // Both listeners share the places, and below the gate, and so their bounds.
    let places = Places::new(limits.max_connections);
    let incoming = |listener| {
        let certificates = tls.as_ref().map(Certificates::subscribe);
        Incoming::new(listener, certificates, &limits, stopping.clone()).sharing(Arc::clone(&places))
    };
    let (incoming, envoy) = (incoming(listener), envoy.map(|(listener, meanings)| (incoming(listener), meanings)));
    if let Some(certificates) = tls {
        beside.spawn(certificates.follow());
    }
    let gate = GateLayer::new(GateOptions {
        access: Arc::clone(&access),
        max_in_flight: limits.max_in_flight,
        portions: Parts { app: limits.app_share, public: limits.public_share },
        rate_per_app: u32::try_from(limits.rate_per_app).ok().and_then(NonZeroU32::new),
        max_message_bytes: limits.max_message_bytes,
        message_timeout: limits.message_timeout,
        call_timeout: limits.call_timeout,
        open_reflection: limits.open_reflection,
    });
    if let Some(guard) = access.keys.clone() {
        beside.spawn(async move { guard.keep_up().await });
    }
    let most = limits.max_message_bytes;
    let layers = ServiceBuilder::new()
        // The outermost: what others refuse is seen as well.
        .layer(Observe(server_address))
        .layer(ProtocolLayer)
        // Outside the gate, where a caller may wait as well.
        .layer(DeadlineLayer(limits.call_timeout))
        .layer(gate.clone());
    let proxies = match envoy {
        None => None,
        Some((incoming, meanings)) => {
            let rate_limits = RateLimits { apps: Arc::clone(&apps), meanings: Arc::new(meanings) };
            let services = Routes::new(health_service.clone())
                .add_service(takes!(envoy_reflection().build_v1()?, SMALL))
                .add_service(takes!(envoy_reflection().build_v1alpha()?, SMALL))
                .add_service(talks!(RateLimitServiceServer::new(rate_limits), most));
            Some((incoming, services))
        }
    };
    let services = Routes::new(health_service)
        .add_service(takes!(reflection().build_v1()?, SMALL))
        .add_service(takes!(reflection().build_v1alpha()?, SMALL))
        .add_service(talks!(MeteringServiceServer::new(Metering(Arc::clone(&apps))), most))
        .add_service(talks!(SubscriptionServiceServer::new(Subscriptions(Arc::clone(&apps))), most))
        .add_service(talks!(PlanServiceServer::new(Plans(Arc::clone(&apps))), most));
    let serve = async |incoming, services: Routes| {
        let service = layers.clone().service(services.prepare());
        serve(incoming, service, &limits, stopping.clone()).await;
    };
    let server = async {
        let proxies = async {
            if let Some((incoming, services)) = proxies {
                serve(incoming, services).await;
            }
        };
        tokio::join!(serve(incoming, services), proxies);
        Ok(())
    };
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
