//! Access lists and passwords in files, through the real Redis: the lists that docs/operating/redis.md gives suffice, and none of their permissions is idle.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tollgate::grpc::v1;
use tollgate::ledger::{Ledger, RedisAccess, RedisOptions};
use tollgate::meter::MeterOptions;
use tonic::Code;

use crate::support::redis_cluster::{RedisCluster, subscribe, track};
use crate::support::redis_server::RedisServer;
use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, redis_options, scratch};

const CATALOG: &str = "
default_plan: p
plans:
  p: { period: yearly, limit_groups: [{ id: g, unit: tokens, quota: 1000000, match: [{ event: seen }] }] }
";

/// The access lists of docs/operating/redis.md, in its order: a node, a watched server, a Sentinel, a node of a cluster. Without user and password.
pub fn lists() -> [Vec<String>; 4] {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating/redis.md")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("ACL SETUSER tollgate on >PASSWORD "));
    let lists: Vec<Vec<String>> = lines.map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    lists.try_into().expect("the page gives four lists")
}

pub async fn set_user(redis: &RedisServer, name: &str, rules: &[String]) {
    let command = format!("ACL SETUSER {name} reset on >secret {}", rules.join(" "));
    let _: () = redis.ask(&command).await.unwrap_or_else(|error| panic!("{command}: {error}"));
}

/// What a server has refused to users since the last look.
async fn refused(redis: &RedisServer) -> Vec<String> {
    let entries: Vec<std::collections::HashMap<String, redis::Value>> = redis.ask("ACL LOG").await.unwrap();
    let _: () = redis.ask("ACL LOG RESET").await.unwrap();
    let object = |entry: &std::collections::HashMap<String, redis::Value>| {
        redis::from_redis_value::<String>(entry["object"].clone()).unwrap()
    };
    // The library tries this with newer servers, and does without.
    entries.iter().map(object).filter(|object| object != "client|setinfo").collect()
}

pub async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let told: String = redis.ask("INFO commandstats").await.unwrap();
    let count = told.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    count.and_then(|count| count.split_once(',')?.0.parse().ok()).unwrap_or(0)
}

