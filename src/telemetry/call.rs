//! The context of a call while it is served: its request id, its span, and its outcome.
//!
//! All code that runs within the call finds it, so that neither use cases nor the ledger pass it on. Outside a call,
//! everything here does nothing.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::Write as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue};
use opentelemetry::Context;
use tokio::runtime::Handle;
use tokio::task::futures::TaskLocalFuture;

use crate::rpc::Rpc;

use super::labels::Outcome;
use super::trace;

/// The header that carries the id of a request, in requests and in answers.
pub const REQUEST_ID: &str = "x-request-id";

/// The longest request id that is taken from a caller.
const LONGEST: usize = 64;

tokio::task_local! {
    static CALL: CallContext;
}

/// The context of a call.
#[derive(Debug, Clone)]
pub(super) struct CallContext {
    pub(super) rpc: Rpc,
    pub(super) request_id: HeaderValue,
    /// The reason why a proxy gets no decision: the reason of the fault, and its text.
    pub(super) fault: RefCell<Option<(&'static str, String)>>,
    pub(super) outcome: Cell<Outcome>,
    pub(super) retries: Cell<u32>,
    /// The facts for its span, if calls are traced.
    pub(super) beginning: Option<trace::Beginning>,
    /// The span. It begins when the caller is known, because the caller decides whose trace it belongs to.
    pub(super) span: OnceCell<Context>,
}

impl CallContext {
    /// The span, which begins now if it has not begun. It belongs to the caller's trace if the caller is `trusted`.
    pub(super) fn begin_span(&self, trusted: bool) -> Option<&Context> {
        let beginning = self.beginning.as_ref()?;
        Some(self.span.get_or_init(|| trace::begin(beginning, trusted)))
    }
}

/// Serves `work` as this call.
pub(super) fn serve<F: Future>(call: CallContext, work: F) -> TaskLocalFuture<CallContext, F> {
    CALL.scope(call, work)
}

/// Notes that the caller is known. Only a `trusted` caller decides whether the call is traced: each span costs the
/// collector, and everybody can send a `traceparent`.
pub fn admitted(trusted: bool) {
    let _: Result<(), _> = CALL.try_with(|call| {
        let _span = call.begin_span(trusted);
    });
}

/// Notes what the call decides.
pub fn decides(outcome: Outcome) {
    let _: Result<(), _> = CALL.try_with(|call| call.outcome.set(outcome));
}

/// Notes why the call ends in a fault, where a proxy asks: it shows the fault to nobody.
pub fn fails(reason: &'static str, text: &str) {
    let _: Result<(), _> = CALL.try_with(|call| {
        if call.rpc == Rpc::ShouldRateLimit {
            call.fault.replace(Some((reason, text.to_owned())));
        }
    });
}

/// Notes that the call is compiled again.
pub fn compiles_again() {
    let _: Result<(), _> = CALL.try_with(|call| call.retries.set(call.retries.get() + 1));
}

/// Looks at the call, if there is one.
pub(super) fn with<T>(look: impl FnOnce(&CallContext) -> T) -> Option<T> {
    CALL.try_with(look).ok()
}

/// Goes on with a call's work as a task of its own.
pub fn spawn(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
    match with(Clone::clone) {
        Some(call) => drop(runtime.spawn(CALL.scope(call, work))),
        None => drop(runtime.spawn(work)),
    }
}

/// The request's id: the caller's, if it can stand in a log, or a new one.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        Some(given) if is_sane(given.as_bytes()) => given.clone(),
        _ => fresh(),
    }
}

fn is_sane(id: &[u8]) -> bool {
    let may_stand = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=LONGEST).contains(&id.len()) && id.iter().all(may_stand)
}

/// Random for the process, and counted within it: unlike any other, at the cost of an addition.
fn fresh() -> HeaderValue {
    static PROCESS: LazyLock<String> = LazyLock::new(|| {
        let mut random = [0; 8];
        // Ids are for looking things up. Without random numbers those of two processes may be the same.
        let _: Result<(), _> = getrandom::fill(&mut random);
        format!("{:016x}-", u64::from_le_bytes(random))
    });
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut id = String::with_capacity(PROCESS.len() + 16);
    id.push_str(&PROCESS);
    let _: Result<(), _> = write!(id, "{:x}", NEXT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sane_id_of_the_caller_is_taken() {
        let of = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        let long = "x".repeat(64);
        for sane in ["a", "0190-Ab_c.d", &long] {
            assert_eq!(of(sane.as_bytes()), sane);
        }
        for odd in ["", "a b", "a\"b", "{}", "\u{e4}", &"x".repeat(65)] {
            let made = of(odd.as_bytes());
            assert_ne!(made, odd);
            assert!(is_sane(made.as_bytes()));
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
