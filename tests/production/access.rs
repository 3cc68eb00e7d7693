//! API keys, tokens of users, and apps that do not see each other.

use std::process::Output;
use std::time::Duration;

use prost::Message as _;
use tollgate::access::{ApiKey, mint};
use tollgate::domain::id::UserId;
use tollgate::grpc::v1;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::support::redis_server::RedisServer;
use crate::support::served::{Served, tollgate};
use crate::support::{Replica, fresh_user, redis, redis_url, scratch};

/// `tollgate keys ...` on the shared Redis.
fn keys(arguments: &[&str]) -> Output {
    tollgate().arg("keys").args(arguments).env("TOLLGATE_REDIS_URL", redis_url()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// A new key of an app.
pub fn key(app: &str, role: &str) -> String {
    let made = keys(&["create", "--app", app, "--role", role, "--name", "of a test"]);
    assert!(made.status.success(), "{made:?}");
    text(&made.stdout)
}

fn prefix(key: &str) -> &str {
    &key[..key.len() - 44]
}

fn serve(flags: &[&str]) -> Served {
    let url = redis_url();
    let all: Vec<_> = ["--redis-url", &url, "--api-keys"].into_iter().chain(flags.iter().copied()).collect();
    Served::start(0, &all)
}

/// A message from the holder of a key, and of a token if it is not empty.
pub fn with<T>(message: T, key: &str, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    if !token.is_empty() {
        request.metadata_mut().insert("tollgate-user-token", token.parse().unwrap());
    }
    request
}

fn event() -> v1::Event {
    v1::Event { name: "llm.tokens".to_owned(), quantity: Some(7.0), ..v1::Event::default() }
}

fn reserve(user: &str) -> v1::ReserveRequest {
    v1::ReserveRequest { user_id: user.to_owned(), event: Some(event()), ..v1::ReserveRequest::default() }
}

fn track(user: &str) -> v1::TrackRequest {
    v1::TrackRequest { user_id: user.to_owned(), event: Some(event()), ..v1::TrackRequest::default() }
}

fn usage(user: &str) -> v1::GetUsageRequest {
    v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() }
}

pub fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("a fault without ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "tollgate");
    (status.code(), info.reason.clone())
}

pub fn refused<T>(answer: Result<T, Status>, code: Code, why: &str) {
    let status = answer.err().expect("it is refused");
    assert_eq!(reason(&status), (code, why.to_owned()), "{status:?}");
}

async fn used(replica: &mut Replica, key: &str, user: &str) -> f64 {
    replica.metering.get_usage(with(usage(user), key, "")).await.unwrap().into_inner().limits[0].used
}

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// Every RPC of the contract, as a path.
fn every_rpc() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let paths = services.flat_map(|(package, service)| {
        service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
    });
    paths.collect()
}

