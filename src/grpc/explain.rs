//! Says why to whom tonic alone refused: its own statuses carry no `ErrorInfo`.

use std::collections::HashMap;

use tonic::codegen::http::Response;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::status::DOMAIN;

/// An answer whose status, if it is a fault without details, has them. Faults are in the headers, and nothing follows; what is no fault
/// names no status there, and passes at the price of a look.
pub fn explained<Answered>(mut answer: Response<Answered>) -> Response<Answered> {
    let headers = answer.headers();
    if headers.get("grpc-status").is_none_or(|code| code == "0") || headers.contains_key("grpc-status-details-bin") {
        return answer;
    }
    let Some(status) = Status::from_header_map(headers) else { return answer };
    let (reason, message) = reason(&status);
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    // What cannot be a header stays as it was.
    let _: Result<(), _> = Status::with_error_details(status.code(), message, details).add_header(answer.headers_mut());
    answer
}

/// What the code means where no service of ours has answered, for `ErrorInfo`, and a message.
fn reason(status: &Status) -> (&'static str, String) {
    let said = status.message();
    match status.code() {
        Code::Unimplemented if said.is_empty() => {
            ("METHOD_UNKNOWN", "there is no such service or method: server reflection lists them".to_owned())
        }
        // A compression that was not offered, which the message names.
        Code::Unimplemented => ("ENCODING_UNSUPPORTED", said.to_owned()),
        Code::OutOfRange => ("MESSAGE_TOO_LARGE", said.to_owned()),
        Code::Internal => ("MESSAGE_MALFORMED", said.to_owned()),
        Code::NotFound => ("NOT_FOUND", said.to_owned()),
        Code::InvalidArgument => ("INVALID_FIELD", said.to_owned()),
        Code::Cancelled => ("CANCELLED", said.to_owned()),
        Code::ResourceExhausted => ("RESOURCE_EXHAUSTED", said.to_owned()),
        _ => ("REFUSED", said.to_owned()),
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
        let told = explained(answer(&Status::internal("failed to decode: 100 %")));
        assert_eq!(told.headers()["grpc-accept-encoding"], "identity");
        let status = Status::from_header_map(told.headers()).unwrap();
        assert_eq!((status.code(), status.message()), (Code::Internal, "failed to decode: 100 %"));
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "MESSAGE_MALFORMED");
    }

    #[test]
    fn what_is_no_fault_or_explained_passes_as_it_is() {
        let details = ErrorDetails::with_error_info("MINE", "elsewhere", HashMap::new());
        for status in [Status::ok(""), Status::with_error_details(Code::Internal, "mine", details)] {
            let before = answer(&status);
            assert_eq!(explained(answer(&status)).headers(), before.headers());
        }
        assert!(explained(Response::new(())).headers().is_empty());
    }
}
