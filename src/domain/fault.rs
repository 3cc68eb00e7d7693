//! The faults: everything that can go wrong. A denial is not a fault: it is an answer.

use super::amount::{Unit, Units};
use super::answer::ReservationState;

/// The reason why a call has no answer. `grpc::status` is the one table from here to statuses.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A field of the request violates a bound.
    #[error("{field} {problem}")]
    Invalid {
        /// The field, as the proto names it.
        field: String,
        /// Continues the sentence "the field ...", and says what to do.
        problem: String,
        /// The reason for `ErrorInfo`.
        reason: &'static str,
    },
    /// A number, or what a counter would become, is too large.
    #[error("{field} {problem}")]
    OutOfRange {
        /// The field, as the proto names it, or a limit group.
        field: String,
        /// Continues the sentence "the field ...".
        problem: String,
    },
    /// The event matches a limit group, but lacks what the group measures.
    #[error(
        "the event matches limit group {group:?}, which measures {quantity:?}, but does not carry it: name it in \
         `quantities`, or as a decimal number in `metadata`"
    )]
    QuantityMissing {
        /// The limit group.
        group: String,
        /// The first quantity that is missing.
        quantity: String,
    },
    /// The event names more of the parts of a quantity than of the quantity itself.
    #[error(
        "the event matches limit group {group:?}, which measures {} as part of {whole:?}, but it carries more of that than of \
         {whole:?}: name in {whole:?} everything, its parts too",
        Parts(.parts)
    )]
    PartsExceedWhole {
        /// The limit group.
        group: String,
        /// The quantity that has parts.
        whole: String,
        /// Its parts.
        parts: Vec<String>,
    },
    /// The id came before, with another body or RPC.
    #[error("request_id was used before with another body or RPC: use a new id for a new request")]
    RequestIdReused,
    /// The reservation is not remembered.
    #[error(
        "the reservation is unknown, and may have been settled long ago: if you track its usage, it may count twice"
    )]
    ReservationNotFound,
    /// The reservation was committed before, with other charges or to be released now.
    #[error("the reservation was committed before{}", Committed(.committed))]
    AlreadyCommitted {
        /// The charge of each group.
        committed: Vec<(String, Unit, Units)>,
    },
    /// A refund of a reservation that is not committed.
    #[error("the reservation is {}, not committed: only what was committed can be refunded", .state.as_str())]
    NotCommitted {
        /// The reservation's state.
        state: ReservationState,
    },
    /// An Extend of a reservation whose deadline has passed.
    #[error(
        "the deadline of the reservation has passed: make another reservation, and commit what was used of this one"
    )]
    ReservationExpired,
    /// An Extend of a reservation that was released.
    #[error("the reservation was released: make another one")]
    ReservationReleased,
    /// Every window of the time of the event is gone.
    #[error(
        "no limit group still keeps its window of that time: nothing was counted; an event can be counted in the current and the previous window"
    )]
    WindowClosed,
    /// No plan is in force, so there is nothing to do.
    #[error("the user has no subscription in force, and the catalog has no default plan: UpsertSubscription makes one")]
    NoSubscription,
    /// The subscription is not the one that the caller has read.
    #[error("the subscription is not the one with this etag: read it with GetSubscription, and decide again")]
    EtagMismatch,
    /// A request of a batch that was not tried.
    #[error(
        "this request was not tried, because an earlier one of the same user had no answer or the batch took too long: ask again, \
         with the same request_id"
    )]
    NotTried,
    /// The user has no subscription.
    #[error("the user has no subscription: UpsertSubscription makes one")]
    SubscriptionNotFound,
    /// The catalog has no such plan.
    #[error("the catalog has no plan {0:?}: ListPlans names them")]
    PlanNotFound(String),
    /// The user's plan is no longer in the catalog.
    #[error("the user's plan {0:?} is not in the catalog: put it back, or put the user on another plan")]
    PlanUnknown(String),
    /// The request is not a POST, so it is not gRPC.
    #[error("the HTTP method is not POST: this port speaks gRPC, whose calls are POST requests over HTTP/2")]
    NotPost,
    /// The request's messages are not Protocol Buffers, or it does not say so.
    #[error(
        "the content-type is not `application/grpc`: this port speaks gRPC, with messages of Protocol Buffers; for JSON on the \
         command line use grpcurl, which translates"
    )]
    NotGrpc,
    /// The request is compressed in a way that this server does not know.
    #[error("the request's grpc-encoding is not supported: send gzip, deflate or identity")]
    EncodingUnsupported,
    /// The caller shows no key, or an unknown one.
    #[error("the call carries no valid API key: send `authorization: Bearer KEY`; `tollgate keys create` makes one")]
    Unauthenticated,
    /// The key is public, and the call is not.
    #[error("a public key may call GetUsage and PlanService only: call this with a secret key, from a server")]
    SecretKeyNeeded,
    /// The token of a public caller names another user, or there is none.
    #[error(
        "the token names another user, or is missing: mint one for this user with a secret key, and send it as tollgate-user-token"
    )]
    NotYourUser,
    /// The token of a public caller is not valid.
    #[error("the tollgate-user-token is not valid: {0}")]
    TokenInvalid(String),
    /// The client's certificate is valid, and names no app.
    #[error("the client's certificate names no app: map one of its names by tls-client-app")]
    CertificateUnknown,
    /// The catalogs name no plans for the caller's app.
    #[error("app {0:?} has no catalog: put {0}.yaml into the folder that --catalog names")]
    AppUnknown(String),
    /// The user has as many live holds as Tollgate keeps.
    #[error("the user has 10000 live holds: settle some, or wait for their deadlines")]
    TooManyHolds,
    /// Redis gave no answer: nothing is claimed, and the outcome is unknown.
    #[error("the ledger did not answer, and the outcome is unknown: ask again, with the same request_id")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The reservation was made by a plan that this replica does not have, and that the archive does not have either.
    #[error(
        "the plan by which the reservation was made is neither in the catalog nor in the archive: nothing was done, ask again"
    )]
    PlanNotArchived,
    /// A newer version of Tollgate wrote the user's data.
    #[error("a newer version of Tollgate than this replica wrote the user's data: nothing was done, ask again")]
    FormatUnknown,
    /// This replica has as many calls in flight as it takes.
    #[error("this replica has as many calls in flight as it takes: nothing was done, ask again")]
    Overloaded,
    /// The caller's app, or its public keys, have as many calls in flight as their share of this replica allows.
    #[error(
        "the app, or its public keys, have as many calls in flight as their share of this replica allows: nothing was done, ask \
         again when some of them have been answered"
    )]
    ShareTaken,
    /// The message is larger than messages may be.
    #[error("the message is too large: the limit is {most} bytes")]
    MessageTooLarge {
        /// The largest size, in bytes.
        most: usize,
    },
    /// The message of the call did not arrive.
    #[error(
        "the message did not arrive within {patience:?} of the headers: nothing was done, send it with the headers"
    )]
    MessageLate {
        /// The time for which it was awaited.
        patience: std::time::Duration,
    },
    /// The app calls more often than it may.
    #[error("the app calls this replica more often than it may: nothing was done, ask again later")]
    TooManyCalls {
        /// The time to wait before another attempt.
        retry: std::time::Duration,
    },
    /// The server has no such service or method.
    #[error("there is no such service or method: server reflection lists them")]
    MethodUnknown,
    /// The deadline of the call has passed.
    #[error("the call's deadline has passed, and the outcome is unknown: ask again, with the same request_id")]
    DeadlineExceeded,
    /// Others changed the user's subscription with every attempt.
    #[error("the user's subscription or window changed with every attempt: ask again, with the same request_id")]
    Contended,
    /// A bug, or foreign data in Tollgate's keys.
    #[error("the ledger's answer was not understood; the log says more")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Shows charges as `: tokens_total 150 tokens, spend 0.25 cents`, if there are any.