/// Every RPC, and what is forgotten in between; with the real clock.
async fn exercise(replica: &mut Replica) {
    let user = fresh_user("acl");
    let event = |name: &str| Some(v1::Event { name: name.to_owned(), quantity: Some(3.0), ..Default::default() });
    let reserve = |id: &str, seconds| v1::ReserveRequest {
        user_id: user.clone(),
        event: event("seen"),
        request_id: id.to_owned(),
        ttl: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..v1::ReserveRequest::default()
    };
    subscribe(replica, &user).await;
    let asked = v1::GetSubscriptionRequest { user_id: user.clone() };
    replica.subscriptions.get_subscription(asked).await.unwrap();
    // This one lapses, and is forgotten at once.
    replica.metering.reserve(reserve("lapses", 1)).await.unwrap();
    let held = replica.metering.reserve(reserve("a", 60)).await.unwrap().into_inner();
    let again = replica.metering.reserve(reserve("a", 60)).await.unwrap().into_inner();
    assert_eq!(held.reservation_id, again.reservation_id);
    let commit =
        v1::CommitRequest { reservation_id: held.reservation_id.clone(), actual: None, ..v1::CommitRequest::default() };
    replica.metering.commit(commit).await.unwrap();
    let back = |reservation_id: &str| v1::TrackRequest {
        user_id: user.clone(),
        event: Some(v1::Event { name: "seen.refund".to_owned(), quantity: Some(1.0), ..Default::default() }),
        reservation_id: reservation_id.to_owned(),
        ..Default::default()
    };
    replica.metering.track(back(&held.reservation_id)).await.unwrap();
    replica.metering.track(back("")).await.unwrap();
    let held = replica.metering.reserve(reserve("b", 60)).await.unwrap().into_inner();
    let look = v1::GetReservationRequest { reservation_id: held.reservation_id.clone() };
    assert!(replica.metering.get_reservation(look).await.unwrap().into_inner().reservation.is_some());
    let list = v1::ListReservationsRequest { user_id: user.clone(), ..Default::default() };
    let listed = replica.metering.list_reservations(list).await.unwrap().into_inner().reservations;
    assert!(listed.iter().any(|hold| hold.reservation_id == held.reservation_id), "{listed:?}");
    let release = v1::ReleaseRequest { reservation_id: held.reservation_id, ..Default::default() };
    replica.metering.release(release).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let batch = v1::BatchTrackRequest { requests: vec![track(&user, "t"), track("", "t")] };
    assert_eq!(replica.metering.batch_track(batch).await.unwrap().into_inner().results.len(), 2);
    let can_use = v1::CanUseRequest { user_id: user.clone(), event: event("seen") };
    assert!(replica.metering.can_use(can_use).await.unwrap().into_inner().allowed);
    let usage = v1::GetUsageRequest { user_id: user.clone(), ..Default::default() };
    let used = replica.metering.get_usage(usage).await.unwrap().into_inner().limits;
    assert_eq!((used[0].used, used[0].held), (2.0, 0.0));
    let earlier = v1::TrackRequest {
        time: Some(prost_types::Timestamp { seconds: jiff::Timestamp::now().as_second(), nanos: 0 }),
        ..track(&user, "earlier")
    };
    replica.metering.track(earlier).await.unwrap();
    let reset = v1::ResetUsageRequest { user_id: user.clone(), request_id: "reset".to_owned(), ..Default::default() };
    assert_eq!(replica.metering.reset_usage(reset).await.unwrap().into_inner().limits[0].used, 0.0);
    let cancel = v1::CancelSubscriptionRequest { user_id: user.clone(), ..Default::default() };
    replica.subscriptions.cancel_subscription(cancel).await.unwrap();
    replica.metering.reserve(reserve("c", 60)).await.unwrap();
    let delete = || v1::DeleteUserRequest { user_id: user.clone() };
    replica.subscriptions.delete_user(delete()).await.unwrap();
    // A connection that is lent again is looked at first.
    replica.metering.reserve(reserve("d", 60)).await.unwrap();
    replica.subscriptions.delete_user(delete()).await.unwrap();
}

/// What is settled is forgotten at once, so that the commands that forget are run as well.
async fn replica(redis: RedisOptions) -> Replica {
    let options = MeterOptions {
        settlement_window: Duration::ZERO,
        replay_window: Duration::from_millis(500),
        ..MeterOptions::default()
    };
    Replica::start_with(CATALOG, jiff::tz::db(), options, redis).await
}

fn without(list: &[String], left_out: &str) -> Vec<String> {
    list.iter().filter(|rule| *rule != left_out).cloned().collect()
}

/// What is said of a start that fails.
pub async fn refusal(options: RedisOptions) -> Option<String> {
    let error = Ledger::connect(&options).await.err()?;
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    Some(told)
}

#[tokio::test]
async fn the_list_for_a_node_serves_every_call_and_no_permission_of_it_is_idle() {
    let [list, ..] = lists();
    let redis = RedisServer::start(scratch("acl-node"), "");
    redis.ready().await;
    let options = || RedisOptions {
        urls: vec![format!("redis://tollgate:secret@127.0.0.1:{}", redis.port())],
        ..redis_options()
    };
    set_user(&redis, "tollgate", &list).await;
    let mut serving = replica(options()).await;
    exercise(&mut serving).await;
    assert!(calls(&redis, "fcall").await > 10 && calls(&redis, "unlink").await > 1);
    assert_eq!(refused(&redis).await, Vec::<String>::new());
    for left_out in &list {
        set_user(&redis, "tollgate", &without(&list, left_out)).await;
        let permission = left_out.trim_start_matches('+');
        if let Some(told) = refusal(options()).await {
            let named = permission.replace('|', " ").to_uppercase();
            let says = told.contains(&named) || left_out.starts_with('~');
            assert!(says && told.contains(&format!("ACL SETUSER NAME {left_out}")), "{left_out}: {told}");
            continue;
        }
        // It does without, and Redis has noticed.
        assert!(
            ["ping", "unwatch", "info", "function|load", "fcall"].contains(&permission),
            "{left_out} is not missed at the start"
        );
        let _: () = redis.ask("FUNCTION FLUSH").await.unwrap();
        exercise(&mut replica(options()).await).await;
        let refused = refused(&redis).await;
        assert!(refused.iter().any(|object| object == permission), "{left_out} is idle: {refused:?}");
    }
    let keys: Vec<String> = redis.ask("KEYS tollgate3:nobody").await.unwrap();
    assert_eq!(keys, Vec::<String>::new(), "to ask for permission writes nothing");
}

