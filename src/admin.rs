//! The admin port: `/metrics`, `/livez` and `/readyz` over HTTP, and nothing else.
//!
//! It is for machines inside the network, which need no more than a bounded number of short connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::health::Health;
use crate::telemetry::exposition::Format;
use crate::telemetry::metrics;

/// The largest number of open connections.
const CONNECTIONS: usize = 32;

/// The longest time a request may take to arrive, and the longest time between two requests of a connection.
const ARRIVAL: Duration = Duration::from_secs(5);

/// The longest time a connection may last, whatever it does.
const LIFE: Duration = Duration::from_secs(60);

/// Larger heads are refused.
const HEAD_BYTES: usize = 16 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, most likely: that passes, and asking at once would only burn time.
                tracing::warn!(%error, "the admin port cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let health = Arc::clone(&health);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let health = Arc::clone(&health);
                async move { Ok::<_, Infallible>(answer(&request, &health)) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ARRIVAL)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), answer);
            // Clients that send bad requests, or go away, get no answer and no log line.
            let _: Result<_, _> = tokio::time::timeout(LIFE, connection).await;
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.uri().path(), request.method()) {
        ("/metrics" | "/livez" | "/readyz", method) if *method != Method::GET && *method != Method::HEAD => {
            let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        ("/metrics", _) => {
            let format =
                Format::accepted(request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
            let mut response = match metrics().scrape(format) {
                Ok(text) => respond(StatusCode::OK, format.content_type(), text),
                Err(_) => {
                    let problem = "the metrics cannot be written\n".to_owned();
                    respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, problem)
                }
            };
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
            return response;
        }
        // That this is answered is all there is to say.
        ("/livez", _) => (StatusCode::OK, TEXT, "live\n".to_owned()),
        ("/readyz", _) => {
            let ready = health.is_ready();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, "application/json", format!("{}\n", health.report()))
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "there are /metrics, /livez and /readyz\n".to_owned()),
    };
    respond(status, kind, text)
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
