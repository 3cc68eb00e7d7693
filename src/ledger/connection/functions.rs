//! The ways to run a script: as a function, by its digest, or by its text. Which of them Redis can take.

use std::sync::atomic::{AtomicU8, Ordering};

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};

use super::super::script::{Script, scripts};
use crate::telemetry::labels::RedisError as Kind;
use crate::telemetry::metrics;

/// The state of the functions in Redis.
pub(super) struct Functions(AtomicU8);

/// Redis has them.
const THERE: u8 = 0;
/// Redis had the functions, and must be given them again.
const LOST: u8 = 1;
/// Redis does not take functions: an access list forbids it, or a service has none.
const REFUSED: u8 = 2;

impl Default for Functions {
    fn default() -> Self {
        Self(AtomicU8::new(LOST))
    }
}

/// Returns the commands that load each function into Redis. A function that is there stays as it is.
pub(super) fn loads() -> impl Iterator<Item = Cmd> {
    let functions = scripts().all().into_iter().filter_map(|script| script.function.as_ref());
    functions.map(|function| {
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(&function.library);
        load
    })
}

impl Functions {
    /// Commands and their subjects, to be tried in this order while Redis says that it does not have the subject.
    pub(super) fn ways<'a>(&self, script: &'a Script) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        let function = script.function.as_ref().filter(|_| self.0.load(Ordering::Relaxed) == THERE);
        let function = function.map(|function| ("FCALL", function.name.as_str()));
        function.into_iter().chain([("EVALSHA", script.sha1.as_str()), ("EVAL", script.body.as_str())])
    }

    /// Returns whether an answer says that Redis lacks the subject of the command, or does not let this user run
    /// functions. In both cases nothing has run.
    pub(super) fn lacked(&self, command: &str, answer: &Result<Value, RedisError>) -> bool {
        let Err(error) = answer else { return false };
        if command == "FCALL" && error.code() == Some("NOPERM") {
            // They are there, as FUNCTION LOAD is allowed: without FCALL they are of no use, until somebody starts anew.
            if self.0.swap(REFUSED, Ordering::Relaxed) != REFUSED {
                tracing::warn!(
                    "the access list does not allow FCALL, so calls cost redis more: grant +fcall, and restart"
                );
            }
            return true;
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) {
            metrics().redis_error(Kind::NoScript);
            return true;
        }
        let lost = error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
            && error.detail().is_some_and(|detail| detail.starts_with("Function not found"));
        if lost {
            metrics().redis_error(Kind::FunctionLost);
            self.0.store(LOST, Ordering::Relaxed);
        }
        lost
    }

    /// Returns whether the functions must be loaded into Redis again.
    pub(super) fn are_lost(&self) -> bool {
        self.0.load(Ordering::Relaxed) == LOST
    }

    /// Redis has them now.
    pub(super) fn loaded(&self) {
        self.0.store(THERE, Ordering::Relaxed);
    }

    /// Redis has not taken them, and may do so later or not.
    pub(super) fn refused(&self, error: &(dyn std::error::Error + 'static)) {
        // A full memory, a replica, a slot without a master: all that passes.
        let never =
            error.downcast_ref::<RedisError>().is_some_and(|error| matches!(error.code(), Some("NOPERM" | "ERR")));
        if never {
            self.0.store(REFUSED, Ordering::Relaxed);
            tracing::info!(error, "redis does not accept functions, so calls cost it more");
        } else {
            self.0.store(LOST, Ordering::Relaxed);
        }
    }
}
