//! Stands in front of the services: reads the message of each call, identifies the caller, limits its rate, and counts
//! the calls in flight.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use prost::bytes::{Buf, Bytes};
use tonic::Status;
use tonic::body::Body as AnyBody;
use tonic::codegen::http::request::Parts;
use tonic::codegen::http::{Extensions, HeaderMap, Method, Request, Response, StatusCode};
use tonic::codegen::{Body, StdError};
use tower::{Layer, Service};

use crate::access::{Access, Caller, Credentials, Role, Verdict};
use crate::domain::fault::Fault;
use crate::domain::id::AppId;
use crate::rpc::{Callers, Rpc};
use crate::telemetry::call;

use super::ConnectionInfo;
use super::answer::Answer;
use super::connection_slots::{Level, Standing};
use super::message::{self, Bounded};
use super::shares::{Full, Parts as Portions, Share, Shares, Taker};
use super::status::status;
use super::stream::{Pool, Pooled, Stream};

/// The number of bytes that are read and discarded of a request that is refused.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;

/// The largest health request, in bytes. Its caller needs no key.
const MAX_HEALTH_REQUEST_BYTES: usize = 4096;

/// The number of bytes that a reflection stream may send.
const MAX_REFLECTION_BYTES: usize = 64 * 1024;

/// The number of calls without a valid key that may be in flight on a connection that has not shown one.
const MAX_KEYLESS_CALLS: usize = 128;

/// The number of health watches and reflection streams that may be open on one connection.
const MAX_ENDLESS_STREAMS: usize = 8;

/// The number of health requests that may be in flight on connections that have shown no secret key. One more ends the
/// oldest.
const MAX_OPEN_HEALTH_REQUESTS: usize = 1000;

/// The number of reflection streams that may be open. One more ends the oldest. Each holds some hundred KiB if its
/// caller reads nothing.
const MAX_REFLECTION_STREAMS: usize = 32;

/// The longest time a caller may take to receive an answer.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time for which health may be watched on a connection that has shown no secret key.
const WATCH_TIMEOUT: Duration = Duration::from_secs(300);

/// The memory that a call needs while its message is read, in bytes, besides its headers and the message.
const READER_BYTES: usize = 4096;

/// The memory for messages that are being read: this many bytes for each call that may be in flight, and this many of
/// the largest messages.
const READING: (usize, usize) = (8192, 16);

/// Carries the token that names a user.
const USER_TOKEN: &str = "tollgate-user-token";

/// A call that was let in: its caller, and its place among the calls in flight. The place is free again when the last
/// of its work is done and its answer has been sent.
#[derive(Clone)]
pub struct Admitted(Arc<(Arc<Caller>, Option<Share>)>);

impl Admitted {
    /// A call that nobody counts.
    #[must_use]
    pub fn uncounted(caller: Caller) -> Self {
        Self(Arc::new((Arc::new(caller), None)))
    }

    /// Returns the caller.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.0.0
    }
}

/// The options of a gate.
pub struct GateOptions {
    /// Decides which callers are let in.
    pub access: Arc<Access>,
    /// The number of calls that may be in flight. One more is UNAVAILABLE at once: a queue would only grow.
    pub max_in_flight: usize,
    /// The parts of that number that each app, and all public callers, may take.
    pub portions: Portions,
    /// The calls a second that each app may make to this replica with secret keys, and as many with public ones. It is
    /// also the size of a burst. `None` for any number.
    pub rate_per_app: Option<NonZeroU32>,
    /// The largest message, in bytes.
    pub max_message_bytes: usize,
    /// The time a message may take to arrive after the headers of its call.
    pub message_timeout: Duration,
    /// The longest time a call, or a reflection stream, may take.
    pub call_timeout: Duration,
    /// Reflection is for everybody, not only for holders of secret keys.
    pub open_reflection: bool,
}

/// Puts a gate before services.
#[derive(Clone)]
pub struct GateLayer(Arc<Rules>);

impl GateLayer {
    /// A gate.
    #[must_use]
    pub fn new(options: GateOptions) -> Self {
        // Where every caller is the app `default`, that app has everything.
        let app = if options.access.is_open() { 1.0 } else { options.portions.app };
        let portions = Portions { app, ..options.portions };
        let (places, most) = (options.max_in_flight, options.max_message_bytes);
        let memory = places.saturating_mul(READING.0).saturating_add(most.saturating_mul(READING.1));
        Self(Arc::new(Rules {
            calls: Shares::new(places, 1, portions),
            reading: Shares::new(memory, 2 * most, portions),
            rates: options.rate_per_app.map(|rate| RateLimiter::hashmap(Quota::per_second(rate))),
            free: Pool::new(MAX_OPEN_HEALTH_REQUESTS),
            reflections: Pool::new(MAX_REFLECTION_STREAMS),
            options,
        }))
    }

