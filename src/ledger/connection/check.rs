//! Whether a Redis can keep a ledger: its version, and that it does not evict.

use redis::InfoDict;

use super::ConnectError;

/// Judges a node by what it says of itself; `node` is how a message calls it.
pub(super) fn judge(info: &InfoDict, node: &str, allow_eviction: bool) -> Result<(), ConnectError> {
    // Valkey says 7.2.4 as its Redis version, and its own in a field of its own.
    match info.get::<String>("valkey_version") {
        Some(version) => judge_version(true, version, node)?,
        None => judge_version(false, info.get::<String>("redis_version").unwrap_or_default(), node)?,
    }
    if info.get::<u8>("arch_bits") == Some(32) {
        return Err(ConnectError::ThirtyTwoBits { node: node.to_owned() });
    }
    let policy = info.get::<String>("maxmemory_policy").unwrap_or_default();
    if policy != "noeviction" && !policy.is_empty() {
        if !allow_eviction {
            return Err(ConnectError::Evicting { node: node.to_owned(), policy });
        }
        tracing::warn!(node, %policy, "redis may evict keys, and counters with them");
    }
    Ok(())
}

/// Judges the version of a Redis or a Valkey.
pub(in crate::ledger) fn judge_version(valkey: bool, version: String, node: &str) -> Result<(), ConnectError> {
    let (server, least) = if valkey { ("Valkey", (7, 2)) } else { ("Redis", (7, 0)) };
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < least {
        return Err(ConnectError::TooOld { node: node.to_owned(), server, version });
    }
    Ok(())
}

/// Whether the node is one of a cluster.
pub(super) fn is_of_a_cluster(info: &InfoDict) -> bool {
    info.get::<u8>("cluster_enabled") == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str, allow_eviction: bool) -> Result<(), String> {
        judge(&InfoDict::new(text), "the master a:1", allow_eviction).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_is_judged_by_version_and_eviction() {
        assert_eq!(verdict("redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\n", false), Ok(()));
        assert_eq!(verdict("redis_version:10.0.0\r\n", false), Ok(()));
        assert_eq!(verdict("redis_version:7.2.4\r\nvalkey_version:8.0.1\r\n", false), Ok(()));
        assert_eq!(verdict("redis_version:7.0.0\r\narch_bits:64\r\n", false), Ok(()));
        let narrow = verdict("redis_version:7.0.0\r\narch_bits:32\r\n", true).unwrap_err();
        assert!(narrow.contains("the master a:1 is a build of 32 bits"), "{narrow}");
        let old = verdict("redis_version:6.2.14\r\nmaxmemory_policy:noeviction\r\n", true).unwrap_err();
        assert!(old.contains("the master a:1 is Redis 6.2.14"), "{old}");
        let old = verdict("redis_version:7.2.4\r\nvalkey_version:7.1.0\r\n", true).unwrap_err();
        assert!(old.contains("Valkey 7.1.0"), "{old}");
        let evicting = "redis_version:7.0.0\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert!(verdict(evicting, false).unwrap_err().contains("of the master a:1 is allkeys-lru"));
        assert_eq!(verdict(evicting, true), Ok(()));
    }
}
