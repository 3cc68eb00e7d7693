//! Checks whether a Redis can keep a ledger: its version, and that it does not evict. It also reports settings that an
//! operator should know.
//!
//! It uses INFO, as managed services forbid CONFIG. Where the access list allows it, CONFIG answers what INFO does not
//! say.

use std::collections::HashMap;

use redis::{Cmd, InfoDict};

use crate::domain::counted::counted;

use super::ConnectError;

/// Judges a node by its INFO; `node` is its name in messages.
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

/// A remark about a setting that does not keep Redis from serving, and that is perhaps not intended.
#[derive(Debug, PartialEq)]
pub(super) enum Remark {
    /// A setting that can lose counters, or keeps calls from being decided.
    Warning(String),
    /// A setting that is worth knowing.
    Note(&'static str),
}

/// Returns the remarks about a node, from its INFO.
pub(super) fn remarks(info: &InfoDict, wait_replicas: usize) -> Vec<Remark> {
    let number = |name: &str| info.get::<u64>(name);
    let mut remarks = Vec::new();
    if info.get::<String>("role").as_deref() == Some("slave") {
        remarks.push(Remark::Warning(
            "it is a replica, which takes no writes: calls are UNAVAILABLE until it is promoted. Name the master, or let Sentinels \
             name it (--redis-sentinel)"
                .to_owned(),
        ));
    } else if number("connected_slaves").is_some_and(|replicas| replicas > 0)
        && number("min_slaves_good_slaves").is_none()
    {
        remarks.push(Remark::Note(
            "it has replicas, and accepts writes that none of them has: a failover forgets those. min-replicas-to-write 1 and \
             min-replicas-max-lag 2 bound them to about two seconds",
        ));
    }
    if let Some(replicas) = number("connected_slaves").filter(|replicas| *replicas < wait_replicas as u64)
        && info.get::<String>("role").as_deref() != Some("slave")
    {
        remarks.push(Remark::Warning(format!(
            "it has {}, and --redis-wait-replicas asks for {wait_replicas}: calls that write are UNAVAILABLE until they \
             are there",
            counted(replicas, "replica")
        )));
    }
    // Without any of these fields nothing is known of how it persists.
    match number("aof_enabled") {
        Some(0) if number("rdb_last_save_time").is_some() => {
            let saves = number("rdb_saves").is_some_and(|saves| saves > 0);
            let unsaved = number("rdb_changes_since_last_save").unwrap_or(0);
            let files = if saves { "only snapshots are written" } else { "no append-only file is written" };
            remarks.push(Remark::Warning(format!(
                "{files}: when it ends unexpectedly, everything since the last snapshot ({} now) or everything at all is \
                 forgotten: usage, holds and request ids. Set appendonly yes, and appendfsync everysec or always",
                counted(unsaved, "change")
            )));
        }
        Some(1) => {
            if info.get::<String>("aof_last_write_status").is_some_and(|status| status != "ok") {
                remarks.push(Remark::Warning(
                    "its last write to the append-only file failed: look at its disk and its log".to_owned(),
                ));
            }
            remarks.push(Remark::Note(
                "with appendfsync everysec about a second is forgotten when its machine dies; with always nothing is; with no \
                 the operating system decides",
            ));
        }
        _ => {}
    }
    if info.get::<String>("rdb_last_bgsave_status").is_some_and(|status| status != "ok") {
        remarks.push(Remark::Warning("its last snapshot failed: look at its disk and its log".to_owned()));
    }
    if number("maxmemory") == Some(0) {
        remarks.push(Remark::Note(
            "it has no maxmemory: when the machine runs out, the system may kill it. With one it refuses new holds instead, and still \
             takes commits and releases",
        ));
    }
    remarks
}

/// Writes to the log what there is to tell of a node.
pub(super) fn tell(info: &InfoDict, node: &str, wait_replicas: usize) {
    for remark in remarks(info, wait_replicas) {
        match remark {
            Remark::Warning(text) => tracing::warn!(node, "{text}"),
            Remark::Note(text) => tracing::info!(node, "{text}"),
        }
    }
}

/// The setting that decides how Redis frees expired keys: at once, or beside the calls.
const LAZY_EXPIRY: &str = "lazyfree-lazy-expire";

/// Asks whether the access list lets this user read that setting. Trying it would leave an entry in `ACL LOG`. Where
/// the command does not exist, as with some managed services, the answer is no.
pub(super) fn may_read_expiry() -> Cmd {
    let mut ask = redis::cmd("EVAL");
    ask.arg("local ran, may = pcall(redis.acl_check_cmd, 'CONFIG', 'GET', ARGV[1]) return (ran and may) and 1 or 0");
    ask.arg(0).arg(LAZY_EXPIRY);
    ask
}

/// Asks for that setting.
pub(super) fn read_expiry() -> Cmd {
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg(LAZY_EXPIRY);
    ask
}

/// Writes to the log if that setting holds up calls.
pub(super) fn tell_expiry(settings: &HashMap<String, String>, node: &str) {
    if let Some(text) = remark_on_expiry(settings) {
        tracing::warn!(node, "{text}");
    }
}

fn remark_on_expiry(settings: &HashMap<String, String>) -> Option<&'static str> {
    settings.get(LAZY_EXPIRY).is_some_and(|value| value == "no").then_some(
        "it frees what has expired before it goes on: a user with a million remembered ids stops all calls for half a second. Set \
         lazyfree-lazy-expire yes",
    )
}

