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
use crate::admin;
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
    ConnectionSlots, Incoming, Metering, Parts, Plans, RateLimits, Subscriptions, rls, serve, server_address, v1,
};
use crate::health::Health;
use crate::telemetry::layer::Observe;
use crate::tls::Certificates;

/// The largest health or reflection request, in bytes. Its caller may have shown no key.
const MAX_KEYLESS_REQUEST_BYTES: usize = 4096;

/// Configures a service to take compressed requests of at most this many bytes, before and after they are decompressed.
macro_rules! takes {
    ($service:expr, $most:expr) => {
        $service.accept_compressed(Gzip).accept_compressed(Deflate).max_decoding_message_size($most)
    };
}

/// Configures a service to take compressed requests, and to compress the answers to those ([`ProtocolLayer`]).
macro_rules! talks {
    ($service:expr, $most:expr) => {
        takes!($service, $most).send_compressed(Gzip).send_compressed(Deflate)
    };
}

/// The reason why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors built into the binary are broken.
    #[error("the reflection service failed")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The services, and the callers they are for.
pub struct Serving {
    /// The meters of all apps.
    pub apps: Arc<Apps>,
    /// Decides which callers are let in.
    pub access: Arc<Access>,
    /// The limits on what callers may ask for.
    pub limits: Limits,
    /// Reserve is answered without Redis as well, which it cannot be by a replica that is taken out of service.
    pub fail_open: bool,
    /// The certificates for TLS. None: TLS is not used.
    pub tls: Option<Certificates>,
    /// The listener of Envoy's rate limit service, if there is one, and the meanings of the entries of descriptors
    /// there.
    pub envoy: Option<(TcpListener, EntryMeanings)>,
    /// The listener for metrics and health over HTTP, if there is one.
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
    let health_service = takes!(health_service, MAX_KEYLESS_REQUEST_BYTES);
    let health = Health::start(reporter, &SERVICES, &ledger, fail_open).await;
    let gate = gate(&access, &limits);
    let most = limits.max_message_bytes;
    let to_callers = Routes::new(health_service.clone())
        .add_service(takes!(reflection().build_v1()?, MAX_KEYLESS_REQUEST_BYTES))
        .add_service(takes!(reflection().build_v1alpha()?, MAX_KEYLESS_REQUEST_BYTES))
        .add_service(talks!(MeteringServiceServer::new(Metering(Arc::clone(&apps))), most))
        .add_service(talks!(SubscriptionServiceServer::new(Subscriptions(Arc::clone(&apps))), most))
        .add_service(talks!(PlanServiceServer::new(Plans(Arc::clone(&apps))), most));
    let mut open = vec![(listener, to_callers)];
    if let Some((listener, meanings)) = envoy {
        let rate_limits = RateLimits { apps, meanings: Arc::new(meanings) };
        let to_envoy = Routes::new(health_service)
            .add_service(takes!(envoy_reflection().build_v1()?, MAX_KEYLESS_REQUEST_BYTES))
            .add_service(takes!(envoy_reflection().build_v1alpha()?, MAX_KEYLESS_REQUEST_BYTES))
            .add_service(talks!(RateLimitServiceServer::new(rate_limits), most));
        open.push((listener, to_envoy));
    }

    // These tasks end with serving.
    let mut beside = JoinSet::new();
    beside.spawn(Arc::clone(&health).watch(ledger));
    if let Some(listener) = admin_listener {
        beside.spawn(admin::serve(listener, Arc::clone(&health)));
    }
    if let Some(guard) = access.keys.clone() {
        beside.spawn(async move { guard.refresh_periodically().await });
    }
    // Connections are asked to end once the first half is gone.
    let (stop, stopping) = watch::channel(());
    // Both listeners share these slots and the gate, and so their bounds.
    let slots = ConnectionSlots::new(limits.max_connections);
    let layers = ServiceBuilder::new()
        // The outermost: what others refuse is seen as well.
        .layer(Observe(server_address))
        .layer(ProtocolLayer)
        // Outside the gate, where a caller may wait as well.
        .layer(DeadlineLayer(limits.call_timeout))
        .layer(gate.clone());
    let listeners = open.into_iter().map(|(listener, services)| {
        let certificates = tls.as_ref().map(Certificates::subscribe);
        let incoming = Incoming::new(listener, certificates, &limits, stopping.clone()).sharing(Arc::clone(&slots));
        serve(incoming, layers.clone().service(services.prepare()), &limits, stopping.clone())
    });
    let listeners = futures_util::future::join_all(listeners);
    if let Some(certificates) = tls {
        beside.spawn(certificates.follow());
    }

    let mut server = std::pin::pin!(listeners);
    tokio::select! {
        _ = &mut server => {}
        () = shutdown => stop_gracefully(server, &health, stop, &gate, &limits).await,
    }
    Ok(())
}

/// The services whose health is told by name.
const SERVICES: [&str; 3] = [
    MeteringServiceServer::<Metering>::NAME,
    SubscriptionServiceServer::<Subscriptions>::NAME,
    PlanServiceServer::<Plans>::NAME,
];

/// The gate that both listeners stand behind.
fn gate(access: &Arc<Access>, limits: &Limits) -> GateLayer {
    GateLayer::new(GateOptions {
        access: Arc::clone(access),
        max_in_flight: limits.max_in_flight,
        portions: Parts { app: limits.app_share, public: limits.public_share },
        rate_per_app: u32::try_from(limits.rate_per_app).ok().and_then(NonZeroU32::new),
        max_message_bytes: limits.max_message_bytes,
        message_timeout: limits.message_timeout,
        call_timeout: limits.call_timeout,
        open_reflection: limits.open_reflection,
    })
}

/// Says that the server is not ready, waits until load balancers know, closes the connections, and finishes the calls in flight.
async fn stop_gracefully<T>(
    mut server: std::pin::Pin<&mut impl Future<Output = T>>,
    health: &Health,
    stop: watch::Sender<()>,
    gate: &GateLayer,
    limits: &Limits,
) {
    health.stop().await;
    if tokio::time::timeout(limits.drain_delay, &mut server).await.is_ok() {
        return;
    }
    health.end_watches().await;
    drop(stop);
    let drained = async {
        server.await;
        // Work whose caller has gone away.
        gate.idle().await;
    };
    let most = limits.drain_timeout;
    if tokio::time::timeout(most, drained).await.is_err() {
        let calls = gate.under_way();
        tracing::warn!(
            calls,
            "connections were still open {most:?} after they were asked to end: Tollgate cuts them off, with their calls in flight"
        );
    }
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
