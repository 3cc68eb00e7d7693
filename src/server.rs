//! Serving: the services on a listener, with health and reflection, until told to stop. Tests start the same thing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use crate::access::Access;
use crate::apps::Apps;
use crate::config::Limits;
use crate::grpc::deadline::DeadlineLayer;
use crate::grpc::gate::{GateLayer, GateOptions};
use crate::grpc::v1::metering_service_server::MeteringServiceServer;
use crate::grpc::v1::plan_service_server::PlanServiceServer;
use crate::grpc::v1::subscription_service_server::SubscriptionServiceServer;
use crate::grpc::{Incoming, Metering, Plans, Subscriptions, v1};
use crate::ledger::Ledger;
use crate::tls::Certificates;

/// How often Redis is asked whether it is there, and takes writes.
const HEALTH_PERIOD: Duration = Duration::from_secs(1);

/// How long Redis may take to answer that.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// After how many missing answers the health service says NOT_SERVING. A blip is none of its business: all replicas share one Redis, and
/// would all be taken out of service.
const HEALTH_MISSES: u32 = 3;

/// How often a quiet connection is asked whether somebody is there, and how long that may take.
const PING: Duration = Duration::from_secs(30);

/// How many calls of a connection may be reset before they were taken up, or for a mistake: one more ends the connection. Floods of resets
/// cost a server more than those who send them (CVE-2023-44487).
const MAX_RESETS: usize = 50;

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
    let Serving { apps, access, limits, fail_open, tls } = serving;
    let ledger = apps.ledger().clone();
    let (reporter, health) = tonic_health::server::health_reporter();
    let serving = fail_open || ledger.probe(HEALTH_LIMIT).await.is_ok();
    set_health(&reporter, serving).await;
    let watch = tokio::spawn(watch_health(reporter.clone(), ledger, serving, fail_open));

    let incoming = Incoming::new(listener, tls.as_ref().map(Certificates::subscribe), &limits);
    let following = tls.map(|certificates| tokio::spawn(certificates.follow()));
    let gate = GateLayer::new(GateOptions {
        access: Arc::clone(&access),
        max_in_flight: limits.max_in_flight,
        rate_per_app: u32::try_from(limits.rate_per_app).ok().and_then(NonZeroU32::new),
    });
    let keep_up = tokio::spawn(async move {
        if let Some(guard) = &access.keys {
            guard.keep_up().await;
        }
    });
    let most = limits.max_message_bytes;
    let (stop, stopping) = tokio::sync::oneshot::channel();
    let server = Server::builder()
        .max_concurrent_streams(bounded(limits.max_streams))
        .http2_max_header_list_size(bounded(limits.max_header_bytes))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING))
        .max_connection_age(limits.max_connection_age)
        .layer(gate)
        .layer(DeadlineLayer(limits.call_timeout))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(MeteringServiceServer::new(Metering(Arc::clone(&apps))).max_decoding_message_size(most))
        .add_service(SubscriptionServiceServer::new(Subscriptions(Arc::clone(&apps))).max_decoding_message_size(most))
        .add_service(PlanServiceServer::new(Plans(apps)).max_decoding_message_size(most))
        .serve_with_incoming_shutdown(incoming, async {
            let _: Result<(), _> = stopping.await;
        });
    let mut server = std::pin::pin!(server);
    let outcome = tokio::select! {
        outcome = &mut server => outcome,
        () = shutdown => {
            watch.abort();
            set_health(&reporter, false).await;
            let (delay, most) = (limits.drain_delay, limits.drain_timeout);
            match tokio::time::timeout(delay, &mut server).await {
                // It has failed.
                Ok(outcome) => outcome,
                Err(_) => {
                    drop(stop);
                    tokio::time::timeout(most, server).await.unwrap_or_else(|_| {
                        tracing::warn!("calls were still under way {most:?} after connections were asked to end: they are cut off");
                        Ok(())
                    })
                }
            }
        }
    };
    watch.abort();
    keep_up.abort();
    if let Some(following) = following {
        following.abort();
    }
    Ok(outcome?)
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

/// The whole server (the empty name), and each service.
async fn set_health(reporter: &HealthReporter, serving: bool) {
    let status = if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    let names = [
        "",
        MeteringServiceServer::<Metering>::NAME,
        SubscriptionServiceServer::<Subscriptions>::NAME,
        PlanServiceServer::<Plans>::NAME,
    ];
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}

async fn watch_health(reporter: HealthReporter, ledger: Ledger, mut serving: bool, fail_open: bool) {
    let mut misses = 0;
    loop {
        tokio::time::sleep(HEALTH_PERIOD).await;
        let answer = ledger.probe(HEALTH_LIMIT).await;
        misses = if answer.is_ok() { 0 } else { misses + 1 };
        match answer {
            Ok(()) if !serving => tracing::info!("redis answers, and takes writes"),
            Err(fault) if serving && misses >= HEALTH_MISSES && !fail_open => {
                let error = std::error::Error::source(&fault);
                tracing::error!(error, "redis does not answer, or takes no writes");
            }
            _ => continue,
        }
        serving = misses == 0;
        set_health(&reporter, serving).await;
    }
}
