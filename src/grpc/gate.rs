//! Stands in front of the services: counts the calls under way, finds out who calls, and how often.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use prost::bytes::Buf;
use tonic::codegen::Body;
use tonic::codegen::http::{Extensions, HeaderMap, Request, Response};
use tower::{Layer, Service};

use crate::access::{Access, Caller, Credentials, Role, Verdict};
use crate::domain::fault::Fault;
use crate::domain::id::AppId;
use crate::telemetry::labels::Rpc;

use super::ConnectionInfo;
use super::status::status;

/// Tell whether Tollgate is there, and what it speaks: to everybody, however busy it is.
const FOR_EVERYBODY: [&str; 3] =
    ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// All that a public key may call. What is not listed is for secret ones.
const FOR_PUBLIC_KEYS: [&str; 3] =
    ["/tollgate.v1.MeteringService/GetUsage", "/tollgate.v1.PlanService/ListPlans", "/tollgate.v1.PlanService/GetPlan"];

/// So much of a request is read before it is refused, in bytes.
const MUCH: usize = 64 * 1024;

/// Carries the token that names a user.
const USER_TOKEN: &str = "tollgate-user-token";

/// A call that was let in: who calls, and its place among those under way, which is free again when the last of its work is done.
#[derive(Clone)]
pub struct Admitted(Arc<(Arc<Caller>, Option<Place>)>);

impl Admitted {
    /// A call that nobody counts.
    #[must_use]
    pub fn uncounted(caller: Caller) -> Self {
        Self(Arc::new((Arc::new(caller), None)))
    }

    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.0.0
    }
}

/// What a gate lets through.
pub struct GateOptions {
    /// Who is let in.
    pub access: Arc<Access>,
    /// How many calls may be under way. One more is UNAVAILABLE at once: a queue would only grow.
    pub max_in_flight: usize,
    /// How many calls a second each app may make of this replica, which is also how many at once; `None` for any number.
    pub rate_per_app: Option<NonZeroU32>,
}

/// Puts a gate before services.
#[derive(Clone)]
pub struct GateLayer(Arc<Rules>);

impl GateLayer {
    /// A gate.
    #[must_use]
    pub fn new(options: GateOptions) -> Self {
        let GateOptions { access, max_in_flight, rate_per_app } = options;
        let rates = rate_per_app.map(|rate| RateLimiter::hashmap(Quota::per_second(rate)));
        Self(Arc::new(Rules { access, max_in_flight, under_way: Arc::default(), rates }))
    }

    /// How many calls are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.0.under_way.load(Ordering::Relaxed)
    }

    /// Waits until there are none.
    pub async fn idle(&self) {
        while self.under_way() > 0 {
            // Only a server that is about to end asks: that is no reason for calls to tell when they are done.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gate { inner, rules: Arc::clone(&self.0) }
    }
}

struct Rules {
    access: Arc<Access>,
    max_in_flight: usize,
    under_way: Arc<AtomicUsize>,
    rates: Option<RateLimiter<AppId, HashMapStateStore<AppId>, DefaultClock>>,
}

/// One of the calls under way.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Rules {
    fn place(&self) -> Result<Place, Fault> {
        let place = Place(Arc::clone(&self.under_way));
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        if before < self.max_in_flight { Ok(place) } else { Err(Fault::Overloaded) }
    }

    fn verdict(&self, headers: &HeaderMap, extensions: &Extensions) -> Verdict {
        let certificate = extensions.get::<ConnectionInfo>().and_then(|info| info.identity.as_deref());
        self.access.caller(credentials(headers), certificate)
    }

    /// The caller with a key that Redis may know.
    async fn look_up(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Arc<Caller>, Fault> {
        if let Some(guard) = &self.access.keys {
            guard.look_up().await?;
        }
        match self.verdict(headers, extensions) {
            Verdict::Known(caller) => Ok(caller),
            Verdict::Refused(fault) => Err(fault),
            Verdict::Unknown => Err(Fault::Unauthenticated),
        }
    }

    /// A place is taken last: who may not call takes none.
    fn admit(&self, caller: Arc<Caller>, path: &str) -> Result<Admitted, Fault> {
        if caller.role == Role::Public && !FOR_PUBLIC_KEYS.contains(&path) {
            return Err(Fault::SecretKeyNeeded);
        }
        if let Some(rates) = &self.rates
            && let Err(not_until) = rates.check_key(&caller.app)
        {
            let retry = not_until.wait_time_from(DefaultClock::default().now());
            return Err(Fault::TooManyCalls { retry });
        }
        Ok(Admitted(Arc::new((caller, Some(self.place()?)))))
    }
}

