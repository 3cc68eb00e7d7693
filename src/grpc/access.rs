//! Stands in front of the services, and lets in whom [`Access`] knows.

use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use crate::access::Access;

/// Puts the caller beside every request, or answers for the service.
#[derive(Clone)]
pub struct AccessLayer(pub Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded { inner, access: Arc::clone(&self.0) }
    }
}

/// A service that is called by known callers only.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    access: Arc<Access>,
}

impl<S, Asked, Answered> Service<Request<Asked>> for Guarded<S>
where
    S: Service<Request<Asked>, Response = Response<Answered>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Asked>) -> S::Future {
        match &*self.access {
            Access::Open(caller) => drop(request.extensions_mut().insert(Arc::clone(caller))),
        }
        self.inner.call(request)
    }
}