/// Calls an RPC with an empty message.
async fn call(replica: &Replica, path: &str, metadata: MetadataMap) -> Result<(), Status> {
    let channel = Channel::from_shared(format!("http://{}", replica.address)).unwrap().connect().await.unwrap();
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let request = Request::from_parts(metadata, tonic::Extensions::new(), ());
    let path: PathAndQuery = path.parse().unwrap();
    client.unary(request, path, tonic_prost::ProstCodec::<(), ()>::default()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_key_is_let_in() {
    let served = serve(&[]);
    let replica = Replica::connect(served.address).await;
    let secret = key("door", "secret");
    let mut other = secret.clone();
    other.replace_range(
        other.len() - 4..other.len() - 3,
        if other.as_bytes()[other.len() - 4] == b'A' { "B" } else { "A" },
    );
    let unknown = ApiKey::random(tollgate::access::Role::Secret).unwrap();
    let rpcs = every_rpc();
    assert!(rpcs.len() >= 12, "{rpcs:?}");
    for path in &rpcs {
        let shown = ["", "Bearer", "Bearer ", "Bearer x", "Basic dTpw"].map(str::to_owned);
        for value in shown.into_iter().chain([format!("Bearer {other}"), format!("Token {secret}")]) {
            let mut metadata = MetadataMap::new();
            if !value.is_empty() {
                metadata.insert("authorization", value.parse().unwrap());
            }
            refused(call(&replica, path, metadata).await, Code::Unauthenticated, "UNAUTHENTICATED");
        }
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {}", unknown.reveal()).parse().unwrap());
        refused(call(&replica, path, metadata.clone()).await, Code::Unauthenticated, "UNAUTHENTICATED");
        // The scheme is read whatever its case (RFC 9110), and an empty request is then a bad one, or an answer.
        metadata.insert("authorization", format!("bearer {secret}").parse().unwrap());
        let answer = call(&replica, path, metadata).await;
        assert!(
            answer.as_ref().err().is_none_or(|status| [Code::InvalidArgument, Code::NotFound].contains(&status.code())),
            "{path}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_works_at_once_and_a_revoked_one_nowhere() {
    let (one, two) = (serve(&[]), serve(&[]));
    let mut replicas = [Replica::connect(one.address).await, Replica::connect(two.address).await];
    let user = fresh_user("rotation");
    // Made after the replicas have read the keys.
    let (old, new) = (key("rotation", "secret"), key("rotation", "secret"));
    for replica in &mut replicas {
        for key in [&old, &new] {
            replica.metering.track(with(track(&user), key, "")).await.unwrap();
        }
    }
    let revoked = keys(&["revoke", prefix(&old)]);
    assert!(revoked.status.success(), "{revoked:?}");
    for replica in &mut replicas {
        refused(replica.metering.track(with(track(&user), &old, "")).await, Code::Unauthenticated, "UNAUTHENTICATED");
        replica.metering.track(with(track(&user), &new, "")).await.unwrap();
    }
    assert_eq!(used(&mut replicas[0], &new, &user).await, 6.0 * 7.0);
    let again = keys(&["revoke", prefix(&old)]);
    assert!(!again.status.success() && text(&again.stderr).contains("there is no key"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_and_stored_as_a_hash() {
    let made = keys(&["create", "--app", "vault", "--role", "public"]);
    let shown = text(&made.stdout);
    let secret = &shown[shown.len() - 43..];
    assert!(shown.starts_with("tollgate_public_") && !text(&made.stderr).contains(secret), "{made:?}");
    let listed = text(&keys(&["list"]).stdout);
    let line = listed.lines().find(|line| line.contains(prefix(&shown))).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("vault") && !listed.contains(secret), "{listed}");
    let stored: Vec<String> =
        redis::cmd("HGETALL").arg("tollgate3:api-keys").query_async(&mut redis().await).await.unwrap();
    assert!(!stored.concat().contains(secret), "{stored:?}");
    assert!(stored.concat().contains(&ApiKey::parse(&shown).unwrap().sha256()), "{stored:?}");

    for (arguments, told) in [
        (&["create", "--app", "Vault", "--role", "secret"][..], "is not the name of an app"),
        (&["create", "--app", "vault", "--role", "admin"], "secret, public"),
        (&["revoke", "vault"], "name the key by its prefix"),
        (&["revoke", "tollgate_secret_000000000000"], "there is no key"),
        (&["token", "--user", "u"], "TOLLGATE_KEY"),
        (&["list", "--redis-url", "redis://127.0.0.1:1"], "cannot reach Redis"),
    ] {
        let output = keys(arguments);
        assert!(!output.status.success() && text(&output.stderr).contains(told), "{arguments:?}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_sees_nothing_of_another() {
    let served = serve(&[]);
    let mut replica = Replica::connect(served.address).await;
    let (ours, theirs) = (key("ours", "secret"), key("theirs", "secret"));
    // The same name, and one that would be the other app's if names were only joined.
    let user = fresh_user("shared");
    replica.metering.track(with(track(&user), &ours, "")).await.unwrap();
    assert_eq!((used(&mut replica, &ours, &user).await, used(&mut replica, &theirs, &user).await), (7.0, 0.0));

    let held = replica.metering.reserve(with(reserve(&user), &ours, "")).await.unwrap().into_inner();
    let id = held.reservation_id;
    let commit = || v1::CommitRequest { reservation_id: id.clone(), actual: None, ..v1::CommitRequest::default() };
    let release = || v1::ReleaseRequest { reservation_id: id.clone(), reason: String::new() };
    let unknown = "RESERVATION_NOT_FOUND";
    refused(replica.metering.commit(with(commit(), &theirs, "")).await, Code::NotFound, unknown);
    refused(replica.metering.release(with(release(), &theirs, "")).await, Code::NotFound, unknown);
    let look = || v1::GetReservationRequest { reservation_id: id.clone() };
    refused(replica.metering.get_reservation(with(look(), &theirs, "")).await, Code::NotFound, unknown);
    let found =
        replica.metering.get_reservation(with(look(), &ours, "")).await.unwrap().into_inner().reservation.unwrap();
    assert_eq!((&found.reservation_id, &found.user_id), (&id, &user));
    // Two holds, so that a page of one has a token, which is no key to the other app's user of that name.
    replica.metering.reserve(with(reserve(&user), &ours, "")).await.unwrap();
    let list =
        |token: &str| v1::ListReservationsRequest { user_id: user.clone(), page_size: 1, page_token: token.to_owned() };
    let page = replica.metering.list_reservations(with(list(""), &ours, "")).await.unwrap().into_inner();
    let none = replica.metering.list_reservations(with(list(""), &theirs, "")).await.unwrap().into_inner();
    assert_eq!((page.reservations.len(), none.reservations.len()), (1, 0));
    let token = page.next_page_token;
    assert!(replica.metering.list_reservations(with(list(&token), &ours, "")).await.is_ok());
    let other = replica.metering.list_reservations(with(list(&token), &theirs, "")).await;
    refused(other, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    replica.metering.commit(with(commit(), &ours, "")).await.unwrap();
    let refund = v1::TrackRequest {
        event: Some(v1::Event { name: "llm.tokens.refund".to_owned(), ..event() }),
        reservation_id: id.clone(),
        ..track(&user)
    };
    refused(replica.metering.track(with(refund.clone(), &theirs, "")).await, Code::NotFound, unknown);
    let batch = v1::BatchTrackRequest { requests: vec![refund.clone(), track(&user)] };
    let results = replica.metering.batch_track(with(batch, &theirs, "")).await.unwrap().into_inner().results;
    use v1::batch_track_result::Result as Outcome;
    assert!(matches!(&results[0].result, Some(Outcome::Status(status)) if status.code == i32::from(Code::NotFound)));
    assert!(matches!(&results[1].result, Some(Outcome::Response(_))));
    assert_eq!(used(&mut replica, &theirs, &user).await, 7.0);
    assert_eq!(used(&mut replica, &ours, &user).await, 14.0);
    replica.metering.track(with(refund, &ours, "")).await.unwrap();
    assert_eq!(used(&mut replica, &ours, &user).await, 7.0);

    let delete = || v1::DeleteUserRequest { user_id: user.clone() };
    replica.subscriptions.delete_user(with(delete(), &theirs, "")).await.unwrap();
    assert_eq!(used(&mut replica, &ours, &user).await, 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_sees_one_user_and_the_plans() {
    let served = serve(&[]);
    let mut replica = Replica::connect(served.address).await;
    let (secret, public, foreign) = (key("page", "secret"), key("page", "public"), key("other-page", "secret"));
    let (user, neighbour) = (fresh_user("page"), fresh_user("page"));
    let signed =
        |by: &str, seconds: i64| mint(&ApiKey::parse(by).unwrap(), &UserId::parse(&user).unwrap(), now() + seconds);
    let token = signed(&secret, 60);

    for path in every_rpc() {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {public}").parse().unwrap());
        metadata.insert("tollgate-user-token", token.parse().unwrap());
        let answer = call(&replica, &path, metadata).await;
        match path.rsplit('/').next().unwrap() {
            "GetUsage" => assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument),
            "GetPlan" => assert_eq!(answer.unwrap_err().code(), Code::NotFound),
            "ListPlans" => answer.unwrap(),
            _ => refused(answer, Code::PermissionDenied, "SECRET_KEY_NEEDED"),
        }
    }

    replica.metering.track(with(track(&user), &secret, "")).await.unwrap();
    let mut see = async |user: &str, token: &str| replica.metering.get_usage(with(usage(user), &public, token)).await;
    assert_eq!(see(&user, &token).await.unwrap().into_inner().limits[0].used, 7.0);
    refused(see(&neighbour, &token).await, Code::PermissionDenied, "NOT_YOUR_USER");
    refused(see(&user, "").await, Code::PermissionDenied, "NOT_YOUR_USER");
    for bad in [
        signed(&secret, 0),
        // By the clock of Redis, which is this machine's: a minute more than an hour was accepted once.
        signed(&secret, 3630),
        signed(&foreign, 60),
        signed(&public, 60),
        "a.b.c".to_owned(),
        format!("{}A", &token[..token.len() - 1]),
    ] {
        // The last character of a signature has bits that mean nothing.
        if bad != token {
            refused(see(&user, &bad).await, Code::Unauthenticated, "TOKEN_INVALID");
        }
    }

    let minted = tollgate().args(["keys", "token", "--user", &user]).env("TOLLGATE_KEY", &secret).output().unwrap();
    assert!(see(&user, &text(&minted.stdout)).await.is_ok(), "{minted:?}");
    // Who signs no more is believed no more.
    assert!(keys(&["revoke", prefix(&secret)]).status.success());
    refused(see(&user, &token).await, Code::Unauthenticated, "TOKEN_INVALID");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_app_has_the_plans_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = |plan: &str| {
        let groups = "[{ id: calls, label: Calls, unit: count, quota: 5, match: [{ event: '*', measure: events }] }]";
        format!("default_plan: {plan}\nplans: {{ {plan}: {{ name: P, period: daily, limit_groups: {groups} }} }}\n")
    };
    std::fs::write(folder.path().join("app-a.yaml"), catalog("alpha")).unwrap();
    std::fs::write(folder.path().join("app-b.yaml"), catalog("beta")).unwrap();
    let path = folder.path().to_str().unwrap();
    let checked = tollgate().args(["check-catalog", path]).output().unwrap();
    assert!(text(&checked.stdout).contains("2 apps, 2 plans"), "{checked:?}");
    let served = serve(&["--catalog", path]);
    let mut replica = Replica::connect(served.address).await;
    for (app, plan) in [("app-a", "alpha"), ("app-b", "beta")] {
        let key = key(app, "secret");
        let plans = replica.plans.list_plans(with(v1::ListPlansRequest {}, &key, "")).await.unwrap().into_inner().plans;
        assert_eq!(plans.iter().map(|plan| &*plan.plan_id).collect::<Vec<_>>(), [plan]);
    }
    let key = key("app-c", "secret");
    refused(
        replica.plans.list_plans(with(v1::ListPlansRequest {}, &key, "")).await,
        Code::FailedPrecondition,
        "APP_UNKNOWN",
    );
    // Without keys every call is one of the app `default`.
    let output =
        tollgate().args(["serve", "--listen", "127.0.0.1:0", "--redis-url", &redis_url(), "--catalog", path]).output();
    assert!(text(&output.unwrap().stderr).contains("no default.yaml"));
}

#[test]
fn other_machines_are_let_in_only_with_keys_or_when_that_is_wanted() {
    let config =
        |flags: &[&str]| tollgate().args(["config", "--listen", "0.0.0.0:50051"]).args(flags).output().unwrap();
    let refused = config(&[]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(text(&refused.stderr).contains("turn api-keys on"), "{refused:?}");
    for flag in ["--api-keys", "--allow-anonymous"] {
        assert!(config(&[flag]).status.success(), "{flag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_read_anew_open_nothing_after_a_while() {
    let redis = RedisServer::start(scratch("stale-keys"), "");
    let url = redis.url();
    let made =
        tollgate().args(["keys", "create", "--app", "a", "--role", "secret", "--redis-url", &url]).output().unwrap();
    let key = text(&made.stdout);
    let served = Served::start(0, &["--redis-url", &url, "--api-keys", "--redis-timeout", "500ms"]);
    let mut replica = Replica::connect(served.address).await;
    // Needs no Redis but for the key.
    let mut list = async || replica.plans.list_plans(with(v1::ListPlansRequest {}, &key, "")).await;
    list().await.unwrap();
    // A key can be revoked when memory is full.
    let other =
        tollgate().args(["keys", "create", "--app", "a", "--role", "secret", "--redis-url", &url]).output().unwrap();
    redis.ask::<redis::Value>("CONFIG SET maxmemory 1").await.unwrap();
    let revoked =
        tollgate().args(["keys", "revoke", prefix(&text(&other.stdout)), "--redis-url", &url]).output().unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
    redis.signal("-STOP");
    // Nothing is known of a key that Redis was not asked for.
    let unknown = ApiKey::random(tollgate::access::Role::Secret).unwrap();
    let mut plans = Replica::connect(served.address).await.plans;
    let asked = plans.list_plans(with(v1::ListPlansRequest {}, unknown.reveal(), "")).await;
    assert_eq!(asked.unwrap_err().code(), Code::Unavailable);
    let refused = loop {
        if let Err(status) = list().await {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    redis.signal("-CONT");
    assert_eq!(reason(&refused), (Code::Unavailable, "UNAVAILABLE".to_owned()));
    assert!(refused.get_error_details().retry_info().is_some());
    while list().await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn being_refused_often_ends_no_connection() {
    let served = serve(&[]);
    let replica = Replica::connect(served.address).await;
    let known = key("patient", "secret");
    let mut calls = tokio::task::JoinSet::new();
    for client in 0..64 {
        let (mut plans, known) = (replica.plans.clone(), known.clone());
        calls.spawn(async move {
            for call in 0..40 {
                let refused = plans.list_plans(v1::ListPlansRequest {}).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unauthenticated, "call {call} of client {client}: {refused:?}");
                plans.list_plans(with(v1::ListPlansRequest {}, &known, "")).await.unwrap();
            }
        });
    }
    calls.join_all().await;
}
