//! Adds the reason to refusals of tonic: its own statuses carry no `ErrorInfo`, and it calls most mistakes of a caller
//! INTERNAL.

use std::collections::HashMap;

use http::HeaderMap;
use tonic::codegen::http::Response;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::status::DOMAIN;

/// Adds details to the status of an answer, if it is a fault without details. Faults are in the headers, and nothing
/// follows. An answer that is not a fault names no status there, and passes at the price of a look.
pub fn with_fault_details<Answered>(mut answer: Response<Answered>) -> Response<Answered> {
    add_fault_details(answer.headers_mut());
    answer
}

/// Completes the status in headers or trailers, if there is one, it is a fault, and it has no details.
pub(super) fn add_fault_details(headers: &mut HeaderMap) {
    if headers.get("grpc-status").is_none_or(|code| code == "0") || headers.contains_key("grpc-status-details-bin") {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let (code, reason, message) = reason(&status);
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    // A message that cannot be a header stays as it was.
    let _: Result<(), _> = Status::with_error_details(code, message, details).add_header(headers);
}

/// Returns the meaning of a status that no Tollgate service produced: its code, the reason for `ErrorInfo`, and a
/// message.
///
/// A status without details never came from a Tollgate service, so it is not the server's fault. tonic and the
/// specifications that it follows say INTERNAL where a request cannot be read, which would alert the operator for a
/// mistake of a caller.
fn reason(status: &Status) -> (Code, &'static str, String) {
    let said = status.message();
    match status.code() {
        Code::Unimplemented => {
            let message = "there is no such service or method: server reflection lists them".to_owned();
            (Code::Unimplemented, "METHOD_UNKNOWN", message)
        }
        Code::OutOfRange => (Code::OutOfRange, "MESSAGE_TOO_LARGE", said.to_owned()),
        // While it was decompressed. To wait, as RESOURCE_EXHAUSTED suggests, does not make it smaller.
        Code::ResourceExhausted if said.contains("decompress") => {
            (Code::OutOfRange, "MESSAGE_TOO_LARGE", said.to_owned())
        }
        Code::NotFound => (Code::NotFound, "NOT_FOUND", said.to_owned()),
        Code::InvalidArgument => (Code::InvalidArgument, "INVALID_FIELD", said.to_owned()),
        Code::Cancelled => (Code::Cancelled, "CANCELLED", said.to_owned()),
        Code::Internal => {
            let message = format!(
                "the request cannot be read: {said}; send one message of the method's type, framed and compressed as gRPC says"
            );
            (Code::InvalidArgument, "MESSAGE_MALFORMED", message)
        }
        // What the client itself said when it reset the call, or how its connection ended: nobody reads this answer.
        _ => (Code::Cancelled, "CANCELLED", said.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: &Status) -> Response<()> {
        let mut answer = Response::new(());
        status.add_header(answer.headers_mut()).unwrap();
        answer.headers_mut().insert("grpc-accept-encoding", "identity".parse().unwrap());
        answer
    }

    #[test]
    fn a_fault_without_details_gets_them_and_keeps_its_headers() {
        let told = with_fault_details(answer(&Status::internal("failed to decode: 100 %")));
        assert_eq!(told.headers()["grpc-accept-encoding"], "identity");
        let status = Status::from_header_map(told.headers()).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("failed to decode: 100 %"), "{status:?}");
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "MESSAGE_MALFORMED");
    }

    #[test]
    fn what_tonic_alone_says_is_never_the_fault_of_the_server() {
        for code in (1..=16).map(Code::from_i32) {
            let told = with_fault_details(answer(&Status::new(code, "h2 protocol error")));
            let found = Status::from_header_map(told.headers()).unwrap().code();
            assert!(!matches!(found, Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss), "{code:?}");
        }
    }

    #[test]
    fn an_answer_without_a_fault_or_with_details_passes_unchanged() {
        let details = ErrorDetails::with_error_info("MINE", "elsewhere", HashMap::new());
        for status in [Status::ok(""), Status::with_error_details(Code::Internal, "mine", details)] {
            let before = answer(&status);
            assert_eq!(with_fault_details(answer(&status)).headers(), before.headers());
        }
        assert!(with_fault_details(Response::new(())).headers().is_empty());
    }
}
