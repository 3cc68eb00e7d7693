//! Serves the connections of a listener by HTTP/2. The server of tonic does the same, but cannot bound its buffers for
//! a caller, end a stream whose answer is not read, or end a connection for another one.

use std::convert::Infallible;
use std::pin::pin;

use hyper::body::{Body, Bytes, Incoming as Asked};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};
use tonic::transport::server::Connected as _;
use tower::{Service, ServiceExt as _};

use crate::config::Limits;

use super::connection::Connection;
use super::incoming::Incoming;
use super::stream::Streams;

/// The number of calls of a connection that may be reset before they are accepted. One more ends the connection. Floods
/// of resets cost a server more than their senders (CVE-2023-44487).
const MAX_RESETS: usize = 50;

/// The number of calls of a connection that may be reset because its client has broken the protocol, over its whole
/// life.
const MAX_MISTAKES: usize = 1000;

/// The number of bytes of one answer that wait for the connection to take them.
const SEND_BUFFER: usize = 64 << 10;

/// The number of bytes on one stream that a caller may send before they are read.
const STREAM_WINDOW: u32 = 64 << 10;

/// The number of bytes on the whole connection that a caller may at least send before they are read.
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Returns the window of a connection with `streams` streams. h2 counts each small frame that nobody has read as 256
/// bytes, and ends the connection (`too_many_data_frames`) when these are more than half of the window: a burst of one
/// small message on every stream must fit.
fn connection_window(streams: u32) -> u32 {
    streams.saturating_mul(2 * 256).clamp(CONNECTION_WINDOW, i32::MAX.unsigned_abs())
}

/// Serves `service` on the connections of `incoming` until the sender of `stopping` is gone and all connections have ended.
pub async fn serve<S, Answered>(incoming: Incoming, service: S, limits: &Limits, mut stopping: watch::Receiver<()>)
where
    S: Service<Request<Asked>, Response = Response<Answered>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    Answered: Body<Data = Bytes> + Send + 'static,
    Answered::Error: Into<StdError>,
{
    let mut server = http2::Builder::new(Streams);
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounded(limits.max_streams))
        .max_header_list_size(bounded(limits.max_header_bytes))
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_MISTAKES)
        .keep_alive_interval(limits.keepalive)
        .keep_alive_timeout(limits.keepalive)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(bounded(limits.max_streams)));
    // Every connection has a sender: when all are gone, all connections have ended.
    let (open, mut ended) = mpsc::channel::<()>(1);
    {
        // Dropped before the wait, so that the port is closed meanwhile.
        let mut incoming = pin!(incoming);
        loop {
            let connection = tokio::select! {
                _ = stopping.changed() => break,
                next = incoming.next() => match next {
                    Some(Ok(connection)) => connection,
                    None => break,
                },
            };
            let served = one(connection, server.clone(), service.clone(), limits.max_connection_age, stopping.clone());
            let open = open.clone();
            tokio::spawn(async move {
                served.await;
                drop(open);
            });
        }
    }
    drop(open);
    // Nobody sends anything.
    let _: Option<()> = ended.recv().await;
}

async fn one<S, Answered>(
    connection: Connection,
    server: http2::Builder<Streams>,
    service: S,
    age: std::time::Duration,
    mut stopping: watch::Receiver<()>,
) where
    S: Service<Request<Asked>, Response = Response<Answered>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    Answered: Body<Data = Bytes> + Send + 'static,
    Answered::Error: Into<StdError>,
{
    let info = connection.connect_info();
    let standing = std::sync::Arc::clone(&info.standing);
    let service = service.map_request(move |mut request: Request<Asked>| {
        request.extensions_mut().insert(info.clone());
        request
    });
    let mut served = pin!(server.serve_connection(TokioIo::new(connection), TowerToHyperService::new(service)));
    let (mut aged, mut ended) = (pin!(tokio::time::sleep(age)), pin!(standing.ended()));
    let mut asked_to_end = false;
    loop {
        tokio::select! {
            result = &mut served => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection has failed");
                }
                return;
            }
            () = &mut ended => {
                tracing::debug!("a connection without a secret key makes room for another one");
                return;
            }
            () = &mut aged, if !asked_to_end => {}
            _ = stopping.changed(), if !asked_to_end => {}
        }
        asked_to_end = true;
        served.as_mut().graceful_shutdown();
    }
}

fn bounded(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