struct Committed<'a>(&'a [(String, Unit, Units)]);

impl std::fmt::Display for Committed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (group, unit, units)) in self.0.iter().enumerate() {
            let comma = if index == 0 { ": " } else { ", " };
            write!(f, "{comma}{group} {} {}", unit.to_f64(*units), unit.as_str())?;
        }
        Ok(())
    }
}

/// Shows names as `"cached_tokens" and "audio_tokens"`.
struct Parts<'a>(&'a [String]);

impl std::fmt::Display for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let and = if index == 0 { "" } else { " and " };
            write!(f, "{and}{name:?}")?;
        }
        Ok(())
    }
}

impl ReservationState {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Committed => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_exceed_their_whole_are_named() {
        let fault = |parts: &[&str]| Fault::PartsExceedWhole {
            group: "spend".to_owned(),
            whole: "prompt_tokens".to_owned(),
            parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        };
        assert_eq!(
            fault(&["cached_tokens", "audio_tokens"]).to_string(),
            "the event matches limit group \"spend\", which measures \"cached_tokens\" and \"audio_tokens\" as part of \
             \"prompt_tokens\", but it carries more of that than of \"prompt_tokens\": name in \"prompt_tokens\" everything, its parts too"
        );
        assert!(fault(&["cached_tokens"]).to_string().contains("measures \"cached_tokens\" as part of"));
    }

    #[test]
    fn a_fault_about_a_reservation_says_what_became_of_it() {
        let committed =
            vec![("tokens_total".to_owned(), Unit::Tokens, 150), ("spend".to_owned(), Unit::Cents, 250_000)];
        assert_eq!(
            Fault::AlreadyCommitted { committed }.to_string(),
            "the reservation was committed before: tokens_total 150 tokens, spend 0.25 cents"
        );
        let unknown = Fault::AlreadyCommitted { committed: Vec::new() };
        assert_eq!(unknown.to_string(), "the reservation was committed before");
        for (state, word) in [
            (ReservationState::Held, "held"),
            (ReservationState::Committed, "committed"),
            (ReservationState::Released, "released"),
            (ReservationState::Expired, "expired"),
        ] {
            assert_eq!(
                Fault::NotCommitted { state }.to_string(),
                format!("the reservation is {word}, not committed: only what was committed can be refunded")
            );
        }
    }
}
