//! Ends calls at their deadlines: the caller's `grpc-timeout`, and at the latest after as long as a call may take.
//!
//! The server of tonic would answer CANCELLED, as if the caller had gone away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use crate::domain::fault::Fault;

use super::status::status;

/// Puts deadlines on calls: none takes longer than this.
#[derive(Clone)]
pub struct DeadlineLayer(pub Duration);

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, longest: self.0 }
    }
}

/// A service whose calls have deadlines.
#[derive(Clone)]
pub struct Deadline<S> {
    inner: S,
    longest: Duration,
}

impl<S, Asked, Answered> Service<Request<Asked>> for Deadline<S>
where
    S: Service<Request<Asked>, Response = Response<Answered>>,
    Answered: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Timed<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        match timeout(request.headers()) {
            Ok(asked) => {
                let limit = asked.map_or(self.longest, |asked| asked.min(self.longest));
                Timed::Running { future: self.inner.call(request), deadline: tokio::time::sleep(limit) }
            }
            Err(fault) => Timed::Refused { fault: Some(fault) },
        }
    }
}

/// Parses `grpc-timeout`: at most 8 digits and a unit, by the specification of gRPC over HTTP/2.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Fault> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let read = || {
        let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
        let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = plain.then(|| digits.parse().ok())??;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    read().map(Some).ok_or_else(|| Fault::Invalid {
        field: "grpc-timeout".to_owned(),
        problem: "is not understood: send at most 8 digits and one of H, M, S, m, u, n".to_owned(),
        reason: "INVALID_FIELD",
    })
}

pin_project_lite::pin_project! {
    /// An answer that comes before its deadline, or a status that says so.
    #[project = Projected]
    #[allow(missing_docs)]
    pub enum Timed<F> {
        Running { #[pin] future: F, #[pin] deadline: Sleep },
        Refused { fault: Option<Fault> },
    }
}

impl<F, Answered, E> Future for Timed<F>
where
    F: Future<Output = Result<Response<Answered>, E>>,
    Answered: Default,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let fault = match self.project() {
            Projected::Running { future, deadline } => {
                // Before the deadline is looked at: an answer that is ready is never withheld.
                if let Poll::Ready(answer) = future.poll(context) {
                    return Poll::Ready(answer);
                }
                ready!(deadline.poll(context));
                Fault::DeadlineExceeded
            }
            Projected::Refused { fault } => fault.take().unwrap_or(Fault::DeadlineExceeded),
        };
        Poll::Ready(Ok(status(fault).into_http()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
        for (text, millis) in
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5), ("99999999n", 99)]
        {
            assert_eq!(read(text).unwrap().unwrap().as_millis(), millis, "{text}");
        }
        for odd in ["", "S", "1", "1s", "-1S", "123456789m", "1.5S", "\u{e9}", "1\u{e9}"] {
            assert!(read(odd).is_err(), "{odd}");
        }
    }
}