#[tokio::test]
async fn where_functions_may_be_loaded_and_not_called_scripts_do_the_same() {
    let [list, ..] = lists();
    let redis = RedisServer::start(scratch("acl-fcall"), "");
    redis.ready().await;
    set_user(&redis, "tollgate", &without(&list, "+fcall")).await;
    let urls = vec![format!("redis://tollgate:secret@127.0.0.1:{}", redis.port())];
    let mut replica = replica(RedisOptions { urls, ..redis_options() }).await;
    for _ in 0..10 {
        replica.metering.track(track("u", "")).await.unwrap();
    }
    assert_eq!(calls(&redis, "evalsha").await, 10 + 1, "one was to ask whether it is allowed");
    assert_eq!(refused(&redis).await, ["fcall"], "it is tried once");
}

#[tokio::test]
async fn the_list_for_a_cluster_serves_every_call_and_what_is_its_own_is_not_idle() {
    let [.., list] = lists();
    let cluster = RedisCluster::start("acl-cluster", false, "").await;
    let set_all = async |list: &[String]| {
        for node in &cluster.nodes {
            set_user(node, "tollgate", list).await;
        }
    };
    let refused_anywhere = async || {
        let mut all = Vec::new();
        for node in &cluster.nodes {
            all.extend(refused(node).await);
        }
        all
    };
    let urls = || cluster.nodes.iter().map(|node| format!("redis://tollgate:secret@127.0.0.1:{}", node.port()));
    let options = || RedisOptions { urls: urls().collect(), ..redis_options() };
    set_all(&list).await;
    let mut serving = replica(options()).await;
    exercise(&mut serving).await;
    assert_eq!(refused_anywhere().await, Vec::<String>::new());
    for left_out in list.iter().filter(|rule| *rule != "+asking") {
        set_all(&without(&list, left_out)).await;
        let refusal = refusal(options()).await;
        let permission = left_out.trim_start_matches('+');
        if refusal.is_none() {
            exercise(&mut replica(options()).await).await;
            assert!(
                ["ping", "info", "function|load", "fcall"].contains(&permission),
                "{left_out} is not missed at the start"
            );
        }
        let refused = refused_anywhere().await;
        let noticed = refused.iter().any(|object| object == permission);
        assert!(noticed || refusal.is_some_and(|told| told.contains(left_out)), "{left_out}: {refused:?}");
    }
    // All keys of a user have arrived at another master, and the slot has not.
    let user = fresh_user("asking");
    set_all(&list).await;
    subscribe(&mut serving, &user).await;
    serving.metering.track(track(&user, "1")).await.unwrap();
    cluster.give_two_memories(&user).await;
    let slot = cluster.slot(&user).await;
    let from = cluster.master_of(slot, 0).await;
    let to = (from + 1) % 3;
    cluster.begin_migration(slot, from, to).await;
    assert!(cluster.migrate_keys(slot, from, to, 100).await > 0);
    serving.metering.track(track(&user, "2")).await.unwrap();
    refused_anywhere().await;
    set_all(&without(&list, "+asking")).await;
    serving.metering.track(track(&user, "3")).await.unwrap_err();
    assert!(refused_anywhere().await.contains(&"asking".to_owned()));
    cluster.end_migration(slot, from, to).await;
}