/// The access list forbids INFO.
pub(super) fn tell_nothing(node: &str) {
    tracing::warn!(
        node,
        "version, eviction policy and persistence could not be checked, as the access list forbids INFO: grant +info, or make sure that \
         it is Redis 7.0 or Valkey 7.2 or newer, that maxmemory-policy is noeviction, and that it has an append-only file"
    );
}

/// Returns the slots that nobody serves, by CLUSTER INFO.
pub(super) fn uncovered(told: &str) -> Option<String> {
    let field = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
    let served = field("cluster_slots_ok:")?;
    (served < 16384).then(|| {
        format!(
            "only {served} of 16384 slots of the cluster are served: calls of the users in the others are UNAVAILABLE. See CLUSTER \
             NODES; redis-cli --cluster fix gives slots to masters"
        )
    })
}

/// Returns whether the node belongs to a cluster.
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

    /// The warnings, then the notes.
    fn told(text: &str) -> (Vec<String>, Vec<&'static str>) {
        let (mut warnings, mut notes) = (Vec::new(), Vec::new());
        for remark in remarks(&InfoDict::new(text), 2) {
            match remark {
                Remark::Warning(text) => warnings.push(text),
                Remark::Note(text) => notes.push(text),
            }
        }
        (warnings, notes)
    }

    #[test]
    fn what_may_be_lost_is_told_with_what_to_set() {
        let (warnings, _) = told("aof_enabled:0\r\nrdb_last_save_time:7\r\nrdb_changes_since_last_save:12\r\n");
        assert!(warnings[0].contains("no append-only file") && warnings[0].contains("12 changes"), "{warnings:?}");
        assert!(warnings[0].contains("appendonly yes"), "{warnings:?}");
        let saves = "aof_enabled:0\r\nrdb_last_save_time:7\r\nrdb_saves:3\r\nrdb_last_bgsave_status:err\r\n";
        let (warnings, _) = told(saves);
        assert!(warnings[0].contains("only snapshots") && warnings[1].contains("snapshot failed"), "{warnings:?}");
        let (warnings, notes) = told("aof_enabled:1\r\naof_last_write_status:ok\r\nmaxmemory:100\r\n");
        assert_eq!((warnings.len(), notes.len()), (0, 1));
        assert!(notes[0].contains("appendfsync"), "{notes:?}");
        let (warnings, _) = told("aof_enabled:1\r\naof_last_write_status:err\r\n");
        assert!(warnings[0].contains("disk"), "{warnings:?}");
        assert_eq!(told(""), (Vec::new(), Vec::new()), "nothing is known, and nothing is told");
    }

    #[test]
    fn an_expiry_that_holds_up_calls_is_told_and_one_that_is_not_known_is_not() {
        let told = |value: &str| remark_on_expiry(&HashMap::from([(LAZY_EXPIRY.to_owned(), value.to_owned())]));
        assert!(told("no").is_some_and(|text| text.contains("lazyfree-lazy-expire yes")));
        assert_eq!((told("yes"), remark_on_expiry(&HashMap::new())), (None, None));
    }

    #[test]
    fn memory_replicas_and_slots_are_told() {
        assert!(told("maxmemory:0\r\n").1[0].contains("maxmemory"));
        let (warnings, _) = told("role:slave\r\n");
        assert!(warnings[0].contains("replica") && warnings[0].contains("--redis-sentinel"), "{warnings:?}");
        assert!(told("role:master\r\nconnected_slaves:1\r\n").1[0].contains("min-replicas-to-write 1"));
        assert!(told("role:master\r\nconnected_slaves:1\r\nmin_slaves_good_slaves:1\r\n").1.is_empty());
        assert!(told("role:master\r\nconnected_slaves:0\r\n").1.is_empty());
        assert!(told("role:master\r\nconnected_slaves:1\r\n").0[0].contains("1 replica,"));
        assert!(told("role:master\r\nconnected_slaves:2\r\n").0.is_empty());
        assert_eq!(uncovered("cluster_state:ok\r\ncluster_slots_ok:16384\r\n"), None);
        assert!(uncovered("cluster_slots_ok:10923\r\n").is_some_and(|told| told.contains("10923 of 16384")));
    }
}
