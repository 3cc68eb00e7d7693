//! The outermost layer of a call: refuses requests that are not gRPC, chooses when answers are compressed, and adds
//! [details] to the statuses that tonic alone answers.
//!
//! [details]: super::fault_details

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use crate::domain::fault::Fault;

use super::answer::Answer;
use super::fault_details::{add_fault_details, with_fault_details};
use super::gate::read_out;
use super::status::status;

const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The service whose answers are streams: a fault may stand behind them, in the trailers.
const STREAMING: &str = "/grpc.reflection.";

/// Puts [`Protocol`] around services.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProtocolLayer;

impl<S> Layer<S> for ProtocolLayer {
    type Service = Protocol<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Protocol(inner)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Protocol<S>(S);

impl<S, Asked> Service<Request<Asked>> for Protocol<S>
where
    S: Service<Request<Asked>, Response = Response<Answer<Body>>>,
    Asked: HttpBody + Send + 'static,
    Asked::Data: Send,
{
    type Response = Response<Answer<Body>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Asked>) -> Self::Future {
        let method = request.method().clone();
        if let Err(fault) = check(&method, request.headers_mut()) {
            let silent = method == Method::HEAD;
            return Answering::Refused { answer: Box::pin(refuse(fault, silent, request.into_body())) };
        }
        let streams = request.uri().path().starts_with(STREAMING);
        Answering::Served { future: self.0.call(request), streams }
    }
}

/// Checks that a request is gRPC, with messages of Protocol Buffers in a known compression, by the specification of
/// gRPC over HTTP/2.
///
/// Client libraries name in every call the compressions that they understand, whether or not anybody wants one. Compressing costs
/// more than most calls do, so an answer is compressed only where the request is: this forgets what else the caller understands.
fn check(method: &Method, headers: &mut HeaderMap) -> Result<(), Fault> {
    if method != Method::POST {
        return Err(Fault::NotPost);
    }
    if !headers.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes())) {
        return Err(Fault::NotGrpc);
    }
    match headers.get(GRPC_ENCODING).map(HeaderValue::as_bytes) {
        Some(b"gzip" | b"deflate") => {}
        None | Some(b"identity") => drop(headers.remove(GRPC_ACCEPT_ENCODING)),
        Some(_) => return Err(Fault::EncodingUnsupported),
    }
    Ok(())
}

/// Returns whether a content type is `application/grpc` or `application/grpc+proto`, with any parameters.
fn is_grpc(content_type: &[u8]) -> bool {
    let end = content_type.iter().position(|byte| *byte == b';').unwrap_or(content_type.len());
    let name = content_type[..end].trim_ascii();
    name.eq_ignore_ascii_case(b"application/grpc") || name.eq_ignore_ascii_case(b"application/grpc+proto")
}

/// Answers a request that no service sees, once it has been read. A client that does not speak gRPC does not look for
/// `grpc-status`, so the answer's body says the reason as well, unless the client asked for the head alone.
async fn refuse(fault: Fault, silent: bool, body: impl HttpBody) -> Response<Answer<Body>> {
    read_out(body).await;
    let http = match fault {
        Fault::NotPost => StatusCode::METHOD_NOT_ALLOWED,
        Fault::NotGrpc => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        _ => StatusCode::OK,
    };
    let text =
        if silent || http == StatusCode::OK { Body::empty() } else { Body::new(Full::from(format!("{fault}\n"))) };
    let (mut head, ()) = status(fault).into_http::<()>().into_parts();
    head.status = http;
    let (name, value) = match http {
        StatusCode::METHOD_NOT_ALLOWED => (ALLOW, "POST"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (ACCEPT_POST, "application/grpc"),
        _ => (GRPC_ACCEPT_ENCODING, "gzip,deflate,identity"),
    };
    head.headers.insert(name, HeaderValue::from_static(value));
    if http != StatusCode::OK {
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    Response::from_parts(head, text.into())
}

pin_project_lite::pin_project! {
    /// An answer to a call, or to a request that is none.
    #[project = Projected]
    #[allow(missing_docs)]
    pub enum Answering<F> {
        Served { #[pin] future: F, streams: bool },
        Refused { answer: Pin<Box<dyn Future<Output = Response<Answer<Body>>> + Send>> },
    }
}

impl<F: Future<Output = Result<Response<Answer<Body>>, E>>, E> Future for Answering<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Served { future, streams } => {
                let answer = with_fault_details(ready!(future.poll(context))?);
                Poll::Ready(Ok(if *streams {
                    answer.map(|answer| answer.map(with_details_in_trailers))
                } else {
                    answer
                }))
            }
            Projected::Refused { answer } => answer.as_mut().poll(context).map(Ok),
        }
    }
}

/// Adds fault details to the trailers of a stream of answers as well.
fn with_details_in_trailers(body: Body) -> Body {
    Body::new(body.map_frame(|mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            add_fault_details(trailers);
        }
        frame
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_with_protobuf_is_grpc() {
        for good in
            ["application/grpc", "application/grpc+proto", "Application/GRPC", "application/grpc ; charset=utf-8"]
        {
            assert!(is_grpc(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "application/json",
            "application/grpc+json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpcx",
            "application/proto",
            "text/plain; application/grpc",
        ] {
            assert!(!is_grpc(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_compressed_only_where_the_request_is() {
        let content_type = || (CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        for (encoding, kept) in
            [(None, false), (Some("identity"), false), (Some("gzip"), true), (Some("deflate"), true)]
        {
            let understood = (GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity, deflate, gzip"));
            let mut headers = HeaderMap::from_iter([content_type(), understood]);
            headers.extend(encoding.map(|encoding| (GRPC_ENCODING, HeaderValue::from_static(encoding))));
            check(&Method::POST, &mut headers).unwrap();
            assert_eq!(headers.contains_key(GRPC_ACCEPT_ENCODING), kept, "{encoding:?}");
        }
    }
}
