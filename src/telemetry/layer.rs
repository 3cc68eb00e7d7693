//! Around every call: counts it, times it, names it by a request id, and traces it.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Extensions, HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};

use crate::rpc::Rpc;

use super::call::{self, CallContext};
use super::labels::{Code, Outcome};
use super::metrics::metrics;
use super::{envoy, trace};

const REQUEST_ID: HeaderName = HeaderName::from_static(call::REQUEST_ID);
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Finds the address of the server that a request came to, by the request's extensions.
pub type ServerAddress = fn(&Extensions) -> Option<SocketAddr>;

/// Puts [`Observed`] around services.
#[derive(Debug, Clone, Copy)]
pub struct Observe(pub ServerAddress);

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed { inner, server_address: self.0 }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Observed<S> {
    inner: S,
    server_address: ServerAddress,
}

impl<S, B, R> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let rpc = Rpc::of_path(request.uri().path());
        let request_id = call::request_id(request.headers());
        let beginning = if rpc.facts().is_work { trace::rpc(&request, &request_id, self.server_address) } else { None };
        metrics().in_flight.inc();
        let ending = Ending { rpc, started: Instant::now(), request_id: request_id.clone(), ended: false };
        let call = CallContext {
            rpc,
            request_id,
            fault: None.into(),
            outcome: Outcome::Done.into(),
            retries: 0.into(),
            beginning,
            span: OnceCell::new(),
        };
        Observing { work: call::serve(call, self.inner.call(request)), ending }
    }
}

pin_project! {
    /// A call in flight.
    pub struct Observing<F> {
        #[pin]
        work: TaskLocalFuture<CallContext, F>,
        ending: Ending,
    }
}

impl<F, R, E> Future for Observing<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut answer = ready!(this.work.as_mut().poll(context));
        let code = match &mut answer {
            Ok(response) => {
                response.headers_mut().insert(REQUEST_ID, this.ending.request_id.clone());
                // An answer that begins with its status is nothing but that; one that does not has been made, and is OK.
                response.headers().get(STATUS).map_or(Code::Ok, |status| Code::of_header(status.as_bytes()))
            }
            Err(_) => Code::Unknown,
        };
        if let Some(call) = this.work.take_value() {
            let outcome = if code == Code::Ok { call.outcome.get() } else { Outcome::Fault };
            // Who was not let in is trusted in nothing.
            if let Some(span) = call.begin_span(false) {
                trace::rpc_ended(span, code, outcome, call.retries.get());
            }
            if call.rpc == Rpc::ShouldRateLimit && outcome == Outcome::Fault {
                let (reason, text) = call.fault.take().unwrap_or_default();
                envoy::fault(code, reason, &text);
            }
            this.ending.end(code, outcome);
        }
        Poll::Ready(answer)
    }
}

/// The call's end, which comes in any case: the caller may go away before.
struct Ending {
    rpc: Rpc,
    started: Instant,
    request_id: HeaderValue,
    ended: bool,
}

impl Ending {
    fn end(&mut self, code: Code, outcome: Outcome) {
        self.ended = true;
        let took = self.started.elapsed();
        metrics().in_flight.dec();
        metrics().rpc_ended(self.rpc, code, outcome, took);
        tracing::debug!(
            target: "tollgate::access",
            // Beside the call by now, so that it is named here.
            request_id = self.request_id.to_str().unwrap_or_default(),
            rpc = self.rpc.facts().name,
            code = code.as_str(),
            outcome = outcome.as_str(),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "answered"
        );
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Code::Cancelled, Outcome::Cancelled);
        }
    }
}
