//! The values that labels can have: closed sets, so that no caller can make a time series.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::rpc::Rpc;

/// An enum of label values, which can index an array.
macro_rules! values {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value),* }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$value),*];

            /// Returns the value of the label.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text),* }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                self.as_str().encode(encoder)
            }
        }
    };
}

impl EncodeLabelValue for Rpc {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.facts().name.encode(encoder)
    }
}

values! {
    /// The outcome of a call.
    Outcome {
        /// The caller may go ahead, or what was tracked was counted.
        Allowed = "allowed",
        /// A limit was reached, or the event has no limit to go by.
        Denied = "denied",
        /// Tracked, and counted nowhere: the event matched no limit group, or the user has no subscription.
        Uncounted = "uncounted",
        /// The answer to an earlier call with the same id.
        Replayed = "replayed",
        /// Allowed without a decision, as this deployment fails open.
        Degraded = "degraded",
        /// An answer that decides nothing.
        Done = "done",
        /// A status that is not OK.
        Fault = "fault",
        /// The caller went away before the answer.
        Cancelled = "cancelled",
    }
}

values! {
    /// A gRPC status code.
    #[allow(missing_docs)]
    Code {
        Ok = "OK",
        Cancelled = "CANCELLED",
        Unknown = "UNKNOWN",
        InvalidArgument = "INVALID_ARGUMENT",
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        NotFound = "NOT_FOUND",
        AlreadyExists = "ALREADY_EXISTS",
        PermissionDenied = "PERMISSION_DENIED",
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        FailedPrecondition = "FAILED_PRECONDITION",
        Aborted = "ABORTED",
        OutOfRange = "OUT_OF_RANGE",
        Unimplemented = "UNIMPLEMENTED",
        Internal = "INTERNAL",
        Unavailable = "UNAVAILABLE",
        DataLoss = "DATA_LOSS",
        Unauthenticated = "UNAUTHENTICATED",
    }
}

values! {
    /// The reason why a Redis command failed.
    RedisError {
        /// Redis gave no answer in time: the outcome is unknown.
        Timeout = "timeout",
        /// The connection could not be made, or broke.
        Io = "io",
        /// The node is a replica now.
        ReadOnly = "readonly",
        /// The node has been restarted, and reads its data.
        Loading = "loading",
        /// `maxmemory` is reached.
        OutOfMemory = "oom",
        /// Fewer replicas keep up than `min-replicas-to-write`.
        NoReplicas = "noreplicas",
        /// The access list, or the password.
        Access = "access",
        /// The cluster's state is not ok, or a slot has no master.
        ClusterDown = "clusterdown",
        /// A script failed: a bug, or somebody else's writing in Tollgate's keys.
        Script = "script",
        /// Redis did not have a script, which was then sent in full.
        NoScript = "noscript",
        /// Redis did not have a function, which was then run as a script.
        FunctionLost = "function_lost",
        /// Anything else.
        Other = "other",
    }
}

values! {
    /// The reason why an event was counted nowhere.
    Uncounted {
        /// No limit group of the plan matches it.
        UnmatchedEvent = "unmatched_event",
        /// The user has no subscription, and there is no default plan.
        NoSubscription = "no_subscription",
    }
}

values! {
    /// A part of Tollgate that can be up or down by itself.
    Component {
        /// Redis answers, and takes writes.
        Redis = "redis",
        /// The catalog in use is the one that the files have: a new one was not refused.
        Catalog = "catalog",
    }
}

values! {
    /// The outcome of reading a catalog.
    Load {
        /// The catalog is in use.
        Loaded = "loaded",
        /// The catalog was not valid, and the one before it stays in use.
        Refused = "refused",
    }
}

values! {
    /// The reason why Envoy got a fault instead of a decision: the `reason` of the fault's `ErrorInfo`.
    #[allow(missing_docs)]
    EnvoyFault {
        UserIdMissing = "USER_ID_MISSING",
        EntryAmbiguous = "ENTRY_AMBIGUOUS",
        LimitOverride = "LIMIT_OVERRIDE",
        HitsMissing = "HITS_MISSING",
        DomainInvalid = "DOMAIN_INVALID",
        DescriptorCount = "DESCRIPTOR_COUNT",
        InvalidField = "INVALID_FIELD",
        OutOfRange = "OUT_OF_RANGE",
        QuantityMissing = "QUANTITY_MISSING",
        PartsExceedWhole = "PARTS_EXCEED_WHOLE",
        PlanUnknown = "PLAN_UNKNOWN",
        AppUnknown = "APP_UNKNOWN",
        Unauthenticated = "UNAUTHENTICATED",
        SecretKeyNeeded = "SECRET_KEY_NEEDED",
        CertificateUnknown = "CERTIFICATE_UNKNOWN",
        TooManyCalls = "TOO_MANY_CALLS",
        Overloaded = "OVERLOADED",
        Unavailable = "UNAVAILABLE",
        Contended = "CONTENDED",
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        Internal = "INTERNAL",
        /// Any other, or none: the message could not be read.
        Other = "other",
    }
}

values! {
    /// The part of a descriptor that is not valid, so that Envoy is told OVER_LIMIT.
    DeniedValue {
        /// A value that is not UTF-8.
        Encoding = "encoding",
        /// The user id.
        UserId = "user_id",
        /// The event's name.
        Event = "event",
        /// A value of metadata, which is too long.
        Metadata = "metadata",
        /// A number that a limit group measures: it is none, or too large, or less than its parts.
        Number = "number",
        /// The user has as many live holds as Tollgate keeps.
        Holds = "holds",
    }
}

impl EnvoyFault {
    /// Parses the reason of a fault.
    #[must_use]
    pub fn of(reason: &str) -> Self {
        Self::ALL.iter().copied().find(|fault| fault.as_str() == reason).unwrap_or(Self::Other)
    }
}

impl Code {
    /// Returns the label of a status, by its number.
    #[must_use]
    pub fn of(number: i32) -> Self {
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number)).copied().unwrap_or(Self::Unknown)
    }

    /// Parses the text of a `grpc-status` header.
    #[must_use]
    pub fn of_header(text: &[u8]) -> Self {
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<usize>().ok());
        number.and_then(|number| Self::ALL.get(number)).copied().unwrap_or(Self::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_numbers_of_grpc() {
        for (number, name) in [(0, "OK"), (5, "NOT_FOUND"), (8, "RESOURCE_EXHAUSTED"), (16, "UNAUTHENTICATED")] {
            assert_eq!(Code::of_header(number.to_string().as_bytes()).as_str(), name);
        }
        assert_eq!([0, 10, 17, -1].map(Code::of), [Code::Ok, Code::Aborted, Code::Unknown, Code::Unknown]);
        for odd in ["", "17", "-1", "x", "\u{ff}"] {
            assert_eq!(Code::of_header(odd.as_bytes()), Code::Unknown, "{odd:?}");
        }
    }
}