    /// Returns the number of calls in flight.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.0.calls.taken()
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

/// Limits the rate of each app's calls with secret keys, and of those with public ones.
type Rates = RateLimiter<(AppId, Role), HashMapStateStore<(AppId, Role)>, DefaultClock>;

struct Rules {
    options: GateOptions,
    /// The shares of the calls in flight.
    calls: Arc<Shares>,
    /// Memory, in bytes, for calls whose messages are being read.
    reading: Arc<Shares>,
    rates: Option<Rates>,
    free: Arc<Pool>,
    reflections: Arc<Pool>,
}

impl Rules {
    fn verdict(&self, headers: &HeaderMap, extensions: &Extensions) -> Verdict {
        let certificate = extensions.get::<ConnectionInfo>().and_then(|info| info.identity.as_deref());
        self.options.access.caller(credentials(headers), certificate)
    }

    /// The caller with a key that Redis may know.
    async fn look_up(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Arc<Caller>, Fault> {
        if let Some(guard) = &self.options.access.keys {
            guard.look_up().await?;
        }
        match self.verdict(headers, extensions) {
            Verdict::Known(caller) => Ok(caller),
            Verdict::Refused(fault) => Err(fault),
            Verdict::Unknown => Err(Fault::Unauthenticated),
        }
    }

    /// Checks whether the caller may make this call now, as far as that is known without its message.
    fn allow(&self, caller: &Caller, rpc: Rpc) -> Result<(), Fault> {
        if caller.role == Role::Public {
            match rpc.facts().callers {
                Callers::AllKeys | Callers::Everybody => {}
                Callers::PublicKeysForTheirUser if caller.user.is_some() => {}
                Callers::PublicKeysForTheirUser => return Err(Fault::NotYourUser),
                Callers::SecretKeys | Callers::SecretKeysUnlessOpen | Callers::Nobody => {
                    return Err(Fault::SecretKeyNeeded);
                }
            }
        }
        let Some(rates) = &self.rates else { return Ok(()) };
        rates.check_key(&(caller.app.clone(), caller.role)).map_err(|not_until| {
            let retry = not_until.wait_time_from(DefaultClock::default().now());
            Fault::TooManyCalls { retry }
        })
    }

    async fn read<B>(&self, body: B, most: usize, share: &mut Share) -> Result<message::Message, Status>
    where
        B: Body<Data = Bytes>,
    {
        let patience = self.options.message_timeout;
        let read = message::read(body, most, patience, share).await;
        read.map_err(|unread| unread.status(most, patience, status))
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

/// Returns the memory, in bytes, that a call needs whose message has not arrived yet.
fn reader(headers: &HeaderMap) -> usize {
    headers.iter().fold(READER_BYTES, |sum, (name, value)| sum + name.as_str().len() + value.len())
}

/// A call in flight that has shown no valid key, in the counts of its connection and of the replica.
struct Keyless {
    standing: Arc<Standing>,
    count: fn(&Standing) -> &AtomicUsize,
    pooled: Option<Pooled>,
}

impl Keyless {
    /// Counts a call, if fewer than `most` are in flight on its connection.
    fn count(standing: &Arc<Standing>, count: fn(&Standing) -> &AtomicUsize, most: usize) -> Result<Self, Fault> {
        let counted = Self { standing: Arc::clone(standing), count, pooled: None };
        let before = count(standing).fetch_add(1, Ordering::Relaxed);
        if before < most { Ok(counted) } else { Err(Fault::Overloaded) }
    }

    /// Ends the oldest call of the pool if there are too many.
    fn pooled(mut self, pool: &Arc<Pool>, stream: Option<Arc<Stream>>) -> Self {
        self.pooled = stream.map(|stream| pool.enter(stream));
        self
    }
}

impl Drop for Keyless {
    fn drop(&mut self) {
        (self.count)(&self.standing).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A service behind a gate.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S, Asked> Service<Request<Asked>> for Gate<S>
where
    S: Service<Request<AnyBody>, Response = Response<AnyBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    Asked: Body<Data = Bytes> + Send + 'static,
    Asked::Error: Into<StdError>,
{
    type Response = Response<Answer<AnyBody>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        // The service that was found ready goes on, and its clone takes its place.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let rules = Arc::clone(&self.rules);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let standing = ConnectionInfo::standing(&parts.extensions);
            let passing = Passing { inner, rules, standing };
            if parts.method == Method::CONNECT {
                // Its answer would make the stream a tunnel.
                let mut refusal = Response::<Answer<AnyBody>>::default();
                *refusal.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                return Ok(refusal);
            }
            let rpc = Rpc::of_path(parts.uri.path());
            match rpc.facts().callers {
                Callers::Nobody => passing.refuse(Fault::MethodUnknown, body).await,
                Callers::Everybody => passing.health(rpc, parts, body).await,
                Callers::SecretKeysUnlessOpen => passing.reflection(rpc, parts, body).await,
                Callers::SecretKeys | Callers::PublicKeysForTheirUser | Callers::AllKeys => {
                    passing.work(rpc, parts, body).await
                }
            }
        })
    }
}

/// A call on its way through the gate.
struct Passing<S> {
    inner: S,
    rules: Arc<Rules>,
    standing: Arc<Standing>,
}

type Answered<E> = Result<Response<Answer<AnyBody>>, E>;

impl<S: Service<Request<AnyBody>, Response = Response<AnyBody>>> Passing<S> {
    /// A call of the contract, or of Envoy.
    async fn work<Asked>(self, rpc: Rpc, mut parts: Parts, body: Asked) -> Answered<S::Error>
    where
        Asked: Body<Data = Bytes>,
    {
        let rules = Arc::clone(&self.rules);
        let most = rules.options.max_message_bytes;
        let (caller, message, memory) = match rules.verdict(&parts.headers, &parts.extensions) {
            Verdict::Refused(fault) => return self.refuse(fault, body).await,
            Verdict::Known(caller) => {
                if let Err(fault) = rules.allow(&caller, rpc) {
                    return self.refuse(fault, body).await;
                }
                self.let_in(&caller);
                let mut memory = match rules.reading.take(Taker::of(&caller), reader(&parts.headers)) {
                    Ok(memory) => memory,
                    Err(full) => return self.refuse(full.fault(), body).await,
                };
                match rules.read(body, most, &mut memory).await {
                    Ok(message) => (caller, message, memory),
                    Err(status) => return Ok(status.into_http()),
                }
            }
            Verdict::Unknown => {
                let taken = self.keyless().and_then(|keyless| {
                    let memory = rules.reading.take(Taker::Nobody, reader(&parts.headers));
                    Ok((keyless, memory.map_err(Full::fault)?))
                });
                let (_keyless, mut memory) = match taken {
                    Ok(taken) => taken,
                    Err(_) => return Ok(status(Fault::Overloaded).into_http()),
                };
                let message = match rules.read(body, most, &mut memory).await {
                    Ok(message) => message,
                    Err(status) => return Ok(status.into_http()),
                };
                let known = rules.look_up(&parts.headers, &parts.extensions).await;
                match known.and_then(|caller| rules.allow(&caller, rpc).map(|()| caller)) {
                    Ok(caller) => {
                        self.let_in(&caller);
                        (caller, message, memory)
                    }
                    Err(fault) => return Ok(status(fault).into_http()),
                }
            }
        };
        // Only now, as a caller decides when a message comes.
        let place = match rules.calls.take(Taker::of(&caller), 1) {
            Ok(place) => place,
            Err(full) => return Ok(status(full.fault()).into_http()),
        };
        drop(memory);
        let is_public = caller.role == Role::Public;
        let admitted = Admitted(Arc::new((caller, Some(place))));
        parts.extensions.insert(admitted.clone());
        self.answer(Request::from_parts(parts, AnyBody::new(message)), RECEIPT_TIMEOUT, admitted, is_public).await
    }

    /// A question about health: answered for everybody, however busy the replica is.
    async fn health<Asked>(self, rpc: Rpc, mut parts: Parts, body: Asked) -> Answered<S::Error>
    where
        Asked: Body<Data = Bytes>,
    {
        let watches = rpc == Rpc::HealthWatch;
        let counted = if watches { self.endless() } else { self.keyless() };
        let mut counted = match counted {
            Ok(counted) => counted,
            Err(fault) => return Ok(status(fault).into_http()),
        };
        if self.standing.level() < Level::Secret {
            let stream = Stream::current();
            if let Some(stream) = stream.as_ref().filter(|_| watches) {
                stream.endless_if_secret(&self.standing);
            }
            counted = counted.pooled(&self.rules.free, stream);
        }
        // Health looks at none of them but these.
        let needed = ["content-type", "te", "grpc-encoding", "grpc-accept-encoding"];
        let headers = std::mem::take(&mut parts.headers);
        parts.headers.extend(
            headers.into_iter().filter(|(name, _)| name.as_ref().is_some_and(|name| needed.contains(&name.as_str()))),
        );
        let patience = self.rules.options.message_timeout;
        let message = match message::read(body, MAX_HEALTH_REQUEST_BYTES, patience, &mut Share::of_its_own()).await {
            Ok(message) => message,
            Err(unread) => return Ok(unread.status(MAX_HEALTH_REQUEST_BYTES, patience, status).into_http()),
        };
        let receipt = if watches { WATCH_TIMEOUT } else { RECEIPT_TIMEOUT };
        self.answer(Request::from_parts(parts, AnyBody::new(message)), receipt, counted, true).await
    }

    /// Reflection: its answers are large, so that only holders of secret keys get them unless it is open.
    async fn reflection<Asked>(self, rpc: Rpc, parts: Parts, body: Asked) -> Answered<S::Error>
    where
        Asked: Body<Data = Bytes> + Send + 'static,
        Asked::Error: Into<StdError>,
    {
        let rules = Arc::clone(&self.rules);
        if !rules.options.open_reflection && !rules.options.access.is_open() {
            let known = match rules.verdict(&parts.headers, &parts.extensions) {
                Verdict::Known(caller) => Ok(caller),
                Verdict::Refused(fault) => Err(fault),
                Verdict::Unknown => rules.look_up(&parts.headers, &parts.extensions).await,
            };
            let allowed = known.and_then(|caller| rules.allow(&caller, rpc).map(|()| caller));
            match allowed {
                Ok(caller) => self.let_in(&caller),
                Err(fault) => return self.refuse(fault, body).await,
            }
        }
        let counted = match self.endless() {
            Ok(counted) => counted.pooled(&rules.reflections, Stream::current()),
            Err(fault) => return Ok(status(fault).into_http()),
        };
        let request = Request::from_parts(parts, AnyBody::new(Bounded::new(body, MAX_REFLECTION_BYTES)));
        self.answer(request, rules.options.call_timeout, counted, true).await
    }

    /// Returns the answer of the service. The caller has to receive all of it in this time. Until then the answer keeps
    /// what the call has taken.
    async fn answer(
        mut self,
        request: Request<AnyBody>,
        receipt: Duration,
        kept: impl Send + Sync + 'static,
        holds_back: bool,
    ) -> Answered<S::Error> {
        let answer = self.inner.call(request).await?;
        Stream::answered(receipt);
        Ok(answer.map(|body| Answer::keeping(body, &self.standing, kept, holds_back)))
    }

    /// The call has shown who makes it.
    fn let_in(&self, caller: &Caller) {
        self.standing.rise(caller.role.into());
        call::admitted(caller.role == Role::Secret);
    }

    /// Counts a call without a valid key, unless its connection has shown a secret one.
    fn keyless(&self) -> Result<Keyless, Fault> {
        let most = if self.standing.level() == Level::Secret { usize::MAX } else { MAX_KEYLESS_CALLS };
        Keyless::count(&self.standing, |standing| &standing.keyless, most)
    }

    /// Counts a stream that has no end of its own.
    fn endless(&self) -> Result<Keyless, Fault> {
        Keyless::count(&self.standing, |standing| &standing.endless, MAX_ENDLESS_STREAMS)
    }

    /// Answers with a fault, once the request has been read. A caller that goes on sending to an ended stream makes a
    /// mistake, and after too many mistakes its connection is ended, with the calls of others. Tollgate does not wait
    /// for callers that send much, or slowly, or that are many.
    async fn refuse<Asked: Body>(self, fault: Fault, body: Asked) -> Answered<S::Error> {
        let waiting = self.keyless().ok().zip(self.rules.reading.take(Taker::Nobody, READER_BYTES).ok());
        if waiting.is_some() {
            // An answer that comes late is as useless as none.
            let _: Result<(), _> = tokio::time::timeout(self.rules.options.message_timeout, discard(body)).await;
        }
        Ok(status(fault).into_http())
    }
}

/// Reads the request of a call that is refused before the gate, as [`Passing::refuse`] does.
pub(super) async fn read_out(body: impl Body) {
    const PATIENCE: Duration = Duration::from_secs(1);
    // Reading that takes too long is as useless as none.
    let _: Result<(), _> = tokio::time::timeout(PATIENCE, discard(body)).await;
}

/// Reads a body to its end, or until it was much.
async fn discard(body: impl Body) {
    let mut body = std::pin::pin!(body);
    let mut bytes = 0;
    while let Some(Ok(frame)) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        bytes += frame.data_ref().map_or(0, Buf::remaining);
        if bytes > MAX_DISCARDED_BYTES {
            return;
        }
    }
}