fn password_file(name: &str, text: &str) -> PathBuf {
    let file = scratch(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

/// Asks until there is an answer, for as long as service may take to resume.
async fn resumes(replica: &mut Replica, id: &str) {
    let started = Instant::now();
    while let Err(status) = replica.metering.track(track("u", id)).await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(started.elapsed() < Duration::from_secs(20), "service does not resume: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_replaced_in_its_file_is_used_by_the_next_connection() {
    let [list, ..] = lists();
    let redis = RedisServer::start(scratch("password"), "");
    redis.ready().await;
    set_user(&redis, "tollgate", &list).await;
    let file = password_file("password.txt", "secret\n");
    let (url, named) = (redis.url(), file.to_str().unwrap());
    let catalog = password_file("password.yaml", CATALOG);
    let catalog = catalog.to_str().unwrap();
    let flags = ["--redis-url", &url, "--redis-user", "tollgate", "--redis-password-file", named, "--catalog", catalog];
    let served = Served::start(0, &flags);
    let mut replica = Replica::connect(served.address).await;
    resumes(&mut replica, "1").await;
    let kick = async || redis.ask::<u64>("CLIENT KILL USER tollgate").await.unwrap();
    for (number, (password, file_first)) in [("two", true), ("three", false), ("four", true)].into_iter().enumerate() {
        let change = format!("ACL SETUSER tollgate resetpass >{password}");
        if file_first {
            std::fs::write(&file, password).unwrap();
            let _: () = redis.ask(&change).await.unwrap();
            assert!(kick().await > 0);
        } else {
            let _: () = redis.ask(&change).await.unwrap();
            assert!(kick().await > 0);
            // The old password is refused now.
            let started = Instant::now();
            while replica.metering.track(track("u", "refused")).await.is_ok() {
                assert!(started.elapsed() < Duration::from_secs(10), "it is not refused");
            }
            // For longer than the library tries by itself.
            while started.elapsed() < Duration::from_secs(5) {
                replica.metering.track(track("u", "refused")).await.unwrap_err();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            std::fs::write(&file, password).unwrap();
        }
        resumes(&mut replica, &format!("changed {number}")).await;
    }
}

#[test]
fn passwords_that_cannot_be_used_end_the_start_and_are_never_told() {
    let empty = password_file("empty.txt", "\n");
    let file = password_file("full.txt", "hush\n");
    let run = |flags: &[&str]| {
        let output = tollgate().args(["serve", "--listen", "127.0.0.1:0"]).args(flags).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !told.contains("hush"), "{told}");
        told
    };
    let (empty, file) = (empty.to_str().unwrap(), file.to_str().unwrap());
    let url = "--redis-url=redis://127.0.0.1:1";
    let told = run(&[url, "--redis-password-file", empty]);
    assert!(told.contains("redis-password-file") && told.contains("empty.txt") && told.contains("is empty"), "{told}");
    let told = run(&[url, "--redis-password-file", "/nonexistent/password"]);
    assert!(told.contains("/nonexistent/password"), "{told}");
    let told = run(&["--redis-url=redis://:hush@127.0.0.1:1", "--redis-password-file", file]);
    assert!(told.contains("leave one of them out"), "{told}");
    let told = run(&[url, "--redis-user=u", "--redis-cert=c.pem", "--redis-sentinel-password-file", file]);
    for part in
        ["redis-user needs redis-password-file", "redis-cert and redis-key go together", "redis-sentinel, which"]
    {
        assert!(told.contains(part), "{told}");
    }
    let told = run(&["--redis-password-file", file]);
    assert!(told.contains("which is not set"), "{told}");
    let told = run(&["--redis-url=rediss://:hush@127.0.0.1:1/#insecure"]);
    assert!(told.contains("#insecure") && told.contains("--redis-ca"), "{told}");
    let told = run(&[url, "--redis-ca", file]);
    assert!(told.contains("no certificate"), "{told}");
    let options = RedisOptions {
        urls: vec!["redis://:hush@a".to_owned()],
        access: RedisAccess { password_file: Some(file.into()), ..RedisAccess::default() },
        ..RedisOptions::default()
    };
    assert!(!format!("{options:?}").contains("hush"), "{options:?}");
}