fn credentials(headers: &HeaderMap) -> Credentials<'_> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_start())
    });
    Credentials { key: bearer, token: text(USER_TOKEN) }
}

/// A service behind a gate.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S, Asked, Answered> Service<Request<Asked>> for Gate<S>
where
    S: Service<Request<Asked>, Response = Response<Answered>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    Asked: Body + Send + 'static,
    Asked::Data: Send,
    Answered: Default + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Passing<S::Future, S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Asked>) -> Self::Future {
        let path = request.uri().path();
        if FOR_EVERYBODY.iter().any(|service| path.starts_with(service)) {
            return Passing::Served { future: self.inner.call(request) };
        }
        if Rpc::of_path(path) == Rpc::Unknown {
            return Passing::Asking { future: Box::pin(refuse(Fault::MethodUnknown, request.into_body())) };
        }
        let admitted = match self.rules.verdict(request.headers(), request.extensions()) {
            Verdict::Known(caller) => self.rules.admit(caller, path).map(Some),
            Verdict::Refused(fault) => Err(fault),
            Verdict::Unknown => Ok(None),
        };
        match admitted {
            Ok(Some(admitted)) => {
                request.extensions_mut().insert(admitted);
                Passing::Served { future: self.inner.call(request) }
            }
            Ok(None) => {
                // The service that was found ready goes on, and its clone takes its place.
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                Passing::Asking { future: Box::pin(asked(inner, Arc::clone(&self.rules), request)) }
            }
            Err(fault) => Passing::Asking { future: Box::pin(refuse(fault, request.into_body())) },
        }
    }
}

async fn asked<S, Asked, Answered>(
    mut inner: S,
    rules: Arc<Rules>,
    mut request: Request<Asked>,
) -> Result<S::Response, S::Error>
where
    S: Service<Request<Asked>, Response = Response<Answered>>,
    Asked: Body,
    Answered: Default,
{
    let (parts, body) = request.into_parts();
    let admitted =
        rules.look_up(&parts.headers, &parts.extensions).await.and_then(|caller| rules.admit(caller, parts.uri.path()));
    request = Request::from_parts(parts, body);
    match admitted {
        Ok(admitted) => {
            request.extensions_mut().insert(admitted);
            inner.call(request).await
        }
        Err(fault) => refuse(fault, request.into_body()).await,
    }
}

/// The answer of a fault, once the request has been read.
async fn refuse<Asked: Body, Answered: Default, E>(fault: Fault, body: Asked) -> Result<Response<Answered>, E> {
    read_out(body).await;
    Ok(status(fault).into_http())
}

/// Reads the request of a call that is refused: a caller that goes on sending to a stream that has ended makes a mistake, and
/// after so many mistakes its connection is ended, with the calls of others. Whoever sends much, or slowly, is not waited for.
pub(super) async fn read_out<Asked: Body>(body: Asked) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut body = std::pin::pin!(body);
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
            bytes += frame.data_ref().map_or(0, Buf::remaining);
            if bytes > MUCH {
                return;
            }
        }
    };
    // Late is as good as not at all.
    let _: Result<(), _> = tokio::time::timeout(PATIENCE, read).await;
}

pin_project_lite::pin_project! {
    /// The answer of a gate or of what is behind it.
    #[project = Projected]
    #[allow(missing_docs)]
    pub enum Passing<F, R, E> {
        Served { #[pin] future: F },
        Asking { future: Pin<Box<dyn Future<Output = Result<R, E>> + Send>> },
    }
}

impl<F, Answered, E> Future for Passing<F, Response<Answered>, E>
where
    F: Future<Output = Result<Response<Answered>, E>>,
    Answered: Default,
{
    type Output = Result<Response<Answered>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Served { future } => future.poll(context),
            Projected::Asking { future } => future.as_mut().poll(context),
        }
    }
}
