//! The limit of open files. Each socket is one, so this bounds the connections. Redis, the admin port and the catalog
//! need some as well, and callers must not take all of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The number of files that are kept for everything but callers: 32 connections to the admin port, those to Redis and
/// to the collector, listeners, certificates, the catalog, and connections that have just been accepted.
const KEPT: u64 = 128;

/// Raises the soft limit to the hard limit, and returns the limit that holds then. Many systems start processes with a soft limit of 1,024 for
/// the sake of programs that use `select`, and leave it to others to raise it.
#[must_use]
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised to {:?}", limit.maximum);
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

/// Returns the number of connections there may be, where `wanted` are configured and the process may open `files`
/// files.
#[must_use]
pub fn connections(wanted: usize, files: u64) -> usize {
    let left = files - KEPT.min(files / 2);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_for_others_than_callers() {
        for (wanted, files, most) in [
            (10_000, 1_048_576, 10_000),
            (10_000, u64::MAX, 10_000),
            (10_000, 1024, 896),
            (100, 1024, 100),
            (100, 200, 100),
            (1000, 200, 100),
            (10, 1, 1),
            (10, 0, 1),
        ] {
            assert_eq!(connections(wanted, files), most, "{wanted} of {files}");
        }
    }
}
