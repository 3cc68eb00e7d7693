//! Converts faults to statuses: the one table.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::domain::fault::Fault;
use crate::telemetry::call;
use crate::telemetry::throttle::Seldom;

/// The domain of the reasons in `ErrorInfo`.
pub(super) const DOMAIN: &str = "tollgate";

/// Calls that meet what a newer version has stored are many, and all say the same.
static FORMAT_UNKNOWN: Seldom = Seldom::new(Duration::from_secs(60));

/// The time to wait before another attempt, when Redis gave no answer.
const RETRY: Duration = Duration::from_millis(500);

/// The status of a fault, with `ErrorInfo`, and with `BadRequest` or `RetryInfo` where they help.
pub(super) fn status(fault: Fault) -> Status {
    let (code, reason) = match &fault {
        Fault::Invalid { reason, .. } => (Code::InvalidArgument, *reason),
        Fault::OutOfRange { .. } => (Code::OutOfRange, "OUT_OF_RANGE"),
        Fault::QuantityMissing { .. } => (Code::InvalidArgument, "QUANTITY_MISSING"),
        Fault::PartsExceedWhole { .. } => (Code::InvalidArgument, "PARTS_EXCEED_WHOLE"),
        Fault::RequestIdReused => (Code::InvalidArgument, "REQUEST_ID_REUSED"),
        Fault::ReservationNotFound => (Code::NotFound, "RESERVATION_NOT_FOUND"),
        Fault::AlreadyCommitted { .. } => (Code::FailedPrecondition, "ALREADY_COMMITTED"),
        Fault::NotCommitted { .. } => (Code::FailedPrecondition, "NOT_COMMITTED"),
        Fault::ReservationExpired => (Code::FailedPrecondition, "RESERVATION_EXPIRED"),
        Fault::ReservationReleased => (Code::FailedPrecondition, "RESERVATION_RELEASED"),
        Fault::WindowClosed => (Code::FailedPrecondition, "WINDOW_CLOSED"),
        Fault::NoSubscription => (Code::FailedPrecondition, "NO_SUBSCRIPTION"),
        Fault::EtagMismatch => (Code::Aborted, "ETAG_MISMATCH"),
        Fault::SubscriptionNotFound => (Code::NotFound, "SUBSCRIPTION_NOT_FOUND"),
        Fault::PlanNotFound(_) => (Code::NotFound, "PLAN_NOT_FOUND"),
        Fault::PlanUnknown(_) => (Code::FailedPrecondition, "PLAN_UNKNOWN"),
        Fault::NotPost => (Code::Unimplemented, "METHOD_NOT_ALLOWED"),
        Fault::NotGrpc => (Code::InvalidArgument, "CONTENT_TYPE_UNSUPPORTED"),
        Fault::EncodingUnsupported => (Code::Unimplemented, "ENCODING_UNSUPPORTED"),
        Fault::Unauthenticated => (Code::Unauthenticated, "UNAUTHENTICATED"),
        Fault::TokenInvalid(_) => (Code::Unauthenticated, "TOKEN_INVALID"),
        Fault::SecretKeyNeeded => (Code::PermissionDenied, "SECRET_KEY_NEEDED"),
        Fault::CertificateUnknown => (Code::PermissionDenied, "CERTIFICATE_UNKNOWN"),
        Fault::NotYourUser => (Code::PermissionDenied, "NOT_YOUR_USER"),
        Fault::AppUnknown(_) => (Code::FailedPrecondition, "APP_UNKNOWN"),
        Fault::TooManyHolds => (Code::ResourceExhausted, "TOO_MANY_HOLDS"),
        Fault::Unavailable(_) => (Code::Unavailable, "UNAVAILABLE"),
        Fault::Contended => (Code::Unavailable, "CONTENDED"),
        Fault::NotTried => (Code::Unavailable, "NOT_TRIED"),
        Fault::PlanNotArchived => (Code::Unavailable, "PLAN_NOT_ARCHIVED"),
        Fault::FormatUnknown => (Code::Unavailable, "FORMAT_UNKNOWN"),
        Fault::Overloaded => (Code::Unavailable, "OVERLOADED"),
        Fault::ShareTaken => (Code::ResourceExhausted, "TOO_MANY_AT_ONCE"),
        Fault::TooManyCalls { .. } => (Code::ResourceExhausted, "TOO_MANY_CALLS"),
        Fault::MessageTooLarge { .. } => (Code::OutOfRange, "MESSAGE_TOO_LARGE"),
        Fault::MessageLate { .. } => (Code::DeadlineExceeded, "MESSAGE_LATE"),
        Fault::MethodUnknown => (Code::Unimplemented, "METHOD_UNKNOWN"),
        Fault::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Fault::Internal(_) => (Code::Internal, "INTERNAL"),
    };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, facts(&fault));
    match &fault {
        Fault::Invalid { field, problem, .. } | Fault::OutOfRange { field, problem } => {
            details.add_bad_request_violation(field, problem);
        }
        Fault::RequestIdReused => {
            details.add_bad_request_violation("request_id", "was used before with another body or RPC");
        }
        Fault::QuantityMissing { quantity, .. } => {
            details.add_bad_request_violation(format!("event.quantities[{quantity:?}]"), "is missing");
        }
        Fault::PartsExceedWhole { whole, .. } => {
            details.add_bad_request_violation(format!("event.quantities[{whole:?}]"), "is less than its parts");
        }
        Fault::Unavailable(_)
        | Fault::Contended
        | Fault::NotTried
        | Fault::PlanNotArchived
        | Fault::FormatUnknown
        | Fault::Overloaded
        | Fault::ShareTaken => {
            details.set_retry_info(Some(RETRY));
        }
        Fault::TooManyCalls { retry } => {
            details.set_retry_info(Some(*retry));
        }
        _ => {}
    }
    match &fault {
        Fault::Internal(source) => {
            tracing::error!(error = &**source as &dyn Error, "the ledger's answer was not understood")
        }
        Fault::FormatUnknown => {
            if FORMAT_UNKNOWN.passes() {
                tracing::error!("a newer version of Tollgate wrote a user's state: update this replica");
            }
        }
        Fault::Unavailable(_) | Fault::Contended | Fault::PlanNotArchived => {
            tracing::warn!(error = &fault as &dyn Error, reason, "a call has no answer");
        }
        // Mistakes of callers are for the callers, and their text may quote them.
        _ => tracing::debug!(code = ?code, reason, "a call was refused"),
    }
    let text = fault.to_string();
    call::fails(reason, &text);
    Status::with_error_details(code, text, details)
}

/// Returns the metadata of `ErrorInfo`: the facts that a program may need about a fault.
fn facts(fault: &Fault) -> HashMap<String, String> {
    let facts: Vec<(String, String)> = match fault {
        Fault::QuantityMissing { group, quantity } => {
            vec![("limit_group_id".to_owned(), group.clone()), ("quantity".to_owned(), quantity.clone())]
        }
        Fault::PartsExceedWhole { group, whole, parts } => vec![
            ("limit_group_id".to_owned(), group.clone()),
            ("quantity".to_owned(), whole.clone()),
            ("parts".to_owned(), parts.join(", ")),
        ],
        Fault::AlreadyCommitted { committed } => committed
            .iter()
            .map(|(group, unit, units)| (format!("committed.{group}"), unit.to_f64(*units).to_string()))
            .collect(),
        Fault::NotCommitted { state } => vec![("state".to_owned(), state.as_str().to_owned())],
        Fault::PlanUnknown(id) | Fault::PlanNotFound(id) => vec![("plan_id".to_owned(), id.clone())],
        _ => Vec::new(),
    };
    facts.into_iter().collect()
}
